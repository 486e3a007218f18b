"""The store for the event loop: its verbs run in threads, and each fax gets a draft."""

import os
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from threading import Lock
from typing import TypeVar

from poller.config.model import Config
from poller.documents import Document, StoredFile, not_whole
from poller.documents.checker import Killed
from poller.documents.checkers import Checkers
from poller.errors import StorageConflict, StorageUnusable
from poller.naming import folded
from poller.store.directory import Directory
from poller.store.draft import Berth, Draft
from poller.store.inspection import Finding
from poller.store.runs import Runs
from poller.store.sidecars import Identity
from poller.store.store import Store
from poller.store.survey import FoundSidecar, Unreadable
from poller.store.threads import Threads

T = TypeVar("T")
_THREADS = 8
_KILLS = 2  # checks killed in a row that do not yet count against the document
_SURVEYED_AT_ONCE = 500


def store_of(
    settings: Config, environ: Mapping[str, str] = os.environ, runs: Runs | None = None
) -> Store:
    """Return the store that a configuration names, without asking it anything."""
    if settings.storage.url is None:
        return Directory(settings.storage, runs)
    from poller.store.bucket import BucketStore  # noqa: PLC0415 - needs the packages of an extra

    return BucketStore(settings.storage, settings.state_directory / "spool", environ)


def storage_of(
    settings: Config, environ: Mapping[str, str] = os.environ, runs: Runs | None = None
) -> "Storage":
    return Storage(store_of(settings, environ, runs), runs)


class Storage:
    """Where faxes are kept, at paths relative to it; `runs` says who else may write there."""

    def __init__(self, store: Store, runs: Runs | None = None) -> None:
        self.store = store
        self.runs = runs or Runs()
        self._threads = Threads(store.writes_to, _THREADS)
        self._checkers = Checkers()
        self._killed: dict[str, int] = {}  # by path: how many checks in a row were killed
        self._active: set[str] = set()  # folded as where case makes no difference
        self._turns = Lock()  # two threads must not both find a path free
        self._doubts = 0

    def where(self, file: str = "") -> str:
        """Return the full path of a file, or of the store, for people."""
        return self.store.where(file)

    @property
    def reading_is_free(self) -> bool:
        """Whether reading images costs nothing, so that looks may always be thorough."""
        return self.store.reading_is_free

    async def ask(self, verb: Callable[[Store], T]) -> T:
        """Use a verb of the store in a thread; OSError becomes one of our errors."""
        return await self._threads.run(lambda: verb(self.store))

    async def prepare(self, store_id: str | None) -> str:
        """Set which store to use, by its id from the ledger; return that id for the ledger to keep.

        With None, the ledger has no store yet: create a missing one, test it, and mark an empty
        one; raises CannotStart. Only `check` looks at a known store.
        """
        if store_id is None:
            store_id = await self.ask(lambda store: store.prepare())
        self.store.know(store_id)
        return store_id

    async def check(self, store_id: str | None = None, *, shortly: bool = False) -> str | None:
        """Tell whether the store can take a fax now: return None, or why not.

        The first look tests all that a delivery needs. So does a look at another marker, one after
        an unusable store, and one after `doubt`; never one with `shortly`.
        """
        if store_id is not None:
            self.store.know(store_id)
        try:
            await self.ask(lambda store: store.check(doubts=self._doubts, shortly=shortly))
        except StorageUnusable as error:
            return error.told
        return None

    def doubt(self) -> None:
        """Note that the storage made a delivery fail, so that the next look tests everything."""
        self._doubts += 1

    async def check_documents(self) -> str | None:
        """Tell whether documents can be checked now: return None, or why not."""
        try:
            await self._threads.run(self._checkers.look)
        except StorageUnusable as error:
            return error.told
        return None

    async def free_bytes(self) -> int | None:
        """Return the space that is free for us; None if poller cannot look at the store."""
        try:
            return await self.ask(lambda store: store.room())
        except (StorageUnusable, StorageConflict):  # do not blame a fax for a stale handle
            return None

    async def tidy(self, paths: Iterable[str]) -> int:
        """Remove what earlier runs left hidden beside the faxes at these paths; return how many files."""
        wanted = list(paths)
        return await self.ask(lambda store: store.tidy(wanted))

    async def look(
        self, wanted: Sequence[tuple[StoredFile, Identity]], *, thorough: bool
    ) -> list[Finding]:
        """Compare the files of these faxes with what was stored, in one thread; changes nothing.

        Raises StorageUnusable if the store does not prove to be the ledger's: files on an unmounted
        disk were not taken away.
        """
        return await self.ask(
            lambda store: [
                store.look(stored, identity, thorough=thorough) for stored, identity in wanted
            ]
        )

    async def sidecars(self) -> AsyncGenerator[list[FoundSidecar | Unreadable], None]:
        """Yield all sidecars in batches, however many there are, without a look at images."""
        walk = self.store.walk()
        try:
            while batch := await self.ask(lambda _: list(islice(walk, _SURVEYED_AT_ONCE))):
                yield batch
        finally:
            with suppress(ValueError):  # a step that still hangs ends with its thread
                walk.close()

    def draft(self, path: str, identity: Identity, *, replacing: bool = False) -> Draft:
        """Start a fax that will be stored at `path`, without extension."""
        berth = Berth(
            self.store,
            self._threads,
            inspect=lambda fd: self._inspect(path, fd),
            take=lambda: self._take(path),
            release=lambda: self._active.discard(folded(path)),
        )
        return Draft(berth, path, Identity(*identity), replacing=replacing)

    def close(self) -> None:
        """Let the threads end after their work; no document is checked afterwards."""
        self._threads.close()
        self._checkers.close()

    def _take(self, path: str) -> None:
        """Reserve a path: a hanging step may continue any time, so nobody else may touch its files."""
        with self._turns:
            if folded(path) in self._active:
                raise StorageConflict(f"an earlier attempt to store {path} still hangs")
            self._active.add(folded(path))

    def _inspect(self, path: str, fd: int) -> Document:
        """Blame the document only for the third killed process: memory may be short for a while."""
        try:
            document = self._checkers.inspect(fd)
        except Killed as killed:
            self._killed[path] = self._killed.get(path, 0) + 1
            if self._killed[path] <= _KILLS:
                raise
            return not_whole(killed.kind, "unchecked-crash")
        self._killed.pop(path, None)
        return document
