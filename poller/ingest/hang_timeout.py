"""An end to what would else never end, with its name in the log."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from poller import events, log

NO_PROGRESS_S = 120.0


@asynccontextmanager
async def cut_off_if_hung(what: str, account: str | None = None) -> AsyncIterator[None]:
    """Cut the block off after two minutes and say so; the loop around it continues with the next one."""
    deadline = asyncio.timeout(NO_PROGRESS_S)
    try:
        async with deadline:
            yield
    except TimeoutError:
        if not deadline.expired():
            raise  # its own, not ours
        log.say(events.Stalled(what, account))
