"""Idle cost: what a poll of an empty list costs, compared with a bare aiohttp GET of the same answer.

python -m tests.benchmarks.idle
"""

import asyncio
import resource
import statistics
import sys
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, timedelta
from typing import Any

import aiohttp
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from poller import schedule
from poller.config.model import Poll
from poller.daemon.trigger import PollTrigger
from tests.acceptance.installation import Daemon
from tests.benchmarks import measured
from tests.benchmarks.served import Served, served

_GETS_S = 3.0  # back to back they need no longer


async def main() -> None:
    options = measured.options(rounds=5, users=2_000, every=30, seconds=20.0)
    every = timedelta(seconds=options.every)
    poll = {"every": f"{options.every}s", "start": "1h"}
    async with served() as server:
        configuration = measured.settings(options.users, server.base_url, {"poll": poll})
        paced = (str(options.seconds), str(options.users), str(options.every))
        async with measured.running(configuration) as daemon:
            await all_swept(server, options.users, every)
            costs: dict[str, list[float]] = {"bare": [], "paced": [], "poll": [], "jobs": []}
            for _ in range(options.rounds):
                costs["bare"].append(await bare_get_s(server, min(_GETS_S, options.seconds)))
                costs["paced"].append(await _child_s("paced", server.base_url, *paced))
                costs["poll"].append(await _poll_s(server, daemon, options.seconds))
                costs["jobs"].append(await _child_s("jobs", *paced))
    us = {name: statistics.median(seconds) * 1e6 for name, seconds in costs.items()}
    measured.told(
        f"CPU per poll of {options.users} users with empty lists every {options.every} s, all of the "
        "daemon included, beside a bare aiohttp GET of the same answer at the same times.",
        f"GET {us['paced']:.0f} µs, poll {us['poll']:.0f} µs, of which APScheduler {us['jobs']:.0f} µs "
        "(the same jobs, doing nothing)",
        f"GETs without a pause between them {us['bare']:.0f} µs: {us['poll'] / us['bare']:.2f} of that",
        ratio=us["poll"] / us["paced"],
        wanted="at most 5",
    )


async def all_swept(server: Served, users: int, every: timedelta) -> None:
    """Wait until every user had its first poll, and there are as few lists as polls.

    A number of lists that is not above the users may also mean that sweeps of some delay polls of
    others.
    """
    seen: set[str] = set()
    while len(seen) < users:
        await asyncio.sleep(0.2)
        seen |= {user for user, _ in await server.arrivals()}
    while True:
        await asyncio.sleep(every.total_seconds())
        arrivals = await server.arrivals()
        polled = {user for user, _ in arrivals}
        if len(arrivals) < 1.02 * users + 2 and len(polled) > 0.98 * users - 1:
            return


async def _poll_s(server: Served, daemon: Daemon, seconds: float) -> float:
    pid = daemon.process.pid
    await server.arrivals()
    before = measured.cpu_s(pid)
    await asyncio.sleep(seconds)
    spent = measured.cpu_s(pid) - before
    return spent / len(await server.arrivals())


async def bare_get_s(server: Served, seconds: float) -> float:
    """CPU seconds of one GET of many, one after the other."""
    return await _child_s("bare", server.base_url, str(seconds))


async def _child_s(*words: str) -> float:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.benchmarks.idle", *words), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    return float(out)


# -- these run in their own process and print the CPU seconds of one -------------------------------


async def _bare(base_url: str, seconds: str) -> None:
    async with aiohttp.ClientSession() as session:
        gets, began, until = 0, _own_cpu_s(), time.monotonic() + float(seconds)
        while time.monotonic() < until:
            await _get(session, base_url, "user-0")
            gets += 1
        print((_own_cpu_s() - began) / gets)


async def _paced(base_url: str, seconds: str, users: str, every: str) -> None:
    """Send as many a second as there are polls, grouped by tenths of a second as polls are."""
    a_tenth = int(users) / int(every) * schedule.GRID.total_seconds()
    async with aiohttp.ClientSession() as session:
        gets, owed, began, until = 0, 0.0, _own_cpu_s(), time.monotonic() + float(seconds)
        while time.monotonic() < until or not gets:
            owed += a_tenth
            now, owed = int(owed), owed % 1
            await asyncio.gather(*(_get(session, base_url, f"user-{n}") for n in range(now)))
            gets += now
            await asyncio.sleep(schedule.GRID.total_seconds())
        print((_own_cpu_s() - began) / gets)


async def _get(session: aiohttp.ClientSession, base_url: str, user: str) -> None:
    url = f"{base_url}/faxes/received"
    async with session.get(url, headers={"user-id": user}) as answer:
        await answer.json()


async def _jobs(seconds: str, users: str, every: str) -> None:
    """Run the daemon's jobs with nothing to do."""
    ran = 0

    async def job() -> None:
        nonlocal ran
        ran += 1

    scheduler = AsyncIOScheduler(timezone=UTC)
    scheduler.start(paused=True)
    poll = Poll(every=timedelta(seconds=int(every)))
    for number in range(int(users)):
        scheduler.add_job(job, PollTrigger(poll, f"app-1/user-{number}"))
    began = _own_cpu_s()
    scheduler.resume()
    await asyncio.sleep(float(seconds))
    print((_own_cpu_s() - began) / ran)


def _own_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


_MODES: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {
    "bare": _bare,
    "paced": _paced,
    "jobs": _jobs,
}

if __name__ == "__main__":
    mode = _MODES.get(sys.argv[1]) if sys.argv[1:] else None
    asyncio.run(main() if mode is None else mode(*sys.argv[2:]))
