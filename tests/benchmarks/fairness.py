"""Fairness: how long a fax takes to reach the disk while another user has thousands waiting.

python -m tests.benchmarks.fairness
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from tests.acceptance.installation import Daemon
from tests.benchmarks import documents, measured
from tests.benchmarks.faxes_served import Faxes, Served, fax_id, served

_BUSY, _OTHER = "user-0", "user-1"


async def main(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="poller-benchmark-") as directory:
        encoded = Path(directory) / "document"
        documents.write_encoded(encoded, options.kilobytes * 1000)
        alone = await _took_s(options, Faxes(str(encoded), users=2, each=0))
        beside = await _took_s(
            options, Faxes(str(encoded), users=2, each=0, waiting=options.waiting)
        )
    alone_s, beside_s = statistics.median(alone), statistics.median(beside)
    measured.told(
        f"Fairness: from a fax's arrival to its image on the disk, for a user polled every second, "
        f"while another one of the account has {options.waiting} waiting, beside the same user alone; "
        f"the limit is {options.rate:.0f}/s.",
        f"alone {alone_s:.2f} s, slowest {max(alone):.2f} s",
        f"beside the other {beside_s:.2f} s, slowest {max(beside):.2f} s",
        f"{beside_s - alone_s:+.2f} s, slowest to slowest {max(beside) - max(alone):+.2f} s",
        wanted="at most + 2 s",
    )


async def _took_s(options: argparse.Namespace, faxes: Faxes) -> list[float]:
    limits = {"requests_per_second": options.rate, "burst": 10, "in_flight": 8}
    async with served(faxes) as server:
        configuration = measured.settings(2, server.base_url, {"poll": {"every": "1s"}})
        configuration["accounts"]["main"]["limits"] = limits
        async with (
            measured.installed(configuration) as installation,
            installation.daemon() as daemon,
        ):
            if faxes.waiting:
                await daemon.event("fax-stored", fax_id=fax_id(_BUSY, 0))
            took = [await _one_s(server, daemon, number) for number in range(options.rounds)]
            if faxes.waiting:
                stored = len(daemon.said("fax-stored")) - options.rounds
                assert stored < faxes.waiting, "nothing was waiting any more"
            return took


async def _one_s(server: Served, daemon: Daemon, number: int) -> float:
    await asyncio.sleep(0.37)  # at no fixed time before the next poll
    await server.receive(_OTHER)
    began = time.monotonic()
    await daemon.event("fax-stored", fax_id=fax_id(_OTHER, number))
    return time.monotonic() - began


if __name__ == "__main__":
    asyncio.run(main(measured.options(rounds=15, waiting=10_000, kilobytes=150, rate=50.0)))
