"""`poller backfill`: list an old window again and fetch the faxes that are new."""

import asyncio
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from poller.cli import bootstrap
from poller.cli.console import Advance, answer, print_figures, progress, say
from poller.cli.follow import wait
from poller.cli.foreground import keep_only, require_configured, work_or_follow
from poller.cli.lookup import NotDone, find_user
from poller.config.model import Config
from poller.errors import LedgerUnavailable, UsageError
from poller.ingest.account import AccountRunner
from poller.ingest.backfill import BACKFILL_CAP
from poller.ingest.runtime import Runtime
from poller.ingest.stream_state import StreamState
from poller.ledger import Backfill, Ledger, backfills, streams
from poller.status import instant
from poller.stream import label
from poller.window import Coverage, Interval

_HANG_TIMEOUT_S = 2 * BACKFILL_CAP.total_seconds()  # between two attempts it may be idle
_CANCELLED = "it was cancelled"
_FIGURES = ("discovered", "stored", "pending", "failed")


def backfill(
    paths: Sequence[Path],
    *,
    key: str,
    start: datetime | None,
    end: datetime | None,
    cancel: bool,
    as_json: bool,
) -> int:
    """List and fetch an old window, or have a running service do it. Raises UsageError, NotDone."""
    if cancel:
        return _cancel(paths, key, (start, end), as_json=as_json)
    if start is None or end is None:
        raise UsageError("backfill takes --from TIME and --to TIME, or --cancel")
    settings = bootstrap.load(paths)
    require_configured(settings, key)
    window = _window(start, end)
    if not bootstrap.is_running(settings):
        bootstrap.read_all_secrets(settings)  # before it changes anything
    report = work_or_follow(
        settings,
        "backfill",
        sys.stderr if as_json else None,
        work=partial(_work, key, window),
        follow=partial(_follow, settings, key, window),
        key=key,
    )
    answer(report, lambda: _print(report), as_json=as_json)
    is_done = report["left"] is None and not report["not_listed"]
    return 0 if is_done and not report["pending"] and not report["failed"] else 1


def _cancel(
    paths: Sequence[Path], key: str, window: tuple[object, object], *, as_json: bool
) -> int:
    """Cancel a user's waiting backfills, also beside a running service. Raises NotDone (1)."""
    if window != (None, None):
        raise UsageError("--cancel ends all of the user's backfills; leave out --from and --to")
    ended = asyncio.run(_withdraw(bootstrap.load(paths), key))
    if not ended:
        raise NotDone(f"{key} has no waiting backfill; `poller status` lists those of all users")
    answer(
        {"cancelled": [one.window for one in ended]},
        lambda: print(*(f"cancelled  {_from_to(one.window)}" for one in ended), sep="\n"),
        as_json=as_json,
    )
    return 0


async def _withdraw(settings: Config, key: str) -> list[Backfill]:
    async with bootstrap.ledger_beside(settings, readonly=False) as ledger:
        row = await find_user(ledger, key)
        return await ledger.write(backfills.withdraw, row.id, bootstrap.now())


def _window(start: datetime, end: datetime) -> Interval:
    if start >= end:
        raise UsageError("--from is not before --to")
    if start >= bootstrap.now():
        raise UsageError("--from is in the future")
    if end > bootstrap.now():
        raise UsageError("--to is in the future; polls list the faxes that arrive from now on")
    return Interval(start, end)


# -- beside a service ------------------------------------------------------------------------------


async def _follow(settings: Config, key: str, window: Interval) -> dict[str, Any]:
    (wanted,) = (
        (user.app_id, user.user_id, direction)
        for user, direction in settings.streams
        if label(*user.names, direction) == key
    )
    async with bootstrap.ledger_beside(settings, readonly=False) as ledger:
        rows = await ledger.read(streams.all_streams, include_removed=False)
        known = [row.id for row in rows if (row.app_id, row.user_id, row.direction) == wanted]
        if not known:
            raise NotDone(
                f"the running service does not know {key} yet: `systemctl reload poller` first"
            )
        asked = await ledger.write(backfills.ask, known[0], window, bootstrap.now())
        print(
            "The running service does the backfill, even if you interrupt this command.",
            file=sys.stderr,
        )

        async def look() -> tuple[float, float, str]:
            if (await ledger.read(streams.one, known[0])).removed:
                raise NotDone(
                    f"the service was reloaded without {key}; the rest waits until the user is "
                    "configured again"
                )
            return await _progress(ledger, asked)

        try:
            stopped = await wait(
                settings, f"backfilling {key}", look, hang_timeout_s=_HANG_TIMEOUT_S
            )
        except NotDone as gone:
            stopped = str(gone)
        return await _report(ledger, key, asked, by_daemon=True, stopped=stopped)


async def _progress(ledger: Ledger, asked: Backfill) -> tuple[float, float, str]:
    """Measure listing in seconds of the window, and count one second per fax still to be tried."""
    now = await ledger.read(backfills.one, asked.id)
    found = await ledger.read(backfills.found, asked.id)
    left_s = 0.0 if now.rest is None or now.withdrawn else now.rest.length.total_seconds()
    total_s = now.window.length.total_seconds()
    trouble = f", {now.last_error}" if now.last_error else ""
    note = f"{found.discovered} discovered, {found.stored} stored{trouble}"
    return total_s - left_s, total_s + found.pending, note


async def _report(
    ledger: Ledger, key: str, asked: Backfill, *, by_daemon: bool, stopped: str | None
) -> dict[str, Any]:
    """Return the JSON of `backfill`; `stopped` is why it did not finish."""
    now = await ledger.read(backfills.one, asked.id)
    found = await ledger.read(backfills.found, asked.id)
    account, _, user = key.partition("/")
    return {
        "account": account,
        "user": user,
        "from": now.window.start,
        "to": now.window.end,
        "by_daemon": by_daemon,
        **{name: getattr(found, name) for name in _FIGURES},
        "left": now.rest,
        "not_listed": [
            {"from": interval.start, "to": interval.end, "why": reason}
            for interval, reason in now.not_listed
        ],
        "stopped": _CANCELLED if now.withdrawn else stopped,
    }


# -- without one -----------------------------------------------------------------------------------


async def _work(key: str, window: Interval, runtime: Runtime) -> dict[str, Any]:
    keep_only(runtime, key)
    (state,) = (one for one in runtime.streams if one.key == key)
    account = runtime.accounts[state.user.app_id]
    ledger = account.services.ledger
    asked = await ledger.write(backfills.ask, state.id, window, runtime.services.clock.now())
    await state.reread()
    with progress(f"backfilling {key}") as show:
        showing = asyncio.create_task(_show(ledger, asked, show), name="progress")
        try:
            stopped = await _list(account, state)
            await account.lanes[state.direction].workers.run_until_idle()
        finally:
            showing.cancel()
    return await _report(ledger, key, asked, by_daemon=False, stopped=stopped)


async def _list(account: AccountRunner, state: StreamState) -> str | None:
    """List to the end, or return why eFax does not serve us now; the request then stays."""
    while state.progress.backfill_waits:
        error = (await account.backfill(state)).error
        if error is not None:
            return f"{error} The next run continues from here, or repeat this command"
        if state.progress.backfill_waits:
            clock = account.services.clock
            await clock.sleep(max(0.0, state.backfill_not_before - clock.monotonic()))
    return None


async def _show(ledger: Ledger, asked: Backfill, show: Advance) -> None:
    while True:
        with suppress(LedgerUnavailable):  # the code that writes to it reports this
            show(*await _progress(ledger, asked))
        await asyncio.sleep(1.0)


# -- the output ------------------------------------------------------------------------------------


def _from_to(interval: Interval) -> str:
    return f"{instant(interval.start)} to {instant(interval.end)}"


def _print(report: dict[str, Any]) -> None:
    whys: dict[str, Coverage] = {}
    for one in report["not_listed"]:
        interval = Interval(one["from"], one["to"])
        whys[one["why"]] = whys.get(one["why"], Coverage()).add(interval)
    for reason, coverage in whys.items():
        for interval in coverage.intervals:
            say(f"not listed  {_from_to(interval)}: {reason}", "bold red")
    if report["left"] is not None:
        is_cancelled = report["stopped"] == _CANCELLED
        left = "will not be listed" if is_cancelled else "still to be listed"
        say(f"{left}  {_from_to(report['left'])}", "bold red")
    if report["stopped"] is not None:
        say(report["stopped"], "bold red")
    print_figures({name: report[name] for name in _FIGURES})
