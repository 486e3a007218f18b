"""The simulated eFax with controls for tests: hold answers back, take the machine away."""

import asyncio
import socket
from typing import Any, Self
from weakref import WeakSet

from aiohttp import web

from poller import simulator
from poller.simulator import Seen
from poller.simulator.faults import CALLS
from poller.simulator.state import Fax, SentFax


class Hold:
    """Holds answers back until it is opened; by then the calls themselves were carried out."""

    def __init__(self, calls: frozenset[str], user: str | None) -> None:
        self.held = 0
        self._calls = calls
        self._user = user
        self._open = asyncio.Event()
        self._changed = asyncio.Condition()

    def open(self) -> None:
        """Let everything pass that waits here, and everything that comes."""
        self._open.set()

    async def reached(self, count: int = 1) -> None:
        """Wait until this many answers were held here in all."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.held >= count)

    async def let_pass(self, seen: Seen) -> None:
        """Hold an answer back if this is for it."""
        ours = (not self._calls or seen.call in self._calls) and self._user in (None, seen.user)
        if ours and not self._open.is_set():
            async with self._changed:
                self.held += 1
                self._changed.notify_all()
            await self._open.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.open()


class Simulator(simulator.Simulator):
    """`in_flight` and `most_in_flight` count requests that have arrived and have no answer yet."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.in_flight = self.most_in_flight = 0
        self._holds: list[Hold] = []
        self._kept: socket.socket | None = None  # the port, while nobody listens there
        self._transports: WeakSet[asyncio.Transport] = WeakSet()

    def receive(self, app_id: str, user_id: str, **fields: Any) -> Fax:
        """Let a fax come in whose pages are drawn once for all faxes, unless it is `distinct`."""
        return super().receive(app_id, user_id, **{"distinct": False, **fields})

    def sent(self, app_id: str, user_id: str, **fields: Any) -> SentFax:
        """As `receive`, of a fax that was sent."""
        return super().sent(app_id, user_id, **{"distinct": False, **fields})

    def hold(self, *calls: str, user: str | None = None) -> Hold:
        """Hold the answers to these calls (all calls if none is named) until it is opened."""
        if unknown := set(calls) - set(CALLS):
            raise ValueError(f"there is no call {min(unknown)!r}")
        self._holds.append(Hold(frozenset(calls), user))
        return self._holds[-1]

    async def close_port(self) -> None:
        """Refuse connections from now on and reset open ones, as if the machine had gone."""
        if self._runtime is not None:
            await self._runtime.stop()
            self._runtime = None
            self._kept = kept_port(self.port)
        for transport in list(self._transports):
            transport.abort()

    async def open_port(self) -> None:
        """Listen again, on the same port."""
        if self._runtime is None:
            self._let_go()
            await self._listen()

    async def stop(self) -> None:
        self._let_go()
        await super().stop()
        for transport in list(self._transports):
            transport.abort()

    def _let_go(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.transport is not None:
            self._transports.add(request.transport)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await super()._handle(request)
        finally:
            self.in_flight -= 1

    async def before_delivery(self, seen: Seen) -> None:
        for hold in tuple(self._holds):
            await hold.let_pass(seen)


def kept_port(port: int) -> socket.socket:
    """Keep a port from everybody else; connections to it are refused, because nobody listens."""
    kept = socket.socket()
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    kept.bind(("127.0.0.1", port))
    return kept
