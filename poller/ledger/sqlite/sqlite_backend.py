"""An SQLite file as the ledger; threads look at its disk, so that a hanging disk holds only one."""

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Self, TypeVar

from sqlalchemy import Connection

from poller.errors import CannotStart, LedgerUnavailable, NoThread
from poller.ledger.backend import Hung, Write, snapshot_is_due
from poller.ledger.database import Database
from poller.ledger.sqlite import engine, file, replacement, snapshots
from poller.own_threads import OwnThreads, in_own_thread, looked_at

T = TypeVar("T")

_PREFIX = "sqlite:///"
_LOOK_S = 10.0
_COPY_ON_WITHIN_S = 100.0


class SqliteBackend:  # more than 20 methods: what differs by database
    """The file at `path`; the names of its snapshots begin with `snapshot_stem`."""

    is_shared = False
    group_size = 200  # a longer queue is split, so that the first writes do not wait for the last

    def __init__(self, path: Path, snapshot_stem: Path) -> None:
        self._path = path
        self._snapshot_stem = snapshot_stem
        self._looking: asyncio.Task[None] | None = None
        self._copying: asyncio.Task[str | None] | None = None
        self._copied_at = 0.0  # when the copy last made progress (monotonic)
        self._stop_copying = threading.Event()
        self._closed = False
        self._looks = OwnThreads("ledger disk", most=4)
        self._copies = OwnThreads("ledger copy")

    @classmethod
    def at(cls, url: str, directory: Path | None) -> Self:
        """Find the file that `url` names, with its snapshots in `directory`, or beside it."""
        name = url.removeprefix(_PREFIX)
        if name == url or name in ("", ":memory:"):
            raise CannotStart("state.url must be sqlite:/// followed by the path of a file")
        path = Path(name)
        stem = path if directory is None else directory / path.name
        return cls(path, stem)

    @property
    def where(self) -> str:
        return str(self._path)

    # -- opening, replacing ------------------------------------------------------------------------

    def look(self, *, thorough: bool) -> str | None:
        return file.look(self._path, thorough=thorough)

    def restore(self) -> datetime | None:
        try:
            with snapshots.mapped(self._path):
                return replacement.restore(self._path, self._snapshot_stem)
        except LedgerUnavailable as error:
            raise CannotStart(error.told) from error

    def prepare(self) -> None:
        file.prepare(self._path)

    def begin_migration(self, connection: Connection) -> None:
        """Do nothing: the writer's transaction locks out all others."""

    def continue_ids(self, connection: Connection) -> None:
        """Do nothing: SQLite looks at the rows."""

    def writer(self) -> Database:
        return engine.writer(self._path)

    def readers(self) -> Database:
        return engine.readers(self._path)

    def replace(self) -> replacement.FileReplacement:
        new = replacement.being_made(self._path)
        backend = SqliteBackend(new, new)
        return replacement.FileReplacement.begin(self._path, self._snapshot_stem, backend)

    async def backup(self, target: Path) -> int:
        try:
            return await in_own_thread("backup", lambda: snapshots.backup(self._path, target))
        except asyncio.CancelledError:  # leave the thread behind until the process ends
            snapshots.part_of(target).unlink(missing_ok=True)
            raise

    # -- health ------------------------------------------------------------------------------------

    async def require_room(self) -> None:
        if self._looking is None or self._looking.done():
            look = self._look(lambda: file.require_room(self._path))
            self._looking = asyncio.create_task(look, name="ledger room")
            self._looking.add_done_callback(looked_at)
        looking = self._looking
        await asyncio.wait({looking}, timeout=_LOOK_S)
        if not looking.done():
            raise LedgerUnavailable(
                f"the disk of the ledger {self._path} has not answered for {_LOOK_S:.0f} seconds"
            )
        looking.result()

    async def snapshot_at(self) -> datetime | None:
        return await self._look(lambda: snapshots.newest_at(self._snapshot_stem))

    async def snapshot_is_due(self, now: datetime) -> bool:
        return snapshot_is_due(await self.snapshot_at(), now)

    def history(self, connection: Connection) -> str:  # noqa: ARG002
        return ""

    def risk(self, connection: Connection) -> str | None:  # noqa: ARG002  (PostgreSQL's look)
        return None

    async def look_after(self, now: datetime, write: Write) -> str | None:
        writer: sqlite3.Connection | None = await write(engine.shared_connection)
        if self._copying is not None and not self._copying.done():
            raise Hung(f"an earlier copy of the ledger {self._path} still hangs")
        self._copied_at = time.monotonic()
        copying = asyncio.create_task(
            self._copies.run(lambda: self._copy(now, writer)), name="ledger copy"
        )
        self._copying = copying
        try:
            return await self._unless_hung(copying)
        except asyncio.CancelledError:
            self._stop_copying.set()
            await asyncio.gather(copying, return_exceptions=True)
            raise

    async def close(self) -> None:
        self._stop_copying.set()
        self._closed = True
        self._looks.close()
        self._copies.close()
        if self._copying is not None:
            await asyncio.wait({self._copying})

    async def _look(self, look: Callable[[], T]) -> T:
        """Look at the disk; raises LedgerUnavailable if it has no thread for this, or is closed."""
        if self._closed:
            raise LedgerUnavailable(f"the ledger {self._path} is closed")
        try:
            return await self._looks.run(look)
        except NoThread as error:
            raise LedgerUnavailable(str(error)) from error

    def _copy(self, now: datetime, writer: sqlite3.Connection | None) -> str | None:
        def stop() -> bool:
            self._copied_at = time.monotonic()  # called at every step
            return self._stop_copying.is_set()

        terms = snapshots.Terms(stop, writer)
        return snapshots.look_after(self._path, self._snapshot_stem, now, terms)

    async def _unless_hung(self, copying: asyncio.Task[str | None]) -> str | None:
        """Wait while the copy makes progress; leave a hanging one behind, as no thread can be ended."""
        while not copying.done():
            await asyncio.wait({copying}, timeout=_LOOK_S)
            if not copying.done() and time.monotonic() - self._copied_at > _COPY_ON_WITHIN_S:
                copying.add_done_callback(looked_at)
                raise Hung(f"the copy of the ledger {self._path} makes no progress")
        return copying.result()
