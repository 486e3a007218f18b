"""storage: a consumer renames the day's directory while poller writes a fax into it."""

import errno
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poller.errors import StorageConflict
from poller.ingest.fetch import Outcome
from poller.ingest.runtime import Runtime
from poller.simulator import Simulator
from poller.store import Storage, syscalls
from tests.conftest import Event, stored_files
from tests.integration.at_work import fetch, listed
from tests.integration.storage_seam import opened, resume, store, tiff, tree, visible, way

__all__ = ["way"]
pytestmark = pytest.mark.usefixtures("way")
FAX = tiff()
PAIR = {"main/desk/f1.tif", "main/desk/f1.json"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "faxes"


@pytest.fixture(autouse=True)
def _given(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "link":
        monkeypatch.setattr(syscalls, "rename", lambda *_: errno.EINVAL)


def _move_away(root: Path) -> Path:
    away = root.parent / "away"
    (root / "main/desk").rename(away)
    return away


class _Move:
    """Stands for `syscalls.move`: does something before or after the n-th name is given."""

    def __init__(self, **by_moment: Callable[[], Any]) -> None:
        self._real = syscalls.move
        self._by_moment = by_moment
        self._numbers = itertools.count(1)

    def __call__(self, *args: Any, **how: Any) -> None:
        number = next(self._numbers)
        self._by_moment.get(f"before_{number}", lambda: None)()
        self._real(*args, **how)
        self._by_moment.get(f"after_{number}", lambda: None)()


async def _stored_again(storage: Storage, root: Path) -> None:
    assert await resume(storage) is None
    await store(storage, FAX)
    assert set(tree(root)) == PAIR


async def test_fax_whose_directory_was_moved_while_it_came_is_shown_nowhere_and_stored_again(
    root: Path,
) -> None:
    storage = await opened(root)

    def moved(_fd: int) -> None:
        _move_away(root)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(syscalls, "sync_file", moved)
        patched.setattr(syscalls, "move", None)
        with pytest.raises(StorageConflict, match=r"moved away: .* the directory main/desk"):
            await store(storage, FAX)
    assert list((root.parent / "away").iterdir()) == []
    await _stored_again(storage, root)


@pytest.mark.parametrize("moment", ["before_1", "after_1", "before_2"])
@pytest.mark.parametrize("replaced", [False, True])
async def test_fax_shown_in_a_directory_that_was_moved_is_taken_back_and_stored_again(
    root: Path, monkeypatch: pytest.MonkeyPatch, moment: str, replaced: bool
) -> None:
    storage = await opened(root)

    def moved() -> None:
        _move_away(root)
        if replaced:
            (root / "main/desk").mkdir(mode=0o750)

    with monkeypatch.context() as patched:
        patched.setattr(syscalls, "move", _Move(**{moment: moved}))
        with pytest.raises(StorageConflict, match="moved away"):
            await store(storage, FAX)
    assert list((root.parent / "away").iterdir()) == []
    await _stored_again(storage, root)


async def test_fax_that_was_shown_in_its_place_is_taken_with_its_directory(root: Path) -> None:
    storage = await opened(root)
    await store(storage, FAX)
    _move_away(root)
    assert tree(root) == {}
    assert sorted(os.listdir(root.parent / "away")) == ["f1.json", "f1.tif"]


@pytest.mark.parametrize("taken", [("f1.tif", "f1.json"), ("f1.tif",)])
async def test_what_was_taken_out_of_a_directory_that_was_moved_is_delivered(
    root: Path, monkeypatch: pytest.MonkeyPatch, taken: tuple[str, ...]
) -> None:
    storage = await opened(root)

    def take() -> None:
        for name in taken:
            (root.parent / "away" / name).unlink()

    with monkeypatch.context() as patched:
        moved: dict[str, Callable[[], Any]] = {"before_2": lambda: _move_away(root)}
        patched.setattr(syscalls, "move", _Move(**moved, after_2=take))
        await store(storage, FAX)
    assert visible(root) == {}
    left = {"f1.tif", "f1.json"} - set(taken)
    assert set(os.listdir(root.parent / "away")) == left


async def test_directory_whose_inode_number_changes_at_each_look_is_not_called_moved(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = itertools.count(1000)

    def status(fd: int) -> os.stat_result:
        found = os.fstat(fd)
        return os.stat_result((found.st_mode, next(numbers), *found[2:]))

    storage = await opened(root)
    monkeypatch.setattr(syscalls, "status", status)
    await store(storage, FAX)
    assert set(tree(root)) == PAIR


async def test_fax_that_went_with_its_directory_is_reported_and_fetched_again(
    runtime: Runtime, simulator: Simulator, monkeypatch: pytest.MonkeyPatch, events: list[Event]
) -> None:
    fax, listed_fax = await listed(runtime, simulator)
    directory = runtime.config.storage.directory
    day = directory / listed_fax.path.rpartition("/")[0]
    moves = _Move(before_1=lambda: day.rename(directory.parent / "away"))
    with monkeypatch.context() as patched:
        patched.setattr(syscalls, "move", moves)
        assert await fetch(runtime, fax) is Outcome.FAILED
    (retry,) = [event for event in events if event.action == "fax-retry"]
    assert "moved away" in str(retry.fields["error"])
    assert await fetch(runtime, fax) is Outcome.STORED
    assert len(stored_files(directory)) == 2
    assert list((directory.parent / "away").iterdir()) == []
