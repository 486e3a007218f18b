"""Find what is in the storage by its sidecars, to rebuild a ledger; blocks."""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from datetime import datetime
from stat import S_ISREG

from poller.documents import StoredFile
from poller.store import sidecars, syscalls
from poller.store.folder import SIDECAR_PART, open_directory, staged_base
from poller.store.sidecars import Origin
from poller.stream import Stream

_SIDECAR = ".json"


@dataclass(frozen=True)
class FoundSidecar:
    """A sidecar; `path` is the fax's, without extension.

    If it is not `visible`, it was staged and never published; a `Draft` may continue from its
    image. `damage` says what is wrong with the image, if anybody looked, or with `unreadable` why
    nobody could.
    """

    path: str
    origin: Origin
    stored: StoredFile
    stored_at: datetime
    visible: bool
    damage: str | None = None
    unreadable: bool = False

    @property
    def stream(self) -> Stream:
        whose = self.origin.identity
        return Stream(whose.app_id, whose.user_id, self.origin.direction)

    @property
    def fax_id(self) -> str:
        return self.origin.identity.fax_id


@dataclass(frozen=True)
class Unreadable:
    """A file that has a sidecar's name and cannot be read as one."""

    file: str
    why: str


def walk(root: int) -> Generator[FoundSidecar | Unreadable, None, None]:
    """Yield every sidecar in the storage, in no order; do not follow symbolic links."""
    waiting = [""]
    while waiting:
        here = waiting.pop()
        try:
            fd = open_directory(root, here)
        except FileNotFoundError:  # a consumer has just removed the empty directory
            continue
        with syscalls.held(fd):
            for name in syscalls.names(fd):
                if name.endswith((_SIDECAR, SIDECAR_PART)):
                    yield from _sidecar(fd, here, name)
                elif not name.startswith(".") and syscalls.is_directory(name, fd):
                    waiting.append(f"{here}/{name}" if here else name)


def _sidecar(fd: int, here: str, name: str) -> Iterator[FoundSidecar | Unreadable]:
    visible = not name.startswith(".")
    base = name.removesuffix(_SIDECAR) if visible else staged_base(name)
    path = f"{here}/{base}" if here else base

    def read() -> bytes:
        if not S_ISREG(syscalls.status_of(name, fd).st_mode):
            raise FileNotFoundError
        with syscalls.reading(name, fd) as file:
            return syscalls.read_all(file)

    yield from described(path, read, visible=visible)


def described(
    path: str, read: Callable[[], bytes], *, visible: bool
) -> Iterator[FoundSidecar | Unreadable]:
    """Yield what the sidecar of the fax at `path` says; nothing if `read` does not find it."""
    try:
        found = sidecars.describe(read(), path)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        if visible:  # the next start removes what a killed poller left half done
            why = str(error) if isinstance(error, ValueError) else error.strerror
            yield Unreadable(f"{path}{_SIDECAR}", why or "it cannot be read")
        return
    yield FoundSidecar(path, *found, visible=visible)
