"""What is left to do, what counts as catching up, and how long it takes: figures in, figures out."""

from datetime import timedelta

import pytest

from poller.backlog import CatchUp, Left, Throughput, lists_left, per_hour, still_sweeps
from poller.config.model import Poll
from poller.progress import Covered, NotPolled, Pinned, Polled, Progress, SliceFailed, Swept
from poller.window import Interval, SliceKind
from tests.stream_events import NOON

MINUTE, HOUR, DAY = (timedelta(**{unit: 1}) for unit in ("minutes", "hours", "days"))
POLL = Poll()  # 24 h at a time, an overlap of 15 minutes
NEW = Progress(our_first_seen=NOON - DAY)
PINNED = NEW.apply(Pinned(NOON - 7 * DAY, "7d"))
NEWEST_LISTED = PINNED.apply(Covered(Interval(NOON - DAY, NOON)))
LISTED = PINNED.apply(Covered(Interval(NOON - 7 * DAY, NOON)), Polled(NOON))
GAP = Interval(NOON - 7 * DAY, NOON - DAY)


def left_of(progress: Progress, *, started: timedelta = HOUR, now: timedelta = MINUTE) -> int:
    """The lists left a minute after noon, in a service that started an hour before noon."""
    return lists_left(progress, POLL, NOON - started, NOON + now)


# -- lists -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("progress", "lists"),
    [
        pytest.param(NEW, 8, id="new: the look-back, in slices that overlap"),
        pytest.param(PINNED, 8, id="pinned, and nothing listed yet"),
        pytest.param(
            NEWEST_LISTED.apply(Polled(NOON)), 7, id="its newest slice is listed, its gap is not"
        ),
        pytest.param(NEWEST_LISTED, 8, id="its first poll is still under way"),
        pytest.param(LISTED, 0, id="all is listed"),
        pytest.param(
            NEWEST_LISTED.apply(Polled(NOON), SliceFailed(GAP, NOON + HOUR, "refused")),
            0,
            id="its gap has failed: that is no catching up any more",
        ),
        pytest.param(
            NEWEST_LISTED.apply(NotPolled(NOON, "429")), 7, id="its polls fail, its gap waits"
        ),
        pytest.param(
            PINNED.apply(NotPolled(NOON, "403", NOON + HOUR)), 0, id="eFax refuses it for an hour"
        ),
        pytest.param(
            PINNED.apply(NotPolled(NOON, "403", NOON)), 0, id="refused until a poll succeeds"
        ),
        pytest.param(NEW.apply(Pinned(NOON + DAY, "tomorrow")), 0, id="its start is still to come"),
    ],
)
def test_lists_left_are_those_that_nobody_has_asked_for(progress: Progress, lists: int) -> None:
    assert left_of(progress) == lists


@pytest.mark.parametrize(("down", "lists"), [(MINUTE, 1), (23 * HOUR, 1), (DAY, 2), (3 * DAY, 4)])
def test_after_a_start_a_list_is_left_for_each_slice_of_the_time_since_the_last_one(
    down: timedelta, lists: int
) -> None:
    assert left_of(LISTED, started=-down, now=down) == lists
    polled = LISTED.apply(Polled(NOON + down))
    assert left_of(polled, started=-down, now=down) == 0


def test_sweeps_of_a_start_are_under_way_until_both_were_completed_since() -> None:
    swept = LISTED.apply(Swept(SliceKind.SWEEP, NOON))
    both = swept.apply(Swept(SliceKind.DEEP_SWEEP, NOON))
    assert [still_sweeps(one, NOON - HOUR) for one in (LISTED, swept, both)] == [True, True, False]
    assert still_sweeps(both, NOON + HOUR)


# -- what counts as catching up ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "begins", "stays"),
    [
        (Left(0, 0), False, False),
        (Left(1, 0), True, True),
        (Left(0, 25), False, False),
        (Left(0, 26), False, True),
        (Left(0, 300), False, True),
        (Left(0, 301), True, True),
    ],
    ids=str,
)
def test_an_account_catches_up_with_a_list_left_or_a_minute_of_fetching(
    left: Left, begins: bool, stays: bool
) -> None:  # fmt: skip
    assert left.is_catching_up(5.0, begun=False) is begins
    assert left.is_catching_up(5.0, begun=True) is stays


def test_what_is_done_are_lists_and_faxes_since_it_began() -> None:
    begun = CatchUp(NOON, NOON, lists=96, stored=1000)
    assert begun.done(Left(96, 0), 1000) == 0
    assert begun.done(Left(36, 500), 1040) == 100
    assert begun.done(Left(99, 500), 990) == 0  # more to list, and files that were given back


# -- how long it takes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "throughput", "seconds"),
    [
        pytest.param(Left(), Throughput(None), 0.0, id="nothing waits, whatever is allowed"),
        pytest.param(Left(0, 9), Throughput(None), None, id="suspended, or no service runs"),
        pytest.param(Left(0, 500), Throughput(5.0), 100.0, id="nothing measured: the limit"),
        pytest.param(Left(0, 400), Throughput(5.0, 1.0), 100.0, id="less what the schedule needs"),
        pytest.param(
            Left(0, 125), Throughput(5.0, 4.9), 100.0, id="a quarter is left for images in any case"
        ),
        pytest.param(Left(50, 400), Throughput(5.0, 1.0), 110.0, id="lists at the limit before"),
        pytest.param(
            Left(0, 300), Throughput(5.0, 0.0, 120, 2 * MINUTE), 300.0, id="as in the last minutes"
        ),
        pytest.param(
            Left(0, 300), Throughput(5.0, 0.0, 6000, 2 * MINUTE), 60.0, id="never above the limit"
        ),
        pytest.param(
            Left(0, 300), Throughput(5.0, 0.0, 0, 2 * MINUTE), None, id="nothing was stored"
        ),
        pytest.param(
            Left(0, 10), Throughput(5.0, 0.0, 0, MINUTE / 6), 2.0, id="it has only just begun"
        ),
    ],
)
def test_how_long_a_backlog_takes(
    left: Left, throughput: Throughput, seconds: float | None
) -> None:
    assert throughput.seconds_for(left) == (None if seconds is None else pytest.approx(seconds))


def test_an_hourly_figure_needs_some_time() -> None:
    assert per_hour(3, timedelta(seconds=14)) is None
    assert per_hour(3, MINUTE) == 180
    assert per_hour(7, HOUR) == 7
