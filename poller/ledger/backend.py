"""The seam for what differs by database: how to open it, what its errors mean, and its copies.

Everything else in the ledger is standard SQL, which a test also compiles for PostgreSQL.
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
    """The copy was not finished because its caller no longer wants it."""


class Hung(LedgerUnavailable):
    """The copy makes no progress: a disk hangs."""


@dataclass(frozen=True)
class Base:
    """The copy with which a new ledger begins. A source of None means none; an `at` of None, the ledger.

    `passed_over` says for each better copy why it was unusable.
    """

    source: str | None
    at: datetime | None
    passed_over: tuple[str, ...]


class Replacement(Protocol):
    """A new ledger in the making beside the old one; every method blocks."""

    @property
    def base(self) -> Base: ...

    @property
    def backend(self) -> "Backend":
        """The new ledger, to open and fill it."""

    def abandon(self) -> None:
        """Remove the unfinished ledger, which is closed by now."""

    def install(self, now: datetime) -> str | None:
        """Put the new ledger, closed by now, in place of the old; return where the old one is kept."""


class Backend(Protocol):
    """One database; every method that is not a coroutine blocks.

    Before it is open it raises CannotStart, afterwards LedgerUnavailable, each with a sentence.
    """

    @property
    def where(self) -> str:
        """Where it is, for sentences; never contains a password."""

    @property
    def is_shared(self) -> bool:
        """Whether several nodes may work on it: then each account needs a lease."""

    @property
    def group_size(self) -> int:
        """How many writes may be in one transaction."""

    def look(self, *, thorough: bool) -> str | None:
        """Return the revision of its tables without changing anything; None if it has none."""

    def restore(self) -> datetime | None:
        """Put the newest copy in place of a lost ledger; return when it was made, None if there is none."""

    def prepare(self) -> None:
        """Create what the first connection needs."""

    def begin_migration(self, connection: Connection) -> None:
        """Lock out other programs that migrate, until the transaction ends."""

    def continue_ids(self, connection: Connection) -> None:
        """Let new rows have higher ids than the rows that were copied."""

    def writer(self) -> Database:
        """Return one connection whose transactions lock out all other writers from their start."""

    def readers(self) -> Database:
        """Return a few connections that cannot write; each transaction sees one state of the ledger."""

    async def require_room(self) -> None:
        """Raise LedgerUnavailable if the ledger cannot grow, or its disk does not answer."""

    async def look_after(self, now: datetime, write: Write) -> str | None:
        """Check the whole ledger and keep a copy if one is due; return what is wrong with the ledger.

        `write` runs a function in a transaction of the writer, which continues meanwhile. Raises
        Hung after two minutes without progress. Ends within a moment when cancelled.
        """

    def history(self, connection: Connection) -> str:
        """Return a word that changes when the server may have lost what it had acknowledged."""

    def risk(self, connection: Connection) -> str | None:
        """Return a sentence if the database may lose what it has acknowledged; None otherwise."""

    async def snapshot_at(self) -> datetime | None:
        """Return when the newest copy was made; None if there is none."""

    async def snapshot_is_due(self, now: datetime) -> bool:
        """Whether the newest copy is older than a day, or there is none."""

    async def close(self) -> None:
        """End a running copy; leave a hanging look behind."""

    async def backup(self, target: Path) -> int:
        """Copy the ledger to a new file, also while a daemon runs; return its size in bytes."""

    def replace(self) -> Replacement:
        """Choose the copy with which a new ledger begins, and copy it."""


def snapshot_is_due(newest: datetime | None, now: datetime) -> bool:
    """Whether the newest copy is older than a day, or dated in the future."""
    return newest is None or not timedelta(0) <= now - newest < _SNAPSHOT_AFTER
