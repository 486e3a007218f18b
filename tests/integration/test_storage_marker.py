"""storage: which directory it is, and whether it can take a fax."""

import errno
import itertools
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from poller.config.values import size_text
from poller.errors import CannotStart, StorageUnusable
from poller.store import Storage, syscalls
from poller.store.directory import Directory
from tests.integration.storage_seam import (
    RecordedOs,
    config,
    opened,
    recording,
    store,
    tiff,
    tree,
    way,
)

__all__ = ["way"]
MARKER = ".poller-storage"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "faxes"


async def _found(root: Path) -> str:
    return await Storage(Directory(config(root))).prepare(None)


async def test_first_start_makes_and_marks_the_directory(root: Path) -> None:
    storage = Storage(Directory(config(root)))
    storage_id = await storage.prepare(None)
    assert (root / MARKER).read_text() == f"{storage_id}\n"
    assert os.listdir(root) == [MARKER]
    assert await storage.check(storage_id) is None
    assert await Storage(Directory(config(root))).check(storage_id) is None


async def test_start_killed_just_after_it_marked_leaves_nothing(root: Path) -> None:
    storage_id = await _found(root)
    os.link(root / MARKER, root / f"{MARKER}.part")
    assert await _found(root) == storage_id
    assert os.listdir(root) == [MARKER]


async def test_empty_directory_may_hold_lost_and_found(root: Path) -> None:
    (root / "lost+found").mkdir(parents=True)
    await _found(root)
    assert (root / MARKER).exists()


async def test_new_ledger_takes_the_storage_that_is_there(root: Path) -> None:
    storage = Storage(Directory(config(root)))
    storage_id = await storage.prepare(None)
    await store(storage, tiff())
    assert await _found(root) == storage_id


async def test_directory_with_strange_files_is_refused(root: Path) -> None:
    root.mkdir()
    (root / "letter.txt").touch()
    with pytest.raises(CannotStart, match=r"not empty \(it contains 'letter.txt'\)"):
        await _found(root)
    assert os.listdir(root) == ["letter.txt"]


async def test_file_in_place_of_the_directory_is_refused(root: Path) -> None:
    root.touch()
    with pytest.raises(CannotStart, match="ot a directory"):
        await _found(root)


async def test_parent_that_is_no_directory_is_refused(root: Path) -> None:
    root.touch()
    with pytest.raises(CannotStart):
        await _found(root / "below")


async def test_known_storage_is_not_made_again(root: Path) -> None:
    storage = Storage(Directory(config(root)))
    assert await storage.prepare("known") == "known"
    assert not root.exists()
    reason = await storage.check("known")
    assert reason is not None
    assert reason.startswith(f"the storage directory {root} does not exist. See")


def _remove(root: Path) -> None:
    (root / MARKER).unlink()


def _replace(root: Path) -> None:
    (root / MARKER).write_text("other\n")


def _garble(root: Path) -> None:
    (root / MARKER).write_bytes(b"\xff" * 5000)


def _to_a_directory(root: Path) -> None:
    (root / MARKER).unlink()
    (root / MARKER).mkdir()


def _to_a_file(root: Path) -> None:
    _remove(root)
    root.rmdir()
    root.touch()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        pytest.param(_remove, "is its disk mounted?", id="missing"),
        pytest.param(_replace, "belongs to another storage", id="other"),
        pytest.param(_garble, "belongs to another storage", id="garbled"),
        pytest.param(_to_a_directory, "cannot be used", id="a-directory"),
        pytest.param(_to_a_file, "is not a directory", id="a-file"),
    ],
)
async def test_storage_that_is_not_the_ledger_s_is_unusable(
    root: Path, change: Callable[[Path], None], why: str
) -> None:
    storage = Storage(Directory(config(root)))
    storage_id = await storage.prepare(None)
    change(root)
    assert why in str(await storage.check(storage_id))
    with pytest.raises(StorageUnusable):
        await store(storage, tiff())
    with pytest.raises(StorageUnusable):
        await storage.tidy([])


async def test_storage_that_was_never_prepared_is_unusable(root: Path) -> None:
    await _found(root)
    assert await Storage(Directory(config(root))).check() is not None


async def test_too_little_space_is_reported_with_both_numbers(root: Path) -> None:
    storage = Storage(Directory(config(root, min_free=1 << 60)))
    storage_id = await storage.prepare(None)
    why = str(await storage.check(storage_id))
    assert "less than the 1073741824.0 GiB of min_free" in why
    assert re.match(r"only \d+(\.\d)? ([KMGT]i)?B free in ", why)


@pytest.mark.parametrize(
    ("count", "text"), [(5, "5 B"), (1536, "1.5 KiB"), (5 << 20, "5.0 MiB"), (1 << 30, "1.0 GiB")]
)
def test_sizes_are_readable(count: int, text: str) -> None:
    assert size_text(count) == text


async def test_free_space_is_unknown_while_there_is_no_directory(root: Path) -> None:
    storage = Storage(Directory(config(root)))
    assert await storage.free_bytes() is None
    await storage.prepare(None)
    assert await storage.free_bytes()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.ENOENT])
@pytest.mark.parametrize("call", ["create", "write"])
async def test_check_tries_to_write(root: Path, number: int, call: str) -> None:
    storage = await opened(root)

    def fail(made: str, _number: int) -> OSError | None:
        return OSError(number, "") if made.startswith(call) else None

    with recording(root, fail=fail):
        assert os.strerror(number) in str(await storage.check())
    assert await storage.check() is None
    assert tree(root) == {}


async def test_directory_without_permission_is_unusable(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = await opened(root)

    def refused(_directory: str) -> int:
        raise PermissionError(errno.EACCES, "")

    monkeypatch.setattr(syscalls, "open_root", refused)
    assert "Permission denied" in str(await storage.check())


async def test_kill_at_any_step_of_the_first_start_is_made_good(tmp_path: Path, way: str) -> None:
    for stop_at in itertools.count():
        root = tmp_path / str(stop_at) / "faxes"
        with recording(root, stop_at=stop_at) as recorded:
            await _found(root)
        storage = Storage(Directory(config(root)))
        storage_id = await storage.prepare(None)
        assert (root / MARKER).read_text() == f"{storage_id}\n"
        assert await storage.check(storage_id) is None
        await storage.tidy([])
        assert set(os.listdir(root)) <= {MARKER, f"{MARKER}.part"}
        if len(recorded.calls) < stop_at:
            break
    assert f"fsync {MARKER}.part" in recorded.calls
    assert recorded.calls.index(f"{way} {MARKER}") < len(recorded.calls) - 1
    after = recorded.calls[recorded.calls.index(f"{way} {MARKER}") + 1]
    assert after == "fsync ."


def _fails(call: str, number: int) -> Callable[[str, int], OSError | None]:
    return lambda made, _n: OSError(number, "") if f"{made} ".startswith(call) else None


_NO_NAME = r"can neither rename .* nor give it a second name \(link\)"


@pytest.mark.parametrize(
    ("call", "number", "why"),
    [
        pytest.param("link .poller-probe", errno.EPERM, _NO_NAME, id="no-link"),
        pytest.param("link .poller-probe", errno.EXDEV, _NO_NAME, id="link-elsewhere"),
        pytest.param("fsync . ", errno.EINVAL, "cannot sync a directory", id="no-directory-fsync"),
        pytest.param("create", errno.ENOSPC, "No space left", id="full"),
        pytest.param("link .poller-probe", errno.EIO, "Input/output", id="link-fails"),
        pytest.param("fchmod .poller-probe", errno.EPERM, "a file's mode", id="no-chmod"),
        pytest.param("mkdir", errno.EACCES, "Permission denied", id="no-permission"),
    ],
)
async def test_first_start_refuses_what_cannot_work(
    tmp_path: Path, call: str, number: int, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RecordedOs, "renames", False)
    root = tmp_path / "faxes"
    if call != "mkdir":
        root.mkdir()
    with recording(root, fail=_fails(call, number)), pytest.raises(CannotStart, match=why):
        await _found(root)
    assert not (root / MARKER).exists()
    await _found(root)


async def test_first_start_refuses_a_directory_fsync_that_fails(tmp_path: Path) -> None:
    root = tmp_path / "faxes"
    root.mkdir()
    with recording(root, fail=_fails("fsync . ", errno.EIO)), pytest.raises(CannotStart):
        await _found(root)


async def test_first_start_refuses_names_that_are_overwritten(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syscalls, "move", lambda *_: True)
    with pytest.raises(CannotStart, match="replaces a file"):
        await _found(root)


async def test_first_start_refuses_a_create_that_overwrites(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create(name: str, at: int) -> int:
        return os.open(name, os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=at)

    monkeypatch.setattr(syscalls, "create", create)
    with pytest.raises(CannotStart, match="O_EXCL"):
        await _found(root)
