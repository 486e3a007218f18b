"""Which stretches of time have been listed, and which to list next.

Everything here is a value: intervals go in, intervals come out. Instants are aware UTC datetimes by
the server's clock.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import islice
from operator import attrgetter

SMALLEST_SLICE = timedelta(hours=1)
WIDENED_BY = timedelta(seconds=1)  # the API's bounds may be exclusive
EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
LONGEST_WAIT_FOR_FIRST_SUCCESS = timedelta(days=366)
PLANNED_AT_ONCE = 1000


@dataclass(frozen=True, order=True)
class Interval:
    """Half-open: includes `start`, excludes `end`. Raises ValueError if it is empty."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        if self.start >= self.end:
            raise ValueError(f"an interval cannot end at {self.end} when it starts at {self.start}")

    @property
    def length(self) -> timedelta:
        return self.end - self.start

    def within(self, start: datetime, end: datetime) -> "Interval | None":
        """Return the part from `start` to `end`, if there is one."""
        return _between(max(self.start, start), min(self.end, end))


def _between(start: datetime, end: datetime) -> Interval | None:
    return Interval(start, end) if start < end else None


def _merged(intervals: tuple[Interval, ...]) -> tuple[Interval, ...]:
    if len(intervals) < 2:  # usually
        return intervals
    merged: list[Interval] = []
    for interval in sorted(intervals, key=attrgetter("start")):
        if merged and interval.start <= merged[-1].end:
            merged[-1] = Interval(merged[-1].start, max(merged[-1].end, interval.end))
        else:
            merged.append(interval)
    return tuple(merged)


@dataclass(frozen=True)
class Coverage:
    """What has been listed to its last page: sorted, disjoint and merged, whatever is passed in."""

    intervals: tuple[Interval, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "intervals", _merged(self.intervals))

    @property
    def newest_end(self) -> datetime | None:
        return self.intervals[-1].end if self.intervals else None

    def add(self, interval: Interval) -> "Coverage":
        return Coverage((*self.intervals, interval))

    def gaps(self, start: datetime, end: datetime) -> tuple[Interval, ...]:
        """Return what is not covered between `start` and `end`, oldest first."""
        gaps = []
        first = bisect_right(self.intervals, start, key=lambda one: one.end)
        for one in self.intervals[first:]:
            if one.start >= end:
                break
            if start < one.start:
                gaps.append(Interval(start, one.start))
            start = one.end
        rest = _between(start, end)
        return (*gaps, rest) if rest else tuple(gaps)

    def watermark(self, start: datetime) -> datetime:
        """Return the end of the unbroken stretch from `start`; `start` if nothing covers it."""
        return next((one.end for one in self.intervals if one.start <= start < one.end), start)

    def covers(self, instant: datetime) -> bool:
        return any(one.start <= instant < one.end for one in self.intervals)


class SliceKind(StrEnum):
    NEWEST = "newest"
    GAP = "gap"
    SWEEP = "sweep"
    DEEP_SWEEP = "deep_sweep"
    BACKFILL = "backfill"


@dataclass(frozen=True)
class Slice:
    """A stretch to list at once; afterwards `interval` is recorded as covered."""

    kind: SliceKind
    interval: Interval

    def bounds(self, now: datetime, *, ahead: timedelta = WIDENED_BY) -> Interval:
        """Return the bounds to send: wider by a second at both ends, but at most `ahead` beyond `now`.

        `now` may be a second behind the server, which gives whole seconds: alone, it would leave
        out a fax that has just completed.
        """
        earliest = min(self.interval.start, now) - WIDENED_BY
        return Interval(earliest, min(self.interval.end + WIDENED_BY, now + ahead))

    def halves(self) -> "tuple[Slice, Slice] | None":
        """Return the newer and the older half, or None for a slice of an hour or less.

        A slice of two hours or more has halves of at least an hour; a shorter one has halves
        between half an hour and an hour.
        """
        if self.interval.length <= SMALLEST_SLICE:
            return None
        middle = self.interval.start + self.interval.length / 2
        newer = Slice(self.kind, Interval(middle, self.interval.end))
        return newer, Slice(self.kind, Interval(self.interval.start, middle))


@dataclass(frozen=True)
class FailedSlice:
    """A gap that could not be listed, with the time of its next attempt."""

    interval: Interval
    failures: int
    next_attempt_at: datetime
    reason: str
    dismissed: bool = False
    dismiss_reason: str | None = None

    def is_due(self, now: datetime) -> bool:
        return not self.dismissed and self.next_attempt_at <= now


@dataclass(frozen=True)
class WindowRules:
    """How far slices overlap what is already listed, and how long they may be.

    Raises ValueError if no slice is possible.
    """

    overlap: timedelta
    max_window: timedelta

    def __post_init__(self) -> None:
        if self.overlap < timedelta(0) or self.max_window <= timedelta(0):
            raise ValueError("overlap must not be negative, and max_window must be positive")

    @classmethod
    def configured(cls, overlap: timedelta, max_window: timedelta) -> "WindowRules":
        """Leave room for the widening, so that the request is not longer than `max_window`."""
        widening = 2 * WIDENED_BY
        return cls(overlap=overlap, max_window=max(max_window - widening, widening))

    @property
    def step_back(self) -> timedelta:
        """The overlap of slices cut from one stretch: at most half a window, so that cutting ends."""
        return min(self.overlap, self.max_window // 2)


def pinned_start(start: timedelta | datetime, first_seen: datetime) -> datetime:
    """Turn the configured look-back into an instant, never before 1970.

    `first_seen` is by the server's clock: see `first_seen_at_server`.
    """
    if isinstance(start, datetime):
        return max(start, EARLIEST)
    return _back(first_seen, start)


def _back(instant: datetime, by: timedelta) -> datetime:
    return instant - by if by < instant - EARLIEST else EARLIEST


def first_seen_at_server(
    our_first_seen: datetime, our_now: datetime, server_now: datetime
) -> datetime:
    """Convert the time when we first saw a user from our clock, which may be wrong, to the server's.

    The first success may come days after the installation, and those days belong to the look-back.
    Our clock only provides the time that has passed, within reason: somebody may have set it since.
    """
    elapsed = our_now - our_first_seen
    return server_now - min(max(elapsed, timedelta(0)), LONGEST_WAIT_FOR_FIRST_SUCCESS)


def newest_slice(
    coverage: Coverage, start: datetime, now: datetime, rules: WindowRules
) -> Slice | None:
    """Plan the slice that ends now, at most `max_window` long; None if `start` is not past.

    It begins `overlap` before the newest covered end, not before the watermark, which may wait for
    an old gap. Once it is listed, what it left out is a gap.
    """
    begin = max(start, _back(now, rules.max_window))
    if coverage.newest_end is not None:
        begin = max(begin, _back(min(coverage.newest_end, now), rules.overlap))
    interval = _between(begin, now)
    return Slice(SliceKind.NEWEST, interval) if interval else None


def gap_slices(
    coverage: Coverage,
    start: datetime,
    now: datetime,
    rules: WindowRules,
    failed: Sequence[FailedSlice] = (),
) -> list[Slice]:
    """Plan the gaps between `start` and the newest covered end, oldest first.

    Call it after recording the newest slice, which decides what is a gap. A gap that failed before
    waits until it is due, and is then tried with the same bounds, so that its failures are counted
    together. Other slices do not extend back into it, as they would be refused with it. Returns at
    most `PLANNED_AT_ONCE` slices; the next call plans the remaining gaps.
    """
    end = min(coverage.newest_end or start, now)
    gaps = coverage.gaps(start, end)
    if not gaps:  # usually
        return []
    failed = [one for one in failed if _is_open(one.interval, coverage, start, end)]
    stretches = [*_due_again(failed, now), *_never_failed(gaps, failed, start, rules)]
    cuts = (cut for stretch in sorted(stretches) for cut in _cut(stretch, rules))
    wanted = (cut for cut in cuts if coverage.gaps(cut.start, cut.end))
    return [Slice(SliceKind.GAP, cut) for cut in islice(wanted, PLANNED_AT_ONCE)]


def _is_open(interval: Interval, coverage: Coverage, start: datetime, end: datetime) -> bool:
    inside = interval.within(start, end)
    return inside is not None and bool(coverage.gaps(inside.start, inside.end))


def _due_again(failed: Sequence[FailedSlice], now: datetime) -> Iterator[Interval]:
    waiting = Coverage(tuple(one.interval for one in failed if not one.is_due(now)))
    planned_to = EARLIEST  # failed slices may overlap; ask only once for what they share
    for interval in sorted(one.interval for one in failed if one.is_due(now)):
        yield from waiting.gaps(max(interval.start, planned_to), min(interval.end, now))
        planned_to = max(planned_to, interval.end)


def _never_failed(
    gaps: Sequence[Interval], failed: Sequence[FailedSlice], start: datetime, rules: WindowRules
) -> Iterator[Interval]:
    tried = Coverage(tuple(one.interval for one in failed))
    for gap in gaps:
        for part in tried.gaps(gap.start, gap.end):
            begin = max(start, _back(part.start, rules.step_back))
            yield tried.gaps(begin, part.end)[-1]


def _cut(stretch: Interval, rules: WindowRules) -> Iterator[Interval]:
    begin = stretch.start
    while stretch.end - begin > rules.max_window:
        yield Interval(begin, begin + rules.max_window)
        begin += rules.max_window - rules.step_back
    yield Interval(begin, stretch.end)


def slices_in(length: timedelta, rules: WindowRules) -> int:
    """Return into how many slices a stretch of this length is cut."""
    step = rules.max_window - rules.step_back
    return 1 + max(0, -((rules.max_window - length) // step))


def sweep_slices(
    kind: SliceKind,
    last_end: datetime | None,
    back: timedelta,
    start: datetime,
    now: datetime,
    rules: WindowRules,
) -> list[Slice]:
    """Plan a sweep up to now, newest first, from `back` before `last_end`, or from `start`.

    `last_end` is where the last completed sweep ended. Counting from there, not from now, sweeps a
    long downtime completely.
    """
    begin = start if last_end is None else max(start, _back(min(last_end, now), back))
    stretch = _between(begin, now)
    cuts = list(_cut(stretch, rules)) if stretch else []
    return [Slice(kind, cut) for cut in reversed(cuts)]


def backfill_slice(
    rest: Interval, now: datetime, rules: WindowRules
) -> tuple[Slice, Interval | None] | None:
    """Plan the newest slice of the rest of an old window; also return the rest after it.

    Never goes beyond `now`; None if nothing of it is past. Slices overlap like those of a gap.
    """
    stretch = _between(rest.start, min(rest.end, now))
    if stretch is None:
        return None
    before = slices_in(stretch.length, rules) - 1
    begin = stretch.start + before * (rules.max_window - rules.step_back)
    left = Interval(stretch.start, begin + rules.step_back) if before else None
    return Slice(SliceKind.BACKFILL, Interval(begin, stretch.end)), left


def is_late(lateness: timedelta, overlap: timedelta) -> bool:
    """Tell whether a fax became visible so late that half of the overlap was used up."""
    return lateness > overlap / 2
