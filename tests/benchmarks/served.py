"""A bare API server in its own process, with the same prepared answers for all who are compared.

`python -m tests.benchmarks.served` prints its port. It checks nothing and costs almost nothing; a
benchmark with the simulator, which does check, would measure the simulator.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any

import aiohttp

EMPTY_LIST = {"first_record": 0, "last_record": 0, "faxes": []}
TOKEN = {"access_token": "token", "token_type": "bearer", "expires_in": 86_399, "scope": "fax"}
_ENDED = b"\r\n\r\n"


class Answers:
    """The answer to a request; `arrivals` are the requested lists: who, and when (wall clock)."""

    def __init__(self) -> None:
        self.arrivals: list[tuple[str, float]] = []
        self._empty = _body(EMPTY_LIST)
        self._token = _body(TOKEN)
        self._health = _body({"status": "UP"})

    def answer(self, target: str, headers: dict[bytes, bytes]) -> bytes:
        path = target.partition("?")[0]
        if path == "/faxes/received":
            self.arrivals.append((headers[b"user-id"].decode(), time.time()))
            return self._empty
        if path == "/arrivals":  # for the benchmark, which gets each once
            arrivals, self.arrivals = self.arrivals, []
            return _body(arrivals)
        return self._token if path == "/tokens" else self._health


class Connection(asyncio.Protocol):
    """Parses only as much HTTP as an honest client needs; `asked` answers."""

    def __init__(self) -> None:
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def asked(self, target: str, headers: dict[bytes, bytes]) -> None:
        raise NotImplementedError

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(_ENDED)) >= 0:
            first, *lines = self._received[:end].split(b"\r\n")
            headers = dict(_header(line) for line in lines)
            length = end + len(_ENDED) + int(headers.get(b"content-length", b"0"))
            if len(self._received) < length:
                return
            self._received = self._received[length:]
            self.asked(first.split()[1].decode(), headers)


class _Connection(Connection):
    def __init__(self, answers: Answers) -> None:
        super().__init__()
        self._answers = answers

    def asked(self, target: str, headers: dict[bytes, bytes]) -> None:
        body = self._answers.answer(target, headers)
        self._transport.writelines([head(len(body)), body])


def _header(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.partition(b":")
    return name.lower(), value.strip()


def head(length: int) -> bytes:
    """What comes before a body of this length."""
    date = formatdate(usegmt=True)
    return (
        f"HTTP/1.1 200 OK\r\nDate: {date}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


def _body(value: Any) -> bytes:
    return json.dumps(value).encode()


async def serve(connection: Callable[[], Connection]) -> None:
    """Print the port, and serve until the process that started this is gone."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(connection, "127.0.0.1", 0, backlog=1000)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)


@dataclass(frozen=True)
class Served:
    """The server as the benchmark sees it."""

    base_url: str

    async def arrivals(self) -> list[tuple[str, float]]:
        """Return the lists requested since the last call."""
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self.base_url}/arrivals") as answer,
        ):
            return [(user, at) for user, at in await answer.json()]


@asynccontextmanager
async def in_a_process(*module: str) -> AsyncIterator[str]:
    """Run a module that ends in `serve` in its own process; return its address."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *module),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        port = int(await process.stdout.readline())
        yield f"http://127.0.0.1:{port}"
    finally:
        process.stdin.close()
        await process.wait()


@asynccontextmanager
async def served() -> AsyncIterator[Served]:
    """Run the server in its own process."""
    async with in_a_process("tests.benchmarks.served") as base_url:
        yield Served(base_url)


if __name__ == "__main__":
    answers = Answers()
    asyncio.run(serve(lambda: _Connection(answers)))
