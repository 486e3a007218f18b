"""When to poll: phases and the grid, cron with Debian's meaning."""

import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from poller.config.model import Canary, Poll
from poller.cron import cron_problem, next_cron
from poller.schedule import (
    EPOCH,
    GRID,
    canary_grid,
    identity,
    is_overdue,
    next_on_grid,
    next_poll,
    phase,
)
from poller.stream import Direction
from tests.exhaustive import often

NEW_YORK = ZoneInfo("America/New_York")
UTC_ZONE = ZoneInfo("UTC")
NOW = datetime(2024, 5, 21, 4, 27, 56, 123_456, tzinfo=UTC)
EVERY = timedelta(seconds=30)

instants = st.integers(0, 130 * 365 * 86_400_000_000).map(
    lambda microseconds: EPOCH + timedelta(microseconds=microseconds)
)
intervals = st.timedeltas(min_value=timedelta(milliseconds=1), max_value=timedelta(days=30))

quick = settings(
    deadline=None, max_examples=often(30), suppress_health_check=[HealthCheck.too_slow]
)  # a busy machine is not a defect


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@quick
@given(identity=st.text("0123456789abcdef/é😀"), every=intervals)
def test_a_phase_lies_on_the_common_grid_inside_the_interval(
    identity: str, every: timedelta
) -> None:
    found = phase(identity, every)
    assert timedelta(0) <= found < every
    assert found % GRID == timedelta(0)


def test_a_phase_is_the_same_after_every_restart() -> None:
    assert phase("12345/77c1", EVERY) == timedelta(seconds=29, milliseconds=800)


def test_the_streams_of_a_user_have_phases_of_their_own() -> None:
    assert identity("app", "user") == "app/user"
    assert identity("app", "user", Direction.SENT) == "app/user/sent"


def test_a_user_id_with_a_lone_surrogate_has_a_phase() -> None:
    assert phase("\ud800", EVERY) < EVERY


def test_phases_of_many_users_are_spread_evenly() -> None:
    seconds = Counter(phase(f"12345/user-{n}", EVERY).seconds for n in range(3000))
    assert len(seconds) == 30
    assert max(seconds.values()) < 150


@quick
@given(now=instants, every=intervals, offset=intervals)
@example(now=EPOCH, every=EVERY, offset=timedelta(0))
@example(now=EPOCH - timedelta(days=400), every=EVERY, offset=timedelta(seconds=1))
def test_the_next_time_on_the_grid_is_the_first_one_strictly_after_now(
    now: datetime, every: timedelta, offset: timedelta
) -> None:
    found = next_on_grid(now, every, offset)
    assert now < found <= now + every
    assert (found - EPOCH - offset) % every == timedelta(0)


def test_a_clock_that_jumps_fifty_years_costs_nothing() -> None:
    before = time.process_time()
    for years in (-50, 50):
        jumped = NOW + timedelta(days=365 * years)
        assert next_on_grid(jumped, timedelta(milliseconds=500), GRID) - jumped < EVERY
    assert time.process_time() - before < 2


def test_a_user_with_an_interval_is_polled_on_its_own_grid() -> None:
    first = next_poll(Poll(), "12345/77c1", NOW)
    assert first == next_on_grid(NOW, EVERY, phase("12345/77c1", EVERY))
    assert next_poll(Poll(), "12345/77c1", first) == first + EVERY


@pytest.mark.parametrize(
    ("poll", "hours", "factor", "overdue"),
    [
        pytest.param(Poll(every=timedelta(seconds=30)), 0.08, 1.0, False, id="in-five-minutes"),
        pytest.param(Poll(every=timedelta(seconds=30)), 0.11, 1.0, True, id="often"),
        pytest.param(Poll(every=timedelta(hours=1)), 1.9, 1.0, False, id="one-missed"),
        pytest.param(Poll(every=timedelta(hours=1)), 3.1, 1.0, True, id="long-past"),
        pytest.param(Poll(every=timedelta(hours=1)), 3.1, 2.0, False, id="stretched"),
        pytest.param(Poll(every=timedelta(hours=1)), 6.1, 2.0, True, id="long-past-and-stretched"),
        pytest.param(Poll(every=None, cron="0 8 * * *"), 20.0, 1.0, False, id="not-due"),
        pytest.param(Poll(every=None, cron="0 8 * * *"), 20.1, 1.0, True, id="cron-missed"),
    ],
)
def test_a_user_is_overdue_when_the_poll_after_the_last_good_one_is_long_past(
    poll: Poll, hours: float, factor: float, overdue: bool
) -> None:
    noon = datetime(2026, 3, 2, 12, tzinfo=UTC)
    assert is_overdue(poll, "a/b", noon, noon + timedelta(hours=hours), factor) is overdue


def test_a_stretched_interval_is_longer_and_still_on_the_common_grid() -> None:
    first = next_poll(Poll(), "12345/77c1", NOW, factor=1.3333)
    assert next_poll(Poll(), "12345/77c1", first, factor=1.3333) - first == timedelta(seconds=40)


def test_an_interval_that_is_not_stretched_is_kept_as_configured() -> None:
    poll = Poll(every=timedelta(milliseconds=250))
    first = next_poll(poll, "x", NOW)
    assert next_poll(poll, "x", first) - first == timedelta(milliseconds=250)


def test_a_user_with_cron_is_polled_at_its_times_whatever_the_factor() -> None:
    poll = Poll(every=None, cron="0 8,12,16 * * mon-fri", timezone=NEW_YORK)
    assert next_poll(poll, "x", NOW, factor=9) == utc("2024-05-21 12:00")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        pytest.param("", "cron: five fields", id="empty"),
        pytest.param("* * * *", "cron: five fields", id="four fields"),
        pytest.param("0 * * * * *", "cron: five fields", id="six fields with seconds"),
        pytest.param("@daily", "cron: five fields", id="nickname"),
        pytest.param("1" * 5000 + " * * * *", "cron: five fields", id="endless number"),
        pytest.param("60 * * * *", "cron: bad minute", id="minute 60"),
        pytest.param("* 24 * * *", "cron: bad hour", id="hour 24"),
        pytest.param("* * 0 * *", "cron: bad day-of-month", id="day 0"),
        pytest.param("* * * 13 *", "cron: bad month", id="month 13"),
        pytest.param("* * * * 8", "cron: bad day-of-week", id="weekday 8"),
        pytest.param("*/0 * * * *", "cron: bad minute", id="step 0"),
        pytest.param("5-1 * * * *", "cron: bad minute", id="range backwards"),
        pytest.param("* * * * mon-", "cron: bad day-of-week", id="half a range"),
        pytest.param("0 0 30 2 *", "cron: bad day-of-month", id="30 February"),
        pytest.param("0 0 */30 2 mon#5", "cron: this day never comes", id="never"),
        pytest.param("*/15 8-17 * * mon-fri", None, id="office hours"),
        pytest.param("0 0 29 2 *", None, id="leap day"),
        pytest.param("0 0 L * *", None, id="last day of the month"),
    ],
)
def test_a_cron_problem_is_one_sentence(text: str, sentence: str | None) -> None:
    found = cron_problem(text)
    if sentence == "cron: five fields":
        sentence = "a cron expression has five fields: minute hour day month weekday"
    assert found == sentence


@quick
@given(st.text(alphabet="0123456789*/,-# LWmonfri²", max_size=25))
def test_any_text_is_a_cron_expression_or_a_problem(text: str) -> None:
    problem = cron_problem(text)
    if problem is None:
        assert next_cron(text, NEW_YORK, NOW) > NOW


# 2024-05-21 is a Tuesday.
@pytest.mark.parametrize(
    ("text", "now", "following"),
    [
        pytest.param("* * * * *", "2024-05-21 04:27:00", ["05-21 04:28", "05-21 04:29"], id="all"),
        pytest.param("0 8 * * *", "2024-05-21 08:00:00", ["05-22 08:00"], id="strictly after"),
        pytest.param(
            "0 8 * * *", "2024-05-21 07:59:59.999999", ["05-21 08:00"], id="microseconds before"
        ),
        pytest.param(
            "5,20,50 9 * * *",
            "2024-05-21 09:05:00",
            ["05-21 09:20", "05-21 09:50", "05-22 09:05"],
            id="minute list",
        ),
        pytest.param(
            "*/25 * * * *",
            "2024-05-21 09:00:00",
            ["05-21 09:25", "05-21 09:50", "05-21 10:00"],
            id="step starts anew each hour",
        ),
        pytest.param(
            "10-30/10 7 * * *",
            "2024-05-21 00:00:00",
            ["05-21 07:10", "05-21 07:20", "05-21 07:30", "05-22 07:10"],
            id="range with step",
        ),
        pytest.param("0 3 * * 0", "2024-05-21 00:00:00", ["05-26 03:00"], id="0 is Sunday"),
        pytest.param("0 3 * * 7", "2024-05-21 00:00:00", ["05-26 03:00"], id="7 is Sunday"),
        pytest.param("0 3 * * 1", "2024-05-21 00:00:00", ["05-27 03:00"], id="1 is Monday"),
        pytest.param("0 3 * * SUN", "2024-05-21 00:00:00", ["05-26 03:00"], id="SUN"),
        pytest.param(
            "0 3 * * 5-7",
            "2024-05-21 00:00:00",
            ["05-24 03:00", "05-25 03:00", "05-26 03:00", "05-31 03:00"],
            id="5-7 is Friday to Sunday",
        ),
        pytest.param(
            "0 8,12,16 * * mon-fri",
            "2024-05-24 12:00:00",
            ["05-24 16:00", "05-27 08:00", "05-27 12:00"],
            id="the vendor's own schedule",
        ),
        pytest.param(
            "0 0 13 * 5", "2024-09-01 00:00:00", ["09-06 00:00", "09-13 00:00"], id="day or weekday"
        ),
        pytest.param(
            "0 0 */2 * 5", "2024-09-01 00:00:00", ["09-13 00:00", "09-27 00:00"], id="star: and"
        ),
        pytest.param("0 0 29 2 *", "2024-05-21 00:00:00", ["02-29 00:00"], id="next leap year"),
    ],
)
def test_cron_has_its_standard_meaning(text: str, now: str, following: list[str]) -> None:
    at = utc(now)
    for expected in following:
        at = next_cron(text, UTC_ZONE, at)
        assert f"{at:%m-%d %H:%M}" == expected
        assert at.tzinfo is UTC


# New York, 2024: 02:00 EST becomes 03:00 EDT on 10 March, 02:00 EDT 01:00 EST on 3 November.
@pytest.mark.parametrize(
    ("text", "now", "following"),
    [
        pytest.param(
            "30 2 * * *",
            "2024-03-09 12:00",
            ["03-10 07:00", "03-11 06:30"],
            id="a skipped time comes right after the gap",
        ),
        pytest.param(
            "15,45 2 * * *",
            "2024-03-10 06:59",
            ["03-10 07:00", "03-11 06:15"],
            id="two skipped times come once",
        ),
        pytest.param(
            "0 8 * * *",
            "2024-03-09 12:00",
            ["03-09 13:00", "03-10 12:00", "03-11 12:00"],
            id="8 o'clock moves with the zone",
        ),
        pytest.param(
            "*/30 * * * *",
            "2024-03-10 06:00",
            ["03-10 06:30", "03-10 07:00", "03-10 07:30"],
            id="a wildcard follows real time in spring",
        ),
        pytest.param(
            "30 1 * * *",
            "2024-11-03 04:00",
            ["11-03 05:30", "11-04 06:30"],
            id="a repeated time comes once",
        ),
        pytest.param(
            "30 1 * * *",
            "2024-11-03 06:10",
            ["11-04 06:30"],
            id="not again when asked in the second pass",
        ),
        pytest.param(
            "0-59 1 * * *",
            "2024-11-03 06:00:30",
            ["11-04 06:00"],
            id="a whole repeated hour is not walked into the past",
        ),
        pytest.param(
            "0 1-3 * * *",
            "2024-11-03 05:00",
            ["11-03 07:00", "11-03 08:00", "11-04 06:00"],
            id="fixed hours go on after the repeated one",
        ),
        pytest.param(
            "*/30 * * * *",
            "2024-11-03 05:00",
            ["11-03 05:30", "11-03 06:00", "11-03 06:30", "11-03 07:00"],
            id="a wildcard follows real time in autumn",
        ),
    ],
)
def test_cron_keeps_debians_meaning_over_daylight_saving(
    text: str, now: str, following: list[str]
) -> None:
    at = utc(now)
    for expected in following:
        at = next_cron(text, NEW_YORK, at)
        assert f"{at:%m-%d %H:%M}" == expected


@quick
@given(
    text=st.sampled_from(
        ["30 1 * * *", "*/20 * * * *", "0 0-6 * * *", "15 2 * * 7", "7 */3 1 * 1"]
    ),
    zone=st.sampled_from(["America/New_York", "Australia/Lord_Howe", "America/Santiago", "UTC"]),
    now=instants,
)
def test_cron_always_moves_on(text: str, zone: str, now: datetime) -> None:
    at = now
    for _ in range(5):
        following = next_cron(text, ZoneInfo(zone), at)
        assert following > at
        at = following


@quick
@given(
    now=instants,
    minutes=st.sets(st.integers(0, 59), min_size=1, max_size=4),
    hours=st.sets(st.integers(0, 23), min_size=1, max_size=3),
    weekday=st.integers(0, 7),
)
def test_cron_agrees_with_a_search_minute_by_minute(
    now: datetime, minutes: set[int], hours: set[int], weekday: int
) -> None:
    text = f"{','.join(map(str, minutes))} {','.join(map(str, hours))} * * {weekday}"
    minute = timedelta(minutes=1)
    at = now.replace(second=0, microsecond=0) + minute
    while (at.isoweekday() % 7, at.hour in hours, at.minute in minutes) != (
        weekday % 7,
        True,
        True,
    ):
        skip = at.isoweekday() % 7 == weekday % 7 and at.hour in hours
        at += minute if skip else timedelta(minutes=60 - at.minute)
    assert next_cron(text, UTC_ZONE, now) == at


def test_canaries_have_a_grid_of_their_own() -> None:
    canary = Canary(every=timedelta(hours=24))
    poll, identity = canary_grid(canary, "app/user")
    first = next_poll(poll, identity, NOW)
    assert NOW < first <= NOW + canary.every
    assert next_poll(poll, identity, first) == first + canary.every
    assert first != next_poll(poll, "app/user", NOW)
