"""A bare server of the API in a process of its own: prepared answers, the same for all who are compared.

`python -m tests.benchmarks.served` prints its port. It checks nothing and costs next to nothing; the
simulator, which does check, would be what is measured.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any

import aiohttp

EMPTY_LIST = {"first_record": 0, "last_record": 0, "faxes": []}
TOKEN = {"access_token": "token", "token_type": "bearer", "expires_in": 86_399, "scope": "fax"}
_ENDED = b"\r\n\r\n"


class Answers:
    """What is answered to a request; `arrivals` are the lists asked for: who, and when (wall clock)."""

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
        if path == "/arrivals":  # for the benchmark: told once
            arrivals, self.arrivals = self.arrivals, []
            return _body(arrivals)
        return self._token if path == "/tokens" else self._health


class _Connection(asyncio.Protocol):
    """Parses only as much of HTTP as an honest client needs."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(_ENDED)) >= 0:
            first, *lines = self._received[:end].split(b"\r\n")
            headers = dict(_header(line) for line in lines)
            length = end + len(_ENDED) + int(headers.get(b"content-length", b"0"))
            if len(self._received) < length:
                return
            self._received = self._received[length:]
            body = self._answers.answer(first.split()[1].decode(), headers)
            self._transport.writelines([_head(len(body)), body])


def _header(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.partition(b":")
    return name.lower(), value.strip()


def _head(length: int) -> bytes:
    date = formatdate(usegmt=True)
    return (
        f"HTTP/1.1 200 OK\r\nDate: {date}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


def _body(value: Any) -> bytes:
    return json.dumps(value).encode()


async def _serve() -> None:
    answers = Answers()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(answers), "127.0.0.1", 0, backlog=1000)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)  # until whoever started it is gone


@dataclass(frozen=True)
class Served:
    """The server as the benchmark sees it."""

    base_url: str

    async def arrivals(self) -> list[tuple[str, float]]:
        """The lists asked for since this was last asked."""
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self.base_url}/arrivals") as answer,
        ):
            return [(user, at) for user, at in await answer.json()]


@asynccontextmanager
async def served() -> AsyncIterator[Served]:
    """Run the server in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.benchmarks.served"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        port = int(await process.stdout.readline())
        yield Served(f"http://127.0.0.1:{port}")
    finally:
        process.stdin.close()
        await process.wait()


if __name__ == "__main__":
    asyncio.run(_serve())
