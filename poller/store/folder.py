"""The directory of a fax, opened without leaving the storage, and the names of its files."""

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
COMES_ALONE = "alone"  # instead of a run's id: the file outlives the run that made it
DAMAGED = ".damaged-"
_NAME_MAX = 255
_NO_DIRECTORY = {errno.ELOOP, errno.ENOTDIR}


@dataclass(frozen=True)
class Names:
    """The names that a fax can have in its directory; `base` is the last part of its path.

    Names of dot-files contain the id of the run that makes them.
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
        """Return the name of the image, or of an unpublished sidecar that has no image.

        Such a sidecar stays hidden until it gets its visible name. While it is hidden, it proves
        that nobody has taken the fax, just as an image does.
        """
        if form == "json":
            return Names(self.base, COMES_ALONE).dot_sidecar
        return self.base + EXTENSIONS[form]

    def damaged(self, name: str, number: int) -> str:
        """Return the name under which to keep a damaged file: `.damaged-<name>`, or one that is free."""
        kept = f"{DAMAGED}{name}" if number == 1 else f"{DAMAGED}{number}-{name}"
        if len(os.fsencode(kept)) <= _NAME_MAX:
            return kept
        return f"{DAMAGED}{number}-{_shortened(name)}{name[-5:]}"


def _shortened(name: str) -> str:
    return f"{name[:40]}~{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"


def is_dot_file(name: str) -> bool:
    """Tell whether a delivery made this dot-file and may have left it."""
    is_placed = name.endswith(f".{COMES_ALONE}{SIDECAR_PART}")
    is_ours = name.startswith(".") and name.endswith((IMAGE_PART, SIDECAR_PART))
    return is_ours and not is_placed


def run_of(name: str) -> str | None:
    """Return the id of the run that made a dot-file, or None if no delivery left it."""
    if not is_dot_file(name):
        return None
    suffix = IMAGE_PART if name.endswith(IMAGE_PART) else SIDECAR_PART
    return name.removesuffix(suffix).rpartition(".")[2]


def staged_base(name: str) -> str:
    """Return the last part of the path of the fax whose sidecar is staged as `name`."""
    return name[1:].removesuffix(SIDECAR_PART).rpartition(".")[0]


def split(path: str) -> tuple[list[str], str]:
    """Split a path into directories and last part; raises StorageConflict if it leads outside."""
    *directories, base = path.split("/")
    if not all(map(_is_inside, [*directories, base])):
        raise StorageConflict(f"{path!r} is not a path inside the storage")
    return directories, base


def _is_inside(part: str) -> bool:
    return bool(part) and not part.startswith(".") and "\0" not in part


@dataclass
class Durable:
    """The directories, by path, whose names this process has synced in their parents.

    A directory that another process made, or this one for another fax, may vanish with its contents
    at a power failure. So sync it once before any fax in it counts as stored.
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
    """The open directory of one fax; `shown_as` is its path for others, "" if nobody looks there."""

    path: str
    names: Names
    fd: int
    durable: Durable
    parents: list[tuple[int, str, os.stat_result]] = field(default_factory=list)
    shown_as: str = ""

    def is_moved(self, name: str) -> bool:
        """Tell whether its path now leads to another directory or none; `name` is a file in this one."""
        if not self.shown_as:
            return False
        try:
            if syscalls.is_at(f"{self.shown_as}/.", self.fd):
                return False
            # On some shares, the inode number of a file changes with every look.
            syscalls.status_at(f"{self.shown_as}/{name}")
        except (FileNotFoundError, NotADirectoryError):
            return True
        return False

    def sync_parents(self) -> None:
        """Make the names of all parent directories durable."""
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
    """Open the directory of the fax at `path`; with `make`, create missing directories.

    Raises FileNotFoundError if one is missing and not to be made, StorageConflict if one is a
    symbolic link or a file. Leaves `root` open.
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
    """Raise PermissionError if nothing may be created in the directory of the fax at `path`.

    If that directory is missing, the nearest parent below `root` counts. Creates nothing and leaves
    nothing open.
    """
    directories, _ = split(path)
    way = ["/".join(directories[:depth]) for depth in range(len(directories), 0, -1)]
    nearest = next((one for one in way if syscalls.is_there(one, root)), ".")
    if not syscalls.takes_names(nearest, root):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), nearest)


def _known(directories: list[str], root: int, durable: Durable) -> int | None:
    """Open a directory in one step if it was opened step by step before.

    Returns None unless it and all its parents are still the same.
    """
    paths = ["/".join(directories[:depth]) for depth in range(1, len(directories) + 1)]
    if not paths or paths[-1] not in durable.known:
        return None
    try:
        if not all(durable.holds(path, syscalls.status_of(path, root)) for path in paths):
            return None
        fd = syscalls.open_directory(paths[-1], root)
    except OSError:  # opening it step by step will find the reason
        return None
    if durable.holds(paths[-1], syscalls.status(fd)):
        return fd
    syscalls.close(fd)
    return None


def open_directory(root: int, path: str) -> int:
    """Open a directory of the storage; an empty `path` means the storage directory."""
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
    """Open a directory; create it with `mode` if it is missing. Also return whether it was created."""
    try:
        return _existing(at, name, mode), False
    except FileNotFoundError:
        if mode is None:
            raise
    with suppress(FileExistsError):  # another fax was faster
        syscalls.make_directory(name, at, mode)
    return _existing(at, name, mode), True


def _existing(at: int, name: str, mode: int | None) -> int:
    fd = syscalls.open_directory(name, at)
    try:
        if mode is not None and _lacks_its_mode(fd, mode):
            # Keep a set-group-id bit from the parent: it gives the files their group.
            syscalls.set_mode(fd, mode | (syscalls.status(fd).st_mode & stat.S_ISGID))
    except BaseException:
        syscalls.close(fd)
        raise
    return fd


def _lacks_its_mode(fd: int, mode: int) -> bool:
    """Tell whether a directory was just made, or its maker was killed at once: then it is empty.

    A directory in use keeps the mode that its operator gave it.
    """
    status = syscalls.status(fd)
    return (
        stat.S_IMODE(status.st_mode) & mode != mode
        and status.st_uid == syscalls.effective_user()
        and not syscalls.names(fd)
    )
