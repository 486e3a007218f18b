"""Errors carry what the reaction to them needs."""

from datetime import UTC, datetime

from poller.errors import (
    AccountSuspended,
    Evidence,
    LeaseLost,
    SignInDelayed,
    StorageUnusable,
    Unforeseen,
    UsageError,
)


def test_an_error_of_the_api_bears_its_evidence_and_what_to_wait_for() -> None:
    until = datetime(2026, 3, 2, tzinfo=UTC)
    assert AccountSuspended("suspended", until=until).until == until
    assert SignInDelayed("delayed", wait_s=2.5).wait_s == 2.5
    assert SignInDelayed("delayed", wait_s=2.5).evidence == Evidence()
    assert SignInDelayed("delayed", wait_s=2.5).status is None


def test_an_error_that_is_a_bug_is_told_by_its_type_and_never_by_its_text() -> None:
    told = str(Unforeseen(KeyError("Dr. Jane Roe")))
    assert "KeyError" in told
    assert "Roe" not in told


def test_a_failed_step_of_the_storage_bears_what_the_system_said() -> None:
    failed = StorageUnusable("the storage cannot be written: Permission denied", fault="denied")
    assert (str(failed), failed.fault) == (
        "the storage cannot be written: Permission denied",
        "denied",
    )
    assert StorageUnusable("its marker is missing").fault is None


def test_an_error_with_a_topic_ends_with_where_to_read_more() -> None:
    assert StorageUnusable("the disk is gone").told == (
        "the disk is gone. See `poller help storage-unusable`."
    )
    assert UsageError("no such user").told == "no such user"


def test_a_lost_lease_names_its_account_and_needs_nobody() -> None:
    lost = LeaseLost("12345")
    assert (lost.app_id, lost.told) == ("12345", "another node has taken over the account")
