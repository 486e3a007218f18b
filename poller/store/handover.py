"""The durable order.

image to a dot-file, in the directory where it will stay     Handover.restart, write
proved whole, in a process of its own                          Handover.inspect
fsync, close                                                  ┐
sidecar with the hash to a dot-file, fsync, close             │
fsync the directory: the dot-files' names are durable now     │ Handover.deliver
rename image, rename sidecar (never overwriting)              │
the directory still has its path                              │
fsync the directory and every parent that may be new          ┘
row stored                                                    the caller
dot-files unlinked, where there are any                       Handover.finish
only then anything said to eFax                               the caller

Where the file system cannot rename without replacing, both get their names by a hard link, and keep
the dot-names until the row is stored.

Interrupted anywhere before the first rename, nothing is visible, and either both dot-files are whole
(`recovery` carries on from there) or the fax is fetched again. Interrupted after it, a sidecar and
the image that has its hash are there, each under one of its names.

A consumer may rename the directory meanwhile. What was visible in it while it had its path is
delivered, wherever it is taken then. What came into it later is taken back and delivered again; only
what somebody has already taken out of it counts.
"""

import errno
import hashlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from poller.documents import Document, StoredFile
from poller.errors import StorageConflict
from poller.store import sidecars, syscalls
from poller.store.place import Place
from poller.store.sidecars import Identity

_FOREIGN = {errno.ELOOP, errno.EINVAL, errno.EACCES, errno.ENXIO}

Inspect = Callable[[int], Document]
MakeSidecar = Callable[[StoredFile], dict[str, Any]]


class Handover:
    """One fax on its way into its place; blocks, and is used by one thread at a time."""

    def __init__(self, place: Place, inspect: Inspect, *, replacing: bool = False) -> None:
        """With `replacing`, other files that have the fax's names are damaged and are put aside."""
        self.place = place
        self._inspect = inspect
        self._replacing = replacing
        self.delivered = False
        self._has_dot_files = True
        self._fd: int | None = None
        self._hash = hashlib.sha256()
        self._bytes = 0
        self._document: Document | None = None

    def restart(self) -> None:
        """Begin with an empty dot-file."""
        if self._fd is not None:
            self.discard()
        self._fd = _create(self.place.names.dot_image, self.place)
        self._hash = hashlib.sha256()
        self._bytes = 0
        self._document = None

    def write(self, data: bytes | bytearray) -> None:
        """Append."""
        syscalls.write(self._open_fd(), data)
        self._hash.update(data)
        self._bytes += len(data)

    def inspect(self) -> Document:
        """Prove the document; raises NotADocument, and StorageUnusable when nothing can prove it."""
        self._open_fd()
        reading = syscalls.open_file(self.place.names.dot_image, self.place.fd)
        try:
            self._document = self._inspect(reading)
        finally:
            syscalls.close(reading)
        return self._document

    def deliver(self, make_sidecar: MakeSidecar, *, damaged: bool) -> StoredFile:
        """Make the fax visible, durably; raises with nothing visible otherwise."""
        fd, stored = self._open_fd(), self._stored(damaged=damaged)
        if syscalls.status(fd).st_size != stored.bytes:
            raise StorageConflict("the fax's dot-file is not as long as what was written to it")
        syscalls.sync_file(fd)
        self._fd = None
        syscalls.close_written(fd)
        content = make_sidecar(stored)
        write_sidecar(self.place, sidecars.encode(content))
        identity = sidecars.identity_in(content)
        if self._replacing:
            put_aside(self.place, stored, identity)
        self._has_dot_files = publish(self.place, stored, identity)
        self.delivered = True
        return stored

    def finish(self) -> None:
        """Unlink the dot-files, after the row is stored; what fails is tidied at the next start."""
        if self._has_dot_files:
            finish(self.place)

    def discard(self) -> None:
        """Throw the dot-files away."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            with suppress(OSError):
                syscalls.close(fd)
        unlink_dot_files(self.place)

    def close(self) -> None:
        """Leave nothing behind unless it was delivered."""
        try:
            if not self.delivered:
                with suppress(OSError):
                    self.discard()
        finally:
            self.place.close()

    def _open_fd(self) -> int:
        if self._fd is None:
            raise ValueError("a draft takes bytes after a reset and until it is delivered")
        return self._fd

    def _stored(self, *, damaged: bool) -> StoredFile:
        document = self._document
        if document is None:
            raise ValueError("a draft is checked before it is delivered")
        return StoredFile(
            file=self.place.path + sidecars.EXTENSIONS[document.format],
            format=document.format,
            bytes=self._bytes,
            sha256=self._hash.hexdigest(),
            pages=document.pages,
            damaged=damaged,
        )


def _create(dot_file: str, place: Place) -> int:
    """Create a dot-file; one that was there is ours, and its writer dead."""
    try:
        return syscalls.create(dot_file, place.fd)
    except FileExistsError:
        syscalls.unlink(place.names.dot_sidecar, place.fd)
        syscalls.unlink(dot_file, place.fd)
    return syscalls.create(dot_file, place.fd)


def write_sidecar(place: Place, data: bytes) -> None:
    fd = _create(place.names.dot_sidecar, place)
    try:
        syscalls.write(fd, data)
        syscalls.sync_file(fd)
    except BaseException:
        syscalls.close(fd)
        raise
    syscalls.close_written(fd)


def finish(place: Place) -> None:
    """Unlink the dot-files of a fax whose row is stored, as far as that can be done now."""
    with suppress(OSError):
        unlink_dot_files(place)


def unlink_dot_files(place: Place) -> None:
    """Unlink both; the sidecar first, for without it an image is never carried on from."""
    syscalls.unlink(place.names.dot_sidecar, place.fd)
    syscalls.unlink(place.names.dot_image, place.fd)


def publish(place: Place, stored: StoredFile, identity: Identity) -> bool:
    """From two synced dot-files to a visible, durable pair; an interrupted one can be repeated.

    True when dot-files are left. When it fails, what is visible of ours gets its dot-name back: a
    directory whose fsync failed must not be adopted later, on the word of a second fsync that would
    succeed.
    """
    names = place.names
    pair = [
        (names.dot_image, names.image(stored.format), holds(stored)),
        (names.dot_sidecar, names.sidecar, _describes(place, stored, identity)),
    ]
    shown, are_left = list[tuple[str, str]](), False
    try:
        syscalls.sync_directory(place.fd)
        if place.is_moved(names.dot_sidecar) and place.is_moved(names.sidecar):
            _refuse_moved(place)
        for dot_file, name, is_same in pair:
            is_ours, is_left = _show(place, dot_file, name, is_same)
            are_left |= is_left
            if is_ours:
                shown.append((name, dot_file))
        if place.is_moved(names.sidecar) and _is_taken_back(place, shown):
            _refuse_moved(place)
        syscalls.sync_directory(place.fd)
        place.sync_parents()
    except Exception:
        for name, dot_file in reversed(shown):
            with suppress(OSError):
                _hide(place, name, dot_file)
        raise
    return are_left


def _refuse_moved(place: Place) -> NoReturn:
    directory = place.path.rpartition("/")[0]
    raise StorageConflict(
        f"moved away: the directory {directory} was renamed or removed while the fax was written "
        "into it; the fax is delivered again"
    )


def _is_taken_back(place: Place, shown: list[tuple[str, str]]) -> bool:
    """Hide again what was shown in the wrong place; False when that cannot be, and it counts.

    The sidecar first, which a consumer takes last.
    """
    hidden: list[tuple[str, str]] = []
    for name, dot_file in reversed(shown):
        try:
            _hide(place, name, dot_file)
        except OSError:  # a consumer has taken it
            for back, to in hidden:
                syscalls.move(to, back, place.fd)
            return False
        hidden.append((name, dot_file))
    return True


def _hide(place: Place, name: str, dot_file: str) -> None:
    with suppress(FileExistsError):  # a link: it has both names
        if syscalls.move(name, dot_file, place.fd):
            return
    syscalls.unlink(name, place.fd)


IsSame = Callable[[int], bool]
_NUMBERS = range(1, 1000)


def put_aside(place: Place, stored: StoredFile, identity: Identity) -> None:
    """Move what stands in the way of a fax that was fetched again to `.damaged-<name>`.

    The dot-files are durable by then, so that the next start carries on from wherever this ends.
    The sidecar goes first: consumers act on it. A file that is the fax stays.
    """
    syscalls.sync_directory(place.fd)
    names = place.names
    _put_aside(place, names.sidecar, _describes(place, stored, identity))
    _put_aside(place, names.image(stored.format), holds(stored))
    for form in sidecars.EXTENSIONS:
        if form != stored.format:  # it came in the other format the last time
            _put_aside(place, names.image(form), lambda _: False)


def put_foreign_aside(place: Place) -> None:
    """Move what has the fax's names and is no file that could be read to `.damaged-<name>`."""
    images = [place.names.image(form) for form in sidecars.EXTENSIONS]
    for name in [place.names.sidecar, *images]:
        _put_aside(place, name, lambda _: True)


def _put_aside(place: Place, name: str, is_same: IsSame) -> None:
    try:
        fd = syscalls.open_file(name, place.fd)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in _FOREIGN:
            raise
    else:
        try:
            if _is(is_same, fd):
                return
        finally:
            syscalls.close(fd)
    is_gone = _move_aside(place, name)
    syscalls.sync_directory(place.fd)  # under one name at least it is there, whatever happens now
    if not is_gone:
        syscalls.unlink(name, place.fd)


def _is(is_same: IsSame, fd: int) -> bool:
    try:
        return is_same(fd)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return False  # a bad sector


def _move_aside(place: Place, name: str) -> bool:
    """Tell whether `name` is free; else it is a second name of what was put aside."""
    for number in _NUMBERS:
        kept = place.names.damaged(name, number)
        try:
            return syscalls.move(name, kept, place.fd)
        except FileExistsError:
            if syscalls.is_same_file(name, kept, place.fd):
                return False  # that one was kept earlier
        except PermissionError as error:
            raise StorageConflict(f"{name} is there and is no file of ours") from error
    raise StorageConflict(f"{name} was put aside too often")


def _show(place: Place, dot_file: str, name: str, is_same: IsSame) -> tuple[bool, bool]:
    """Give a dot-file its final name, or let a file count that has this name and is the same.

    Tells whether it is ours to hide again, and whether the dot-file is left.
    """
    try:
        return True, not syscalls.move(dot_file, name, place.fd)
    except FileNotFoundError:  # an earlier run left the final name
        _adopt(place, name, is_same)
        return True, False
    except FileExistsError:
        _adopt(place, name, is_same)
        return syscalls.is_same_file(dot_file, name, place.fd), True
    except OSError:
        with suppress(OSError):
            _undo_unanswered(place, name, dot_file)
        raise


def _undo_unanswered(place: Place, name: str, dot_file: str) -> None:
    """A share may have done what its answer, lost on the way, said nothing of."""
    if not syscalls.is_there(dot_file, place.fd) or syscalls.is_same_file(dot_file, name, place.fd):
        _hide(place, name, dot_file)


def _adopt(place: Place, name: str, is_same: IsSame) -> None:
    try:
        fd = syscalls.open_file(name, place.fd)
    except OSError as error:
        if error.errno in _FOREIGN:
            raise StorageConflict(f"{name} is there and is no file of ours") from error
        raise
    try:
        if not is_same(fd):
            raise StorageConflict(f"another file already has the name {name}")
        syscalls.sync_file(fd)
    finally:
        syscalls.close(fd)


def holds(stored: StoredFile) -> IsSame:
    def is_same(fd: int) -> bool:
        return syscalls.status(fd).st_size == stored.bytes and digest(fd) == stored.sha256

    return is_same


def _describes(place: Place, stored: StoredFile, identity: Identity) -> IsSame:
    def is_same(fd: int) -> bool:
        found = sidecars.decode(syscalls.read_all(fd), place.path)
        return found is not None and found[0].is_same(identity) and found[1].sha256 == stored.sha256

    return is_same


def digest(fd: int) -> str:
    """Hash an open file from where it stands; SHA-256 in hexadecimal."""
    sha256 = hashlib.sha256()
    for chunk in syscalls.read(fd):
        sha256.update(chunk)
    return sha256.hexdigest()
