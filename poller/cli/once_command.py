"""`poller once`: poll every user once, fetch all that is due, say what came of it."""

import asyncio
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from poller import VERSION
from poller.cli import bootstrap, stdio
from poller.cli.troubles import Troubles, Waits
from poller.config.model import Config
from poller.errors import CannotStart, UsageError
from poller.ingest.account import AccountRunner
from poller.ingest.fetch import Outcome
from poller.ingest.poll_run import PollOutcome
from poller.ingest.site import Site, open_site
from poller.ingest.stream_state import StreamState
from poller.ledger import FaxRow, jobs, streams
from poller.lock import StateLock, StorageLock
from poller.metrics import Metrics


@dataclass
class Summary:
    """The JSON of `once --json`, and what decides its exit code."""

    polled: int = 0
    failed_polls: int = 0
    discovered: int = 0
    stored: int = 0
    pending: int = 0
    quarantined: int = 0
    failed_fetches: int = 0
    failed_proofs: int = 0
    unusable: str | None = None
    troubles: Troubles = field(default_factory=Troubles)

    @property
    def exit_code(self) -> int:
        """*Not yet* is no failure."""
        return 1 if self.failed_polls or self.failed_fetches or self.failed_proofs else 0

    def shown(self) -> dict[str, int]:
        return {
            "polled": self.polled,
            "failed_polls": self.failed_polls,
            "discovered": self.discovered,
            "stored": self.stored,
            "pending": self.pending,
            "quarantined": self.quarantined,
        }


def once(paths: Sequence[Path], *, user: str | None, as_json: bool) -> int:
    """Do one round; raises UsageError for an unknown user, CannotStart for unusable storage."""
    settings = bootstrap.load(paths)
    if user is not None:
        _require_known(settings, user)
    bootstrap.read_all_secrets(settings)
    with StateLock(settings.state_directory, "once"), StorageLock() as storage_lock:
        # What happens on the way is for whoever runs it by cron; JSON stands alone on stdout.
        bootstrap.start_log(_quiet(settings), sys.stderr if as_json else None)
        summary = asyncio.run(_once(settings, user, storage_lock))
    _show(summary, as_json=as_json)
    for sentence in summary.troubles.sentences():
        stdio.complain(f"poller: {sentence}")
    if summary.unusable is not None:
        raise CannotStart(f"the storage became unusable on the way: {summary.unusable}")
    return summary.exit_code


def _quiet(settings: Config) -> Config:
    """Leave the polls that found something to the summary."""
    level = "warning" if settings.log.level == "info" else settings.log.level
    return replace(settings, log=replace(settings.log, level=level))


def _require_known(settings: Config, user: str) -> None:
    if user not in {f"{one.account}/{one.name}" for one in settings.users}:
        raise UsageError(f"--user {user}: the configuration has no such ACCOUNT/USER")


async def _once(settings: Config, only: str | None, storage_lock: StorageLock) -> Summary:
    async with open_site(
        settings, os.environ, metrics=Metrics(VERSION), storage_lock=storage_lock
    ) as site:
        if not await site.shop.gate.check():
            raise CannotStart(f"the storage is unusable: {site.shop.gate.reason}")
        if only is not None:
            _keep_only(site, only)
        summary = Summary()
        with _progress() as progress:
            await asyncio.gather(
                *(
                    _round(account, summary, progress)
                    for account in site.accounts.values()
                    if account.states
                )
            )
        await _sum_up(site, summary)
    return summary


async def _sum_up(site: Site, summary: Summary) -> None:
    """Note what remains, and why."""
    mine = {state.id: state for state in site.states}
    rows = [row for row in await site.shop.ledger.read(streams.all_streams) if row.id in mine]
    remains = bootstrap.totals(rows)
    summary.pending, summary.quarantined = remains["pending"], remains["quarantined"]
    summary.unusable = site.shop.gate.reason
    for waiting in await site.shop.ledger.read(jobs.waiting):
        if waiting.stream in mine and summary.unusable is None:
            state = mine[waiting.stream]
            suspended = site.accounts[state.user.app_id].client.suspension.reason
            summary.troubles.faxes_wait(state.key, waiting, suspended)
    for account in site.accounts.values():
        now = site.shop.clock.now()
        if account.is_suspended:
            waits = await site.shop.ledger.read(jobs.streams_with_due, account.account.app_id, now)
            summary.failed_fetches += bool(waits)


def _keep_only(site: Site, key: str) -> None:
    for account in site.accounts.values():
        for state in list(account.states.values()):
            if state.key != key:
                del account.states[state.id]
        account.client.suspension.user_count = len(account.states)


async def _round(account: AccountRunner, summary: Summary, progress: "Backlog") -> None:
    """Poll all users of one account, then fetch all that is due there."""

    def fetched(_fax: FaxRow, outcome: Outcome) -> None:
        summary.stored += outcome is Outcome.STORED
        summary.failed_fetches += outcome in (
            Outcome.FAILED,
            Outcome.QUARANTINED,
            Outcome.POSTPONED,
        )
        progress.fetched()

    account.on_fetched = fetched
    account.on_wait = Waits(account.account.name).say
    turns = asyncio.Semaphore(max(1, account.account.limits.in_flight))

    async def poll(state: StreamState) -> tuple[str, PollOutcome]:
        async with turns:
            # Whoever runs `once` wants to know now whether a refused user is still refused.
            state.ask_anyway = True
            outcome = await _polled(account, state)
        if outcome.failed or outcome.skipped is not None:
            summary.failed_polls += 1
        summary.polled += 1
        summary.discovered += len(outcome.discovered)
        return state.key, outcome

    ended = await asyncio.gather(*(poll(state) for state in account.states.values()))
    error = await account.settle()
    suspended = account.client.suspension.reason
    for whose, outcome in ended:  # only now it is known whether it is the account's fault
        summary.troubles.poll_ended(whose, outcome, suspended)
    if error is not None:
        summary.failed_proofs += 1
        summary.troubles.unproved(account.account.name, error, suspended)
    rows = await account.shop.ledger.read(streams.all_streams, include_removed=False)
    progress.expect(sum(row.pending for row in rows if row.id in account.states))
    await account.workers.run_until_idle()


async def _polled(account: AccountRunner, state: StreamState) -> PollOutcome:
    """A bug that one user's poll meets is that user's alone."""
    try:
        return await account.poll(state)
    except Exception as bug:  # noqa: BLE001 - the others go on
        return await account.broke_off(state, bug)


class Backlog:
    """The progress bar of the faxes to fetch, all accounts together."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("fetching", total=0, visible=False)
        self._total = 0

    def expect(self, count: int) -> None:
        self._total += count
        self._bar.update(self._task, total=self._total, visible=self._total > 0)

    def fetched(self) -> None:
        self._bar.advance(self._task)


@contextmanager
def _progress() -> Iterator[Backlog]:
    """A bar on stderr where that is a terminal, else nothing."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, disable=not console.is_terminal, transient=True
    ) as bar:
        yield Backlog(bar)


def _show(summary: Summary, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(summary.shown()))
        return
    table = Table(show_header=False, box=None)
    for name, value in summary.shown().items():
        table.add_row(name.replace("_", " "), str(value))
    Console().print(table)
