"""Make a new ledger from the newest readable snapshot and the sidecars in the storage."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from poller.clock import POSSIBLE_YEARS
from poller.config.model import Config
from poller.errors import CannotStart, StorageUnusable
from poller.ledger import Ledger, backend_of, copying, meta, sidecar_import, streams
from poller.lock import StorageLock
from poller.own_threads import in_own_thread
from poller.store import FoundSidecar, Origin, Storage, Unreadable, storage_of
from poller.stream import Stream

_NAMED = 100  # paths named for each kind of trouble; all are counted

_READS_SIDECARS = "rebuild reads the sidecars there, so mount it first"


@dataclass
class Trouble:
    """Paths in the storage with their problems: the first hundred by name, and the total."""

    count: int = 0
    named: list[tuple[str, str]] = field(default_factory=list)

    def add(self, path: str, why: str) -> None:
        self.count += 1
        if len(self.named) < _NAMED:
            self.named.append((path, why))


@dataclass
class Rebuilt:
    """The result.

    `base` is the copy that it started from, made at `base_at`; None if none was readable, or if the
    old ledger was whole. `listed_from` None means each user's configured look-back.
    """

    ledger: str
    base: str | None = None
    base_at: datetime | None = None
    passed_over: tuple[str, ...] = ()
    kept_aside: str | None = None
    sidecars: int = 0
    added: int = 0
    carried_on: int = 0
    listed_from: datetime | None = None
    damaged: Trouble = field(default_factory=Trouble)
    unreadable: Trouble = field(default_factory=Trouble)
    doubles: Trouble = field(default_factory=Trouble)

    @property
    def was_whole(self) -> bool:
        return self.base is not None and self.base_at is None


async def rebuild(  # 7 parameters: what an operator asks, and what the command brings
    settings: Config,
    environ: Mapping[str, str],
    *,
    since: datetime | None,
    now: Callable[[], datetime],
    progress: Callable[[int], None] = lambda _: None,
    storage_lock: StorageLock | None = None,
    of: Config | None = None,
) -> Rebuilt:
    """Make the new ledger and replace the old one. The caller holds the state lock.

    With `of`, begin with the ledger of that configuration, whose state lock the caller holds too.

    Calls `progress` with the number of sidecars read. Takes `storage_lock` itself, once it knows
    the storage's id. Raises LockHeld, CannotStart, LedgerUnavailable and StorageUnusable, and then
    changes nothing.
    """
    with contextlib.closing(storage_of(settings)) as storage:
        marker = await _marker(storage)
        if storage_lock is not None:
            storage_lock.take(marker)
        backend = backend_of(settings, environ)
        making = await in_own_thread("rebuild", backend.replace)
        done = Rebuilt(backend.where, making.base.source, making.base.at, making.base.passed_over)
        try:
            async with await Ledger.open(making.backend) as ledger:
                if of is not None:
                    await _copy(of, environ, ledger, done)
                await _take_over(ledger, storage, marker, settings, now())
                oldest = await _read_sidecars(ledger, storage, done, now(), progress)
                done.listed_from = await ledger.write(
                    sidecar_import.list_again, oldest, since, now()
                )
        except BaseException:
            making.abandon()
            raise
        done.kept_aside = await in_own_thread("rebuild", lambda: making.install(now()))
        return done


async def _copy(of: Config, environ: Mapping[str, str], new: Ledger, done: Rebuilt) -> None:
    """Begin with the ledger of another configuration, where there is none yet."""
    if done.base is not None:
        raise CannotStart(f"there is a ledger in {done.ledger}: --from is for a new one")
    backend = backend_of(of, environ)
    async with await Ledger.open(backend, readonly=True) as old:
        await copying.copy(old, new)
    done.base = backend.where


async def _marker(storage: Storage) -> str:
    """Return the storage's marker; without the disk, poller would fetch its files again."""
    try:
        marker, _ = await storage.ask(lambda store: store.marked())
    except StorageUnusable as error:
        raise CannotStart(f"{error}; nothing was changed, {_READS_SIDECARS}") from error
    if not marker:
        raise CannotStart(
            f"the storage {storage.where()} has no marker .poller-storage: "
            f"is its disk mounted? Nothing was changed; {_READS_SIDECARS}"
        )
    return marker


async def _take_over(
    ledger: Ledger, storage: Storage, marker: str, settings: Config, now: datetime
) -> None:
    """Record the storage and the configured users in the new ledger."""
    known = await ledger.read(meta.value, meta.STORAGE_ID)
    if known is not None and known != marker:
        raise CannotStart(
            f"the marker in {storage.where()} belongs to another storage than the "
            "ledger's: mount the right disk, or move the ledger and its snapshots away"
        )
    await ledger.write(meta.keep, meta.STORAGE_ID, marker)
    await ledger.write(meta.rebuilt)
    await storage.prepare(marker)
    for account in settings.accounts:
        await ledger.write(streams.sync_account, account, now)
    await ledger.write(streams.remove_others, [account.app_id for account in settings.accounts])


async def _read_sidecars(
    ledger: Ledger,
    storage: Storage,
    done: Rebuilt,
    now: datetime,
    progress: Callable[[int], None],
) -> dict[Stream, datetime]:
    """Read all sidecars, some at a time; return the time of each user's oldest fax."""
    oldest: dict[Stream, datetime] = {}
    read = 0
    async with contextlib.aclosing(storage.sidecars()) as batches:
        async for batch in batches:
            found = [one for one in batch if isinstance(one, FoundSidecar)]
            for one in batch:
                if isinstance(one, Unreadable):
                    done.unreadable.add(one.file, one.why)
            for one in found:
                received = _time_of(one.origin)
                oldest[one.stream] = min(received, oldest.get(one.stream, received))
            believed = await _believed(ledger, storage, done, found)
            adopted = await ledger.write(sidecar_import.adopt, believed, now)
            done.added += adopted.added + adopted.now_stored
            done.carried_on += adopted.carried_on
            for path in adopted.doubles:
                done.doubles.add(
                    path, "the ledger knows another file of this fax, or this name is taken"
                )
            done.sidecars += sum(one.visible for one in found)
            read += len(batch)
            progress(read)
    return oldest


async def _believed(
    ledger: Ledger, storage: Storage, done: Rebuilt, found: list[FoundSidecar]
) -> list[FoundSidecar]:
    """Hash the faxes that the ledger does not know, and leave out hand-overs that cannot continue.

    A visible sidecar without its unchanged image belongs to a stored fax, which is now *damaged*; an
    operator must repair it. If the image cannot be read, it may be whole: the fax is *unreadable*.
    """
    unknown = await ledger.read(sidecar_import.unknown, found)
    images = [(found[place].stored, found[place].origin.identity) for place in unknown]
    seen = await storage.look(images, thorough=storage.reading_is_free)
    findings = dict(zip(unknown, seen, strict=True))
    believed = []
    for place, one in enumerate(found):
        finding = findings.get(place)
        why = None if finding is None else finding.image_trouble
        unreadable = why is not None and finding is not None and finding.is_unreadable
        if one.visible:
            if why is not None:
                (done.unreadable if unreadable else done.damaged).add(one.stored.file, why)
            believed.append(replace(one, damage=why, unreadable=unreadable))
        elif finding is not None and why is None:
            believed.append(one)
    return believed


def _time_of(fax: Origin) -> datetime:
    """Return when it was received; ignore an impossible date, or rebuild would list decades."""
    received = fax.received_at
    if received is None or received.year not in POSSIBLE_YEARS:
        return fax.first_seen_at
    return received
