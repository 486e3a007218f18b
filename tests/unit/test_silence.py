"""Silence is reckoned over what was really listed."""

from datetime import UTC, datetime, timedelta

import pytest

from poller.config.model import During, Expect
from poller.silence import silent_since
from poller.window import Coverage, Interval

OFFICE = During(frozenset(range(5)), 8 * 60, 18 * 60)


def march(day: int, hour: int = 0, minute: int = 0) -> datetime:
    return datetime(2026, 3, day, hour, minute, tzinfo=UTC)


def listed(*spans: tuple[datetime, datetime]) -> Coverage:
    return Coverage(tuple(Interval(*span) for span in spans))


@pytest.mark.parametrize(
    ("last", "coverage", "since"),
    [
        pytest.param(march(6), listed(), None, id="nothing-is-listed"),
        pytest.param(march(6), listed((march(1), march(8))), None, id="not-longer-than-expected"),
        pytest.param(march(6), listed((march(1), march(8, 1))), march(6), id="longer"),
        pytest.param(march(9), listed((march(1), march(8))), None, id="a-fax-after-the-listing"),
        pytest.param(
            march(6), listed((march(1), march(7)), (march(9), march(10))), None, id="a-gap"
        ),
        pytest.param(
            march(6),
            listed((march(1), march(7)), (march(9), march(11, 1))),
            march(9),
            id="after-a-gap",
        ),
    ],
)
def test_silence_is_reckoned_to_the_newest_listed_instant_and_from_the_last_gap_on(
    last: datetime, coverage: Coverage, since: datetime | None
) -> None:
    assert silent_since(Expect(timedelta(days=2)), last, coverage) == since


@pytest.mark.parametrize(
    ("until", "since"), [(march(9, 12), None), (march(9, 12, 1), march(6, 17, 59))]
)
def test_weekend_that_could_not_be_listed_until_monday_does_not_put_silence_off(
    until: datetime, since: datetime | None
) -> None:
    """2026-03-06 is a Friday."""
    expect = Expect(timedelta(hours=4, minutes=1), OFFICE)
    assert silent_since(expect, march(6, 17, 59), listed((march(1), until))) == since


def test_whom_nothing_is_expected_of_is_never_silent() -> None:
    assert silent_since(None, march(1), listed((march(1), march(30)))) is None
