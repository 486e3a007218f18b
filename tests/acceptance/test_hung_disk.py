"""A disk that stops answering, and a storage directory that two pollers want."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from poller.simulator import Simulator
from tests.acceptance.installation import Daemon, Installation, arrived, assert_stored, populated

# the command, but the fsync of each image never returns
HANGS = """
import os, sys, threading
from poller.store import syscalls
from poller.cli import entry
real = syscalls.sync_file
def sync_file(fd):
    if os.readlink(f"/proc/self/fd/{fd}").endswith(".image.part"):
        print("HANGS", file=sys.stderr, flush=True)
        threading.Event().wait()
    real(fd)
syscalls.sync_file = sync_file
sys.exit(entry())
"""


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with populated(Simulator(seed=3)) as running:
        yield running


@asynccontextmanager
async def hanging(installation: Installation, *words: str) -> AsyncIterator[Daemon]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", HANGS, *words, "-c", str(installation.config)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=installation.root,
        env=installation.environ,
        limit=1 << 20,
    )
    daemon = Daemon(process)
    reading = asyncio.create_task(daemon.read())
    try:
        yield daemon
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await reading


async def test_sigterm_ends_the_daemon_in_time_although_an_fsync_hangs(
    simulator: Simulator, tmp_path: Path
) -> None:
    installation = Installation(tmp_path, simulator.base_url, {"drain": "1s"})
    arrived(simulator)
    async with hanging(installation, "run") as daemon:
        await daemon.event("service-ready")
        assert daemon.process.stderr is not None
        async with asyncio.timeout(90):
            assert await daemon.process.stderr.readline() == b"HANGS\n"
        daemon.kill(signal.SIGTERM)
        async with asyncio.timeout(90):
            assert await daemon.ended() == 0
    (said,) = daemon.said("stalled")
    assert said["poller"]["what"] == "stop"
    assert daemon.said("service-stopped")

    await installation.once()
    assert_stored(installation, simulator)
    (fax,) = simulator.faxes()
    assert simulator.downloads[fax] <= 2


async def test_second_poller_on_one_storage_directory_is_refused_until_the_first_has_ended(
    simulator: Simulator, tmp_path: Path
) -> None:
    first = Installation(tmp_path, simulator.base_url)
    arrived(simulator)
    second = Installation(
        tmp_path, simulator.base_url, {"state": {"url": "sqlite:///other/poller.db"}}
    )
    second.config = second.config.rename(tmp_path / "second.yaml")
    first.write({})
    async with first.daemon() as daemon:
        await daemon.event("fax-stored")
        refused = await second.poller("once")
        assert (refused.code, refused.said_in_one_sentence()) == (75, True)
        assert "its own directory" in refused.err
        daemon.kill(signal.SIGKILL)
        await daemon.ended()
    # The first ledger is lost: a new one takes over the storage and its contents.
    summary = await second.once()
    assert (summary["stored"], summary["failed_polls"]) == (1, 0)
    assert_stored(first, simulator)
    (fax,) = simulator.faxes()
    assert simulator.downloads[fax] == 1
