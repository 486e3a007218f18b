"""The durable order in one directory, up to its names; `Storage` and the ledger do the rest.

write the image to a dot-file in the directory where it will stay     Spool.restart, write
prove it whole, in another process                                    Spool.inspect
fsync, close                                                          Spool.seal
give the image its name (never overwriting)                           place
write the sidecar to a dot-file, fsync, close                       ┐
fsync the directory and every parent that may be new                │ stage
check that the directory still has its path                         ┘
record the ticket, the dot-file's name, in the row                    the caller
give the sidecar its name (never overwriting)                       ┐
check that the directory still has its path                         │ publish
fsync the directory                                                 ┘
record the row as stored, without a ticket                            the caller
only now tell eFax anything                                           the caller

Consumers act on a sidecar. A fax without a ticket in its row was never published; if its image has
its name, read that back. For a fax with a ticket, `recovery.settle` looks at the files and finds out
what happened.

A consumer may rename the directory meanwhile. A fax that was visible while the directory had its
path is delivered, wherever it goes then. A fax that came later is taken back and delivered again,
unless somebody has already taken it.
"""

import errno
import hashlib
from collections.abc import Callable
from contextlib import suppress

from poller.documents import StoredFile
from poller.errors import MovedAway, StorageConflict
from poller.store import sidecars, syscalls
from poller.store.folder import Folder
from poller.store.sidecars import Identity

IsSame = Callable[[int], bool]
FOREIGN = {errno.ELOOP, errno.EINVAL, errno.EACCES, errno.ENXIO}
_NUMBERS = range(1, 1000)


def place(folder: Folder, stored: StoredFile, identity: Identity) -> bool:
    """Give the image its name, or accept the same image under that name; return whether it is ours.

    A sidecar without an image replaces one that was left there, whose ticket is in no row.
    """
    if stored.format == "json":
        _require_no_image(folder)
        syscalls.unlink(folder.names.image("json"), folder.fd)
    if syscalls.is_there(folder.names.sidecar, folder.fd):
        _adopt(folder, folder.names.sidecar, describes(folder, stored, identity))
    if folder.is_moved(folder.names.dot_image):
        _refuse_moved(folder)
    return _show(folder, folder.names.dot_image, folder.names.image(stored.format), holds(stored))


def _require_no_image(folder: Folder) -> None:
    for form in sidecars.EXTENSIONS:
        if syscalls.is_there(name := folder.names.image(form), folder.fd):
            raise StorageConflict(f"{name} exists, but the fax has no image")


def stage(folder: Folder, image: str, data: bytes | None) -> str:
    """Write the hidden sidecar and make it and the names beside it durable; return its dot-name.

    Without `data`, the sidecar has no image and is in place already, as `image`.
    """
    name = image if data is None else folder.names.dot_sidecar
    if data is not None:
        syscalls.unlink(name, folder.fd)
        syscalls.create_synced(name, folder.fd, data)
    syscalls.sync_directory(folder.fd)
    folder.sync_parents()
    if folder.is_moved(image):
        _refuse_moved(folder)
    return name


def publish(folder: Folder, staged: str, stored: StoredFile, identity: Identity) -> bool:
    """Give the staged sidecar its name, durably; return False if it is gone.

    If this fails, hide the sidecar again: after a failed fsync, a second one would succeed although
    the name may be lost.
    """
    name, image = folder.names.sidecar, folder.names.image(stored.format)
    try:
        is_same, alone = describes(folder, stored, identity), stored.format == "json"
        is_ours = _show(folder, staged, name, is_same, synced=alone)
    except FileNotFoundError:
        return False
    try:
        if is_ours and folder.is_moved(name) and _is_taken_back(folder, name, staged, image):
            _refuse_moved(folder)
        syscalls.sync_directory(folder.fd)
    except OSError:
        if is_ours:
            with suppress(OSError):
                _hide(folder, name, staged)
        raise
    return True


def hide_image(folder: Folder, stored: StoredFile) -> None:
    """Take back a placed image that was not, and will not be, published."""
    with suppress(FileNotFoundError):
        _hide(folder, folder.names.image(stored.format), folder.names.dot_image)


def _refuse_moved(folder: Folder) -> None:
    directory = folder.path.rpartition("/")[0]
    raise MovedAway(
        f"moved away: somebody renamed or removed the directory {directory} while poller wrote the fax "
        "into it; poller delivers the fax again"
    )


def _is_taken_back(folder: Folder, name: str, staged: str, image: str) -> bool:
    """Hide what became visible in the wrong place; return False if a consumer is taking it.

    Consumers take the image first and the sidecar last.
    """
    try:
        _hide(folder, name, staged)
    except OSError:
        return False
    if syscalls.is_there(image, folder.fd):
        return True
    syscalls.move(staged, name, folder.fd)
    return False


def _hide(folder: Folder, name: str, dot_file: str) -> None:
    try:
        syscalls.move(name, dot_file, folder.fd)
    except FileExistsError:  # the file has both names
        syscalls.unlink(name, folder.fd)


def _show(
    folder: Folder, dot_file: str, name: str, is_same: IsSame, *, synced: bool = False
) -> bool:
    """Give a dot-file its name, or accept the same file under that name; return whether it is ours.

    `synced` keeps both names safe from a power failure where a link gives the name.
    """
    try:
        syscalls.move(dot_file, name, folder.fd, synced=synced)
    except FileNotFoundError:
        raise
    except FileExistsError:
        _adopt(folder, name, is_same)
        is_ours = syscalls.is_same_file(dot_file, name, folder.fd)
        syscalls.unlink(dot_file, folder.fd)
        return is_ours
    except OSError:
        with suppress(OSError):
            _undo_unanswered(folder, name, dot_file)
        raise
    return True


def _undo_unanswered(folder: Folder, name: str, dot_file: str) -> None:
    """Undo what a share did if its answer was lost on the way."""
    at = folder.fd
    if not syscalls.is_there(dot_file, at) or syscalls.is_same_file(dot_file, name, at):
        _hide(folder, name, dot_file)


def _adopt(folder: Folder, name: str, is_same: IsSame) -> None:
    try:
        with syscalls.reading(name, folder.fd) as fd:
            if not is_same(fd):
                raise StorageConflict(f"another file already has the name {name}")
            syscalls.sync_file(fd)
    except OSError as error:
        if error.errno in FOREIGN:
            raise StorageConflict(f"{name} exists and is not a file of poller") from error
        raise


def put_aside(folder: Folder, stored: StoredFile, identity: Identity) -> None:
    """Move files in the way of a fax that was fetched again to `.damaged-<name>`.

    Move the sidecar first: consumers act on it. Leave a file that belongs to this fax.
    """
    names = folder.names
    _put_aside(folder, names.sidecar, describes(folder, stored, identity))
    for form in sidecars.EXTENSIONS:  # the earlier image may have the other format
        is_same = holds(stored) if form == stored.format else lambda _: False
        _put_aside(folder, names.image(form), is_same)


def put_foreign_aside(folder: Folder) -> None:
    """Move things with the fax's names that are not readable files to `.damaged-<name>`."""
    for name in folder.names.visible:
        _put_aside(folder, name, lambda _: True)


def _put_aside(folder: Folder, name: str, is_same: IsSame) -> None:
    try:
        with syscalls.reading(name, folder.fd) as fd:
            if is_same(fd):
                return
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in {*FOREIGN, errno.EIO}:  # a bad sector
            raise
    _move_aside(folder, name)


def _move_aside(folder: Folder, name: str) -> None:
    for number in _NUMBERS:
        kept = folder.names.damaged(name, number)
        try:
            return syscalls.move(name, kept, folder.fd, synced=True)
        except FileExistsError:
            # an earlier run was killed between two steps
            if syscalls.is_same_file(name, kept, folder.fd):
                syscalls.sync_directory(folder.fd)
                syscalls.unlink(name, folder.fd)
                return None
        except PermissionError as error:
            raise StorageConflict(f"{name} exists and is not a file of poller") from error
    raise StorageConflict(f"poller has put {name} aside too often")


def holds(stored: StoredFile) -> IsSame:
    def is_same(fd: int) -> bool:
        return syscalls.status(fd).st_size == stored.bytes and digest(fd) == stored.sha256

    return is_same


def describes(folder: Folder, stored: StoredFile, identity: Identity) -> IsSame:
    def is_same(fd: int) -> bool:
        found = sidecars.decode(syscalls.read_all(fd), folder.path)
        return sidecars.mismatch(found, stored, identity) is None

    return is_same


def digest(fd: int) -> str:
    """Hash an open file from its position to its end; SHA-256 in hexadecimal."""
    sha256 = hashlib.sha256()
    for chunk in syscalls.read(fd):
        sha256.update(chunk)
    return sha256.hexdigest()
