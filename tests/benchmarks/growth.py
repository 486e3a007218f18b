"""Memory of the daemon over time: its size after the first polls and faxes, and after all of them.

python -m tests.benchmarks.growth
"""

import argparse
import asyncio
import tempfile
from pathlib import Path

from tests.acceptance.installation import Daemon
from tests.benchmarks import documents, measured
from tests.benchmarks.faxes_served import Faxes, Served, served

_EARLY = 0.05
_READINGS = 20
_LOOK_S = 1.0


async def main(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="poller-benchmark-") as directory:
        encoded = Path(directory) / "document"
        documents.write_encoded(encoded, options.kilobytes * 1000)
        faxes = Faxes(str(encoded), options.users, 0, nth=options.polls_per_fax)
        readings, images = await _sizes(faxes, options.polls)
    early, last = readings[0], readings[-1]
    measured.told(
        f"Resident memory of the daemon over {options.polls} polls and {images} faxes (of "
        f"{options.polls // options.polls_per_fax} that came): at the end, beside after the first 5 %.",
        f"after 5 % {early:.1f} MiB, at the end {last:.1f} MiB: {last - early:+.1f} MiB",
        f"on the way: {[round(reading, 1) for reading in readings]}",
        wanted="at most +5 MiB",
    )


async def _sizes(faxes: Faxes, polls: int) -> tuple[list[float], int]:
    """Return the size in MiB after the first 5 %, at equal steps from there to the end, and the images.

    Windows that were listed count as polls; a start lists some nine more for each user.
    """
    changes = {
        "poll": {"every": "1s", "overlap": "5s"},
        "log": {"format": "json", "level": "warning"},
    }
    marks = [_EARLY + (1 - _EARLY) * step / _READINGS for step in range(_READINGS + 1)]
    async with served(faxes) as server:
        configuration = measured.settings(faxes.users, server.base_url, changes)
        async with (
            measured.installed(configuration) as installation,
            installation.daemon(ready=False) as daemon,
        ):
            readings = [await _size_after(server, daemon, mark * polls) for mark in marks]
            images = int((await server.counts())["images"])
            await daemon.stop()
    return readings, images


async def _size_after(server: Served, daemon: Daemon, polls: float) -> float:
    while (await server.counts())["windows"] < polls:
        assert daemon.process.returncode is None
        await asyncio.sleep(_LOOK_S)
    return measured.resident_mib(daemon.process.pid)


if __name__ == "__main__":
    defaults = {"polls": 200_000, "polls_per_fax": 10, "users": 200, "kilobytes": 150}
    asyncio.run(main(measured.options(rounds=1, **defaults)))
