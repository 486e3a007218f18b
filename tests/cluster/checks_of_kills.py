"""Check 1: kill a node under load. The others work on its accounts soon, and nothing is harmed."""

import asyncio
import signal

from tests.cluster.checks import Trial
from tests.cluster.judge import Verdict
from tests.cluster.lab import TAKEOVER_S, Lab, opened_lab

_LOAD_S = 15.0  # before the kill, and after the takeover


async def node_killed(trial: Trial) -> Verdict:
    async with opened_lab(store=trial.store) as lab:
        await asyncio.gather(*(lab.node(name) for name in "abc"))
        return await killed_under_load(lab, trial)


async def killed_under_load(lab: Lab, trial: Trial) -> Verdict:
    """Kill the node with the most accounts; the lab's nodes run."""
    await lab.all_held()
    async with lab.under_load():
        await trial.lasts(_LOAD_S)
        victim = await lab.busiest()
        accounts = await lab.held_by(victim.name)
        killed_at = lab.seconds()
        victim.signal(signal.SIGKILL)
        await victim.running.ended()
        del lab.nodes[victim.name]
        await lab.all_held()
        await trial.lasts(_LOAD_S)
        pause_s = lab.efax.longest_pause_s(killed_at, lab.seconds())
    await victim.end()
    await lab.all_delivered()
    verdict = lab.judged()
    verdict.figures |= {"taken over": accounts, "longest pause": f"{pause_s:.1f} s"}
    verdict.demand(pause_s < TAKEOVER_S, f"an account was not polled for {pause_s:.1f} s")
    return verdict
