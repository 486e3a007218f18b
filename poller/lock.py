"""One poller per state and per storage: locks that end with their process however that ends.

For the state there are two flocks. One is on a file, the other on the directory itself, for whoever
removes a lock file by hand would let a second poller in beside the first.
"""

import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from poller import state_directory
from poller.errors import CannotStart, LockHeld

DAEMON = "run"  # the one command that other commands can leave work to
_NAME = "poller.lock"
_ADDRESS_MAX = 80  # of the 107 bytes that an address may have
_TRY_AGAIN_S = (0.05,) * 6  # whoever asks `is_held` has it for a moment


class StateLock:
    """Held from `__enter__` to `__exit__`; raises LockHeld (exit 75) when another process has it.

    `command` is the one that holds it, for whoever asks `holder`.
    """

    def __init__(
        self,
        state_directory: Path,
        command: str = DAEMON,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._path = state_directory / _NAME
        self._command = command
        self._sleep = sleep
        self._fds: list[int] = []

    def __enter__(self) -> "StateLock":
        try:
            state_directory.make(self._path.parent)
            self._fds.append(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._fds.append(_open_directory(self._path.parent))
        except OSError as error:
            self._let_go()
            raise CannotStart(
                f"{self._path} cannot be opened: {error.strerror}; give this user the state directory"
            ) from error
        file, directory = self._fds
        taken = self._taken(file)
        if taken:
            _write(file, self._command)  # before it is seen: `holder` looks at the directory
            taken = self._taken(directory)
            if not taken:  # somebody removed the file, and ours says nothing of who holds it
                _write(file, "")
        if not taken:
            self._let_go()
            raise refusal(self._path.parent)
        return self

    def _taken(self, fd: int) -> bool:
        for pause_s in (*_TRY_AGAIN_S, None):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if pause_s is not None:
                    self._sleep(pause_s)
            else:
                return True
        return False

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._let_go()

    def _let_go(self) -> None:
        while self._fds:
            fd = self._fds.pop()
            with suppress(OSError):  # the descriptor is gone all the same; nothing was written
                os.close(fd)


def _write(fd: int, command: str) -> None:
    with suppress(OSError):  # a full disk stops nobody; it is then taken for the daemon
        os.ftruncate(fd, 0)
        os.pwrite(fd, command.encode(), 0)


def _open_directory(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


class StorageLock:
    """One poller per storage directory on this machine, whatever ledgers they have.

    An address in Linux's abstract namespace: it ends with its process however that ends, and keeps
    no file of a disk open that somebody may want to unmount.
    """

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    def take(self, storage_id: str) -> None:
        """Hold the storage with this id until `__exit__`; LockHeld when another process does."""
        held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            held.bind(b"\0poller-storage-" + storage_id.encode()[:_ADDRESS_MAX])
        except OSError as error:
            held.close()
            if error.errno != errno.EADDRINUSE:
                raise CannotStart(f"the storage cannot be locked: {error.strerror}") from error
            raise LockHeld(
                "another poller, with another state directory, stores faxes in this storage "
                "directory; stop it first, or give each a directory of its own"
            ) from error
        self._socket = held

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def refusal(state_directory: Path) -> LockHeld:
    """Say who holds the state."""
    return LockHeld(
        f"another poller holds {state_directory} (`poller {holder(state_directory) or DAEMON}`); "
        "stop it first, or use a command that works beside it"
    )


def holder(state_directory: Path) -> str | None:
    """Name the command that holds this state now; the daemon's where nothing tells which."""
    if not is_held(state_directory):
        return None
    try:
        written = (state_directory / _NAME).read_text("utf-8", "replace").strip()
    except OSError:
        written = ""
    return written or DAEMON


def is_held(state_directory: Path) -> bool:
    """Whether any command holds this state now."""
    try:
        fd = _open_directory(state_directory)
    except OSError:
        return False
    try:
        # A shared lock, taken for no time: two `status` at once do not see each other.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
