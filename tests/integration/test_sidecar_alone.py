"""storage: a fax without an image is only its sidecar, wherever its delivery is interrupted."""

import errno
import hashlib
import itertools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from poller.documents import Staged
from poller.errors import MovedAway, PollerError, StorageConflict, StorageUnusable
from poller.store import Condition, Storage, StoredFile, folder, sidecar, syscalls
from poller.store.sidecars import Origin, decode, describe, encode
from poller.stream import Direction
from tests.exhaustive import EXHAUSTIVE, sample
from tests.integration.storage_seam import (
    IDENTITY,
    NOW,
    ORIGIN,
    PATH,
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
pytestmark = pytest.mark.usefixtures("way")
SIDECAR, HIDDEN = f"{PATH}.json", "main/desk/.f1.alone.json.part"
SENT = replace(
    ORIGIN,
    direction=Direction.SENT,
    metadata={"fax_id": "f1", "transmission_data": {"transmission_status": "COMPLETE"}},
)
FIRST, SECOND = NOW, NOW + timedelta(hours=1)
Note = Callable[[Any], None]


def made_at(moment: Any) -> Callable[[StoredFile | None], dict[str, Any]]:
    return lambda stored: sidecar(stored, SENT, stored_at=moment)


async def archive(
    storage: Storage,
    moment: Any = FIRST,
    *,
    ticketed: Note = lambda _: None,
    recorded: Note = lambda _: None,
    replacing: bool = False,
) -> StoredFile:
    """Store a fax that has no image; `ticketed` and `recorded` stand for the row."""
    async with storage.draft(PATH, IDENTITY, replacing=replacing) as draft:
        staged = await draft.stage_alone(made_at(moment))
        return await published(draft, staged, ticketed, recorded)


async def resume(
    storage: Storage,
    *,
    ticket: Staged | None = None,
    ticketed: Note = lambda _: None,
    recorded: Note = lambda _: None,
    held: StoredFile | None = None,
) -> StoredFile | Staged | None:
    """Continue from what is there, as an attempt at a row with this ticket does."""
    async with storage.draft(PATH, IDENTITY, replacing=held is not None) as draft:
        found = None if ticket is None else await draft.settle(ticket, made_at(SECOND))
        if found is None:
            ticketed(None)
            found = await draft.resume(lambda _: True, made_at(SECOND), held=held)
        if isinstance(found, Staged):
            return await published(draft, found, ticketed, recorded)
        if found is not None:
            recorded(found)
        return found


# -- its content -----------------------------------------------------------------------------------


async def test_sent_fax_without_image_becomes_a_sidecar_alone(tmp_path: Path) -> None:
    root = tmp_path / "faxes"
    stored = await archive(await opened(root))
    files = tree(root)
    assert set(files) == {SIDECAR}
    assert json.loads(files[SIDECAR]) == {
        "fax_id": "f1",
        "direction": "sent",
        "account": "main",
        "user": "desk",
        "app_id": "app",
        "user_id": "user",
        "completed_at": "2024-05-21T04:27:56.123Z",
        "first_seen_at": "2024-05-21T04:27:56.123Z",
        "stored_at": "2024-05-21T04:27:56.123Z",
        "image": None,
        "metadata": SENT.metadata,
    }
    sha256 = hashlib.sha256(files[SIDECAR]).hexdigest()
    assert stored == StoredFile(SIDECAR, "json", len(files[SIDECAR]), sha256, None, damaged=False)


@pytest.mark.parametrize("has_image", [True, False])
@pytest.mark.parametrize(
    "origin",
    [
        ORIGIN,
        replace(ORIGIN, canary=True),
        SENT,
        replace(SENT, received_at=None, metadata={"odd": "\ud800", "large": 10**30}),
    ],
    ids=["received", "canary", "sent", "sent, odd"],
)
def test_sidecar_says_all_that_a_rebuild_needs(origin: Origin, has_image: bool) -> None:
    image = StoredFile(f"{PATH}.pdf", "pdf", 5, "ab" * 32, 1, damaged=False) if has_image else None
    data = encode(sidecar(image, origin, stored_at=NOW))
    content = json.loads(data)
    assert ("canary" in content) is origin.canary
    assert ("received_at" in content) is (origin.direction is Direction.RECEIVED)
    assert ("completed_at" in content) is (origin.direction is Direction.SENT)
    described, stored, stored_at = describe(data, PATH)
    to_the_millisecond = NOW.replace(microsecond=123000)
    assert described == replace(
        origin,
        received_at=origin.received_at and to_the_millisecond,
        first_seen_at=to_the_millisecond,
        listed_pages=origin.listed_pages if has_image else None,
    )
    assert stored_at == to_the_millisecond
    assert decode(data, PATH) == (IDENTITY, stored)
    assert stored == (image or replace(stored, file=SIDECAR, format="json", bytes=len(data)))


def test_sidecar_without_the_time_of_its_direction_is_none() -> None:
    content = json.loads(encode(sidecar(None, SENT, stored_at=NOW)))
    content["received_at"] = content.pop("completed_at")
    with pytest.raises(ValueError, match="something is missing"):
        describe(encode(content), PATH)


# -- the durable order -----------------------------------------------------------------------------


async def test_steps_of_a_sidecar_alone_come_in_the_durable_order(tmp_path: Path, way: str) -> None:
    root = tmp_path / "faxes"
    storage = await opened(root)
    with recording(root) as recorded:
        calls = recorded.calls
        await archive(
            storage,
            ticketed=lambda _: calls.append("ticket"),
            recorded=lambda _: calls.append("row"),
        )
    spool = "main/desk/.f1.image.part"
    assert [call for call in recorded.calls if not call.startswith("fchmod")] == [
        "mkdir main",
        "mkdir main/desk",
        f"create {spool}",
        f"write {spool}",
        f"fsync {spool}",
        f"{way} {HIDDEN}",
        *([f"unlink {spool}"] if way == "link" else []),
        "fsync main/desk",
        "fsync .",
        "fsync main",
        "ticket",
        f"{way} {SIDECAR}",
        "fsync main/desk",
        *([f"unlink {HIDDEN}"] if way == "link" else []),
        "fsync main/desk",
        "row",
    ]


class World:
    """One fax, its row, its consumer, and a storage that can be killed and started again."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.row: StoredFile | None = None
        self.ticket: Staged | None = None
        self.storage_id: str | None = None
        self.taken = 0

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

    async def deliver(self, **how: int) -> None:
        async with self.started(**how) as storage:
            await archive(storage, ticketed=self.note, recorded=self.record)

    async def recover(self, **how: int) -> None:
        """Do what a start does, and then a worker: tidy, settle or resume, otherwise archive again."""
        async with self.started(**how) as storage:
            await storage.tidy([] if self.row else [PATH])
            if self.row is not None:
                return
            row: dict[str, Any] = {"ticketed": self.note, "recorded": self.record}
            if await resume(storage, ticket=self.ticket, **row) is None:
                await archive(storage, SECOND, **row)

    def take(self) -> None:
        self.check_visible()
        if (sidecar := self.root / SIDECAR).exists():
            sidecar.unlink()
            self.taken += 1

    def check_visible(self) -> None:
        """Only a whole sidecar is visible; what is recorded is there, or was taken."""
        files = visible(self.root)
        assert set(files) <= {SIDECAR}
        for data in files.values():
            assert json.loads(data)["image"] is None
        if self.row is not None and not self.taken:
            assert hashlib.sha256(files[SIDECAR]).hexdigest() == self.row.sha256

    def check_end(self) -> None:
        self.check_visible()
        assert self.row is not None
        assert set(tree(self.root)) == (set() if self.taken else {SIDECAR})


async def _killed(root: Path, stop_at: int) -> World:
    world = World(root)
    await world.install()
    await world.deliver(stop_at=stop_at)
    return world


async def _steps(tmp_path: Path) -> list[str]:
    return (await _killed(tmp_path / "whole", 1000)).recorded.calls


async def _kill_everywhere(tmp_path: Path, *, taking: bool = False) -> list[int]:
    """Count the sidecars that a consumer took, for a kill before each step; it takes all that it sees."""
    taken = []
    for stop_at in range(len(await _steps(tmp_path)) + 1):
        world = await _killed(tmp_path / str(stop_at), stop_at)
        if taking:
            world.take()
        await world.recover()
        if taking:
            world.take()
        world.check_end()
        before = tree(world.root)
        await world.recover()
        assert tree(world.root) == before
        taken.append(world.taken)
    return taken


async def test_kill_at_any_step_ends_with_one_sidecar(tmp_path: Path) -> None:
    await _kill_everywhere(tmp_path)


async def test_sidecar_that_is_taken_after_a_kill_is_not_delivered_again(
    tmp_path: Path, way: str
) -> None:
    taken = await _kill_everywhere(tmp_path, taking=True)
    # Given by a link, it has both names until the second one is durable: config/FILES.md says so.
    twice: set[int] = set()
    if way == "link":
        calls = await _steps(tmp_path / "again")
        twice = set(range(calls.index(f"link {SIDECAR}"), calls.index(f"unlink {HIDDEN}")))
    assert taken == [2 if at - 1 in twice else 1 for at in range(len(taken))]


async def test_kill_at_any_step_of_the_recovery_changes_nothing_about_that(tmp_path: Path) -> None:
    for stop_at in range(len(await _steps(tmp_path)) + 1):
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
    for stop_at in range(len(await _steps(tmp_path)) + 1):
        number = len((await _killed(tmp_path / f"{stop_at}-look", stop_at)).recorded.volatile())
        fates = sample(list(itertools.product([False, True], repeat=number)), 5)
        for nth, chosen in enumerate(fates):
            world = await _killed(tmp_path / f"{stop_at}-{nth}", stop_at)
            names = world.recorded.volatile()
            world.recorded.lose_power(set(itertools.compress(names, chosen)))
            world.check_visible()
            await world.recover()
            world.check_visible()
            # nobody has taken it, so it must be there
            assert world.row is not None
            assert set(tree(world.root)) == {SIDECAR}


async def test_power_loss_at_any_step_ends_with_one_sidecar(tmp_path: Path) -> None:
    await _lose_power_everywhere(tmp_path)


FINDINGS = (AssertionError, FileNotFoundError, KeyError, ValueError, PollerError)


@pytest.mark.parametrize("forgotten", ["sync_file", "sync_directory"])
async def test_power_loss_finds_a_forgotten_fsync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgotten: str
) -> None:
    monkeypatch.setattr(syscalls, forgotten, lambda _fd: None)
    with pytest.raises(FINDINGS):
        await _lose_power_everywhere(tmp_path)


async def test_kill_finds_a_hidden_sidecar_that_is_removed_with_other_dot_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_any(name: str) -> bool:
        return name.endswith(".json.part")

    monkeypatch.setattr(folder, "is_dot_file", is_any)
    with pytest.raises(AssertionError):
        await _kill_everywhere(tmp_path)


async def test_name_that_is_given_over_another_file_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overwrite(existing: str, new: str, at: int, **_: bool) -> None:
        syscalls.unlink(new, at)
        move(existing, new, at)

    storage, move = await opened(tmp_path / "faxes"), syscalls.move
    monkeypatch.setattr(syscalls, "move", overwrite)
    with pytest.raises(pytest.fail.Exception):
        await _meets_a_file_of_somebody_else(storage, tmp_path / "faxes")


# -- trouble -------------------------------------------------------------------------------------------


async def test_file_of_somebody_else_is_never_overwritten(tmp_path: Path) -> None:
    root = tmp_path / "faxes"
    await _meets_a_file_of_somebody_else(await opened(root), root)
    assert visible(root) == {SIDECAR: b"somebody else's"}


async def _meets_a_file_of_somebody_else(storage: Storage, root: Path) -> None:
    async with storage.draft(PATH, IDENTITY) as draft:
        staged = await draft.stage_alone(made_at(FIRST))
        (root / SIDECAR).write_bytes(b"somebody else's")
        with pytest.raises(StorageConflict):
            await draft.publish(staged)


async def test_image_that_stands_there_is_not_left_without_its_sidecar(tmp_path: Path) -> None:
    root = tmp_path / "faxes"
    storage = await opened(root)
    (root / "main/desk").mkdir(parents=True)
    (root / f"{PATH}.pdf").write_bytes(b"%PDF-")
    with pytest.raises(StorageConflict, match=r"f1\.pdf exists, but the fax has no image"):
        await archive(storage)
    assert tree(root) == {f"{PATH}.pdf": b"%PDF-"}


async def test_what_had_arrived_of_an_image_is_thrown_away(tmp_path: Path) -> None:
    root = tmp_path / "faxes"
    storage = await opened(root)
    async with storage.draft(PATH, IDENTITY) as draft:
        await draft.reset()
        await draft.write(b"%PDF-1.4 the beginning")
        await published(draft, await draft.stage_alone(made_at(FIRST)))
    assert set(tree(root)) == {SIDECAR}
    assert json.loads(tree(root)[SIDECAR])["image"] is None


@pytest.mark.parametrize("number", [1, 2])
async def test_failed_fsync_of_its_directory_shows_nothing(tmp_path: Path, number: int) -> None:
    root = tmp_path / "faxes"
    storage = await opened(root)
    tickets: list[Staged | None] = []
    seen = itertools.count(1)

    def fail(call: str, _number: int) -> OSError | None:
        hit = call == "fsync main/desk" and next(seen) == number
        return OSError(errno.EIO, "Input/output error") if hit else None

    with recording(root, fail=fail), pytest.raises(StorageUnusable, match="Input/output error"):
        await archive(storage, ticketed=tickets.append)
    assert visible(root) == {}
    assert len(tickets) == number - 1
    if tickets:  # it may have been visible, so its row decides
        assert isinstance(await resume(storage, ticket=tickets[0]), StoredFile)
    else:
        assert await resume(storage) is None
        await archive(storage)
    assert set(tree(root)) == {SIDECAR}


async def test_fax_whose_directory_was_moved_before_it_was_shown_is_taken_back_and_delivered_again(
    tmp_path: Path,
) -> None:
    root = tmp_path / "faxes"
    storage = await opened(root)
    tickets: list[Staged | None] = []
    async with storage.draft(PATH, IDENTITY) as draft:
        staged = await draft.stage_alone(made_at(FIRST))
        (root / "main/desk").rename(tmp_path / "away")
        with pytest.raises(MovedAway):
            await published(draft, staged, tickets.append)
    assert tickets == [staged, None]
    assert list((tmp_path / "away").iterdir()) == []
    await archive(storage)
    assert set(tree(root)) == {SIDECAR}


async def test_sidecar_whose_row_was_lost_is_adopted_as_it_is(tmp_path: Path) -> None:
    root = tmp_path / "faxes"
    stored = await archive(await opened(root))
    before = tree(root)
    assert await resume(await opened(root)) == stored
    assert tree(root) == before


# -- fetched again ---------------------------------------------------------------------------------


async def test_damaged_one_is_put_aside_and_archived_again(tmp_path: Path) -> None:
    root = tmp_path / "faxes"
    storage = await opened(root)
    held = await archive(storage)
    bad = tree(root)[SIDECAR].replace(b"COMPLETE", b"ERROR")
    (root / SIDECAR).write_bytes(bad)
    (found,) = await storage.look([(held, IDENTITY)], thorough=False)
    assert found.condition is Condition.DAMAGED
    assert await resume(storage, held=held) is None
    again = await archive(storage, SECOND, replacing=True)
    assert tree(root)["main/desk/.damaged-f1.json"] == bad
    assert json.loads(tree(root)[SIDECAR])["metadata"] == SENT.metadata
    (found,) = await storage.look([(again, IDENTITY)], thorough=True)
    assert found.condition is Condition.OK


async def test_one_that_is_well_after_all_stays(tmp_path: Path) -> None:
    root = tmp_path / "faxes"
    storage = await opened(root)
    held = await archive(storage)
    before = tree(root)
    assert await resume(storage, held=held) == held
    assert tree(root) == before


async def test_image_that_comes_later_puts_the_sidecar_alone_aside(tmp_path: Path) -> None:
    """An operator asks with `verify --repair --taken`, after `sent.archive` has become image."""
    root = tmp_path / "faxes"
    storage = await opened(root)
    await archive(storage)
    alone = tree(root)[SIDECAR]
    await store(storage, tiff(), replacing=True)
    assert set(visible(root)) == {SIDECAR, f"{PATH}.tif"}
    assert json.loads(visible(root)[SIDECAR])["image"]["file"] == "f1.tif"
    assert tree(root)["main/desk/.damaged-f1.json"] == alone
