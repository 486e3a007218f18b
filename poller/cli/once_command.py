"""`poller once`: poll every user once, fetch all faxes that are due, print a summary."""

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from poller.cli import bootstrap, stdio
from poller.cli.console import Advance, answer, print_figures, progress
from poller.cli.foreground import holding, in_runtime, keep_only, require_configured
from poller.cli.troubles import Troubles, waits_of
from poller.errors import CannotStart
from poller.ingest.account import AccountRunner
from poller.ingest.fetch import Outcome
from poller.ingest.poll_run import PollOutcome
from poller.ingest.runtime import Runtime
from poller.ingest.stream_state import StreamState
from poller.ledger import FaxRow, failing, jobs, streams
from poller.stream import Direction

_SUMMARY = ("polled", "failed_polls", "discovered", "stored", "pending", "quarantined")


@dataclass
class Round:
    """The outcome of the round: its figures and the exit code; *not yet* is no failure."""

    figures: dict[Direction, dict[str, int]]
    troubles: Troubles = field(default_factory=Troubles)
    failed: bool = False
    unusable: str | None = None
    to_fetch: int = 0
    fetched: int = 0

    @property
    def summary(self) -> dict[str, Any]:
        """Return the figures of received faxes; `sent` holds those of archived sent faxes, if any."""
        sent = self.figures.get(Direction.SENT)
        return self.figures[Direction.RECEIVED] | ({"sent": sent} if sent else {})

    def print(self) -> None:
        for direction, figures in self.figures.items():
            before = "" if direction is Direction.RECEIVED else f"{direction} "
            print_figures({f"{before}{name}": count for name, count in figures.items()})


def once(paths: Sequence[Path], *, user: str | None, as_json: bool) -> int:
    """Do one round. Raises UsageError for an unknown user, CannotStart for unusable storage."""
    settings = bootstrap.load(paths)
    if user is not None:
        require_configured(settings, user, "--user ")
    bootstrap.read_all_secrets(settings)
    # The log goes to stderr, where cron mails it; stdout holds the JSON alone.
    with holding(settings, "once", sys.stderr if as_json else None) as storage_lock:
        done = asyncio.run(in_runtime(settings, storage_lock, partial(_once, user), key=user))
    answer(done.summary, done.print, as_json=as_json)
    for sentence in done.troubles.sentences():
        stdio.complain(f"poller: {sentence}")
    if done.unusable is not None:
        raise CannotStart(f"the storage became unusable during the round: {done.unusable}")
    return 1 if done.failed else 0


async def _once(only: str | None, runtime: Runtime) -> Round:
    if only is not None:
        keep_only(runtime, only)
    directions = [Direction.RECEIVED, *sorted({one.direction for one in runtime.streams})]
    done = Round({direction: dict.fromkeys(_SUMMARY, 0) for direction in directions})
    with progress("fetching") as show:
        for direction in done.figures:
            accounts = [one for one in runtime.accounts.values() if one.lanes[direction].states]
            await asyncio.gather(*(_round(one, direction, done, show) for one in accounts))
    await _sum_up(runtime, done)
    return done


async def _sum_up(runtime: Runtime, done: Round) -> None:
    ledger = runtime.services.ledger
    mine = {state.id: state for state in runtime.streams}
    for row in await ledger.read(streams.all_streams):
        if row.id in mine:
            done.figures[row.direction]["pending"] += row.pending
            done.figures[row.direction]["quarantined"] += row.quarantined
    done.unusable = runtime.services.gate.reason
    for waiting in await ledger.read(failing.waiting):
        if waiting.stream in mine and done.unusable is None:
            state = mine[waiting.stream]
            suspended = runtime.accounts[state.user.app_id].client.suspension.reason
            done.troubles.faxes_wait(state.key, waiting, suspended)
    for account in runtime.accounts.values():
        if account.is_suspended:
            now = runtime.services.clock.now()
            done.failed |= bool(
                await ledger.read(jobs.streams_with_due, account.account.app_id, now)
            )


async def _round(account: AccountRunner, direction: Direction, done: Round, show: Advance) -> None:
    """Poll all streams of one account and direction, then fetch all their faxes that are due."""

    def show_fetched() -> None:
        note = f"{done.fetched:,} of {done.to_fetch:,}" if done.to_fetch else ""
        show(done.fetched, done.to_fetch or None, note)

    def fetched(_fax: FaxRow, outcome: Outcome) -> None:
        done.figures[direction]["stored"] += outcome is Outcome.STORED
        done.failed |= outcome in (Outcome.FAILED, Outcome.QUARANTINED, Outcome.POSTPONED)
        done.fetched += 1
        show_fetched()

    account.on_fetched = fetched
    account.on_wait = waits_of(account.account.name)
    turns = asyncio.Semaphore(max(1, account.account.limits.in_flight))
    states = list(account.lanes[direction].states.values())
    ended = await asyncio.gather(*(_poll(account, state, done, turns) for state in states))
    error = await account.settle()
    suspended = account.client.suspension.reason
    for state, outcome in zip(states, ended, strict=True):
        # Only now is it clear whether the account is the cause.
        done.troubles.poll_ended(state.key, outcome, suspended)
    if error is not None:
        done.failed = True
        done.troubles.unproved(account.account.name, error, suspended)
    rows = await account.services.ledger.read(streams.all_streams, include_removed=False)
    done.to_fetch += sum(row.pending for row in rows if row.id in account.lanes[direction].states)
    show_fetched()
    await account.lanes[direction].workers.run_until_idle()
    if direction is Direction.RECEIVED:
        await account.errands.run_until_idle()


async def _poll(
    account: AccountRunner, state: StreamState, done: Round, turns: asyncio.Semaphore
) -> PollOutcome:
    async with turns:
        # An operator who runs `once` wants to know now whether eFax still refuses a user.
        state.ask_anyway = True
        try:
            outcome = await account.poll(state)
        except Exception as bug:  # noqa: BLE001 - it concerns this user only; poll the others
            outcome = await account.broke_off(state, bug)
    figures = done.figures[state.direction]
    figures["polled"] += 1
    figures["discovered"] += len(outcome.discovered)
    if outcome.failed or outcome.skipped is not None:
        figures["failed_polls"] += 1
        done.failed = True
    return outcome
