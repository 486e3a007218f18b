"""What empty lists are worth: the rules, without a list."""

from datetime import UTC, datetime, timedelta

import pytest

from poller.emptiness import Finding, Lists, Verdict, is_proof_due, verdict

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("found", "says"),
    [
        pytest.param([], Verdict.UNPROVED, id="no-fax-is-known"),
        pytest.param([Finding.LISTED], Verdict.PROVED, id="it-is-listed"),
        pytest.param([Finding.ABSENT], Verdict.LOST, id="it-is-not"),
        pytest.param([Finding.BROKEN], Verdict.LOST, id="nor-does-efax-answer-for-it"),
        pytest.param([Finding.ABSENT, Finding.LISTED], Verdict.PROVED, id="another-one-is"),
        pytest.param([Finding.GONE, Finding.GONE], Verdict.UNPROVED, id="all-were-deleted"),
        pytest.param([Finding.GONE, Finding.ABSENT], Verdict.LOST, id="not-all-were-deleted"),
        pytest.param([Finding.REFUSED], Verdict.UNPROVED, id="nobody-lists-so-old-a-window"),
        pytest.param([Finding.REFUSED, Finding.ABSENT], Verdict.LOST, id="a-younger-one-is-absent"),
    ],
)
def test_one_known_fax_that_is_listed_proves_the_lists_of_an_account(
    found: list[Finding], says: Verdict
) -> None:
    assert verdict(found) is says


@pytest.mark.parametrize(
    ("proved_s", "is_missed", "due"),
    [
        pytest.param(None, False, True, id="never-proved"),
        pytest.param(100.0, False, False, id="a-minute-less-a-second-ago"),
        pytest.param(99.0, False, True, id="a-minute-ago"),
        pytest.param(159.0, True, True, id="a-fax-is-missed"),
    ],
)
def test_one_proof_serves_a_minute_unless_a_known_fax_is_missed(
    proved_s: float | None, *, is_missed: bool, due: bool
) -> None:
    assert is_proof_due(159.0, proved_s, is_missed=is_missed) is due


@pytest.mark.parametrize(
    "lists",
    [
        pytest.param(Lists(), id="nothing-was-asked"),
        pytest.param(Lists(frozenset()), id="it-would-not-say"),
        pytest.param(
            Lists(frozenset({"{}", "{faxes: []}"}), True, NOON, NOON - HOUR, frozenset({"{}"})),
            id="all",
        ),
    ],
)
def test_what_is_known_of_lists_survives_being_written_down(lists: Lists) -> None:
    assert Lists.read(lists.text()) == lists


@pytest.mark.parametrize(
    "text", [None, "", "[]", "{}", '{"shapes": 1}', '{"doubted_since": "noon"}', "no JSON"]
)
def test_of_what_cannot_be_read_nothing_is_known(text: str | None) -> None:
    assert Lists.read(text) == Lists()


def test_what_is_not_listed_for_an_hour_is_taken_for_deleted() -> None:
    assert not Lists().is_doubted_too_long(NOON)
    doubted = Lists(doubted_since=NOON)
    assert not doubted.is_doubted_too_long(NOON + HOUR - timedelta(seconds=1))
    assert doubted.is_doubted_too_long(NOON + HOUR)


def test_faxes_of_windows_up_to_those_that_were_deleted_are_deleted_too() -> None:
    assert not Lists().is_deleted(NOON)
    assert Lists(deleted_until=NOON).is_deleted(NOON)
    assert not Lists(deleted_until=NOON).is_deleted(NOON + HOUR)
