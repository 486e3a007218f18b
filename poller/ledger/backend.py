"""The seam for what only one database has: how it is opened, what its errors mean, and its copies.

Everything else in the ledger is standard SQL, which a test compiles for PostgreSQL as well.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Connection

from poller.errors import LedgerUnavailable
from poller.ledger.database import Database

Write = Callable[[Callable[[Connection], Any]], Awaitable[Any]]
_SNAPSHOT_AFTER = timedelta(days=1)


class Stopped(LedgerUnavailable):
    """The copy was not finished because its caller does not want it any more."""


class Hung(LedgerUnavailable):
    """The copy made no progress: a disk hangs."""


@dataclass(frozen=True)
class Base:
    """The copy that a new ledger begins with: None for none; `at` is None for the ledger itself.

    `passed_over` says for each better one why it could not be used.
    """

    source: Path | None
    at: datetime | None
    passed_over: tuple[str, ...]


class Replacement(Protocol):
    """A new ledger that is being made beside the one at `path`; all of it blocks."""

    @property
    def path(self) -> Path: ...

    @property
    def base(self) -> Base: ...

    @property
    def url(self) -> str:
        """Where the new ledger is opened, to be filled."""

    def abandon(self) -> None:
        """Remove it, closed by now, where it was not finished."""

    def install(self, now: datetime) -> Path | None:
        """Put the new ledger, closed by now, in place of the old; where the old one is kept."""


class Backend(Protocol):
    """One database; what is no coroutine blocks.

    Before it is open it raises CannotStart, then LedgerUnavailable, both in a sentence.
    """

    @property
    def where(self) -> str:
        """Where it is, as sentences name it; never with a password."""

    def look(self, *, thorough: bool) -> str | None:
        """Return the revision of its tables without changing anything; None where there are none."""

    def restore(self) -> datetime | None:
        """Put the newest copy where the ledger is gone; of when that is, None without one."""

    def prepare(self) -> None:
        """Make what the first connection needs."""

    def writer(self) -> Database:
        """One connection; its transactions keep all other writers out from their start."""

    def readers(self) -> Database:
        """A few connections that cannot write; each transaction sees one state of the ledger."""

    async def require_room(self) -> None:
        """Raise LedgerUnavailable where the ledger cannot grow, or its disk does not say."""

    async def look_after(self, now: datetime, write: Write) -> str | None:
        """Check the whole ledger, keep a copy when one is due; returns what is wrong with it.

        `write` runs a function in a transaction of the writer, which goes on meanwhile. Raises Hung
        when no progress is made for two minutes. Once cancelled it is over within a moment.
        """

    async def snapshot_at(self) -> datetime | None:
        """Return when the newest copy was made; None when there is none."""

    async def close(self) -> None:
        """End a copy that is under way; a look that hangs is left behind."""

    async def backup(self, target: Path) -> int:
        """Copy the ledger to a new file, beside a daemon too; its size in bytes."""

    def replace(self) -> Replacement:
        """Choose what a new ledger begins with, and copy that."""


def snapshot_is_due(newest: datetime | None, now: datetime) -> bool:
    """Whether the newest is older than a day, or of a time that has not come yet."""
    return newest is None or not timedelta(0) <= now - newest < _SNAPSHOT_AFTER
