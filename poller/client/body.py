"""An answer's body as it streams in, with limits on its size and slowness."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import aiohttp

from poller.client.ports import Timeouts
from poller.clock import Clock
from poller.efax.responses import BODY_LIMIT, EVIDENCE_LIMIT
from poller.errors import BadAnswer, Unreachable

T = TypeVar("T")


@dataclass
class AnswerBody:
    """The body of one response; `head` keeps the first part of it as evidence.

    `silence_s` limits each wait for the server, independently of aiohttp's own time-out.
    """

    _response: aiohttp.ClientResponse
    _clock: Clock
    _timeouts: Timeouts
    _silence_s: float | None
    head: bytearray = field(default_factory=bytearray)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body, unpacked; aiohttp unpacks in pieces, so a zip bomb does no harm.

        Only the wait for the server counts as slowness, not the caller's work on a chunk.
        """
        waited_s, brought = 0.0, 0
        while True:
            began = self._clock.monotonic()
            chunk = await self._next()
            if not chunk:
                return
            waited_s += self._clock.monotonic() - began
            brought += len(chunk)
            if brought >= self._timeouts.drip_bytes:
                waited_s, brought = 0.0, 0
            elif waited_s > self._timeouts.drip_s:
                raise Unreachable("The answer arrived too slowly, so poller gave it up.")
            if len(self.head) < EVIDENCE_LIMIT:
                self.head += chunk[: EVIDENCE_LIMIT - len(self.head)]
            yield chunk

    async def _next(self) -> bytes:
        """Read a chunk with our own time-out: after a MemoryError aiohttp loses its own."""
        try:
            async with asyncio.timeout(self._silence_s):
                return await self._response.content.readany()
        except TimeoutError as error:
            raise aiohttp.SocketTimeoutError from error


Reader = Callable[[AnswerBody], Awaitable[T]]


def whole(parse: Callable[[bytes], T]) -> Reader[T]:
    """Return a reader that parses the whole body, if it is no larger than any list can be."""

    async def read(answer: AnswerBody) -> T:
        body = bytearray()
        async for chunk in answer.chunks():
            body += chunk
            if len(body) > BODY_LIMIT:
                raise BadAnswer("The answer is too large to be a list.")
        return parse(bytes(body))

    return read
