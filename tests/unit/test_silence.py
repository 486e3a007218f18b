"""Silence counts only time that was really listed."""

import time
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from poller.config.model import During, Expect
from poller.silence import silent_for, silent_since
from poller.window import Coverage, Interval

NEW_YORK = ZoneInfo("America/New_York")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NOW = datetime(2024, 5, 21, 4, 27, 56, 123_456, tzinfo=UTC)
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


def test_a_user_without_an_expectation_is_never_silent() -> None:
    assert silent_since(None, march(1), listed((march(1), march(30)))) is None


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


NIGHTS = During(weekdays=frozenset({4, 6}), start_minute=22 * 60, end_minute=6 * 60)
SUNDAYS = During(weekdays=frozenset({6}), start_minute=0, end_minute=1440)
REPEATED = During(weekdays=frozenset({6}), start_minute=75, end_minute=105)
ALWAYS = During(weekdays=frozenset(range(7)), start_minute=0, end_minute=1440)


@pytest.mark.parametrize(
    ("during", "local", "inside"),
    [
        pytest.param(OFFICE, "2024-05-21T08:00", True, id="opening minute"),
        pytest.param(OFFICE, "2024-05-21T07:59:59.999", False, id="just before"),
        pytest.param(OFFICE, "2024-05-21T17:59:59.999", True, id="last instant"),
        pytest.param(OFFICE, "2024-05-21T18:00", False, id="end is exclusive"),
        pytest.param(OFFICE, "2024-05-25T12:00", False, id="Saturday"),
        pytest.param(NIGHTS, "2024-05-24T23:00", True, id="Friday night"),
        pytest.param(NIGHTS, "2024-05-25T05:59", True, id="Saturday morning is Friday's shift"),
        pytest.param(NIGHTS, "2024-05-25T06:00", False, id="the shift is over"),
        pytest.param(NIGHTS, "2024-05-27T01:00", True, id="Monday morning is Sunday's shift"),
        pytest.param(NIGHTS, "2024-05-24T05:00", False, id="Friday morning is nobody's"),
        pytest.param(SUNDAYS, "2024-05-26T23:59", True, id="a whole day to its end"),
        pytest.param(SUNDAYS, "2024-05-27T00:00", False, id="midnight after it"),
    ],
)
def test_office_hours_are_those_of_their_zone(during: During, local: str, inside: bool) -> None:
    instant = datetime.fromisoformat(local).replace(tzinfo=NEW_YORK).astimezone(UTC)
    moment = timedelta(microseconds=1)
    counted = silent_for(instant, instant + moment, during, NEW_YORK)
    assert counted == (moment if inside else timedelta(0))


@pytest.mark.parametrize(
    ("during", "last", "now", "hours"),
    [
        pytest.param(None, "2024-05-20 12:00", "2024-05-21 13:00", 25, id="no office hours"),
        pytest.param(OFFICE, "2024-05-21 13:00", "2024-05-21 13:00", 0, id="just now"),
        pytest.param(OFFICE, "2024-05-22 13:00", "2024-05-21 13:00", 0, id="the clock went back"),
        pytest.param(OFFICE, "2024-05-24 21:00", "2024-05-27 13:00", 2, id="over the weekend"),
        pytest.param(OFFICE, "2024-05-25 01:00", "2024-05-26 23:00", 0, id="within the weekend"),
        pytest.param(OFFICE, "2024-04-01 12:00", "2024-05-27 13:00", 401, id="eight weeks"),
        pytest.param(NIGHTS, "2024-05-27 06:00", "2024-05-27 20:00", 4, id="the end of a night"),
        pytest.param(SUNDAYS, "2024-03-09 12:00", "2024-03-11 12:00", 23, id="a day of 23 hours"),
        pytest.param(SUNDAYS, "2024-11-02 12:00", "2024-11-04 12:00", 25, id="a day of 25 hours"),
        pytest.param(REPEATED, "2024-11-02 12:00", "2024-11-04 12:00", 1, id="hours come twice"),
    ],
)
def test_silence_counts_only_in_office_hours(
    during: During | None, last: str, now: str, hours: float
) -> None:
    assert silent_for(utc(last), utc(now), during, NEW_YORK) == timedelta(hours=hours)


def in_hours(during: During, zone: ZoneInfo, instant: datetime) -> bool:
    local = instant.astimezone(zone)
    minute = local.hour * 60 + local.minute
    end = during.end_minute + (1440 if during.end_minute <= during.start_minute else 0)
    return any(
        (local.weekday() - days) % 7 in during.weekdays
        and during.start_minute <= minute + days * 1440 < end
        for days in (0, 1)
    )


@settings(deadline=None, max_examples=10)  # a busy machine is not a defect
@given(
    during=st.builds(
        During,
        weekdays=st.frozensets(st.integers(0, 6)),
        start_minute=st.integers(0, 1439),
        end_minute=st.integers(1, 1440),
    ),
    begin=st.sampled_from(["2024-02-28", "2024-06-03", "2024-10-23"]),
    shift=st.integers(0, 5 * 1440),
    length=st.integers(0, 20 * 1440),
    zone=st.sampled_from(["America/New_York", "Australia/Lord_Howe", "Asia/Kolkata"]),
)
@example(during=REPEATED, begin="2024-10-23", shift=0, length=20 * 1440, zone="America/New_York")
@example(during=ALWAYS, begin="2024-02-28", shift=7, length=20 * 1440, zone="America/New_York")
def test_silence_agrees_with_counting_minute_by_minute(
    during: During, begin: str, shift: int, length: int, zone: str
) -> None:
    last = utc(begin) + timedelta(minutes=shift)
    now = last + timedelta(minutes=length)
    where = ZoneInfo(zone)
    counted = sum(in_hours(during, where, last + timedelta(minutes=m)) for m in range(length))
    assert silent_for(last, now, during, where) == timedelta(minutes=counted)


def test_silence_since_1970_is_cheap() -> None:
    before = time.process_time()
    silence = silent_for(EPOCH, NOW, ALWAYS, NEW_YORK)
    assert time.process_time() - before < 5  # seconds; going minute by minute would take a minute
    assert silence == NOW - EPOCH
