"""Many users: CPU, punctuality, start and memory of the daemon with 10,000 users every 30 s.

python -m tests.benchmarks.many_users
"""

import asyncio
import socket
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import aiohttp

from poller import schedule
from tests.acceptance.installation import Daemon
from tests.benchmarks import idle, measured
from tests.benchmarks.served import Served, served

_ON_TIME_S = 1.0


@dataclass(frozen=True)
class Round:
    """`core` is the share of one core, `on_time` of the polls, `get_s` what a bare GET costs now."""

    core: float
    on_time: float
    polls_per_s: float
    get_s: float


async def main() -> None:
    options = measured.options(rounds=3, users=10_000, every=30, seconds=60.0)
    every = timedelta(seconds=options.every)
    port = free_port()
    async with served() as server:
        changes = {
            "poll": {"every": f"{options.every}s", "start": "1h"},
            "http": {"listen": f"127.0.0.1:{port}"},
        }
        configuration = measured.settings(options.users, server.base_url, changes)
        began = time.monotonic()
        async with measured.running(configuration) as daemon:
            ready_s, ready_cpu_s = time.monotonic() - began, measured.cpu_s(daemon.process.pid)
            await idle.all_swept(server, options.users, every)
            rounds = []
            for _ in range(options.rounds):
                get_s = await idle.bare_get_s(server, min(3.0, options.seconds))
                rounds.append(await _round(server, daemon, port, every, options.seconds, get_s))
            peak_mib = measured.peak_mib(daemon.process.pid)
    core = statistics.median(one.core for one in rounds)
    measured.told(
        f"{options.users} users with empty lists every {options.every} s and one scrape a minute: the "
        "daemon's share of one core, polls that start within a second of their time, start, memory.",
        f"{core:.0%} of one core at {_median([one.polls_per_s for one in rounds]):.0f} polls/s; "
        f"a bare GET costs {_median([one.get_s for one in rounds]) * 1e6:.0f} µs now",
        f"{_median([one.on_time for one in rounds]):.2%} on time",
        f"ready after {ready_s:.1f} s, {ready_cpu_s:.1f} s of them on a processor",
        f"{peak_mib:.0f} MiB at the peak",
        wanted="at most 35 % of one core, 99 % on time, ready within 5 s, under 250 MiB",
    )


async def _round(
    server: Served, daemon: Daemon, port: int, every: timedelta, seconds: float, get_s: float
) -> Round:
    pid = daemon.process.pid
    await server.arrivals()
    before, began = measured.cpu_s(pid), time.monotonic()
    await _scrape(port)
    await asyncio.sleep(max(0.0, began + seconds - time.monotonic()))
    spent, passed = measured.cpu_s(pid) - before, time.monotonic() - began
    lateness = lateness_s(await server.arrivals(), every)
    on_time = sum(late <= _ON_TIME_S for late in lateness) / len(lateness)
    return Round(spent / passed, on_time, len(lateness) / passed, get_s)


async def _scrape(port: int) -> None:
    url = f"http://127.0.0.1:{port}/metrics"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        assert answer.status == 200
        assert "poller_polls_total" in await answer.text()


def lateness_s(arrivals: Sequence[tuple[str, float]], every: timedelta) -> list[float]:
    """How long after its time on the grid each poll's first list came."""
    first: dict[tuple[str, int], float] = {}
    for user, at in arrivals:
        since = at - schedule.phase(f"app-1/{user}", every).total_seconds()
        turn, late = divmod(since, every.total_seconds())
        first.setdefault((user, int(turn)), late)
    return list(first.values())


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)


if __name__ == "__main__":
    asyncio.run(main())
