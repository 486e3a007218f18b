"""eFax's time, without which poller lists nothing."""

import asyncio
from datetime import datetime

from poller.client import Client
from poller.clock import Clock
from poller.config.model import User
from poller.errors import AccountSuspended, ApiError, Unreachable
from poller.topic import see


class AgreedTime:
    """Asks /health until the server's time is known, at most three times, for all callers at once."""

    def __init__(self, client: Client, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._agreeing = asyncio.Lock()

    async def now(self, user: User) -> datetime:
        """Return eFax's time; raises Unreachable or AccountSuspended if it remains unknown."""
        if (now := self._known()) is not None:
            return now
        async with self._agreeing:
            for _ in range(3):
                if (now := self._known()) is not None:
                    return now
                await self._ask(user)
        if (now := self._known()) is None:
            raise Unreachable(
                see(
                    "eFax's clock and ours differ by more than a minute, and its answers do not "
                    "agree with each other: set this machine's clock",
                    "clock-wrong",
                )
            )
        return now

    def _known(self) -> datetime | None:
        clock = self._client.server_clock
        return clock.now(clock.our_now(self._clock.now(), self._clock.monotonic()))

    async def _ask(self, user: User) -> None:
        try:
            await self._client.health(user)
        except (Unreachable, AccountSuspended):
            raise
        except ApiError:
            return  # any answer has a Date header, even one that says there is no /health
