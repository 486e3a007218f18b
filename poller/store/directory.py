"""A store in a local directory."""

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial

from poller.config.model import StorageConfig
from poller.documents import Staged, StoredFile, StoredFormat
from poller.errors import StorageConflict
from poller.store import abilities, folder, inspection, marker, publish, survey, syscalls
from poller.store.folder import Durable, Folder
from poller.store.inspection import Finding
from poller.store.runs import Runs
from poller.store.sidecars import EXTENSIONS, Identity, path_of
from poller.store.spool import Spool
from poller.store.survey import FoundSidecar, Unreadable

_OPEN_TRIES = 3
_TIDIED_MAX = 10_000


class Directory:  # more than 20 methods: the verbs of a store
    """The verbs of a store, for a directory.

    A ticket names the staged sidecar and its directory. Where several runs share the store, another
    one may have adopted a placed image at any time, so it is never taken back.
    """

    reading_is_free = True

    def __init__(self, config: StorageConfig, runs: Runs | None = None) -> None:
        self._config = config
        self.writes_to = str(config.directory)
        self._id: str | None = None
        self._runs = runs or Runs()
        self._durable = Durable()
        self._tidied: set[str] = set()
        self._proved: tuple[int, ...] | None = None  # the marker, and the number of doubts then

    def where(self, file: str = "") -> str:
        return str(self._config.directory / file)

    # -- the store as a whole --------------------------------------------------------------------

    def know(self, store_id: str | None) -> None:
        self._id = store_id

    def prepare(self) -> str:
        return marker.found_storage(self._config)

    def check(self, *, doubts: int, shortly: bool) -> None:
        known, self._proved = self._proved, None
        try:
            with self._root() as root:
                wanted = (*marker.identity(root), doubts)
                marker.check(self._config, root, thorough=known != wanted and not shortly)
                self._proved = known if shortly else wanted
        except OSError as error:
            raise marker.unusable(self._config.directory, error) from error

    def prove(self) -> None:
        with marker.opened(self._config.directory) as root:
            abilities.prove(self._config, root)

    def marked(self) -> tuple[str | None, bool]:
        with marker.opened(self._config.directory) as root:
            visible = any(not name.startswith(".") for name in syscalls.names(root))
            return marker.read(root), visible

    def room(self) -> int:
        with marker.opened(self._config.directory) as root:
            space = syscalls.space(root)
            return space.f_bavail * space.f_frsize

    def tidy(self, paths: Iterable[str]) -> int:
        if self._runs.shared:  # runs have ended since the last time
            self._tidied.clear()
        with self._root() as root:
            removed = marker.clear_probes(root)
            for directory in sorted({path.rpartition("/")[0] for path in paths} | {""}):
                with (
                    suppress(FileNotFoundError, PermissionError, StorageConflict),
                    closing(folder.open_folder(root, f"{directory}/x".lstrip("/"))) as at,
                ):
                    removed += self._tidy(at.fd, directory)
        return removed

    # -- one fax on its way ----------------------------------------------------------------------

    def admit(self, path: str, *, although_taken: bool = False) -> bool:
        try:
            with closing(self._open(path)) as at:
                is_free = not any(syscalls.is_there(name, at.fd) for name in at.names.visible)
                if is_free or although_taken:
                    folder.require_takes_names(at.fd, at.names.base)
                return is_free
        except FileNotFoundError:
            with self._root() as root:
                folder.require_takes_names(root, path)
            return True

    def spool(self, path: str) -> Spool:
        for _ in range(_OPEN_TRIES - 1):
            with suppress(FileNotFoundError):  # something removed the empty directory meanwhile
                return Spool(self._open(path, make=True))
        return Spool(self._open(path, make=True))

    def read_back(self, path: str, form: StoredFormat | None = None) -> Spool | None:
        try:
            at = self._open(path)
        except FileNotFoundError:
            return None
        for one in EXTENSIONS if form is None else [form]:
            spool = Spool(at, one, is_placed=True)
            try:
                spool.read_back()
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno not in publish.FOREIGN:
                    at.close()
                    raise
            else:
                return spool
        at.close()
        return None

    def place(self, spool: Spool, stored: StoredFile, identity: Identity) -> None:
        spool.is_ours = publish.place(spool.folder, stored, identity)
        spool.is_placed = True

    def stage(self, spool: Spool, stored: StoredFile, sidecar: bytes | None) -> str:
        at = spool.folder
        try:
            name = publish.stage(at, at.names.image(stored.format), sidecar)
        except Exception:
            with suppress(OSError):
                self.take_back(spool, stored)
            raise
        return f"{_number(at)}/{name}"

    def publish(self, spool: Spool, staged: Staged, identity: Identity) -> bool:
        name = staged.ticket.partition("/")[2]
        return publish.publish(spool.folder, name, staged.file, identity)

    def take_back(self, spool: Spool, stored: StoredFile) -> None:
        at = spool.folder
        syscalls.unlink(at.names.dot_sidecar, at.fd)
        if spool.is_ours and not self._runs.shared:
            publish.hide_image(at, stored)

    def discard(self, stored: StoredFile) -> None:
        with suppress(FileNotFoundError), closing(self._open(path_of(stored))) as at:
            syscalls.unlink(at.names.image(stored.format), at.fd)

    def revoke(self, path: str, ticket: str) -> bool:
        number, _, name = ticket.partition("/")
        try:
            at = self._open(path)
        except FileNotFoundError:
            return False
        with closing(at):
            if folder.is_dot_file(name):
                syscalls.unlink(name, at.fd)
            return number == _number(at)

    # -- what is there -----------------------------------------------------------------------------

    def look(self, stored: StoredFile, identity: Identity, *, thorough: bool) -> Finding:
        with self._root() as root:
            return inspection.look(root, stored, identity, thorough=thorough)

    def secure(self, stored: StoredFile) -> None:
        with closing(self._open(path_of(stored))) as at:
            for name in (at.names.image(stored.format), at.names.sidecar):
                with suppress(FileNotFoundError), syscalls.reading(name, at.fd) as fd:
                    syscalls.sync_file(fd)  # a consumer is taking a missing one
            syscalls.sync_directory(at.fd)
            at.sync_parents()
            if stored.format == "json":  # after a link it may have both names
                syscalls.unlink(at.names.image("json"), at.fd)

    def read(self, file: str) -> bytes | None:
        try:
            with (
                self._root() as root,
                closing(folder.open_folder(root, file)) as at,
                syscalls.reading(at.names.base, at.fd) as fd,
            ):
                return syscalls.read_all(fd)
        except FileNotFoundError:
            return None

    def put_aside(self, path: str, stored: StoredFile | None, identity: Identity) -> None:
        with suppress(FileNotFoundError), closing(self._open(path)) as at:
            if stored is None:
                publish.put_foreign_aside(at)
            else:
                publish.put_aside(at, stored, identity)

    def visible_files(self, directory: str) -> tuple[list[tuple[str, str]], list[str]]:
        with self._root() as root:
            return inspection.visible_files(root, directory)

    def walk(self) -> Generator[FoundSidecar | Unreadable, None, None]:
        with self._root() as root:
            yield from survey.walk(root)

    # -- directories -------------------------------------------------------------------------------

    @contextmanager
    def _root(self) -> Iterator[int]:
        with marker.proved(self._config.directory, self._id) as root:
            yield root

    def _open(self, path: str, *, make: bool = False) -> Folder:
        directory = path.rpartition("/")[0]
        with self._root() as root:
            consumers = self._config.consumers if make else None
            at = folder.open_folder(
                root, path, run=self._runs.mark, durable=self._durable, make=consumers
            )
        at.shown_as = self.where(directory)
        try:
            self._tidy(at.fd, directory)
        except BaseException:
            at.close()
            raise
        return at

    def _tidy(self, fd: int, directory: str) -> int:
        """Remove the dot-files of runs that have ended, once per directory."""
        if directory in self._tidied:
            return 0
        removed = 0
        for name in syscalls.names(fd):
            if (mark := folder.run_of(name)) and self._runs.is_over(
                mark, partial(syscalls.age_s, name, fd)
            ):
                removed += syscalls.unlink(name, fd)
        if len(self._tidied) > _TIDIED_MAX:
            self._tidied.clear()
        self._tidied.add(directory)
        return removed


def _number(at: Folder) -> str:
    """Identify a directory even if a new mount gives its device another number."""
    return f"{syscalls.status(at.fd).st_ino}:{syscalls.generation(at.fd)}"
