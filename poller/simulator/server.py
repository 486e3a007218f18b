"""The simulated eFax on loopback: its network side."""

import asyncio
from collections.abc import Callable
from typing import Any, Self

from aiohttp import web

from . import outbound
from .delivery import deliver, drop_unwanted_headers
from .fake_efax import FakeEfax, Seen
from .faults import Stage
from .notifier import Notifier, hook_target
from .query import Arrival
from .state import Fax

_LARGEST_BODY = 128 << 20
_SENDERS = ("13235551212", "14155550134", "12125550187", "+442079460958", "unavailable")


class Simulator(FakeEfax):
    """eFax as an HTTP server on 127.0.0.1: `async with Simulator(...) as sim: … sim.base_url …`.

    Port 0 takes any free port. Raises OSError if a given port is taken.
    """

    def __init__(self, *, port: int = 0, **settings: Any) -> None:
        super().__init__(**settings)
        self.port = port
        self.notifier = Notifier(self)
        self._runner: web.AppRunner | None = None
        self._runtime: web.TCPSite | None = None

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
        app.router.add_route("*", "/{path:(?s:.*)}", self._handle)  # an id may contain a line break
        app.on_response_prepare.append(drop_unwanted_headers)
        # Cancel handlers when the client or the simulator goes away, so that no stalled or
        # delayed one stays behind.
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
        """Stop the server, and cancel delayed and stalled answers. May be called twice."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def arrivals(
        self, per_minute: float, on_arrival: Callable[[Fax], None] | None = None
    ) -> None:
        """Make faxes arrive at random times, for random users, until cancelled; 0 means none."""
        while per_minute:
            await asyncio.sleep(self.random.expovariate(per_minute / 60))
            fax = self.receive_somewhere()
            if on_arrival is not None:
                on_arrival(fax)

    async def departures(self, per_hour: float) -> None:
        """Make random users send faxes at random times, until cancelled; 0 means none."""
        while per_hour:
            await asyncio.sleep(self.random.expovariate(per_hour / 3600))
            self.sent(
                *self._somebody(),
                course=outbound.course(self.switches),
                pages=self.random.choice((1, 1, 2, 3)),
                destination=self.random.choice(_SENDERS[:-1]),
            )

    def _somebody(self) -> tuple[str, str]:
        users = [(app.app_id, user_id) for app in self.apps.values() for user_id in app.users]
        return self.random.choice(users)

    def receive_somewhere(self, **fields: Any) -> Fax:
        """Make a fax of 1 to 4 pages arrive for a random user."""
        app_id, user_id = self._somebody()
        return self.receive(
            app_id,
            user_id,
            pages=self.random.choice((1, 1, 2, 2, 3, 4)),
            originating=self.random.choice(_SENDERS),
            **fields,
        )

    def hook(self, app_id: str, url: str, secret: str) -> None:
        """Post notices of this App ID's faxes from now on, to an address on this machine.

        `notifier.post_due` or `keep_posting` sends them. Raises ValueError for another machine's
        address.
        """
        self.hooks[app_id] = hook_target(url, secret)

    async def keep_posting(self, every_s: float = 0.1) -> None:
        """Post notices soon after they are due, until cancelled."""
        while True:
            await self.notifier.post_due()
            await asyncio.sleep(every_s)

    async def before_delivery(self, seen: Seen) -> None:
        """Wait before sending an answer; this class does not wait."""

    async def _listen(self) -> None:
        assert self._runner is not None
        self._runtime = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await self._runtime.start()
        self.port = self._runner.addresses[0][1]

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        arrival = Arrival(
            method=request.method,
            target=request.raw_path,
            headers={name.lower(): value for name, value in request.headers.items()},
            body=await request.read(),
        )
        seen = self.see(arrival)
        reply, fault = self.answer(seen, arrival)
        await self.before_delivery(seen)
        effect = fault.effect if fault and fault.stage is Stage.DELIVERY else None
        if effect not in ("reset", "stall"):
            seen.status = reply.status
        return await deliver(request, reply, effect, self.switches, self.faults)
