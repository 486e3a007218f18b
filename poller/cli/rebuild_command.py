"""`poller rebuild`: a new ledger, and in plain words what it knows and what it cannot know."""

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn

from poller.cli import bootstrap
from poller.cli.lookup import counted
from poller.errors import UsageError
from poller.lock import StateLock, StorageLock
from poller.rebuild import Rebuilt, Trouble
from poller.rebuild import rebuild as make_anew
from poller.status import instant


def rebuild(paths: Sequence[Path], *, since: datetime | None, as_json: bool) -> int:
    """Make the new ledger and say what came of it.

    Raises LockHeld (75) beside a running poller, CannotStart or LedgerUnavailable (73).
    """
    if since is not None and since > bootstrap.now():
        raise UsageError("--since must not be in the future")
    settings = bootstrap.load(paths)
    with (
        StateLock(settings.state_directory, "rebuild"),
        StorageLock() as storage_lock,
        _progress() as progress,
    ):
        done = asyncio.run(
            make_anew(
                settings,
                since=since,
                now=bootstrap.now,
                progress=progress,
                storage_lock=storage_lock,
            )
        )
    if as_json:
        print(json.dumps(_shown(done), indent=2))
    else:
        for line in _lines(done):
            print(line)
    return 0


@contextmanager
def _progress() -> Iterator[Callable[[int], None]]:
    """Count on stderr where that is a terminal; how many there are is known at the end only."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.completed} sidecars"))
    with Progress(
        *columns, console=console, disable=not console.is_terminal, transient=True
    ) as bar:
        task = bar.add_task("sidecars", total=None)
        yield lambda count: bar.advance(task, count)


def _shown(done: Rebuilt) -> dict[str, Any]:
    return {
        "ledger": str(done.ledger),
        "kept_aside": None if done.kept_aside is None else str(done.kept_aside),
        "from": None if done.base is None else str(done.base),
        "snapshot_at": instant(done.base_at),
        "passed_over": list(done.passed_over),
        "sidecars": done.sidecars,
        "added": done.added,
        "carried_on": done.carried_on,
        "damaged": _named(done.damaged),
        "unreadable": _named(done.unreadable),
        "doubles": _named(done.doubles),
        "listed_from": instant(done.listed_from),
        "unknown_since": None if done.was_whole else instant(done.base_at),
        "unknown": _unknown(done),
    }


def _named(trouble: Trouble) -> dict[str, Any]:
    return {
        "count": trouble.count,
        "files": [{"path": path, "why": why} for path, why in trouble.named],
    }


def _lines(done: Rebuilt) -> Iterator[str]:
    for reason in done.passed_over:
        yield f"Not used: {reason}."
    yield _begun_with(done)
    yield (
        f"{counted(done.sidecars, 'sidecar was', 'sidecars were')} read: "
        f"{counted(done.added, 'fax', 'faxes')} became known as stored, "
        f"{done.carried_on} interrupted ones are carried on."
    )
    yield from _troubles(done.damaged, "damaged: the sidecar is there, but")
    yield from _troubles(done.unreadable, "no sidecar that can be read:")
    yield from _troubles(done.doubles, "left out:")
    yield (
        "Everything is listed again from each user's poll.start."
        if done.listed_from is None
        else f"Everything is listed again from {instant(done.listed_from)}."
    )
    if (unknown := _unknown(done)) is not None:
        yield unknown
    if done.kept_aside is not None:
        yield f"The ledger as it was is kept as {done.kept_aside}."


def _begun_with(done: Rebuilt) -> str:
    if done.was_whole:
        return "The ledger was whole; all of it was taken over."
    if done.base is None:
        return "No snapshot could be read; the new ledger begins empty."
    return f"The new ledger begins with {done.base} of {instant(done.base_at)}."


def _unknown(done: Rebuilt) -> str | None:
    """What no file tells: the promise of no second delivery does not hold for it."""
    if done.was_whole:
        return None
    if done.base is None:
        return (
            "It cannot know: faxes that were stored and then taken away are fetched again; what "
            "was pending, quarantined or dismissed before that time is found again only with an "
            "earlier --since."
        )
    return (
        f"It cannot know: faxes that were stored after {instant(done.base_at)} and have been taken "
        "away since are fetched again; what operators dismissed since then is not dismissed."
    )


def _troubles(trouble: Trouble, what: str) -> Iterator[str]:
    for path, why in trouble.named:
        yield f"{path}: {what} {why}."
    if trouble.count > len(trouble.named):
        yield f"… and {trouble.count - len(trouble.named)} more."
