"""An open ledger: it reads and writes by plain functions of a connection, each in one transaction.

Those functions are in modules by table. What they raise comes through, LookupError for an id that the
ledger never gave out. Everything may raise LedgerUnavailable; nothing was recorded then.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from sqlalchemy import Connection

from poller.errors import CannotStart, LedgerUnavailable
from poller.ledger import fold, meta, schema
from poller.ledger.backend import Backend, snapshot_is_due
from poller.ledger.rows import Health
from poller.ledger.sqlite.sqlite_backend import SqliteBackend
from poller.ledger.write_behind import WriteBehind
from poller.ledger.writer import Writer
from poller.own_threads import in_own_thread
from poller.progress import Progress, StreamEvent

P = ParamSpec("P")
Item = TypeVar("Item")
T = TypeVar("T")
READ_WITHIN_S = 100.0  # a disk that hangs holds up whoever asks so long at most


def backend_at(url: str, directory: Path | None = None) -> Backend:
    """Choose the database by its `url`; its copies are in `directory`, or else beside it.

    Raises CannotStart for what names none.
    """
    return SqliteBackend.at(url, directory)


class Ledger(AbstractAsyncContextManager["Ledger"]):
    """An open ledger; `created` says that this open made its tables.

    `restored_from`: the file was gone, and this open put its snapshot of that time in its place.
    """

    def __init__(
        self,
        backend: Backend,
        writer: Writer | None,
        *,
        created: bool = False,
        restored_from: datetime | None = None,
    ) -> None:
        self.created = created
        self.restored_from = restored_from
        self._backend = backend
        self._readers = backend.readers()
        self._writer = writer
        self._reads: set[asyncio.Task[Any]] = set()
        self._write_behind = WriteBehind(writer)

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        directory: Path | None = None,
        create: bool = True,
        readonly: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> Self:
        """Open the ledger at `url`, make it when there is none and `create`, migrate it when old.

        Its snapshots are in `directory`, or else beside it. With `readonly` nothing is made, migrated
        or changed. Raises CannotStart with the reason; a ledger that is damaged, foreign or of a
        newer poller stays as it was.
        """
        backend = backend_at(url, directory)
        restored_from = await in_own_thread(
            "ledger opening", lambda: _make_ready(backend, create=create, readonly=readonly)
        )
        if readonly:
            return cls(backend, None)
        writer = Writer(backend.writer(), backend.where, monotonic=monotonic)
        try:
            created = await writer.ask(schema.migrate)
        except BaseException as error:
            await writer.close()
            if isinstance(error, LedgerUnavailable):
                raise CannotStart(str(error)) from error
            raise
        return cls(backend, writer, created=created, restored_from=restored_from)

    async def close(self) -> None:
        """Finish the reads and writes that were asked for; a second time does nothing."""
        copying = asyncio.create_task(self._backend.close(), name="ledger copy's end")
        try:
            if self._writer is not None:
                self._write_behind.write_down()
                await self._writer.close()
        finally:
            await asyncio.wait({copying, *self._reads})
            await self._readers.close()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # -- reading and writing -----------------------------------------------------------------------

    async def read(
        self,
        query: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run `query` in a transaction that sees all that was written before.

        It begins between two commits: a reader that meets SQLite's commit sleeps for up to 100 ms,
        which beside a busy writer can be a second.
        """
        read = partial(self._read, lambda connection: query(connection, *args, **kwargs))
        if self._writer is None:
            return await read()
        if (written := self._write_behind.write_down()) is not None:
            await asyncio.wait([written])
        return await self._writer.between_commits(read)

    async def write(
        self,
        command: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run `command` in a transaction; when this returns, what it wrote is durable."""
        return await self._ready_writer().ask(
            lambda connection: command(connection, *args, **kwargs)
        )

    async def write_together(
        self, command: Callable[[Connection, list[Item]], None], item: Item
    ) -> None:
        """Run `command` once for this and all other items that wait for it."""
        await self._ready_writer().ask_together(command, item)

    def _ready_writer(self) -> Writer:
        if self._writer is None:
            raise LedgerUnavailable(f"the ledger {self._backend.where} was opened for reading only")
        # First, so that all is recorded in the order in which it was said.
        self._write_behind.write_down()
        return self._writer

    async def _read(self, work: Callable[[Connection], T]) -> T:
        # Its thread goes on when the caller is cancelled, and `close` has to wait for it.
        task = asyncio.create_task(self._readers.run(work), name="ledger read")
        self._reads.add(task)
        task.add_done_callback(self._reads.discard)
        deadline = asyncio.timeout(READ_WITHIN_S)
        try:
            async with deadline:
                return await asyncio.shield(task)
        except TimeoutError:
            if not deadline.expired():
                raise
            raise LedgerUnavailable(
                f"the ledger {self._backend.where} has not answered for {READ_WITHIN_S:.0f} seconds"
            ) from None

    # -- is it well ----------------------------------------------------------------------------

    @property
    def waiting_since(self) -> float | None:
        """When the oldest write without an answer was asked for (monotonic seconds)."""
        return self._writer.waiting_since if self._writer else None

    @property
    def ended(self) -> bool:
        """Whether nothing can be written any more: it was closed, or a bug ended its writer."""
        return self._writer is None or self._writer.ended

    @property
    def commits(self) -> int:
        """How many transactions were committed; one may hold many writes."""
        return self._writer.commits if self._writer else 0

    async def check_writable(self, now: datetime | None = None) -> None:
        """Write a little and wait until it is durable; raises LedgerUnavailable.

        `now` is kept as a sign of life, from which `accounts.note_downtime` counts.
        A little may still go where a page of new faxes does not, so room is looked for too.
        """
        await self.require_room()
        await self.write(meta.write_check, now)

    async def require_room(self) -> None:
        """Look whether its disk has room for it to grow; raises LedgerUnavailable."""
        await self._backend.require_room()

    # -- copies ---------------------------------------------------------------------------------

    async def snapshot_is_due(self, now: datetime) -> bool:
        """Whether the newest snapshot is older than a day, or there is none."""
        return snapshot_is_due(await self._backend.snapshot_at(), now)

    async def look_after(self, now: datetime) -> Health:
        """Check the whole ledger, and keep a snapshot of it when one is due; takes its time.

        The caller holds the lock of the state. Raises LedgerUnavailable when it cannot be copied,
        Stopped after `close`, and Hung when no progress was made for two minutes. Once cancelled it
        is over within a moment.
        """
        problem = await self._backend.look_after(now, self.write)
        with suppress(LedgerUnavailable):  # a damaged one may not take it; the caller knows
            await self.write(meta.set_checked, now, problem)
        return Health(now, problem, await self._backend.snapshot_at())

    async def health(self) -> Health:
        """Return what the last check found, and when the newest snapshot was made."""
        checked_at, problem = await self.read(meta.checked)
        lost_at = await self.read(meta.lost_at)
        return Health(checked_at, problem, await self._backend.snapshot_at(), lost_at)

    # -- what may be lost for a moment ---------------------------------------------------------------

    async def record_soon(self, stream: int, *events: StreamEvent) -> None:
        """Record what happened to a stream, as `fold.record` does, in a moment; see `write_behind`."""
        await self._write_behind.record(stream, *events)

    def has_lost(self, stream: int) -> bool:
        """Whether something that was said of this stream was not recorded, see `write_behind`."""
        return stream in self._write_behind.lost

    async def progress(self, stream: int) -> Progress:
        """Return what polls of this stream go by, after all writes that were asked for before."""
        self._write_behind.lost.discard(stream)
        return await self.write(fold.progress, stream)


def _make_ready(backend: Backend, *, create: bool, readonly: bool) -> datetime | None:
    """See to it that the ledger can be opened; blocking. Of when the copy is that was restored."""
    revision = backend.look(thorough=not readonly)
    restored_from = None
    if revision is not None:
        schema.require_known(backend.where, revision, may_migrate=not readonly)
    elif readonly or not create:
        raise CannotStart(
            f"there is no ledger at {backend.where}; the service, when it starts, brings the newest "
            "snapshot back or makes a new one"
        )
    else:
        restored_from = backend.restore()
    if not readonly:
        backend.prepare()
    return restored_from
