"""One stream in memory: its progress as in the ledger, and what only this process knows."""

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
    """Blocks work that would shift a stream's pages while its list is read.

    Fetching an image marks its fax as downloaded, so the not-downloaded list shrinks; a deletion
    shifts every list.
    """

    __slots__ = ("_idle", "held", "under_way")

    def __init__(self) -> None:
        self.under_way = 0
        self.held = False
        # only while somebody waits, because every stream has a hold
        self._idle: asyncio.Event | None = None

    def begin(self) -> bool:
        """Note that work starts, which `end` ends; return False, and forbid it, while held."""
        if self.held:
            return False
        self.under_way += 1
        return True

    def end(self) -> None:
        self.under_way -= 1
        if not self.under_way and self._idle is not None:
            self._idle.set()

    async def hold(self, timeout_s: float) -> bool:
        """Let no more work start, and wait for running work; return False if that takes too long.

        If the wait ends in any other way, this lets go too.
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
        """Hold during the block; let no more work start, even if running work takes too long to end."""
        await self.hold(timeout_s)
        self.held = True
        try:
            yield
        finally:
            self.let_go()


@dataclass
class SweepUnderWay:
    """A sweep over several polls, up to `end`: `listed` is done, and it has found `missed` faxes."""

    kind: SliceKind
    end: datetime
    listed: Coverage = field(default_factory=Coverage)
    missed: int = 0


@dataclass(slots=True)
class StreamState:
    """One stream; `user.poll` and `user.expect` are the stream's own.

    `progress` is what the ledger returned last, with later events applied. It is stale if nobody
    can know whether it is right: a write failed or was cut off, or events came while the ledger
    answered. Then it is read again before a poll uses it.
    """

    user: User
    id: int
    ledger: Ledger
    progress: Progress
    direction: Direction = Direction.RECEIVED
    is_stale: bool = False
    # counts changes of `progress` and `is_stale`, to see whether an answer is outdated
    changes: int = 0
    # coverage of empty lists that waits for a proof
    unproved: Coverage = field(default_factory=Coverage)
    missed: datetime | None = None  # a last fax that eFax does not list, although it lists others
    refusal: UserRefused | None = None  # the last one, until eFax accepts the user
    refusal_said: bool = False
    ask_anyway: bool = False  # once, although eFax refuses the user
    polled: bool = False  # whether a poll has succeeded since the start of the process
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
    # When a request of its polls last ended, or the pause after it will end (monotonic).
    progress_at: float = 0.0
    images: Hold = field(default_factory=Hold)
    deletions: Hold = field(default_factory=Hold)
    discovered: int = 0  # faxes, by this process

    # -- the ledger -----------------------------------------------------------------------------

    async def record(self, *events: StreamEvent) -> None:
        """Record events in the ledger, and use the progress that it returns."""
        await self.hear(self.ledger.write(fold.record, self.id, *events))

    async def record_soon(self, *events: StreamEvent) -> None:
        """Record events that may be lost in a crash, and use them at once."""
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
        """Wait for an answer of the ledger, and use the progress in it."""
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
        """Use the ledger's progress, unless events came since the request, which was at `began`."""
        if self.changes == began:
            self.progress, self.is_stale = progress, False
            self.changes += 1
        elif progress != self.progress:
            self.doubt()

    def apply(self, *events: StreamEvent) -> None:
        self.progress = self.progress.apply(*events)
        self.changes += 1

    def doubt(self) -> None:
        """Note that running work, here or in the ledger, may end in an unknown way."""
        self.is_stale = True
        self.changes += 1

    async def refresh(self) -> None:
        """Read stale progress again; raises LedgerUnavailable."""
        while self.is_stale or self.ledger.has_lost(self.id):
            await self.reread()

    async def reread(self) -> None:
        await self.hear(self.ledger.progress(self.id))

    # -- for others ----------------------------------------------------------------------------

    @property
    def key(self) -> str:
        """The label that operators know: `account/user`, or `account/user/sent`."""
        return label(*self.user.names, self.direction)

    @property
    def names(self) -> tuple[str, str, Direction]:
        """Account, user and direction, as in metrics."""
        return *self.user.names, self.direction

    def telling(self, emit: Emit) -> Emit:
        """Return the function to which events about this stream go."""
        return emit if self.direction is Direction.RECEIVED else of_sent(emit)

    @property
    def seen(self) -> Coverage:
        """What need not be listed: the coverage, and what will be part of it once proved."""
        if not self.unproved.intervals:
            return self.progress.coverage
        return Coverage(self.progress.coverage.intervals + self.unproved.intervals)

    @property
    def is_refused(self) -> bool:
        return self.refusal is not None or self.progress.refusals > 0

    @property
    def failed_polls(self) -> int:
        """How many polls have failed in a row, including those that the ledger could not record."""
        return max(self.progress.failed_polls, self.failures_in_a_row)

    @property
    def silent_since(self) -> datetime | None:
        """Since when nothing has arrived, if that is longer than expected."""
        return self.progress.silent_since(self.user.expect)

    @property
    def fails_to_sweep(self) -> bool:
        """Whether a sweep has failed so often that the trouble is not passing."""
        return any(alarm.failures >= _SWEEP_FAILURES for alarm in self.sweep_alarms.values())


async def load_streams(
    ledger: Ledger, wanted: Sequence[tuple[User, int, Direction]]
) -> list[StreamState]:
    """Read the ledger's progress of these streams by id; thousands cost a few queries."""
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
