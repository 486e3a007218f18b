"""An answer's body as it streams in: bounded in size and in slowness."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import aiohttp

from poller.clock import Clock
from poller.efax import BODY_LIMIT, EVIDENCE_LIMIT
from poller.errors import BadAnswer, Unreachable


@dataclass(frozen=True)
class Timeouts:
    """Seconds that a request may take once it had its turn.

    An image has no limit in all, but its answer must begin within `total_s`, never be silent for
    `silence_s`, and bring `drip_bytes` in every `drip_s`: a slow drip would defeat the other two.
    """

    total_s: float = 60.0
    connect_s: float = 10.0
    silence_s: float = 30.0
    drip_s: float = 60.0
    drip_bytes: int = 64 << 10
    error_body_s: float = 5.0


class AnswerBody:
    """The body of one response; `head` keeps the first part of it as evidence.

    With `silence_s` no longer silence is waited for, whatever aiohttp does.
    """

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        clock: Clock,
        timeouts: Timeouts,
        *,
        silence_s: float | None = None,
    ) -> None:
        self.head = bytearray()
        self._silence_s = silence_s
        self._response = response
        self._clock = clock
        self._timeouts = timeouts

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

    async def body(self, limit: int = BODY_LIMIT) -> bytes:
        """Read the whole body, at most `limit` bytes of it."""
        body = bytearray()
        async for chunk in self.chunks():
            body += chunk
            if len(body) > limit:
                raise BadAnswer("The answer is larger than any list can be.")
        return bytes(body)
