"""How operators name a stretch of time."""

from datetime import UTC, datetime, timedelta

import pytest

from poller.cli.lookup import stretch
from poller.errors import UsageError

FROM, TO = "2026-01-01T00:00:00.123Z", "2026-01-02T00:00:00.456+00:00"


def test_a_stretch_reaches_to_the_end_of_the_last_millisecond_that_is_shown() -> None:
    found = stretch((FROM, TO))
    assert found.start == datetime(2026, 1, 1, 0, 0, 0, 123_000, UTC)
    # A gap that ends at .456789 is shown as .456, and nothing of it may be left.
    assert found.end == datetime(2026, 1, 2, 0, 0, 0, 457_000, UTC)


def test_offsets_are_understood() -> None:
    found = stretch(("2026-01-01T02:00:00+02:00", TO))
    assert found.start == datetime(2026, 1, 1, tzinfo=UTC)
    assert found.start.utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("yesterday", TO), "'yesterday' is not a time; write it like 2024-05-21T"),
        (("2026-01-01T00:00:00", TO), "'2026-01-01T00:00:00' has no offset from UTC"),
        (("0001-01-01T00:00:00+14:00", TO), "is before 1970 or after 2199"),
        ((FROM, "9999-12-31T23:59:59.9999-14:00"), "is before 1970 or after 2199"),
        ((TO, FROM), "is not before"),
        ((FROM, FROM), "is not before"),
    ],
    ids=["no time", "no offset", "before all time", "after all time", "backwards", "empty"],
)
def test_words_that_name_no_stretch_are_wrong_usage(words: tuple[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        stretch(words)
