"""Do once what the first command in a process does longer than the next: SQLAlchemy compiles statements."""

import asyncio
import ctypes
import tempfile
from contextlib import suppress
from pathlib import Path

from poller import config
from poller.cli import once_command, status_command
from poller.ingest.runtime import open_runtime
from poller.metrics import Metrics
from poller.simulator import Simulator
from tests import once_made
from tests.acceptance.installation import Installation, arrived, populated

_M_ARENA_MAX = -8


def warm_up() -> None:
    """Work as `once` and `status` do, in this process, for an installation that is then removed."""
    _have_one_arena()
    once_made.put_in_place(setattr)
    with tempfile.TemporaryDirectory() as root:
        asyncio.run(_work(Path(root)))


def _have_one_arena() -> None:
    """Each thread's would reserve 64 MiB, and all together more than a checking process may have."""
    with suppress(AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


async def _work(root: Path) -> None:
    async with populated(Simulator()) as simulator:
        installation = Installation(root, simulator.base_url)
        settings = config.load([installation.config])
        for _ in range(2):
            async with open_runtime(settings, installation.environ, metrics=Metrics("")) as runtime:
                await runtime.services.gate.check()
                await once_command._once(None, runtime)
            arrived(simulator, 2)
        await status_command.look(settings)
