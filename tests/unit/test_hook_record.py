"""Whether a web-hook works, judged by faxes that came with or without a notice."""

from datetime import timedelta

import pytest

from poller.hook_record import HookRecord
from tests.conftest import NOON

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def test_a_hook_has_worked_when_a_day_brought_no_fax_without_a_notice() -> None:
    record = HookRecord().after_notice(NOON)
    assert not record.has_worked(NOON + 23 * HOUR)
    assert not record.has_worked(NOON + DAY)  # and none since
    record = record.after_notice(NOON + 23 * HOUR)
    assert record.has_worked(NOON + DAY)
    assert not record.has_worked(NOON + 2 * DAY)
    assert record.accepted == 2


def test_a_fax_without_a_notice_starts_the_day_again() -> None:
    record = HookRecord().after_notice(NOON).after_missing(NOON + HOUR)
    record = record.after_notice(NOON + 2 * HOUR).after_notice(NOON + 25 * HOUR)
    assert not record.has_worked(NOON + 25 * HOUR)
    assert record.has_worked(NOON + 26 * HOUR)


def test_a_hook_is_silent_when_faxes_come_for_a_day_and_no_notice() -> None:
    record = HookRecord().after_missing(NOON).after_missing(NOON + 2 * HOUR)
    assert not record.is_silent(NOON + 23 * HOUR)
    assert record.is_silent(NOON + DAY)
    assert not record.after_notice(NOON + DAY).is_silent(NOON + 3 * DAY)
    assert not HookRecord().is_silent(NOON)


def test_a_refused_notice_is_counted_and_proves_nothing() -> None:
    assert HookRecord().after_refused() == HookRecord(refused=1)
    assert HookRecord(found=1).after_found(2) == HookRecord(found=3)


def test_a_record_survives_being_written_and_read() -> None:
    record = HookRecord().after_notice(NOON).after_refused().after_missing(NOON + HOUR)
    assert HookRecord.read(record.text()) == record


@pytest.mark.parametrize("text", [None, "", "[]", "{", '{"other": 1}', '{"last_at": 5}'])
def test_what_cannot_be_read_is_an_empty_record(text: str | None) -> None:
    assert HookRecord.read(text) == HookRecord()
