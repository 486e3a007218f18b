"""Wait for what a running daemon does, with progress, and never for ever."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from poller.cli import bootstrap
from poller.config.model import Config
from poller.ledger import FaxRow, Ledger, State, faxes

LOOK_S = 0.5
GONE_S = 20.0  # a daemon that systemd starts anew is back by then
Shown = Callable[[float, float, str], None]  # how much of how much, and what else is to be said


async def wait(
    settings: Config,
    label: str,
    look: Callable[[], Awaitable[tuple[float, float, str]]],
    *,
    patience_s: float,
) -> str | None:
    """Wait until `look` says that all is done; the reason where it is waited no longer.

    `look` gives how much of how much is done, and what else is to be shown.
    """
    began = seen_at = moved_at = time.monotonic()
    before: tuple[float, float, str] | None = None
    with progress(label) as show:
        while True:
            now = time.monotonic()
            done, total, more = state = await look()
            show(*state)
            if done >= total:
                return None
            if state != before:
                before, moved_at = state, now
            if bootstrap.is_running(settings):
                seen_at = now
            if now - max(seen_at, began) > GONE_S:
                return "the service has stopped; it goes on when it is started again"
            if now - moved_at > patience_s:
                why = f" ({more})" if more else ""
                return f"nothing has come on for {patience_s:.0f} seconds{why}; the service goes on"
            await asyncio.sleep(LOOK_S)


async def wait_for_faxes(
    settings: Config, ledger: Ledger, before: Sequence[FaxRow], *, patience_s: float
) -> str | None:
    """Wait until each of these faxes was tried once more; `before` is how they were asked for."""
    attempts = {fax.id: fax.attempts for fax in before}

    async def look() -> tuple[float, float, str]:
        rows = await ledger.read(faxes.some, list(attempts))
        open_ones = [row for row in rows if row.state in (State.PENDING, State.QUARANTINED)]
        untried = sum(row.attempts <= attempts[row.id] for row in open_ones)
        return len(rows) - untried, len(rows), ""

    return await wait(settings, "fetching", look, patience_s=patience_s)


@contextmanager
def progress(label: str) -> Iterator[Shown]:
    """A bar on stderr where that is a terminal, else nothing."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[more]}", markup=False),
    )
    with Progress(
        *columns, console=console, disable=not console.is_terminal, transient=True
    ) as bar:
        task = bar.add_task(label, total=None, more="")
        yield lambda done, total, more: bar.update(task, completed=done, total=total, more=more)
