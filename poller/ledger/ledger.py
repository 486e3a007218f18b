"""An open ledger: it runs plain functions of a connection, each in one transaction.

Those functions are in modules by table. Their errors pass through, such as LookupError for an
unknown id. Everything may raise LedgerUnavailable; then nothing was recorded. Only if a server
does not come back after a COMMIT, it may have been: so whatever is repeated must do no harm.
"""

import asyncio
import copy
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from sqlalchemy import Connection

from poller.config import read_secret
from poller.config.model import Config
from poller.errors import CannotStart, ConfigError, LeaseLost, LedgerUnavailable, Problem
from poller.ledger import fold, meta, schema
from poller.ledger.backend import Backend
from poller.ledger.leases import Lease
from poller.ledger.rows import Health
from poller.ledger.sqlite.sqlite_backend import SqliteBackend
from poller.ledger.write_behind import WriteBehind
from poller.ledger.writer import Writer
from poller.own_threads import in_own_thread
from poller.progress import Progress, StreamEvent

P = ParamSpec("P")
Item = TypeVar("Item")
T = TypeVar("T")
_NO_DRIVER = "PostgreSQL needs a package that is missing: pip install 'poller[cluster]'"
READ_WITHIN_S = 100.0  # the longest that a hanging disk keeps a caller waiting


def backend_at(url: str, directory: Path | None = None, *, password: str | None = None) -> Backend:
    """Choose the database by its `url`; the copies of a file are in `directory`, or beside it.

    Raises CannotStart if the url names no database, and ConfigError if its driver is missing.
    """
    if url.startswith("postgresql://"):
        try:
            from poller.ledger.postgres import postgres_backend  # noqa: PLC0415  (an extra's)
        except ImportError as error:
            raise ConfigError([Problem("", 0, "state.url", _NO_DRIVER)]) from error
        return postgres_backend.PostgresBackend.at(url, password)
    return SqliteBackend.at(url, directory)


def backend_of(settings: Config, environ: Mapping[str, str]) -> Backend:
    """Choose the configured database, as `backend_at` does."""
    secret = settings.state.password
    password = None if secret is None else read_secret(secret, environ)
    return backend_at(settings.state_url, settings.state_directory, password=password)


class Ledger(AbstractAsyncContextManager["Ledger"]):  # more than 20 methods: three are its health
    """An open ledger; `created` says that this call made its tables.

    `restored_from`: the file was gone, and this call put its snapshot of that time in its place.
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
        self.node = ""  # which of several nodes this process is
        self.restored_from = restored_from
        self._backend = backend
        self._readers = backend.readers()
        self._writer = writer
        self._reads: set[asyncio.Task[Any]] = set()
        self._write_behind = WriteBehind(writer)
        self._lease: Lease | None = None
        self._aside = backend.writer() if writer and backend.is_shared else None

    @classmethod
    async def open(
        cls,
        database: str | Backend,
        *,
        create: bool = True,
        readonly: bool = False,
        is_command: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
        on_commit: Callable[[float], None] = lambda _: None,
    ) -> Self:
        """Open the ledger of a database or at a URL; create it if it is missing and `create`.

        Migrate an old one. With `readonly`, nothing is created, migrated or changed. Raises
        CannotStart with the reason; a ledger that is damaged, foreign or newer than this poller
        stays unchanged. With `is_command`, the ledger is an operator's: where nodes share it, each of
        its writes waits for theirs and lets none run beside it. `on_commit` gets the seconds that each
        transaction took.
        """
        backend = backend_at(database) if isinstance(database, str) else database
        restored_from = await in_own_thread(
            "ledger opening", lambda: _make_ready(backend, create=create, readonly=readonly)
        )
        if readonly:
            return cls(backend, None)
        writer = Writer(
            backend.writer(),
            backend.where,
            most=backend.group_size,
            is_command=is_command and backend.is_shared,
            monotonic=monotonic,
            on_commit=on_commit,
        )
        try:
            created = await writer.ask(lambda connection: _migrate(backend, connection))
        except BaseException as error:
            await writer.close()
            if isinstance(error, LedgerUnavailable):
                raise CannotStart(error.told) from error
            raise
        return cls(backend, writer, created=created, restored_from=restored_from)

    @property
    def is_shared(self) -> bool:
        """Whether several nodes may work on it: then each account needs a lease."""
        return self._backend.is_shared

    def under(self, lease: Lease | None) -> Self:
        """Return this ledger for the work of a lease; once that is lost, writes fail with LeaseLost."""
        view = copy.copy(self)
        view._lease = lease
        return view

    async def close(self) -> None:
        """Finish the reads and writes already requested; a second call does nothing."""
        copying = asyncio.create_task(self._backend.close(), name="ledger copy's end")
        try:
            if self._writer is not None:
                self._write_behind.write_down()
                await self._writer.close()
        finally:
            await asyncio.wait({copying, *self._reads})
            await self._readers.close()
            if self._aside is not None:
                await self._aside.close()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # -- reading and writing -----------------------------------------------------------------------

    async def read(
        self,
        query: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run `query` in a transaction that sees everything written before.

        It begins between two commits: a reader that meets a commit of SQLite sleeps for up to 100
        ms, and with a busy writer that can add up to a second. Raises LeaseLost if the server has failed
        over since the lease began.
        """
        read = partial(self._read, lambda connection: query(connection, *args, **kwargs))
        if self._writer is None:
            return await read()
        if written := self._write_behind.write_down():
            await asyncio.wait(written)
        return await (read() if self._backend.is_shared else self._writer.between_commits(read))

    async def write(
        self,
        command: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run `command` in a transaction; when this returns, its writes are durable."""
        return await self._ready_writer().ask(
            lambda connection: command(connection, *args, **kwargs), self._lease
        )

    def history(self, connection: Connection) -> str:
        """Return a word that changes when the server may have lost what it had acknowledged."""
        return self._backend.history(connection)

    def continue_ids(self, connection: Connection) -> None:
        """Let new rows have higher ids than the rows that were copied."""
        self._backend.continue_ids(connection)

    async def confirm(self) -> None:
        """Raise LeaseLost if another run has the account; without leases nobody can."""
        if self._lease is not None:
            await self.write(lambda _: None)

    async def aside(
        self,
        command: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run `command` in a transaction on a connection of its own, which waits for no other write."""
        if self._aside is None:
            raise ValueError("only nodes that share a ledger need this")
        try:
            return await self._aside.run(lambda connection: command(connection, *args, **kwargs))
        except LedgerUnavailable:
            await self._aside.let_go()
            raise

    async def write_together(
        self, command: Callable[[Connection, list[Item]], None], item: Item
    ) -> None:
        """Run `command` once for this and all other items that wait for it."""
        await self._ready_writer().ask_together(command, item, self._lease)

    def _ready_writer(self) -> Writer:
        if self._writer is None:
            raise LedgerUnavailable(f"the ledger {self._backend.where} is open for reading only")
        # First, so that everything is recorded in the order of the calls.
        self._write_behind.write_down()
        return self._writer

    async def _read(self, work: Callable[[Connection], T]) -> T:
        def checked(connection: Connection) -> T:
            if (
                self._writer
                and self._lease
                and self._writer.is_from_before(self._lease, connection)
            ):
                raise LeaseLost(self._lease.app_id)
            return work(connection)

        # Its thread continues if the caller is cancelled, and `close` must wait for it.
        task = asyncio.create_task(self._readers.run(checked), name="ledger read")
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

    # -- health -------------------------------------------------------------------------------

    @property
    def waiting_since(self) -> float | None:
        """When the oldest unanswered write was requested (monotonic seconds)."""
        return self._writer.waiting_since if self._writer else None

    @property
    def ended(self) -> bool:
        """Whether the ledger can no longer write: it was closed, or a bug ended its writer."""
        return self._writer is None or self._writer.ended

    @property
    def fenced(self) -> Mapping[str, int]:
        """How many writes were refused because the lease was lost, by App ID."""
        return self._writer.fenced if self._writer else {}

    @property
    def commits(self) -> int:
        """How many transactions were committed; one may contain many writes."""
        return self._writer.commits if self._writer else 0

    async def check_writable(self, now: datetime | None = None) -> None:
        """Write a little and wait until it is durable; raises LedgerUnavailable.

        `now` is kept as a sign of life, from which `accounts.note_downtime` counts. Also looks for
        free space, since a disk may take this little and still not a page of new faxes.
        """
        await self.require_room()
        if self.is_shared:  # its leases are the sign of life
            now = None
        await self.write(meta.write_check, now, self.node)

    async def require_room(self) -> None:
        """Check that its disk has room for it to grow; raises LedgerUnavailable."""
        await self._backend.require_room()

    # -- copies ---------------------------------------------------------------------------------

    async def snapshot_is_due(self, now: datetime) -> bool:
        """Whether the newest snapshot is older than a day, or there is none."""
        return await self._backend.snapshot_is_due(now)

    async def look_after(self, now: datetime) -> Health:
        """Check the whole ledger, and keep a snapshot if one is due; may take long.

        The caller holds the state's lock. Raises LedgerUnavailable if the ledger cannot be copied,
        Stopped after `close`, and Hung after two minutes without progress. Ends within a moment
        when cancelled.
        """
        problem = await self._backend.look_after(now, self.write)
        with suppress(LedgerUnavailable):  # a damaged ledger may not take it; the caller knows
            await self.write(meta.set_checked, now, problem)
        return Health(now, problem, await self._backend.snapshot_at())

    async def health(self) -> Health:
        """Return what the last check found, and when the newest snapshot was made."""
        checked_at, problem = await self.read(meta.checked)
        lost_at = await self.read(meta.lost_at)
        snapshot_at = await self._backend.snapshot_at()
        return Health(
            checked_at, problem, snapshot_at, lost_at, await self.read(self._backend.risk)
        )

    # -- what may be lost in a crash -------------------------------------------------------------------

    async def record_soon(self, stream: int, *events: StreamEvent) -> None:
        """Record events of a stream in a moment, as `fold.record` does; see `write_behind`."""
        await self._write_behind.record(stream, *events, lease=self._lease)

    def has_lost(self, stream: int) -> bool:
        """Whether an event of this stream was lost before it was recorded, see `write_behind`."""
        return stream in self._write_behind.lost

    async def progress(self, stream: int) -> Progress:
        """Return this stream's progress, after all writes requested before."""
        self._write_behind.lost.discard(stream)
        return await self.write(fold.progress, stream)


def require_usable(backend: Backend) -> None:
    """Raise CannotStart if there is a ledger that the service would refuse; blocks, changes nothing."""
    revision = backend.look(thorough=True)
    if revision is not None:
        schema.require_known(backend.where, revision, may_migrate=True)


def _migrate(backend: Backend, connection: Connection) -> bool:
    backend.begin_migration(connection)
    created = schema.migrate(connection)
    if backend.is_shared:
        schema.keep_reads(connection)
    return created


def _make_ready(backend: Backend, *, create: bool, readonly: bool) -> datetime | None:
    """Make sure that the ledger can be opened; blocks. Return the date of a copy that was restored."""
    revision = backend.look(thorough=not readonly)
    restored_from = None
    if revision is not None:
        schema.require_known(backend.where, revision, may_migrate=not readonly)
    elif readonly or not create:
        raise CannotStart(
            f"there is no ledger at {backend.where}; start the service, which restores it or makes a "
            "new one"
        )
    else:
        restored_from = backend.restore()
    if not readonly:
        backend.prepare()
    return restored_from
