"""storage: a damaged fax is fetched again, interrupted anywhere, and no good file is lost."""

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from poller.documents import Staged
from poller.errors import StorageUnusable
from poller.store import Condition, Identity, Storage, StoredFile, syscalls
from tests.integration.storage_seam import (
    IDENTITY,
    PATH,
    RecordedOs,
    describe,
    opened,
    published,
    recording,
    store,
    tiff,
    tree,
    visible,
    way,
)

__all__ = ["way"]
FIRST, SECOND = tiff(b"as it was stored"), tiff(b"as eFax sends it now")
BAD = FIRST[:-3] + b"???"
IMAGE, SIDECAR = "main/desk/f1.tif", "main/desk/f1.json"


pytestmark = pytest.mark.usefixtures("way")


@pytest.fixture(autouse=True)
def _private_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


def _change_image(root: Path) -> None:
    (root / IMAGE).write_bytes(BAD)


def _cut_image(root: Path) -> None:
    (root / IMAGE).write_bytes(FIRST[:10])


def _remove_image(root: Path) -> None:
    (root / IMAGE).unlink()


def _remove_sidecar(root: Path) -> None:
    (root / SIDECAR).unlink()


def _change_sidecar(root: Path) -> None:
    (root / SIDECAR).write_text("{}")


def _foreign_sidecar(root: Path) -> None:
    content = json.loads((root / SIDECAR).read_text())
    (root / SIDECAR).write_text(json.dumps(content | {"fax_id": "f2"}))


def _another_pair(root: Path) -> None:
    """Both were replaced, and fit each other, but are not what was stored."""
    content = json.loads((root / SIDECAR).read_text())
    other = tiff(b"of somebody else")
    image = content["image"] | {"bytes": len(other), "sha256": _sha256(other)}
    (root / SIDECAR).write_text(json.dumps(content | {"image": image}))
    (root / IMAGE).write_bytes(other)


def _link_in_its_place(root: Path) -> None:
    (root / IMAGE).unlink()
    (root / IMAGE).symlink_to("/etc/hostname")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "changed": (_change_image, "the content of the image has changed"),
    "cut": (_cut_image, "the image has 10 bytes instead of"),
    "image gone": (_remove_image, "the image is gone, but its sidecar is still there"),
    "sidecar gone": (_remove_sidecar, "the sidecar is gone, but the image is still there"),
    "sidecar changed": (_change_sidecar, "the sidecar is not one that poller writes"),
    "sidecar of another": (_foreign_sidecar, "the sidecar belongs to another fax"),
    "another pair": (_another_pair, "the sidecar describes another image"),
    "symbolic link": (_link_in_its_place, "the image is not a file"),
}
WITH_A_BAD_IMAGE = ("changed", "cut", "another pair")


class World:
    """One stored fax that was damaged, and a storage that can be killed and started again."""

    def __init__(self, root: Path, damage: str) -> None:
        self.root = root
        self.damage = DAMAGES[damage][0]
        self.row: StoredFile | None = None
        self.ticket: Staged | None = None
        self.bad: list[bytes] = []
        self.downloads = 0

    async def damaged(self) -> None:
        storage = await opened(self.root)
        self.storage_id = await storage.prepare(None)
        self.held = await store(storage, FIRST)
        storage.close()
        self.damage(self.root)
        self.bad = [data for data in _regular(self.root).values() if data != FIRST]
        described = json.dumps(describe(self.held), ensure_ascii=False, indent=1).encode() + b"\n"
        self.bad = [data for data in self.bad if data != described]

    async def repair(self, data: bytes = SECOND, **how: int) -> None:
        """Do what a worker does with a row to fetch again, after a start's tidying."""
        with recording(self.root, **how) as self.recorded:
            storage = await opened(self.root, self.storage_id)
            try:
                await storage.tidy([] if self.row else [PATH])
                if self.row is None:
                    await self._repair(storage, data)
            finally:
                storage.close()

    async def _repair(self, storage: Storage, data: bytes) -> None:
        async with storage.draft(PATH, IDENTITY, replacing=True) as draft:
            found = None
            if self.ticket is not None:
                found = await draft.settle(self.ticket, describe)
            if found is None:
                self.ticket = None
                found = await draft.resume(lambda _: False, describe, held=self.held)
            if isinstance(found, Staged):
                await published(draft, found, self._note, self._record)
            elif found is not None:
                self._record(found)
        if self.row is None:
            self.downloads += 1
            await store(storage, data, replacing=True, ticketed=self._note, recorded=self._record)

    def _note(self, staged: Staged | None) -> None:
        self.ticket = staged

    def _record(self, stored: StoredFile) -> None:
        self.row, self.ticket = stored, None

    def check_nothing_lost(self) -> None:
        """Every bad file is still there, under its name or aside; so is the good image."""
        contents = list(_regular(self.root).values())
        for data in self.bad:
            assert data in contents

    def check_end(self) -> None:
        self.check_nothing_lost()
        files = visible(self.root)
        assert set(files) == {IMAGE, SIDECAR}
        assert self.row is not None
        assert json.loads(files[SIDECAR])["image"]["sha256"] == _sha256(files[IMAGE])
        assert self.row.sha256 == _sha256(files[IMAGE])
        assert not (self.root / IMAGE).is_symlink()
        hidden = set(tree(self.root)) - set(files)
        assert all(name.startswith("main/desk/.damaged-") for name in hidden)


def _regular(root: Path) -> dict[str, bytes]:
    paths = sorted(path for path in root.rglob("*") if not path.is_symlink())
    return {str(p): p.read_bytes() for p in paths if p.is_file() and p.name != ".poller-storage"}


async def _world(root: Path, damage: str) -> World:
    world = World(root, damage)
    await world.damaged()
    return world


@pytest.mark.parametrize("damage", DAMAGES)
async def test_damage_is_told_by_what_is_wrong_and_nothing_is_changed_by_looking(
    tmp_path: Path, damage: str
) -> None:
    world = await _world(tmp_path / "faxes", damage)
    before = _regular(world.root)
    storage = await opened(world.root, world.storage_id)
    (finding,) = await storage.look([(world.held, IDENTITY)], thorough=True)
    assert finding.condition is Condition.DAMAGED
    assert DAMAGES[damage][1] in str(finding.why)
    assert finding.in_transit == (damage == "image gone")
    assert _regular(world.root) == before
    storage.close()


async def test_a_pair_that_is_well_and_one_that_was_taken_are_told_apart(tmp_path: Path) -> None:
    storage = await opened(tmp_path / "faxes")
    held = await store(storage, FIRST)
    (finding,) = await storage.look([(held, IDENTITY)], thorough=True)
    assert finding.condition is Condition.OK
    (other,) = await storage.look([(held, Identity("app", "user", "f2"))], thorough=False)
    assert other.why == "the sidecar belongs to another fax"
    for name in (IMAGE, SIDECAR):
        (tmp_path / "faxes" / name).unlink()
    (finding,) = await storage.look([(held, IDENTITY)], thorough=True)
    assert finding.condition is Condition.TAKEN
    (tmp_path / "faxes/main/desk").rmdir()
    (finding,) = await storage.look([(held, IDENTITY)], thorough=True)
    assert finding.condition is Condition.TAKEN
    storage.close()


async def test_a_storage_without_its_marker_proves_nothing(tmp_path: Path) -> None:
    storage = await opened(tmp_path / "faxes")
    held = await store(storage, FIRST)
    (tmp_path / "faxes/.poller-storage").unlink()
    with pytest.raises(StorageUnusable, match="is its disk mounted"):
        await storage.look([(held, IDENTITY)], thorough=True)
    with pytest.raises(StorageUnusable, match="is its disk mounted"):
        await storage.ask(lambda store: store.visible_files(""))
    storage.close()


@pytest.mark.parametrize("damage", DAMAGES)
async def test_repair_brings_a_whole_pair_and_keeps_what_was_bad(
    tmp_path: Path, damage: str
) -> None:
    world = await _world(tmp_path / "faxes", damage)
    await world.repair()
    world.check_end()
    only_the_sidecar_was_bad = damage.startswith("sidecar")
    assert world.downloads == (0 if only_the_sidecar_was_bad else 1)
    expected = FIRST if only_the_sidecar_was_bad else SECOND
    assert visible(world.root)[IMAGE] == expected


async def test_a_fax_that_is_well_after_all_is_neither_fetched_nor_moved(tmp_path: Path) -> None:
    world = await _world(tmp_path / "faxes", "changed")
    (world.root / IMAGE).write_bytes(FIRST)
    world.bad = []
    before = tree(world.root)
    await world.repair()
    assert tree(world.root) == before
    assert world.downloads == 0


async def test_bad_files_of_several_repairs_are_all_kept(tmp_path: Path) -> None:
    world = await _world(tmp_path / "faxes", "changed")
    contents = [BAD]
    for number in range(3):
        await world.repair(FIRST)
        assert world.row is not None
        world.held, world.row = world.row, None
        contents.append(b"bad again %d" % number)
        (world.root / IMAGE).write_bytes(contents[-1])
    kept = [data for name, data in tree(world.root).items() if ".damaged-" in name]
    assert sorted(kept) == sorted(contents[:-1])


@pytest.mark.parametrize("sent", [FIRST, SECOND], ids=["the same bytes", "other bytes"])
@pytest.mark.parametrize("damage", DAMAGES)
async def test_kill_at_any_step_of_a_repair_loses_nothing_and_it_is_done_again(
    tmp_path: Path, damage: str, sent: bytes
) -> None:
    whole = await _world(tmp_path / "whole", damage)
    await whole.repair(sent)
    for stop_at in range(len(whole.recorded.calls) + 1):
        world = await _world(tmp_path / str(stop_at), damage)
        await world.repair(sent, stop_at=stop_at)
        world.check_nothing_lost()
        await world.repair(sent)
        world.check_end()
        assert world.downloads <= 2
        before = tree(world.root)
        await world.repair(sent)
        assert tree(world.root) == before


async def _lose_power_everywhere(tmp_path: Path, damage: str) -> None:
    whole = await _world(tmp_path / "whole", damage)
    await whole.repair()
    for stop_at in range(len(whole.recorded.calls) + 1):
        look = await _world(tmp_path / f"{stop_at}-look", damage)
        await look.repair(stop_at=stop_at)
        number = len(_volatile(look.recorded))
        for nth, chosen in enumerate(itertools.product([False, True], repeat=number)):
            world = await _world(tmp_path / f"{stop_at}-{nth}", damage)
            await world.repair(stop_at=stop_at)
            world.recorded.lose_power(set(itertools.compress(_volatile(world.recorded), chosen)))
            world.check_nothing_lost()
            await world.repair()
            world.check_end()


def _volatile(recorded: RecordedOs) -> list[Path]:
    return [path for path in recorded.volatile() if not path.is_dir()]


@pytest.mark.parametrize("damage", ["changed", "another pair"])
async def test_power_loss_at_any_step_of_a_repair_loses_nothing(
    tmp_path: Path, damage: str
) -> None:
    await _lose_power_everywhere(tmp_path, damage)


async def test_power_loss_finds_a_bad_file_whose_kept_name_was_not_synced_before_the_unlink(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = syscalls.sync_directory

    def forgetful(fd: int) -> None:
        """A planted bug: the sync between the two."""
        names = syscalls.names(fd)
        if not (".damaged-f1.tif" in names and "f1.tif" in names):
            real(fd)

    monkeypatch.setattr(syscalls, "sync_directory", forgetful)
    with pytest.raises(AssertionError):
        await _lose_power_everywhere(tmp_path, "changed")
