"""`poller rebuild`: make a new ledger, and say plainly what it knows and what it cannot know."""

import asyncio
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

from poller import config
from poller import rebuild as rebuilding
from poller.cli import bootstrap
from poller.cli.console import answer, progress
from poller.cli.lookup import counted
from poller.errors import UsageError
from poller.lock import StateLock, StorageLock
from poller.rebuild import Rebuilt, Trouble
from poller.status import instant


def rebuild(
    paths: Sequence[Path], *, since: datetime | None, old: Path | None, as_json: bool
) -> int:
    """Make the new ledger, with what the ledger of the configuration `old` knows; print what is in it.

    Raises LockHeld (75) beside a running poller, CannotStart or LedgerUnavailable (73).
    """
    if since is not None and since > bootstrap.now():
        raise UsageError("--since must not be in the future")
    settings = bootstrap.load(paths)
    of = None if old is None else config.load([old])
    directories = {one.state_directory for one in (settings, of) if one is not None}
    with (
        ExitStack() as locks,
        StorageLock() as storage_lock,
        progress("rebuilding") as show,
    ):
        for directory in sorted(directories):
            locks.enter_context(StateLock(directory, "rebuild"))
        done = asyncio.run(
            rebuilding.rebuild(
                settings,
                os.environ,
                since=since,
                now=bootstrap.now,
                progress=lambda count: show(count, None, f"{count:,} sidecars"),
                storage_lock=storage_lock,
                of=of,
            )
        )
    answer(_shown(done), lambda: print(*_lines(done), sep="\n"), as_json=as_json, indent=2)
    return 0


def _shown(done: Rebuilt) -> dict[str, Any]:
    return {
        "ledger": done.ledger,
        "kept_aside": done.kept_aside,
        "from": done.base,
        "snapshot_at": done.base_at,
        "passed_over": done.passed_over,
        "sidecars": done.sidecars,
        "added": done.added,
        "carried_on": done.carried_on,
        "damaged": _named(done.damaged),
        "unreadable": _named(done.unreadable),
        "doubles": _named(done.doubles),
        "listed_from": done.listed_from,
        "unknown_since": None if done.was_whole else done.base_at,
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
    if done.was_whole:
        yield "The old ledger was whole; the new one contains all of it."
    elif done.base is None:
        yield "There was no readable snapshot; the new ledger started empty."
    else:
        yield f"The new ledger started from {done.base} of {instant(done.base_at)}."
    yield (
        f"Read {counted(done.sidecars, 'sidecar', 'sidecars')}: "
        f"{counted(done.added, 'fax', 'faxes')} added as stored, "
        f"{done.carried_on} interrupted ones continue."
    )
    for trouble, what in (
        (done.damaged, "damaged: the sidecar is there, but"),
        (done.unreadable, "not a readable sidecar:"),
        (done.doubles, "left out:"),
    ):
        for path, why in trouble.named:
            yield f"{path}: {what} {why}."
        if trouble.count > len(trouble.named):
            yield f"… and {trouble.count - len(trouble.named)} more."
    since = "each user's poll.start" if done.listed_from is None else instant(done.listed_from)
    yield f"The service will list everything again from {since}."
    if (unknown := _unknown(done)) is not None:
        yield unknown
    if done.kept_aside is not None:
        yield f"The old ledger is kept as {done.kept_aside}."


def _unknown(done: Rebuilt) -> str | None:
    """Return what no file records; poller may deliver these faxes a second time."""
    if done.was_whole:
        return None
    if done.base is None:
        return (
            "The new ledger cannot know which faxes consumers took away: poller fetches those again. "
            "It finds faxes that were pending, quarantined or dismissed before that time only with "
            "an earlier --since."
        )
    return (
        f"The new ledger cannot know what happened after {instant(done.base_at)}: poller fetches "
        "faxes again that were stored and taken away since, and dismissals since then are undone."
    )
