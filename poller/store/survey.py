"""What lies in the storage by its sidecars, for a ledger that has to be rebuilt; blocks."""

import errno
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from poller.documents import StoredFile
from poller.store import marker, place, recovery, sidecars, syscalls
from poller.store.place import SIDECAR_PART, Durable, Place
from poller.store.sidecars import Origin

_SIDECAR = ".json"


@dataclass(frozen=True)
class Found:
    """A sidecar; `path` is the fax's, without extension.

    Not `visible`: a hand-over that was interrupted, which `Storage.resume` may carry on.
    """

    path: str
    origin: Origin
    stored: StoredFile
    stored_at: datetime
    visible: bool


@dataclass(frozen=True)
class Unreadable:
    """A file that has a sidecar's name and is none that can be read."""

    file: str
    why: str


def walk(directory: Path, storage_id: str | None) -> Generator[Found | Unreadable, None, None]:
    """Give every sidecar in the storage, in no order; symbolic links are not followed."""
    with marker.proved(directory, storage_id) as root:
        waiting = [""]
        while waiting:
            here = waiting.pop()
            try:
                fd = place.open_directory(root, here)
            except FileNotFoundError:  # a consumer removed it just now, empty
                continue
            try:
                for name in syscalls.names(fd):
                    path = f"{here}/{name}" if here else name
                    if name.endswith((_SIDECAR, SIDECAR_PART)):
                        yield from _sidecar(fd, here, name)
                    elif not name.startswith(".") and _is_directory(fd, name):
                        waiting.append(path)
            finally:
                syscalls.close(fd)


def _is_directory(fd: int, name: str) -> bool:
    with suppress(FileNotFoundError):  # a consumer took it away just now
        return S_ISDIR(syscalls.status_of(name, fd).st_mode)
    return False


def _sidecar(fd: int, here: str, name: str) -> Iterator[Found | Unreadable]:
    visible = not name.startswith(".")
    base = name.removesuffix(_SIDECAR) if visible else name[1:].removesuffix(SIDECAR_PART)
    path = f"{here}/{base}" if here else base
    try:
        if not S_ISREG(syscalls.status_of(name, fd).st_mode):
            return
        data = _content(fd, name)
        found = sidecars.describe(data, path)
    except FileNotFoundError:
        return
    except OSError as error:
        if visible:
            yield Unreadable(f"{path}{_SIDECAR}", error.strerror or "it cannot be read")
        return
    except ValueError as error:
        if visible:  # what a killed poller left half is removed at the next start
            yield Unreadable(f"{path}{_SIDECAR}", str(error))
        return
    yield Found(path, *found, visible=visible and not _lost_its_images_name(fd, path, found[1]))


def _lost_its_images_name(fd: int, path: str, stored: StoredFile) -> bool:
    """Tell a hand-over of whose two renames a power loss has taken the first, the image's."""
    names = place.Names(path.rpartition("/")[2])
    return syscalls.is_there(names.dot_image, fd) and not syscalls.is_there(
        names.image(stored.format), fd
    )


def _content(fd: int, name: str) -> bytes:
    file = syscalls.open_file(name, fd)
    try:
        return syscalls.read_all(file)
    finally:
        syscalls.close(file)


def trouble(at: Place, found: Found) -> str | None:
    """Say what is wrong with the image that the sidecar is about; None when it has its hash."""
    names = [at.names.image(found.stored.format)]
    if not found.visible:
        names.append(at.names.dot_image)
    problem = "the image is not there"
    for name in names:
        try:
            if recovery.holds(at, name, found.stored):
                return None
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ELOOP, errno.EACCES, errno.EIO):
                raise
            problem = "the image cannot be read"
        else:
            if syscalls.is_there(name, at.fd):
                problem = "the image has another hash"
    return problem


def troubles(directory: Path, storage_id: str | None, wanted: list[Found]) -> list[str | None]:
    """Hash the images of these sidecars: None for each that is whole."""
    with marker.proved(directory, storage_id) as root:
        return [_trouble(root, found) for found in wanted]


def _trouble(root: int, found: Found) -> str | None:
    try:
        at = place.open_place(root, found.path, durable=Durable(), make=None)
    except FileNotFoundError:
        return "the image is not there"
    try:
        return trouble(at, found)
    finally:
        at.close()
