"""storage: what it promises its callers, on a real file system."""

import asyncio
import errno
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from poller.documents import Document, NotADocument
from poller.errors import (
    FaxTooLarge,
    StorageConflict,
    StorageFull,
    StorageHung,
    StorageUnusable,
)
from poller.store import Draft, Identity, Storage, StoredFile, sidecar, syscalls
from poller.store.folder import Durable
from tests.integration.at_work import HELD_S, Held
from tests.integration.storage_seam import (
    IDENTITY,
    NOW,
    ORIGIN,
    PATH,
    RecordedOs,
    describe,
    dot_image,
    opened,
    published,
    recording,
    resume,
    store,
    tiff,
    tree,
    visible,
)

FAX = tiff(b"one fax")
OTHER = tiff(b"another fax")
IMAGE, SIDECAR = f"{PATH}.tif", f"{PATH}.json"
DOT_IMAGE, DOT_SIDECAR = "main/desk/.f1.image.part", "main/desk/.f1.json.part"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "faxes"


@pytest.fixture(params=[0o000, 0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def _mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


# Storing


async def test_fax_becomes_an_image_and_its_sidecar(root: Path) -> None:
    storage = await opened(root)
    stored = await store(storage, FAX)
    assert stored == StoredFile(
        file=IMAGE,
        format="tiff",
        bytes=len(FAX),
        sha256=hashlib.sha256(FAX).hexdigest(),
        pages=1,
        damaged=False,
    )
    files = tree(root)
    assert set(files) == {IMAGE, SIDECAR}
    assert files[IMAGE] == FAX
    assert files[SIDECAR].endswith(b"}\n")
    assert "Grüße".encode() in files[SIDECAR]
    assert json.loads(files[SIDECAR]) == {
        "fax_id": "f1",
        "direction": "received",
        "account": "main",
        "user": "desk",
        "app_id": "app",
        "user_id": "user",
        "received_at": "2024-05-21T04:27:56.123Z",
        "first_seen_at": "2024-05-21T04:27:56.123Z",
        "stored_at": "2024-05-21T04:27:56.123Z",
        "image": {
            "file": "f1.tif",
            "format": "tiff",
            "bytes": len(FAX),
            "sha256": hashlib.sha256(FAX).hexdigest(),
            "pages": 1,
            "listed_pages": 1,
            "damaged": False,
        },
        "metadata": {"fax_id": "f1", "pages": "1", "note": "Grüße"},
    }


async def test_sidecar_keeps_text_that_is_no_unicode(root: Path) -> None:
    storage = await opened(root)
    odd = replace(ORIGIN, received_at=None, metadata={"tsid": "\ud800", "n": 10**30})
    async with storage.draft(PATH, IDENTITY) as draft:
        await draft.reset()
        await draft.write(FAX)
        await draft.check()
        staged = await draft.stage(lambda stored: sidecar(stored, odd, stored_at=NOW))
        await published(draft, staged)
    content = json.loads(tree(root)[SIDECAR])
    assert content["metadata"] == odd.metadata
    assert content["received_at"] is None


async def test_large_fax_is_written_in_batches(root: Path) -> None:
    storage = await opened(root)
    data = tiff(os.urandom(3_500_000))
    with recording(root) as recorded:
        async with storage.draft(PATH, IDENTITY) as draft:
            await draft.reset()
            for start in range(0, len(data), 70_000):
                await draft.write(data[start : start + 70_000])
            held = dot_image(root).stat().st_size
            await draft.check()
            await published(draft, await draft.stage(describe))
    assert 3_000_000 < held < len(data)
    assert recorded.calls.count(f"fsync {DOT_IMAGE}") == 1
    assert tree(root)[IMAGE] == data


@pytest.mark.parametrize("count", [1, 2])
async def test_reset_leaves_nothing_that_could_be_taken_for_the_fax(root: Path, count: int) -> None:
    storage = await opened(root)
    async with storage.draft(PATH, IDENTITY) as draft:
        await draft.reset()
        for _ in range(count):
            await draft.write(tiff(bytes(1 << 20)))
        assert dot_image(root).stat().st_size > 1 << 20
        await draft.reset()
        with pytest.raises(NotADocument, match="empty"):
            await draft.check()
    assert tree(root) == {}


async def test_fax_that_came_in_pieces_is_proved_as_one_that_came_whole(root: Path) -> None:
    storage = await opened(root)
    data = tiff(os.urandom(1_500_000))
    for fax in (data, data[:-1]):
        found = []
        for pieces in ([fax], [fax[:1_100_000], fax[1_100_000:]]):
            async with storage.draft(PATH, IDENTITY) as draft:
                await draft.reset()
                for piece in pieces:
                    await draft.write(piece)
                found.append(await draft.check())
        assert found[0] == found[1]


async def test_dot_file_that_lost_bytes_is_not_delivered(root: Path) -> None:
    storage = await opened(root)
    async with storage.draft(PATH, IDENTITY) as draft:
        await draft.reset()
        await draft.write(FAX)
        await draft.check()
        os.truncate(dot_image(root), len(FAX) - 1)
        with pytest.raises(StorageConflict, match="another length"):
            await draft.stage(describe)
    assert tree(root) == {}


async def test_reset_forgets_what_was_written(root: Path) -> None:
    storage = await opened(root)
    async with storage.draft(PATH, IDENTITY) as draft:
        await draft.reset()
        await draft.write(OTHER * 200_000)
        await draft.write(OTHER)  # too little to be written yet
        await draft.reset()
        await draft.write(FAX)
        assert await draft.check() == Document("tiff", 1)
        stored = await published(draft, await draft.stage(describe))
    assert stored.sha256 == hashlib.sha256(FAX).hexdigest()
    assert tree(root)[IMAGE] == FAX


async def test_draft_that_fails_leaves_nothing(root: Path) -> None:
    storage = await opened(root)

    async def fail() -> None:
        async with storage.draft(PATH, IDENTITY) as draft:
            await draft.reset()
            await draft.write(FAX)
            await draft.check()
            assert dot_image(root).read_bytes() == FAX
            raise NotADocument("as if")

    with pytest.raises(NotADocument):
        await fail()
    assert tree(root) == {}


@pytest.mark.parametrize("data", [b"", b"<html>"])
async def test_check_refuses_bytes_that_are_not_a_document(root: Path, data: bytes) -> None:
    storage = await opened(root)
    async with storage.draft(PATH, IDENTITY) as draft:
        await draft.reset()
        await draft.write(data)
        with pytest.raises(NotADocument):
            await draft.check()


async def test_damaged_fax_is_stored_as_such(root: Path) -> None:
    storage = await opened(root)
    stored = await store(storage, FAX[:-1])
    assert stored.damaged
    assert json.loads(tree(root)[SIDECAR])["image"]["damaged"] is True


async def test_draft_is_used_in_its_order(root: Path) -> None:
    storage = await opened(root)
    async with storage.draft(PATH, IDENTITY) as draft:
        with pytest.raises(ValueError, match="reset"):
            await draft.check()
        await draft.reset()
        with pytest.raises(ValueError, match="checked"):
            await draft.stage(describe)
        with pytest.raises(StorageConflict, match="an earlier attempt"):
            await store(storage, FAX)
        await draft.write(FAX)
        await draft.check()
        staged = await draft.stage(describe)
        with pytest.raises(ValueError, match="checked"):
            await draft.stage(describe)
        await published(draft, staged)
    async with storage.draft(PATH, IDENTITY):
        pass
    assert set(tree(root)) == {IMAGE, SIDECAR}


async def test_longest_names_fit(root: Path) -> None:
    storage = await opened(root)
    path = "main/" + "x" * 250
    stored = await store(storage, FAX, path=path)
    assert set(tree(root)) == {stored.file, f"{path}.json"}
    longer = "main/" + "x" * 251
    with pytest.raises(StorageConflict, match="too long"):
        await store(storage, FAX, path=longer)
    assert set(tree(root)) == {stored.file, f"{path}.json"}


async def test_many_faxes_share_a_new_directory(root: Path) -> None:
    storage = await opened(root)
    await asyncio.gather(*[store(storage, FAX, path=f"main/desk/{n}") for n in range(40)])
    assert len(tree(root)) == 80


async def test_directory_that_vanishes_while_it_is_opened_is_made_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = await opened(root)
    make, made = syscalls.make_directory, list[str]()

    def vanishing(name: str, at: int, mode: int) -> None:
        made.append(name)
        if len(made) > 2:
            make(name, at, mode)

    monkeypatch.setattr(syscalls, "make_directory", vanishing)
    await store(storage, FAX)
    assert tree(root)[IMAGE] == FAX


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize(("consumers", "directory"), [("read", 0o750), ("move", 0o2770)])
async def test_modes_do_not_depend_on_the_umask(
    tmp_path: Path, consumers: str, directory: int
) -> None:
    root = tmp_path / "new" / "faxes"
    storage = await opened(root, consumers=consumers)
    await store(storage, FAX)
    assert {_mode(root / name) for name in (IMAGE, SIDECAR, ".poller-storage")} == {0o640}
    assert {_mode(root / name) for name in ("", "main", "main/desk")} == {directory}


@pytest.mark.usefixtures("umask")
async def test_directory_in_use_keeps_its_mode_and_new_ones_their_group(root: Path) -> None:
    root.mkdir()
    storage = await opened(root)
    root.chmod(0o2750)
    (root / "main").mkdir()
    (root / "main").chmod(0o2700)
    (root / "main" / "something").touch()
    await store(storage, FAX)
    assert _mode(root / "main") == 0o2700
    assert _mode(root / "main/desk") == 0o2750


def test_memory_of_synced_directories_is_bounded(tmp_path: Path) -> None:
    durable, status = Durable(), tmp_path.stat()
    for number in range(25_000):
        durable.add(str(number), status)
    assert len(durable.known) <= 10_001
    assert durable.holds("24999", status)


# Names that are taken


async def test_same_content_under_the_final_names_is_adopted(root: Path) -> None:
    storage = await opened(root)
    await store(storage, FAX)
    before = {name: (root / name).stat().st_ino for name in (IMAGE, SIDECAR)}
    await store(storage, FAX)
    assert {name: (root / name).stat().st_ino for name in (IMAGE, SIDECAR)} == before
    assert set(tree(root)) == {IMAGE, SIDECAR}


@pytest.mark.parametrize("taken", [IMAGE, SIDECAR])
async def test_other_content_under_a_final_name_is_a_conflict(root: Path, taken: str) -> None:
    storage = await opened(root)
    (root / taken).parent.mkdir(parents=True)
    (root / taken).write_bytes(OTHER)
    with pytest.raises(StorageConflict, match="another file already has the name"):
        await store(storage, FAX)
    assert tree(root) == {taken: OTHER}


@pytest.mark.parametrize(
    "plant",
    [
        pytest.param(lambda path: path.symlink_to("/etc/passwd"), id="symlink"),
        pytest.param(lambda path: path.mkdir(), id="directory"),
        pytest.param(os.mkfifo, id="fifo"),
    ],
)
async def test_final_name_that_is_no_file_is_a_conflict(
    root: Path, plant: Callable[[Path], None]
) -> None:
    storage = await opened(root)
    (root / IMAGE).parent.mkdir(parents=True)
    plant(root / IMAGE)
    with pytest.raises(StorageConflict):
        await store(storage, FAX)
    assert not (root / SIDECAR).exists()


async def test_sidecar_of_another_fax_with_the_same_image_is_a_conflict(root: Path) -> None:
    storage = await opened(root)
    await store(storage, FAX)
    content = json.loads((root / SIDECAR).read_bytes()) | {"fax_id": "f2"}
    (root / SIDECAR).write_text(json.dumps(content))
    with pytest.raises(StorageConflict):
        await store(storage, FAX)


@pytest.mark.parametrize("inside", [False, True])
async def test_symlinked_directory_is_not_followed(
    root: Path, tmp_path: Path, inside: bool
) -> None:
    storage = await opened(root)
    target = root / "real" if inside else tmp_path / "outside"
    target.mkdir()
    (root / "main").symlink_to(target)
    with pytest.raises(
        StorageConflict, match=r"the directory main in the storage .* is not a directory"
    ):
        await store(storage, FAX)
    with pytest.raises(StorageConflict):
        await resume(storage)
    with pytest.raises(StorageConflict):
        await storage.ask(lambda store: store.read(IMAGE))
    assert list(target.iterdir()) == []
    assert await storage.check() is None


async def test_file_in_place_of_a_directory_is_a_conflict(root: Path) -> None:
    storage = await opened(root)
    (root / "main").write_bytes(b"")
    with pytest.raises(StorageConflict):
        await store(storage, FAX)


@pytest.mark.parametrize(
    "path", ["/etc/f1", "../f1", "a/../f1", "a//f1", "a/.f1", ".a/f1", "a/", "", "a/\0"]
)
async def test_path_that_leads_outside_is_a_conflict(root: Path, path: str) -> None:
    storage = await opened(root)
    with pytest.raises(StorageConflict, match="not a path inside the storage"):
        await store(storage, FAX, path=path)
    assert tree(root) == {}


# Continuing


def _dots(root: Path, run: str = "") -> None:
    """What a killed run has left; an earlier release named no run."""
    stored = StoredFile(IMAGE, "tiff", len(FAX), hashlib.sha256(FAX).hexdigest(), 1, damaged=False)
    (root / PATH).parent.mkdir(parents=True, exist_ok=True)
    (root / f"main/desk/.f1{run}.image.part").write_bytes(FAX)
    (root / f"main/desk/.f1{run}.json.part").write_text(json.dumps(describe(stored)))


@pytest.mark.parametrize("run", ["", ".0123abcd"])
async def test_placed_image_is_read_back_and_becomes_the_fax(root: Path, run: str) -> None:
    storage = await opened(root)
    _dots(root, run)
    (root / f"main/desk/.f1{run}.image.part").rename(root / IMAGE)
    stored = await resume(storage)
    assert stored is not None
    assert (stored.file, stored.sha256) == (IMAGE, hashlib.sha256(FAX).hexdigest())
    assert set(tree(root)) == {IMAGE, SIDECAR}


@pytest.mark.parametrize(
    ("data", "name"),
    [
        pytest.param(FAX[:-1], IMAGE, id="cut"),
        pytest.param(b"somebody else's", IMAGE, id="no-document"),
        pytest.param(FAX, f"{PATH}.pdf", id="of-another-format"),
    ],
)
async def test_image_that_is_not_whole_is_no_fax_and_stays(
    root: Path, data: bytes, name: str
) -> None:
    storage = await opened(root)
    (root / "main/desk").mkdir(parents=True)
    (root / name).write_bytes(data)
    assert await resume(storage) is None
    assert tree(root) == {name: data}


async def test_image_with_another_sidecar_does_not_count_as_the_fax_and_stays(root: Path) -> None:
    storage = await opened(root)
    (root / "main/desk").mkdir(parents=True)
    (root / IMAGE).write_bytes(FAX)
    (root / SIDECAR).write_text("{}")
    assert await resume(storage) is None
    assert tree(root) == {IMAGE: FAX, SIDECAR: b"{}"}


async def test_dot_files_without_a_placed_image_are_removed(root: Path) -> None:
    storage = await opened(root)
    _dots(root)
    assert await resume(storage) is None
    assert tree(root) == {}


async def test_resume_removes_nothing_of_another_fax(root: Path) -> None:
    storage = await opened(root)
    async with storage.draft("main/desk/f2", IDENTITY) as draft:
        await draft.reset()
        (root / DOT_IMAGE).write_bytes(FAX)
        assert await resume(storage) is None
        assert "main/desk/.f2.image.part" in tree(root)


async def test_pair_without_a_row_is_adopted(root: Path) -> None:
    storage = await opened(root)
    stored = await store(storage, FAX)
    storage = await opened(root)  # what another process has left
    assert await resume(storage, Identity("app", "user", "f2")) is None
    assert await resume(storage, tuple(IDENTITY)) == stored  # type: ignore[arg-type]
    storage = await opened(root)
    (root / IMAGE).write_bytes(OTHER)
    assert await resume(storage) is None
    assert tree(root)[IMAGE] == OTHER
    (root / IMAGE).unlink()
    assert await resume(storage) is None
    assert set(tree(root)) == {SIDECAR}


async def test_resume_of_what_never_began_does_nothing(root: Path) -> None:
    storage = await opened(root)
    assert await resume(storage) is None
    assert list(root.iterdir()) == [root / ".poller-storage"]


async def test_tidy_removes_only_own_dot_files(root: Path) -> None:
    storage = await opened(root)
    await store(storage, FAX)
    storage = await opened(root)
    _dots(root)
    kept = ["main/desk/.damaged-f1.tif", "main/desk/.hidden", "main/desk/x.image.part", ".profile"]
    gone = ["main/desk/.f7.image.part", "main/desk/.f8.0123abcd.json.part"]
    gone += [".f9.0123abcd.image.part", ".poller-probe.4194305"]
    for name in kept + gone:
        (root / name).write_bytes(b"x")
    assert await storage.tidy([PATH, "main/desk/f8", "never/made"]) == len(gone) + 2
    assert set(tree(root)) == {IMAGE, SIDECAR, *kept}


async def test_directory_is_tidied_when_the_first_fax_comes_there(root: Path) -> None:
    _dots(root)
    (root / ".poller-storage").write_text("known\n")
    storage = await opened(root, "known")
    await store(storage, FAX, path="main/desk/f2")
    assert set(tree(root)) == {"main/desk/f2.tif", "main/desk/f2.json"}


async def test_tidy_skips_what_is_not_a_directory(root: Path) -> None:
    storage = await opened(root)
    _dots(root)
    (root / "main/another").write_bytes(b"x")
    assert await storage.tidy(["main/another/f1", PATH]) == 2


async def test_tidy_finds_its_way_to_the_directories_of_all_that_wait(root: Path) -> None:
    storage = await opened(root)
    left = ["a/x/1/f", "a/x/f", "a/y/1/f", "a-b/f", "b/1/f", "f"]
    for path in left:
        directory, _, base = f"/{path}".rpartition("/")
        (root / directory.removeprefix("/")).mkdir(parents=True, exist_ok=True)
        (root / directory.removeprefix("/") / f".{base}.image.part").write_bytes(b"x")
    (root / "a/w").write_bytes(b"no directory")
    (root / "a/z").symlink_to(root / "b")
    nowhere = ["a/w/1/f", "a/x/2/3/f", "a/z/1/f", "c/1/f", "c/2/f", "../f"]
    assert await storage.tidy([*left, *nowhere]) == len(left)
    assert not list(root.rglob("*.part"))


async def test_sidecars_of_a_disk_that_hangs_end_in_a_sentence(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = await opened(root)
    disk = threading.Event()

    def hanging(*_: object) -> Iterator[object]:
        disk.wait(HELD_S)
        yield from ()

    monkeypatch.setattr("poller.store.directory.survey.walk", hanging)
    monkeypatch.setattr("poller.store.threads.HUNG_S", 0.1)
    with pytest.raises(StorageHung):
        await anext(storage.sidecars())
    disk.set()


async def test_tidy_leaves_a_fax_that_is_being_stored(root: Path) -> None:
    storage = await opened(root)
    async with storage.draft(PATH, IDENTITY) as draft:
        await draft.reset()
        assert await storage.tidy([PATH]) == 0
        assert dot_image(root).exists()


async def test_sidecar_larger_than_any_of_ours_is_not_read_to_its_end(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = await opened(root)
    await store(storage, FAX)
    monkeypatch.setattr(syscalls, "SMALL_FILE_MAX", 100)
    monkeypatch.setattr(syscalls, "_READ_CHUNK", 10)
    assert await resume(storage) is None


async def test_created_file_whose_mode_cannot_be_set_is_not_used(root: Path) -> None:
    storage = await opened(root)

    def fail(call: str, _number: int) -> OSError | None:
        return OSError(errno.EIO, "") if call == f"fchmod {DOT_IMAGE}" else None

    with recording(root, fail=fail), pytest.raises(StorageUnusable):
        await store(storage, FAX)


# Cancellation


async def test_cancelled_delivery_is_finished_and_found_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = await opened(root)
    gate = Held(syscalls.move)
    monkeypatch.setattr(syscalls, "move", gate)
    task = asyncio.create_task(store(storage, FAX))
    await gate.reached()
    task.cancel()
    await asyncio.sleep(0.01)
    assert not task.done()
    gate.let_go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await resume(storage)
    assert set(tree(root)) == {IMAGE, SIDECAR}


async def test_cancelled_resume_does_not_run_on_behind_its_caller(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = await opened(root)
    _dots(root)
    (root / DOT_IMAGE).rename(root / IMAGE)
    gate = Held(syscalls.move)
    monkeypatch.setattr(syscalls, "move", gate)
    task = asyncio.create_task(resume(storage))
    await gate.reached()
    task.cancel()
    await asyncio.sleep(0.01)
    assert not task.done()
    gate.let_go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert set(visible(root)) == {IMAGE, SIDECAR}


async def test_caller_cancelled_again_and_again_leaves_a_hung_disk_alone(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = await opened(root)
    gate = Held(syscalls.sync_file)
    monkeypatch.setattr(syscalls, "sync_file", gate)
    task = asyncio.create_task(store(storage, FAX))
    await gate.reached()
    while not task.done():
        task.cancel()
        await asyncio.sleep(0.01)
    gate.let_go.set()
    storage.close()
    await asyncio.to_thread(storage._threads._pool.shutdown)
    restarted = await opened(root)
    if await resume(restarted) is None:
        await store(restarted, FAX)
    assert set(tree(root)) == {IMAGE, SIDECAR}


# Refusals of the system


_REACTIONS: dict[int, type[Exception]] = {
    errno.ENOSPC: StorageFull,
    errno.EDQUOT: StorageFull,
    errno.EROFS: StorageUnusable,
    errno.EACCES: StorageUnusable,
    errno.EPERM: StorageUnusable,
    errno.EIO: StorageUnusable,
    errno.EMFILE: StorageUnusable,
    errno.EFBIG: FaxTooLarge,
    errno.ENOENT: StorageConflict,
}
_REFUSED = set(
    itertools.product(["create", "write", "fsync", "rename", "link", "mkdir"], _REACTIONS)
)


@pytest.mark.parametrize(
    ("call", "number"),
    sorted(_REFUSED - {("rename", errno.EPERM)}),  # then it is linked
)
async def test_errors_of_the_system_are_sorted_by_reaction(
    root: Path, number: int, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _REACTIONS[number]
    monkeypatch.setattr(RecordedOs, "renames", call != "link")
    storage = await opened(root)

    def fail(made: str, _number: int) -> OSError | None:
        return OSError(number, os.strerror(number)) if made.startswith(call) else None

    with recording(root, fail=fail), pytest.raises((expected, StorageConflict)) as caught:
        await store(storage, FAX)
    if (call, number) not in {("link", errno.ENOENT), ("rename", errno.ENOENT)}:
        assert type(caught.value) is expected
    assert tree(root) == {}
    await store(storage, FAX)


async def test_thread_that_cannot_be_started_is_unusable_storage(root: Path) -> None:
    storage = await opened(root)
    storage.close()
    with pytest.raises(StorageUnusable, match="cannot start a thread"):
        await resume(storage)


async def test_file_size_limit_fails_only_the_fax_that_is_too_large(root: Path) -> None:
    await opened(root)
    script = textwrap.dedent(
        f"""
        import asyncio, pathlib, resource, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from tests.integration.storage_seam import opened, store, tiff
        from poller.errors import FaxTooLarge

        async def main():
            storage = await opened(pathlib.Path({str(root)!r}))
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
            try:
                await store(storage, tiff(bytes(200_000)), path="main/large")
            except FaxTooLarge:
                await store(storage, tiff(bytes(50_000)), path="main/small")
                print("sorted")
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)  # coverage writes at the end

        asyncio.run(main())
        """
    )
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("sorted\n", "")
    assert set(tree(root)) == {"main/small.tif", "main/small.json"}


def _mount(directory: Path, options: str) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(directory)]
    return os.geteuid() == 0 and subprocess.run(command, check=False).returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "disk"
    directory.mkdir()
    if not _mount(directory, "size=1m,nr_inodes=24"):
        pytest.skip("only root can mount a small disk")
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)


async def test_full_disk_is_unusable_and_heals(small_disk: Path) -> None:
    storage = await opened(small_disk)
    with pytest.raises(StorageUnusable, match="No space left"):
        await store(storage, tiff(bytes(2_000_000)))
    assert tree(small_disk) == {}
    await store(storage, tiff(bytes(900_000)))
    assert set(tree(small_disk)) == {IMAGE, SIDECAR}


async def test_disk_without_inodes_is_unusable_and_heals(small_disk: Path) -> None:
    storage = await opened(small_disk)
    fillers = [small_disk / f"filler{n}" for n in range(24)]
    with suppress(OSError):
        for filler in fillers:
            filler.touch()
    assert "no inode is free" in str(await storage.check())
    with pytest.raises(StorageUnusable):
        await store(storage, FAX)
    for filler in fillers:
        filler.unlink(missing_ok=True)
    assert await storage.check() is None
    await store(storage, FAX)


async def test_read_only_disk_is_unusable_and_heals(small_disk: Path) -> None:
    storage = await opened(small_disk)
    remount = ["mount", "-o"]
    subprocess.run([*remount, "remount,ro", str(small_disk)], check=True)
    assert "Read-only file system" in str(await storage.check())
    with pytest.raises(StorageUnusable, match="Read-only"):
        await store(storage, FAX)
    subprocess.run([*remount, "remount,rw", str(small_disk)], check=True)
    assert await storage.check() is None


async def test_unmounted_disk_gets_no_fax(small_disk: Path) -> None:
    storage = await opened(small_disk)
    draft: Draft
    async with storage.draft(PATH, IDENTITY) as draft:
        await draft.reset()
        subprocess.run(["umount", "-l", str(small_disk)], check=True)
        assert "is its disk mounted?" in str(await storage.check())
        with pytest.raises(StorageUnusable, match="is its disk mounted"):
            await store(storage, FAX, path="main/desk/f2")
    assert list(small_disk.iterdir()) == []
    assert _mount(small_disk, "size=1m")


def test_storage_reaches_the_file_system_only_in_its_steps() -> None:
    package = Path(str(sys.modules[Storage.__module__].__file__)).parent
    used = {
        (file.name, name)
        for file in package.glob("*.py")
        if file.name != "syscalls.py"
        for name in re.findall(r"\b(?:os|shutil)\.\w+|\bopen\(", file.read_text())
    }
    assert {name for _, name in used} <= {
        "os.environ",
        "os.strerror",
        "os.fsencode",
        "os.stat_result",
    }
