"""Runs of poller's commands in forks of one process, with the shim in them."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.compiled import library

HERE = Path(__file__).parent
PATIENCE_S = 300


@dataclass(frozen=True)
class After:
    """The call that comes `more` after the `nth` one of this name with `part` in its path."""

    call: str
    part: str
    nth: int = 1
    more: int = 0


@dataclass(frozen=True)
class Order:
    """One run of `words` in `directory`; what the shim does below `prefix` is said in shim.c.

    Without a `prefix` nothing is done to the run. `planted` are functions, each `module:name`, called
    in the run before it begins. `later_s` moves its clock. `after` chooses the call in place of `at`.
    """

    words: Sequence[str]
    directory: str
    out: str
    err: str
    prefix: str = ""
    environ: Mapping[str, str] = field(default_factory=dict)
    at: int = 0
    act: str = ""
    after: After | None = None
    planted: str = ""
    names: str = ""
    later_s: float = 0
    hang_timeout_s: int = PATIENCE_S


class ForkServer:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._turn = asyncio.Lock()

    async def run(self, order: Order) -> int:
        """Carry out an order; its exit code, negative for a signal."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        async with self._turn:
            self._process.stdin.write(json.dumps(asdict(order)).encode() + b"\n")
            async with asyncio.timeout(order.hang_timeout_s + 30):
                line = await self._process.stdout.readline()
        assert line, "the fork server died"
        return int(json.loads(line))


def built_shim(directory: Path) -> Path:
    """Compile the shim; skips the test visibly where there is no C compiler."""
    return library(HERE / "shim.c", directory)


@asynccontextmanager
async def fork_server(shim: Path) -> AsyncIterator[ForkServer]:
    environ = {**os.environ, "LD_PRELOAD": str(shim), "PYTHONWARNINGS": "default"}
    for name in ("COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG", "NOTIFY_SOCKET"):
        environ.pop(name, None)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.crash.forkserver"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=HERE.parent.parent,
        env=environ,
    )
    try:
        yield ForkServer(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
