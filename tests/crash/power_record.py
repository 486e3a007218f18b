"""Record the real program with a simulated eFax, and run it again on what a crash left."""

import asyncio
import itertools
import json
import shutil
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from poller.simulator import Simulator, Switches
from tests.acceptance.installation import APP, KEY, KEY_VARIABLE, USERS, account, populated
from tests.crash.power_model import Call, Found, read_record
from tests.crash.power_rules import LEDGER, STORAGE, Served
from tests.forks import Forks, forks
from tests.ready_checker import KEEP_ONE_READY

_SOURCE = Path(__file__).with_name("record.c")
_HANG_TIMEOUT_S = 180.0
NOTHING = Found({}, {})


@asynccontextmanager
async def efax() -> AsyncIterator[Simulator]:
    """Return an eFax with five faxes of two users on four days, which makes each PDF again."""
    switches = Switches(pdf_bytes="differ", pdf_answer="pdf")
    async with populated(Simulator(seed=7, switches=switches)) as running:
        for user_id, hours in zip(USERS.values(), ((1, 2, 30), (3, 60)), strict=True):
            for ago in hours:
                completed = running.now() - timedelta(hours=ago)
                running.receive(APP, user_id, completed=completed, distinct=False)
        yield running


def served(simulator: Simulator) -> list[Served]:
    return [
        Served(
            fax.fax_id,
            fax.user_id,
            int(fax.completed.timestamp() * 1_000_000),
            frozenset(simulator.served.get(fax, ())),
        )
        for fax in simulator.faxes()
    ]


def configuration(base_url: str) -> str:
    """Return the configuration for `power_rules`' places; JSON is YAML."""
    settings: dict[str, Any] = {
        "accounts": {"main": account(base_url)},
        "poll": {"start": "7d"},
        "storage": {"directory": STORAGE, "min_free": "1MiB"},
        "state": {"url": f"sqlite:///{LEDGER}"},
        "retry": {"max_delay": "200ms"},
        "http": {"listen": None},
    }
    return json.dumps(settings)


@dataclass(frozen=True)
class Run:
    """One recorded run: where it ran, what was there before and after, and every call in between."""

    root: Path
    before: Found
    after: Found
    calls: list[Call]
    code: int
    said: str

    def sites(self) -> set[str]:
        """Return every place in the program that wanted an fsync; `sqlite` has none."""
        return {call.runtime for call in self.calls if call.op == "sync" and call.runtime}


class Program:
    """The real program, loaded once, run cheaply in any directory, and recorded.

    `way` "link": its file system cannot rename without replacing.
    """

    def __init__(self, simulator: Simulator, scratch: Path, way: str) -> None:
        self.simulator = simulator
        self._way = way
        self.scratch = scratch
        self._numbers = itertools.count()

    async def once(self, found: Found = NOTHING, *, bug: str = "") -> Run:
        """Run `poller once` on what a disk contains."""
        root = self.scratch / f"run{next(self._numbers)}"
        disk = root / "disk-and-state"
        disk.mkdir(parents=True)
        found.materialise(disk)
        (root / "poller.yaml").write_text(_below(disk, configuration(self.simulator.base_url)))
        server = recorded()
        fork = await server.start(
            ("once", "--json", "-c", "poller.yaml"),
            root,
            {**server.environ, KEY_VARIABLE: KEY},
            {
                **KEEP_ONE_READY,
                "tests.crash.power_driver:prepare": {"way": self._way, "bug": bug},
            },
        )
        async with asyncio.timeout(_HANG_TIMEOUT_S):
            out, err = await fork.communicate()
        code, said = await fork.wait(), (err + out).decode()
        run = Run(disk, found, look(disk), read_record(root / "record"), code, said)
        shutil.rmtree(root)
        return run


def _below(disk: Path, text: str) -> str:
    """Put storage and state below `disk`, so that only their changes are recorded."""
    return text.replace(f'"{STORAGE}"', json.dumps(str(disk / STORAGE))).replace(
        f"sqlite:///{LEDGER}", f"sqlite:///{disk / LEDGER}"
    )


def recorded() -> Forks:
    """Give the fork server with the recorder."""
    return forks(_SOURCE)


def look(disk: Path) -> Found:
    """Read a whole tree."""
    return Found(dict(_directories(disk)), dict(_files(disk)))


def _directories(disk: Path) -> Iterator[tuple[str, int]]:
    for path in disk.rglob("*"):
        if path.is_dir():
            yield str(path.relative_to(disk)), stat.S_IMODE(path.stat().st_mode)


def _files(disk: Path) -> Iterator[tuple[str, tuple[int, bytes]]]:
    for path in disk.rglob("*"):
        if path.is_file():
            mode = stat.S_IMODE(path.stat().st_mode)
            yield str(path.relative_to(disk)), (mode, path.read_bytes())
