"""One poller per state and per storage: locks that end with their process, however it ends.

The state has two flocks: one on a file, and one on the directory itself. Without the second, a
person who removes the lock file would let a second poller start.
"""

import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

from poller import state_directory
from poller.errors import CannotStart, LockHeld

DAEMON = "run"  # the only command that other commands can leave work to
_NAME = "poller.lock"
_ADDRESS_MAX = 80  # of at most 107 bytes in an address
_TRY_AGAIN_S = (0.05,) * 6  # a process in `is_held` holds the lock for a moment


class StateLock(ExitStack):
    """Held from `__enter__` to `__exit__`. Raises LockHeld (75) if another process holds it.

    `command` is the command that holds it; `holder` returns it.
    """

    def __init__(
        self, directory: Path, command: str = DAEMON, *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        super().__init__()
        self._directory = directory
        self._command = command
        self._sleep = sleep

    def __enter__(self) -> Self:
        with ExitStack() as held:
            self._take(held)
            self.push(held.pop_all())
        return self

    def _take(self, held: ExitStack) -> None:
        path = self._directory / _NAME
        try:
            state_directory.make(self._directory)
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            held.callback(_close, file)
            directory = _open_directory(self._directory)
            held.callback(_close, directory)
        except OSError as error:
            raise CannotStart(
                f"cannot open {path}: {error.strerror}; make this user the owner of the state directory"
            ) from error
        if not self._locked(file):
            raise refusal(self._directory)
        _write(file, self._command)  # before others see the lock: `holder` looks at the directory
        if not self._locked(directory):
            _write(
                file, ""
            )  # the file was removed and made again, so ours does not name the holder
            raise refusal(self._directory)

    def _locked(self, fd: int) -> bool:
        for pause_s in (*_TRY_AGAIN_S, 0):
            with suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            self._sleep(pause_s)
        return False


def _close(fd: int) -> None:
    with suppress(OSError):  # the descriptor is closed anyway; nothing was written
        os.close(fd)


def _write(fd: int, command: str) -> None:
    with suppress(OSError):  # on a full disk go on; the holder then counts as the daemon
        os.ftruncate(fd, 0)
        os.pwrite(fd, command.encode(), 0)


def _open_directory(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


class StorageLock(ExitStack):
    """One poller per storage directory on this machine, whatever its ledger.

    It is an address in Linux's abstract namespace: it ends with its process, however that ends, and
    it keeps no file open on a disk that a person may want to unmount.
    """

    def take(self, storage_id: str) -> None:
        """Hold the storage with this id until `__exit__`. Raises LockHeld if another process does."""
        with ExitStack() as held:
            address = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            try:
                address.bind(b"\0poller-storage-" + storage_id.encode()[:_ADDRESS_MAX])
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise CannotStart(f"cannot lock the storage: {error.strerror}") from error
                raise LockHeld(
                    "another poller, with another state directory, stores faxes in this storage "
                    "directory; stop it first, or give each poller its own directory"
                ) from error
            self.push(held.pop_all())


def refusal(state_directory: Path) -> LockHeld:
    """Return the error that names the holder of the state."""
    return LockHeld(
        f"another poller holds {state_directory} (`poller {holder(state_directory) or DAEMON}`); "
        "stop it first, or use a command that works beside it"
    )


def holder(state_directory: Path) -> str | None:
    """Return the command that holds this state now; the daemon's if that is not known."""
    if not is_held(state_directory):
        return None
    try:
        written = (state_directory / _NAME).read_text("utf-8", "replace").strip()
    except OSError:
        written = ""
    return written or DAEMON


def is_held(state_directory: Path) -> bool:
    """Return whether any command holds this state now."""
    try:
        fd = _open_directory(state_directory)
    except OSError:
        return False
    try:
        # A shared lock for a moment: two `status` at the same time do not see each other.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
