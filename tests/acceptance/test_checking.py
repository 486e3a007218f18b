"""The daemon and the process that checks its documents, as a user of the machine sees them."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from poller.simulator import Simulator
from poller.simulator.drawing import document
from poller.simulator.state import Fax
from tests.acceptance.installation import (
    APP,
    AS_NEW_PROCESS,
    Daemon,
    Installation,
    populated,
)
from tests.checking_processes import checking_for, orphans
from tests.hostile_documents import SEGFAULT, bomb

PARSERS = ("pikepdf", "qpdf", "PIL", "img2pdf", "lxml")
PATIENCE_S = 90


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with populated(Simulator(seed=3)) as running:
        yield running


@pytest.fixture
def installation(simulator: Simulator, tmp_path: Path) -> Installation:
    made = Installation(tmp_path, simulator.base_url)
    made.prepare = {}  # what checks its documents is a new process, as in production
    return made


def arrived(simulator: Simulator) -> Fax:
    completed = simulator.now() - timedelta(minutes=5)
    return simulator.receive(APP, "user-a", completed=completed, distinct=False)


async def no_orphan_is_left() -> None:
    async with asyncio.timeout(PATIENCE_S):
        while orphans():
            await asyncio.sleep(0.01)


def mapped(daemon: Daemon) -> set[str]:
    maps = Path(f"/proc/{daemon.process.pid}/maps").read_text()
    return {name for name in PARSERS if f"/{name}" in maps}


async def test_document_that_ends_its_process_is_stored_damaged_and_all_goes_on(
    installation: Installation, simulator: Simulator
) -> None:
    poison, harmless = arrived(simulator), arrived(simulator)
    poison.documents, harmless.documents = {"pdf": bomb(2000)}, {"pdf": SEGFAULT}
    async with installation.daemon() as daemon:
        damaged = await daemon.event("fax-damaged", fax_id=poison.fax_id)
        assert damaged["poller"]["problem"].startswith("unchecked-memory:")
        await daemon.event(
            "fax-damaged", fax_id=harmless.fax_id
        )  # because its pages are counted here
        good = arrived(simulator)
        await daemon.event("fax-stored", fax_id=good.fax_id)
        assert not daemon.said("fax-damaged", fax_id=good.fax_id)
        assert not daemon.said("storage-unusable")
        assert await daemon.stop() == 0
    images = {path.stem: path.read_bytes() for path in installation.storage.rglob("*.pdf")}
    assert images.keys() == {poison.fax_id, harmless.fax_id, good.fax_id}
    assert images[poison.fax_id] == bomb(2000)
    assert images[harmless.fax_id] == SEGFAULT
    downloads = simulator.downloads.total()
    assert simulator.downloads[poison] == 2
    async with installation.daemon() as daemon:
        await daemon.event("poll-completed", count=2)
        assert await daemon.stop() == 0
    assert simulator.downloads.total() == downloads
    status = await installation.status()
    assert sum(user["damaged"] for user in status["users"]) == 2


async def test_daemon_loads_no_parser_of_documents(
    installation: Installation, simulator: Simulator
) -> None:
    installation.before_it = AS_NEW_PROCESS
    fax = arrived(simulator)
    async with installation.daemon() as daemon:
        await daemon.event("fax-stored", fax_id=fax.fax_id)
        assert mapped(daemon) == set()
        (child,) = checking_for(daemon.process.pid)
        assert Path(f"/proc/{child}/environ").read_bytes() == b""
        assert await daemon.stop() == 0


@pytest.mark.parametrize("ends", ["SIGTERM", "SIGKILL"])
async def test_no_process_is_left_behind(
    installation: Installation, simulator: Simulator, ends: str
) -> None:
    fax = arrived(simulator)
    async with installation.daemon() as daemon:
        await daemon.event("fax-stored", fax_id=fax.fax_id)
        pid = daemon.process.pid
        assert len(checking_for(pid)) == 1
        daemon.kill(signal.Signals[ends])
        await daemon.ended()
    await no_orphan_is_left()


async def test_daemon_outlives_whatever_becomes_of_its_process(
    installation: Installation, simulator: Simulator
) -> None:
    async with installation.daemon() as daemon:
        for _ in range(4):
            for child in checking_for(daemon.process.pid):
                os.kill(child, signal.SIGKILL)
            fax = arrived(simulator)
            await daemon.event("fax-stored", fax_id=fax.fax_id)
        assert not daemon.said("fax-damaged")
        assert not daemon.said("internal-error")
        assert await daemon.stop() == 0


async def test_once_repair_and_backfill_leave_no_process_behind(
    installation: Installation, simulator: Simulator
) -> None:
    fax = arrived(simulator)
    assert (await installation.once())["stored"] == 1
    (image,) = installation.storage.rglob("*.pdf")
    image.write_bytes(b"harmed")
    repaired = await installation.poller("verify", "--repair", "--json")
    assert repaired.code == 0, repaired
    assert image.read_bytes() == document(fax, "pdf")
    await no_orphan_is_left()
