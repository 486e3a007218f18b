"""Check 3: a node is cut off from the database, from eFax, from the bucket, in one direction or both.

It runs in a network namespace of its own, where a firewall drops packets of one node: those that it
sends to a port (*out*), or those that come back (*in*). `python -m tests.cluster.checks_of_cuts` is
what runs there.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from poller.simulator.faults import Faults
from tests.cluster.altered import in_group
from tests.cluster.checks import Kind, Trial
from tests.cluster.judge import Verdict
from tests.cluster.lab import TAKEOVER_S, Lab, a_database, opened_lab

CUT_S = 120.0
_PORT = 5432
_LOOPBACK = "127.0.0.1"
_GROUPS = {name: 20_001 + at for at, name in enumerate("abc")}
_RULES = """
table ip cuts {
    set out { type mark . inet_service; }
    set in { type mark . inet_service; }
    chain output {
        type filter hook output priority 0;
        ct mark set meta skgid map { 20001 : 20001, 20002 : 20002, 20003 : 20003 }
        ct direction original ct mark . tcp dport @out drop
        ct direction reply ct mark . tcp sport @in drop
    }
}
"""


async def node_cut_off(trial: Trial) -> Verdict:
    return await in_a_namespace(trial.store, trial.seconds or CUT_S)


async def in_a_namespace(store: Kind, seconds: float, *wanted: str) -> Verdict:
    """Cut off from each of the `wanted` things for so long, from all if none is named."""
    if why := _impossible():
        pytest.skip(why)
    here = {name: value for name, value in os.environ.items() if name != "POLLER_TEST_S3"}
    process = await asyncio.create_subprocess_exec(
        *("unshare", "--net", sys.executable, "-m", __name__, store, str(seconds), *wanted),
        cwd=Path(__file__).parents[2],
        env=here,  # another bucket cannot be reached from there
        stdout=subprocess.PIPE,
    )
    told, _ = await process.communicate()
    assert process.returncode == 0, f"it ended with {process.returncode}"
    return Verdict(**json.loads(told))


def _impossible() -> str | None:
    if os.geteuid() != 0:
        return "only root can make a network namespace"
    for program in ("unshare", "nft", "ip"):
        if shutil.which(program) is None:
            return f"there is no {program} here"
    tried = subprocess.run(
        ["unshare", "--net", "nft", "-f", "-"],
        input=_RULES.encode(),
        capture_output=True,
        check=False,
    )
    return f"no firewall: {tried.stderr.decode().strip()}" if tried.returncode else None


async def _cut_off_in_turn(store: str, seconds: float, *wanted: str) -> Verdict:
    """Do it here; the namespace is this process's own."""
    _do("ip", "link", "set", "lo", "up")
    _do("nft", "-f", "-", given=_RULES)
    async with AsyncExitStack() as stack:
        url = a_database(stack, _LOOPBACK)
        lab = await stack.enter_async_context(opened_lab(store=store, url=url))
        lab.efax.faults = _without_refusals(lab.efax.faults)
        for name, group in _GROUPS.items():
            await lab.node(name, prepare={f"{in_group.__module__}:in_group": group})
        await lab.all_held()
        async with lab.under_load(per_second=3.0):
            for cut in _cuts(lab):
                if not wanted or str(cut) in wanted:
                    await _cut_off(lab, cut, seconds)
        await lab.all_delivered()
        return lab.judged()


def _without_refusals(faults: Faults) -> Faults:
    """Refuse no token: a sign-in whose answer is cut off would be needed twice."""
    return Faults(rules=tuple(rule for rule in faults.rules if rule.effect != "401"))


@dataclass(frozen=True)
class Cut:
    """Of `directions`: *out*, *in*."""

    what: str
    ports: tuple[int, ...]
    directions: tuple[str, ...]

    def change(self, verb: str, node: str) -> None:
        """Begin (`add`) or end (`delete`) it for a node."""
        pairs = ", ".join(f"{_GROUPS[node]} . {port}" for port in self.ports)
        for direction in self.directions:
            _do("nft", verb, "element", "ip", "cuts", direction, f"{{ {pairs} }}")

    def __str__(self) -> str:
        return f"{self.what} {' and '.join(self.directions)}"


def _cuts(lab: Lab) -> list[Cut]:
    urls = {"eFax": lab.efax.base_url, "bucket": lab.shelf.configured.get("endpoint")}
    ports = {"database": _PORT} | {name: _port(url) for name, url in urls.items() if url}
    things = {name: (port,) for name, port in ports.items()} | {"all": tuple(ports.values())}
    return [
        Cut(what, numbers, directions)
        for what, numbers in things.items()
        for directions in (("out", "in"), ("out",), ("in",))
    ]


def _port(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None
    return port


async def _cut_off(lab: Lab, cut: Cut, seconds: float) -> None:
    """Cut the node with the most accounts off; demand what must happen meanwhile and afterwards."""
    victim = await lab.busiest()
    others = [name for name in lab.nodes if name != victim.name]
    count, began = await lab.held_by(victim.name), lab.seconds()
    cut.change("add", victim.name)
    await asyncio.sleep(seconds)
    if cut.what in ("database", "all"):
        await lab.all_held(*others)
    told = f"{await lab.held_by(victim.name)} of {count} kept"
    if cut.what != "eFax":  # then the node suspends the account, and keeps it
        pause_s = lab.efax.longest_pause_s(began, lab.seconds())
        lab.verdict.demand(pause_s < TAKEOVER_S, f"{cut}: no poll for {pause_s:.0f} s")
        told += f", longest pause {pause_s:.0f} s"
    cut.change("delete", victim.name)
    lab.verdict.figures[str(cut)] = f"{told}, all polled after {await lab.all_polled():.0f} s"
    lab.verdict.demand(victim.running.process.returncode is None, f"{cut}: the node ended")


def _do(*words: str, given: str | None = None) -> None:
    subprocess.run(words, input=given, text=True, check=True)


if __name__ == "__main__":
    store, seconds, *wanted = sys.argv[1:]
    found = asyncio.run(_cut_off_in_turn(store, float(seconds), *wanted))
    print(json.dumps(asdict(found)))
