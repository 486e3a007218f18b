"""One poller per state: two flocks, which end with their process however that ends.

One is on a file. The other is on the directory itself, for whoever removes a lock file by hand
would let a second poller in beside the first.
"""

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from poller.errors import CannotStart, LockHeld

_NAME = "poller.lock"
_TRY_AGAIN_S = (0.05,) * 6  # whoever asks `is_held` has it for a moment


class StateLock:
    """Held from `__enter__` to `__exit__`; raises LockHeld (exit 75) when another process has it."""

    def __init__(
        self, state_directory: Path, *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._path = state_directory / _NAME
        self._sleep = sleep
        self._fds: list[int] = []

    def __enter__(self) -> "StateLock":
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fds.append(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._fds.append(_open_directory(self._path.parent))
        except OSError as error:
            self._let_go()
            raise CannotStart(
                f"{self._path} cannot be opened: {error.strerror}; give this user the state directory"
            ) from error
        if not all(self._taken(fd) for fd in self._fds):
            self._let_go()
            raise LockHeld(
                f"another poller holds {self._path.parent}; stop it first, "
                "or use a command that works beside it"
            )
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
            os.close(self._fds.pop())


def _open_directory(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def is_held(state_directory: Path) -> bool:
    """Whether a poller runs on this state now."""
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
