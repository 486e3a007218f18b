"""Look whether what should be on the disk is there: well, taken away, or damaged. Changes nothing."""

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from poller.documents import StoredFile
from poller.errors import StorageConflict
from poller.store import place, sidecars, syscalls
from poller.store.handover import digest
from poller.store.marker import NOT_OURS
from poller.store.place import Durable, Place
from poller.store.sidecars import Identity

_WHOLE_STORAGES_FAULT = {errno.ESTALE, errno.ENOTCONN, errno.EMFILE, errno.ENFILE, errno.ENOMEM}


class Condition(Enum):
    OK = "ok"
    TAKEN = "taken"
    DAMAGED = "damaged"


@dataclass(frozen=True)
class Finding:
    """`why` says how it is damaged. A fax `in_transit` looks like one that is being taken away now."""

    condition: Condition
    why: str | None = None
    in_transit: bool = False


OK, TAKEN = Finding(Condition.OK), Finding(Condition.TAKEN)
_GONE = Finding(
    Condition.DAMAGED, "the image is gone, but its sidecar is still there", in_transit=True
)


def look(root: int, stored: StoredFile, identity: Identity, *, thorough: bool) -> Finding:
    """Compare the files of one fax with what was stored; `thorough` reads the image and hashes it.

    Consumers take the image first and the sidecar last.
    """
    path = stored.file.removesuffix(sidecars.EXTENSIONS[stored.format])
    try:
        at = place.open_place(root, path, durable=Durable(), make=None)
    except FileNotFoundError:
        return TAKEN
    except StorageConflict as error:
        return Finding(Condition.DAMAGED, str(error))
    except OSError as error:  # one bad directory says nothing about the others
        return Finding(Condition.DAMAGED, _unreadable("directory", error))
    try:
        return _finding(at, stored, identity, thorough=thorough)
    finally:
        at.close()


def _finding(at: Place, stored: StoredFile, identity: Identity, *, thorough: bool) -> Finding:
    beside = _sidecar_trouble(at, stored, identity)
    image = _image_trouble(at, stored, thorough=thorough)
    if beside == _MISSING and image == _MISSING:
        return TAKEN
    if image == _MISSING:
        return _GONE if beside is None else Finding(Condition.DAMAGED, f"{beside}; no image")
    if beside == _MISSING:
        beside = "the sidecar is gone, but the image is still there"
    why = "; ".join(trouble for trouble in (image, beside) if trouble is not None)
    return Finding(Condition.DAMAGED, why) if why else OK


_MISSING = "missing"


def _image_trouble(at: Place, stored: StoredFile, *, thorough: bool) -> str | None:
    try:
        fd = syscalls.open_file(at.names.image(stored.format), at.fd)
    except OSError as error:
        return _unreadable("image", error)
    try:
        size = syscalls.status(fd).st_size
        if size != stored.bytes:
            return f"the image has {size} bytes instead of {stored.bytes}"
        if thorough and digest(fd) != stored.sha256:
            return "the content of the image has changed"
    except OSError as error:
        return _unreadable("image", error)
    finally:
        syscalls.close(fd)
    return None


def _sidecar_trouble(at: Place, stored: StoredFile, identity: Identity) -> str | None:
    try:
        fd = syscalls.open_file(at.names.sidecar, at.fd)
    except OSError as error:
        return _unreadable("sidecar", error)
    try:
        described = sidecars.decode(syscalls.read_all(fd), at.path)
    except OSError as error:
        return _unreadable("sidecar", error)
    finally:
        syscalls.close(fd)
    if described is None:
        return "the sidecar is not one that poller writes"
    if not described[0].is_same(identity):
        return "the sidecar is of another fax"
    if described[1].sha256 != stored.sha256:
        return "the sidecar describes another image"
    return None


def _unreadable(what: str, error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return _MISSING
    if error.errno in _WHOLE_STORAGES_FAULT:
        raise error
    return f"the {what} cannot be read: {error.strerror}"


def visible_files(root: int, directory: str) -> tuple[list[str], list[str]]:
    """List the visible files and directories of one directory of the storage, by name."""
    try:
        fd = place.open_directory(root, directory)
    except FileNotFoundError:  # it was removed just now
        return [], []
    except OSError as error:
        if directory == "" or error.errno in _WHOLE_STORAGES_FAULT:
            raise
        return [], []  # what the ledger knows of it is called damaged
    try:
        found = [name for name in syscalls.names(fd) if _is_visible(name, directory)]
        below = {name for name in found if syscalls.is_directory(name, fd)}
    finally:
        syscalls.close(fd)
    return sorted(set(found) - below), sorted(below)


def _is_visible(name: str, directory: str) -> bool:
    return not name.startswith(".") and not (directory == "" and name in NOT_OURS)


def paths_of(directory: str, names: list[str]) -> Iterator[tuple[str, str]]:
    """Give each file with the path of the fax that it can belong to, or itself."""
    for name in names:
        file = f"{directory}/{name}" if directory else name
        base, dot, extension = file.rpartition(".")
        is_ours = f"{dot}{extension}" in {".json", *sidecars.EXTENSIONS.values()}
        yield file, base if is_ours else file
