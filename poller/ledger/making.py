"""Ledgers that are made beside the one at work: a new one in its place, and copies for operators."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Self

from poller import state_directory
from poller.ledger import engine, rebuild, snapshots
from poller.ledger.ledger import BUSY_TIMEOUT_S, Ledger
from poller.own_threads import in_own_thread


@dataclass(frozen=True)
class Making:
    """A new ledger that is being made beside the one at `path`, of which it keeps what it can."""

    path: Path
    base: rebuild.Base

    @classmethod
    def begin(cls, url: str) -> Self:
        """Choose what it begins with and copy that; blocking. Raises as `Ledger.open`."""
        path = engine.database_path(url)
        with snapshots.mapped(path):
            state_directory.make(path.parent)
            try:
                base = rebuild.choose(path)
                rebuild.begin(path, base)
            except BaseException:
                rebuild.abandon(path)
                raise
        return cls(path, base)

    async def open(self) -> Ledger:
        """Open the new ledger, to be filled."""
        return await Ledger.open(f"sqlite:///{rebuild.being_made(self.path)}")

    def abandon(self) -> None:
        """Remove it, closed by now, where it was not finished; blocking."""
        with suppress(OSError):
            rebuild.abandon(self.path)

    def install(self, now: datetime) -> Path | None:
        """Give the new ledger, closed by now, the name of the old; blocking.

        Returns where the old one is kept.
        """
        with snapshots.mapped(self.path):
            return rebuild.install(self.path, now)


async def backup(url: str, target: Path) -> int:
    """Copy the ledger at `url` to a new file, beside a daemon too; its size in bytes.

    Raises CannotStart or LedgerUnavailable, both in a sentence.
    """
    path = engine.database_path(url)
    try:
        return await in_own_thread(
            "backup", lambda: snapshots.backup(path, target, timeout_s=BUSY_TIMEOUT_S)
        )
    except asyncio.CancelledError:  # the thread goes on, and is left behind when the process ends
        snapshots.part_of(target).unlink(missing_ok=True)
        raise
