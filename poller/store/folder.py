"""Where a fax belongs: its directory, opened without leaving the storage, and its names."""

import errno
import hashlib
import os
import stat
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Literal

from poller.documents import StoredFormat
from poller.errors import ALONE, StorageConflict
from poller.store import syscalls
from poller.store.sidecars import EXTENSIONS

Consumers = Literal["read", "move"]
DIRECTORY_MODES: dict[Consumers, int] = {"read": 0o750, "move": 0o2770}
IMAGE_PART = ".image.part"
SIDECAR_PART = ".json.part"
COMES_ALONE = "alone"  # in place of a run: it outlives the one that made it
DAMAGED = ".damaged-"
_NAME_MAX = 255
_NO_DIRECTORY = {errno.ELOOP, errno.ENOTDIR}


@dataclass(frozen=True)
class Names:
    """The names that a fax can have inside its directory; `base` is the last part of its path.

    Those of its dot-files bear the id of the run that makes them.
    """

    base: str
    run: str = ""

    @property
    def dot_image(self) -> str:
        return self._dot_name(IMAGE_PART)

    @property
    def dot_sidecar(self) -> str:
        return self._dot_name(SIDECAR_PART)

    def _dot_name(self, suffix: str) -> str:
        name = f".{self.base}.{self.run}{suffix}"
        if len(os.fsencode(name)) <= _NAME_MAX:
            return name
        return f".{_shortened(self.base)}.{self.run}{suffix}"

    @property
    def sidecar(self) -> str:
        return self.base + ".json"

    @property
    def visible(self) -> list[str]:
        return [self.sidecar, *map(self.image, EXTENSIONS)]

    def image(self, form: StoredFormat) -> str:
        """Name the image, or what a sidecar that comes alone is until it is published.

        That one stays hidden, and goes only by getting the sidecar's name: so it tells, as an image
        does, that nobody has taken the fax yet.
        """
        if form == "json":
            return Names(self.base, COMES_ALONE).dot_sidecar
        return self.base + EXTENSIONS[form]

    def damaged(self, name: str, number: int) -> str:
        """Name what is kept of a damaged file: `.damaged-<name>`, or one that is still free."""
        kept = f"{DAMAGED}{name}" if number == 1 else f"{DAMAGED}{number}-{name}"
        if len(os.fsencode(kept)) <= _NAME_MAX:
            return kept
        return f"{DAMAGED}{number}-{_shortened(name)}{name[-5:]}"


def _shortened(name: str) -> str:
    return f"{name[:40]}~{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"


def is_dot_file(name: str, *, of_run: str | None = None) -> bool:
    """Tell a dot-file that a delivery made and may leave; with `of_run`, one of this run alone."""
    run = "" if of_run is None else f".{of_run}"
    is_placed = name.endswith(f".{COMES_ALONE}{SIDECAR_PART}")
    is_ours = name.startswith(".") and name.endswith((run + IMAGE_PART, run + SIDECAR_PART))
    return is_ours and not is_placed


def staged_base(name: str) -> str:
    """Give the last part of the path of the fax whose sidecar is staged under `name`."""
    return name[1:].removesuffix(SIDECAR_PART).rpartition(".")[0]


def split(path: str) -> tuple[list[str], str]:
    """Split a path into directories and last part; StorageConflict unless it stays inside."""
    *directories, base = path.split("/")
    if not all(map(_is_inside, [*directories, base])):
        raise StorageConflict(f"{path!r} is no path inside the storage")
    return directories, base


def _is_inside(part: str) -> bool:
    return bool(part) and not part.startswith(".") and "\0" not in part


@dataclass
class Durable:
    """Directories whose own name in their parent this process has synced, by their path.

    One that another process made, or that this one made for another fax, may still be lost with
    everything in it at a power loss: it is synced once before anything in it counts as stored.
    """

    known: dict[str, tuple[int, int]] = field(default_factory=dict)

    def holds(self, path: str, status: os.stat_result) -> bool:
        return self.known.get(path) == (status.st_dev, status.st_ino)

    def add(self, path: str, status: os.stat_result) -> None:
        if len(self.known) > 10_000:
            self.known.clear()
        self.known[path] = (status.st_dev, status.st_ino)


@dataclass
class Folder:
    """The open directory of one fax; `shown_as` is where others find it, "" where nobody looks."""

    path: str
    names: Names
    fd: int
    durable: Durable
    parents: list[tuple[int, str, os.stat_result]] = field(default_factory=list)
    shown_as: str = ""

    def is_moved(self, name: str) -> bool:
        """Tell whether another directory, or none, has its path now; `name` is a file in ours."""
        if not self.shown_as:
            return False
        try:
            if syscalls.is_at(f"{self.shown_as}/.", self.fd):
                return False
            # On some shares a file has another inode number at each look.
            syscalls.status_at(f"{self.shown_as}/{name}")
        except (FileNotFoundError, NotADirectoryError):
            return True
        return False

    def sync_parents(self) -> None:
        """Make the names of all directories on the way durable."""
        while self.parents:
            fd, path, status = self.parents[0]
            syscalls.sync_directory(fd)
            self.durable.add(path, status)
            del self.parents[0]
            syscalls.close(fd)

    def close(self) -> None:
        for fd, _, _ in self.parents:
            syscalls.close(fd)
        self.parents.clear()
        syscalls.close(self.fd)


def open_folder(
    root: int,
    path: str,
    *,
    run: str = "",
    durable: Durable | None = None,
    make: Consumers | None = None,
) -> Folder:
    """Open the directory of the fax at `path`; with `make`, missing directories are made.

    Raises FileNotFoundError when they are missing and not to be made, StorageConflict when one is
    a symbolic link or a file. `root` stays open.
    """
    directories, base = split(path)
    durable = durable or Durable()
    known = _known(directories, root, durable)
    if known is not None:
        return Folder(path, Names(base, run), known, durable)
    folder = Folder(path, Names(base, run), syscalls.open_directory(".", root), durable)
    try:
        for depth, name in enumerate(directories, start=1):
            _descend(folder, name, "/".join(directories[:depth]), make)
    except BaseException:
        folder.close()
        raise
    return folder


def require_takes_names(root: int, path: str) -> None:
    """Raise PermissionError where nothing may be made in the directory of the fax at `path`, from `root` on.

    Where it is missing, the nearest one above it counts. It makes nothing and holds nothing open.
    """
    directories, _ = split(path)
    way = ["/".join(directories[:depth]) for depth in range(len(directories), 0, -1)]
    nearest = next((one for one in way if syscalls.is_there(one, root)), ".")
    if not syscalls.takes_names(nearest, root):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), nearest)


def _known(directories: list[str], root: int, durable: Durable) -> int | None:
    """Open a directory at once that was gone into step by step before.

    None unless it and all on the way to it are the same as then.
    """
    paths = ["/".join(directories[:depth]) for depth in range(1, len(directories) + 1)]
    if not paths or paths[-1] not in durable.known:
        return None
    try:
        if not all(durable.holds(path, syscalls.status_of(path, root)) for path in paths):
            return None
        fd = syscalls.open_directory(paths[-1], root)
    except OSError:  # a walk step by step finds out what it is
        return None
    if durable.holds(paths[-1], syscalls.status(fd)):
        return fd
    syscalls.close(fd)
    return None


def open_directory(root: int, path: str) -> int:
    """Open a directory of the storage; `path` is empty for the storage directory itself."""
    with closing(open_folder(root, f"{path}/x" if path else "x")) as found:
        return syscalls.open_directory(".", found.fd)


def _descend(folder: Folder, name: str, path: str, make: Consumers | None) -> None:
    try:
        child, made = enter(folder.fd, name, None if make is None else DIRECTORY_MODES[make])
    except OSError as error:
        if error.errno in _NO_DIRECTORY:
            raise StorageConflict(f"the directory {path} {ALONE}: it is not a directory") from error
        raise
    status = syscalls.status(child)
    if made or not folder.durable.holds(path, status):
        folder.parents.append((folder.fd, path, status))
    else:
        syscalls.close(folder.fd)
    folder.fd = child


def enter(at: int, name: str, mode: int | None) -> tuple[int, bool]:
    """Open a directory, made with `mode` if it is missing; also tells whether it was made."""
    try:
        return _existing(at, name, mode), False
    except FileNotFoundError:
        if mode is None:
            raise
    with suppress(FileExistsError):  # another fax was quicker
        syscalls.make_directory(name, at, mode)
    return _existing(at, name, mode), True


def _existing(at: int, name: str, mode: int | None) -> int:
    fd = syscalls.open_directory(name, at)
    try:
        if mode is not None and _lacks_its_mode(fd, mode):
            # Keeps a set-group-id bit that came from the parent: the files' group rests on it.
            syscalls.set_mode(fd, mode | (syscalls.status(fd).st_mode & stat.S_ISGID))
    except BaseException:
        syscalls.close(fd)
        raise
    return fd


def _lacks_its_mode(fd: int, mode: int) -> bool:
    """Tell a directory that was made just now, or whose maker was killed at once, by its emptiness.

    One that is in use keeps the mode that its operator gave it.
    """
    status = syscalls.status(fd)
    return (
        stat.S_IMODE(status.st_mode) & mode != mode
        and status.st_uid == syscalls.effective_user()
        and not syscalls.names(fd)
    )
