"""The store as the event loop sees it: its verbs in threads, and one draft for each fax."""

from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import suppress
from itertools import islice
from threading import Lock
from typing import TypeVar

from poller.config.model import StorageConfig
from poller.documents import Document, StoredFile, not_whole
from poller.documents.checker import Killed
from poller.documents.checkers import Checkers
from poller.errors import StorageConflict, StorageUnusable
from poller.naming import folded
from poller.store.directory import Directory
from poller.store.draft import Berth, Draft
from poller.store.inspection import Finding
from poller.store.sidecars import Identity
from poller.store.store import Store
from poller.store.survey import FoundSidecar, Unreadable
from poller.store.threads import Threads

T = TypeVar("T")
_THREADS = 8
_KILLS = 2  # of checks in a row that say nothing of the document
_SURVEYED_AT_ONCE = 500


def store_of(config: StorageConfig) -> Store:
    """Give the store that a configuration names; nothing is asked of it yet."""
    return Directory(config)


class Storage:
    """Where faxes are kept, under paths relative to it.

    Its user holds the lock of the state: nobody else writes dot-files here.
    """

    def __init__(self, config: StorageConfig) -> None:
        self.store = store_of(config)
        self._threads = Threads(self.store.where(), _THREADS)
        self._checkers = Checkers()
        self._killed: dict[str, int] = {}  # checks in a row of what was to be stored under a path
        self._active: set[str] = set()  # by what they are where case makes no difference
        self._turns = Lock()  # two threads must not both find a path idle
        self._doubts = 0

    def where(self, file: str = "") -> str:
        """Say for people where a file is, or the store itself."""
        return self.store.where(file)

    async def ask(self, verb: Callable[[Store], T]) -> T:
        """Use a verb of the store in a thread; OSError becomes one of our errors."""
        return await self._threads.run(lambda: verb(self.store))

    async def prepare(self, store_id: str | None) -> str:
        """Tell which store to use, as the ledger knows it; its id, to be kept in the ledger.

        None is a ledger that knows none: the store is made if it is missing, tried, and marked if it
        is empty. Raises CannotStart then; a known store is looked at by `check` alone.
        """
        if store_id is None:
            store_id = await self.ask(lambda store: store.prepare())
        self.store.know(store_id)
        return store_id

    async def check(self, store_id: str | None = None, *, shortly: bool = False) -> str | None:
        """Look whether it can take a fax now: None, or the sentence why not.

        What a delivery needs is tried at the first look, when the marker is another file, after a
        look that found it unusable, and after `doubt`; never `shortly`.
        """
        if store_id is not None:
            self.store.know(store_id)
        try:
            await self.ask(lambda store: store.check(doubts=self._doubts, shortly=shortly))
        except StorageUnusable as error:
            return str(error)
        return None

    def doubt(self) -> None:
        """A delivery failed for a reason of the storage: the next look tries everything again."""
        self._doubts += 1

    async def check_documents(self) -> str | None:
        """Look whether documents can be checked now: None, or the sentence why not."""
        try:
            await self._threads.run(self._checkers.look)
        except StorageUnusable as error:
            return str(error)
        return None

    async def free_bytes(self) -> int | None:
        """Measure the space that is free for us; None while the store cannot be looked at."""
        try:
            return await self.ask(lambda store: store.room())
        except (StorageUnusable, StorageConflict):  # a stale handle is no fax's fault here
            return None

    async def tidy(self, paths: Iterable[str]) -> int:
        """Remove what earlier runs left hidden beside the faxes at these paths; how many files."""
        wanted = list(paths)
        return await self.ask(lambda store: store.tidy(wanted))

    async def look(
        self, wanted: Sequence[tuple[StoredFile, Identity]], *, thorough: bool
    ) -> list[Finding]:
        """Compare the files of these faxes with what was stored, in one thread; changes nothing.

        Raises StorageUnusable when the store cannot be proved to be the ledger's: what is not
        mounted was not taken away.
        """
        return await self.ask(
            lambda store: [
                store.look(stored, identity, thorough=thorough) for stored, identity in wanted
            ]
        )

    async def sidecars(self) -> AsyncGenerator[list[FoundSidecar | Unreadable], None]:
        """Give all sidecars, some at a time, however many there are; images are not looked at."""
        walk = self.store.walk()
        try:
            while batch := await self.ask(lambda _: list(islice(walk, _SURVEYED_AT_ONCE))):
                yield batch
        finally:
            with suppress(ValueError):  # a step of it hangs still, and ends with its thread
                walk.close()

    def draft(self, path: str, identity: Identity, *, replacing: bool = False) -> Draft:
        """Begin a fax that is to be stored under `path`, without extension."""
        berth = Berth(
            self.store,
            self._threads,
            inspect=lambda fd: self._inspect(path, fd),
            take=lambda: self._take(path),
            release=lambda: self._active.discard(folded(path)),
        )
        return Draft(berth, path, Identity(*identity), replacing=replacing)

    def close(self) -> None:
        """Let the threads end when they have nothing more to do; no document is checked after it."""
        self._threads.close()
        self._checkers.close()

    def _take(self, path: str) -> None:
        """A step that hung may continue at any moment: until it has ended, nobody else touches its files."""
        with self._turns:
            if folded(path) in self._active:
                raise StorageConflict(f"an earlier attempt at {path} still hangs in the storage")
            self._active.add(folded(path))

    def _inspect(self, path: str, fd: int) -> Document:
        """Blame the document only for the third killed process: memory may be short, and stay so."""
        try:
            document = self._checkers.inspect(fd)
        except Killed as killed:
            self._killed[path] = self._killed.get(path, 0) + 1
            if self._killed[path] <= _KILLS:
                raise
            return not_whole(killed.kind, "unchecked-crash")
        self._killed.pop(path, None)
        return document
