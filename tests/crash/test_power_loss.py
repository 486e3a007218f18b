"""Power failures at any call of a real run: unsynced data may be lost, torn or reordered.

`POLLER_EXHAUSTIVE=1` explores all; `-s` shows the figures.
"""

import random
import tempfile
from collections.abc import AsyncIterator, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.crash.explore import in_memory
from tests.crash.power_driver import BUGS
from tests.crash.power_model import Crash, Disk, Found, crashes
from tests.crash.power_record import (
    NOTHING,
    Program,
    Run,
    efax,
    recorded,
    served,
)
from tests.crash.power_rules import LEDGER, Judge, Ledgers, Promises
from tests.earlier_tables import put_back
from tests.exhaustive import EXHAUSTIVE

SAMPLES = 20 if EXHAUSTIVE else 1
SAMPLES_AFTER_A_KILL = 2 if EXHAUSTIVE else 1
SAMPLES_FOR_A_BUG = 12
RESTARTS = 300 if EXHAUSTIVE else 6
KILLS = 40 if EXHAUSTIVE else 1
SEED = 1
WAYS = ["rename", "link"]

# These find out whether this file system can do it at all; nothing that is kept depends on them.
ONLY_PROBES = {
    "store/abilities.py:_create from store/abilities.py:_try_a_file",
    "store/abilities.py:_try_a_name from store/abilities.py:prove",
}
# Also made if a run takes longer than a look at the storage is believed.
LATER_PROBES = {"store/marker.py:_try_a_file from store/marker.py:_takes_a_file"}

pytestmark = pytest.mark.timeout(3600 if EXHAUSTIVE else 300)


@dataclass
class Lab:
    program: Program
    judge: Judge

    def violations(
        self, run: Run, *, samples: int = SAMPLES, forgotten: Collection[str] = ()
    ) -> Iterator[tuple[Crash, list[str]]]:
        """Yield every crash state of a run, and what is wrong with it."""
        promises, disk = Promises(), Disk(str(run.root), run.before)
        for crash in crashes(
            run.calls, disk, seed=SEED, samples=samples, forgotten=forgotten, see=promises.see
        ):
            yield crash, self.judge.problems(crash.found, promises)

    def finds(self, run: Run, forgotten: Collection[str] = ()) -> bool:
        """Look at the plain fates first, which show most bugs."""
        return any(
            problems
            for samples in (0, SAMPLES_FOR_A_BUG)
            for _, problems in self.violations(run, samples=samples, forgotten=forgotten)
        )

    async def assert_heals(self, found: Found, why: str) -> None:
        """Start the program on it: then everything is stored once, and nothing stored has changed."""
        before = self.judge.ledgers.rows(found).faxes
        run = await self.program.once(found)
        assert run.code == 0, f"{why}: {run.said}"
        assert self.judge.end_problems(run.after) == [], why
        after = self.judge.ledgers.rows(run.after).faxes
        for fax_id, row in before.items():
            assert row["state"] != "stored" or after[fax_id]["sha256"] == row["sha256"], why


@pytest.fixture(params=WAYS)
async def lab(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    recorded()  # or skipped
    async with efax() as simulator:
        poller = Program(simulator, tmp_path / "runs", request.param)
        with tempfile.TemporaryDirectory(dir=in_memory()) as opened:
            yield Lab(poller, Judge(Ledgers(Path(opened)), lambda: served(simulator)))


def _sampled(values: list[Any], count: int) -> list[Any]:
    return random.Random(SEED).sample(values, min(count, len(values)))


async def _run(lab: Lab, found: Found = NOTHING, bug: str = "") -> Run:
    run = await lab.program.once(found, bug=bug)
    assert run.code == 0, run.said
    return run


async def _assert_survives_everywhere(lab: Lab, run: Run) -> None:
    states: list[Crash] = []
    for crash, problems in lab.violations(run):
        assert problems == [], f"after {crash.after} calls, {crash.fate}: {problems}"
        states.append(crash)
    chosen = _sampled(states, RESTARTS)
    for crash in chosen:
        await lab.assert_heals(crash.found, f"after {crash.after} calls, {crash.fate}")
    print(f"\n{len(run.calls)} calls, {len(states)} states, {len(chosen)} of them started again")


async def test_power_loss_anywhere_in_a_first_run_loses_nothing(lab: Lab) -> None:
    run = await _run(lab)
    assert lab.judge.end_problems(run.after) == []
    await _assert_survives_everywhere(lab, run)


async def test_power_loss_anywhere_in_a_migration_loses_nothing(lab: Lab) -> None:
    first = await _run(lab)
    older = _as_the_first_release_left_it(first.after, lab.program)
    assert lab.judge.ledgers.rows(older).revision == "0001"
    run = await _run(lab, older)
    assert lab.judge.ledgers.rows(run.after).revision == "0011"
    await _assert_survives_everywhere(lab, run)


def _as_the_first_release_left_it(found: Found, poller: Program) -> Found:
    """Take back the migrations, with two faxes that are still to be fetched."""
    file = poller.scratch / "older.db"
    file.write_bytes(found.files[LEDGER][1])
    put_back(file, "0001")
    files = {path: found.files[path] for path in found.files if not path.startswith(LEDGER)}
    return Found(found.directories, {**files, LEDGER: (0o600, file.read_bytes())})


async def test_forgetting_any_one_fsync_is_found(lab: Lab) -> None:
    run = await _run(lab)
    sites = run.sites()
    assert {_without_line(runtime) for runtime in sites} >= ONLY_PROBES
    needed = {
        runtime for runtime in sites if _without_line(runtime) not in ONLY_PROBES | LATER_PROBES
    }
    assert len(needed) >= 11
    assert [runtime for runtime in sorted(needed) if not lab.finds(run, {runtime})] == []


def _without_line(runtime: str) -> str:
    where, _, caller = runtime.partition(" from ")
    return f"{where.rpartition(':')[0]} from {caller}"


@pytest.mark.parametrize("lab", WAYS if EXHAUSTIVE else WAYS[:1], indirect=True)
@pytest.mark.parametrize("bug", BUGS)
async def test_weaker_order_is_found(lab: Lab, bug: str) -> None:
    assert lab.finds(await _run(lab, bug=bug))


async def test_power_loss_after_a_kill_and_a_restart_loses_nothing(lab: Lab) -> None:
    """What a killed run left in the page cache is not durable, although the next run sees it."""
    run = await _run(lab)
    needed, found = set[str](), set[str]()
    states = 0
    for after in _kills(run):
        disk, promises = Disk(str(run.root), run.before), Promises()
        for call in run.calls[:after]:
            disk.apply(call)
            promises.see(call)
        again = await _run(lab, disk.after_power_loss("kept", random.Random(0)))
        only_now = again.sites() - run.sites() if EXHAUSTIVE else set[str]()
        for forgotten in (None, *sorted(only_now - found)):
            for crash, problems in _after_kill(lab, run, after, again, forgotten):
                if forgotten is None:
                    states += 1
                    assert problems == [], (after, crash.after, crash.fate, problems)
                elif problems:
                    found.add(forgotten)
                    break
        needed |= only_now
    print(f"\n{states} states after a kill; needed after a restart: {sorted(found)}")
    print(f"made up for by another fsync: {sorted(needed - found)}")


def _after_kill(
    lab: Lab, run: Run, after: int, again: Run, forgotten: str | None
) -> Iterator[tuple[Crash, list[str]]]:
    disk, promises = Disk(str(run.root), run.before), Promises()
    for call in run.calls[:after]:
        disk.apply(call)
        promises.see(call)
    disk.goes_on_in(str(again.root))
    without = () if forgotten is None else (forgotten,)
    for crash in crashes(
        again.calls,
        disk,
        seed=SEED,
        samples=SAMPLES_AFTER_A_KILL,
        forgotten=without,
        see=promises.see,
    ):
        yield crash, lab.judge.problems(crash.found, promises)


def _kills(run: Run) -> list[int]:
    """Return the first fsync of each place in the code, and some other calls."""
    first: dict[str, int] = {}
    for at, call in enumerate(run.calls):
        if call.op == "sync" and call.runtime:
            first.setdefault(call.runtime, at)
    others = [at for at in range(len(run.calls)) if at not in first.values()]
    places = list(first.values()) if EXHAUSTIVE else _sampled(list(first.values()), 2)
    return sorted([*places, *_sampled(others, KILLS)])
