"""Durable throughput: faxes a second, compared with an honest loop and a bare one.

python -m tests.benchmarks.throughput
python -m tests.benchmarks.throughput --s3 here    # to a bucket; see `large`
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks import documents, measured
from tests.benchmarks.faxes_served import Faxes, served


@dataclass(frozen=True)
class Run:
    """Faxes a second, and seconds of the processor for each."""

    rate: float
    cpu_s: float


async def main(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="poller-benchmark-") as directory:
        encoded = Path(directory) / "document"
        documents.write_encoded(encoded, options.kilobytes * 1000)
        faxes = Faxes(str(encoded), options.users, options.faxes // options.users)
        runs: dict[str, list[Run]] = {"honest": [], "poller": [], "bare": []}
        for _ in range(options.rounds):
            for name, so_far in runs.items():
                # Keep files to the end: ext4 without a journal avoids the inodes of deleted files
                # for minutes when it makes new ones, which would take a third of a run.
                here = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=directory))
                is_poller = name == "poller"
                run = _poller(faxes, here, options.s3) if is_poller else _loop(name, faxes, here)
                so_far.append(await run)
    rates = {name: statistics.median(run.rate for run in some) for name, some in runs.items()}
    measured.told(
        f"Durable throughput: {options.faxes} faxes of {options.kilobytes} KB, 16 at once, from the "
        "first image asked for to the last one stored; beside an honest loop (GET, decode, hash, "
        "image and sidecar each fsynced and linked, directory fsynced, grouped commit) and a bare "
        "one (GET, decode, write, fsync, rename).",
        *(_figures(name, some) for name, some in runs.items()),
        f"poller is {rates['poller'] / rates['bare']:.2f} of the bare loop",
        ratio=rates["poller"] / rates["honest"],
        wanted="at least 0.8 of the honest loop",
    )


def _figures(name: str, runs: list[Run]) -> str:
    rate = statistics.median(run.rate for run in runs)
    cpu_s = statistics.median(run.cpu_s for run in runs)
    every = [round(run.rate) for run in runs]
    return f"{name}: {rate:.0f} faxes/s, {cpu_s * 1e3:.1f} ms of CPU per fax; all rounds: {every}"


async def _poller(faxes: Faxes, directory: Path, store: str) -> Run:
    count = len(faxes.ids)
    async with served(faxes) as server:
        configuration = measured.settings(
            faxes.users, server.base_url, measured.in_bucket(store, directory.parent)
        )
        async with measured.running(configuration, directory) as daemon:
            pid = daemon.process.pid
            cpu_s = measured.cpu_s(pid)
            # Look at each line only once, because this measures the processor.
            await daemon.until(lambda: len(daemon.lines) > count, "a line for each fax")
            await daemon.event("fax-stored", count=count)
            ended = time.time()
            cpu_s = measured.cpu_s(pid) - cpu_s
            started = (await server.counts())["first_image_at"]
    return Run(count / (ended - started), cpu_s / count)


async def _loop(name: str, faxes: Faxes, directory: Path) -> Run:
    async with served(faxes) as server:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.benchmarks.loops"),
            *(name, server.base_url, directory),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate(json.dumps(faxes.ids).encode())
    seconds, cpu_s = json.loads(out)
    return Run(len(faxes.ids) / seconds, cpu_s / len(faxes.ids))


if __name__ == "__main__":
    asyncio.run(main(measured.options(rounds=3, faxes=2_000, kilobytes=150, users=1, s3="")))
