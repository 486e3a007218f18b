"""The storage directory: whether it is the one the ledger knows, and whether it can take a fax."""

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from poller.config.model import StorageConfig
from poller.config.values import size_text
from poller.errors import CannotStart, NotMounted, StorageFull, StorageUnusable
from poller.store import abilities, folder, syscalls

MARKER = ".poller-storage"
_MARKER_PART = ".poller-storage.part"
_ID_BYTES_MAX = 200
NOT_OURS = frozenset({"lost+found"})


@contextmanager
def opened(directory: Path) -> Iterator[int]:
    """Hold the storage directory open; StorageUnusable says why that is impossible."""
    try:
        fd = syscalls.open_root(str(directory))
    except FileNotFoundError as error:
        raise NotMounted(f"the storage directory {directory} does not exist") from error
    except NotADirectoryError as error:
        raise StorageUnusable(f"{directory} is not a directory") from error
    except OSError as error:
        raise unusable(directory, error) from error
    with syscalls.held(fd):
        yield fd


@contextmanager
def proved(directory: Path, storage_id: str | None) -> Iterator[int]:
    """Hold it open once its marker has `storage_id`: someone may unmount a disk at any moment."""
    with opened(directory) as root:
        found = read(root)
        if found is None:
            raise NotMounted(
                f"the storage directory {directory} has no marker {MARKER}: is its disk mounted?"
            )
        if found != storage_id:
            raise NotMounted(
                f"the marker {MARKER} in {directory} belongs to another storage than this ledger's"
            )
        yield root


def unusable(directory: Path | str, error: OSError) -> StorageUnusable:
    why = os.strerror(error.errno) if error.errno else str(error)
    kind = StorageFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageUnusable
    what_to_do = "; check its owner and mode" if isinstance(error, PermissionError) else ""
    message = f"the storage directory {directory} cannot be used: {why}"
    return kind(message, fault=why + what_to_do)


def read(root: int) -> str | None:
    """Read the id in the marker; return None if there is no marker."""
    try:
        with syscalls.reading(MARKER, root) as fd:
            data = syscalls.read_beginning(fd, _ID_BYTES_MAX)
    except FileNotFoundError:
        return None
    return data.decode(errors="replace").strip()


def identity(root: int) -> tuple[int, int]:
    """Return what identifies the marker: only its device where inode numbers change with every look."""
    one, again = syscalls.status_of(MARKER, root), syscalls.status_of(MARKER, root)
    return one.st_dev, one.st_ino if one.st_ino == again.st_ino else 0


def check(config: StorageConfig, root: int, *, thorough: bool) -> None:
    """Raise StorageUnusable or OSError if the directory cannot take a fax now.

    `thorough` tries all that a delivery does; otherwise only try to write a file. If that fails as
    it does on a file system that lacks an ability, try everything to find out which.
    """
    require_room(config, config.directory, root)
    if thorough or not _takes_a_file(root):
        abilities.prove(config, root)


def require_room(config: StorageConfig, directory: Path, at: int) -> None:
    """Raise StorageFull if `directory`, open as `at`, has no room for faxes that arrive."""
    space = syscalls.space(at)
    free = space.f_bavail * space.f_frsize
    if free < config.min_free:
        raise StorageFull(
            f"only {size_text(free)} free in {directory}, "
            f"less than the {size_text(config.min_free)} of min_free"
        )
    if space.f_files and not space.f_favail:
        raise StorageFull(f"cannot create a file in {directory}: no inode is free")


def _takes_a_file(root: int) -> bool:
    try:
        _try_a_file(root)
    except OSError as error:
        if error.errno not in abilities.CANNOT:
            raise
        return False
    return True


def _try_a_file(root: int) -> None:
    name = f"{abilities.PROBE}{syscalls.process_id()}"
    syscalls.unlink(name, root)
    try:  # a dying disk accepts writes and fails at the sync, in every fax
        syscalls.create_synced(name, root, b"x")
    finally:
        syscalls.unlink(name, root)


# The first start


def found_storage(config: StorageConfig) -> str:
    """Pair a ledger that has no storage yet with this directory; return the directory's id.

    Creates a missing directory and marks an empty one. Accepts an existing marker: either its
    ledger was lost, or the start that made it was interrupted. Raises CannotStart.
    """
    try:
        _make_root(config)
        with opened(config.directory) as root:
            clear_probes(root)
            abilities.prove(config, root)
            return _marked(config.directory, root)
    except StorageUnusable as error:
        raise CannotStart(error.told) from error
    except OSError as error:
        raise CannotStart(str(unusable(config.directory, error))) from error


def _make_root(config: StorageConfig) -> None:
    directory = config.directory.absolute()
    missing: list[str] = []
    while not directory.exists():
        missing.append(directory.name)
        directory = directory.parent
    _sync_name(directory)
    at = syscalls.open_root(str(directory))
    try:
        for name in reversed(missing):
            child, _ = folder.enter(at, name, folder.DIRECTORY_MODES[config.consumers])
            _sync_if_able(at)
            syscalls.close(at)
            at = child
    finally:
        syscalls.close(at)


def _sync_name(directory: Path) -> None:
    """Sync a directory's name: an earlier start may have been killed after making it.

    If this user may not open the parent, this user did not make the directory.
    """
    with (
        suppress(PermissionError),
        syscalls.held(syscalls.open_root(str(directory.parent))) as parent,
    ):
        _sync_if_able(parent)


def _sync_if_able(fd: int) -> None:
    """Sync if the file system can; the next step tests the storage's own and names what is missing."""
    try:
        syscalls.sync_directory(fd)
    except syscalls.SyncError as error:
        if error.errno not in abilities.CANNOT:
            raise


def _marked(directory: Path, root: int) -> str:
    found = read(root)
    if found:
        syscalls.sync_directory(root)
        return found
    names = set(syscalls.names(root)) - NOT_OURS - {_MARKER_PART}
    strangers = sorted(name for name in names if not name.startswith(abilities.PROBE))
    if strangers:
        raise CannotStart(
            f"the storage directory {directory} is not empty (it contains {strangers[0]!r}) "
            f"and has no marker {MARKER}: start a new storage in an empty directory"
        )
    return _mark(root)


def _mark(root: int) -> str:
    """Create the marker, complete or not at all."""
    storage_id = str(uuid.uuid4())
    syscalls.unlink(_MARKER_PART, root)
    syscalls.create_synced(_MARKER_PART, root, f"{storage_id}\n".encode())
    syscalls.move(_MARKER_PART, MARKER, root, synced=True)
    return storage_id


def clear_probes(root: int) -> int:
    """Remove what interrupted probes, and an interrupted creation of the marker, have left."""
    return abilities.clear(root) + syscalls.unlink(_MARKER_PART, root)
