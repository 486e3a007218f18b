"""Stop a node at each step of a fax, let another one take over, and wake it."""

import asyncio
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.cluster.altered import NOTED, ORDERED, PLANTS, STOPPED, named
from tests.cluster.checks import Trial
from tests.cluster.judge import Verdict
from tests.cluster.lab import WITHIN_S, Lab, Node, opened_lab

_FAST: Mapping[str, Any] = {"retry": {"max_delay": "300ms"}}
_BOTH_WRITE = ("move 1", "write 1")  # one places its image while the other one writes its own


async def node_stopped(trial: Trial) -> Verdict:
    return await stopped_at_steps(trial.store)


async def plants_found(trial: Trial) -> Verdict:
    """Do the same with nodes that have a planted fault; fail if it is not found."""
    verdict = Verdict()
    for plant in PLANTS[trial.store]:
        found = await stopped_at_steps(trial.store, plant)
        verdict.figures[plant] = found.faults[0] if found.faults else "not found"
        verdict.demand(bool(found.faults), f"{plant} was not found")
    return verdict


async def stopped_at_steps(
    store: str, plant: str | None = None, *, wanted: int | None = None, url: str | None = None
) -> Verdict:
    """Try `wanted` of the steps, evenly spread (None: all), each once with a consumer in between.

    The consumer takes what is there before and after the takeover, and after the node woke. With a
    `plant`, end as soon as it is found.
    """
    async with opened_lab(store=store, accounts=1, users=1, hostile=False, url=url) as lab:
        prepare = {
            **named("short_leases", "unaware", *([plant] if plant else [])),
            "tests.cluster.altered:stoppable": str(lab.root),
        }
        for name in ("a", "b"):
            await lab.node(name, _FAST, prepare=prepare)
        await lab.all_held()
        orders: list[tuple[str, ...]] = [(step,) for step in await _noted(lab)]
        if store == "directory":
            orders.insert(0, _BOTH_WRITE)
        if wanted is not None:
            orders = orders[:: -max(1, len(orders) // wanted)][:wanted]
        met = 0
        for order in orders:
            met += await _stopped_at(lab, *order)
            if plant and lab.consumer.faults():
                return lab.judged()
        lab.verdict.figures["steps"] = f"{met} of {len(orders)}"
        lab.verdict.demand(bool(plant) or met == len(orders), "a step was not met")
        await lab.all_delivered()
        return lab.judged()


async def _noted(lab: Lab) -> list[str]:
    """Return the steps of one fax from the first change of the store until its row says *stored*."""
    lab.receive()  # before it, the store is probed and its directories are made
    await lab.all_delivered()
    noted = lab.root / NOTED
    noted.touch()
    lab.receive()
    await _within(WITHIN_S, lambda: "after stored 1\n" in noted.read_text())
    await lab.consumer.take_all()
    steps = noted.read_text().splitlines()
    noted.unlink()
    return steps


async def _stopped_at(lab: Lab, step: str, other_step: str | None = None) -> bool:
    """Stop a node at a step, and then the other one if told so; return whether they met the steps."""
    before = len(lab.consumer.delivered)
    lab.receive()
    asleep = await _asleep_at(lab, step)
    if asleep is None:
        return False
    await lab.consumer.take_all()
    (other,) = (node for node in lab.nodes.values() if node is not asleep)
    if other_step is None:
        await lab.all_held(other.name)
        await _delivered_since(lab, before)
        await _woken(lab, asleep)
        is_met = True
    else:
        is_met = await _asleep_at(lab, other_step) is not None
        await _woken(lab, asleep)
        await _woken(lab, other)
    await _delivered_since(lab, before)
    return is_met


async def _asleep_at(lab: Lab, step: str) -> Node | None:
    """Wait for a node that is awake to stop at this step; return None if none meets it."""
    already = [node for node in lab.nodes.values() if _is_stopped(node)]
    stopped = lab.root / STOPPED
    stopped.unlink(missing_ok=True)
    (lab.root / ORDERED).write_text(step)
    if not await _within(20, stopped.exists):
        (lab.root / ORDERED).unlink(missing_ok=True)
        return None
    awake = [node for node in lab.nodes.values() if node not in already]
    await _within(WITHIN_S, lambda: any(map(_is_stopped, awake)))
    return next(filter(_is_stopped, awake))


async def _woken(lab: Lab, node: Node) -> None:
    """Wake it, and let it notice that the lease is lost; then look at what it has done."""
    lost = len(node.running.said("lease-lost"))
    node.signal(signal.SIGCONT)
    await _within(10, lambda: len(node.running.said("lease-lost")) > lost)
    await asyncio.sleep(0.5)
    await lab.consumer.take_all()


async def _delivered_since(lab: Lab, before: int) -> None:
    async def taken() -> bool:
        await lab.consumer.take_all()
        return len(lab.consumer.delivered) > before

    with suppress(TimeoutError):
        async with asyncio.timeout(10):
            while not await taken():
                await asyncio.sleep(0.05)


def _is_stopped(node: Node) -> bool:
    stat = Path(f"/proc/{node.running.process.pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "T"


async def _within(seconds: float, happened: Callable[[], bool]) -> bool:
    """Wait so long for something; return whether it happened."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not happened():
                await asyncio.sleep(0.02)
    return happened()
