"""The simulated eFax on loopback: the network side of it, and the handles that tests hold it by."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Self
from weakref import WeakSet

from aiohttp import web

from .delivery import deliver, drop_unwanted_headers
from .fake_efax import FakeEfax, Seen
from .faults import CALLS, Stage
from .query import Arrival
from .state import Fax

_LARGEST_BODY = 128 << 20
_SENDERS = ("13235551212", "14155550134", "12125550187", "+442079460958", "unavailable")


class Hold:
    """Holds answers back until it is opened; the calls themselves have been carried out by then."""

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
        """Wait until that many answers have been held here in all."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.held >= count)

    async def let_pass(self, seen: Seen) -> None:
        """Hold an answer back, if it is one of those that this is for."""
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


class Simulator(FakeEfax):
    """eFax as an HTTP server on 127.0.0.1: `async with Simulator(...) as sim: … sim.base_url …`.

    Port 0 takes any free one; OSError when a given one is taken. `in_flight` and `most_in_flight`
    count requests that have arrived and are not answered.
    """

    def __init__(self, *, port: int = 0, **settings: Any) -> None:
        super().__init__(**settings)
        self.port = port
        self.in_flight = self.most_in_flight = 0
        self._holds: list[Hold] = []
        self._runner: web.AppRunner | None = None
        self._site: web.TCPSite | None = None
        self._kept: socket.socket | None = None  # the port, while nobody listens there
        self._transports: WeakSet[asyncio.Transport] = WeakSet()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        app = web.Application(client_max_size=_LARGEST_BODY)
        app.router.add_route("*", "/{path:(?s:.*)}", self._handle)  # an id may hold a line break
        app.on_response_prepare.append(drop_unwanted_headers)
        # Handlers are cancelled when the client or the simulator goes away, so that none that
        # stalls or is held back stays behind.
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=0.05
        )
        await self._runner.setup()
        try:
            await self._listen()
        except OSError:
            await self._runner.cleanup()
            raise

    async def stop(self) -> None:
        """End it, and with it answers that are held back or stall. May be called twice."""
        self._let_go()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        for transport in list(self._transports):
            transport.abort()

    async def close_port(self) -> None:
        """Refuse connections from now on, and reset the open ones: the machine is gone."""
        if self._site is not None:
            await self._site.stop()
            self._site = None
            self._kept = kept_port(self.port)
        for transport in list(self._transports):
            transport.abort()

    async def open_port(self) -> None:
        """Listen again, on the same port."""
        if self._site is None:
            self._let_go()
            await self._listen()

    def hold(self, *calls: str, user: str | None = None) -> Hold:
        """Hold the answers to these calls (all when none is named) until it is opened."""
        if unknown := set(calls) - set(CALLS):
            raise ValueError(f"there is no call {min(unknown)!r}")
        self._holds.append(Hold(frozenset(calls), user))
        return self._holds[-1]

    async def arrivals(
        self, per_minute: float, on_arrival: Callable[[Fax], None] | None = None
    ) -> None:
        """Let faxes come in at random times, for random users, until cancelled; 0 means none."""
        while per_minute:
            await asyncio.sleep(self.random.expovariate(per_minute / 60))
            fax = self.receive_somewhere()
            if on_arrival is not None:
                on_arrival(fax)

    def receive_somewhere(self, **fields: Any) -> Fax:
        """Let a fax of 1 to 4 pages come in for a user taken at random."""
        users = [(app.app_id, user_id) for app in self.apps.values() for user_id in app.users]
        app_id, user_id = self.random.choice(users)
        return self.receive(
            app_id,
            user_id,
            pages=self.random.choice((1, 1, 2, 2, 3, 4)),
            originating=self.random.choice(_SENDERS),
            **fields,
        )

    def _let_go(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    async def _listen(self) -> None:
        assert self._runner is not None
        self._site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await self._site.start()
        self.port = self._runner.addresses[0][1]

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.transport is not None:
            self._transports.add(request.transport)
        arrival = Arrival(
            method=request.method,
            target=request.raw_path,
            headers={name.lower(): value for name, value in request.headers.items()},
            body=await request.read(),
        )
        seen = self.see(arrival)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            reply, fault = self.answer(seen, arrival)
            for hold in tuple(self._holds):
                await hold.let_pass(seen)
            effect = fault.effect if fault and fault.stage is Stage.DELIVERY else None
            if effect not in ("reset", "stall"):
                seen.status = reply.status
            return await deliver(request, reply, effect, self.switches, self.faults)
        finally:
            self.in_flight -= 1


def kept_port(port: int) -> socket.socket:
    """Keep a port from everybody else; connections to it are refused, as nobody listens."""
    kept = socket.socket()
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    kept.bind(("127.0.0.1", port))
    return kept
