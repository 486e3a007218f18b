"""storage: the durable order, and what remains when it is interrupted anywhere."""

import errno
import hashlib
import itertools
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from poller.documents import Staged
from poller.errors import PollerError, StorageConflict, StorageUnusable
from poller.store import Storage, StoredFile, syscalls
from tests.exhaustive import EXHAUSTIVE, sample
from tests.integration.storage_seam import (
    PATH,
    opened,
    recording,
    resume,
    store,
    tiff,
    tree,
    visible,
    way,
)

__all__ = ["way"]
FIRST, SECOND = tiff(b"first download"), tiff(b"second download")


@pytest.fixture(autouse=True)
def _private_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


pytestmark = pytest.mark.usefixtures("way")


async def test_steps_come_in_the_durable_order(tmp_path: Path, way: str) -> None:
    root = tmp_path / "faxes"
    storage = await opened(root)
    with recording(root) as recorded:
        calls = recorded.calls
        await store(
            storage,
            FIRST,
            ticketed=lambda _: calls.append("ticket"),
            recorded=lambda _: calls.append("row"),
        )
    directory = "main/desk"
    image, description = f"{directory}/.f1.image.part", f"{directory}/.f1.json.part"
    assert [call for call in recorded.calls if not call.startswith("fchmod")] == [
        "mkdir main",
        "mkdir main/desk",
        f"create {image}",
        f"write {image}",
        f"fsync {image}",
        f"{way} main/desk/f1.tif",
        *([f"unlink {image}"] if way == "link" else []),
        f"create {description}",
        f"write {description}",
        f"fsync {description}",
        f"fsync {directory}",
        "fsync .",
        "fsync main",
        "ticket",
        f"{way} main/desk/f1.json",
        *([f"unlink {description}"] if way == "link" else []),
        f"fsync {directory}",
        "row",
    ]


async def test_directories_are_synced_once_by_each_process(tmp_path: Path) -> None:
    root = tmp_path / "faxes"
    storage = await opened(root)
    await store(storage, FIRST)
    with recording(root) as again:
        await store(storage, FIRST, path="main/desk/f2")
    assert {"fsync .", "fsync main"} & set(again.calls) == set()
    restarted = await opened(root)
    with recording(root) as first:
        await store(restarted, FIRST, path="main/desk/f3")
    assert {"fsync .", "fsync main"} <= set(first.calls)


@pytest.mark.parametrize("by_others", [False, True])
async def test_directory_that_was_removed_and_made_again_is_synced_again(
    tmp_path: Path, by_others: bool
) -> None:
    root = tmp_path / "faxes"
    storage = await opened(root)
    await store(storage, FIRST)
    (root / "main").rename(tmp_path / "taken")
    if by_others:
        (root / "main/desk").mkdir(parents=True)
    with recording(root) as recorded:
        await store(storage, FIRST)
    assert {"fsync .", "fsync main"} <= set(recorded.calls)


async def test_directory_that_was_moved_below_a_new_one_is_synced_with_it(tmp_path: Path) -> None:
    root = tmp_path / "faxes"
    storage = await opened(root)
    await store(storage, FIRST, path="main/desk/2026/f1")
    (root / "main/desk").rename(root / "main/old")
    (root / "main/desk").mkdir()
    (root / "main/old/2026").rename(root / "main/desk/2026")
    with recording(root) as recorded:
        await store(storage, FIRST, path="main/desk/2026/f2")
    assert "fsync main" in recorded.calls


async def test_directory_behind_a_symbolic_link_is_refused_where_it_was_known_without(
    tmp_path: Path,
) -> None:
    root = tmp_path / "faxes"
    storage = await opened(root)
    await store(storage, FIRST)
    (root / "main").rename(tmp_path / "elsewhere")
    (root / "main").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageConflict):
        await store(storage, FIRST, path="main/desk/f2")


class World:
    """One fax, its row, and a storage that can be killed and started again."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.row: StoredFile | None = None
        self.ticket: Staged | None = None
        self.storage_id: str | None = None

    async def install(self) -> None:
        with recording(self.root):
            self.storage_id = await (await opened(self.root)).prepare(None)

    @asynccontextmanager
    async def started(self, **how: int) -> AsyncIterator[Storage]:
        with recording(self.root, **how) as self.recorded:
            storage = await opened(self.root, self.storage_id)
            try:
                yield storage
            finally:
                storage.close()

    def note(self, staged: Staged | None) -> None:
        self.ticket = staged

    def record(self, stored: StoredFile) -> None:
        self.row, self.ticket = stored, None

    async def download(self, data: bytes, **how: int) -> None:
        async with self.started(**how) as storage:
            await store(storage, data, ticketed=self.note, recorded=self.record)

    async def recover(self, **how: int) -> None:
        """Do what a start does, and then a worker: tidy, settle or resume, otherwise download again."""
        async with self.started(**how) as storage:
            await storage.tidy([] if self.row else [PATH])
            if self.row is not None:
                return
            found = await resume(
                storage, ticket=self.ticket, ticketed=self.note, recorded=self.record
            )
            if found is None:
                await store(storage, SECOND, ticketed=self.note, recorded=self.record)

    def check_visible(self, *, after_power_loss: bool = False) -> None:
        """Nothing partial is visible, and what is recorded is there, whole.

        Of two names that were linked and not yet synced, a power loss may take only the first.
        """
        files = visible(self.root)
        image = files.get("main/desk/f1.tif")
        assert image in {None, FIRST, SECOND}
        if (described := files.get("main/desk/f1.json")) is not None:
            assert json.loads(described)["image"]["file"] == "f1.tif"
            assert after_power_loss or image is not None
        if self.row is not None:
            assert set(files) == {"main/desk/f1.tif", "main/desk/f1.json"}

    def check_end(self) -> None:
        self.check_visible()
        files = tree(self.root)
        assert set(files) == {"main/desk/f1.tif", "main/desk/f1.json"}
        assert self.row is not None
        image = json.loads(files["main/desk/f1.json"])["image"]
        assert image["sha256"] == self.row.sha256 == _sha256(files["main/desk/f1.tif"])
        modes = {self.root / "main": 0o750, self.root / "main/desk": 0o750}
        modes |= {self.root / name: 0o640 for name in files}
        assert {path: path.stat().st_mode & 0o7777 for path in modes} == modes


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def _killed(root: Path, stop_at: int) -> World:
    world = World(root)
    await world.install()
    await world.download(FIRST, stop_at=stop_at)
    return world


async def _steps(tmp_path: Path) -> list[str]:
    return (await _killed(tmp_path / "whole", 1000)).recorded.calls


async def _stops(tmp_path: Path) -> range:
    return range(len(await _steps(tmp_path)) + 1)


async def test_kill_at_any_step_ends_with_one_whole_pair(tmp_path: Path, way: str) -> None:
    resumed, calls = 0, await _steps(tmp_path)
    for stop_at in range(len(calls) + 1):
        world = await _killed(tmp_path / str(stop_at), stop_at)
        world.check_visible()
        await world.recover()
        world.check_end()
        resumed += tree(world.root)["main/desk/f1.tif"] == FIRST
        before = tree(world.root)
        await world.recover()
        assert tree(world.root) == before
    # once the image is placed there is no download
    assert resumed >= len(calls) - calls.index(f"{way} main/desk/f1.tif")


async def test_kill_at_any_step_of_the_recovery_changes_nothing_about_that(tmp_path: Path) -> None:
    for stop_at in await _stops(tmp_path):
        for again_at in itertools.count(0 if EXHAUSTIVE else stop_at % 3, 1 if EXHAUSTIVE else 3):
            world = await _killed(tmp_path / f"{stop_at}-{again_at}", stop_at)
            await world.recover(stop_at=again_at)
            calls = world.recorded.calls
            world.check_visible()
            await world.recover()
            world.check_end()
            if len(calls) < again_at:
                break


async def _lose_power_everywhere(tmp_path: Path) -> None:
    for stop_at in await _stops(tmp_path):
        number = len((await _killed(tmp_path / f"{stop_at}-look", stop_at)).recorded.volatile())
        fates = sample(list(itertools.product([False, True], repeat=number)), 5)
        for nth, chosen in enumerate(fates):
            world = await _killed(tmp_path / f"{stop_at}-{nth}", stop_at)
            names = world.recorded.volatile()
            world.recorded.lose_power(set(itertools.compress(names, chosen)))
            world.check_visible(after_power_loss=True)
            await world.recover()
            world.check_end()


async def test_power_loss_at_any_step_ends_with_one_whole_pair(tmp_path: Path) -> None:
    await _lose_power_everywhere(tmp_path)


def _no_sync(_fd: int) -> None:
    """A planted bug."""


@pytest.mark.parametrize("forgotten", ["sync_file", "sync_directory"])
async def test_power_loss_finds_a_forgotten_fsync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgotten: str
) -> None:
    monkeypatch.setattr(syscalls, forgotten, _no_sync)
    with pytest.raises((AssertionError, FileNotFoundError, PollerError)):
        await _lose_power_everywhere(tmp_path)


async def test_power_loss_finds_forgotten_parents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poller.store.folder.Folder.sync_parents", lambda _self: None)
    with pytest.raises((AssertionError, FileNotFoundError, PollerError)):
        await _lose_power_everywhere(tmp_path)


async def test_kill_finds_a_copy_in_place_of_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    def copy(existing: str, new: str, at: int, **_: bool) -> None:
        data = b"".join(syscalls.read(source := syscalls.open_file(existing, at)))
        syscalls.close(source)
        target = syscalls.create(new, at)
        syscalls.write(target, data)
        syscalls.close(target)
        syscalls.unlink(existing, at)

    monkeypatch.setattr(syscalls, "move", copy)
    with pytest.raises(AssertionError):
        await test_kill_at_any_step_ends_with_one_whole_pair(tmp_path, way)


@pytest.mark.parametrize(
    ("failing", "number"),
    [
        pytest.param("fsync main/desk/.f1.image.part", 1, id="image"),
        pytest.param("fsync main/desk/.f1.json.part", 1, id="sidecar"),
        pytest.param("fsync main/desk", 1, id="directory-of-the-image"),
        pytest.param("fsync .", 1, id="parent"),
    ],
)
async def test_failed_fsync_is_never_repeated_and_all_is_thrown_away(
    tmp_path: Path, failing: str, number: int
) -> None:
    root = tmp_path / "faxes"
    storage = await opened(root)
    seen = itertools.count(1)

    def fail(call: str, _number: int) -> OSError | None:
        hit = call == failing and next(seen) == number
        return OSError(errno.EIO, "Input/output error") if hit else None

    with (
        recording(root, fail=fail) as recorded,
        pytest.raises(StorageUnusable, match="Input/output error"),
    ):
        await store(storage, FIRST)
    assert recorded.calls.count(failing) == number
    assert tree(root) == {}
    assert await resume(storage) is None
    await store(storage, SECOND)
    assert tree(root)["main/desk/f1.tif"] == SECOND


async def test_sidecar_whose_name_could_not_be_synced_is_hidden_and_written_again(
    tmp_path: Path,
) -> None:
    """The image stays: with its ticket in the row, two missing files would mean that both were taken."""
    root = tmp_path / "faxes"
    storage = await opened(root)
    tickets: list[Staged | None] = []
    seen = itertools.count(1)

    def fail(call: str, _number: int) -> OSError | None:
        hit = call == "fsync main/desk" and next(seen) == 2
        return OSError(errno.EIO, "Input/output error") if hit else None

    with recording(root, fail=fail), pytest.raises(StorageUnusable, match="Input/output error"):
        await store(storage, FIRST, ticketed=tickets.append)
    assert tree(root) == {"main/desk/f1.tif": FIRST}
    with recording(root) as recorded:
        assert await resume(storage, ticket=tickets[-1], ticketed=tickets.append)
    assert "create main/desk/.f1.json.part" in recorded.calls
    assert len(tickets) == 2
    assert set(tree(root)) == {"main/desk/f1.tif", "main/desk/f1.json"}


async def test_failed_fsync_while_resuming_shows_no_sidecar(tmp_path: Path, way: str) -> None:
    after_the_image = (await _steps(tmp_path)).index("create main/desk/.f1.json.part")
    world = await _killed(tmp_path / "faxes", after_the_image)
    assert set(tree(world.root)) == {"main/desk/f1.tif"}

    def fail(call: str, _number: int) -> OSError | None:
        return OSError(errno.EIO, "") if call == "fsync main/desk" else None

    restarted = await opened(world.root, world.storage_id)
    with recording(world.root, fail=fail), pytest.raises(StorageUnusable):
        await resume(restarted)
    assert set(tree(world.root)) == {"main/desk/f1.tif"}


@pytest.mark.parametrize("lost", [1, 2])
async def test_name_that_was_given_although_the_share_answered_with_an_error_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, lost: int
) -> None:
    if way == "link":
        monkeypatch.setattr(syscalls, "rename", lambda *_: errno.EINVAL)
    root = tmp_path / "faxes"
    storage = await opened(root)
    move, numbers = syscalls.move, itertools.count(1)

    def answer_lost(existing: str, new: str, at: int, **how: Any) -> None:
        move(existing, new, at, **how)
        if next(numbers) == lost:
            raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(syscalls, "move", answer_lost)
        with pytest.raises(StorageUnusable):
            await store(storage, FIRST)
    assert tree(root) == ({} if lost == 1 else {"main/desk/f1.tif": FIRST})
    if await resume(storage) is None:
        await store(storage, SECOND)
    assert set(tree(root)) == {"main/desk/f1.tif", "main/desk/f1.json"}
