"""Test whether a file system can do what a delivery needs, with files that are removed again."""

import errno
import socket
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from poller.config.model import StorageConfig
from poller.errors import StorageUnusable
from poller.store import folder, syscalls

PROBE = ".poller-probe."
CANNOT = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EXDEV, errno.EMLINK}
_CONTENT = b"what is written can be read back\n"
_OTHERS = 0o007
_PROBED_WITHIN_S = 3600.0


def prove(config: StorageConfig, root: int) -> None:
    """Do everything that a delivery does; StorageUnusable names what is missing, and the remedy.

    Raises OSError for other troubles: no space, no permission, a broken disk.
    """
    mine, host = f"{PROBE}{syscalls.process_id()}", _host()
    file, free, directory = (f"{mine}.{one}.{host}" for one in ("file", "free", "directory"))
    _remove([file, free, directory], root)
    try:
        _try_a_file(file, root)
        _try_a_name(file, free, root)
        _try_a_directory(config, directory, root)
    except _Lack as lack:
        where = f"the file system of the storage directory {config.directory}"
        raise StorageUnusable(f"{where} {lack}") from lack
    finally:
        with suppress(OSError):
            _remove([file, free, directory], root)


class _Lack(Exception):
    """What the file system cannot do: it completes the sentence "the file system of …"."""


@contextmanager
def _needs(sentence: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in CANNOT:
            raise _Lack(sentence) from error
        raise


def _try_a_file(name: str, root: int) -> None:
    _create(name, root)
    if not _refused(lambda: syscalls.close(syscalls.create(name, root))):
        raise _Lack("creates a file although its name is taken (O_EXCL): use another file system")
    with syscalls.reading(name, root) as fd:
        mode, found = syscalls.status(fd).st_mode, syscalls.read_all(fd)
    if found != _CONTENT:
        raise _Lack("returns other bytes than poller wrote: use another file system")
    _require_mode(mode, syscalls.FILE_MODE, "file")


def _create(name: str, root: int) -> None:
    try:
        fd = syscalls.create(name, root)
    except OSError as error:
        if error.errno in CANNOT and syscalls.is_there(name, root):
            raise _Lack(
                "does not let poller set a file's mode (chmod): mount it with the uid and gid of "
                "the service's user"
            ) from error
        raise
    with syscalls.held(fd):
        syscalls.write(fd, _CONTENT)
        syscalls.sync_file(fd)


def _require_mode(found: int, wanted: int, what: str) -> None:
    """Require all rights that `wanted` gives to owner and group, and none for others."""
    mode, wanted = stat.S_IMODE(found), wanted & ~stat.S_ISGID
    if mode & wanted != wanted or mode & _OTHERS:
        raise _Lack(
            f"gives a {what} mode {mode:o} although poller set {wanted:o} (chmod): mount it with "
            "file_mode=0640,dir_mode=0750 (CIFS) or fmask=0137,dmask=0027 (exFAT), or with "
            "0660 and 0770 where consumers move files"
        )


def _try_a_name(file: str, free: str, root: int) -> None:
    syscalls.close(syscalls.create(free, root))
    lacks = (
        "can neither rename a file without replacing another (renameat2, RENAME_NOREPLACE) nor "
        "give it a second name (link): use another file system, or a mount that allows one of the two"
    )
    with _needs(lacks):
        if not _refused(lambda: syscalls.move(file, free, root)):
            raise _Lack("replaces a file although poller forbade it: use another file system")
        syscalls.unlink(free, root)
        syscalls.move(file, free, root)
    with _needs(
        "cannot sync a directory (fsync): a power failure could destroy stored faxes; "
        "use another file system, or a kernel whose CIFS or NFS can sync directories"
    ):
        syscalls.sync_directory(root)


def _try_a_directory(config: StorageConfig, name: str, root: int) -> None:
    wanted = folder.DIRECTORY_MODES[config.consumers]
    with _needs("does not let poller set a directory's mode (chmod): mount it so that it does"):
        fd, _ = folder.enter(root, name, wanted)
    with syscalls.held(fd):
        _require_mode(syscalls.status(fd).st_mode, wanted, "directory")
        with syscalls.held(syscalls.create(".file", fd)) as file:
            group, its_own = syscalls.status(fd).st_gid, syscalls.status(file).st_gid
    if group != its_own:
        raise _Lack(
            f"gives files group {its_own} in directories of group {group}, whose members cannot "
            "read them: make the service's user a member of that group"
        )


def _refused(step: Callable[[], object]) -> bool:
    try:
        step()
    except FileExistsError:
        return True
    return False


def clear(root: int) -> int:
    """Remove what interrupted probes have left; return how many.

    Files of another running process stay: it may be `poller check` that tests the storage now.
    """
    return _remove([name for name in syscalls.names(root) if _is_left(name, root)], root)


def _host() -> str:
    """Identify this machine: on a shared directory, another one may have a process of this number."""
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _is_left(name: str, root: int) -> bool:
    if not name.startswith(PROBE):
        return False
    number, _, rest = name.removeprefix(PROBE).partition(".")
    if (host := rest.rpartition(".")[2]) and rest != host and host != _host():
        return syscalls.age_s(name, root) > _PROBED_WITHIN_S
    is_of_another = number.isdecimal() and int(number) != syscalls.process_id()
    return not (is_of_another and syscalls.is_running(int(number)))


def _remove(names: list[str], root: int) -> int:
    return sum(_remove_one(name, root) for name in names)


def _remove_one(name: str, root: int) -> bool:
    if not syscalls.is_directory(name, root):
        return syscalls.unlink(name, root)
    with syscalls.listing(name, root) as fd:
        _remove(syscalls.names(fd), fd)
    syscalls.remove_directory(name, root)
    return True
