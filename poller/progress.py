"""The progress of one stream's polls, as a value, and the events that change it.

The ledger stores progress and changes it with `apply` in the transaction that records the events.
In memory, the same `apply` changes it, or it is read again. Nothing else says what is listed.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Protocol

from poller.config.model import Expect
from poller.silence import silent_since
from poller.window import EARLIEST, Coverage, FailedSlice, Interval, SliceKind

_NOTHING = Coverage()


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What polls of one stream need. Listed times are eFax's; times of polls and refusals are ours.

    `failed_slices` are sorted. `refusals` and `failed_polls` are in a row. `late_max_s` is the
    longest that a fax was late although its time was already listed. `found_by_sweep` counts what
    only sweeps have found. `backfill_waits`: an operator asked for an old window that is not listed
    yet; another table of the ledger says this.
    """

    our_first_seen: datetime
    pinned_start: datetime | None = None
    configured_start: str | None = None
    coverage: Coverage = _NOTHING
    failed_slices: tuple[FailedSlice, ...] = ()
    sweep_end: datetime | None = None
    deep_sweep_end: datetime | None = None
    found_by_sweep: int = 0
    found_by_deep_sweep: int = 0
    last_poll_at: datetime | None = None
    last_success_at: datetime | None = None
    last_error: str | None = None
    failed_polls: int = 0
    refusals: int = 0
    refused_until: datetime | None = None
    last_received_at: datetime | None = None
    late_max_s: float = 0.0
    backfill_waits: bool = False

    def apply(self, *events: "StreamEvent") -> "Progress":
        """Return the progress after these events, in order."""
        progress = self
        for event in events:
            progress = event.applied_to(progress)
        return progress

    def but(self, **changes: Any) -> "Progress":
        """Like `dataclasses.replace`, which takes ten times as long and would dominate the cost of a poll."""
        new = object.__new__(Progress)
        new.__dict__.update(self.__dict__, **changes)
        return new

    @property
    def watermark(self) -> datetime | None:
        """Up to when everything is listed; it moves back only for an earlier start."""
        return None if self.pinned_start is None else self.coverage.watermark(self.pinned_start)

    @property
    def settled_until(self) -> datetime | None:
        """Up to when everything is listed or dismissed: the watermark without dismissed gaps.

        Lag counts from here, so that a gap that cannot be listed does not alarm forever.
        """
        return None if self.pinned_start is None else self._settled.watermark(self.pinned_start)

    @property
    def gaps(self) -> tuple[Interval, ...]:
        """What is neither listed nor dismissed, from the pinned start to the newest covered end."""
        newest_end = self.coverage.newest_end
        if self.pinned_start is None or newest_end is None:
            return ()
        return self._settled.gaps(self.pinned_start, newest_end)

    @property
    def failed_gaps(self) -> tuple[Interval, ...]:
        """The gaps that could not be listed; the others only wait for their turn."""
        if not self.failed_slices:  # usually
            return ()
        refused = Coverage(tuple(one.interval for one in self.failed_slices))
        parts = (one.within(gap.start, gap.end) for gap in self.gaps for one in refused.intervals)
        return tuple(part for part in parts if part)

    @property
    def untried_gaps(self) -> tuple[Interval, ...]:
        """The gaps, or parts of them, that wait for their first turn."""
        tried = Coverage(tuple(one.interval for one in self.failed_slices))
        return tuple(part for gap in self.gaps for part in tried.gaps(gap.start, gap.end))

    @property
    def _settled(self) -> Coverage:
        dismissed = tuple(one.interval for one in self.failed_slices if one.dismissed)
        return Coverage(self.coverage.intervals + dismissed) if dismissed else self.coverage

    def gaps_within(self, bounds: Interval) -> tuple[Interval, ...]:
        parts = (gap.within(bounds.start, bounds.end) for gap in self.gaps)
        return tuple(part for part in parts if part)

    def failed_touching(self, bounds: Interval) -> tuple[FailedSlice, ...]:
        """Return the failed slices, including dismissed ones, that overlap `bounds`."""
        return tuple(
            one for one in self.failed_slices if one.interval.within(bounds.start, bounds.end)
        )

    def failures(self, interval: Interval) -> int:
        """Return how often this slice has failed."""
        held = self._failed(interval)
        return held.failures if held else 0

    def swept_to(self, kind: SliceKind) -> datetime | None:
        """Return where the last completed sweep of this kind ended."""
        return self.deep_sweep_end if kind is SliceKind.DEEP_SWEEP else self.sweep_end

    def silent_since(self, expect: Expect | None) -> datetime | None:
        """Since when nothing has arrived, if that is longer than expected."""
        return silent_since(expect, self.last_received_at or self.our_first_seen, self.coverage)

    def _failed(self, interval: Interval) -> FailedSlice | None:
        return next((one for one in self.failed_slices if one.interval == interval), None)


class StreamEvent(Protocol):
    """Something that happened to a stream."""

    def applied_to(self, progress: Progress) -> Progress: ...


@dataclass(frozen=True, slots=True)
class Pinned(StreamEvent):
    """The look-back begins at `start`; once set, it moves only to earlier times."""

    start: datetime
    configured: str

    def applied_to(self, progress: Progress) -> Progress:
        start = min(progress.pinned_start or self.start, self.start)
        return progress.but(pinned_start=start, configured_start=self.configured)


@dataclass(frozen=True, slots=True)
class Covered(StreamEvent):
    """A stretch was listed to its last page; failures inside it are forgotten."""

    interval: Interval

    def applied_to(self, progress: Progress) -> Progress:
        failed = progress.failed_slices
        if failed:
            failed = tuple(one for one in failed if not _inside(one.interval, self.interval))
        return progress.but(coverage=progress.coverage.add(self.interval), failed_slices=failed)


@dataclass(frozen=True, slots=True)
class Discovered(StreamEvent):
    """New faxes were listed, received at these times.

    `by_window`: not by a backfill, which lists a fax long after it became visible and cannot tell
    when that was.
    """

    now: datetime
    received_at: tuple[datetime, ...]
    by_window: bool = True

    def applied_to(self, progress: Progress) -> Progress:
        # A time in the future would hide forever that nothing arrives any more.
        received = [min(at, self.now) for at in self.received_at]
        late_s = [
            (self.now - at).total_seconds()
            for at in received
            if self.by_window and progress.coverage.covers(at)
        ]
        held = [] if progress.last_received_at is None else [progress.last_received_at]
        return progress.but(
            last_received_at=max(received + held, default=None),
            late_max_s=max([progress.late_max_s, *late_s]),
        )


@dataclass(frozen=True, slots=True)
class SliceFailed(StreamEvent):
    """A slice could not be listed; one that was dismissed meanwhile stays dismissed."""

    interval: Interval
    next_attempt_at: datetime
    reason: str

    def applied_to(self, progress: Progress) -> Progress:
        held = progress._failed(self.interval) or FailedSlice(
            self.interval, 0, self.next_attempt_at, self.reason
        )
        failed = replace(
            held,
            failures=held.failures + 1,
            next_attempt_at=self.next_attempt_at,
            reason=self.reason,
        )
        return _with_failed(progress, [failed], gone=[self.interval])


@dataclass(frozen=True, slots=True)
class SliceSplit(StreamEvent):
    """The halves of a failed slice replace it and are due at once; a known half stays unchanged."""

    whole: Interval
    halves: tuple[Interval, ...]

    def applied_to(self, progress: Progress) -> Progress:
        held = progress._failed(self.whole) or FailedSlice(self.whole, 0, EARLIEST, "")
        new = [
            replace(held, interval=half, failures=0, next_attempt_at=EARLIEST)
            for half in self.halves
            if progress._failed(half) is None
        ]
        return _with_failed(progress, new, gone=[self.whole])


@dataclass(frozen=True, slots=True)
class Swept(StreamEvent):
    """A sweep or deep sweep was completed up to `end`; only it found this many faxes."""

    kind: SliceKind
    end: datetime
    found: int = 0

    def applied_to(self, progress: Progress) -> Progress:
        if self.kind is SliceKind.DEEP_SWEEP:
            found = progress.found_by_deep_sweep + self.found
            return progress.but(deep_sweep_end=self.end, found_by_deep_sweep=found)
        found = progress.found_by_sweep + self.found
        return progress.but(sweep_end=self.end, found_by_sweep=found)


@dataclass(frozen=True, slots=True)
class SweepsForgotten(StreamEvent):
    """The next sweeps go back as far as ones after `since` would, or to the pinned start."""

    since: datetime | None = None

    def applied_to(self, progress: Progress) -> Progress:
        return progress.but(
            sweep_end=self._earlier(progress.sweep_end),
            deep_sweep_end=self._earlier(progress.deep_sweep_end),
        )

    def _earlier(self, end: datetime | None) -> datetime | None:
        return None if end is None or self.since is None else min(end, self.since)


@dataclass(frozen=True, slots=True)
class Polled(StreamEvent):
    """A poll succeeded, which ends a refusal."""

    now: datetime

    def applied_to(self, progress: Progress) -> Progress:
        return progress.but(
            last_poll_at=self.now,
            last_success_at=self.now,
            last_error=None,
            failed_polls=0,
            refusals=0,
            refused_until=None,
        )


@dataclass(frozen=True, slots=True)
class NotPolled(StreamEvent):
    """A poll failed; `refused_until` if eFax refused the user."""

    now: datetime
    error: str
    refused_until: datetime | None = None

    def applied_to(self, progress: Progress) -> Progress:
        failed = progress.but(
            last_poll_at=self.now,
            last_error=self.error,
            failed_polls=progress.failed_polls + 1,
        )
        if self.refused_until is None:
            return failed
        return failed.but(refused_until=self.refused_until, refusals=progress.refusals + 1)


@dataclass(frozen=True, slots=True)
class RefusalLifted(StreamEvent):
    """The refusal may have been the account's fault, so it no longer counts."""

    def applied_to(self, progress: Progress) -> Progress:
        return progress.but(refusals=0, refused_until=None)


@dataclass(frozen=True, slots=True)
class OurClockSet(StreamEvent):
    """Our wall clock was set: shift the times that were read from it."""

    by: timedelta

    def applied_to(self, progress: Progress) -> Progress:
        last = progress.last_success_at
        return progress.but(
            refused_until=None,
            last_success_at=None if last is None else last + self.by,
        )


@dataclass(frozen=True, slots=True)
class GapDismissed(StreamEvent):
    """An operator gives up the gaps inside `bounds`, but never time that is still to come."""

    bounds: Interval
    reason: str | None

    def applied_to(self, progress: Progress) -> Progress:
        parts = progress.gaps_within(self.bounds)
        if not parts:
            return progress
        dismissed = [self._dismissed(part, progress.failed_slices) for part in parts]
        # Slices overlap: a slice that failed inside the bounds is now wholly listed or dismissed.
        gone = [
            one.interval
            for one in progress.failed_slices
            if any(_inside(one.interval, part) for part in parts)
            or (_inside(one.interval, self.bounds) and not one.dismissed)
        ]
        return _with_failed(progress, dismissed, gone=gone)

    def _dismissed(self, part: Interval, failed: Iterable[FailedSlice]) -> FailedSlice:
        why = next((one.reason for one in failed if _inside(one.interval, part)), "")
        return FailedSlice(part, 0, EARLIEST, why, dismissed=True, dismiss_reason=self.reason)


@dataclass(frozen=True, slots=True)
class GapRetried(StreamEvent):
    """An operator wants the failed and dismissed slices that overlap `bounds` listed at once."""

    bounds: Interval

    def applied_to(self, progress: Progress) -> Progress:
        due = [
            FailedSlice(one.interval, 0, EARLIEST, one.reason)
            for one in progress.failed_touching(self.bounds)
        ]
        return _with_failed(progress, due, gone=[one.interval for one in due])


def _with_failed(
    progress: Progress, new: Iterable[FailedSlice], *, gone: Iterable[Interval]
) -> Progress:
    held = {one.interval: one for one in progress.failed_slices}
    for interval in gone:
        held.pop(interval, None)
    held |= {one.interval: one for one in new}
    return progress.but(failed_slices=tuple(held[interval] for interval in sorted(held)))


def _inside(one: Interval, other: Interval) -> bool:
    return other.start <= one.start and one.end <= other.end
