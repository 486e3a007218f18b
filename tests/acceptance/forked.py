"""Commands as forks of one process that has poller imported: hundreds of them cost little.

What a run does is the same. What concerns its start, its signals or what is preloaded is tested
with processes of their own.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.acceptance.installation import NOTHING, PATIENCE_S, Done, Installation
from tests.crash.runs import Order


class Forks:
    """A fork server that outlives the event loop of a test."""

    def __enter__(self) -> Self:
        environ = {**os.environ, "PYTHONWARNINGS": "default"}
        for name in ("LD_PRELOAD", "NOTIFY_SOCKET"):
            environ.pop(name, None)
        self._process = subprocess.Popen(
            (sys.executable, "-m", "tests.crash.forkserver"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            env=environ,
        )
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def run(self, order: Order) -> int:
        """Carry out an order; its exit code, negative for a signal; blocking."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(order)).encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the fork server died"
        return int(json.loads(line))


class ForkedInstallation(Installation):
    """An installation whose commands are forks."""

    def __init__(
        self, forks: Forks, root: Path, base_url: str, changes: dict[str, Any] | None = None
    ) -> None:
        super().__init__(root, base_url, changes)
        self._forks = forks

    async def poller(
        self,
        *words: str,
        config: bool = True,
        environ: Mapping[str, str] = NOTHING,
        hang_timeout_s: float = PATIENCE_S * 2,
    ) -> Done:
        where = ("-c", str(self.config)) if config else ()
        out, err = self.root / "out", self.root / "err"
        order = Order(
            words=[*words, *where],
            directory=str(self.root),
            out=str(out),
            err=str(err),
            environ={**self.environ, **environ},
            hang_timeout_s=round(hang_timeout_s),
        )
        code = await asyncio.to_thread(self._forks.run, order)
        return Done(code, out.read_text(), err.read_text())
