"""Canaries: regular test faxes to the user's own number, timed until they are stored."""

import asyncio
from contextlib import suppress
from datetime import timedelta

from apscheduler.schedulers.asyncio import AsyncIOScheduler

from poller import events, schedule
from poller.config.model import Canary
from poller.daemon.trigger import PollTrigger
from poller.errors import LedgerUnavailable, NoThread, NotKept
from poller.ingest.account import AccountRunner
from poller.ingest.hang_timeout import cut_off_if_hung
from poller.ingest.runtime import Runtime
from poller.ingest.send_request import CANARY, ask_to_send, drawn, new_page, settle_page
from poller.ingest.stream_state import StreamState
from poller.ledger import SendRow, sends

_LOOK_S = 5.0


class Canaries:
    """Sends and times the canaries of one runtime: `plan` schedules them, `run` watches them."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._services = runtime.services
        self._wake = asyncio.Event()

    def plan(self, scheduler: AsyncIOScheduler) -> None:
        """Schedule a job for each user with a canary."""
        for state in self._with_one():
            if (canary := state.user.canary) is not None:
                identity = schedule.identity(state.user.app_id, state.user.user_id)
                scheduler.add_job(
                    self._send_due,
                    PollTrigger(*schedule.canary_grid(canary, identity)),
                    args=(state, canary),
                    id=f"canary {state.id}",
                    name=f"canary {state.key}",
                    replace_existing=True,
                )

    def wake(self) -> None:
        """Look at once: there may be a self-test, or a newly configured canary."""
        self._wake.set()

    async def run(self) -> None:
        """Report arrived and late canaries until cancelled.

        Without a configured canary or a page on its way, sleep until `wake`.
        """
        async with cut_off_if_hung("canaries"):
            with suppress(LedgerUnavailable):
                await self._remember()
        while True:
            self._wake.clear()
            is_open = True
            async with cut_off_if_hung("canaries"):
                with suppress(LedgerUnavailable):  # the gate reports it
                    is_open = await self._look()
            if is_open:
                await self._services.clock.sleep(_LOOK_S)
            else:
                await self._wake.wait()

    async def _send_due(self, state: StreamState, canary: Canary) -> None:
        """Send a canary unless an earlier run, or another clock, sent one a moment ago."""
        services = self._services
        try:
            last = await state.ledger.read(sends.last_asked, state.id)
            now = services.clock.now()
            if last is not None and timedelta(0) <= now - last < canary.every / 2:
                return
            new = new_page(state.id, state.user, CANARY, now + canary.within)
            directory = self._runtime.config.state_directory
            await ask_to_send(state.ledger, directory, new, [drawn(new, now)], now)
        except LedgerUnavailable as error:
            services.gate.blame(error)
        except (NotKept, NoThread) as error:
            why = str(error)
            services.emit(events.CanaryLate(*state.user.names, "", why))

    async def _remember(self) -> None:
        """Load the results of earlier runs."""
        for account in list(self._runtime.accounts.values()):
            await self._remember_one(account)

    async def remember(self, account: AccountRunner) -> None:
        """Load the results for an account that has just been taken."""
        with suppress(LedgerUnavailable):  # only a metric lacks
            await self._remember_one(account)

    async def _remember_one(self, account: AccountRunner) -> None:
        if any(state.user.canary for state in account.states.values()):
            app_id = account.account.app_id
            for row in (await self._services.ledger.read(sends.last_canaries, app_id)).values():
                self._measure(row)

    async def _look(self) -> bool:
        """Report what is new; return whether to look again."""
        services = self._services
        pages = [row for row in await services.ledger.read(sends.unfinished) if row.code]
        for row in pages:
            ledger = self._runtime.ledger_of(row.app_id)
            if ledger is None:
                continue  # another node has the account
            await settle_page(ledger, row, services.clock.now(), services.emit)
            if row.is_stored and row.purpose == CANARY:
                self._measure(row)
        if not (configured := self._with_one()):
            return bool(pages)
        waiting = {row.stream for row in await services.ledger.read(sends.late_canaries)}
        for state in configured:
            is_late = float(state.id in waiting)
            services.metrics.set_user(*state.user.names, canary_late=is_late)
        return True

    def _with_one(self) -> list[StreamState]:
        """Return the received streams of the users with a canary."""
        accounts = self._runtime.accounts.values()
        states = (state for account in accounts for state in account.states.values())
        return [state for state in states if state.user.canary is not None]

    def _measure(self, row: SendRow) -> None:
        self._services.metrics.set_user(
            *row.names, canary_at=row.stored_at, canary_s=row.round_trip_s
        )
