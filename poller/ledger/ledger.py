"""The ledger as its callers see it: one public method is one transaction.

Every method may raise LedgerUnavailable (nothing was recorded then) and, for an id that it never
gave out, LookupError. Times are aware UTC.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from sqlalchemy import Connection

from poller.documents import StoredFile
from poller.errors import CannotStart, LedgerUnavailable
from poller.ledger import (
    adoption,
    backfills,
    engine,
    failing,
    fetching,
    gaps,
    listing,
    notes,
    progress,
    rebuild,
    schema,
    snapshots,
    times,
    users,
)
from poller.ledger.database import Database
from poller.ledger.disk import Disk
from poller.ledger.put_off import PutOff
from poller.ledger.rows import (
    AccountRow,
    Attempt,
    Backfill,
    Claim,
    FailingCount,
    FaxRow,
    Found,
    Health,
    NewFax,
    OnDisk,
    Progress,
    UserRow,
    Waiting,
)
from poller.ledger.writer import Writer
from poller.own_threads import in_own_thread
from poller.window import Coverage, FailedSlice, Interval, SliceKind

T = TypeVar("T")
BUSY_TIMEOUT_S = 5.0
READ_WITHIN_S = 100.0  # a disk that hangs holds up whoever asks so long at most


class Ledger:
    """An open ledger; `created` says that this open made its tables.

    `restored_from`: the file was gone, and this open put its snapshot of that time in its place.
    """

    def __init__(
        self, path: Path, readers: Database, writer: Writer | None, *, created: bool
    ) -> None:
        self.created = created
        self.restored_from: datetime | None = None
        self._path = path
        self._readers = readers
        self._writer = writer
        self._reads: set[asyncio.Task[Any]] = set()
        self._disk = Disk(path, busy_timeout_s=BUSY_TIMEOUT_S)
        self._put_off = PutOff(writer)

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        create: bool = True,
        readonly: bool = False,
        busy_timeout_s: float = BUSY_TIMEOUT_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> Self:
        """Open the ledger at `url`, make it when there is none and `create`, migrate it when old.

        With `readonly` nothing is made, migrated or changed. Raises CannotStart with the reason; a
        file that is damaged, foreign or of a newer poller stays byte for byte as it was.
        """
        path = engine.database_path(url)
        found = await in_own_thread(
            "ledger opening",
            lambda: engine.look(path, timeout_s=busy_timeout_s, thorough=not readonly),
        )
        if found.tables:
            schema.require_known(path, found.revision, may_migrate=not readonly)
        elif readonly or not create:
            raise CannotStart(
                f"there is no ledger at {path}; the service, when it starts, brings the newest "
                "snapshot back or makes a new one"
            )
        restored_from = None
        if not found.tables:
            restored_from = await in_own_thread("ledger opening", lambda: _restored(path))
        readers = engine.reader_engine(path, timeout_s=busy_timeout_s)
        if readonly:
            return cls(path, readers, None, created=False)
        await in_own_thread("ledger opening", lambda: engine.prepare(path))
        writer = Writer(
            engine.writer_engine(path, timeout_s=busy_timeout_s), path, monotonic=monotonic
        )
        try:
            created = await writer.run(schema.migrate)
        except BaseException as error:
            await writer.close()
            if isinstance(error, LedgerUnavailable):
                raise CannotStart(str(error)) from error
            raise
        opened = cls(path, readers, writer, created=created)
        opened.restored_from = restored_from
        return opened

    async def close(self) -> None:
        """Finish the reads and writes that were asked for; a second time does nothing."""
        copying = asyncio.create_task(self._disk.close(), name="ledger copy's end")
        try:
            if self._writer is not None:
                self._put_off.write_down()
                await self._writer.close()
        finally:
            await asyncio.wait({copying, *self._reads})
            await self._readers.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _write(self, work: Callable[[Connection], T]) -> T:
        return await self._ready_writer().run(work)

    def _ready_writer(self) -> Writer:
        if self._writer is None:
            raise LedgerUnavailable(f"the ledger {self._path} was opened for reading only")
        self._put_off.write_down()  # first, so that all is recorded in the order in which it was said
        return self._writer

    async def _read_settled(self, work: Callable[[Connection], T]) -> T:
        """Read with what was put off written down, if it can be."""
        if (written := self._put_off.write_down()) is not None:
            await asyncio.wait([written])
        return await self._read(work)

    async def _read_in_turn(self, work: Callable[[Connection], T]) -> T:
        """Read between two commits, for who reads often while much is written.

        SQLite lets nobody read while a commit goes to the disk, and whoever finds it so sleeps for
        up to 100 ms and looks again: beside a busy writer that can be a second.
        """
        if self._writer is None:
            return await self._read(work)
        return await self._writer.between_commits(lambda: self._read(work))

    async def _read(self, work: Callable[[Connection], T]) -> T:
        # Its thread goes on when the caller is cancelled, and `close` has to wait for it.
        task = asyncio.create_task(self._read_now(work), name="ledger read")
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
                f"the ledger {self._path} has not answered for {READ_WITHIN_S:.0f} seconds"
            ) from None

    async def _read_now(self, work: Callable[[Connection], T]) -> T:
        with engine.unavailable(self._path):
            return await self._readers.run(work)

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

        `now` is kept as a sign of life, from which `note_downtime` counts.
        A little may still go where a page of new faxes does not, so room is looked for too.
        """
        await self.require_room()
        await self._write(lambda connection: notes.write_check(connection, now))

    async def require_room(self) -> None:
        """Look whether its disk has room for it to grow; raises LedgerUnavailable."""
        await self._disk.require_room()

    async def storage_id(self) -> str | None:
        """Return the id that the storage's marker file must bear, None before there is one."""
        return await self._read(lambda connection: notes.value(connection, notes.STORAGE_ID))

    async def set_storage_id(self, storage_id: str) -> None:
        """Remember the id of the storage that belongs to this ledger."""
        await self._write(
            lambda connection: notes.keep(connection, notes.STORAGE_ID, lambda _: storage_id)
        )

    async def runtime_report(self) -> str | None:
        """Return what the service last kept with `keep_runtime_report`."""
        return await self._read(lambda connection: notes.value(connection, notes.RUNTIME_REPORT))

    async def keep_runtime_report(self, text: str) -> None:
        """Keep what only the service knows, for those who look from outside."""
        await self._write(
            lambda connection: notes.keep(connection, notes.RUNTIME_REPORT, lambda _: text)
        )

    # -- copies ---------------------------------------------------------------------------------

    async def snapshot_is_due(self, now: datetime) -> bool:
        """Whether the newest snapshot is older than a day, or there is none."""
        return await self._disk.run(lambda: snapshots.is_due(self._path, now))

    async def look_after(self, now: datetime) -> Health:
        """Check the whole ledger, and keep a snapshot of it when one is due; takes its time.

        The caller holds the lock of the state. Raises LedgerUnavailable when it cannot be copied,
        and snapshots.Hung when that did not come on for two minutes. Once cancelled it is over
        within a moment.
        """
        writer = await self._write(engine.shared_connection)
        problem = await self._disk.look_after(now, writer)
        with suppress(LedgerUnavailable):  # a damaged one may not take it; the caller knows
            await self._write(lambda connection: notes.set_checked(connection, now, problem))
        return Health(now, problem, await self._snapshot_at())

    async def health(self) -> Health:
        """Return what the last check found, and when the newest snapshot was made."""
        checked_at, problem = await self._read(notes.checked)
        return Health(checked_at, problem, await self._snapshot_at())

    async def _snapshot_at(self) -> datetime | None:
        return await self._disk.run(lambda: snapshots.newest_at(self._path))

    # -- being made anew --------------------------------------------------------------------------

    async def unknown(self, kept: Sequence[adoption.Kept]) -> list[int]:
        """Say which of these are not held as stored with the same hash: their places in `kept`."""
        return await self._read(lambda connection: adoption.unknown(connection, kept))

    async def adopt(self, kept: Sequence[adoption.Kept], now: datetime) -> adoption.Adopted:
        """Take what sidecars say; the counters are right again after `list_again`."""
        return await self._write(lambda connection: adoption.adopt(connection, kept, now))

    async def list_again(
        self, oldest: dict[adoption.Key, datetime], since: datetime | None, now: datetime
    ) -> datetime | None:
        """Let everything be listed again and count anew; from when, None where nothing tells."""
        return await self._write(
            lambda connection: adoption.list_again(connection, oldest, since, now)
        )

    # -- users and accounts ---------------------------------------------------------------------

    async def sync_users(self, wanted: Sequence[users.Identity], now: datetime) -> list[UserRow]:
        """Make the ledger know exactly these users (app_id, user_id, account, user).

        New ones are added as first seen `now`, labels are brought up to date, all others are marked
        removed. Returns the rows in the order asked for.
        """
        return await self._write(lambda connection: users.sync(connection, wanted, now))

    async def users(self, *, include_removed: bool = True) -> list[UserRow]:
        """Return all users in the order in which they were added."""
        return await self._read_settled(
            lambda connection: users.all_users(connection, include_removed=include_removed)
        )

    async def waiting_counts(self) -> dict[int, tuple[int, int]]:
        """Count pending and quarantined faxes of the users that have some, but for removed ones."""
        return await self._read(users.waiting_counts)

    async def waiting(self) -> list[Waiting]:
        """Count what waits, of users that are not removed, by user, state and reason."""
        return await self._read_settled(failing.waiting)

    async def failing_counts(
        self, now: datetime, alarm_after: timedelta
    ) -> dict[int, FailingCount]:
        """Count failing faxes of the users that have some, but for removed ones."""
        return await self._read(lambda connection: failing.counts(connection, now, alarm_after))

    async def failing(self, now: datetime, alarm_after: timedelta, limit: int) -> list[FaxRow]:
        """Return pending faxes that fail for longer or must be mended by hand, the oldest first."""
        return await self._read(
            lambda connection: failing.oldest(connection, now, alarm_after, limit)
        )

    async def user(self, user: int) -> UserRow:
        """Return one user."""
        return await self._read_settled(lambda connection: users.one_user(connection, user))

    def has_lost(self, user: int) -> bool:
        """Whether something that was put off for this user was not recorded, see `put_off`."""
        return user in self._put_off.lost

    async def progress(self, user: int) -> Progress:
        """Return what polls of this user go by, after all writes that were asked for before."""
        self._put_off.lost.discard(user)
        return await self._write(lambda connection: progress.of_one(connection, user))

    async def all_progress(self) -> dict[int, Progress]:
        """Return what polls of all users go by, after all writes that were asked for before."""
        return await self._write(progress.of_all)

    async def pin_start(self, user: int, start: datetime, configured: str) -> None:
        """Fix where the user's look-back begins; once set it only moves to earlier times."""
        await self._write(lambda connection: users.pin_start(connection, user, start, configured))

    async def accounts(self, *, include_removed: bool = True) -> list[AccountRow]:
        """Return the accounts that the ledger has seen, in the order of their App IDs.

        One is removed when none of its users is configured any more.
        """
        return await self._read(
            lambda connection: users.all_accounts(connection, include_removed=include_removed)
        )

    async def set_suspended(
        self, app_id: str, account: str, until: datetime | None, reason: str | None
    ) -> None:
        """Record that the account is suspended, or with None that it is not."""
        await self._write(
            lambda connection: users.set_suspended(connection, app_id, account, until, reason)
        )

    async def pause_clock(self, app_id: str, account: str, now: datetime, *, paused: bool) -> float:
        """Stop the give-up clock of the account's faxes, or let it go on; often called, idempotent.

        Returns for how many seconds it has stood still in all, the running pause included.
        """
        return await self._write(
            lambda connection: users.pause_clock(connection, app_id, account, now, paused=paused)
        )

    async def load_sign_in(self, app_id: str) -> tuple[float, datetime] | None:
        """Return what `save_sign_in` kept: the level of the sign-in budget and when it was so."""
        row = await self._read(lambda connection: users.one_account(connection, app_id))
        if row is None or row.sign_in_level is None or row.sign_in_at is None:
            return None
        return row.sign_in_level, row.sign_in_at

    async def save_sign_in(self, app_id: str, level: float, at: datetime) -> None:
        """Keep the sign-in budget, which holds across restarts."""
        await self._write(lambda connection: users.save_sign_in(connection, app_id, level, at))

    async def poll_failed(
        self, user: int, now: datetime, *, error: str, refused_until: datetime | None = None
    ) -> None:
        """Record a poll that failed.

        A `refused_until` other than the one held is one more refusal in a row; None leaves it.
        """
        await self._write(
            lambda connection: users.poll_failed(connection, user, now, error, refused_until)
        )

    async def polled(self, user: int, now: datetime) -> None:
        """Record that a poll went well; put off, see `put_off`. It ends a refusal."""
        await self._put_off.polled(user, now)

    async def sweep_done(self, user: int, kind: SliceKind, end: datetime, found: int) -> None:
        """Record a completed sweep or deep sweep up to `end`, and how many faxes only it found.

        One that found none is put off, see `put_off`.
        """
        if not found:
            await self._put_off.swept(user, SliceKind(kind), end)
            return
        await self._write(
            lambda connection: users.sweep_done(connection, user, SliceKind(kind), end, found)
        )

    async def forget_sweeps(self, app_id: str, since: datetime | None = None) -> None:
        """Have the account's next sweeps reach back as one at `since` would, or to the starts."""
        await self._write(lambda connection: users.forget_sweeps(connection, app_id, since))

    # -- listing --------------------------------------------------------------------------------

    async def record_page(
        self,
        user: int,
        faxes: Sequence[NewFax],
        *,
        window: Interval | None,
        found_by: str,
        now: datetime,
        covers: Interval | None = None,
    ) -> list[FaxRow]:
        """Record a page of a list; returns the faxes that were not known, now pending and due.

        `covers` comes with the last page: in the same transaction it is merged into the coverage
        and the failed slices inside it are forgotten. What a known fax was listed as first is kept;
        when it was last listed is kept to ten minutes.
        """
        page = listing.Page(faxes, window, found_by, now, covers)
        return await self._write(lambda connection: listing.record_page(connection, user, page))

    async def cover(self, user: int, interval: Interval) -> None:
        """Record that an empty list covers `interval`, as `record_page` does; put off, see `put_off`."""
        await self._put_off.cover(user, interval)

    async def coverage(self, user: int) -> Coverage:
        """Return what has been listed to its end for this user."""
        return await self._read_settled(lambda connection: listing.covered(connection, user))

    async def coverages(self) -> dict[int, Coverage]:
        """Return the coverage of all users that have some."""
        return await self._read_settled(listing.coverages)

    async def failed_slices(self, user: int) -> list[FailedSlice]:
        """Return the slices that could not be listed, oldest first, dismissed ones included."""
        return await self._read_settled(lambda connection: listing.failed(connection, user))

    async def all_failed_slices(self) -> dict[int, list[FailedSlice]]:
        """Return the failed slices of all users that have some."""
        return await self._read_settled(listing.all_failed)

    async def slice_failed(
        self, user: int, interval: Interval, next_attempt_at: datetime, reason: str
    ) -> int:
        """Record that a slice could not be listed; returns how often that has been so."""
        return await self._write(
            lambda connection: listing.slice_failed(
                connection, user, interval, next_attempt_at, reason
            )
        )

    async def slice_split(self, user: int, whole: Interval, halves: Iterable[Interval]) -> None:
        """Put `halves`, which are due at once, in the place of the failed slice `whole`."""
        await self._write(lambda connection: listing.slice_split(connection, user, whole, halves))

    async def lists(self, app_id: str) -> tuple[str | None, list[tuple[int, str, Interval]]]:
        """Return what `keep_lists` kept, and the account's newest faxes: user, fax id, window."""
        return await self._read(
            lambda connection: (
                notes.value(connection, notes.lists(app_id)),
                listing.newest_listed(connection, app_id),
            )
        )

    async def keep_lists(self, app_id: str, text: str) -> None:
        """Keep what is known of the account's lists."""
        await self._write(
            lambda connection: notes.keep(connection, notes.lists(app_id), lambda _: text)
        )

    # -- what operators decide about gaps --------------------------------------------------------

    async def dismiss_gap(self, user: int, bounds: Interval, reason: str | None) -> int:
        """Stop the alarm for the open gaps inside `bounds`; how many it concerns, dismissed before too."""
        return await self._write(
            lambda connection: notes.edited(
                connection, gaps.dismiss(connection, user, bounds, reason)
            )
        )

    async def make_gap_due(self, user: int, bounds: Interval) -> int:
        """List the failed and dismissed slices that touch `bounds` again, at once; how many."""
        return await self._write(
            lambda connection: notes.edited(connection, gaps.make_due(connection, user, bounds))
        )

    async def edits(self) -> str | None:
        """Return a value that changes with every edit of gaps, and every backfill asked for."""
        return await self._read(notes.edits)

    # -- old windows that operators ask for -------------------------------------------------------

    async def ask_backfill(self, user: int, window: Interval, now: datetime) -> Backfill:
        """Ask for an old window to be listed; one that was asked for and is not through goes on."""

        def ask(connection: Connection) -> Backfill:
            notes.edited(connection, 1)
            return backfills.ask(connection, user, window, now)

        return await self._write(ask)

    async def backfill(self, backfill: int) -> Backfill:
        """Return one backfill as it is now."""
        return await self._read(lambda connection: backfills.one(connection, backfill))

    async def backfills(self, user: int) -> list[Backfill]:
        """Return what this user still has to be backfilled, in the order asked for."""
        return await self._read(lambda connection: backfills.waiting(connection, user))

    async def all_backfills(self) -> dict[int, list[Backfill]]:
        """Return what still has to be backfilled of all users that have some."""
        return await self._read(backfills.all_waiting)

    async def withdraw_backfills(self, user: int, now: datetime) -> list[Backfill]:
        """End what this user still has to be backfilled, and return it."""
        return await self._write(lambda connection: backfills.withdraw(connection, user, now))

    async def backfill_listed(
        self,
        backfill: int,
        rest: Interval | None,
        not_listed: Sequence[tuple[Interval, str]],
        now: datetime,
    ) -> Backfill:
        """Record how far a backfill has come; without a rest it is through. Return it as it is now."""
        return await self._write(
            lambda connection: backfills.listed(connection, backfill, rest, not_listed, now)
        )

    async def backfill_failed(self, backfill: int, error: str) -> None:
        """Record why a backfill does not come on; its rest stays to be listed."""
        await self._write(lambda connection: backfills.failed(connection, backfill, error))

    async def found(self, backfill: int) -> Found:
        """Count what a backfill discovered and what became of it."""
        return await self._read(lambda connection: backfills.found(connection, backfill))

    # -- fetching -------------------------------------------------------------------------------

    async def users_with_due(self, app_id: str, now: datetime) -> list[int]:
        """Return the account's users, but for removed ones, who have a fax to be fetched now."""
        return await self._read_in_turn(
            lambda connection: fetching.users_with_due(connection, app_id, now)
        )

    async def due(
        self, user: int, now: datetime, limit: int, exclude: Collection[int] = ()
    ) -> list[FaxRow]:
        """Return what to fetch now: pending faxes, longest due first, then quarantined ones."""
        return await self._read_in_turn(
            lambda connection: fetching.due(connection, user, now, limit, exclude)
        )

    async def stored(
        self,
        fax: int,
        *,
        now: datetime,
        file: StoredFile,
        problem: str | None = None,
    ) -> None:
        """Record that the fax is on the disk; the same again changes nothing.

        `problem` names how it came damaged, for its history.
        """
        item = fetching.Stored(fax, now, file, problem)
        await self._ready_writer().ask_together(fetching.stored, item)

    async def attempt_failed(
        self,
        fax: int,
        *,
        claim: Claim,
        now: datetime,
        error: str,
        problem: str | None,
        next_attempt_at: datetime,
        paused_s: float,
        quarantine: bool,
        counts: bool = True,
    ) -> FaxRow:
        """Record a failed attempt; the first one starts the give-up clock.

        `problem` names how the document is broken. `paused_s` is what `pause_clock` said. Without
        `counts` the failures in a row stay as they are. `claim` is that of the row which the attempt
        began with: a fax that was dismissed or made due in the meantime stays so, with the attempt
        in its history.
        """
        failure = fetching.Failure(
            error, problem, next_attempt_at, paused_s, quarantine, counts, claim
        )
        return await self._write(
            lambda connection: fetching.attempt_failed(connection, fax, now, failure)
        )

    async def postpone(self, fax: int, next_attempt_at: datetime) -> None:
        """Fetch a waiting fax at another time; nothing is said about the fax itself."""
        await self._write(lambda connection: fetching.postpone(connection, fax, next_attempt_at))

    async def dismiss(self, fax: int, *, now: datetime, reason: str) -> FaxRow:
        """Stop fetching a fax that cannot be had; a stored one stays so, unless it is damaged."""
        return await self._write(lambda connection: fetching.dismiss(connection, fax, now, reason))

    async def make_due(self, faxes: Sequence[int] | None, now: datetime) -> int:
        """Fetch these faxes now, quarantined and dismissed ones too, and forget their failures.

        None means all quarantined faxes of users who are configured. Stored ones are left alone,
        unless they are damaged on the disk.
        Returns how many were made due.
        """
        return await self._write(lambda connection: fetching.make_due(connection, faxes, now))

    async def note_downtime(self, now: datetime, longer_than: timedelta) -> None:
        """Stop the give-up clocks for the time in which no poller ran, if it was longer than that.

        Called at each start: while no poller ran, nobody could have had the faxes.
        """
        await self._write(lambda connection: notes.note_downtime(connection, now, longer_than))

    async def forget_far_future(self, now: datetime) -> None:
        """Make due what is put off for longer than anything ever is: our clock had been ahead."""
        await self._write(lambda connection: times.forget_far_future(connection, now))

    async def fax(self, fax: int) -> FaxRow:
        """Return one fax."""
        return await self._read(lambda connection: fetching.one_fax(connection, fax))

    async def still_claimed(self, fax: int, claim: Claim) -> bool:
        """Whether nobody has dismissed the fax, made it due or removed its user since its row was read."""
        return await self._read_in_turn(
            lambda connection: fetching.still_claimed(connection, fax, claim)
        )

    async def faxes(self, faxes: Sequence[int]) -> list[FaxRow]:
        """Return those of these faxes that there are."""
        return await self._read(lambda connection: fetching.some(connection, faxes))

    async def find(
        self, fax_id: str, account: str | None = None, user: str | None = None
    ) -> list[FaxRow]:
        """Return the faxes of this id in this spelling, or else in any; two users may have one each."""
        return await self._read(lambda connection: fetching.find(connection, fax_id, account, user))

    async def history(self, fax: int) -> list[Attempt]:
        """Return the last fifty things that happened to a fax, oldest first."""
        return await self._read(lambda connection: fetching.history(connection, fax))

    async def recent_paths(self, limit: int = 1000) -> list[str]:
        """Return the directories of the last `limit` stored faxes: relative, "" the topmost.

        There, and in those of `pending_paths`, a crash can have left something.
        """
        return await self._read(lambda connection: fetching.recent_directories(connection, limit))

    async def quarantined(self, limit: int) -> list[FaxRow]:
        """Return some of the faxes that are quarantined, those that are tried next first."""
        return await self._read(lambda connection: fetching.quarantined(connection, limit))

    # -- what is on the disk ----------------------------------------------------------------------

    async def on_disk(self, below: int | None, limit: int) -> list[OnDisk]:
        """Return faxes whose files should be there, newest first; `below` is the last id had before.

        Stored ones, and those that are being fetched again.
        """
        return await self._read(lambda connection: fetching.on_disk(connection, below, limit))

    async def files_of(self, paths: Sequence[str]) -> dict[str, str | None]:
        """Return those of `paths` (without extension) that belong to a fax, with its stored file."""
        return await self._read(lambda connection: fetching.files_of(connection, paths))

    async def note_harm(
        self, found: Mapping[int, tuple[str, str | None]], now: datetime
    ) -> list[int]:
        """Record why the files of stored faxes are not what was stored, or None: they are well.

        By fax: the hash that was looked for, and the reason. Returns whose reason has changed.
        """
        return await self._write(lambda connection: fetching.note_harm(connection, found, now))

    async def harmed(self, limit: int) -> list[FaxRow]:
        """Return some of the faxes that are damaged on the disk."""
        return await self._read(lambda connection: fetching.harmed(connection, limit))

    async def harmed_counts(self) -> dict[int, int]:
        """Return how many faxes are damaged on the disk, for each user that has some."""
        return await self._read(fetching.harmed_counts)

    async def users_with_stored_per_hour(
        self, since: datetime
    ) -> tuple[list[UserRow], list[tuple[int, int, int]]]:
        """Return all users, and how many faxes were stored in each hour, both of one moment.

        The hours are user, hour (0 begins at `since`) and count, where there are any.
        """
        return await self._read(
            lambda connection: (
                users.all_users(connection, include_removed=True),
                fetching.stored_per_hour(connection, since),
            )
        )

    async def fetch_again(self, faxes: Sequence[int], now: datetime) -> list[int]:
        """Fetch stored faxes once more; whose request was taken.

        Not those of removed users, and not what was dismissed.
        """
        return await self._write(lambda connection: fetching.fetch_again(connection, faxes, now))

    async def pending_paths(self) -> list[str]:
        """Return the paths (relative, without extension) of all faxes that are still to be fetched."""
        return await self._read(fetching.pending_paths)


def _restored(path: Path) -> datetime | None:
    try:
        with snapshots.mapped(path):
            return rebuild.restore(path)
    except LedgerUnavailable as error:
        raise CannotStart(str(error)) from error
