"""Watch over the daemon: gate, watchdog, clock, silence, summaries, probes."""

import math
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from datetime import timedelta
from typing import Any

from poller import cluster, events, log, systemd
from poller.clock import clock_step
from poller.daemon.heartbeat import HeartbeatPinger
from poller.daemon.ledger_check import LedgerCheck
from poller.daemon.pace_watch import PaceWatch
from poller.daemon.planner import Planner
from poller.daemon.readiness import Readiness, lag_s
from poller.errors import LedgerUnavailable
from poller.ingest.account import AccountRunner
from poller.ingest.hang_timeout import cut_off_if_hung
from poller.ingest.runtime import Runtime
from poller.ledger import FailingCount, StreamRow, failing, faxes, meta, streams
from poller.progress import OurClockSet
from poller.runtime_report import RuntimeReport

_GATE_S, _GATE_SHUT_S = 10.0, 2.0
_CLOCK_S = 5.0
_SUMMARY_S = 300.0
_SILENCE_S = 60.0
_FAILING_S = 30.0
_GAUGES_S = 15.0
_PACE_S = 15.0
_PROOFS_S = 5.0
_STUCK_S = 10.0
_PROBES_S = 1.0
_LOW, _LOW_NO_MORE = 2.0, 2.2  # times `min_free`


class Monitor:
    """Watches one runtime; `loops` are its background tasks, `readiness` holds its findings."""

    def __init__(self, runtime: Runtime, planner: Planner) -> None:
        self._runtime = runtime
        self._planner = planner
        self._ledger = runtime.services.ledger
        self._clock = runtime.services.clock
        self._report_name = meta.of_node(meta.RUNTIME_REPORT, self._ledger.node)
        self._emit = runtime.services.emit
        self._ledger_check = LedgerCheck(self._ledger, self._clock)
        self.readiness = Readiness(runtime, planner, self._ledger_check)
        self._pace = PaceWatch(runtime, self.readiness.catching_up)
        self._heartbeat = HeartbeatPinger(runtime, self.readiness.is_well)
        self._clocks = (self._clock.now(), self._clock.monotonic())
        self._disk_low = False
        self._silent: set[int] = set()
        self._said_stalled: set[str] = set()
        self._probes = 0
        self._kept: RuntimeReport | None = None

    def loops(self) -> dict[str, Coroutine[Any, Any, None]]:
        """Return the background work by name; each runs until it is cancelled."""
        works: dict[str, tuple[float, Callable[[], Awaitable[None]]]] = {
            "clock": (_CLOCK_S, self._watch_clock),
            "stuck polls": (_STUCK_S, self._end_stuck),
            "proofs": (_PROOFS_S, self._settle),
            "probes": (_PROBES_S, self._probe),
            "gauges": (_GAUGES_S, self._gauges),
            "pace": (_PACE_S, self.watch_pace),
            "summary": (_SUMMARY_S, self._summarise),
            "silence": (_SILENCE_S, self._look_for_silence),
            "failing faxes": (_FAILING_S, self._look_for_failing),
        }
        if (interval := systemd.watchdog_interval()) is not None:
            works["watchdog"] = (interval / 3, self._feed_watchdog)
        heartbeat = self._runtime.config.heartbeat
        if heartbeat.url is not None:
            log.register_secret(heartbeat.url)
            works["heartbeat"] = (heartbeat.every.total_seconds(), self._heartbeat.ping)
        loops = {name: self._every(name, *work) for name, work in works.items()}
        return {"gate": self._watch_gate(), "ledger check": self._ledger_check.run(), **loops}

    async def _every(self, name: str, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        """Repeat `work`; if one run hangs, report its name, cancel it and go on with the next.

        Three loops run at once at the start: otherwise pages would show zero pending faxes, or no
        catching up, for a while, and the heartbeat would report too early that all is well.
        """
        if name in {"gauges", "pace", "failing faxes"}:
            async with cut_off_if_hung(name):
                await work()
        while True:
            await self._clock.sleep(seconds)
            async with cut_off_if_hung(name):
                await work()

    # -- alive ----------------------------------------------------------------------------------

    async def _feed_watchdog(self) -> None:
        if self.readiness.alive():
            systemd.notify(WATCHDOG=1)

    async def _end_stuck(self) -> None:
        self._planner.end_stuck_polls()
        stalled = set(self.readiness.stalled())
        for name in sorted(stalled - self._said_stalled):
            self._emit(events.Stalled(name))
        self._said_stalled = stalled

    # -- storage --------------------------------------------------------------------------------

    async def _watch_gate(self) -> None:
        gate = self._runtime.services.gate
        while True:
            usable = False
            async with cut_off_if_hung("gate"):
                usable = await gate.check()
            if self._ledger.ended:
                raise RuntimeError("the ledger's writer ended; only a restart helps")
            self._watch_disk(gate.free_bytes, self._runtime.config.storage.min_free)
            await self._clock.sleep(_GATE_S if usable else _GATE_SHUT_S)

    def _watch_disk(self, free: int | None, floor: int) -> None:
        """Warn well before fetching stops at `min_free`."""
        metrics = self._runtime.services.metrics
        metrics.set("storage_min_free_bytes", floor)
        metrics.set("storage_free_bytes", math.nan if free is None else free)
        metrics.set("storage_usable", self._runtime.services.gate.usable)
        if free is None:
            return
        low = free < floor * (_LOW_NO_MORE if self._disk_low else _LOW)
        if low != self._disk_low:
            self._disk_low = low
            self._emit(events.DiskLow(free, floor) if low else events.DiskOk(free, floor))

    # -- clock ----------------------------------------------------------------------------------

    async def _watch_clock(self) -> None:
        """Re-plan all jobs after a step of the wall clock: their times came from the old clock."""
        before, self._clocks = self._clocks, (self._clock.now(), self._clock.monotonic())
        step = clock_step(before, self._clocks)
        if step is not None:
            await self._stepped(step)

    async def _stepped(self, step: timedelta) -> None:
        way = "back" if step < timedelta(0) else "forward"
        by = timedelta(seconds=round(abs(step).total_seconds()))
        self._emit(events.ClockStepped(round(step.total_seconds(), 1), f"{way} by {by}"))
        for account in self._runtime.accounts.values():
            account.client.server_clock.our_now(self._clock.now(), self._clock.monotonic())
        for state in self._runtime.streams:
            with suppress(LedgerUnavailable):  # the gate reports it
                await state.record_soon(OurClockSet(step))
        self._planner.plan()
        with suppress(LedgerUnavailable):  # the gate reports it; the next start repairs it
            await self._runtime.forget_far_future()

    # -- accounts -------------------------------------------------------------------------------

    async def _probe(self) -> None:
        """Probe suspended accounts when a probe is due, whatever their schedule.

        A poll of any user is a probe. Users take turns, because eFax may refuse one of them.
        """
        for account in self._runtime.accounts.values():
            until = account.client.suspension.until
            states = list(account.states.values())
            if until is not None and self._clock.now() >= until and states:
                state = states[self._probes % len(states)]
                state.ask_anyway = True
                self._planner.poll_soon(state)
                self._probes += 1

    async def _settle(self) -> None:
        for account in self._runtime.accounts.values():
            account.settle_in_time()

    async def watch_pace(self) -> None:
        """Note which accounts catch up and which ones eFax answers slowly."""
        self._pace.look_for_slowness()
        with suppress(LedgerUnavailable):  # the gate reports it
            await self._pace.look_for_backlogs()
        await self.keep_report()

    # -- regular reports --------------------------------------------------------------------------

    async def _gauges(self) -> None:
        metrics = self._runtime.services.metrics
        metrics.set("ready", not self.readiness.troubles())
        for account in self._runtime.accounts.values():  # export 0 as well
            metrics.set("account_suspended", account.is_suspended, account.account.name)
        if self._runtime.keeper is not None:
            for configured in self._runtime.config.accounts:
                here = self._runtime.accounts.get(configured.app_id)
                is_sure = here is not None and here.services.may_ask()
                metrics.set("lease_held", is_sure, configured.name)
        for state in self._runtime.streams:
            metrics.set_user(*state.names, overdue=self._planner.is_overdue(state))
        try:
            waiting = await self._ledger.read(streams.waiting_counts)
            harmed = await self._ledger.read(faxes.damage_counts)
            self.readiness.cluster = await cluster.look(self._ledger)
        except LedgerUnavailable:
            return  # the gate reports it
        for state in self._runtime.streams:
            pending, quarantined = waiting.get(state.id, (0, 0))
            damaged, unreadable = harmed.get(state.id, (0, 0))
            metrics.set_user(
                *state.names,
                pending=pending,
                quarantined=quarantined,
                damaged=damaged,
                unreadable=unreadable,
            )
        self.readiness.waiting = waiting
        systemd.notify(STATUS=self.readiness.status_line())
        await self.keep_report()

    async def keep_report(self) -> None:
        """Save this process's report to the ledger if it has changed."""
        report = self.readiness.report()
        if report != self._kept:
            with suppress(LedgerUnavailable):  # save it next time
                await self._ledger.write(meta.keep, self._report_name, report.text())
                self._kept = report

    async def _summarise(self) -> None:
        try:
            rows = await self._ledger.read(streams.all_streams, include_removed=False)
        except LedgerUnavailable:
            return  # the gate reports it; the next summary includes these counts
        for account in self._runtime.accounts.values():
            mine = [row for row in rows if row.app_id == account.account.app_id]
            self._emit(self._summary(account, mine))
            account.tally.clear()

    def _summary(self, account: AccountRunner, rows: list[StreamRow]) -> events.AccountSummary:
        now, tally = self._clock.now(), account.tally
        lags = [lag_s(state, now) or 0.0 for state in account.states.values()]
        return events.AccountSummary(
            account.account.name,
            users=len(account.states),
            polls=tally["polls"],
            failed_polls=tally["failed_polls"],
            discovered=tally["discovered"],
            stored=tally["stored"],
            failed_fetches=tally["failed"],
            rate_limited=tally["rate_limited"],
            pending=sum(row.pending for row in rows),
            quarantined=sum(row.quarantined for row in rows),
            lag_s=round(max(lags, default=0.0)),
            suspended=account.is_suspended,
        )

    # -- users ------------------------------------------------------------------------------------

    async def _look_for_silence(self) -> None:
        """Warn once for each user who has received no fax for longer than expected."""
        silent = set()
        for state in self._runtime.streams:
            is_silent = state.polled and state.silent_since is not None
            self._runtime.services.metrics.set_user(*state.names, silent=is_silent)
            if is_silent:
                silent.add(state.id)
            if is_silent and state.id not in self._silent:
                emit = state.telling(self._emit)
                emit(events.Silence(*state.user.names, state.progress.last_received_at))
        self._silent = silent

    async def _look_for_failing(self) -> None:
        """Report once per user that a fax has failed for longer than `retry.alarm_after`.

        Report it at once if the fax's directory cannot be used.
        """
        alarm_after = self._runtime.config.retry.alarm_after
        try:
            found = await self._ledger.read(failing.counts, self._clock.now(), alarm_after)
        except LedgerUnavailable:
            return  # the gate reports it
        none = FailingCount()
        for state in self._runtime.streams:
            names, emit = state.user.names, state.telling(self._emit)
            one, before = found.get(state.id, none), self.readiness.failing.get(state.id, none)
            self._runtime.services.metrics.set_user(*state.names, failing_s=one.oldest_s)
            if one.late and not before.late:
                emit(events.FetchFailed(*names, one.late, round(one.oldest_s)))
            elif before.late and not one.late:
                emit(events.FetchRecovered(*names))
        self.readiness.failing = found
