"""Compare the disk with what should be on it: well, taken, damaged or unreadable. Changes nothing."""

import errno
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from enum import Enum

from poller.documents import StoredFile
from poller.errors import StorageConflict
from poller.store import sidecars, syscalls
from poller.store.folder import Folder, open_directory, open_folder
from poller.store.marker import NOT_OURS
from poller.store.publish import FOREIGN, digest
from poller.store.sidecars import Identity, path_of

_NO_FILE = FOREIGN - {errno.EACCES}  # a link, a pipe: certainly not a fax
_WHOLE_STORAGES_FAULT = {errno.ESTALE, errno.ENOTCONN, errno.EMFILE, errno.ENFILE, errno.ENOMEM}


class Condition(Enum):
    OK = "ok"
    TAKEN = "taken"
    DAMAGED = "damaged"
    UNREADABLE = "unreadable"


class CannotRead(str):
    """Why something cannot be opened or read; it may still be what was stored."""

    __slots__ = ()


MISSING = "missing"
CHANGED = "the content of the image has changed"


@dataclass(frozen=True)
class Finding:
    """What is wrong with a fax's image and its sidecar; None means nothing.

    For a fax without an image, its sidecar, visible or still hidden, counts as the image.
    """

    image: str | None = None
    sidecar: str | None = None
    has_directory: bool = True

    @property
    def is_well(self) -> bool:
        return self.image is self.sidecar is None

    @property
    def is_gone(self) -> bool:
        return self.image == self.sidecar == MISSING

    @property
    def condition(self) -> Condition:
        if self.is_well:
            return Condition.OK
        if any(isinstance(one, CannotRead) for one in (self.image, self.sidecar)):
            return Condition.UNREADABLE
        return Condition.TAKEN if self.is_gone else Condition.DAMAGED

    @property
    def is_unreadable(self) -> bool:
        """Whether a part of it cannot be read, so that its state is unknown."""
        return self.condition is Condition.UNREADABLE

    @property
    def is_published(self) -> bool:
        """Whether the fax's own sidecar is visible."""
        return self.sidecar is None

    @property
    def is_placed(self) -> bool:
        """Whether the image is there and the sidecar is not."""
        return self.image is None and self.sidecar == MISSING

    @property
    def is_image_alone(self) -> bool:
        """Whether there is an image, whatever it is, and no sidecar."""
        return self.sidecar == MISSING and self.image != MISSING and not self.is_unreadable

    @property
    def in_transit(self) -> bool:
        """Whether a consumer seems to be taking it now: consumers take the image first."""
        return self.image == MISSING and self.sidecar is None

    @property
    def image_trouble(self) -> str | None:
        """Return what is wrong with the image of a sidecar that has no row."""
        if self.image == MISSING:
            return "the image is missing"
        if self.image is None or isinstance(self.image, CannotRead):
            return self.image
        return "the image has another hash"

    @property
    def why(self) -> str | None:
        """Return how the fax is damaged, or what cannot be read."""
        if self.is_well or self.is_gone:
            return None
        if self.in_transit:
            return "the image is gone, but its sidecar is still there"
        if self.image == MISSING:
            return f"{self.sidecar}; no image"
        beside = self.sidecar
        if beside == MISSING:
            beside = "the sidecar is gone, but the image is still there"
        return "; ".join(dict.fromkeys(one for one in (self.image, beside) if one is not None))


def look(root: int, stored: StoredFile, identity: Identity, *, thorough: bool) -> Finding:
    """Compare the files of one fax with what was stored; `thorough` also hashes the image."""
    try:
        folder = open_folder(root, path_of(stored))
    except FileNotFoundError:
        return Finding(MISSING, MISSING, has_directory=False)
    except StorageConflict as error:
        return Finding(str(error), str(error))
    except OSError as error:  # one bad directory proves nothing about the others
        why = _unreadable("directory", error)
        return Finding(why, why)
    with closing(folder):
        sidecar = _sidecar_trouble(folder, stored, identity)
        if stored.format == "json" and sidecar != MISSING:
            return Finding(sidecar, sidecar)
        return Finding(_image_trouble(folder, stored, thorough=thorough), sidecar)


def _image_trouble(folder: Folder, stored: StoredFile, *, thorough: bool) -> str | None:
    try:
        with syscalls.reading(folder.names.image(stored.format), folder.fd) as fd:
            size = syscalls.status(fd).st_size
            if size != stored.bytes:
                return another_size(size, stored)
            if thorough and digest(fd) != stored.sha256:
                return CHANGED
    except OSError as error:
        return _unreadable("image", error)
    return None


def another_size(size: int, stored: StoredFile) -> str:
    return f"the image has {size} bytes instead of {stored.bytes}"


def _sidecar_trouble(folder: Folder, stored: StoredFile, identity: Identity) -> str | None:
    try:
        with syscalls.reading(folder.names.sidecar, folder.fd) as fd:
            described = sidecars.decode(syscalls.read_all(fd), folder.path)
    except OSError as error:
        return _unreadable("sidecar", error)
    return sidecars.mismatch(described, stored, identity)


def _unreadable(what: str, error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return MISSING
    if error.errno in _WHOLE_STORAGES_FAULT:
        raise error
    if error.errno in _NO_FILE:
        return f"the {what} is not a file"
    return CannotRead(f"the {what} cannot be read: {error.strerror}")


def visible_files(root: int, directory: str) -> tuple[list[tuple[str, str]], list[str]]:
    """List the visible files of one directory of the storage, and its subdirectories."""
    try:
        fd = open_directory(root, directory)
    except FileNotFoundError:  # something has just removed it
        return [], []
    except OSError as error:
        if directory == "" or error.errno in _WHOLE_STORAGES_FAULT:
            raise
        return [], []  # faxes that the ledger has there count as unreadable
    with syscalls.held(fd):
        found = [name for name in syscalls.names(fd) if _is_visible(name, directory)]
        below = {name for name in found if syscalls.is_directory(name, fd)}
    return with_paths(directory, set(found) - below), sorted(below)


def with_paths(directory: str, names: Iterable[str]) -> list[tuple[str, str]]:
    """Return the full names of files, each with the path of the fax to which it can belong."""
    files = (f"{directory}/{name}".lstrip("/") for name in sorted(names))
    return [(file, _path_of(file)) for file in files]


def _is_visible(name: str, directory: str) -> bool:
    return not name.startswith(".") and not (directory == "" and name in NOT_OURS)


def _path_of(file: str) -> str:
    """Return the path of the fax to which a file can belong, or the file's own."""
    base, dot, extension = file.rpartition(".")
    is_ours = f"{dot}{extension}" in {".json", *sidecars.EXTENSIONS.values()}
    return base if is_ours else file
