"""Check 5: the database fails over to a standby, under load, also to one that lacks the last moments."""

import asyncio
import functools
import signal

from tests.cluster import databases
from tests.cluster.checks import Check, Trial
from tests.cluster.checks_of_databases import nodes_at_work, troubled
from tests.cluster.judge import Identity, Verdict
from tests.cluster.lab import Lab
from tests.postgres import OwnServer

_LACKS_S = 1.2
_LOAD_S = 10.0


async def with_all_commits(trial: Trial) -> Verdict:
    """Fail over to a standby for which the server has waited."""
    async with (
        databases.with_standby(synchronous=True) as (primary, standby, url),
        nodes_at_work(trial, url) as lab,
    ):

        async def fail() -> None:
            await trial.lasts(_LOAD_S)
            await asyncio.to_thread(_fail_over, primary, standby)

        return await troubled(lab, fail)


async def without_the_last(trial: Trial, *, node_dies: bool) -> Verdict:
    """Fail over to a standby that lacks the last moments; a node may die with the server.

    What that node recorded then nobody else knows, so these faxes may come twice, and no others.
    """
    may_repeat: set[Identity] = set()
    async with (
        databases.with_standby(synchronous=False) as (primary, standby, url),
        nodes_at_work(trial, url) as lab,
    ):

        async def fail() -> None:
            await trial.lasts(_LOAD_S)
            known = set(lab.consumer.delivered)
            await asyncio.to_thread(standby.set, "primary_conninfo", "")
            await asyncio.sleep(_LACKS_S)
            if node_dies:
                app_ids = await _kill_the_busiest(lab)
                recorded = lab.consumer.delivered.keys() - known
                may_repeat.update(one for one in recorded if one[0] in app_ids)
            await asyncio.to_thread(_fail_over, primary, standby)

        verdict = await troubled(lab, fail, may_repeat)
        noticed = [
            node.name for node in lab.nodes.values() if node.running.said("ledger-rolled-back")
        ]
        verdict.figures |= {"may repeat": len(may_repeat), "noticed it": " ".join(noticed)}
        verdict.demand(len(noticed) == len(lab.nodes), f"only these nodes noticed it: {noticed}")
        return verdict


async def _kill_the_busiest(lab: Lab) -> set[str]:
    """Kill a node; return the App IDs of its accounts when the consumer has all that it delivered."""
    victim = await lab.busiest()
    holders = await lab.holders()
    victim.signal(signal.SIGKILL)
    await victim.running.ended()
    await lab.consumer.take_all()
    del lab.nodes[victim.name]
    await victim.end()
    return {app_id for app_id, name in holders.items() if name == victim.name}


def _fail_over(primary: OwnServer, standby: OwnServer) -> None:
    primary.kill(signal.SIGKILL)
    standby.promote()


CHECKS = [
    Check("5", "failover to a synchronous standby", with_all_commits),
    Check(
        "5",
        "failover to a standby that lacks a second",
        functools.partial(without_the_last, node_dies=False),
    ),
    Check(
        "5",
        "failover to a standby that lacks a second, a node dies with the server",
        functools.partial(without_the_last, node_dies=True),
    ),
]
