"""All events of a stream, in hours around a noon."""

from datetime import UTC, datetime, timedelta

from hypothesis import strategies as st

from poller.progress import (
    Covered,
    Discovered,
    GapDismissed,
    GapRetried,
    NotPolled,
    Pinned,
    Polled,
    RefusalLifted,
    SliceFailed,
    SliceSplit,
    StreamEvent,
    SweepsForgotten,
    Swept,
)
from poller.window import Interval, SliceKind

NOON = datetime(2024, 5, 21, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def hours(start: float, end: float) -> Interval:
    """An interval in hours from noon."""
    return Interval(NOON + start * HOUR, NOON + end * HOUR)


INTERVALS = st.tuples(st.integers(-40, 40), st.integers(1, 12)).map(
    lambda pair: hours(pair[0], pair[0] + pair[1])
)
INSTANTS = st.integers(-40, 40).map(lambda hour: NOON + hour * HOUR)
HAPPENED: st.SearchStrategy[StreamEvent] = st.one_of(
    st.builds(Pinned, INSTANTS, st.sampled_from(["1d", "9h"])),
    st.builds(Covered, INTERVALS),
    st.builds(Discovered, INSTANTS, st.tuples(INSTANTS, INSTANTS), st.booleans()),
    st.builds(SliceFailed, INTERVALS, INSTANTS, st.sampled_from(["refused", "too long"])),
    st.builds(lambda whole: SliceSplit(whole, _halves(whole)), INTERVALS),
    st.builds(Swept, st.sampled_from([SliceKind.SWEEP, SliceKind.DEEP_SWEEP]), INSTANTS),
    st.builds(SweepsForgotten, st.none() | INSTANTS),
    st.builds(Polled, INSTANTS),
    st.builds(NotPolled, INSTANTS, st.just("no answer"), st.none() | INSTANTS),
    st.builds(RefusalLifted),
    st.builds(GapDismissed, INTERVALS, st.none() | st.just("in the portal")),
    st.builds(GapRetried, INTERVALS),
)


def _halves(whole: Interval) -> tuple[Interval, ...]:
    middle = whole.start + whole.length / 2
    return Interval(whole.start, middle), Interval(middle, whole.end)
