"""Break a run at each of its disk-changing calls; check that nothing is lost, doubled or visible in part.

`python -m tests.crash.explore` explores everything and prints how many points that were.
"""

import argparse
import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from poller.simulator import Simulator
from poller.simulator.drawing import document
from poller.simulator.state import Format
from tests.acceptance.installation import KEY, KEY_VARIABLE, Installation
from tests.checking_processes import orphans
from tests.crash.checker import (
    Expected,
    Key,
    Progress,
    download_problems,
    problems,
    progress,
    secret_problems,
)
from tests.crash.runs import After, Order, carry_out
from tests.crash.scenario import FIRST, SECOND, SENT, UNOBTAINABLE, Moment, efax, install
from tests.crash.served import downloads_of, served_by

KILLED = -9
# A run asks for a token, lists some slices of two users in three ways, and downloads a dozen faxes.
MOST_REQUESTS = 150
SECOND_RUN_EVERY = 4  # of the points: a run that only looks costs as much as one that works
# How faxes get their names: on a file system that renames without replacing, and on others.
WAYS = {"rename": "", "link": "tests.crash.planted:without_rename"}
# Faults that the process survives, and the calls that each can affect.
WRITES = {"write", "pwrite"}
SYNCS = {"fsync", "fdatasync"}
NAMES = {"link", "rename"}
GROWS = {"create", "open-truncate", "mkdir", *NAMES, *WRITES}
FAULTS: dict[str, set[str] | None] = {
    "eio": None,
    "enospc": GROWS,
    "emfile": {"create", "open-truncate"},
    "short": WRITES,
    "lie": SYNCS,
    "child": None,  # kills the process that checks documents
    "stick-eio": None,
    "stick-child": None,
    "stick-enospc": GROWS,
}


@dataclass(frozen=True)
class Point:
    """One run to break: do `act` at the call `at`; if `again` is given, kill the recovery there.

    `after` chooses the call by what it does. With `taken`, a consumer takes everything visible
    before the recovery.
    """

    moment: Moment
    at: int
    act: str = "kill"
    again: int = 0
    planted: str = ""
    taken: bool = False
    after: After | None = None

    def __str__(self) -> str:
        again = f", then kill at {self.again}" if self.again else ""
        taken = ", then all is taken" if self.taken else ""
        return f"{self.moment.name} run, {self.act} at call {self.at or self.after}{again}{taken}"


@dataclass
class Ran:
    code: int
    out: str
    err: str
    left: list[int] = field(default_factory=list)  # processes that outlived it

    @property
    def complained(self) -> bool:
        """Whether an operator can see that something went wrong."""
        loud = ('"log.level":"warning"', '"log.level":"error"', '"log.level":"critical"')
        return self.code != 0 or any(level in self.err for level in loud)


@dataclass
class Runtime:
    """One installation on disk and the eFax that serves it, at one moment."""

    installation: Installation
    simulator: Simulator
    moment: Moment
    way: str
    logs: list[str] = field(default_factory=list)
    taken: set[Key] = field(default_factory=set)

    async def once(
        self,
        *,
        at: int = 0,
        act: str = "",
        after: After | None = None,
        planted: str = "",
        names: str = "",
        later: timedelta = timedelta(0),
    ) -> Ran:
        root = self.installation.root
        code, out, err = await carry_out(
            Order(
                words=["once", "--json", "-c", str(self.installation.config)],
                directory=str(root),
                prefix=str(root),
                environ={KEY_VARIABLE: KEY},
                at=at,
                act=act,
                after=after,
                planted=f"{WAYS[self.way]} {planted}",
                names=names,
                later_s=(self.moment.later + later).total_seconds(),
            )
        )
        ran = Ran(code, out, err, await _left_behind())
        self.logs.append(ran.out + ran.err)
        return ran

    def take_all(self) -> None:
        """Take each fax whose sidecar is there: first the image, last the sidecar."""
        for sidecar in sorted(self.installation.storage.rglob("*.json")):
            if not sidecar.name.startswith("."):
                about = json.loads(sidecar.read_text())
                if about["image"] is not None:
                    sidecar.with_name(about["image"]["file"]).unlink()
                sidecar.unlink()
                self.taken.add((about["app_id"], about["user_id"], about["fax_id"]))

    def delivered_again(self) -> Iterator[str]:
        for sidecar in self.installation.storage.rglob("*.json"):
            if any(sidecar.name == f"{fax_id}.json" for _, _, fax_id in self.taken):
                yield f"again: {sidecar.name} was taken and is there again"

    def expected(self, *, at_rest: bool, later: timedelta = timedelta(0)) -> Expected:
        return Expected(
            storage=self.installation.storage,
            ledger=self.installation.ledger,
            faxes=served_by(self.simulator, late=frozenset({"f-late"})),
            now=self.simulator.now() + later + timedelta(seconds=1),
            at_rest=at_rest,
            unobtainable={UNOBTAINABLE},
            taken=self.taken,
        )

    def secure(self) -> set[Key]:
        """Return what must not be downloaded again: stored by its row, or visible with its sidecar."""
        keys = set(progress(self.installation.ledger).stored)
        for sidecar in self.installation.storage.rglob("*.json"):
            if not sidecar.name.startswith("."):
                about = json.loads(sidecar.read_text())
                keys.add((about["app_id"], about["user_id"], about["fax_id"]))
        return keys

    def everything(self) -> dict[str, str]:
        """Return the storage's contents, to check that a second run changes nothing."""
        return {
            str(path): hashlib.sha256(path.read_bytes()).hexdigest()
            + str(path.stat().st_ino * bool(path.stat().st_mtime_ns))
            for path in sorted(self.installation.storage.rglob("*"))
            if path.is_file()
        }


@dataclass
class Explorer:
    """Explores in `work`; `way` is how names are given, `began` fixes when the faxes arrived."""

    work: Path
    way: str = "rename"
    began: datetime = field(default_factory=lambda: datetime.now(UTC))

    @asynccontextmanager
    async def runtime(self, moment: Moment) -> AsyncIterator[Runtime]:
        """Return a fresh installation, or one after the first run."""
        root = self.work / "now" / "root"
        shutil.rmtree(root.parent, ignore_errors=True)
        root.parent.mkdir()
        if moment is SECOND:
            shutil.copytree(self._base, root)
        else:
            root.mkdir()
        async with efax(moment, self.began) as simulator:
            if moment is SECOND:
                _already_served(simulator, progress(self._base / "state" / "poller.db").stored)
            yield Runtime(install(root, simulator.base_url, moment), simulator, moment, self.way)

    @property
    def _base(self) -> Path:
        return self.work / "base"

    async def calls_of(self, moment: Moment) -> list[str]:
        """Run without a fault; return its calls in order: `N CALL PATH`."""
        async with self.runtime(moment) as runtime:
            names = self.work / "names"
            ran = await runtime.once(names=str(names))
            # eFax cannot deliver one received fax
            assert ran.code == (0 if moment is SENT else 1), ran
            found = problems(runtime.expected(at_rest=True))
            assert not found, found
            if moment is FIRST:
                shutil.rmtree(self._base, ignore_errors=True)
                shutil.copytree(runtime.installation.root, self._base)
            return names.read_text().splitlines()

    async def broken(self, point: Point) -> tuple[bool, list[str]]:
        """Break one run there and let it recover; return whether it got there, and what is wrong."""
        async with self.runtime(point.moment) as runtime:
            before = progress(runtime.installation.ledger)
            ran = await runtime.once(
                at=point.at, act=point.act, after=point.after, planted=point.planted
            )
            reached = ran.code == KILLED or point.act != "kill"
            found = [f"crashed: {one}" for one in _after(runtime, before, ran, point)]
            if found:
                return reached, found
            if point.again:
                await runtime.once(at=point.again, act="kill", planted=point.planted)
                found = problems(runtime.expected(at_rest=False), before)
                if found:
                    return reached, [f"crashed again: {one}" for one in found]
            return reached, await _recovered(runtime, point)


def _already_served(simulator: Simulator, stored: frozenset[Key]) -> None:
    """Return what eFax served to the first run."""
    for fax in simulator.faxes():
        if (fax.app_id, fax.user_id, fax.fax_id) not in stored:
            continue
        formats: Iterable[Format] = fax.documents or ("pdf", "tiff")
        simulator.served[fax] = [hashlib.sha256(document(fax, fmt)).hexdigest() for fmt in formats]


def _after(runtime: Runtime, before: Progress, ran: Ran, point: Point) -> Iterator[str]:
    """Return what is wrong after the break, before the next start."""
    yield from problems(runtime.expected(at_rest=False), before)
    if ran.left:
        yield f"orphans: {ran.left}"
    if point.act == "kill":
        return
    if ran.code < 0:
        yield f"died: the process ended by signal {-ran.code}"
    if "Traceback" in ran.err:
        yield "bug: a traceback was printed: " + ran.err[-1500:]
    if not ran.complained or ran.code == 0:
        # Then the fault had no consequence, except perhaps a dot-file that the next start removes.
        silent = problems(runtime.expected(at_rest=True), before)
        yield from (f"silent: {one}" for one in silent if not one.startswith("left over"))


async def _recovered(runtime: Runtime, point: Point) -> list[str]:
    """Start again without faults, twice; return what is wrong then."""
    # After a failed attempt a fax is due again only after a while.
    later = timedelta(0) if point.act == "kill" else timedelta(minutes=30)
    runtime.simulator.now = _shifted(runtime.simulator, later)
    had, secure = downloads_of(runtime.simulator), runtime.secure()
    if point.taken:
        runtime.take_all()
    asked, before = len(runtime.simulator.requests), progress(runtime.installation.ledger)
    ran = await runtime.once(later=later, planted=point.planted)
    found = problems(runtime.expected(at_rest=True), before)
    found += _run_problems(ran)
    found += runtime.delivered_again()
    allowed = {UNOBTAINABLE}
    has = {key: n for key, n in downloads_of(runtime.simulator).items() if key not in allowed}
    damaged = {key for key in has if key[2] in ("f-damaged", "f-02", "f-11")}
    single = {key: n for key, n in has.items() if key not in damaged}
    found += download_problems(had, single, stored=secure, open_=1)
    found += download_problems(had, {k: has[k] for k in damaged}, stored=secure, open_=2)
    if len(runtime.simulator.requests) - asked > MOST_REQUESTS:
        found.append(f"storm: {len(runtime.simulator.requests) - asked} requests")
    found += secret_problems("".join(runtime.logs), [KEY, *_numbers(runtime.simulator)])
    if found:
        return [f"recovered: {one}" for one in found] + [ran.err[-1500:]]
    if point.at % SECOND_RUN_EVERY:
        return []
    was, downloads = runtime.everything(), sum(has.values())
    await runtime.once(later=later)
    found = problems(runtime.expected(at_rest=True))
    if runtime.everything() != was:
        found.append("restless: a second run changed the storage")
    again = downloads_of(runtime.simulator)
    if sum(n for key, n in again.items() if key not in allowed) != downloads:
        found.append("again: a second run downloaded something")
    return [f"second run: {one}" for one in found]


async def _left_behind() -> list[int]:
    """Return the processes that check documents and outlive their parent for long."""
    deadline = time.monotonic() + 30
    while (left := orphans()) and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    return left


def _run_problems(ran: Ran) -> Iterator[str]:
    if ran.left:
        yield f"orphans: {ran.left}"
    if ran.code not in (0, 1):
        yield f"start: it ended with {ran.code}: {ran.err[-1500:]}"
    elif json.loads(ran.out)["failed_polls"]:
        yield "start: a poll failed"


def _shifted(simulator: Simulator, later: timedelta) -> Callable[[], datetime]:
    now = simulator.now
    return lambda: now() + later


def _numbers(simulator: Simulator) -> set[str]:
    return {fax.originating for fax in simulator.faxes()}


def in_memory() -> str | None:
    """Return a place where an fsync costs nothing: a kill loses no unsynced data anyway."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


# All the points


def kills(moment: Moment, calls: Sequence[str]) -> list[Point]:
    """Yield every call, and a few beyond the last, because threads do not run the same way twice."""
    return [Point(moment, at) for at in range(1, len(calls) + 1)]


def double_kills(moment: Moment, calls: Sequence[str], every: int) -> list[Point]:
    """Kill the recovery early, in its middle and late."""
    firsts = range(every, len(calls) + 1, every)
    return [Point(moment, at, again=again) for at in firsts for again in (3, 20, 60, 120)]


def faults(moment: Moment, calls: Sequence[str], every_sticky: int) -> list[Point]:
    """Yield each fault at each call that it can affect."""
    found = []
    for act, kinds in FAULTS.items():
        hit = [int(n) for n, kind, _ in map(_split, calls) if kinds is None or kind in kinds]
        chosen = hit[::every_sticky] if act.startswith("stick-") else hit
        found += [Point(moment, at, act) for at in chosen]
    return found


def around_visible(moment: Moment, calls: Sequence[str], count: int) -> list[Point]:
    """Yield the calls around the naming, and the commit (cut journal) after a sidecar's."""
    points: list[int] = []
    for n, kind, path in map(_split, calls):
        if kind in NAMES and path.endswith((".json", ".pdf", ".tif")):
            points += [int(n), int(n) + 1]
            points += [
                int(m) + step
                for m, other, name in map(_split, calls[int(n) :])
                if other == "ftruncate" and name.endswith("-journal")
                for step in (0, 1)
            ][:2]
    return [Point(moment, at) for at in points[:count]]


def _split(call: str) -> tuple[str, str, str]:
    number, kind, path = call.split(" ", 2)
    return number, kind, path


async def explored(explorer: Explorer, points: Iterable[Point]) -> tuple[int, dict[str, list[str]]]:
    """Return how many points were reached, and what is wrong with which."""
    reached, wrong = 0, dict[str, list[str]]()
    for point in points:
        was_reached, found = await explorer.broken(point)
        reached += was_reached
        if found:
            wrong[str(point)] = found
            print(point, *(one[-3000:] for one in found), sep="\n    ", flush=True)
    return reached, wrong


# The whole exploration, from the command line


def _whole(calls: dict[Moment, list[str]], kind: str, stride: int) -> list[Point]:
    every = {
        "kill": lambda m: kills(m, calls[m]),
        "twice": lambda m: double_kills(m, calls[m], every=20),
        "fault": lambda m: faults(m, calls[m], every_sticky=10),
    }
    kinds = list(every) if kind == "all" else [kind]
    return [point for one in kinds for moment in calls for point in every[one](moment)][::stride]


async def _shard(kind: str, way: str, number: int, count: int, stride: int) -> int:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=in_memory()) as name:
        work = Path(name)
        explorer = Explorer(work, way)
        calls = {moment: await explorer.calls_of(moment) for moment in (FIRST, SECOND, SENT)}
        points = _whole(calls, kind, stride)[number::count]
        reached, wrong = await explored(explorer, points)
    made = {moment.name: len(found) for moment, found in calls.items()}
    print(
        f"part {number + 1} of {count}: {len(points)} points, {reached} reached, "
        f"{len(wrong)} wrong, of runs with {made} calls, in {time.monotonic() - began:.0f} s",
        flush=True,
    )
    return 1 if wrong else 0


def main() -> int:
    """Share the points among processes; return 0 if nothing was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.explore", description=__doc__)
    parser.add_argument("--kind", choices=("all", "kill", "twice", "fault"), default="all")
    parser.add_argument("--way", choices=list(WAYS), default="rename", help="of giving names")
    parser.add_argument("--stride", type=int, default=1, help="explore only every n-th point")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.part is not None:
        return asyncio.run(_shard(asked.kind, asked.way, asked.part, asked.jobs, asked.stride))
    words = [
        "--kind",
        asked.kind,
        "--way",
        asked.way,
        "--jobs",
        str(asked.jobs),
        "--stride",
        str(asked.stride),
    ]
    parts = [
        subprocess.Popen([sys.executable, "-m", "tests.crash.explore", *words, "--part", str(part)])
        for part in range(asked.jobs)
    ]
    return max(part.wait() for part in parts)


if __name__ == "__main__":
    sys.exit(main())
