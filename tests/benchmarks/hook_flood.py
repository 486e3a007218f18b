"""A flood of forged notices: how much later polls come with it than without it.

python -m tests.benchmarks.hook_flood
"""

import asyncio
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import timedelta

from tests.acceptance.installation import KEY_VARIABLE
from tests.benchmarks import idle, measured
from tests.benchmarks.many_users import free_port, lateness_s
from tests.benchmarks.served import Served, served

_AT_ONCE = 200  # connections of the flood
_REQUEST = (
    b"POST /efax/main HTTP/1.1\r\nHost: x\r\nX-HMAC-Signature: "
    + b"0" * 64
    + b"\r\nContent-Length: 1024\r\n\r\n"
    + b"x" * 1024
)


async def main() -> None:
    options = measured.options(rounds=3, users=100, every=1, seconds=20.0, rate=1_000)
    every = timedelta(seconds=options.every)
    port = free_port()
    async with served() as server:
        changes = {
            "poll": {"every": f"{options.every}s", "start": "1h"},
            "webhook": {"listen": f"127.0.0.1:{port}"},
        }
        configuration = measured.settings(options.users, server.base_url, changes)
        hook = {"path": "/efax/main", "secret": {"env": KEY_VARIABLE}}
        configuration["accounts"]["main"]["webhook"] = hook
        async with measured.running(configuration) as daemon:
            await idle.all_swept(server, options.users, every)
            calm: list[float] = []
            flooded: list[float] = []
            answered, core = 0, 0.0
            for _ in range(options.rounds):
                calm += await _late(server, every, options.seconds)
                before = measured.cpu_s(daemon.process.pid)
                words = (str(port), str(options.seconds + 1), str(options.rate))
                flood = asyncio.create_task(_flood(*words))
                await asyncio.sleep(1)
                flooded += await _late(server, every, options.seconds)
                answered += await flood
                core += measured.cpu_s(daemon.process.pid) - before
    passed = options.rounds * (options.seconds + 1)
    measured.told(
        f"{options.users} users polled every {options.every} s while {options.rate} forged notices a "
        "second come: how long after its time a poll's list is asked for, beside without them.",
        f"without {_shown(calm)}",
        f"with    {_shown(flooded)}",
        f"{answered / passed:.0f} a second were answered 401; {core / passed:.0%} of one core in all",
        wanted="no poll later than a second",
    )


async def _late(server: Served, every: timedelta, seconds: float) -> list[float]:
    await server.arrivals()
    await asyncio.sleep(seconds)
    return lateness_s(await server.arrivals(), every)


def _shown(late: Sequence[float]) -> str:
    return f"{statistics.median(late) * 1000:.0f} ms, the latest of {len(late)} {max(late):.2f} s"


async def _flood(*words: str) -> int:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.benchmarks.hook_flood", "flood", *words),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    return int(out)


async def _send(port: str, seconds: str, rate: str) -> None:
    """Begin this many requests a second, and print how many were answered."""
    answered, room = 0, asyncio.Semaphore(_AT_ONCE)

    async def one() -> None:
        nonlocal answered
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
            writer.write(_REQUEST)
            is_refused = (await reader.read()).startswith(b"HTTP/1.1 401 ")
            answered += is_refused
            writer.close()
        except OSError:
            pass
        finally:
            room.release()

    began, sent = time.monotonic(), 0
    async with asyncio.TaskGroup() as group:
        while (passed := time.monotonic() - began) < float(seconds):
            while sent < passed * int(rate) and not room.locked():
                await room.acquire()
                group.create_task(one())
                sent += 1
            await asyncio.sleep(0.005)
    print(answered)


if __name__ == "__main__":
    asyncio.run(_send(*sys.argv[2:]) if sys.argv[1:2] == ["flood"] else main())
