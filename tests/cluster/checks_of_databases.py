"""Check 4: the database is killed, cut off or made to lose answers, under load. All resumes alone.

Check 9 is 1 and 4 behind a pooler.
"""

import asyncio
import functools
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from tests.cluster import database_proxy, databases
from tests.cluster.altered import ORDERED, STOPPED
from tests.cluster.checks import Check, Trial
from tests.cluster.checks_of_kills import killed_under_load
from tests.cluster.database_proxy import DatabaseProxy
from tests.cluster.judge import Identity, Verdict
from tests.cluster.lab import TAKEOVER_S, WITHIN_S, Lab, opened_lab
from tests.postgres import OwnServer, ask

Place = Callable[[], AbstractAsyncContextManager[tuple[OwnServer, str]]]
_AWAY_S = (0, 0, 1, 3, 0, 12, 0, 1, 20, 5)  # a lease is trusted for 10 s, and ends after 15
_CUT_EVERY = 20
_SEED = 16


@asynccontextmanager
async def nodes_at_work(trial: Trial, url: str) -> AsyncIterator[Lab]:
    async with opened_lab(store=trial.store, url=url) as lab:
        await asyncio.gather(*(lab.node(name) for name in "abc"))
        await lab.all_held()
        yield lab


async def troubled(
    lab: Lab, trouble: Callable[[], Awaitable[None]], may_repeat: Collection[Identity] = ()
) -> Verdict:
    """Make trouble under load; all nodes must bear it, and ask eFax again soon after its end."""
    async with lab.under_load():
        await lab.all_polled()
        await trouble()
        resumed_s = await lab.all_polled()
    await lab.all_delivered()
    ended = [
        node.name for node in lab.nodes.values() if node.running.process.returncode is not None
    ]
    verdict = lab.judged(may_repeat)
    verdict.figures["resumed after"] = f"{resumed_s:.1f} s"
    verdict.demand(resumed_s < TAKEOVER_S, f"an account was not polled for {resumed_s:.1f} s")
    verdict.demand(not ended, f"these nodes have ended: {ended}")
    return verdict


async def killed(trial: Trial, place: Place = databases.alone) -> Verdict:
    """Kill the server ten times; it stays away for a moment, or for longer than a lease lasts."""
    async with place() as (server, url), nodes_at_work(trial, url) as lab:

        async def kill() -> None:
            for away_s in _AWAY_S:
                await asyncio.to_thread(server.kill, signal.SIGKILL)
                await asyncio.sleep(min(away_s, trial.seconds or away_s))
                await asyncio.to_thread(server.start)
                await trial.lasts(5)

        verdict = await troubled(lab, kill)
        verdict.figures["kills"] = len(_AWAY_S)
        return verdict


async def cut_at_commits(trial: Trial, place: Place = databases.alone) -> Verdict:
    """Cut connections at a COMMIT, before and after it took effect."""
    async with (
        place() as (_, url),
        database_proxy.before(url) as proxy,
        nodes_at_work(trial, proxy.url) as lab,
    ):
        verdict = await troubled(lab, functools.partial(_cut, proxy, trial))
        verdict.figures |= {f"cut {when} it": count for when, count in sorted(proxy.cut.items())}
        verdict.demand(len(proxy.cut) == 2, "no COMMIT was cut off before and after it took effect")
        return verdict


async def _cut(proxy: DatabaseProxy, trial: Trial) -> None:
    proxy.every = _CUT_EVERY
    await trial.lasts(60)
    proxy.every = 0


async def connections_ended(trial: Trial, place: Place = databases.alone) -> Verdict:
    """Let the server end connections at random, in transactions or between."""
    ended = 0
    chance = random.Random(_SEED)
    async with place() as (server, url), nodes_at_work(trial, url) as lab:

        async def end_some() -> None:
            nonlocal ended
            until = lab.seconds() + (trial.seconds or 600)
            while lab.seconds() < until:
                await asyncio.sleep(chance.uniform(0.1, 1))
                ended += len(await asyncio.to_thread(ask, server.url, _END_ONE))

        verdict = await troubled(lab, end_some)
        verdict.figures["connections ended"] = ended
        verdict.demand(ended > 0, "no connection was ended")
        return verdict


_END_ONE = """
SELECT pg_terminate_backend(pid) FROM (
    SELECT pid FROM pg_stat_activity
    WHERE pid <> pg_backend_pid() AND backend_type = 'client backend' ORDER BY random() LIMIT 1
) AS one
"""


async def stopped_in_a_transaction(trial: Trial, place: Place = databases.alone) -> Verdict:
    """Stop a node inside a transaction: the server ends that, and another node takes over."""
    async with (
        place() as (_, url),
        opened_lab(store=trial.store, accounts=1, hostile=False, url=url) as lab,
    ):
        prepare = {"tests.cluster.altered:stoppable": str(lab.root)}
        asleep = await lab.node("a", prepare=prepare)
        await lab.all_held()
        other = await lab.node("b")
        (lab.root / ORDERED).write_text("before the commit of staged 1")
        lab.receive(3)
        async with asyncio.timeout(WITHIN_S):
            while not (lab.root / STOPPED).exists():
                await asyncio.sleep(0.02)
        stopped_at = lab.seconds()
        await lab.all_held(other.name)
        took_s = lab.seconds() - stopped_at
        await lab.consumer.take_all()
        asleep.signal(signal.SIGCONT)
        await asleep.running.event("lease-lost")
        await lab.all_delivered()
        verdict = lab.judged()
        verdict.figures["taken over after"] = f"{took_s:.1f} s"
        verdict.demand(took_s < TAKEOVER_S, f"the takeover took {took_s:.1f} s")
        return verdict


async def node_killed_behind_a_pooler(trial: Trial) -> Verdict:
    async with databases.pooled() as (_, url), nodes_at_work(trial, url) as lab:
        return await killed_under_load(lab, trial)


_OF_4 = {
    "the database is killed ten times": killed,
    "connections are cut at a COMMIT": cut_at_commits,
    "the server ends connections at random": connections_ended,
    "a node is stopped in a transaction": stopped_in_a_transaction,
}
CHECKS = [
    *(Check("4", title, run) for title, run in _OF_4.items()),
    Check("9", "a node is killed, behind a pooler", node_killed_behind_a_pooler, ("directory",)),
    *(
        Check(
            "9",
            f"{title}, behind a pooler",
            functools.partial(run, place=databases.pooled),
            ("directory",),
        )
        for title, run in _OF_4.items()
    ),
]
