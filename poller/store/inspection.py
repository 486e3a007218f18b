"""Look whether what should be on the disk is there: well, taken away, or damaged. Changes nothing."""

import errno
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from enum import Enum

from poller.documents import StoredFile
from poller.errors import StorageConflict
from poller.store import sidecars, syscalls
from poller.store.folder import Folder, open_directory, open_folder
from poller.store.marker import NOT_OURS
from poller.store.publish import digest
from poller.store.sidecars import Identity, path_of

_WHOLE_STORAGES_FAULT = {errno.ESTALE, errno.ENOTCONN, errno.EMFILE, errno.ENFILE, errno.ENOMEM}


class Condition(Enum):
    OK = "ok"
    TAKEN = "taken"
    DAMAGED = "damaged"


_MISSING = "missing"


@dataclass(frozen=True)
class Finding:
    """What is wrong with a fax's image and its sidecar; None: nothing."""

    image: str | None = None
    sidecar: str | None = None

    @property
    def is_well(self) -> bool:
        return self.image is self.sidecar is None

    @property
    def is_gone(self) -> bool:
        return self.image == self.sidecar == _MISSING

    @property
    def condition(self) -> Condition:
        if self.is_well:
            return Condition.OK
        return Condition.TAKEN if self.is_gone else Condition.DAMAGED

    @property
    def is_published(self) -> bool:
        """Whether its own sidecar is there."""
        return self.sidecar is None

    @property
    def is_placed(self) -> bool:
        """Whether its image is there, and no sidecar."""
        return self.image is None and self.sidecar == _MISSING

    @property
    def has_image(self) -> bool:
        """Whether an image is there, its own or another."""
        return self.image != _MISSING

    @property
    def in_transit(self) -> bool:
        """Whether it looks like one that is being taken away now: the image first."""
        return self.image == _MISSING and self.sidecar is None

    @property
    def why(self) -> str | None:
        """Say how it is damaged."""
        if self.condition is not Condition.DAMAGED:
            return None
        if self.in_transit:
            return "the image is gone, but its sidecar is still there"
        if self.image == _MISSING:
            return f"{self.sidecar}; no image"
        beside = self.sidecar
        if beside == _MISSING:
            beside = "the sidecar is gone, but the image is still there"
        return "; ".join(dict.fromkeys(one for one in (self.image, beside) if one is not None))


def look(root: int, stored: StoredFile, identity: Identity, *, thorough: bool) -> Finding:
    """Compare the files of one fax with what was stored; `thorough` reads the image and hashes it."""
    try:
        folder = open_folder(root, path_of(stored))
    except FileNotFoundError:
        return Finding(_MISSING, _MISSING)
    except StorageConflict as error:
        return Finding(str(error), str(error))
    except OSError as error:  # one bad directory says nothing about the others
        why = _unreadable("directory", error)
        return Finding(why, why)
    with closing(folder):
        return Finding(
            _image_trouble(folder, stored, thorough=thorough),
            _sidecar_trouble(folder, stored, identity),
        )


def _image_trouble(folder: Folder, stored: StoredFile, *, thorough: bool) -> str | None:
    try:
        with syscalls.reading(folder.names.image(stored.format), folder.fd) as fd:
            size = syscalls.status(fd).st_size
            if size != stored.bytes:
                return f"the image has {size} bytes instead of {stored.bytes}"
            if thorough and digest(fd) != stored.sha256:
                return "the content of the image has changed"
    except OSError as error:
        return _unreadable("image", error)
    return None


def _sidecar_trouble(folder: Folder, stored: StoredFile, identity: Identity) -> str | None:
    try:
        with syscalls.reading(folder.names.sidecar, folder.fd) as fd:
            described = sidecars.decode(syscalls.read_all(fd), folder.path)
    except OSError as error:
        return _unreadable("sidecar", error)
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
        fd = open_directory(root, directory)
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
