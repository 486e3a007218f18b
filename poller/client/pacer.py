"""The asyncio side of pacing: wait for a turn and hold a slot."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager

from poller.client.ports import Ports
from poller.errors import RateLimited
from poller.pacing import Kind, Pacing, Ticket

_DOUBT_S = 0.5  # until it looks again whether the account is surely ours
_CLOSED = "the account's client was closed"


class Pacer:
    """Gives every request of one account its turn; none while `ports.may_ask` says no.

    Its only timer is a task that sleeps until pacing may allow the next request.
    """

    def __init__(self, pacing: Pacing, ports: Ports) -> None:
        self._pacing = pacing
        self._may_ask = ports.may_ask
        self._clock = ports.clock
        self._observer = ports.observer
        self._waiting: dict[Ticket, asyncio.Future[None]] = {}
        self._timer: asyncio.Task[None] | None = None
        self._timer_at = 0.0
        self._closed = False

    @asynccontextmanager
    async def turn(self, kind: Kind, user: str) -> AsyncIterator[Ticket]:
        """Wait until a request of this kind may go, and hold its slot until the block ends.

        A closed pacer gives no turns: it cancels all waiting and later callers.
        """
        if self._closed:
            raise asyncio.CancelledError(_CLOSED)
        began = self._clock.monotonic()
        ticket = Ticket(kind, user)
        granted = asyncio.get_running_loop().create_future()
        self._waiting[ticket] = granted
        self._pacing.slots.enqueue(ticket)
        self.pump()
        try:
            await granted
        except BaseException:
            self._waiting.pop(ticket, None)
            self._pacing.cancel(ticket)
            self.pump()
            raise
        self._observer.waited(self._clock.monotonic() - began)
        try:
            yield ticket
        finally:
            self._pacing.release(ticket, self._clock.monotonic())
            self.pump()

    def repeat(self) -> float:
        """Count a request that aiohttp is about to repeat; return the seconds to wait first."""
        wait_s = self._pacing.repeat(self._clock.monotonic())
        self._observer.waited(wait_s)
        return wait_s

    def dismiss(self, kinds: Collection[Kind], error: Callable[[], Exception]) -> None:
        """Give every waiting request of these kinds a new error."""
        for ticket, granted in self._waiting.items():
            if ticket.kind in kinds and not granted.done():
                granted.set_exception(error())

    def answered(self, ticket: Ticket) -> None:
        """Note the start of an answer: the server has counted this request."""
        self._pacing.answered(ticket, self._clock.monotonic())
        self.pump()

    def succeeded(self, sent_at: float) -> None:
        """Note that a request sent at that time got a good answer."""
        self._pacing.succeeded(self._clock.monotonic(), sent_at=sent_at)

    def rate_limited(self, error: RateLimited, sent_at: float) -> None:
        """Note that a request sent at that time got a 429."""
        now = self._clock.monotonic()
        if self._pacing.rate_limited(now, error.retry_after_s, sent_at=sent_at):
            until = self._pacing.speed.paused_until or now
            self._observer.rate_limited(until - now, self._pacing.speed.rate)

    def pump(self) -> None:
        """Let go all requests that may go; call it after any change that affects this."""
        if not self._waiting:
            return
        now = self._clock.monotonic()
        if not self._may_ask():
            self._set_timer(now + _DOUBT_S)
            return
        for ticket in self._pacing.grant(now):
            granted = self._waiting.pop(ticket)
            if not granted.done():
                granted.set_result(None)
        if (at := self._pacing.wakes_at(now)) is not None:
            self._set_timer(at)

    def _set_timer(self, at: float) -> None:
        if self._timer is not None and not self._timer.done():
            if self._timer_at <= at:
                return  # it wakes early and is then set again
            self._timer.cancel()
        self._timer_at = at
        self._timer = asyncio.create_task(self._ring(at), name="pacer timer")

    async def _ring(self, at: float) -> None:
        await self._clock.sleep(max(0.0, at - self._clock.monotonic()))
        self._timer = None
        self.pump()

    async def close(self) -> None:
        """Stop the timer and cancel all waiting requests, which would otherwise wait forever."""
        self._closed = True
        waiting, self._waiting = self._waiting, {}
        for ticket, granted in waiting.items():
            self._pacing.cancel(ticket)
            granted.cancel(_CLOSED)
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
            await asyncio.gather(timer, return_exceptions=True)
