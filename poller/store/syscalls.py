"""Single steps on the file system: nothing else in this folder calls `os`.

Each can fail or be interrupted, so that tests can record the steps, stop after any of them, or
leave one out.
"""

import ctypes
import errno
import fcntl
import os
import stat
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any, BinaryIO

FILE_MODE = 0o640
SMALL_FILE_MAX = 16 << 20
_GET_GENERATION = 2 << 30 | struct.calcsize("l") << 16 | ord("v") << 8 | 1  # FS_IOC_GETVERSION
_READ_CHUNK = 64 << 10
_NOT_THROUGH_LINKS = os.O_NOFOLLOW | os.O_CLOEXEC
_RENAME_NOREPLACE = 1  # linux/fs.h
# answers of file systems, kernels and sandboxes that cannot rename without replacing
_CANNOT_RENAME = {errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV}


class SyncError(OSError):
    """Written data may be lost; discard it, because a second fsync would succeed anyway."""


def open_root(directory: str) -> int:
    """Open the storage directory; only here may the last part be a symbolic link."""
    return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def open_directory(name: str, at: int) -> int:
    """Open a directory that is not a symbolic link; links on the way to it are followed."""
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | _NOT_THROUGH_LINKS, dir_fd=at)


def make_directory(name: str, at: int, mode: int) -> None:
    os.mkdir(name, mode, dir_fd=at)


def set_mode(fd: int, mode: int) -> None:
    os.fchmod(fd, mode)


def create(name: str, at: int) -> int:
    """Create a new file for writing; its mode does not depend on the umask."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOT_THROUGH_LINKS
    fd = os.open(name, flags, FILE_MODE, dir_fd=at)
    try:
        os.fchmod(fd, FILE_MODE)
    except OSError:
        os.close(fd)
        raise
    return fd


def open_file(name: str, at: int) -> int:
    """Open a regular file for reading; do not block on, or read, a fifo that somebody put there."""
    fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | _NOT_THROUGH_LINKS, dir_fd=at)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", name)
    return fd


@contextmanager
def held(fd: int) -> Iterator[int]:
    """Close a descriptor at the end of the block."""
    try:
        yield fd
    finally:
        close(fd)


def reading(name: str, at: int) -> AbstractContextManager[int]:
    """Hold a regular file open for reading."""
    return held(open_file(name, at))


def listing(name: str, at: int) -> AbstractContextManager[int]:
    """Hold a directory open."""
    return held(open_directory(name, at))


def create_synced(name: str, at: int, data: bytes) -> None:
    """Create a file with this content; its data is durable, its name is not."""
    fd = create(name, at)
    try:
        write(fd, data)
        sync_file(fd)
    except BaseException:
        close(fd)
        raise
    close_written(fd)


def write(fd: int, data: bytes | bytearray) -> None:
    """Write all data; continue after a short write."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def reader(fd: int) -> BinaryIO:
    return os.fdopen(fd, "rb")


def read(fd: int) -> Iterator[bytes]:
    while chunk := os.read(fd, _READ_CHUNK):
        yield chunk


def read_beginning(fd: int, limit: int) -> bytes:
    return os.read(fd, limit)


def read_all(fd: int) -> bytes:
    """Read a small file; of a file larger than any of ours, only the beginning."""
    data = bytearray()
    for chunk in read(fd):
        data += chunk
        if len(data) > SMALL_FILE_MAX:
            break
    return bytes(data)


def sync_file(fd: int) -> None:
    _sync(fd)


def sync_directory(fd: int) -> None:
    _sync(fd)


def _sync(fd: int) -> None:
    try:
        os.fsync(fd)
    except OSError as error:
        raise SyncError(error.errno, error.strerror) from error


def close_written(fd: int) -> None:
    """Close a written file; on NFS, EIO or EDQUOT may come only now."""
    try:
        os.close(fd)
    except OSError as error:
        raise SyncError(error.errno, error.strerror) from error


def close(fd: int) -> None:
    os.close(fd)


def move(existing: str, new: str, at: int, *, synced: bool = False) -> None:
    """Give a file another name; never overwrites (EEXIST), while a plain rename would.

    If the file system cannot do that in one step, the file has both names in between, by a hard
    link. With `synced`, the new name is durable before the old one goes.
    """
    number = rename(existing, new, at)
    if number in _CANNOT_RENAME:
        os.link(existing, new, src_dir_fd=at, dst_dir_fd=at, follow_symlinks=False)
        if synced:
            sync_directory(at)
        unlink(existing, at)
    elif number:
        raise OSError(number, os.strerror(number), existing, None, new)
    elif synced:
        sync_directory(at)


def rename(existing: str, new: str, at: int) -> int:
    """Rename without replacing, which Python cannot do; return the error number, 0 for none."""
    names = os.fsencode(existing), os.fsencode(new)
    return _renamed(_libc(), names, at)


def _renamed(libc: Any, names: tuple[bytes, bytes], at: int) -> int:
    if not hasattr(libc, "renameat2"):  # musl before 1.2.6
        return errno.ENOSYS
    failed = libc.renameat2(at, names[0], at, names[1], _RENAME_NOREPLACE)
    return ctypes.get_errno() if failed else 0


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def unlink(name: str, at: int) -> bool:
    """Remove a name; False when it was not there."""
    try:
        os.unlink(name, dir_fd=at)
    except FileNotFoundError:
        return False
    return True


def remove_directory(name: str, at: int) -> None:
    os.rmdir(name, dir_fd=at)


def names(fd: int) -> list[str]:
    return os.listdir(fd)


def is_there(name: str, at: int) -> bool:
    try:
        status_of(name, at)
    except FileNotFoundError:
        return False
    return True


def is_directory(name: str, at: int) -> bool:
    """Tell whether this is a directory; False for a symbolic link or a missing name."""
    try:
        return stat.S_ISDIR(status_of(name, at).st_mode)
    except FileNotFoundError:
        return False


def is_same_file(name: str, other: str, at: int) -> bool:
    return os.path.samestat(status_of(name, at), status_of(other, at))


def is_at(path: str, fd: int) -> bool:
    """Tell whether others find this at the given full path."""
    return os.path.samestat(status_at(path), status(fd))


def status(fd: int) -> os.stat_result:
    return os.fstat(fd)


def generation(fd: int) -> int:
    """Return what tells two files with one inode number apart; 0 if the file system cannot."""
    answer = bytearray(struct.calcsize("l"))
    try:
        fcntl.ioctl(fd, _GET_GENERATION, answer)
    except OSError:
        return 0
    return int.from_bytes(answer[:4], sys.byteorder)


def status_of(name: str, at: int) -> os.stat_result:
    return os.stat(name, dir_fd=at, follow_symlinks=False)


def takes_names(name: str, at: int) -> bool:
    """Tell whether this process may create something in this directory."""
    return os.access(name, os.W_OK | os.X_OK, dir_fd=at)


def status_at(path: str) -> os.stat_result:
    return os.stat(path)  # noqa: PTH116 (`os` is what tests stand in for)


def space(fd: int) -> os.statvfs_result:
    return os.fstatvfs(fd)


def effective_user() -> int:
    return os.geteuid()


def age_s(name: str, at: int) -> float:
    """Return for how many seconds a file has not changed; 0 if it is gone."""
    try:
        return time.time() - os.stat(name, dir_fd=at, follow_symlinks=False).st_mtime
    except FileNotFoundError:
        return 0.0


def process_id() -> int:
    return os.getpid()


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        pass
    return True
