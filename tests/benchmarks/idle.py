"""Idle cost: what a poll of an empty list costs, beside a bare aiohttp GET of the same answer.

python -m tests.benchmarks.idle
"""

import asyncio
import resource
import statistics
import sys
import time
from datetime import timedelta

import aiohttp

from tests.acceptance.installation import Daemon
from tests.benchmarks import measured
from tests.benchmarks.served import Served, served

# The daemon's own chores belong to its polls; its first lists are of sweeps and do not.
_GETS_S = 3.0


async def main() -> None:
    options = measured.options(rounds=5, users=2_000, every=30, seconds=20.0)
    poll = {"every": f"{options.every}s", "start": "1h"}
    async with served() as server:
        configuration = measured.settings(options.users, server.base_url, {"poll": poll})
        async with measured.running(configuration) as daemon:
            await all_swept(server, options.users, timedelta(seconds=options.every))
            bare, polled = [], []
            for _ in range(options.rounds):
                bare.append(await bare_get_s(server, min(_GETS_S, options.seconds)))
                polled.append(await _poll_s(server, daemon, options.seconds))
    get_s, poll_s = statistics.median(bare), statistics.median(polled)
    measured.told(
        f"CPU per poll of {options.users} users with empty lists, all of the daemon included, beside "
        "a bare aiohttp GET of the same answer.",
        f"GET {get_s * 1e6:.0f} µs, poll {poll_s * 1e6:.0f} µs",
        ratio=poll_s / get_s,
        wanted="at most 5",
    )


async def all_swept(server: Served, users: int, every: timedelta) -> None:
    """Wait until every user had its first poll, and as few lists come as there are polls."""
    seen: set[str] = set()
    while len(seen) < users:
        await asyncio.sleep(0.2)
        seen |= {user for user, _ in await server.arrivals()}
    while True:
        await asyncio.sleep(every.total_seconds())
        if len(await server.arrivals()) < 1.02 * users + 2:
            return


async def _poll_s(server: Served, daemon: Daemon, seconds: float) -> float:
    pid = daemon.process.pid
    await server.arrivals()
    before = measured.cpu_s(pid)
    await asyncio.sleep(seconds)
    spent = measured.cpu_s(pid) - before
    return spent / len(await server.arrivals())


async def bare_get_s(server: Served, seconds: float) -> float:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.benchmarks.idle", "bare", server.base_url, str(seconds)),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    return float(out)


async def _bare(base_url: str, seconds: float) -> None:
    """GET after GET over a kept connection; prints the CPU seconds of one."""
    url, headers = f"{base_url}/faxes/received", {"user-id": "user-0"}
    async with aiohttp.ClientSession() as session:
        gets, began, until = 0, _own_cpu_s(), time.monotonic() + seconds
        while time.monotonic() < until:
            async with session.get(url, headers=headers) as answer:
                await answer.json()
            gets += 1
        print((_own_cpu_s() - began) / gets)


def _own_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    if sys.argv[1:2] == ["bare"]:
        asyncio.run(_bare(sys.argv[2], float(sys.argv[3])))
    else:
        asyncio.run(main())
