"""An installation whose disk and limits the test controls, and what must hold meanwhile.

Mounts are made in a mount namespace of this test process, which its children share.
"""

import asyncio
import contextlib
import ctypes
import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import aiohttp
import pytest

from poller.simulator.state import Fax
from tests.acceptance.installation import (
    Daemon,
    Installation,
    arrived,
    assert_stored,
    own_port,
)
from tests.efax import Simulator
from tests.forks import forks

TRUSTED_FOR_S = 1.1  # how long the service believes what it found of the storage, and a little more
_HANG_TIMEOUT_S = 90.0
_CLONE_NEWNS = 0x00020000
_SOURCE = Path(__file__).with_name("disk_trouble.c")


def call(*words: str | Path) -> None:
    """Run a system command, which must succeed."""
    done = subprocess.run(
        [str(word) for word in words], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, (words, done.stderr)


def needs(*commands: str) -> None:
    """Skip the test if a command is missing."""
    for command in commands:
        if shutil.which(command) is None:
            pytest.skip(f"needs {command}")


@cache
def _own_mounts() -> str | None:
    """Give this process its own mounts; return the reason if that is impossible."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return "needs root and mount"
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS) != 0:
        return f"no mount namespace: {os.strerror(ctypes.get_errno())}"
    done = subprocess.run(
        ["mount", "--make-rprivate", "/"], check=False, capture_output=True, text=True
    )
    forks.cache_clear()  # a fork server that runs already does not see these mounts
    return None if done.returncode == 0 else f"no private mounts: {done.stderr.strip()}"


@dataclass(frozen=True)
class Mount:
    """A small file system at `at`."""

    at: Path
    options: str = "size=2m"

    def mount(self) -> None:
        if (reason := _own_mounts()) is not None:
            pytest.skip(reason)
        self.at.mkdir(exist_ok=True)
        call("mount", "-t", "tmpfs", "-o", f"mode=0750,{self.options}", "tmpfs", self.at)

    def remount(self, options: str) -> None:
        call("mount", "-o", f"remount,{options}", self.at)

    def unmount(self) -> None:
        call("umount", self.at)

    def fill(self, *, but: int) -> Path:
        """Leave only `but` bytes; the file that takes the rest has a name that no fax has."""
        filler = self.at / "lost+found"
        filler.write_bytes(bytes(max(0, _free(self.at) - but)))
        return filler


def _free(path: Path) -> int:
    space = os.statvfs(path)
    return space.f_bavail * space.f_frsize


class Disk:
    """The trouble of disk_trouble.c below a directory; `set` switches it."""

    def __init__(self, installation: Installation, below: Path) -> None:
        self._switch = installation.root / "disk-trouble"
        installation.preload = _SOURCE
        installation.environ |= {
            "DISK_TROUBLE": str(self._switch),
            "DISK_TROUBLE_BELOW": str(below),
        }

    def set(self, trouble: str) -> None:
        """Set what happens to the disk from now on, in one step."""
        new = self._switch.with_suffix(".new")
        new.write_text(trouble)
        new.rename(self._switch)

    async def hold(self) -> None:
        """Let no fsync end from now on; return once one has begun."""
        self.set("hold")
        async with asyncio.timeout(_HANG_TIMEOUT_S):
            while not self._switch.with_name(self._switch.name + ".held").exists():
                await asyncio.sleep(0.01)


@dataclass
class Scene:
    """A running daemon with its page on `port`, and the faxes of its eFax."""

    installation: Installation
    simulator: Simulator
    port: int = field(default_factory=own_port)

    def __post_init__(self) -> None:
        self.installation.write({"http": {"listen": f"127.0.0.1:{self.port}"}})

    async def get(self, path: str, *, headers: Mapping[str, str] | None = None) -> tuple[int, str]:
        timeout = aiohttp.ClientTimeout(total=_HANG_TIMEOUT_S)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"http://127.0.0.1:{self.port}{path}", headers=headers) as answer,
        ):
            return answer.status, await answer.text()

    def failures(self) -> int:
        """How many failed attempts the ledger counts against faxes."""
        with closing(sqlite3.connect(f"file:{self.installation.ledger}?mode=ro", uri=True)) as db:
            ((failures,),) = db.execute("SELECT coalesce(sum(failures), 0) FROM jobs")
        return int(failures)

    async def asks_for_nothing_but_polls_on(self, daemon: Daemon, *, at_most: int = 0) -> None:
        """New faxes become pending rows while no image is requested."""
        asked = self.simulator.downloads.total()
        for fax in arrived(self.simulator, 2):
            await daemon.event("fax-discovered", fax_id=fax.fax_id)
        polls = len(daemon.said("poll-completed"))
        await daemon.event("poll-completed", count=polls + 2)
        assert self.simulator.downloads.total() - asked <= at_most

    async def is_loud(self, daemon: Daemon, reason: str, *, seen_from_outside: bool = True) -> None:
        """Log, readiness, metrics and `status` say that nothing is fetched, and why.

        The command looks for itself, and sees what is visible from outside the daemon.
        """
        (said,) = daemon.said("storage-unusable")
        assert reason in said["poller"]["reason"]
        assert not daemon.said("storage-usable")
        code, text = await self.get("/readyz")
        assert (code, reason in text) == (503, True), text
        assert "\npoller_storage_usable 0.0\n" in (await self.get("/metrics"))[1]
        assert (await self.get("/healthz"))[0] == 200
        statuses = [json.loads((await self.get("/status.json"))[1])]
        if seen_from_outside:
            statuses.append(await self.installation.status())
        for shown in statuses:
            assert shown["storage"]["usable"] is False
            assert reason in shown["storage"]["reason"]
            assert sum(user["pending"] for user in shown["users"]) >= 2
        assert self.failures() == 0

    async def ends_well(self, daemon: Daemon, *, more: int = 1) -> None:
        """Without help, everything is stored once; at most `more` requests fail."""
        await daemon.event("storage-usable")
        for fax in self.simulator.faxes():
            await daemon.event("fax-stored", fax_id=fax.fax_id)
        assert (await self.get("/readyz"))[0] == 200
        assert "\npoller_storage_usable 1.0\n" in (await self.get("/metrics"))[1]
        assert len(daemon.said("storage-unusable")) == len(daemon.said("storage-usable")) == 1
        assert not daemon.said("fax-quarantined")
        assert self.failures() == 0
        assert await daemon.stop() == 0
        self.is_whole()
        assert self.simulator.downloads.total() <= len(self.simulator.faxes()) + more

    def is_whole(self) -> None:
        assert_stored(self.installation, self.simulator)


async def through(
    scene: Scene, *, begin: Callable[[], object], end: Callable[[], object], reason: str
) -> None:
    """Cause trouble for a running daemon, see it degraded, end the trouble, see it recover."""
    async with scene.installation.daemon() as daemon:
        await stored(scene, daemon, arrived(scene.simulator, 2))
        await _patiently(begin)
        await asyncio.sleep(TRUSTED_FOR_S)
        await scene.asks_for_nothing_but_polls_on(daemon)
        await daemon.event("storage-unusable")
        await scene.is_loud(daemon, reason)
        await scene.asks_for_nothing_but_polls_on(daemon)
        end()
        await scene.ends_well(daemon, more=0)


async def _patiently(step: Callable[[], object]) -> None:
    """Wait while the daemon has a file open, as it says `fax-stored` before it closes the file."""
    for _ in range(50):
        with contextlib.suppress(AssertionError):
            step()
            return
        await asyncio.sleep(0.1)
    step()


async def stored(scene: Scene, daemon: Daemon, faxes: list[Fax]) -> None:
    """Wait until these are stored and nothing of their hand-over is left."""
    for fax in faxes:
        await daemon.event("fax-stored", fax_id=fax.fax_id)
    async with asyncio.timeout(_HANG_TIMEOUT_S):
        while any(scene.installation.storage.rglob("*.part")):
            await asyncio.sleep(0.05)
