"""The disk of one ledger, looked at in threads: one that hangs holds one of them, not all."""

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from poller.errors import LedgerUnavailable, NoThread
from poller.ledger import engine, snapshots
from poller.own_threads import OwnThreads, looked_at

T = TypeVar("T")

_LOOK_S = 10.0
_COPY_ON_WITHIN_S = 100.0


class Disk:
    """Is there room, and a copy when one is due. `close` ends a copy that is under way."""

    def __init__(self, path: Path, snapshot_stem: Path, *, busy_timeout_s: float) -> None:
        self._path = path
        self._snapshot_stem = snapshot_stem
        self._busy_timeout_s = busy_timeout_s
        self._looking: asyncio.Task[None] | None = None
        self._copying: asyncio.Task[str | None] | None = None
        self._copied_at = 0.0  # when the copy last came on (monotonic)
        self._stop_copying = threading.Event()
        self._closed = False
        self._looks = OwnThreads("ledger disk", most=4)
        self._copies = OwnThreads("ledger copy")

    async def run(self, look: Callable[[], T]) -> T:
        """Look at the disk; LedgerUnavailable where no thread can be had for it, or when closed."""
        if self._closed:
            raise LedgerUnavailable(f"the ledger {self._path} is closed")
        try:
            return await self._looks.run(look)
        except NoThread as error:
            raise LedgerUnavailable(str(error)) from error

    async def require_room(self) -> None:
        """Raise LedgerUnavailable where the ledger cannot grow, or its disk does not say."""
        if self._looking is None or self._looking.done():
            look = self.run(lambda: engine.require_room(self._path))
            self._looking = asyncio.create_task(look, name="ledger room")
            self._looking.add_done_callback(looked_at)
        looking = self._looking
        await asyncio.wait({looking}, timeout=_LOOK_S)
        if not looking.done():
            raise LedgerUnavailable(
                f"the disk of the ledger {self._path} has not answered for {_LOOK_S:.0f} seconds"
            )
        looking.result()

    async def look_after(self, now: datetime, writer: sqlite3.Connection | None) -> str | None:
        """Copy and check the ledger where that is due; returns what is wrong with it.

        It is copied over the connection of its `writer`, if that is given, which goes on. Raises
        LedgerUnavailable when it cannot be copied, and snapshots.Hung when that did not come on for
        two minutes. Once cancelled it is over within a moment.
        """
        if self._copying is not None and not self._copying.done():
            raise snapshots.Hung(f"an earlier copy of the ledger {self._path} still hangs")
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
        """End a copy that is under way; a look that hangs is left behind."""
        self._stop_copying.set()
        self._closed = True
        self._looks.close()
        self._copies.close()
        if self._copying is not None:
            await asyncio.wait({self._copying})

    def _copy(self, now: datetime, writer: sqlite3.Connection | None) -> str | None:
        def stop() -> bool:
            self._copied_at = time.monotonic()  # it is asked at every step
            return self._stop_copying.is_set()

        terms = snapshots.Terms(self._busy_timeout_s, stop, writer)
        return snapshots.look_after(self._path, self._snapshot_stem, now, terms)

    async def _unless_hung(self, copying: asyncio.Task[str | None]) -> str | None:
        """Wait for the copy as long as it comes on; no thread can be ended, so it is left behind."""
        while not copying.done():
            await asyncio.wait({copying}, timeout=_LOOK_S)
            if not copying.done() and time.monotonic() - self._copied_at > _COPY_ON_WITHIN_S:
                copying.add_done_callback(looked_at)
                raise snapshots.Hung(f"the copy of the ledger {self._path} makes no progress")
        return copying.result()
