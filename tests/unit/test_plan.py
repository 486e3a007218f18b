"""What a schedule needs of the limit, the real interval, and the warnings."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest

from poller import schedule
from poller.config.model import Poll, Sweep
from poller.plan import account_warnings, demand, interval_of, spelled, user_warnings

NOW = datetime(2026, 3, 2, 12, 30, tzinfo=UTC)  # a Monday
NONE = timedelta(0)
RARE = Sweep(every=timedelta(days=1000), back=timedelta(minutes=1))
ALONE = Poll(sweep=RARE, deep_sweep=RARE, max_window=timedelta(days=3000))  # hardly sweeps
OFFICE = Poll(every=None, cron="0 8,12,16 * * mon-fri")
HOUR_S, DAY_S = 3600, 86_400


def test_sweeps_add_to_the_polls_requests() -> None:
    asked = demand([Poll()], 5, NOW)
    # An hour and 24 hours back are two windows; a day and a week back are nine, and one more list.
    assert asked.fixed == pytest.approx(2 / HOUR_S + 10 / DAY_S)
    assert asked.polls == pytest.approx(1 / 30)
    assert asked.asked == asked.planned == pytest.approx(1 / 30 + 2 / HOUR_S + 10 / DAY_S)
    assert (asked.limit, asked.factor) == (3.75, 1)


def test_sweeps_come_no_more_often_than_polls() -> None:
    seldom = replace(Poll(), every=timedelta(days=2))
    assert demand([seldom], 5, NOW).fixed == pytest.approx((4 + 11) / (2 * DAY_S))


@pytest.mark.parametrize(
    ("cron", "a_week"),
    [
        pytest.param("0 8,12,16 * * mon-fri", 15, id="office hours"),
        pytest.param("*/15 * * * *", 7 * 96, id="every quarter"),
        pytest.param("0 8 * * mon", 1, id="once a week"),
    ],
)
def test_cron_times_are_counted_over_a_week(cron: str, a_week: int) -> None:
    poll = replace(ALONE, every=None, cron=cron)
    asked = demand([poll], 5, NOW)
    assert asked.fixed * 7 * DAY_S == pytest.approx(a_week, abs=0.05)
    assert asked.polls == 0


@pytest.mark.parametrize(
    ("cron", "longest"),
    [
        pytest.param("0 8,12,16 * * mon-fri", timedelta(hours=64), id="weekend"),
        pytest.param("0 8 * * *", timedelta(days=1), id="a day"),
        pytest.param("0 8 1 4,5 *", timedelta(days=30), id="a month"),
        pytest.param("0 0 29 2 *", timedelta(days=4 * 365 + 1), id="leap years"),
    ],
)
def test_the_real_interval_of_cron_times_is_the_longest_pause(
    cron: str, longest: timedelta
) -> None:
    assert interval_of(replace(ALONE, every=None, cron=cron), 9.0, NOW) == longest


def test_real_interval_is_the_one_by_which_the_planner_polls() -> None:
    polls = [replace(ALONE, every=timedelta(seconds=1))] * 30
    factor = demand(polls, 20, NOW).factor
    assert factor == pytest.approx(2, rel=1e-3)
    times = [NOW]
    for _ in range(4):
        times.append(schedule.next_poll(polls[0], "x", times[-1], factor))
    pauses = {later - earlier for earlier, later in pairwise(times[1:])}
    assert pauses == {interval_of(polls[0], factor, NOW)}


def test_polls_become_less_frequent_until_lists_and_sweeps_fit_into_their_share() -> None:
    asked = demand([Poll(every=timedelta(seconds=1))] * 100, 5, NOW)
    assert asked.planned == pytest.approx(asked.limit)
    assert asked.is_too_much
    (warning,) = account_warnings(asked)
    assert "the limit allows only 13,500" in warning
    assert f"{asked.factor:.2f} times as long" in warning


@pytest.mark.parametrize(
    ("intervals_s", "limit", "factor"),
    [
        pytest.param([], 5, 1, id="nobody asks"),
        pytest.param([30] * 100, 5, 1, id="all fits"),
        pytest.param([1] * 15, 20, 1, id="exactly three quarters"),
        pytest.param([1] * 30, 20, 2, id="twice too much"),
        pytest.param([30] * 600, 5, 20 / 3.75, id="600 users every 30 s at 5 per second"),
        pytest.param([1] * 10 + [60] * 600, 4, 20 / 3, id="mixed intervals"),
    ],
)
def test_intervals_stretch_until_the_lists_fit_into_their_share(
    intervals_s: list[float], limit: float, factor: float
) -> None:
    rare = Sweep(every=timedelta(days=3650), back=timedelta(minutes=1))
    poll = Poll(max_window=timedelta(days=3650), sweep=rare, deep_sweep=rare)
    polls = [replace(poll, every=timedelta(seconds=s)) for s in intervals_s]
    assert demand(polls, limit, NOW).factor == pytest.approx(factor, rel=1e-4)


def test_sweeps_that_fill_the_limit_alone_leave_a_tenth_for_polls_and_are_named() -> None:
    often = Sweep(every=timedelta(minutes=1), back=timedelta(days=30))
    asked = demand([Poll(sweep=often)] * 100, 1, NOW)
    assert asked.factor == pytest.approx(100 / 30 / 0.075)
    assert asked.planned > asked.limit
    assert "sweeps and cron times alone" in [*account_warnings(asked)][1]


def test_a_schedule_that_fits_is_not_warned_about() -> None:
    asked = demand([Poll()] * 100, 5, NOW)
    assert [*account_warnings(asked)] == [*user_warnings(Poll(), asked.factor, NONE, NOW)] == []


def test_nobody_asks_for_nothing() -> None:
    assert (demand([], 5, NOW).asked, demand([], 5, NOW).factor) == (0, 1)


def words(poll: Poll, factor: float = 1.0, late: timedelta = NONE) -> list[str]:
    return [*user_warnings(poll, factor, late, NOW)]


@pytest.mark.parametrize(
    ("every_s", "factor", "warned"),
    [
        pytest.param(450, 1.0, False, id="exactly half"),
        pytest.param(451, 1.0, True, id="longer"),
        pytest.param(300, 2.0, True, id="stretched by the limit"),
    ],
)
def test_overlap_is_to_be_twice_the_real_interval(
    every_s: int, factor: float, warned: bool
) -> None:
    found = words(Poll(every=timedelta(seconds=every_s)), factor)
    assert bool(found) is warned
    assert all("overlap (15m) is shorter than twice" in one for one in found)


@pytest.mark.parametrize(("late_s", "warned"), [(450, False), (451, True)])
def test_lateness_that_uses_up_half_of_the_overlap_is_warned_about(
    late_s: int, warned: bool
) -> None:
    found = words(Poll(), late=timedelta(seconds=late_s))
    assert bool(found) is warned
    assert all("7m 31s late" in one for one in found)


def test_cron_that_leaves_more_than_a_window_is_warned_about_and_told_what_it_takes() -> None:
    (found,) = words(OFFICE)
    assert "2d 16h" in found
    assert "3 lists" in found
    assert words(replace(OFFICE, max_window=timedelta(days=3))) == []


@pytest.mark.parametrize(
    ("length", "text"),
    [
        (timedelta(milliseconds=250), "250ms"),
        (timedelta(seconds=30), "30s"),
        (timedelta(seconds=40, milliseconds=100), "40s"),
        (timedelta(minutes=15), "15m"),
        (timedelta(hours=1, seconds=1), "1h"),
        (timedelta(days=2, hours=16, minutes=5), "2d 16h"),
    ],
)
def test_durations_are_spelled_with_their_two_largest_units(length: timedelta, text: str) -> None:
    assert spelled(length) == text


def test_cron_in_a_zone_with_daylight_saving_has_a_weekend_an_hour_shorter_in_march() -> None:
    poll = replace(OFFICE, timezone=ZoneInfo("America/Los_Angeles"))
    assert interval_of(poll, 1.0, NOW) == timedelta(hours=63)
