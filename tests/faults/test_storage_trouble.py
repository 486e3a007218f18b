"""Real trouble of real file systems under a running daemon: it degrades, reports it, and recovers."""

import asyncio
import contextlib
import hashlib
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.acceptance.installation import Installation, arrived, assert_stored, populated
from tests.efax import Simulator
from tests.faults.troubled import (
    TRUSTED_FOR_S,
    Disk,
    Mount,
    Scene,
    call,
    needs,
    stored,
    through,
)


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with populated(Simulator(seed=7)) as running:
        yield running


@pytest.fixture
def installation(simulator: Simulator, tmp_path: Path) -> Installation:
    return Installation(tmp_path, simulator.base_url, {"storage": {"min_free": "64KiB"}})


@pytest.fixture
def scene(installation: Installation, simulator: Simulator) -> Scene:
    return Scene(installation, simulator)


@pytest.fixture
def disk(installation: Installation) -> Iterator[Mount]:
    """The storage directory on its own small file system."""
    mount = Mount(installation.storage)
    mount.mount()
    yield mount
    call("umount", "--lazy", mount.at)


# -- rows 16, 18, 20, 21, 24: what a look at the storage sees ---------------------------------------


async def test_full_disk_stops_fetching_until_there_is_space(scene: Scene, disk: Mount) -> None:
    filler = disk.at / "lost+found"
    await through(scene, begin=lambda: disk.fill(but=4096), end=filler.unlink, reason="min_free")


async def test_disk_without_inodes_stops_fetching_until_there_are_some(
    scene: Scene, disk: Mount
) -> None:
    hoard = disk.at / "lost+found"

    def use_up() -> None:
        hoard.mkdir()
        disk.remount(f"nr_inodes={_used_inodes(disk.at) + 1}")
        (hoard / "last").touch()

    def give_back() -> None:
        disk.remount("nr_inodes=1000")
        (hoard / "last").unlink()
        hoard.rmdir()

    await through(scene, begin=use_up, end=give_back, reason="no inode is free")


def _used_inodes(path: Path) -> int:
    space = os.statvfs(path)
    return space.f_files - space.f_ffree


async def test_disk_remounted_read_only_stops_fetching_until_it_takes_writes(
    scene: Scene, disk: Mount
) -> None:
    await through(
        scene,
        begin=lambda: disk.remount("ro"),
        end=lambda: disk.remount("rw"),
        reason="Read-only file system",
    )


async def test_unmounted_disk_stops_fetching_until_it_is_mounted_again(
    scene: Scene, disk: Mount, tmp_path: Path
) -> None:
    """The mount point that remains is a usable directory, but poller must never put anything there."""
    kept = tmp_path / "kept"
    kept.mkdir()
    call("mount", "--bind", disk.at, kept)

    def mount_again() -> None:
        assert list(disk.at.iterdir()) == []
        call("mount", "--move", kept, disk.at)

    await through(scene, begin=disk.unmount, end=mount_again, reason="is its disk mounted?")


async def test_immutable_directory_stops_fetching_until_it_is_mutable(
    scene: Scene, installation: Installation
) -> None:
    needs("chattr")
    installation.storage.mkdir(mode=0o750)
    try:
        call("chattr", "+i", installation.storage)
    except AssertionError as error:
        pytest.skip(f"no immutable directories here: {error}")
    call("chattr", "-i", installation.storage)
    try:
        await through(
            scene,
            begin=lambda: call("chattr", "+i", installation.storage),
            end=lambda: call("chattr", "-i", installation.storage),
            reason="Operation not permitted",
        )
    finally:
        call("chattr", "-i", installation.storage)


async def test_lost_permission_stops_fetching_until_it_is_given_back(
    scene: Scene, installation: Installation
) -> None:
    if os.geteuid() == 0:  # modes do not stop root; without its capabilities they do
        needs("setpriv")
        installation.before_it = ("setpriv", "--bounding-set=-all")
    await through(
        scene,
        begin=lambda: installation.storage.chmod(0o550),
        end=lambda: installation.storage.chmod(0o750),
        reason="Permission denied",
    )


async def test_disk_whose_every_fsync_fails_stops_fetching_until_it_is_well(
    scene: Scene, installation: Installation
) -> None:
    trouble = Disk(installation, installation.storage)
    await through(
        scene,
        begin=lambda: trouble.set("eio"),
        end=lambda: trouble.set(""),
        reason="Input/output error",
    )


async def test_trouble_that_begins_under_an_image_costs_no_fax_an_attempt(
    scene: Scene, installation: Installation
) -> None:
    trouble = Disk(installation, installation.storage)
    async with installation.daemon() as daemon:
        await stored(scene, daemon, arrived(scene.simulator, 1))
        with scene.simulator.hold("image") as gate:
            arrived(scene.simulator, 4)
            await gate.reached(4)
            trouble.set("eio")
        await daemon.event("storage-unusable")
        await scene.asks_for_nothing_but_polls_on(daemon)
        await scene.is_loud(daemon, "Input/output error")
        trouble.set("")
        await scene.ends_well(daemon, more=4)


# -- what no look at the storage sees ---------------------------------------------------------------


async def test_disk_with_room_for_a_look_but_not_for_an_image_is_probed_by_single_images(
    scene: Scene, disk: Mount
) -> None:
    """As with a quota: the system reports enough space, and writing fails."""
    scene.installation.write({"storage": {"min_free": "1KiB"}})
    async with scene.installation.daemon() as daemon:
        await stored(scene, daemon, arrived(scene.simulator, 1))
        filler = disk.fill(but=8192)
        with scene.simulator.hold("image") as gate:
            big = arrived(scene.simulator, 4, pages=6)
            await gate.reached(4)
        await daemon.event("storage-unusable")
        await scene.is_loud(daemon, "No space left on device", seen_from_outside=False)
        # The gate was shut for two seconds; one image finds out that it must stay shut, for four.
        with scene.simulator.hold("image") as gate:
            probes = arrived(scene.simulator, 3, pages=6)
            await gate.reached()
            polls = len(daemon.said("poll-completed"))
            await daemon.event("poll-completed", count=polls + 4)
            assert gate.held == 1
        await scene.asks_for_nothing_but_polls_on(daemon, at_most=1)
        assert sum(scene.simulator.downloads[fax] for fax in probes) <= 2
        assert sum(scene.simulator.downloads[fax] for fax in big) == 4
        filler.unlink()
        # They were postponed for half a minute.
        assert (await scene.installation.poller("retry", *(f.fax_id for f in big))).code == 0
        await scene.ends_well(daemon, more=6)


# -- row 22: what can never work is refused ---------------------------------------------------------


@pytest.mark.parametrize("trouble", ["nolink", "exdev"])
async def test_file_system_that_gives_no_second_name_is_refused_at_the_first_start(
    installation: Installation, simulator: Simulator, trouble: str
) -> None:
    disk = Disk(installation, installation.storage)
    disk.set(trouble)
    (fax,) = arrived(simulator, 1)
    for command in ("run", "once"):
        done = await installation.poller(command)
        assert done.code == 73, done
        assert "can neither rename" in done.err
        assert done.said_in_one_sentence()
    assert simulator.downloads.total() == 0
    assert list(installation.storage.iterdir()) == []
    disk.set("")
    await installation.once()
    assert_stored(installation, simulator, faxes=[fax])


# -- row 23: the name is taken ------------------------------------------------------------------------


async def test_file_of_the_same_content_is_adopted_and_another_one_never_overwritten(
    installation: Installation, simulator: Simulator
) -> None:
    same, other = arrived(simulator, 2)
    installation.write({"retry": {"give_up_after": "1s"}})
    await installation.once()
    # As if this ledger had never seen them, like one that replaces a lost ledger.
    kept = {fax: installation.image_of(fax) for fax in (same, other)}
    for path in installation.sidecars().values():
        path.unlink()
    foreign = b"%PDF-1.4 of somebody else"
    kept[other].write_bytes(foreign)
    ledger = installation.ledger
    for path in ledger.parent.iterdir():
        if path.name.startswith(ledger.name) or path.is_dir():
            path.rename(installation.root / f"lost-{path.name}")
    async with installation.daemon() as daemon:
        await daemon.event("fax-stored", fax_id=same.fax_id)
        failed = await daemon.event("fax-retry", fax_id=other.fax_id)
        assert failed["error"]["type"] == "StorageConflict"
        assert not daemon.said("storage-unusable")
        assert await daemon.stop() == 0
    assert kept[other].read_bytes() == foreign
    assert set(installation.sidecars()) == {same.fax_id}
    assert hashlib.sha256(kept[same].read_bytes()).hexdigest() in simulator.served[same]
    assert not list(installation.storage.rglob("*.part"))


# -- row 25: a slow disk ------------------------------------------------------------------------------


@pytest.mark.parametrize("whose", ["storage", "ledger"])
async def test_slow_disk_delays_faxes_but_neither_loop_nor_watchdog_nor_drain(
    scene: Scene, installation: Installation, whose: str
) -> None:
    directory = {"storage": installation.storage, "ledger": installation.ledger.parent}[whose]
    disk = Disk(installation, directory)
    address = str(installation.root / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.setblocking(False)
        environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "900000"}
        async with installation.daemon(environ=environ) as daemon:
            await stored(scene, daemon, arrived(scene.simulator, 1))
            late = arrived(scene.simulator, 2)
            await disk.hold()
            for _ in range(10):
                assert (await scene.get("/healthz"))[0] == 200
            async with asyncio.timeout(60):
                for _ in range(3):
                    await _fed(manager)
            disk.set("slow 0.5")
            for fax in late:
                await daemon.event("fax-discovered", fax_id=fax.fax_id)
            if whose == "storage":
                await stored(scene, daemon, late)
                assert not daemon.said("storage-unusable")
            assert await daemon.stop() == 0
            assert not daemon.said("fax-retry")
    disk.set("")
    await installation.once()
    scene.is_whole()


async def _fed(manager: socket.socket) -> None:
    """Wait until the watchdog gets a signal after those so far."""
    with contextlib.suppress(BlockingIOError):
        while True:
            manager.recv(4096)
    while b"WATCHDOG=1" not in await asyncio.get_running_loop().sock_recv(manager, 4096):
        pass


# -- row 30: changed stored files ---------------------------------------------------------------------


async def test_stored_file_that_was_deleted_or_cut_is_not_fetched_again_by_itself(
    installation: Installation, simulator: Simulator
) -> None:
    taken, lost, cut, well = faxes = arrived(simulator, 4)
    installation.write({"poll": {"sweep": {"every": "1s"}, "deep_sweep": {"every": "1s"}}})
    await installation.once()
    paths = {fax: installation.image_of(fax) for fax in faxes}
    paths[taken].unlink()
    installation.sidecars()[taken.fax_id].unlink()
    paths[lost].unlink()
    paths[cut].write_bytes(paths[cut].read_bytes()[:100])
    async with installation.daemon() as daemon:
        await daemon.event("poll-completed", count=6)
        assert await daemon.stop() == 0
    assert await installation.once() == {
        "polled": 2,
        "failed_polls": 0,
        "discovered": 0,
        "stored": 0,
        "pending": 0,
        "quarantined": 0,
    }
    assert simulator.downloads == Counter(faxes)
    verified = await installation.poller("verify", "--json")
    assert verified.code == 1
    assert verified.json["taken"] == 1
    assert {one["fax_id"] for one in verified.json["damaged"]} == {lost.fax_id, cut.fax_id}
    assert paths[cut].stat().st_size == 100
    assert paths[well].is_file()
    assert simulator.downloads == Counter(faxes)


# -- the ledger's disk -------------------------------------------------------------------------------


async def test_full_disk_of_the_ledger_stops_images_and_heals(
    scene: Scene, installation: Installation
) -> None:
    disk = Mount(installation.ledger.parent)
    disk.mount()
    try:
        async with installation.daemon() as daemon:
            await stored(scene, daemon, arrived(scene.simulator, 2))
            # A small write still fits; a page of new faxes does not.
            filler = disk.fill(but=16384)
            await asyncio.sleep(TRUSTED_FOR_S)
            arrived(scene.simulator, 3)
            await daemon.event("storage-unusable")
            code, text = await scene.get("/readyz")
            assert (code, "the disk is full" in text) == (503, True), text
            assert "\npoller_storage_usable 0.0\n" in (await scene.get("/metrics"))[1]
            assert (await scene.get("/healthz"))[0] == 200
            assert scene.simulator.downloads.total() == 2
            filler.unlink()
            await scene.ends_well(daemon, more=0)
    finally:
        call("umount", "--lazy", disk.at)
