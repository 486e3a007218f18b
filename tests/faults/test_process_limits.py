"""Limits of the system: size, descriptors, memory, threads, a stuck stdout, a kill."""

import asyncio
import os
import pty
import random
import resource
import shutil
import signal
import sqlite3
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from poller.simulator.state import Fax
from tests.acceptance.installation import Daemon, Installation, arrived, populated
from tests.efax import Simulator
from tests.exhaustive import EXHAUSTIVE
from tests.faults.troubled import Scene, call, needs, stored

_NOBODY = 54321  # an unused user id: the number of its threads is counted only for this test
_AS_NOBODY = ("setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups")


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with populated(Simulator(seed=5)) as running:
        yield running


@pytest.fixture
def installation(simulator: Simulator, tmp_path: Path) -> Installation:
    return Installation(tmp_path, simulator.base_url)


@pytest.fixture
def scene(installation: Installation, simulator: Simulator) -> Scene:
    return Scene(installation, simulator)


def limit(daemon: Daemon, what: int, soft: int) -> None:
    """Change a limit of the living process; its hard limit stays, so the test can undo it."""
    _, hard = resource.prlimit(daemon.process.pid, what)
    resource.prlimit(daemon.process.pid, what, (soft, hard))


def unlimit(daemon: Daemon, what: int) -> None:
    _, hard = resource.prlimit(daemon.process.pid, what)
    resource.prlimit(daemon.process.pid, what, (hard, hard))


# -- row 19 -------------------------------------------------------------------------------------------


async def test_fax_beyond_the_file_size_limit_is_quarantined_while_others_go_on(
    scene: Scene, installation: Installation
) -> None:
    installation.write({"retry": {"give_up_after": "1s"}})
    async with installation.daemon() as daemon:
        limit(daemon, resource.RLIMIT_FSIZE, 400_000)  # above the ledger's size
        (big,) = arrived(scene.simulator, 1, pages=30)
        await daemon.event("fax-retry", fax_id=big.fax_id)
        small = arrived(scene.simulator, 3)
        await stored(scene, daemon, small)
        assert not daemon.said("storage-unusable")
        await asyncio.sleep(1.0)  # give_up_after the first failure
        _make_due(installation, big)
        await daemon.event("fax-quarantined", fax_id=big.fax_id)
        (quarantined,) = (await installation.status())["quarantined_faxes"]
        assert "larger than the file system" in quarantined["error"]
        unlimit(daemon, resource.RLIMIT_FSIZE)
        assert (await installation.poller("retry", big.fax_id)).code == 0
        await stored(scene, daemon, [big])
        assert await daemon.stop() == 0
    scene.is_whole()


def _make_due(installation: Installation, fax: Fax) -> None:
    """Pretend that the half minute to its next attempt is over; `poller retry` would forget failures."""
    with closing(sqlite3.connect(installation.ledger, timeout=20)) as ledger, ledger:
        ledger.execute(
            "UPDATE jobs SET due = 0 WHERE subject = (SELECT id FROM faxes WHERE fax_id = ?)",
            (fax.fax_id,),
        )


# -- row 61 -------------------------------------------------------------------------------------------


async def test_without_file_descriptors_nothing_is_asked_for_and_nothing_ends(
    scene: Scene, installation: Installation
) -> None:
    async with installation.daemon() as daemon:
        await stored(scene, daemon, arrived(scene.simulator, 2))
        held = len(os.listdir(f"/proc/{daemon.process.pid}/fd"))
        limit(daemon, resource.RLIMIT_NOFILE, min(held, 10))
        await daemon.event("storage-unusable")
        late = arrived(scene.simulator, 3)
        await asyncio.sleep(3)
        assert scene.simulator.downloads.total() <= 2 + 3
        assert daemon.process.returncode is None
        assert len(daemon.said("storage-unusable")) == 1
        assert len(daemon.lines) < 200
        unlimit(daemon, resource.RLIMIT_NOFILE)
        await daemon.event("storage-usable")
        await stored(scene, daemon, late)
        assert scene.failures() == 0
        assert await daemon.stop() == 0
    scene.is_whole()


# -- row 62 -------------------------------------------------------------------------------------------


async def test_without_memory_no_fax_is_blamed_and_all_is_fetched_when_there_is_some(
    scene: Scene, installation: Installation
) -> None:
    async with installation.daemon() as daemon:
        await stored(scene, daemon, arrived(scene.simulator, 2))
        used = _status_kib(daemon, "VmSize") * 1024
        limit(daemon, resource.RLIMIT_AS, used + (2 << 20))  # no further thread gets its stack
        big = arrived(scene.simulator, 4, pages=40)
        for fax in big:
            await daemon.event("fax-discovered", fax_id=fax.fax_id)
        polls = len(daemon.said("poll-completed"))
        await daemon.event("poll-completed", count=polls + 4)
        unlimit(daemon, resource.RLIMIT_AS)
        assert (await installation.poller("retry", *(fax.fax_id for fax in big))).code in (0, 1)
        await stored(scene, daemon, big)
        # Only asyncio itself may report that it finds no memory for what it reads.
        kinds = {one["error"]["type"] for one in daemon.said("internal-error")}
        assert kinds <= {"MemoryError"}
        assert await daemon.stop() == 0
    scene.is_whole()


def _status_kib(daemon: Daemon, name: str) -> int:
    text = Path(f"/proc/{daemon.process.pid}/status").read_text()
    (line,) = (line for line in text.splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])


# -- row 63 -------------------------------------------------------------------------------------------


@pytest.fixture
def ordinary(simulator: Simulator) -> Iterator[Installation]:
    """An installation of a user that nobody else uses, in a directory that this user can reach."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become a user of its own")
    needs("setpriv", "prlimit")
    root = Path(tempfile.mkdtemp(prefix="poller-limits-"))
    installation = Installation(root, simulator.base_url)
    os.chown(root, _NOBODY, _NOBODY)
    installation.before_it = _AS_NOBODY
    yield installation
    shutil.rmtree(root)


def _threads_at_most(daemon: Daemon, count: str) -> None:
    """Change the limit of another user's process, as that user."""
    call(*_AS_NOBODY, "prlimit", f"--pid={daemon.process.pid}", f"--nproc={count}:")


async def test_without_new_threads_it_waits_for_them(
    ordinary: Installation, simulator: Simulator
) -> None:
    async with ordinary.daemon() as daemon:
        (first,) = arrived(simulator, 1)
        await daemon.event("fax-stored", fax_id=first.fax_id)
        _threads_at_most(daemon, "1")
        late = arrived(simulator, 8) + arrived(simulator, 8, user_id="user-b")
        for fax in late:
            await daemon.event("fax-discovered", fax_id=fax.fax_id)
        polls = len(daemon.said("poll-completed"))
        await daemon.event("poll-completed", count=polls + 2)
        _threads_at_most(daemon, "1000")
        for fax in late:
            await daemon.event("fax-stored", fax_id=fax.fax_id)
        assert not daemon.said("internal-error")
        assert await daemon.stop() == 0
    Scene(ordinary, simulator).is_whole()


# -- row 70 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stdout", ["closed", "blocked", "terminal", "full", "none"])
async def test_log_that_nobody_takes_costs_no_fax(
    scene: Scene, installation: Installation, stdout: str
) -> None:
    faxes = arrived(scene.simulator, 40)  # enough lines to fill a terminal that nobody reads
    with _Stdout(stdout) as descriptor:
        before = ("sh", "-c", 'exec "$@" >&-', "sh") if stdout == "none" else ()
        process = await asyncio.create_subprocess_exec(
            *(*before, sys.executable, "-m", "poller", "run", "-c", str(installation.config)),
            stdout=descriptor,
            stderr=asyncio.subprocess.PIPE,
            env=installation.environ,
        )
        try:
            async with asyncio.timeout(90):
                while len(installation.sidecars()) < len(faxes):
                    await asyncio.sleep(0.02)
            assert (await scene.get("/healthz"))[0] == 200
            process.send_signal(signal.SIGTERM)
            _, errors = await process.communicate()
            assert (process.returncode, b"Traceback" in errors) == (0, False), errors
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    scene.is_whole()


class _Stdout:
    """A standard output in a bad state: its reader has gone or sleeps, or its disk is full."""

    def __init__(self, state: str) -> None:
        self._state = state
        self._open: list[int] = []

    def __enter__(self) -> int:
        if self._state in ("full", "none"):
            self._open = [os.open("/dev/full", os.O_WRONLY)]
            return self._open[0]
        if self._state == "terminal":
            self._open = list(pty.openpty())
            return self._open[1]
        reading, writing = os.pipe()
        self._open = [writing]
        if self._state == "closed":
            os.close(reading)
        else:
            self._open.append(reading)
            os.set_blocking(writing, False)
            try:
                while True:
                    os.write(writing, b"x" * 4096)
            except BlockingIOError:
                os.set_blocking(writing, True)
        return writing

    def __exit__(self, *_: object) -> None:
        for descriptor in self._open:
            os.close(descriptor)


# -- row 2 --------------------------------------------------------------------------------------------


@pytest.mark.timeout(1200)
async def test_killed_at_random_under_load_it_loses_nothing(
    scene: Scene, installation: Installation
) -> None:
    """Faxes keep arriving; `POLLER_EXHAUSTIVE=1` kills a hundred times."""
    kills = 100 if EXHAUSTIVE else 6
    seed = random.randrange(1 << 32)
    dice = random.Random(seed)
    print(f"seed {seed}")
    for _ in range(kills):
        arrived(scene.simulator, 8)
        arrived(scene.simulator, 8, user_id="user-b")
        async with installation.daemon(ready=False) as daemon:
            await daemon.event("service-started")
            await asyncio.sleep(dice.uniform(0.1, 1.2))
            daemon.kill(signal.SIGKILL)
            await daemon.ended()
    interrupted = scene.simulator.downloads.total() - len(installation.sidecars())
    assert interrupted <= kills * 8  # what can be in flight
    async with installation.daemon() as daemon:
        wanted = len(scene.simulator.faxes())
        await daemon.until(lambda: installation.stored() == wanted, f"{wanted} stored faxes")
        await daemon.event("poll-completed", count=2)
        assert await daemon.stop() == 0
    scene.is_whole()
    assert await installation.once() == {
        "polled": 2,
        "failed_polls": 0,
        "discovered": 0,
        "stored": 0,
        "pending": 0,
        "quarantined": 0,
    }
