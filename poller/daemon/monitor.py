"""What keeps the daemon honest: gate, watchdog, clock, silence, summaries, probes."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from datetime import timedelta
from typing import Any

import aiohttp

from poller import events, log, systemd
from poller.client import Resolver
from poller.clock import clock_step
from poller.daemon.ledger_check import LedgerCheck
from poller.daemon.planner import Planner
from poller.errors import LedgerUnavailable
from poller.ingest.account import AccountRunner
from poller.ingest.patience import NO_PROGRESS_S, cut_off_if_hung
from poller.ingest.site import Site
from poller.ingest.user import UserState
from poller.ledger import FailingCount, faxes, jobs, meta, streams
from poller.runtime_report import RuntimeReport

_GATE_S, _GATE_SHUT_S = 10.0, 2.0
_CLOCK_S = 5.0
_SUMMARY_S = 300.0
_SILENCE_S = 60.0
_FAILING_S = 30.0
_HEARTBEAT_ENDS_AFTER = timedelta(days=1)  # of a fax that fails
_ACCOUNT_FAILURES = 2  # polls in a row, of each of its users
_ACCOUNT_FAILS_AFTER = timedelta(minutes=2)
_GAUGES_S = 15.0
_PROOFS_S = 5.0
_STUCK_S = 10.0
_PROBE_LOOK_S = 1.0
_HEARTBEAT_TIMEOUT_S = 10.0


class Monitor:
    """Watches one site; `loops` are its background tasks."""

    def __init__(self, site: Site, planner: Planner) -> None:
        self._site = site
        self._planner = planner
        self._clock = site.shop.clock
        self._emit = site.shop.emit
        self._disk_low = False
        self._silent: set[int] = set()
        self._failing: dict[int, FailingCount] = {}
        self._said_stalled: set[str] = set()
        self._heartbeat = log.Episode()
        self._resolver = Resolver("the heartbeat")
        self._probes: dict[str, tuple[AccountRunner, asyncio.Task[None]]] = {}
        self._pending = self._quarantined = 0
        self._noted: RuntimeReport | None = None
        self._ledger_check = LedgerCheck(site.shop.ledger, self._clock)

    def loops(self) -> dict[str, Coroutine[Any, Any, None]]:
        """The background work by name; each runs until it is cancelled."""
        loops = {
            "gate": self._watch_gate(),
            "clock": self._watch_clock(),
            "stuck polls": self._every("stuck polls", _STUCK_S, self._end_stuck),
            "proofs": self._every("proofs", _PROOFS_S, self._settle),
            "gauges": self._keep_gauges(),
            "summary": self._every("summary", _SUMMARY_S, self._summarise),
            "silence": self._every("silence", _SILENCE_S, self._look_for_silence),
            "failing faxes": self._keep_failing(),
            "ledger check": self._ledger_check.run(),
        }
        if (interval := systemd.watchdog_interval()) is not None:
            loops["watchdog"] = self._every("watchdog", interval / 3, self._feed_watchdog)
        heartbeat = self._site.config.heartbeat
        if heartbeat.url is not None:
            log.register_secret(heartbeat.url)
            every_s = heartbeat.every.total_seconds()
            loops["heartbeat"] = self._every("heartbeat", every_s, self._ping)
        return loops

    def stop(self) -> None:
        for _, probe in self._probes.values():
            probe.cancel()

    async def _every(self, name: str, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        """Do `work` again and again; once that hangs is named and cut off, and the next one comes."""
        while True:
            await self._clock.sleep(seconds)
            async with cut_off_if_hung(name):
                await work()

    # -- alive ----------------------------------------------------------------------------------

    def alive(self) -> bool:
        """Whether loop, ledger writer and scheduler have all made progress within two minutes."""
        return not self._stalled()

    def _stalled(self) -> list[str]:
        """Name what has made no progress; the loop itself is seen by whoever waits for an answer."""
        waiting_since = self._site.shop.ledger.waiting_since
        since = {"scheduler": self._planner.tick_at}
        if waiting_since is not None:
            since["ledger"] = waiting_since
        now = self._clock.monotonic()
        return [name for name, at in since.items() if now - at >= NO_PROGRESS_S]

    async def _feed_watchdog(self) -> None:
        if self.alive():
            systemd.notify(WATCHDOG=1)

    async def _end_stuck(self) -> None:
        self._planner.end_stuck_polls()
        stalled = self._stalled()
        for name in stalled:
            if name not in self._said_stalled:
                self._emit(events.Stalled(name))
        self._said_stalled = set(stalled)

    # -- storage --------------------------------------------------------------------------------

    async def _watch_gate(self) -> None:
        gate = self._site.shop.gate
        while True:
            usable = False
            async with cut_off_if_hung("gate"):
                usable = await gate.check()
            if self._site.shop.ledger.ended:
                raise RuntimeError("the ledger's writer ended; only a new start helps")
            self._watch_disk()
            await self._clock.sleep(_GATE_S if usable else _GATE_SHUT_S)

    def _watch_disk(self) -> None:
        """Warn well before `min_free` stops the fetching."""
        site = self._site
        free, floor = site.shop.gate.free_bytes, site.config.storage.min_free
        metrics = site.shop.metrics
        metrics.set("storage_min_free_bytes", floor)
        metrics.set("storage_free_bytes", math.nan if free is None else free)
        metrics.set("storage_usable", site.shop.gate.usable)
        if free is None:
            return
        low = free < floor * (2 if not self._disk_low else 2.2)
        if low != self._disk_low:
            self._disk_low = low
            self._emit(events.DiskLow(free, floor) if low else events.DiskOk(free, floor))

    # -- clock ----------------------------------------------------------------------------------

    async def _watch_clock(self) -> None:
        """A step of the wall clock re-plans all jobs: their times were worked out with the old one."""
        before = (self._clock.now(), self._clock.monotonic())
        while True:
            await self._clock.sleep(_CLOCK_S)
            after = (self._clock.now(), self._clock.monotonic())
            step = clock_step(before, after)
            before = after
            if step is not None:
                async with cut_off_if_hung("clock"):
                    await self._stepped(step)

    async def _stepped(self, step: timedelta) -> None:
        way = "back" if step < timedelta(0) else "forward"
        by = timedelta(seconds=round(abs(step).total_seconds()))
        self._emit(events.ClockStepped(round(step.total_seconds(), 1), f"{way} by {by}"))
        for account in self._site.accounts.values():
            account.client.server_clock.our_now(self._clock.now(), self._clock.monotonic())
        for state in self._site.states:
            state.stepped(step)
        self._planner.plan()
        with suppress(LedgerUnavailable):  # the gate says so; the next start does it
            await self._site.forget_far_future()

    # -- suspended accounts ---------------------------------------------------------------------

    def probe(self, account: AccountRunner) -> None:
        """See to it that a suspended account is probed when it is time, whatever its schedule."""
        app_id = account.account.app_id
        probed, running = self._probes.get(app_id, (None, None))
        if running is None or running.done() or probed is not account:
            if running is not None:
                running.cancel()  # of an account that a reload has replaced
            probe = asyncio.create_task(self._probe(account), name=f"probe {account.account.name}")
            self._probes[app_id] = (account, probe)

    def forget(self, account: AccountRunner) -> None:
        """End the probe of an account that a reload has closed."""
        app_id = account.account.app_id
        probed, running = self._probes.get(app_id, (None, None))
        if running is not None and probed is account:
            running.cancel()
            del self._probes[app_id]

    async def _probe(self, account: AccountRunner) -> None:
        """A poll of any user is the probe; users take turns, one of them may be refused."""
        turn = 0
        while (until := account.client.suspension.until) is not None:
            if self._site.accounts.get(account.account.app_id) is not account:
                return  # a reload has removed it
            states = list(account.states.values())
            if self._clock.now() >= until and states:
                state = states[turn % len(states)]
                state.refused_until = None
                self._planner.poll_soon(state)
                turn += 1
            await self._clock.sleep(_PROBE_LOOK_S)

    async def _settle(self) -> None:
        for account in self._site.accounts.values():
            account.settle_in_time()

    # -- what is said regularly -------------------------------------------------------------------

    async def _keep_gauges(self) -> None:
        """From the start: nobody is told for a while that nothing is pending."""
        async with cut_off_if_hung("gauges"):
            await self._gauges()
        await self._every("gauges", _GAUGES_S, self._gauges)

    async def _gauges(self) -> None:
        metrics = self._site.shop.metrics
        metrics.set("ready", not self.troubles())
        for account in self._site.accounts.values():  # 0 is a series, too
            metrics.set("account_suspended", account.is_suspended, account.account.name)
        for state in self._site.states:
            metrics.set_user(*state.user.names, overdue=self._planner.is_overdue(state))
        try:
            waiting = await self._site.shop.ledger.read(streams.waiting_counts)
            harmed = await self._site.shop.ledger.read(faxes.harmed_counts)
        except LedgerUnavailable:
            return  # the gate says so
        for state in self._site.states:
            pending, quarantined = waiting.get(state.id, (0, 0))
            metrics.set_user(
                *state.user.names,
                pending=pending,
                quarantined=quarantined,
                damaged=harmed.get(state.id, 0),
            )
        self._pending = sum(pending for pending, _ in waiting.values())
        self._quarantined = sum(quarantined for _, quarantined in waiting.values())
        systemd.notify(STATUS=self.status_line())
        await self.note_report()

    async def note_report(self) -> None:
        """Keep in the ledger what only this process knows, when that has changed."""
        report = self._report()
        if report != self._noted:
            with suppress(LedgerUnavailable):  # the next time, then
                await self._site.shop.ledger.write(meta.keep, meta.RUNTIME_REPORT, report.text())
                self._noted = report

    def _report(self) -> RuntimeReport:
        site = self._site
        clients = {one.account.name: one.client for one in site.accounts.values()}
        return RuntimeReport(
            directory=str(site.config.storage.directory),
            reason=site.shop.gate.reason,
            rejected=site.rejected,
            rates={
                name: float(f"{client.pacing.speed.rate:.2g}")
                for name, client in clients.items()
                if client.pacing.speed.rate < client.pacing.speed.limit
            },
            at_war=tuple(name for name, client in clients.items() if client.is_at_war),
        )

    def status_line(self) -> str:
        """One line for `systemctl status`."""
        site = self._site
        lags = [lag for state in site.states if (lag := self._lag_s(state)) is not None]
        parts = [
            f"{len(site.states)} users",
            f"{self._pending} pending",
            f"{self._quarantined} quarantined",
        ]
        if lags:
            parts.append(f"largest lag {round(max(lags))} s")
        suspended = [a.account.name for a in site.accounts.values() if a.is_suspended]
        if suspended:
            parts.append(f"suspended: {', '.join(suspended)}")
        if site.shop.gate.reason is not None:
            parts.append(f"degraded: {site.shop.gate.reason}")
        if site.rejected is not None:
            parts.append("the last reload was rejected: the configuration before it is at work")
        return ", ".join(parts)

    def _lag_s(self, state: UserState) -> float | None:
        settled = state.settled_until
        return None if settled is None else max(0.0, (self._clock.now() - settled).total_seconds())

    async def _summarise(self) -> None:
        try:
            rows = await self._site.shop.ledger.read(streams.all_users, include_removed=False)
        except LedgerUnavailable:
            return  # the gate says so; what was counted is told the next time
        for account in self._site.accounts.values():
            tally = account.tally
            account.tally = type(tally)()
            lags = [self._lag_s(state) or 0.0 for state in account.states.values()]
            mine = [row for row in rows if row.app_id == account.account.app_id]
            self._emit(
                events.AccountSummary(
                    account.account.name,
                    users=len(account.states),
                    polls=tally["polls"],
                    failed_polls=tally["failed_polls"],
                    discovered=tally["discovered"],
                    stored=tally["stored"],
                    failed_fetches=tally["failed"],
                    rate_limited=tally["rate_limited"],
                    pending=sum(row.pending for row in mine),
                    quarantined=sum(row.quarantined for row in mine),
                    lag_s=round(max(lags, default=0.0)),
                    suspended=account.is_suspended,
                )
            )

    # -- silence --------------------------------------------------------------------------------

    async def _look_for_silence(self) -> None:
        for state in self._site.states:
            silent = state.polled and state.silent_since is not None
            self._site.shop.metrics.set_user(*state.user.names, silent=silent)
            if silent and state.id not in self._silent:
                self._silent.add(state.id)
                self._emit(events.Silence(*state.user.names, state.last_received_at))
            elif not silent:
                self._silent.discard(state.id)

    # -- faxes that fail --------------------------------------------------------------------------

    async def _keep_failing(self) -> None:
        """From the start: the heartbeat must not say that all is well before anybody has looked."""
        async with cut_off_if_hung("failing faxes"):
            await self._look_for_failing()
        await self._every("failing faxes", _FAILING_S, self._look_for_failing)

    async def _look_for_failing(self) -> None:
        """A fax that fails for longer than `retry.alarm_after`, or at once where its directory cannot be
        used, is said once for its user."""
        site = self._site
        now, alarm_after = self._clock.now(), site.config.retry.alarm_after
        try:
            found = await site.shop.ledger.read(jobs.failing_counts, now, alarm_after)
        except LedgerUnavailable:
            return  # the gate says so
        for state in site.states:
            user = state.user
            one, before = (seen.get(state.id, FailingCount()) for seen in (found, self._failing))
            site.shop.metrics.set_user(*user.names, failing_s=one.oldest_s)
            if one.late and not before.late:
                self._emit(events.FetchFailed(*user.names, one.late, round(one.oldest_s)))
            elif before.late and not one.late:
                self._emit(events.FetchRecovered(*user.names))
        self._failing = found

    def _fails_for_a_day(self) -> bool:
        longest = max((one.oldest_s for one in self._failing.values()), default=0.0)
        return longest > _HEARTBEAT_ENDS_AFTER.total_seconds()

    # -- can it do its job ------------------------------------------------------------------------

    def troubles(self) -> list[str]:
        """Why the service cannot do its whole job now, in sentences; empty when it can."""
        site = self._site
        troubles = []
        if site.shop.gate.reason is not None:
            troubles.append(f"Nothing is fetched: {site.shop.gate.reason}")
        if self._ledger_check.trouble is not None:
            troubles.append(self._ledger_check.trouble)
        for account in site.accounts.values():
            if account.is_suspended:
                reason = account.client.suspension.reason
                troubles.append(f"Account {account.account.name} is suspended: {reason}")
            elif self._fails_altogether(account):
                troubles.append(
                    f"Every user's last polls in account {account.account.name} have failed: see "
                    "poll-failed in the log."
                )
        configured = {(u.app_id, u.user_id) for a in site.config.accounts for u in a.users}
        at_work = {(state.user.app_id, state.user.user_id) for state in site.states}
        if at_work != configured:
            troubles.append(
                f"{len(at_work)} users are at work and {len(configured)} are configured: a reload "
                "is under way or has failed."
            )
        overdue = [
            state.key
            for state in site.states
            if not state.refusals and self._planner.is_overdue(state)
        ]
        if overdue:
            troubles.append(
                f"{len(overdue)} of {len(site.states)} users were not polled in time, "
                f"{overdue[0]} among them."
            )
        blind = [state.key for state in site.states if state.fails_to_sweep]
        if blind:
            troubles.append(
                f"The sweeps of {len(blind)} users fail, {blind[0]} among them: see sweep-failed "
                "in the log."
            )
        if not self.alive():
            troubles.append("The scheduler or the ledger has made no progress for two minutes.")
        return troubles

    def _fails_altogether(self, account: AccountRunner) -> bool:
        """One user's trouble is that user's, and one bad minute is over soon."""
        asked = [state for state in account.states.values() if not state.refusals]
        newest = max(
            (state.last_success_at for state in asked if state.last_success_at), default=None
        )
        is_long_ago = newest is None or self._clock.now() > newest + _ACCOUNT_FAILS_AFTER
        return (
            bool(asked)
            and is_long_ago
            and all(state.failed_polls >= _ACCOUNT_FAILURES for state in asked)
        )

    def _all_polled(self) -> bool:
        """Whether each user's last poll succeeded: one who is refused or fails was not really polled."""
        return all(
            state.last_success_at is not None and not state.failed_polls
            for state in self._site.states
        )

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=self._resolver),
            proxy=self._site.config.heartbeat.proxy,
            timeout=aiohttp.ClientTimeout(total=_HEARTBEAT_TIMEOUT_S),
        )

    async def _ping(self) -> None:
        """Ping the dead-man URL only while users are really polled and no fax fails for a day."""
        url = self._site.config.heartbeat.url
        if url is None or self.troubles() or not self._all_polled() or self._fails_for_a_day():
            return
        try:
            async with self._session() as session, session.get(url) as got:
                got.raise_for_status()
        except Exception as error:  # noqa: BLE001 - an optional ping never ends the service
            # Not aiohttp's own words: they hold the URL, and who knows it can feign our life.
            if self._heartbeat.failed():
                status = getattr(error, "status", None)
                self._emit(events.HeartbeatFailed(type(error).__name__, status))
            return
        if failures := self._heartbeat.recovered():
            self._emit(events.HeartbeatRecovered(failures))
