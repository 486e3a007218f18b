"""A time-out for work that might never end, with its name in the log."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from poller import events, log

NO_PROGRESS_S = 120.0


@asynccontextmanager
async def cut_off_if_hung(what: str, account: str | None = None) -> AsyncIterator[None]:
    """Cut the block off after two minutes and log it; the loop around it continues."""
    deadline = asyncio.timeout(NO_PROGRESS_S)
    try:
        async with deadline:
            yield
    except TimeoutError:
        if not deadline.expired():
            raise  # the block's own time-out, not ours
        log.say(events.Stalled(what, account))
