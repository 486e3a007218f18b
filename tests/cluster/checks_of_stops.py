"""Stop a node at each step of a fax, let another one take over, and wake it."""

import asyncio
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.cluster.altered import NOTED, ORDERED, STOPPED, named
from tests.cluster.checks import Trial
from tests.cluster.judge import Verdict
from tests.cluster.lab import WITHIN_S, Lab, Node, opened_lab

_FAST: Mapping[str, Any] = {"retry": {"max_delay": "300ms"}}


async def node_stopped(trial: Trial) -> Verdict:
    return await stopped_at_steps(trial.store)


async def stopped_at_steps(
    store: str, *planted: str, wanted: int | None = None, url: str | None = None
) -> Verdict:
    """Try `wanted` of the steps, evenly spread (None: all), each once with a consumer in between.

    The consumer takes what is there before and after the takeover, and after the node woke.
    """
    async with opened_lab(store=store, accounts=1, users=1, hostile=False, url=url) as lab:
        prepare = {
            **named("short_leases", *planted),
            "tests.cluster.altered:stoppable": str(lab.root),
        }
        for name in ("a", "b"):
            await lab.node(name, _FAST, prepare=prepare)
        await lab.all_held()
        steps = await _noted(lab)
        if wanted is not None:
            steps = steps[:: max(1, len(steps) // wanted)][:wanted]
        tried = 0
        for step in steps:
            tried += await _stopped_at(lab, step)
        lab.verdict.figures["steps"] = f"{tried} of {len(steps)}"
        lab.verdict.demand(tried == len(steps), "a step was not met")
        await lab.all_delivered()
        return lab.judged()


async def _noted(lab: Lab) -> list[str]:
    """Return the steps of one fax from the first change of the store until its row says *stored*."""
    lab.receive()  # before it, the store is probed and its directories are made
    await lab.all_delivered()
    noted = lab.root / NOTED
    noted.touch()
    lab.receive()
    await _until(lambda: "after stored 1\n" in noted.read_text())
    await lab.consumer.take_all()
    steps = noted.read_text().splitlines()
    noted.unlink()
    return steps


async def _stopped_at(lab: Lab, step: str) -> bool:
    """Try one step; return whether a node met it."""
    stopped = lab.root / STOPPED
    stopped.unlink(missing_ok=True)
    (lab.root / ORDERED).write_text(step)
    before = len(lab.consumer.delivered)
    lab.receive()
    with suppress(TimeoutError):
        async with asyncio.timeout(20):
            while not stopped.exists():
                await asyncio.sleep(0.02)
    if not stopped.exists():
        (lab.root / ORDERED).unlink()
        return False
    await _until(lambda: any(map(_is_stopped, lab.nodes.values())))
    (asleep,) = filter(_is_stopped, lab.nodes.values())
    await lab.consumer.take_all()
    (other,) = (node for node in lab.nodes.values() if node is not asleep)
    await lab.all_held(other.name)
    with suppress(TimeoutError):
        async with asyncio.timeout(10):
            while len(lab.consumer.delivered) == before:
                await lab.consumer.take_all()
                await asyncio.sleep(0.05)
    lost = len(asleep.running.said("lease-lost"))
    asleep.signal(signal.SIGCONT)
    with suppress(TimeoutError):
        async with asyncio.timeout(10):
            while len(asleep.running.said("lease-lost")) == lost:
                await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)
    await lab.consumer.take_all()
    return True


def _is_stopped(node: Node) -> bool:
    stat = Path(f"/proc/{node.running.process.pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "T"


async def _until(happened: Any) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not happened():
            await asyncio.sleep(0.05)
