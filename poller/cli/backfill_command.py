"""`poller backfill`: list an old window once more, and fetch what was not known."""

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from poller import VERSION
from poller.cli import bootstrap
from poller.cli.console import say
from poller.cli.follow import Shown, progress, wait
from poller.cli.lookup import find_user
from poller.config.model import Config, User
from poller.errors import CannotStart, LedgerUnavailable, LockHeld, PollerError, UsageError
from poller.ingest.account import AccountRunner
from poller.ingest.backfill import BACKFILL_CAP
from poller.ingest.poll_run import PollOutcome
from poller.ingest.site import Site, open_site
from poller.ingest.stream_state import StreamState
from poller.ledger import Backfill, Found, Ledger, backfills, streams
from poller.lock import StateLock, StorageLock
from poller.metrics import Metrics
from poller.status import instant, span
from poller.window import Coverage, Interval

_PATIENCE_S = 2 * BACKFILL_CAP.total_seconds()  # so long it may do nothing between two attempts


class NotAtWork(PollerError):
    """The running daemon does not know the user yet; exit 1."""


class NothingToCancel(PollerError):
    """No backfill of the user waits; exit 1."""


@dataclass(frozen=True)
class BackfillReport:
    """The JSON of `backfill --json`, and what decides its exit code; `stopped`: why it is not through."""

    key: str
    asked: Backfill
    found: Found
    by_daemon: bool
    stopped: str | None

    @property
    def exit_code(self) -> int:
        left = self.asked.rest is not None or self.found.pending
        return 1 if left or self.found.failed or self.asked.not_listed else 0

    def shown(self) -> dict[str, Any]:
        account, _, user = self.key.partition("/")
        return {
            "account": account,
            "user": user,
            "from": instant(self.asked.window.start),
            "to": instant(self.asked.window.end),
            "by_daemon": self.by_daemon,
            "discovered": self.found.discovered,
            "stored": self.found.stored,
            "pending": self.found.pending,
            "failed": self.found.failed,
            "left": None if self.asked.rest is None else span(self.asked.rest),
            "not_listed": [
                {"from": instant(interval.start), "to": instant(interval.end), "why": reason}
                for interval, reason in self.asked.not_listed
            ],
            "stopped": self.stopped,
        }


def backfill(
    paths: Sequence[Path], key: str, start: datetime | None, end: datetime | None, *, as_json: bool
) -> int:
    """List and fetch an old window; beside a daemon that does it. Raises UsageError (2), NotAtWork."""
    if start is None or end is None:
        raise UsageError("backfill takes --from TIME and --to TIME, or --cancel")
    settings = bootstrap.load(paths)
    user = _configured(settings, key)
    window = _window(start, end)
    report = _alone_or_beside(settings, user, window, as_json=as_json)
    if as_json:
        print(json.dumps(report.shown()))
    else:
        _print(report)
    return report.exit_code


def cancel(paths: Sequence[Path], key: str, window: tuple[object, object], *, as_json: bool) -> int:
    """End all backfills of a user that wait, beside a daemon too. Raises NothingToCancel (1)."""
    if window != (None, None):
        raise UsageError("--cancel ends all backfills of the user; it takes no --from or --to")
    ended = asyncio.run(_cancel(bootstrap.load(paths), key))
    if not ended:
        raise NothingToCancel(f"{key} has no backfill that waits; `poller status` shows them")
    if as_json:
        print(json.dumps({"cancelled": [span(one.window) for one in ended]}))
    else:
        for one in ended:
            print(f"cancelled  {_from_to(one.window)}")
    return 0


async def _cancel(settings: Config, key: str) -> list[Backfill]:
    async with bootstrap.ledger_beside(settings, readonly=False) as ledger:
        row = await find_user(ledger, key)
        return await ledger.write(backfills.withdraw, row.id, bootstrap.now())


def _configured(settings: Config, key: str) -> User:
    for user in settings.users:
        if f"{user.account}/{user.name}" == key:
            return user
    raise UsageError(f"{key}: the configuration has no such ACCOUNT/USER")


def _window(start: datetime, end: datetime) -> Interval:
    if start >= end:
        raise UsageError("--from is not before --to")
    if start >= bootstrap.now():
        raise UsageError("--from is still to come")
    if end > bootstrap.now():
        raise UsageError("--to is still to come: what comes in from now on, the polls list")
    return Interval(start, end)


def _alone_or_beside(
    settings: Config, user: User, window: Interval, *, as_json: bool
) -> BackfillReport:
    if not bootstrap.is_running(settings):
        bootstrap.read_all_secrets(settings)  # before anything is touched
    with ExitStack() as held:
        try:
            held.enter_context(StateLock(settings.state_directory, "backfill"))
        except LockHeld:
            if not bootstrap.is_running(settings):
                raise  # what holds it does nothing for others
            return asyncio.run(_beside(settings, user, window))
        storage_lock = held.enter_context(StorageLock())
        quiet = replace(settings, log=replace(settings.log, level="warning"))
        bootstrap.start_log(quiet, sys.stderr if as_json else None)
        return asyncio.run(_alone(settings, user, window, storage_lock))


# -- beside a daemon -------------------------------------------------------------------------------


async def _beside(settings: Config, user: User, window: Interval) -> BackfillReport:
    key = f"{user.account}/{user.name}"
    async with bootstrap.ledger_beside(settings, readonly=False) as ledger:
        rows = await ledger.read(streams.all_streams, include_removed=False)
        known = [row.id for row in rows if (row.app_id, row.user_id) == (user.app_id, user.user_id)]
        if not known:
            raise NotAtWork(f"the running service does not know {key} yet: reload it first")
        asked = await ledger.write(backfills.ask, known[0], window, bootstrap.now())
        print(
            "The running service does it, also when this command is interrupted.", file=sys.stderr
        )

        async def look() -> tuple[float, float, str]:
            if (await ledger.read(streams.one, known[0])).removed:
                raise NotAtWork(
                    f"the service was reloaded without {key}; what is left waits until the user is "
                    "configured again"
                )
            return _progress(
                await ledger.read(backfills.one, asked.id),
                await ledger.read(backfills.found, asked.id),
            )

        try:
            stopped = await wait(settings, f"backfilling {key}", look, patience_s=_PATIENCE_S)
        except NotAtWork as gone:
            stopped = str(gone)
        return await _report(ledger, key, asked, by_daemon=True, stopped=stopped)


def _progress(asked: Backfill, found: Found) -> tuple[float, float, str]:
    """Listing is counted by time, with a second for each fax that is to be tried yet."""
    left_s = 0.0 if asked.rest is None or asked.withdrawn else asked.rest.length.total_seconds()
    total_s = asked.window.length.total_seconds()
    more = f"{found.discovered} discovered, {found.stored} stored"
    trouble = f", {asked.last_error}" if asked.last_error else ""
    return total_s - left_s, total_s + found.pending, more + trouble


async def _report(
    ledger: Ledger, key: str, asked: Backfill, *, by_daemon: bool, stopped: str | None
) -> BackfillReport:
    now = await ledger.read(backfills.one, asked.id)
    if now.withdrawn:
        stopped = "it was cancelled"
    return BackfillReport(
        key, now, await ledger.read(backfills.found, asked.id), by_daemon, stopped
    )


# -- without one -----------------------------------------------------------------------------------


async def _alone(
    settings: Config, user: User, window: Interval, storage_lock: StorageLock
) -> BackfillReport:
    key = f"{user.account}/{user.name}"
    async with open_site(
        settings, os.environ, metrics=Metrics(VERSION), storage_lock=storage_lock
    ) as site:
        if not await site.shop.gate.check():
            raise CannotStart(f"the storage is unusable: {site.shop.gate.reason}")
        account, state = _only(site, key)
        ledger, clock = site.shop.ledger, site.shop.clock
        asked = await ledger.write(backfills.ask, state.id, window, clock.now())
        await state.reread()
        with progress(f"backfilling {key}") as show:
            showing = asyncio.create_task(_show(ledger, asked, show), name="progress")
            try:
                stopped = await _list(account, state)
                await account.workers.run_until_idle()
            finally:
                showing.cancel()
        return await _report(ledger, key, asked, by_daemon=False, stopped=stopped)


def _only(site: Site, key: str) -> tuple[AccountRunner, StreamState]:
    """Leave all other users to the daemon."""
    found: list[tuple[AccountRunner, StreamState]] = []
    for account in site.accounts.values():
        for state in list(account.states.values()):
            if state.key == key:
                found.append((account, state))
            else:
                del account.states[state.id]
        account.client.suspension.user_count = len(account.states)
    return found[0]


async def _list(account: AccountRunner, state: StreamState) -> str | None:
    """List until it is through; the reason when eFax does not serve us now: the request stays."""
    while state.progress.backfill_waits:
        outcome = await account.backfill(state)
        if outcome.error is not None or not state.progress.backfill_waits:
            return _why(outcome)
        clock = account.shop.clock
        await clock.sleep(max(0.0, state.backfill_not_before - clock.monotonic()))
    return None


def _why(outcome: PollOutcome) -> str | None:
    if outcome.error is None:
        return None
    return f"{outcome.error} The next run, or the same command again, goes on from here"


async def _show(ledger: Ledger, asked: Backfill, show: Shown) -> None:
    while True:
        with suppress(LedgerUnavailable):  # whoever writes to it says so
            show(
                *_progress(
                    await ledger.read(backfills.one, asked.id),
                    await ledger.read(backfills.found, asked.id),
                )
            )
        await asyncio.sleep(1.0)


# -- what is said ----------------------------------------------------------------------------------


def _from_to(interval: Interval) -> str:
    return f"{instant(interval.start)} to {instant(interval.end)}"


def _print(report: BackfillReport) -> None:
    console = Console()
    whys: dict[str, Coverage] = {}
    for interval, reason in report.asked.not_listed:
        whys[reason] = whys.get(reason, Coverage()).add(interval)
    for reason, coverage in whys.items():
        for one in coverage.intervals:
            say(console, f"not listed  {_from_to(one)}: {reason}", "bold red")
    if report.asked.rest is not None:
        left = "not listed any more" if report.asked.withdrawn else "still to be listed"
        say(console, f"{left}  {_from_to(report.asked.rest)}", "bold red")
    if report.stopped is not None:
        say(console, report.stopped, "bold red")
    table = Table(show_header=False, box=None)
    for name in ("discovered", "stored", "pending", "failed"):
        table.add_row(name, str(getattr(report.found, name)))
    console.print(table)
