"""One poller per state: an flock, which ends with its process however that ends."""

import fcntl
import os
from pathlib import Path
from types import TracebackType

from poller.errors import CannotStart, LockHeld

_NAME = "poller.lock"


class StateLock:
    """Held from `__enter__` to `__exit__`; raises LockHeld (exit 75) when another process has it."""

    def __init__(self, state_directory: Path) -> None:
        self._path = state_directory / _NAME
        self._fd: int | None = None

    def __enter__(self) -> "StateLock":
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise CannotStart(
                f"{self._path} cannot be opened: {error.strerror}; give this user the state directory"
            ) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise LockHeld(
                f"another poller holds {self._path.parent}; stop it first, "
                "or use a command that works beside it"
            ) from None
        self._fd = fd
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def is_held(state_directory: Path) -> bool:
    """Whether a poller runs on this state now."""
    try:
        fd = os.open(state_directory / _NAME, os.O_RDONLY | os.O_CLOEXEC)
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
