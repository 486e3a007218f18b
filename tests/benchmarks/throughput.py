"""Durable throughput: faxes a second, beside an honest loop and a bare one.

python -m tests.benchmarks.throughput
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks import documents, measured
from tests.benchmarks.faxes_served import Faxes, served


async def main(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="poller-benchmark-") as directory:
        encoded = Path(directory) / "document"
        documents.write_encoded(encoded, options.kilobytes * 1000)
        faxes = Faxes(str(encoded), options.users, options.faxes // options.users)
        rates: dict[str, list[float]] = {"honest": [], "poller": [], "bare": []}
        for _ in range(options.rounds):
            for name, measured_so_far in rates.items():
                rate = await (_poller(faxes) if name == "poller" else _loop(name, faxes))
                measured_so_far.append(rate)
    honest, ours, bare = (statistics.median(rates[name]) for name in ("honest", "poller", "bare"))
    measured.told(
        f"Durable throughput: {options.faxes} faxes of {options.kilobytes} KB, 16 at once, from the "
        "first image asked for to the last one stored; beside an honest loop (GET, decode, hash, "
        "image and sidecar each fsynced and linked, directory fsynced, grouped commit) and a bare "
        "one (GET, decode, write, fsync, rename).",
        f"poller {ours:.0f}/s, honest loop {honest:.0f}/s, bare loop {bare:.0f}/s",
        *(f"{name}, all rounds: {[round(rate) for rate in some]}" for name, some in rates.items()),
        f"{ours / bare:.2f} of the bare loop",
        ratio=ours / honest,
        wanted="at least 0.8 of the honest loop",
    )


async def _poller(faxes: Faxes) -> float:
    count = len(faxes.ids)
    async with served(faxes) as server:
        configuration = measured.settings(faxes.users, server.base_url)
        async with measured.running(configuration) as daemon:
            # Each line is looked at once: the processor is what is measured.
            await daemon.until(lambda: len(daemon.lines) > count, "a line for each fax")
            await daemon.event("fax-stored", count=count)
            ended = time.time()
            started = (await server.counts())["first_image_at"]
    return count / (ended - started)


async def _loop(name: str, faxes: Faxes) -> float:
    async with served(faxes) as server:
        with tempfile.TemporaryDirectory(prefix="poller-benchmark-") as directory:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.benchmarks.loops"),
                *(name, server.base_url, directory),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            out, _ = await process.communicate(json.dumps(faxes.ids).encode())
    return len(faxes.ids) / float(out)


if __name__ == "__main__":
    asyncio.run(main(measured.options(rounds=3, faxes=2_000, kilobytes=150, users=1)))
