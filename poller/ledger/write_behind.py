"""What polls say that may be lost: kept in memory for a moment, then written together.

That is what an empty list covers, that a poll went well, and where a sweep ended that found nothing.
Whatever a crash takes of it is only listed again: coverage or a sweep that is missing claims
nothing, and no fax hangs on it. Rows, counts and failures are never put off.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    bindparam,
    literal_column,
    null,
    select,
    update,
)

from poller.errors import LedgerUnavailable
from poller.ledger.coverage import cover
from poller.ledger.faxes import chunks
from poller.ledger.tables import coverage, failed_slices, streams
from poller.ledger.writer import Writer
from poller.window import Coverage, Interval, SliceKind

_FOR_S = 2.0


@dataclass
class _Said:
    """By the ids of streams."""

    covered: dict[int, Coverage] = field(default_factory=dict)
    polled: dict[int, datetime] = field(default_factory=dict)
    swept: dict[SliceKind, dict[int, datetime]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.covered or self.polled or self.swept)

    @property
    def streams(self) -> set[int]:
        return set().union(self.covered, self.polled, *self.swept.values())

    def write(self, connection: Connection) -> None:
        if self.covered:
            _cover(connection, self.covered)
        if self.polled:
            connection.execute(
                _POLLED, [{"key": stream, "now": now} for stream, now in self.polled.items()]
            )
        for kind, ends in self.swept.items():
            connection.execute(
                _SWEPT[kind], [{"key": stream, "to_end": end} for stream, end in ends.items()]
            )


class WriteBehind:
    """Gives the writer what was said within two seconds as one job, in few statements.

    Where that fails it is lost, and whatever is said next is written at once, so that polls fail
    as long as the ledger takes no writes. `lost` are the streams of whom something was lost.
    """

    def __init__(self, writer: Writer | None) -> None:
        self._writer = writer
        self._said = _Said()
        self._timer: asyncio.TimerHandle | None = None
        self._is_failing = False
        self.lost: set[int] = set()

    async def cover(self, stream: int, interval: Interval) -> None:
        covered = self._said.covered.get(stream, Coverage())
        self._said.covered[stream] = covered.add(interval)
        await self._note()

    async def polled(self, stream: int, now: datetime) -> None:
        self._said.polled[stream] = now
        await self._note()

    async def swept(self, stream: int, kind: SliceKind, end: datetime) -> None:
        self._said.swept.setdefault(kind, {})[stream] = end
        await self._note()

    def write_down(self) -> "asyncio.Future[None] | None":
        """Ask for what was said so far to be written, before whatever is asked for next."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._said or self._writer is None or self._writer.ended:
            return None
        said, self._said = self._said, _Said()
        written = self._writer.ask(said.write)
        written.add_done_callback(lambda written: self._written(written, said))
        return written

    async def _note(self) -> None:
        if self._writer is None or self._writer.ended:
            raise LedgerUnavailable("the ledger takes no writes")
        if self._is_failing:
            if (written := self.write_down()) is not None:
                await written
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_FOR_S, self.write_down)

    def _written(self, written: "asyncio.Future[None]", said: _Said) -> None:
        self._is_failing = written.cancelled() or written.exception() is not None
        if self._is_failing:
            self.lost |= said.streams


_ZERO: ColumnElement[int] = literal_column("0")
_POLLED = (
    update(streams)
    .where(streams.c.id == bindparam("key"))
    .values(
        last_poll_at=bindparam("now"),
        last_success_at=bindparam("now"),
        # Written out, for parameters cost more than the statement.
        last_error=null(),
        failed_polls=_ZERO,
        refusals=_ZERO,
        refused_until=null(),
    )
)
_SWEPT = {
    kind: update(streams)
    .where(streams.c.id == bindparam("key"))
    .values({column: bindparam("to_end")})
    for kind, column in (
        (SliceKind.SWEEP, streams.c.sweep_end),
        (SliceKind.DEEP_SWEEP, streams.c.deep_sweep_end),
    )
}
_GROWN = (
    update(coverage)
    .where(coverage.c.stream == bindparam("key"), coverage.c.start == bindparam("held_start"))
    .values(start=bindparam("to_start"), end=bindparam("to_end"))
)


def _cover(connection: Connection, covered: dict[int, Coverage]) -> None:
    """As a rule a stream's one interval grows; all else goes the way of a page that is not empty."""
    held = _held(connection, list(covered))
    failing = _failing(connection, list(covered))
    grown = []
    for stream, said in covered.items():
        changed = None if stream in failing else _growth(held.get(stream, []), said)
        if changed is None:
            for interval in said.intervals:
                cover(connection, stream, interval)
        elif changed:
            grown.append({"key": stream, **changed})
    if grown:
        connection.execute(_GROWN, grown)


def _held(connection: Connection, ids: Sequence[int]) -> dict[int, list[Interval]]:
    held: dict[int, list[Interval]] = {}
    for chunk in chunks(ids):
        for stream, start, end in connection.execute(
            select(coverage).where(coverage.c.stream.in_(chunk))
        ):
            held.setdefault(stream, []).append(Interval(start, end))
    return held


def _failing(connection: Connection, ids: Sequence[int]) -> set[int]:
    wanted = select(failed_slices.c.stream).distinct()
    return {
        stream
        for chunk in chunks(ids)
        for stream in connection.scalars(wanted.where(failed_slices.c.stream.in_(chunk)))
    }


def _growth(held: list[Interval], said: Coverage) -> dict[str, Any] | None:
    """How the one interval that is touched grows; empty for not at all, None for anything else."""
    if len(said.intervals) != 1:
        return None
    (new,) = said.intervals
    touched = [one for one in held if one.start <= new.end and one.end >= new.start]
    if len(touched) != 1:
        return None
    (old,) = touched
    merged = Interval(min(old.start, new.start), max(old.end, new.end))
    if merged == old:
        return {}
    return {"held_start": old.start, "to_start": merged.start, "to_end": merged.end}
