"""Memory of the daemon while large faxes arrive at once, compared with its idle size.

python -m tests.benchmarks.large
python -m tests.benchmarks.large --s3 here                        # to a bucket in ministack
python -m tests.benchmarks.large --s3 http://127.0.0.1:7480       # in another store; see tests/s3.py
"""

import argparse
import asyncio
import statistics
import tempfile
from pathlib import Path
from typing import Any

from tests.acceptance.installation import Daemon
from tests.benchmarks import documents, measured
from tests.benchmarks.faxes_served import Faxes, Served, served

_SETTLED_S = 3.0


async def main(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="poller-benchmark-") as directory:
        encoded = Path(directory) / "document"
        documents.write_encoded(encoded, round(options.megabytes * 1e6))
        faxes = Faxes(str(encoded), 1, 0)
        storage = measured.in_bucket(options.s3, Path(directory))
        rounds = [await _round(faxes, options.faxes, storage) for _ in range(options.rounds)]
    idle, peak, at_once = (statistics.median(figure) for figure in zip(*rounds, strict=True))
    growths = [peak - idle for idle, peak, _ in rounds]
    measured.told(
        f"Resident memory of the daemon while {options.faxes} faxes of {options.megabytes:g} MB "
        f"come in at once ({options.megabytes * 4 / 3:.0f} MB of base64 each): its peak beside its "
        "size when idle.",
        f"idle {idle:.1f} MiB, peak {peak:.1f} MiB, {at_once:.0f} under way at once",
        f"{statistics.median(growths):+.1f} MiB, all rounds: {[round(one, 1) for one in growths]}",
        wanted="at most +32 MiB",
    )


async def _round(faxes: Faxes, count: int, storage: dict[str, Any]) -> tuple[float, float, float]:
    """Idle and peak size in MiB, and how many were under way at once."""
    async with served(faxes) as server:
        configuration = measured.settings(
            faxes.users, server.base_url, {"poll": {"every": "1s"}} | storage
        )
        async with measured.running(configuration) as daemon:
            pid = daemon.process.pid
            await asyncio.sleep(_SETTLED_S)
            idle = measured.resident_mib(pid)
            measured.forget_peak(pid)
            await _come_in(server, daemon, count)
            return idle, measured.peak_mib(pid), (await server.counts())["at_once"]


async def _come_in(server: Served, daemon: Daemon, count: int) -> None:
    """Let all faxes arrive for one user: one list shows them, and they are fetched at the same moment."""
    await asyncio.gather(*(server.receive("user-0") for _ in range(count)))
    await daemon.event("fax-stored", count=count)


if __name__ == "__main__":
    asyncio.run(main(measured.options(rounds=3, faxes=8, megabytes=75.0, s3="")))
