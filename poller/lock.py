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
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

from poller import state_directory
from poller.errors import CannotStart, LockHeld

DAEMON = "run"  # the one command that other commands can leave work to
_NAME = "poller.lock"
_ADDRESS_MAX = 80  # of the 107 bytes that an address may have
_TRY_AGAIN_S = (0.05,) * 6  # whoever asks `is_held` has it for a moment


class StateLock(ExitStack):
    """Held from `__enter__` to `__exit__`; raises LockHeld (exit 75) when another process has it.

    `command` is the one that holds it, for whoever asks `holder`.
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
                f"{path} cannot be opened: {error.strerror}; give this user the state directory"
            ) from error
        if not self._locked(file):
            raise refusal(self._directory)
        _write(file, self._command)  # before it is seen: `holder` looks at the directory
        if not self._locked(directory):
            _write(file, "")  # somebody removed the file, and ours says nothing of who holds it
            raise refusal(self._directory)

    def _locked(self, fd: int) -> bool:
        for pause_s in (*_TRY_AGAIN_S, 0):
            with suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            self._sleep(pause_s)
        return False


def _close(fd: int) -> None:
    with suppress(OSError):  # the descriptor is gone all the same; nothing was written
        os.close(fd)


def _write(fd: int, command: str) -> None:
    with suppress(OSError):  # a full disk stops nobody; it is then taken for the daemon
        os.ftruncate(fd, 0)
        os.pwrite(fd, command.encode(), 0)


def _open_directory(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


class StorageLock(ExitStack):
    """One poller per storage directory on this machine, whatever ledgers they have.

    An address in Linux's abstract namespace: it ends with its process however that ends, and keeps
    no file of a disk open that somebody may want to unmount.
    """

    def take(self, storage_id: str) -> None:
        """Hold the storage with this id until `__exit__`; LockHeld when another process does."""
        with ExitStack() as held:
            address = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            try:
                address.bind(b"\0poller-storage-" + storage_id.encode()[:_ADDRESS_MAX])
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise CannotStart(f"the storage cannot be locked: {error.strerror}") from error
                raise LockHeld(
                    "another poller, with another state directory, stores faxes in this storage "
                    "directory; stop it first, or give each a directory of its own"
                ) from error
            self.push(held.pop_all())


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
