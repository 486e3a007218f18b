"""Run commands as forks of one process that has already imported poller, `tests.fork_server`.

A fork runs as a new process would. Tests of the start itself, or of preloading, use new processes.
"""

import asyncio
import atexit
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from tests.compiled import library

_LINE_MAX = 1 << 20
_NOTHING: Mapping[str, Any] = {}


class Command(Protocol):
    """A running command: what a fork and `asyncio.subprocess.Process` have in common."""

    stdout: asyncio.StreamReader | None
    stderr: asyncio.StreamReader | None

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | None: ...
    def send_signal(self, signal: int, /) -> None: ...
    def kill(self) -> None: ...
    async def wait(self) -> int: ...
    async def communicate(self) -> tuple[bytes, bytes]: ...


class Fork:
    """A running command with the interface of `asyncio.subprocess.Process`."""

    def __init__(self, pid: int, report: asyncio.StreamReader) -> None:
        self.pid = pid
        self.stdout: asyncio.StreamReader | None = None
        self.stderr: asyncio.StreamReader | None = None
        self._ended = asyncio.create_task(_exit_code(report))

    @property
    def returncode(self) -> int | None:
        return self._ended.result() if self._ended.done() else None

    def send_signal(self, signal: int) -> None:
        if self.returncode is not None:
            raise ProcessLookupError
        os.kill(self.pid, signal)

    def kill(self) -> None:
        self.send_signal(9)

    async def wait(self) -> int:
        return await asyncio.shield(self._ended)

    async def communicate(self) -> tuple[bytes, bytes]:
        assert self.stdout is not None
        assert self.stderr is not None
        out, err = await asyncio.gather(self.stdout.read(), self.stderr.read())
        await self.wait()
        return out, err


async def _exit_code(report: asyncio.StreamReader) -> int:
    line = await report.read()  # read to the end, or the pipe stays open
    assert line, "the fork server has died"
    return int(line)


class Forks:
    """A running fork server; it outlives a test's event loop. `preload`: a library for LD_PRELOAD."""

    def __init__(self, preload: Path | None = None) -> None:
        self.environ = {**os.environ, "PYTHONWARNINGS": "default"}
        for name in ("LD_PRELOAD", "NOTIFY_SOCKET", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"):
            self.environ.pop(name, None)
        if preload is not None:
            self.environ["LD_PRELOAD"] = str(preload)
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                (sys.executable, "-m", "tests.fork_server"),
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                cwd=Path(__file__).parents[1],
                env=self.environ,
            )

    def close(self) -> None:
        self._orders.close()
        self._process.wait()

    async def start(
        self,
        words: Sequence[str],
        directory: Path,
        environ: Mapping[str, str],
        prepare: Mapping[str, Any] = _NOTHING,
    ) -> Fork:
        """Start a command. The child first calls `prepare`: `module:name`, with its argument."""
        (report, theirs), out, err = os.pipe(), os.pipe(), os.pipe()
        order = {
            "words": [*words],
            "directory": str(directory),
            "environ": {**environ},
            "prepare": {**prepare},
        }
        with open(os.devnull, "rb") as nothing:
            given = [nothing.fileno(), out[1], err[1], theirs]
            socket.send_fds(self._orders, [json.dumps(order).encode()], given)
        for fd in given[1:]:
            os.close(fd)
        answers = await _reader(report)
        fork = Fork(int(await answers.readline()), answers)
        fork.stdout, fork.stderr = await _reader(out[0]), await _reader(err[0])
        return fork


async def _reader(fd: int) -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=_LINE_MAX)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", buffering=0)
    )
    return reader


@cache
def forks(source: Path | None = None) -> Forks:
    """Return this process's fork server; start it on the first call.

    `source`: the C source of a library to preload. Without a C compiler, skip the test visibly.
    """
    built = None
    if source is not None:
        directory = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, directory)
        built = library(source, Path(directory))
    running = Forks(built)
    atexit.register(running.close)
    return running
