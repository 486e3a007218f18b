"""eFax's time, computed from the `Date` headers of its answers."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poller.clock import ServerClock, SystemClock, clock_step
from tests.exhaustive import often

NOON = datetime(2024, 5, 21, 12, tzinfo=UTC)
SECOND, MINUTE, HOUR, DAY = (timedelta(**{u: 1}) for u in ("seconds", "minutes", "hours", "days"))


def clock_after(*offsets: timedelta | None) -> ServerClock:
    """A clock that has seen answers whose dates differed by this much from our own clock."""
    clock = ServerClock()
    for offset in offsets:
        clock.observed(None if offset is None else NOON + offset, NOON)
    return clock


@pytest.mark.parametrize(
    ("offsets", "expected"),
    [
        pytest.param([], None, id="nothing-yet"),
        pytest.param([2 * SECOND], 2 * SECOND, id="one-that-agrees-with-our-clock"),
        pytest.param([MINUTE], MINUTE, id="a-minute-off-agrees"),
        pytest.param([MINUTE + SECOND], None, id="more-than-a-minute-off"),
        pytest.param([HOUR, HOUR], None, id="two-are-not-enough"),
        pytest.param([HOUR, HOUR + MINUTE, HOUR], HOUR, id="three-that-agree"),
        pytest.param([-DAY, -DAY, -DAY], -DAY, id="three-that-say-our-clock-is-ahead"),
        pytest.param([HOUR, HOUR + MINUTE + SECOND, HOUR], None, id="three-that-do-not-agree"),
        pytest.param([DAY, HOUR, HOUR, HOUR], HOUR, id="the-last-three-count"),
        pytest.param([HOUR, HOUR, SECOND], SECOND, id="ours-before-the-third"),
        pytest.param([None, None], None, id="two-without-a-date"),
        pytest.param([HOUR, None, HOUR, None, HOUR], HOUR, id="some-without-a-date"),
    ],
)
def test_now_is_known_once_one_agrees_with_our_clock_or_three_with_each_other(
    offsets: list[timedelta | None], expected: timedelta | None
) -> None:
    clock = clock_after(*offsets)
    assert clock.now(NOON) == (None if expected is None else NOON + expected)
    assert clock.agreed == (expected is not None)


def test_a_server_date_an_hour_ahead_is_not_believed_until_three_agree() -> None:
    clock = clock_after(timedelta(0), HOUR, HOUR)
    assert clock.now(NOON) == NOON
    clock.observed(NOON + HOUR, NOON)
    assert clock.now(NOON) == NOON + HOUR


def test_wrong_dates_between_right_ones_are_never_believed() -> None:
    for times in range(1, 6):
        assert clock_after(*[timedelta(0), HOUR, HOUR] * times).now(NOON) == NOON


def test_dates_are_compared_with_what_is_believed_and_not_with_our_clock() -> None:
    clock = clock_after(*[HOUR] * 3, *(HOUR + n * SECOND for n in (40, 50, 60)))
    assert clock.now(NOON) == NOON + HOUR + 40 * SECOND


def test_answers_without_a_date_mean_our_clock_less_five_minutes() -> None:
    clock = clock_after(None, None, None)
    assert clock.agreed
    assert clock.now(NOON) == NOON - 5 * MINUTE


def test_answers_without_a_date_do_not_end_what_was_believed() -> None:
    assert clock_after(10 * SECOND, None, None, None).now(NOON) == NOON + 10 * SECOND


def test_a_date_that_contradicts_our_clock_ends_the_trust_in_it() -> None:
    clock = clock_after(None, None, None, -HOUR)
    assert clock.now(NOON) is None
    clock.observed(None, NOON)
    assert clock.now(NOON) is None
    clock.observed(NOON - HOUR, NOON)
    clock.observed(NOON - HOUR, NOON)
    assert clock.now(NOON) == NOON - HOUR


@pytest.mark.parametrize("year", [1, 1999, 2200, 9999])
def test_an_impossible_date_counts_as_none(year: int) -> None:
    clock = ServerClock()
    for _ in range(3):
        clock.observed(datetime(year, 12, 31, tzinfo=UTC), NOON)
    assert clock.now(NOON) == NOON - 5 * MINUTE


def test_now_is_the_median_of_the_last_five() -> None:
    clock = clock_after(*(n * SECOND for n in (50, 50, 50, 3, 4, 2, 5, 1)))
    assert clock.now(NOON) == NOON + 3 * SECOND


def test_the_earlier_of_two_is_taken() -> None:
    assert clock_after(8 * SECOND, 3 * SECOND).now(NOON) == NOON + 3 * SECOND


def test_the_server_runs_on_with_our_clock() -> None:
    assert clock_after(3 * SECOND).now(NOON + HOUR) == NOON + HOUR + 3 * SECOND


@pytest.mark.parametrize("by", [2 * DAY, -DAY])
def test_a_step_of_our_clock_does_not_move_the_servers(by: timedelta) -> None:
    clock = clock_after(timedelta(0), HOUR, HOUR)
    clock.stepped(by)
    assert clock.now(NOON + by) == NOON
    clock.observed(NOON + HOUR, NOON + by)
    assert clock.now(NOON + by) == NOON + HOUR


@pytest.mark.parametrize("by", [2 * DAY, HOUR, -DAY])
def test_a_step_of_our_clock_is_seen_by_the_next_reading_before_it_moves_the_servers(
    by: timedelta,
) -> None:
    clock = ServerClock()
    clock.observed(NOON + MINUTE, clock.our_now(NOON, 1000.0))
    stepped = clock.our_now(NOON + by + 5 * SECOND, 1005.0)
    assert clock.now(stepped) == NOON + MINUTE + 5 * SECOND
    assert clock.now(clock.our_now(stepped + SECOND, 1006.0)) == NOON + MINUTE + 6 * SECOND


@pytest.mark.parametrize(
    ("wall_s", "monotonic_s", "step_s"),
    [
        pytest.param(60, 60, None, id="both run alike"),
        pytest.param(61.5, 60, None, id="slewed a little"),
        pytest.param(3660, 60, 3600, id="set forward, or the machine slept"),
        pytest.param(-3540, 60, -3600, id="set back"),
    ],
)
def test_a_step_of_the_wall_clock_is_seen_against_the_monotonic_one(
    wall_s: float, monotonic_s: float, step_s: float | None
) -> None:
    step = clock_step((NOON, 1000.0), (NOON + timedelta(seconds=wall_s), 1000.0 + monotonic_s))
    assert step == (None if step_s is None else timedelta(seconds=step_s))


@settings(max_examples=often(30))
@given(
    ours=st.timedeltas(-30 * DAY, 30 * DAY),
    delays=st.lists(st.floats(0, 20), min_size=3, max_size=12),
)
def test_now_is_never_ahead_of_an_honest_server(ours: timedelta, delays: list[float]) -> None:
    clock = ServerClock()
    for n, delay in enumerate(delays):
        answered = NOON + n * MINUTE + timedelta(seconds=delay % 1)
        clock.observed(answered.replace(microsecond=0), answered + timedelta(seconds=delay) + ours)
    believed = clock.now(NOON + ours)
    assert believed is not None
    assert NOON - 21 * SECOND <= believed <= NOON


async def test_the_system_clock_is_aware_and_sleeps() -> None:
    clock = SystemClock()
    before, began = clock.now(), clock.monotonic()
    await clock.sleep(0.001)
    assert before.utcoffset() == timedelta(0)
    assert clock.monotonic() - began >= 0.001
