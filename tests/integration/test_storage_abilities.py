"""storage: it tries what a delivery needs of the file system, and names each lack."""

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from poller.errors import CannotStart, StorageUnusable
from poller.ingest.fetch import Outcome
from poller.ingest.runtime import Runtime
from poller.simulator import Simulator
from poller.store import Storage, abilities, syscalls
from poller.store.directory import Directory
from tests.conftest import Event, QuickClock
from tests.integration.at_work import fetch, listed, said
from tests.integration.storage_seam import config, opened, store, tiff

MARKER = ".poller-storage"


class OddOs:
    """Stands for `os`: a file system that cannot do everything."""

    def __init__(self, **odd: Callable[..., Any]) -> None:
        self._odd = odd

    def __getattr__(self, name: str) -> Any:
        return self._odd.get(name) or getattr(os, name)


def _refuses(number: int) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return refuse


def _directory_sync_refused(fd: int) -> None:
    if Path(f"/proc/self/fd/{fd}").is_dir():
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def _open_taken(name: str, flags: int, *args: Any, **where: Any) -> int:
    return os.open(name, flags & ~os.O_EXCL, *args, **where)


def _open_for_all(name: str, flags: int, *args: Any, **where: Any) -> int:
    fd = os.open(name, flags, *args, **where)
    if flags & os.O_CREAT:
        os.fchmod(fd, 0o755)
    return fd


def _open_in_another_group(name: str, flags: int, *args: Any, **where: Any) -> int:
    fd = os.open(name, flags, *args, **where)
    if flags & os.O_CREAT and name == ".file":
        os.fchown(fd, -1, 12345)
    return fd


def _other_bytes(fd: int, size: int) -> bytes:
    return os.read(fd, size)[:-1]


def _overwrites(old: str, new: str, **where: Any) -> None:
    os.rename(old, new, **{k: v for k, v in where.items() if k != "follow_symlinks"})


LACKS: dict[str, tuple[OddOs, str]] = {
    "no link": (OddOs(link=_refuses(errno.EPERM)), "can neither rename .* nor give it a second"),
    "no link (95)": (OddOs(link=_refuses(errno.EOPNOTSUPP)), "can neither rename a file"),
    "link overwrites": (OddOs(link=_overwrites), "replaces a file although poller forbade it"),
    "no directory fsync": (OddOs(fsync=_directory_sync_refused), "cannot sync a directory"),
    "no chmod": (OddOs(fchmod=_refuses(errno.EPERM)), r"set a file's mode \(chmod\)"),
    "chmod ignored": (
        OddOs(fchmod=lambda *_: None, open=_open_for_all),
        "gives a file mode 755 although poller set 640",
    ),
    "directory's chmod ignored": (
        OddOs(mkdir=lambda name, _, **at: os.mkdir(name, 0o500, **at), fchmod=lambda *_: None),
        "gives a directory mode 500 although poller set 750",
    ),
    "another group": (OddOs(open=_open_in_another_group), "gives files group 12345 in directories"),
    "O_EXCL ignored": (OddOs(open=_open_taken), r"although its name is taken \(O_EXCL\)"),
    "other bytes": (OddOs(read=_other_bytes), "returns other bytes than"),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "faxes"


def _lacking(patch: pytest.MonkeyPatch, lack: str) -> str:
    if lack == "another group" and os.geteuid() != 0:
        pytest.skip("only root gives a file away")
    odd, why = LACKS[lack]
    patch.setattr(syscalls, "os", odd)
    patch.setattr(syscalls, "rename", lambda *_: errno.EINVAL)
    return why


@pytest.mark.parametrize("lack", LACKS)
async def test_first_start_refuses_a_file_system_that_lacks_what_a_delivery_needs(
    root: Path, lack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root.mkdir()
    with monkeypatch.context() as patch:
        why = _lacking(patch, lack)
        with pytest.raises(CannotStart, match=f"file system of the storage directory .* {why}"):
            await Storage(Directory(config(root))).prepare(None)
    assert list(root.iterdir()) == []
    await Storage(Directory(config(root))).prepare(None)


# a look reads the marker, which is unreadable on such a disk
@pytest.mark.parametrize("lack", [lack for lack in LACKS if lack != "other bytes"])
async def test_storage_that_was_moved_to_such_a_file_system_is_unusable_and_says_why(
    root: Path, lack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = await opened(root)
    assert await storage.check() is None
    shutil.copytree(root, root.with_name("copy"))
    shutil.rmtree(root)
    root.with_name("copy").rename(root)
    with monkeypatch.context() as patch:
        why = _lacking(patch, lack)
        for _ in range(2):
            with pytest.raises(StorageUnusable, match=why):
                raise StorageUnusable(await storage.check() or "")
    assert await storage.check() is None
    assert [path.name for path in root.iterdir()] == [MARKER]


async def test_a_lack_that_a_short_look_meets_is_named_by_that_look(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = await opened(root)
    assert await storage.check() is None
    with monkeypatch.context() as patch:
        why = _lacking(patch, "no chmod")
        with pytest.raises(StorageUnusable, match=why):
            raise StorageUnusable(await storage.check() or "")
    assert await storage.check() is None
    assert [path.name for path in root.iterdir()] == [MARKER]


async def test_start_removes_no_probe_of_another_process_that_runs(root: Path) -> None:
    root.mkdir()
    mine, left, other = (f"{abilities.PROBE}{n}.file" for n in (os.getpid(), 4194305, os.getppid()))
    for name in (mine, left, other):
        (root / name).touch()
    storage = await opened(root)
    await storage.tidy([])
    assert {path.name for path in root.iterdir()} == {MARKER, other}


@dataclass
class Proofs:
    count: int = 0


@pytest.fixture
def proofs(monkeypatch: pytest.MonkeyPatch) -> Proofs:
    counted, real = Proofs(), abilities.prove

    def prove(*args: Any) -> None:
        counted.count += 1
        real(*args)

    monkeypatch.setattr(abilities, "prove", prove)
    return counted


async def test_a_look_tries_everything_only_when_something_changed(
    root: Path, proofs: Proofs
) -> None:
    storage = await opened(root)
    assert proofs.count == 1
    for _ in range(3):
        assert await storage.check() is None
    assert proofs.count == 2

    storage.doubt()
    assert await storage.check() is None
    assert await storage.check() is None
    assert proofs.count == 3

    shutil.copy(root / MARKER, root / "copy")
    (root / "copy").rename(root / MARKER)
    assert await storage.check() is None
    assert proofs.count == 4

    (root / MARKER).rename(root.parent / MARKER)
    assert await storage.check() is not None
    (root.parent / MARKER).rename(root / MARKER)
    assert await storage.check() is None
    assert proofs.count == 5


async def test_inode_numbers_that_change_at_each_look_are_no_change(
    root: Path, proofs: Proofs, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = await opened(root)
    real, looks = syscalls.status_of, iter(range(1000, 2000))

    def status_of(name: str, at: int) -> os.stat_result:
        found = real(name, at)
        return os.stat_result((found.st_mode, next(looks), *found[2:]))

    monkeypatch.setattr(syscalls, "status_of", status_of)
    for _ in range(3):
        assert await storage.check() is None
    assert proofs.count == 2


async def test_delivery_that_fails_by_the_storage_pauses_fetching_after_one_download(
    runtime: Runtime,
    simulator: Simulator,
    clock: QuickClock,
    events: list[Event],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fax, _ = await listed(runtime, simulator)
    with monkeypatch.context() as patch:
        _lacking(patch, "no link")
        assert await runtime.services.gate.check()  # nothing changed that a look would see
        assert await fetch(runtime, fax) is Outcome.POSTPONED
        for _ in range(20):
            clock.advance(timedelta(minutes=1))
            assert not await runtime.services.gate.check()
        assert "can neither rename a file" in str(runtime.services.gate.reason)
    assert simulator.downloads[fax] == 1
    clock.advance(timedelta(minutes=1))
    assert await runtime.services.gate.check()
    assert await fetch(runtime, fax) is Outcome.STORED
    assert said(events, "storage-unusable", "storage-usable") == [
        "storage-unusable",
        "storage-usable",
    ]


async def test_a_proof_changes_nothing(root: Path) -> None:
    storage = await opened(root, consumers="move")
    await store(storage, tiff())
    before = sorted((str(path), path.stat().st_ino) for path in root.rglob("*"))
    storage.doubt()
    assert await storage.check() is None
    assert sorted((str(path), path.stat().st_ino) for path in root.rglob("*")) == before
