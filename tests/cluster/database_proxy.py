"""A proxy before a PostgreSQL server: it delays every answer, or cuts connections at a COMMIT."""

import asyncio
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, quote, urlsplit

_BLOCK = 64 << 10
_COMMIT = b"COMMIT\0"  # ends the message that asks for it, and the one that confirms it
Cut = Literal["before", "after"]


@dataclass
class DatabaseProxy:
    """`url` leads through it. Each answer comes `delay_s` later.

    `every`: one COMMIT of so many is cut off, in turn before the server gets it, and after it took
    effect but before the client knows; 0: none. `cut` counts both.
    """

    url: str
    server: str  # the path of its socket
    delay_s: float = 0.0
    every: int = 0
    cut: Counter[Cut] = field(default_factory=Counter)
    _commits: int = 0
    _connections: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on what comes on one connection until either side ends it."""
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            with suppress(OSError):
                from_server, to_server = await asyncio.open_unix_connection(self.server)
                try:
                    await _Passing(self, writer, to_server).both(reader, from_server)
                finally:
                    to_server.transport.abort()
        except asyncio.CancelledError:
            pass  # `end`
        finally:
            writer.transport.abort()
            self._connections.discard(task)

    def cut_of_commit(self) -> Cut | None:
        """Count a COMMIT; return where to cut it off."""
        self._commits += 1
        if not self.every or self._commits % self.every:
            return None
        return "before" if self._commits // self.every % 2 else "after"

    async def end(self) -> None:
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)


class _Passing:
    """One connection."""

    def __init__(
        self, proxy: DatabaseProxy, to_client: asyncio.StreamWriter, to_server: asyncio.StreamWriter
    ) -> None:
        self._proxy = proxy
        self._to_client = to_client
        self._to_server = to_server
        self._is_last = False  # the next answer to a COMMIT is lost

    async def both(self, client: asyncio.StreamReader, server: asyncio.StreamReader) -> None:
        ways = [
            asyncio.create_task(self._asked(client)),
            asyncio.create_task(self._answered(server)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _asked(self, client: asyncio.StreamReader) -> None:
        while data := await client.read(_BLOCK):
            if data.endswith(_COMMIT):
                cut = self._proxy.cut_of_commit()
                if cut == "before":
                    self._proxy.cut[cut] += 1
                    return
                self._is_last = cut == "after"
            self._to_server.write(data)

    async def _answered(self, server: asyncio.StreamReader) -> None:
        loop = asyncio.get_running_loop()
        while data := await server.read(_BLOCK):
            if self._is_last and _COMMIT in data:
                self._proxy.cut["after"] += 1
                return
            if self._proxy.delay_s:
                loop.call_later(self._proxy.delay_s, self._to_client.write, data)
            else:
                self._to_client.write(data)


@asynccontextmanager
async def before(url: str) -> AsyncIterator[DatabaseProxy]:
    """Run a proxy before the server of this URL, whose host is the directory of its socket."""
    parts = urlsplit(url)
    where = parse_qs(parts.query)
    name = f".s.PGSQL.{where['port'][0]}"
    with tempfile.TemporaryDirectory(prefix="poller-proxy-") as directory:
        query = f"host={quote(directory, '')}&port={where['port'][0]}"
        through = parts._replace(query=query).geturl()
        proxy = DatabaseProxy(through, str(Path(where["host"][0]) / name))
        server = await asyncio.start_unix_server(proxy.serve, Path(directory) / name)
        try:
            yield proxy
        finally:
            server.close()
            await proxy.end()
