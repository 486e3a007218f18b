"""Wait for a running service, show its progress, and stop waiting if there is none."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from poller.cli import bootstrap
from poller.cli.console import progress
from poller.config.model import Config
from poller.ledger import FaxRow, Ledger, State, faxes

LOOK_S = 0.5
GONE_S = 20.0  # systemd has restarted a service by then
Look = Callable[[], Awaitable[tuple[float, float, str]]]  # done, in all, note


async def wait(settings: Config, label: str, look: Look, *, hang_timeout_s: float) -> str | None:
    """Wait until `look` reports that all is done; else return why it stopped waiting."""
    seen_at = moved_at = time.monotonic()
    before: tuple[float, float, str] | None = None
    with progress(label) as show:
        while True:
            now = time.monotonic()
            done, total, note = state = await look()
            show(*state)
            if done >= total:
                return None
            if state != before:
                before, moved_at = state, now
            if bootstrap.is_running(settings):
                seen_at = now
            if now - seen_at > GONE_S:
                return "the service has stopped; the rest continues when it starts again"
            if now - moved_at > hang_timeout_s:
                why = f" ({note})" if note else ""
                return f"no progress for {hang_timeout_s:.0f} seconds{why}; the service continues"
            await asyncio.sleep(LOOK_S)


async def wait_for_faxes(
    settings: Config, ledger: Ledger, before: Sequence[FaxRow], *, hang_timeout_s: float
) -> str | None:
    """Wait until the service has tried each of these faxes again; `before` holds their rows then."""
    attempts = {fax.id: fax.attempts for fax in before}

    async def look() -> tuple[float, float, str]:
        rows = await ledger.read(faxes.some, list(attempts))
        open_ones = [row for row in rows if row.state in (State.PENDING, State.QUARANTINED)]
        untried = sum(row.attempts <= attempts[row.id] for row in open_ones)
        return len(rows) - untried, len(rows), ""

    return await wait(settings, "fetching", look, hang_timeout_s=hang_timeout_s)
