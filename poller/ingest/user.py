"""What is remembered of one user between polls; the ledger has all that must outlive the process."""

import asyncio
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from poller import log
from poller.config.model import User
from poller.errors import UserRefused
from poller.ledger import Ledger, Progress, StreamRow, streams
from poller.silence import silent_since
from poller.window import (
    Coverage,
    FailedSlice,
    Interval,
    SliceKind,
    alarming_gaps,
    open_gaps,
    settled_until,
)

_SWEEP_FAILURES = 3


class ImageHold:
    """Keeps images of one user from being fetched while its not-downloaded list is read.

    Fetching marks a fax as downloaded, so that list shrinks under the reader otherwise.
    """

    __slots__ = ("_idle", "fetching", "held")

    def __init__(self) -> None:
        self.fetching = 0
        self.held = False
        self._idle: asyncio.Event | None = None  # only while somebody waits: every user has a hold

    def begin(self) -> bool:
        """Note an image under way, which `end` ends; False, and no image may begin, while held."""
        if self.held:
            return False
        self.fetching += 1
        return True

    def end(self) -> None:
        self.fetching -= 1
        if not self.fetching and self._idle is not None:
            self._idle.set()

    async def hold(self, timeout_s: float) -> bool:
        """Start no more images and wait for those under way; False when they take too long.

        Whatever else ends the wait lets go, too.
        """
        self.held = True
        if not self.fetching:
            return True
        self._idle = asyncio.Event()
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            self.held = False
            return False
        except BaseException:
            self.held = False
            raise
        finally:
            self._idle = None
        return True

    def let_go(self) -> None:
        self.held = False


@dataclass
class SweepUnderWay:
    """A sweep may take several polls: to `end`, of which `listed` is done and `missed` was found."""

    end: datetime
    listed: Coverage = field(default_factory=Coverage)
    missed: int = 0


@dataclass(slots=True)
class UserState:
    """Mirrors the ledger while only its polls write there; else it is `in_doubt` and read again.

    An operator may dismiss a gap, a write may fail or be cut off. The mirror is changed by the poll
    under way alone, or from the ledger while none is.
    """

    user: User
    id: int
    our_first_seen: datetime
    pinned_start: datetime | None
    configured_start: str | None
    coverage: Coverage  # as the ledger has it
    failed_slices: list[FailedSlice]
    sweep_ends: dict[SliceKind, datetime | None]
    failed_polls: int
    refusals: int
    refused_until: datetime | None
    last_received_at: datetime | None
    last_success_at: datetime | None
    in_doubt: bool = False  # whether the ledger may know something else
    polls: int = 0  # begun since the start of the process
    under_way: bool = False  # whether a poll or a backfill is
    unproved: Coverage = field(default_factory=Coverage)  # empty lists that wait for a proof
    missed: datetime | None = None  # a last fax that is not listed, while others are
    refusal: UserRefused | None = None  # the last one
    refusal_said: bool = False
    polled: bool = False  # whether a poll succeeded since the start of the process
    sweep_now: bool = True
    sweeps: dict[SliceKind, SweepUnderWay] = field(default_factory=dict)
    sweep_not_before: float = 0.0
    sweep_alarms: defaultdict[SliceKind, log.Episode] = field(
        default_factory=lambda: defaultdict(log.Episode)
    )
    backfill: bool = False  # whether an operator asked for an old window that is not listed yet
    backfill_failures: int = 0
    backfill_not_before: float = 0.0
    late_again_at: float = 0.0
    newest_failures: int = 0
    gap_alarm: bool = False
    poll_alarm: bool = False
    bug_alarm: bool = False
    failures_in_a_row: int = 0
    poll_began_at: float | None = None
    planned_at: float = math.inf  # when it was first planned (monotonic)
    # When a request of its polls last ended, or the pause after it does (monotonic).
    progress_at: float = 0.0
    images: ImageHold = field(default_factory=ImageHold)

    def believe(self, held: Progress) -> None:
        """Take what the ledger holds; what only this process knows stays."""
        self.pinned_start = held.row.pinned_start
        self.configured_start = held.row.configured_start
        self.coverage = held.coverage
        self.failed_slices = held.failed_slices
        self.sweep_ends = _sweep_ends(held.row)
        self.backfill = self.backfill or held.to_backfill

    @contextmanager
    def being_polled(self) -> Iterator[None]:
        """A poll that is cut off may have been recorded further than it knows."""
        self.polls += 1
        self.under_way = True
        try:
            yield
        except BaseException:
            self.in_doubt = True
            raise
        finally:
            self.under_way = False

    @property
    def key(self) -> str:
        """The label that operators know: `account/user`."""
        return f"{self.user.account}/{self.user.name}"

    @property
    def seen(self) -> Coverage:
        """What need not be listed: the coverage, and what is to be part of it once it is proved."""
        if not self.unproved.intervals:
            return self.coverage
        return Coverage(self.coverage.intervals + self.unproved.intervals)

    def covered(self, interval: Interval) -> None:
        """As the ledger does it: what is listed is no failed slice any more."""
        self.coverage = self.coverage.add(interval)
        self.failed_slices = [
            failed
            for failed in self.failed_slices
            if not (interval.start <= failed.interval.start and failed.interval.end <= interval.end)
        ]

    @property
    def watermark(self) -> datetime | None:
        if self.pinned_start is None:
            return None
        return self.coverage.watermark(self.pinned_start)

    @property
    def settled_until(self) -> datetime | None:
        """Up to when all is listed or dismissed; what lag counts from."""
        if self.pinned_start is None:
            return None
        return settled_until(self.coverage, self.pinned_start, self.failed_slices)

    @property
    def silent_since(self) -> datetime | None:
        """Since when nothing was received, if that is longer than expected."""
        last = self.last_received_at or self.our_first_seen
        return silent_since(self.user.expect, last, self.coverage)

    @property
    def fails_to_sweep(self) -> bool:
        """Whether a sweep has failed so often that it is no passing trouble."""
        return any(alarm.failures >= _SWEEP_FAILURES for alarm in self.sweep_alarms.values())

    def stepped(self, by: timedelta) -> None:
        """Our wall clock was set: what was read from it is where it would have been."""
        self.refused_until = None
        if self.last_success_at is not None:
            self.last_success_at += by

    def gaps(self) -> tuple[Interval, ...]:
        """What lies between the pinned start and the newest covered instant and is not listed."""
        if self.pinned_start is None:
            return ()
        return open_gaps(self.coverage, self.pinned_start, self.failed_slices)

    def failed_gaps(self) -> tuple[Interval, ...]:
        """Gaps that were tried and could not be listed."""
        if self.pinned_start is None:
            return ()
        return alarming_gaps(self.coverage, self.pinned_start, self.failed_slices)


async def load_users(ledger: Ledger, pairs: Sequence[tuple[User, int]]) -> list[UserState]:
    """Read what the ledger knows of these users, by its ids; thousands of them cost a few queries."""
    if not pairs:
        return []
    held = await ledger.write(streams.all_progress)
    return [_state(user, held[id_]) for user, id_ in pairs]


async def read_again(state: UserState, ledger: Ledger) -> None:
    """Take what the ledger holds by now; it stays in doubt if a poll begins meanwhile.

    Raises LedgerUnavailable.
    """
    polls, state.in_doubt = state.polls, False
    try:
        held = await ledger.progress(state.id)
    except BaseException:
        state.in_doubt = True
        raise
    if state.polls == polls:
        state.believe(held)
    else:
        state.in_doubt = True


def _sweep_ends(row: StreamRow) -> dict[SliceKind, datetime | None]:
    return {SliceKind.SWEEP: row.sweep_end, SliceKind.DEEP_SWEEP: row.deep_sweep_end}


def _state(user: User, held: Progress) -> UserState:
    row = held.row
    return UserState(
        user=user,
        id=row.id,
        our_first_seen=row.our_first_seen,
        pinned_start=row.pinned_start,
        configured_start=row.configured_start,
        coverage=held.coverage,
        failed_slices=held.failed_slices,
        sweep_ends=_sweep_ends(row),
        backfill=held.to_backfill,
        failed_polls=row.failed_polls,
        refusals=row.refusals,
        refused_until=row.refused_until,
        refusal_said=row.refusals > 0,
        last_received_at=row.last_received_at,
        last_success_at=row.last_success_at,
    )
