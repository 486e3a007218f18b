"""Rows 53, 56, 57, 58 and 60: a process stopped, killed or hanging at a bad time; a clock that steps."""

import asyncio
import contextlib
import os
import platform
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from poller.simulator import Faults, Simulator
from tests.acceptance.installation import (
    AS_NEW_PROCESS,
    Daemon,
    Installation,
    arrived,
    assert_stored,
    populated,
)
from tests.compiled import library
from tests.crash.checker import Expected, problems
from tests.crash.served import served_by
from tests.exhaustive import EXHAUSTIVE

STEPS_S = [2 * 86_400, -86_400, *([3600, -3600, 10 * 365 * 86_400] if EXHAUSTIVE else [])]
SOURCE = Path(__file__).with_name("clock_shim.c")


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with populated(Simulator(seed=5)) as running:
        yield running


@pytest.fixture
def installation(simulator: Simulator, tmp_path: Path) -> Installation:
    return Installation(tmp_path, simulator.base_url)


def assert_sound(
    installation: Installation, simulator: Simulator, *, at_rest: bool = False
) -> None:
    """Return what the independent checker says about a dead process."""
    expected = Expected(
        storage=installation.storage,
        ledger=installation.ledger,
        faxes=served_by(simulator),
        now=datetime.now(UTC) + timedelta(seconds=1),
        at_rest=at_rest,
    )
    assert problems(expected) == []


async def assert_heals(installation: Installation, simulator: Simulator) -> None:
    """The next start stores everything, with at most one more download of each fax."""
    simulator.faults = Faults()
    async with installation.daemon() as daemon:
        await daemon.until(
            lambda: installation.stored() == len(simulator.faxes()), "every fax to be stored"
        )
        assert await daemon.stop() == 0
    assert_stored(installation, simulator)
    assert_sound(installation, simulator, at_rest=True)
    assert max(simulator.downloads.values()) <= 2


async def until_arriving(installation: Installation) -> None:
    async with asyncio.timeout(90):
        while not any((installation.storage / "main").rglob(".*")):
            await asyncio.sleep(0.005)


# -- 56: stopped and continued ------------------------------------------------------------------------


async def test_row_56_a_process_that_was_stopped_for_a_while_is_late_and_does_nothing_twice(
    installation: Installation, simulator: Simulator
) -> None:
    faxes = arrived(simulator, 25)
    async with installation.daemon() as daemon:
        for stored in (1, 10):
            await daemon.event("fax-stored", count=stored)
            daemon.kill(signal.SIGSTOP)
            at_work = len(daemon.said("fax-stored"))
            await asyncio.sleep(1.2)  # real time: each user misses a poll
            assert len(daemon.said("fax-stored")) - at_work < len(faxes)
            daemon.kill(signal.SIGCONT)
        await daemon.event("fax-stored", count=len(faxes))
        polls = len(daemon.said("poll-completed"))
        await daemon.event("poll-completed", count=polls + 2)
        assert await daemon.stop() == 0
        assert not daemon.said("internal-error")
    assert_stored(installation, simulator)
    assert_sound(installation, simulator, at_rest=True)
    assert max(simulator.downloads.values()) <= 2  # the server may have given up one meanwhile


# -- 57 and 58: killed at a bad time ------------------------------------------------------------------


@pytest.mark.parametrize("stored", range(1, 12) if EXHAUSTIVE else [1, 6])
async def test_row_57_sigterm_while_faxes_are_committed_ends_well_and_loses_nothing(
    installation: Installation, simulator: Simulator, stored: int
) -> None:
    arrived(simulator, 12)
    async with installation.daemon() as daemon:
        await daemon.event("fax-stored", count=stored)
        assert await daemon.stop() == 0
        said = {one["poller"]["fax_id"] for one in daemon.said("fax-stored")}
    assert_sound(installation, simulator)
    assert said == set(installation.sidecars())  # no hand-over was left half done
    await assert_heals(installation, simulator)
    assert max(simulator.downloads.values()) <= 2


async def test_row_58_sigkill_in_the_middle_of_a_drain_is_like_any_other(
    installation: Installation, simulator: Simulator
) -> None:
    installation.write({"drain": "30s"})
    simulator.faults = Faults.of("stall-mid-body@image=always")
    arrived(simulator, 6)
    async with installation.daemon() as daemon:
        await until_arriving(installation)
        daemon.kill(signal.SIGTERM)
        await daemon.event("service-stopping")
        daemon.kill(signal.SIGKILL)  # TimeoutStopSec is over
        assert await daemon.ended() == -signal.SIGKILL
        assert not daemon.said("service-stopped")
    assert_sound(installation, simulator)
    await assert_heals(installation, simulator)


# -- 60: the event loop hangs -------------------------------------------------------------------------

# A Python signal handler runs in the main thread; this one never returns and blocks the loop.
HANGS_ON_SIGUSR1 = (
    "import os, signal, sys, time\n"
    "def hang(*_):\n"
    "    os.write(1, b'\\nHANGS\\n')\n"
    "    time.sleep(3600)\n"
    "signal.signal(signal.SIGUSR1, hang)\n"
    "from poller.cli import main\n"
    "sys.exit(main())\n"
)


async def test_row_60_the_watchdog_is_withheld_when_the_loop_hangs_and_the_next_start_is_well(
    installation: Installation, simulator: Simulator
) -> None:
    arrived(simulator, 8)
    address = installation.root / "notify"
    environ = {"NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": "600000"}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.setblocking(False)
        async with running_as(installation, HANGS_ON_SIGUSR1, environ) as daemon:
            await daemon.event("fax-stored", count=2)
            for _ in range(3):
                assert await heard(manager, within_s=20)
            daemon.kill(signal.SIGUSR1)
            await daemon.until(lambda: "HANGS" in daemon.lines, "the hang")
            while await heard(manager, within_s=0.01):
                pass  # sent earlier
            assert not await heard(manager, within_s=1.2)
            assert daemon.process.returncode is None
            daemon.kill(signal.SIGABRT)  # as systemd does next
            assert await daemon.ended() == -signal.SIGABRT
    assert_sound(installation, simulator)
    await assert_heals(installation, simulator)


async def heard(manager: socket.socket, *, within_s: float) -> bool:
    """Whether the watchdog gets its signal within that time."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            while True:
                if "WATCHDOG=1" in (await loop.sock_recv(manager, 65536)).decode().split("\n"):
                    return True
    return False


@asynccontextmanager
async def running_as(
    installation: Installation, program: str, environ: dict[str, str]
) -> AsyncIterator[Daemon]:
    """The daemon, started by a few lines of Python; kill it at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, "run", "-c", str(installation.config)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        cwd=installation.root,
        env={**installation.environ, **environ},
        limit=1 << 20,
    )
    daemon = Daemon(process)
    reading = asyncio.create_task(daemon.read())
    try:
        await daemon.event("service-ready")
        yield daemon
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await reading


# -- what months of work leave behind ---------------------------------------------------------------


@pytest.mark.skipif("glibc" not in platform.libc_ver(), reason="it is glibc's allocator")
async def test_threads_share_two_arenas_of_memory(
    installation: Installation, simulator: Simulator
) -> None:
    installation.before_it = AS_NEW_PROCESS
    arrived(simulator, 6)
    async with installation.daemon() as daemon:
        await daemon.event("fax-stored", count=6)
        threads = len(os.listdir(f"/proc/{daemon.process.pid}/task"))
        maps = Path(f"/proc/{daemon.process.pid}/maps").read_text()
        assert await daemon.stop() == 0
    assert threads > 3
    assert len([line for line in maps.splitlines() if is_rest_of_arena(line)]) <= 1


def is_rest_of_arena(line: str) -> bool:
    """Whether this is the reserved rest of an arena; all but the main one reserve 64 MiB at once."""
    addresses, access, *_ = line.split()
    start, end = (int(address, 16) for address in addresses.split("-"))
    whole = 64 << 20
    return access == "---p" and end % whole == 0 and end - start < whole and len(line.split()) == 5


# -- 53: the clock of a living process ----------------------------------------------------------------


@pytest.fixture(scope="session")
def clock_shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not sys.platform.startswith("linux"):
        pytest.skip("moving the clock of a living process needs Linux's LD_PRELOAD")
    return library(SOURCE, tmp_path_factory.mktemp("shim"))


@pytest.mark.parametrize("seconds", STEPS_S)
async def test_row_53_the_clock_of_a_living_daemon_steps_and_it_goes_on(
    installation: Installation, simulator: Simulator, clock_shim: Path, seconds: int
) -> None:
    ahead = installation.root / "ahead"
    ahead.write_text("0")
    environ = {"LD_PRELOAD": str(clock_shim), "CLOCK_SHIM_FILE": str(ahead)}
    arrived(simulator, 2)
    async with installation.daemon(environ=environ) as daemon:
        await daemon.event("fax-stored", count=2)
        for count, now_ahead in enumerate((seconds, 0), start=1):
            asked = len(simulator.requests)
            _replace(ahead, str(now_ahead))
            stepped = await daemon.event("clock-stepped", count=count)
            way = "forward" if (seconds > 0) == (count == 1) else "back"
            assert f"set {way} by " in stepped["message"]
            (fax,) = arrived(simulator, 1)
            await daemon.event("fax-stored", fax_id=fax.fax_id)
            # Two users, polled once a second for some seconds: no missed day is made up for.
            assert len(simulator.requests) - asked < 200
        assert await daemon.stop() == 0
        assert not daemon.said("internal-error")
    assert_stored(installation, simulator)
    assert_sound(installation, simulator, at_rest=True)


def _replace(path: Path, text: str) -> None:
    """Change the file in one step, because the process must never read half of it."""
    new = path.with_suffix(".new")
    new.write_text(text)
    os.replace(new, path)
