"""One stream in memory: its progress as the ledger holds it, and what only this process knows."""

import asyncio
import math
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from poller import log
from poller.config.model import User
from poller.errors import UserRefused
from poller.events import Emit, of_sent
from poller.ledger import Ledger, faxes, fold
from poller.progress import Progress, StreamEvent
from poller.stream import Direction, label
from poller.window import Coverage, SliceKind

_SWEEP_FAILURES = 3

Answer = TypeVar("Answer", Progress, faxes.RecordedPage)


class Hold:
    """Keeps work on one stream from beginning while its list is read, for it would shift the pages.

    Fetching an image marks its fax as downloaded, so the not-downloaded list shrinks; a deletion
    shifts every list.
    """

    __slots__ = ("_idle", "held", "under_way")

    def __init__(self) -> None:
        self.under_way = 0
        self.held = False
        # Only while somebody waits: every stream has a hold.
        self._idle: asyncio.Event | None = None

    def begin(self) -> bool:
        """Note work under way, which `end` ends; False, and none may begin, while held."""
        if self.held:
            return False
        self.under_way += 1
        return True

    def end(self) -> None:
        self.under_way -= 1
        if not self.under_way and self._idle is not None:
            self._idle.set()

    async def hold(self, timeout_s: float) -> bool:
        """Let nothing more begin and wait for what is under way; False when that takes too long.

        Whatever else ends the wait lets go, too.
        """
        self.held = True
        if not self.under_way:
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

    @asynccontextmanager
    async def while_held(self, timeout_s: float) -> AsyncIterator[None]:
        """Hold while in here; what takes too long to end is not waited for, but nothing more begins."""
        await self.hold(timeout_s)
        self.held = True
        try:
            yield
        finally:
            self.let_go()


@dataclass
class SweepUnderWay:
    """A sweep may take several polls: to `end`, of which `listed` is done and `missed` was found."""

    kind: SliceKind
    end: datetime
    listed: Coverage = field(default_factory=Coverage)
    missed: int = 0


@dataclass(slots=True)
class StreamState:
    """One stream; `user.poll` and `user.expect` are the stream's own.

    `progress` is what the ledger returned last, or what the same fold made of it since. It is stale
    where nobody can know whether that is so: a write failed or was cut off, or something was said
    while the ledger answered. Then it is read again before a poll goes by it.
    """

    user: User
    id: int
    ledger: Ledger
    progress: Progress
    direction: Direction = Direction.RECEIVED
    is_stale: bool = False
    changes: int = 0  # of `progress` and `is_stale`: whether an answer was overtaken by one
    unproved: Coverage = field(default_factory=Coverage)  # empty lists that wait for a proof
    missed: datetime | None = None  # a last fax that is not listed, while others are
    refusal: UserRefused | None = None  # the last one, until the user is accepted
    refusal_said: bool = False
    ask_anyway: bool = False  # once, although the user is refused
    polled: bool = False  # whether a poll succeeded since the start of the process
    sweep_now: bool = True
    sweeps: dict[SliceKind, SweepUnderWay] = field(default_factory=dict)
    sweep_not_before: float = 0.0
    sweep_alarms: defaultdict[SliceKind, log.Episode] = field(
        default_factory=lambda: defaultdict(log.Episode)
    )
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
    images: Hold = field(default_factory=Hold)
    deletions: Hold = field(default_factory=Hold)
    discovered: int = 0  # faxes, by this process

    # -- what the ledger holds ------------------------------------------------------------------

    async def record(self, *events: StreamEvent) -> None:
        """Have the ledger record what happened, and go by what it holds then."""
        await self.hear(self.ledger.write(fold.record, self.id, *events))

    async def record_soon(self, *events: StreamEvent) -> None:
        """Have recorded what may be lost for a moment, and go by it at once."""
        began = self.changes
        try:
            await self.ledger.record_soon(self.id, *events)
        except BaseException:
            self.doubt()
            raise
        if self.changes == began:
            self.apply(*events)
        else:
            self.doubt()

    async def hear(self, asked: Awaitable[Answer]) -> Answer:
        """Wait for what the ledger was asked for, and go by the progress that it answers with."""
        began = self.changes
        try:
            answer = await asked
        except BaseException:
            self.doubt()
            raise
        progress = answer if isinstance(answer, Progress) else answer.progress
        if progress is not None:
            self.take(progress, began)
            await self.refresh()
        return answer

    def take(self, progress: Progress, began: int) -> None:
        """Go by what the ledger held; not if anything was said since it was asked, at `began`."""
        if self.changes == began:
            self.progress, self.is_stale = progress, False
            self.changes += 1
        elif progress != self.progress:
            self.doubt()

    def apply(self, *events: StreamEvent) -> None:
        self.progress = self.progress.apply(*events)
        self.changes += 1

    def doubt(self) -> None:
        """What is under way here or at the ledger may end otherwise than it is known."""
        self.is_stale = True
        self.changes += 1

    async def refresh(self) -> None:
        """Read again what is stale; raises LedgerUnavailable."""
        while self.is_stale or self.ledger.has_lost(self.id):
            await self.reread()

    async def reread(self) -> None:
        await self.hear(self.ledger.progress(self.id))

    # -- what it looks like ---------------------------------------------------------------------

    @property
    def key(self) -> str:
        """The label that operators know: `account/user`, or `account/user/sent`."""
        return label(*self.user.names, self.direction)

    @property
    def names(self) -> tuple[str, str, Direction]:
        """Account, user and direction, as metrics show them."""
        return *self.user.names, self.direction

    def telling(self, emit: Emit) -> Emit:
        """Return what events about this stream are emitted to."""
        return emit if self.direction is Direction.RECEIVED else of_sent(emit)

    @property
    def seen(self) -> Coverage:
        """What need not be listed: the coverage, and what is to be part of it once it is proved."""
        if not self.unproved.intervals:
            return self.progress.coverage
        return Coverage(self.progress.coverage.intervals + self.unproved.intervals)

    @property
    def is_refused(self) -> bool:
        return self.refusal is not None or self.progress.refusals > 0

    @property
    def failed_polls(self) -> int:
        """How many polls failed in a row, also those of which the ledger could not know."""
        return max(self.progress.failed_polls, self.failures_in_a_row)

    @property
    def silent_since(self) -> datetime | None:
        """Since when nothing was received, if that is longer than expected."""
        return self.progress.silent_since(self.user.expect)

    @property
    def fails_to_sweep(self) -> bool:
        """Whether a sweep has failed so often that it is no passing trouble."""
        return any(alarm.failures >= _SWEEP_FAILURES for alarm in self.sweep_alarms.values())


async def load_streams(
    ledger: Ledger, wanted: Sequence[tuple[User, int, Direction]]
) -> list[StreamState]:
    """Read what the ledger knows of these streams, by its ids; thousands cost a few queries."""
    if not wanted:
        return []
    held = await ledger.write(fold.some, [id_ for _, id_, _ in wanted])
    return [
        StreamState(
            user.of(direction),
            id_,
            ledger,
            held[id_],
            direction,
            refusal_said=held[id_].refusals > 0,
        )
        for user, id_, direction in wanted
    ]
