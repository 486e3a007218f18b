"""Restart: how soon the daemon is ready when many faxes are still to be fetched.

python -m tests.benchmarks.restart
"""

import argparse
import asyncio
import statistics
import time
from datetime import UTC, datetime

from tests.acceptance.installation import Installation
from tests.benchmarks import measured
from tests.benchmarks.large_ledger import Shape, make
from tests.benchmarks.served import served


async def main(options: argparse.Namespace) -> None:
    took: dict[int, list[float]] = {0: [], options.pending: []}
    async with served() as server:
        for _ in range(options.rounds):
            for pending, measured_so_far in took.items():
                configuration = measured.settings(options.users, server.base_url)
                async with measured.installed(configuration) as installation:
                    shape = Shape(options.users, pending, pending)
                    await make(installation.ledger, shape, datetime.now(UTC))
                    measured_so_far.append(await ready_s(installation))
    nothing_s, pending_s = (statistics.median(some) for some in took.values())
    measured.told(
        f"Restart: from the start of the process until it is ready, {options.users} users with "
        f"{options.pending} faxes still to be fetched, beside the same with none.",
        f"with none {nothing_s:.2f} s, with {options.pending} {pending_s:.2f} s",
        f"all rounds: {[round(one, 2) for one in took[options.pending]]}",
        wanted="ready within 5 s",
    )


async def ready_s(installation: Installation) -> float:
    began = time.monotonic()
    async with installation.daemon():
        return time.monotonic() - began  # kill it here, like a power loss


if __name__ == "__main__":
    asyncio.run(main(measured.options(rounds=3, users=500, pending=100_000)))
