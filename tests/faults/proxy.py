"""An independent TCP proxy that harms what passes; of HTTP it only knows where a request begins.

It stands between the real client and a real server and uses none of the program's code.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

from tests.efax import kept_port

_BLOCK = 64 << 10
# so that data sent before a reset has left this side's buffers
_BEFORE_RESET_S = 0.02
_REQUEST_LINE_END = b" HTTP/1.1\r\n"

End = Literal["fin", "reset", "half-close", "stall"]
Arrival = Literal["reset", "close", "black-hole"]


@dataclass
class Harm:
    """What happens to the answers of requests that contain `needle`, `times` of them (None: all).

    `answer`: send these bytes instead of asking the server, then close the connection. `cut_after`:
    this many bytes of the answer pass, then its `end`. `flip_in`: flip the lowest bit of the last
    of these bytes where they occur in the answer. `latency_s` delays the answer; `drip` (bytes,
    seconds) and `bytes_per_s` slow it down.
    """

    needle: bytes = b""
    times: int | None = None
    answer: bytes | None = None
    cut_after: int | None = None
    end: End = "fin"
    flip_in: bytes | None = None
    latency_s: float = 0.0
    drip: tuple[int, float] | None = None
    bytes_per_s: float | None = None
    met: int = 0  # how many requests have met it

    def concerns(self, request: bytes) -> bool:
        return self.needle in request and (self.times is None or self.met < self.times)


@dataclass
class Proxy:
    """Forwards 127.0.0.1:`port` to the `upstream` port; counts `connections` and `requests`.

    `arrival` is what happens to connections when they arrive: `arrivals_left` of them (None: all).
    """

    upstream: int
    port: int = 0
    harms: list[Harm] = field(default_factory=list)
    arrival: Arrival | None = None
    arrivals_left: int | None = None
    connections: int = 0
    requests: list[bytes] = field(default_factory=list)
    _server: asyncio.Server | None = None
    _kept: socket.socket | None = None  # the port, while nobody listens there
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def asked(self, needle: bytes) -> int:
        """Return how many requests contained these bytes."""
        return sum(needle in request for request in self.requests)

    async def open(self) -> None:
        """Listen, on the same port as before if there was one."""
        self._let_go()
        self._server = await asyncio.start_server(self._taken, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Refuse connections from now on, and drop the open ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
            self._kept = kept_port(self.port)
        await self.drop()

    def _let_go(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    async def drop(self) -> None:
        """Drop every open connection."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _taken(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            with contextlib.suppress(ConnectionError):
                if not await self._harmed_on_arrival(writer):
                    await _Connection(self, reader, writer).run()
        finally:
            writer.transport.abort()

    async def _harmed_on_arrival(self, writer: asyncio.StreamWriter) -> bool:
        if self.arrival is None or self.arrivals_left == 0:
            return False
        if self.arrivals_left is not None:
            self.arrivals_left -= 1
        if self.arrival == "black-hole":
            await asyncio.Event().wait()
        elif self.arrival == "reset":
            _reset(writer)
        else:
            writer.close()
        return True

    def harm_for(self, request: bytes) -> Harm | None:
        harm = next((one for one in self.harms if one.concerns(request)), None)
        if harm is not None:
            harm.met += 1
        return harm


class _Connection:
    """One client's connection, and its connection to the server."""

    def __init__(
        self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._proxy = proxy
        self._reader = reader
        self._writer = writer
        self._harm: Harm | None = None
        self._passed = 0  # bytes of the present answer

    async def run(self) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._proxy.upstream)
        asking = asyncio.create_task(self._ask(up_writer))
        answering = asyncio.create_task(self._answer(up_reader))
        try:
            await asyncio.wait((asking, answering), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (asking, answering):
                task.cancel()
            await asyncio.gather(asking, answering, return_exceptions=True)
            up_writer.transport.abort()

    async def _ask(self, upstream: asyncio.StreamWriter) -> None:
        while block := await self._reader.read(_BLOCK):
            if _REQUEST_LINE_END in block:
                self._proxy.requests.append(block)
                self._harm, self._passed = self._proxy.harm_for(block), 0
                if self._harm is not None and self._harm.answer is not None:
                    await self._send(self._harm.answer)
                    return
            upstream.write(block)
            await upstream.drain()

    async def _answer(self, upstream: asyncio.StreamReader) -> None:
        while block := await upstream.read(_BLOCK):
            if not await self._pass_on(block):
                return

    async def _pass_on(self, block: bytes) -> bool:
        """Send a piece of the answer as its harm says; return False if this was the end."""
        harm = self._harm
        if harm is None:
            await self._send(block)
            return True
        if not self._passed:
            await asyncio.sleep(harm.latency_s)
        if harm.flip_in is not None and (found := block.find(harm.flip_in)) >= 0:
            at = found + len(harm.flip_in) - 1
            block = block[:at] + bytes((block[at] ^ 1,)) + block[at + 1 :]
        cut = harm.cut_after is not None and self._passed + len(block) > harm.cut_after
        if cut and harm.cut_after is not None:
            block = block[: harm.cut_after - self._passed]
        self._passed += len(block)
        await self._slowly(block, harm)
        if cut:
            await self._end(harm.end)
        return not cut

    async def _slowly(self, block: bytes, harm: Harm) -> None:
        piece, pause_s = harm.drip or (len(block) or 1, 0.0)
        for at in range(0, len(block), piece):
            await self._send(block[at : at + piece])
            await asyncio.sleep(pause_s)
        if harm.bytes_per_s is not None:
            await asyncio.sleep(len(block) / harm.bytes_per_s)

    async def _send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def _end(self, end: End) -> None:
        if end == "fin":
            self._writer.close()
            await self._writer.wait_closed()
        elif end == "reset":
            await asyncio.sleep(_BEFORE_RESET_S)
            _reset(self._writer)
        else:
            if end == "half-close":
                self._writer.write_eof()
            await asyncio.Event().wait()


def _reset(writer: asyncio.StreamWriter) -> None:
    """End the connection with a TCP reset instead of an orderly end."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@asynccontextmanager
async def proxied(upstream: int) -> AsyncIterator[Proxy]:
    """Run a proxy before the server that listens on `upstream`."""
    proxy = Proxy(upstream)
    await proxy.open()
    try:
        yield proxy
    finally:
        await proxy.close()
        proxy._let_go()
