"""What the storage tests share: faxes, and an `os` that records, stops or fails at any step."""

import errno
import os
import re
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from poller.config.model import StorageConfig
from poller.documents import Staged
from poller.errors import MovedAway
from poller.store import Draft, Identity, Origin, Storage, StoredFile, sidecar, syscalls
from poller.store.directory import Directory

PATH = "main/desk/f1"
IDENTITY = Identity("app", "user", "f1")
NOW = datetime(2024, 5, 21, 4, 27, 56, 123456, UTC)
ORIGIN = Origin(
    identity=IDENTITY,
    account="main",
    user="desk",
    received_at=NOW,
    first_seen_at=NOW,
    listed_pages=1,
    metadata={"fax_id": "f1", "pages": "1", "note": "Grüße"},
)


def tiff(text: bytes = b"fax image") -> bytes:
    """The smallest whole TIFF: one strip that contains `text`."""
    entries = struct.pack("<HHII", 273, 4, 1, 38) + struct.pack("<HHII", 279, 4, 1, len(text))
    return b"II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<I", 0) + text


def config(directory: Path, **changes: Any) -> StorageConfig:
    return StorageConfig(directory=directory, **{"min_free": 0} | changes)


def describe(stored: StoredFile | None) -> dict[str, Any]:
    return sidecar(stored, ORIGIN, stored_at=NOW)


async def opened(directory: Path, storage_id: str | None = None, **changes: Any) -> Storage:
    storage = Storage(Directory(config(directory, **changes)))
    await storage.prepare(storage_id)
    return storage


Ticketed = Callable[[Staged | None], None]
Recorded = Callable[[StoredFile], None]


async def store(
    storage: Storage,
    data: bytes,
    *,
    path: str = PATH,
    ticketed: Ticketed = lambda _: None,
    recorded: Recorded = lambda _: None,
    replacing: bool = False,
) -> StoredFile:
    """Store a fax as a download does; `ticketed` and `recorded` stand for the row."""
    async with storage.draft(path, IDENTITY, replacing=replacing) as draft:
        await draft.reset()
        await draft.write(data)
        document = await draft.check()
        staged = await draft.stage(describe, document.problem)
        return await published(draft, staged, ticketed, recorded)


async def published(
    draft: Draft,
    staged: Staged,
    ticketed: Ticketed = lambda _: None,
    recorded: Recorded = lambda _: None,
) -> StoredFile:
    ticketed(staged)
    try:
        assert await draft.publish(staged)
    except MovedAway:
        ticketed(None)
        await draft.take_back(staged)
        raise
    recorded(staged.file)
    return staged.file


async def resume(
    storage: Storage,
    identity: Identity = IDENTITY,
    *,
    ticket: Staged | None = None,
    ticketed: Ticketed = lambda _: None,
    recorded: Recorded = lambda _: None,
) -> StoredFile | None:
    """Continue from what is there, as an attempt at a row with this ticket does."""
    async with storage.draft(PATH, identity) as draft:
        found = None if ticket is None else await draft.settle(ticket, describe)
        if found is None:
            ticketed(None)
            found = await draft.resume(lambda document: document.problem is None, describe)
        if isinstance(found, Staged):
            return await published(draft, found, ticketed, recorded)
        if found is not None:
            recorded(found)
        return found


def without_run(name: str) -> str:
    """Remove the run's id from a dot-file's name."""
    return re.sub(r"\.[0-9a-f]{8}(\.(image|json)\.part)", r"\1", name)


def dot_image(root: Path, path: str = PATH) -> Path:
    """Where the bytes of a draft are."""
    directory, _, base = path.rpartition("/")
    (found,) = (root / directory).glob(f".{base}.*.image.part")
    return found


def tree(directory: Path) -> dict[str, bytes]:
    """All files below, but the marker, by their path."""
    return {
        without_run(str(file.relative_to(directory))): file.read_bytes()
        for file in sorted(directory.rglob("*"))
        if file.is_file() and file.name != ".poller-storage"
    }


def visible(directory: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(directory).items() if "/." not in f"/{name}"}


class Killed(BaseException):
    """kill -9: none of our handlers runs, since everything they could do also fails."""


class RecordedOs:
    """Stands for `os`: records what changes the disk, and can stop before the n-th such call.

    It knows which names and contents a power loss may take, those without an fsync, so it needs no
    real one.
    """

    renames = True  # otherwise the file system answers that it cannot, and uses links

    def __init__(
        self,
        root: Path,
        *,
        stop_at: int | None = None,
        fail: Callable[[str, int], OSError | None] = lambda _call, _number: None,
    ) -> None:
        self.root = root
        self.calls: list[str] = []
        self.volatile_names: dict[Path, list[Path]] = {}
        self.renamed: dict[Path, Path] = {}  # volatile names, and their earlier names
        self.volatile_contents: dict[int, Path] = {}
        self._rename = syscalls.rename
        self._stop_at = stop_at
        self._fail = fail
        self._fds: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_CREAT:
            self._step("create", self._path(dir_fd, path))
        fd = os.open(path, flags, mode, dir_fd=dir_fd)
        self._fds.add(fd)
        if flags & os.O_CREAT:
            self._new_name(self._path(dir_fd, path))
        return fd

    def close(self, fd: int) -> None:
        self._fds.discard(fd)
        os.close(fd)

    def fdopen(self, fd: int, mode: str) -> Any:
        self._fds.discard(fd)
        return os.fdopen(fd, mode)

    def mkdir(self, name: str, mode: int, *, dir_fd: int) -> None:
        self._step("mkdir", self._path(dir_fd, name))
        os.mkdir(name, mode, dir_fd=dir_fd)
        self._new_name(self._path(dir_fd, name))

    def fchmod(self, fd: int, mode: int) -> None:
        self._step("fchmod", self._path(fd))
        os.fchmod(fd, mode)

    def write(self, fd: int, data: memoryview) -> int:
        self._step("write", self._path(fd))
        self.volatile_contents[os.fstat(fd).st_ino] = self._path(fd)
        return os.write(fd, data[:1000])  # short writes are normal

    def fsync(self, fd: int) -> None:
        self._step("fsync", self._path(fd))
        for name in self.volatile_names.pop(self._path(fd), ()):
            self.renamed.pop(name, None)
        self.volatile_contents.pop(os.fstat(fd).st_ino, None)

    def link(self, old: str, new: str, **where: Any) -> None:
        self._step("link", self._path(where["dst_dir_fd"], new))
        os.link(old, new, **where)
        self._new_name(self._path(where["dst_dir_fd"], new))

    def rename(self, old: str, new: str, at: int) -> int:
        """Stands for `syscalls.rename`."""
        if not self.renames:
            return errno.EINVAL
        before, after = self._path(at, old), self._path(at, new)
        try:
            if before.is_file() and not os.path.lexists(after):
                self._step("rename", after)
        except OSError as error:
            return error.errno or errno.EIO
        number = self._rename(old, new, at)
        if not number:
            self._renamed(before, after)
        return number

    def _renamed(self, before: Path, after: Path) -> None:
        names = self.volatile_names.setdefault(after.parent, [])
        was_back = self.renamed.pop(before, None) == after
        names[:] = [one for one in names if one != before]
        if not was_back:
            self.renamed[after] = before
            names.append(after)

    def unlink(self, name: str, *, dir_fd: int) -> None:
        path = self._path(dir_fd, name)
        if path.exists():
            self._step("unlink", path)
        os.unlink(name, dir_fd=dir_fd)
        for names in self.volatile_names.values():
            names[:] = [one for one in names if one != path]
        self.renamed.pop(path, None)

    def _path(self, fd: int | None, name: str = "") -> Path:
        assert fd is not None
        return Path(os.readlink(f"/proc/self/fd/{fd}")) / name

    def _new_name(self, path: Path) -> None:
        self.volatile_names.setdefault(path.parent, []).append(path)

    def _step(self, call: str, path: Path) -> None:
        number = len(self.calls)
        if self._stop_at is not None and number >= self._stop_at:
            raise Killed
        where = "." if path == self.root else str(path).removeprefix(f"{self.root}/")
        self.calls.append(f"{call} {without_run(where)}")
        if error := self._fail(self.calls[-1], number):
            raise error

    def close_all(self) -> None:
        """A killed process holds no descriptors."""
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def volatile(self) -> list[Path]:
        return [path for paths in self.volatile_names.values() for path in paths]

    def lose_power(self, lost: set[Path]) -> None:
        """Remove the contents that were not synced, and these of the names that were not synced."""
        for inode in self.volatile_contents:
            for file in self.root.rglob("*"):
                if file.is_file() and file.stat().st_ino == inode:
                    os.truncate(file, file.stat().st_size // 2)
        for path in lost:
            if (before := self.renamed.get(path)) is not None:
                if path.exists():
                    path.rename(before)
            elif path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


@pytest.fixture(params=[True, False], ids=["rename", "link"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How names are given: by a rename that never replaces, or if that is impossible, by a link."""
    monkeypatch.setattr(RecordedOs, "renames", request.param)
    return "rename" if request.param else "link"


@contextmanager
def recording(root: Path, *, stop_at: int | None = None, **how: Any) -> Iterator[RecordedOs]:
    """Record the steps inside; end quietly when they were stopped."""
    recorded = RecordedOs(root, stop_at=stop_at, **how)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(syscalls, "os", recorded)
        patch.setattr(syscalls, "rename", recorded.rename)
        try:
            yield recorded
        except Killed:
            pass
        finally:
            recorded.close_all()
