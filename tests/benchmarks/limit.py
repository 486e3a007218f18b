"""Limit used: how much of its limit an account with a backlog uses, all requests counted.

python -m tests.benchmarks.limit
"""

import argparse
import asyncio
import bisect
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks import documents, measured
from tests.benchmarks.faxes_served import Faxes, served

_WINDOW_S = 1.0


@dataclass(frozen=True)
class Run:
    """Requests a second over the middle of a run, most in any second of it, and the 429s."""

    rate: float
    most: int
    refused: int


async def main(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="poller-benchmark-") as directory:
        encoded = Path(directory) / "document"
        documents.write_encoded(encoded, options.kilobytes * 1000)
        faxes = Faxes(
            str(encoded),
            users=options.users,
            each=options.faxes // options.users,
            rate=options.rate,
            burst=options.burst + 2,
        )
        runs = [await _run(faxes, options) for _ in range(options.rounds)]
    rate = statistics.median(run.rate for run in runs)
    measured.told(
        f"Limit used: requests a second, of all kinds, over the middle 80 % of {options.faxes} faxes "
        f"being fetched, beside the limit of {options.rate:.0f}/s with a burst of {options.burst}; the "
        f"server is a token bucket of {options.burst + 2}.",
        f"{rate:.2f}/s; all rounds: {[round(run.rate, 2) for run in runs]}",
        f"most in any second: {max(run.most for run in runs)} (limit + burst: "
        f"{options.rate + options.burst:.0f})",
        f"429s: {sum(run.refused for run in runs)} (wanted: none)",
        ratio=rate / options.rate,
        wanted="at least 0.97",
    )


async def _run(faxes: Faxes, options: argparse.Namespace) -> Run:
    limits = {"requests_per_second": options.rate, "burst": options.burst, "in_flight": 16}
    async with served(faxes) as server:
        configuration = measured.settings(faxes.users, server.base_url)
        configuration["accounts"]["main"]["limits"] = limits
        async with measured.running(configuration) as daemon:
            count = len(faxes.ids)
            await daemon.until(lambda: len(daemon.lines) > count, "a line for each fax")
            await daemon.event("fax-stored", count=count)
            arrivals, refused = await server.arrivals()
            first = (await server.counts())["first_image_at"]
    return Run(_middle_rate(arrivals, first), _most(arrivals), refused)


def _middle_rate(arrivals: Sequence[float], began: float) -> float:
    """Return the rate from the first image to the last: earlier, nothing can use the limit."""
    took_s = arrivals[-1] - began
    since, until = began + took_s * 0.1, arrivals[-1] - took_s * 0.1
    return sum(since <= at < until for at in arrivals) / (until - since)


def _most(arrivals: Sequence[float]) -> int:
    return max(
        bisect.bisect_left(arrivals, at + _WINDOW_S) - number for number, at in enumerate(arrivals)
    )


if __name__ == "__main__":
    asyncio.run(
        main(measured.options(rounds=3, faxes=2_000, kilobytes=150, users=4, rate=50.0, burst=10))
    )
