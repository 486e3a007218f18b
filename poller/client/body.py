"""An answer's body as it streams in: bounded in size and in slowness."""

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

    With `silence_s` no longer silence is waited for, whatever aiohttp does.
    """

    _response: aiohttp.ClientResponse
    _clock: Clock
    _timeouts: Timeouts
    _silence_s: float | None
    head: bytearray = field(default_factory=bytearray)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body, unpacked; aiohttp unpacks piece by piece, so a bomb stays small.

        Only waiting for the server counts as slowness, not what the caller does with a chunk.
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
                raise Unreachable("The answer only drips in; it was given up.")
            if len(self.head) < EVIDENCE_LIMIT:
                self.head += chunk[: EVIDENCE_LIMIT - len(self.head)]
            yield chunk

    async def _next(self) -> bytes:
        """Where aiohttp finds no memory for what it reads, it drops its time-out with the rest."""
        try:
            async with asyncio.timeout(self._silence_s):
                return await self._response.content.readany()
        except TimeoutError as error:
            raise aiohttp.SocketTimeoutError from error


Reader = Callable[[AnswerBody], Awaitable[T]]


def whole(parse: Callable[[bytes], T]) -> Reader[T]:
    """Make a reader that parses the whole body, as long as it is no longer than any list can be."""

    async def read(answer: AnswerBody) -> T:
        body = bytearray()
        async for chunk in answer.chunks():
            body += chunk
            if len(body) > BODY_LIMIT:
                raise BadAnswer("The answer is larger than any list can be.")
        return parse(bytes(body))

    return read
