"""The storage as its callers see it: no file system, no blocking."""

from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from threading import Lock
from typing import Any

from poller.config.model import StorageConfig
from poller.documents import Document, StoredFile, not_whole
from poller.documents.checker import Killed
from poller.documents.checkers import Checkers
from poller.errors import StorageConflict, StorageUnusable
from poller.naming import folded
from poller.store import abilities, handover, inspection, marker, place, recovery, survey, syscalls
from poller.store.draft import Draft
from poller.store.handover import Handover
from poller.store.inspection import Finding
from poller.store.place import Durable, Place
from poller.store.sidecars import Identity
from poller.store.survey import Found, Unreadable
from poller.store.threads import Threads

_THREADS = 8
_OPEN_TRIES = 3
_KILLS = 2  # of checks in a row that say nothing of the document
_SURVEYED_AT_ONCE = 500


class Storage:
    """Where faxes are kept, under paths relative to it.

    Its user holds the lock of the state: nobody else writes dot-files here.
    """

    def __init__(self, config: StorageConfig) -> None:
        self._config = config
        self._id: str | None = None
        self._threads = Threads(config.directory, _THREADS)
        self._checkers = Checkers()
        self._killed: dict[str, int] = {}  # checks in a row of what was to be stored under a path
        self._durable = Durable()
        self._active: dict[str, str] = {}  # by what they are where case makes no difference
        self._turns = Lock()  # two threads must not both find a path idle
        self._delivered: dict[str, StoredFile] = {}
        self._doubts = 0
        self._proved: tuple[int, ...] | None = None  # the marker, and after how many doubts

    async def prepare(self, storage_id: str | None) -> str:
        """Tell which storage to use, as the ledger knows it; its id, to be kept in the ledger.

        None is a ledger that knows none: the directory is made if it is missing, tried, and marked
        if it is empty. Raises CannotStart then; a known storage is looked at by `check` alone.
        """
        if storage_id is None:
            storage_id = await self._threads.run(lambda: marker.found_storage(self._config))
        self._id = storage_id
        return storage_id

    async def check(self, storage_id: str | None = None, *, shortly: bool = False) -> str | None:
        """Look whether it can take a fax now: None, or the sentence why not.

        What a delivery needs of the file system is tried at the first look, when the marker is
        another file, after a look that found it unusable, and after `doubt`; never `shortly`.
        """
        self._id = storage_id or self._id
        try:
            await self._threads.run(lambda: self._check(shortly=shortly))
        except StorageUnusable as error:
            return str(error)
        return None

    def doubt(self) -> None:
        """A delivery failed for a reason of the storage: the next look tries everything again."""
        self._doubts += 1

    async def prove(self) -> str | None:
        """Try what a delivery needs of the file system, marked or not: None, or what it lacks."""

        def step() -> None:
            with marker.opened(self._config.directory) as root:
                abilities.prove(self._config, root)

        try:
            await self._threads.run(step)
        except (StorageUnusable, StorageConflict) as error:
            return str(error)
        return None

    async def check_documents(self) -> str | None:
        """Look whether documents can be checked now: None, or the sentence why not."""
        try:
            await self._threads.run(self._checkers.look)
        except StorageUnusable as error:
            return str(error)
        return None

    async def free_bytes(self) -> int | None:
        """Measure the space that is free for us; None while the directory cannot be looked at."""
        try:
            return await self._threads.run(self._free_bytes)
        except (StorageUnusable, StorageConflict):  # a stale handle is no fax's fault here
            return None

    async def tidy(self, directories: Iterable[str], keep: Collection[str]) -> int:
        """Remove dot-files that earlier runs left in these directories and those of `keep`; how many.

        `keep` are the pending paths: what `resume` can carry on from is kept for them.
        """
        wanted = list(directories)

        def step() -> int:
            with marker.proved(self._config.directory, self._id) as root:
                return recovery.tidy(root, wanted, pending=keep, active=set(self._active.values()))

        return await self._threads.run(step)

    async def resume(self, path: str, identity: Identity) -> StoredFile | None:
        """Bring a pending fax to its end without a download, if an earlier run got so far.

        Call `finish` when the row is stored. None: it has to be fetched, nothing is in the way, and
        its directory takes it, or can be made.
        """
        return await self._resumed(path, lambda at: recovery.resume(at, Identity(*identity)))

    async def resume_again(
        self,
        path: str,
        identity: Identity,
        *,
        held: StoredFile | None,
        content: dict[str, Any] | None,
    ) -> StoredFile | None:
        """Bring a fax that is to be fetched again to its end without a download, where that can be.

        `held` is what was stored and `content` its sidecar; see `recovery.resume_again`. Call
        `finish` when the row is stored. None: it has to be fetched, with a draft that replaces.
        """
        return await self._resumed(
            path, lambda at: recovery.resume_again(at, Identity(*identity), held, content)
        )

    async def _resumed(
        self, path: str, resume: Callable[[Place], StoredFile | None]
    ) -> StoredFile | None:
        """What this process made visible counts, although a consumer may have taken it meanwhile."""
        self._require_idle(path)
        if (known := self._delivered.get(path)) is not None:
            return known

        def step() -> StoredFile | None:
            with self._alone(path):
                try:
                    at = self._open(path, make=False)
                except FileNotFoundError:
                    with marker.opened(self._config.directory) as root:
                        place.require_takes_names(root, path)
                    return None
                try:
                    stored = resume(at)
                    if stored is None:
                        place.require_takes_names(at.fd, at.names.base)
                finally:
                    at.close()
                if stored is not None:
                    self._delivered[path] = stored
                return stored

        return await self._threads.run(step)

    def delivered(self, path: str) -> StoredFile | None:
        """Say what this process has made visible under `path` and nobody has finished yet."""
        return self._delivered.get(path)

    async def look(
        self, wanted: Sequence[tuple[StoredFile, Identity]], *, thorough: bool
    ) -> list[Finding]:
        """Compare the files of these faxes with what was stored, in one thread; changes nothing.

        Raises StorageUnusable when the storage cannot be proved to be the ledger's: what is not
        mounted was not taken away.
        """

        def step() -> list[Finding]:
            with marker.proved(self._config.directory, self._id) as root:
                return [
                    inspection.look(root, stored, identity, thorough=thorough)
                    for stored, identity in wanted
                ]

        return await self._threads.run(step)

    async def visible_files(self, directory: str) -> tuple[list[tuple[str, str]], list[str]]:
        """List one directory (relative, "" the topmost): its visible files, and those below it.

        Each file comes with the path of the fax that it can belong to.
        """

        def step() -> tuple[list[tuple[str, str]], list[str]]:
            with marker.proved(self._config.directory, self._id) as root:
                files, below = inspection.visible_files(root, directory)
            return list(inspection.paths_of(directory, files)), below

        return await self._threads.run(step)

    def draft(self, path: str, *, replacing: bool = False) -> Draft:
        """Begin a fax that is to be stored under `path`, without extension.

        With `replacing`, other files that have its names are damaged, and are put aside. Raises
        StorageConflict while a step of an earlier attempt hangs.
        """
        self._require_idle(path)
        directory, _, base = path.rpartition("/")
        dot_file = self._config.directory / directory / place.Names(base).dot_image
        return Draft(
            self._threads,
            dot_file,
            begin=lambda: self._begin(path, replacing=replacing),
            end=lambda: self._release(path),
            note=lambda stored: self._note(path, stored),
        )

    async def finish(self, path: str) -> None:
        """Unlink the dot-files of a fax whose row is stored; for one that was resumed."""
        self._note(path, None)

        def step() -> None:
            try:
                at = self._open(path, make=False)
            except FileNotFoundError:
                return
            try:
                handover.finish(at)
            finally:
                at.close()

        await self._threads.run(step)

    async def hash_of(self, file: str) -> str | None:
        """Hash a stored file (path with its extension): SHA-256 in hexadecimal, None if missing."""

        def step() -> str | None:
            try:
                at = self._open(file, make=False)
            except FileNotFoundError:
                return None
            try:
                return _digest(at)
            finally:
                at.close()

        return await self._threads.run(step)

    async def marked(self) -> str | None:
        """Read the id in the marker; None when there is none. Raises StorageUnusable."""

        def step() -> str | None:
            with marker.opened(self._config.directory) as root:
                return marker.read(root)

        return await self._threads.run(step)

    async def holds_faxes_of_a_ledger(self) -> bool:
        """Tell whether there is a marker and something visible beside it."""

        def step() -> bool:
            with marker.opened(self._config.directory) as root:
                visible = (name for name in syscalls.names(root) if not name.startswith("."))
                return marker.read(root) is not None and any(True for _ in visible)

        try:
            return await self._threads.run(step)
        except (StorageUnusable, StorageConflict):  # the next step that uses it says so
            return False

    async def sidecars(self) -> AsyncGenerator[list[Found | Unreadable], None]:
        """Give all sidecars, some at a time, however many there are; images are not looked at."""
        walk = survey.walk(self._config.directory, self._id)
        try:
            while batch := await self._threads.run(lambda: list(islice(walk, _SURVEYED_AT_ONCE))):
                yield batch
        finally:
            with suppress(ValueError):  # a step of it hangs still, and ends with its thread
                walk.close()

    async def troubles(self, found: Sequence[Found]) -> list[str | None]:
        """Hash the images of these sidecars; None for each that is whole, else what is wrong."""
        wanted = list(found)
        return await self._threads.run(
            lambda: survey.troubles(self._config.directory, self._id, wanted)
        )

    def close(self, *, wait: bool = False) -> None:
        """Let the threads end when they have nothing more to do; with `wait`, wait for them.

        No document is checked after it.
        """
        self._threads.close(wait=wait)
        self._checkers.close()

    def _check(self, *, shortly: bool) -> None:
        known, self._proved = self._proved, None
        try:
            with marker.proved(self._config.directory, self._id) as root:
                wanted = (*marker.identity(root), self._doubts)
                marker.check(self._config, root, thorough=known != wanted and not shortly)
                self._proved = known if shortly else wanted
        except OSError as error:
            raise marker.unusable(self._config.directory, error) from error

    def _free_bytes(self) -> int:
        with marker.opened(self._config.directory) as root:
            space = syscalls.space(root)
            return space.f_bavail * space.f_frsize

    def _require_idle(self, path: str) -> None:
        """A step that hung may continue at any moment: until it has ended, nobody else touches its files."""
        if folded(path) in self._active:
            raise StorageConflict(f"an earlier attempt at {path} still hangs in the storage")

    def _take(self, path: str) -> None:
        with self._turns:
            self._require_idle(path)
            self._active[folded(path)] = path

    def _release(self, path: str) -> None:
        self._active.pop(folded(path), None)

    @contextmanager
    def _alone(self, path: str) -> Iterator[None]:
        """Have the files of a fax for oneself, also when the caller has given up on a step that hangs."""
        self._take(path)
        try:
            yield
        finally:
            self._release(path)

    def _note(self, path: str, stored: StoredFile | None) -> None:
        self._killed.pop(path, None)
        if stored is None:
            self._delivered.pop(path, None)
        else:
            self._delivered[path] = stored

    def _begin(self, path: str, *, replacing: bool) -> Handover:
        self._take(path)
        try:
            return Handover(
                self._made(path), lambda fd: self._inspect(path, fd), replacing=replacing
            )
        except BaseException:
            self._release(path)
            raise

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

    def _made(self, path: str) -> Place:
        for _ in range(_OPEN_TRIES - 1):
            with suppress(FileNotFoundError):  # somebody removed the empty directory just now
                return self._open(path, make=True)
        return self._open(path, make=True)

    def _open(self, path: str, *, make: bool) -> Place:
        with marker.proved(self._config.directory, self._id) as root:
            consumers = self._config.consumers if make else None
            at = place.open_place(root, path, durable=self._durable, make=consumers)
        at.shown_as = str(self._config.directory / path.rpartition("/")[0])
        return at


def _digest(at: Place) -> str | None:
    try:
        fd = syscalls.open_file(at.names.base, at.fd)
    except FileNotFoundError:
        return None
    try:
        return handover.digest(fd)
    finally:
        syscalls.close(fd)
