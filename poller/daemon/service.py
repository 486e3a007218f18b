"""The daemon: start, work, reload, drain, stop."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

from poller import events, log, systemd
from poller.config.model import Config
from poller.daemon import reload
from poller.daemon.background_checks import BackgroundChecks
from poller.daemon.canaries import Canaries
from poller.daemon.changes import NAMED, said_of_left_behind
from poller.daemon.holding import Holding
from poller.daemon.monitor import Monitor
from poller.daemon.planner import POLLS_PER_S, Planner
from poller.daemon.webhooks import Webhooks
from poller.errors import CannotStart, ConfigError, LedgerUnavailable, NoThread, PollerError
from poller.ingest.account import AccountRunner
from poller.ingest.hang_timeout import NO_PROGRESS_S
from poller.ingest.runtime import Runtime
from poller.ingest.sending import Sender
from poller.own_threads import OwnThreads
from poller.topic import see

Serve = Callable[[Runtime, Monitor, Webhooks | None], contextlib.AbstractAsyncContextManager[None]]


async def run(
    settings: Config,
    opening: contextlib.AbstractAsyncContextManager[Runtime],
    *,
    load: Callable[[], Config],
    serve: Serve,
    on_stop: Callable[[timedelta], None] = lambda _: None,
) -> None:
    """Open the runtime and work until SIGTERM or SIGINT; `load` reads the configuration on SIGHUP.

    `serve` is open while the service works: it runs the status server and the web-hook listener.
    `on_stop` is called when the service begins to stop. Raises CannotStart or ConfigError if it
    cannot start, and any bug that ends it.
    """
    asyncio.get_running_loop().set_exception_handler(log.handle_loop_exception)
    log.say(events.ServiceStarted(len(settings.users)))
    is_up = False
    try:
        async with opening as runtime:
            planner = Planner(runtime)
            monitor = Monitor(runtime, planner)
            webhooks = None if settings.webhook is None else Webhooks(runtime, planner.poll_soon)
            async with serve(runtime, monitor, webhooks):
                is_up = True
                await Service(
                    runtime, planner, monitor, load, webhooks=webhooks, on_stop=on_stop
                ).work()
    except PollerError as error:
        if not is_up:  # log it too: the sentence on stderr reaches no aggregator
            log.say(events.StartRefused(see(error.told, "service-does-not-start"), error))
        raise
    log.say(events.ServiceStopped())


class Service:
    """The running daemon; one event, which everything waits for, stops it."""

    def __init__(
        self,
        runtime: Runtime,
        planner: Planner,
        monitor: Monitor,
        load: Callable[[], Config],
        *,
        webhooks: Webhooks | None = None,
        on_stop: Callable[[timedelta], None] = lambda _: None,
    ) -> None:
        self._webhooks = webhooks
        self._runtime = runtime
        self._planner = planner
        self._monitor = monitor
        self._emit = runtime.services.emit
        self._load = load
        self._on_stop = on_stop
        self._stop = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._loading = OwnThreads("configuration", most=4)  # a share may hang
        self._background: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._sender = Sender(runtime)
        self._checks = BackgroundChecks(runtime, planner.poll_soon, on_edit=self._wake_senders)
        self._canaries = Canaries(runtime)
        self._holding = (
            None
            if runtime.keeper is None
            else Holding(runtime, runtime.keeper, start=self._took, close=self._close_account)
        )

    async def work(self) -> None:
        """Start everything, wait for a reason to stop, drain."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self._reload_soon)
        try:
            self._start()
            await self._stop.wait()
        finally:
            await self._wind_down()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Begin to stop; a second call does nothing."""
        if not self._stop.is_set():
            self._emit(events.ServiceStopping())
            systemd.notify(STOPPING=1)
            self._stop.set()
            self._on_stop(self._runtime.config.drain)  # which a reload may have changed

    def _start(self) -> None:
        self._runtime.services.gate.on_change = self._gate_changed
        for account in self._runtime.accounts.values():
            self._start_account(account)
        self._planner.plan_also = self._canaries.plan
        self._planner.start()
        loops = {
            **self._monitor.loops(),
            **self._checks.loops(),
            **(self._webhooks.loops() if self._webhooks else {}),
            "sending": self._sender.run(),
            "canaries": self._canaries.run(),
            **(self._holding.loops() if self._holding else {}),
        }
        for name, work in loops.items():
            self._spawn(work, name)
        systemd.notify(READY=1, STATUS=self._monitor.readiness.status_line())
        self._emit(
            events.ServiceReady(
                accounts=len(self._runtime.accounts),
                users=len(self._runtime.config.users),
                storage=self._runtime.services.gate.reason or "usable",
            )
        )

    def _wake_senders(self) -> None:
        self._sender.wake()
        self._canaries.wake()

    def _start_account(self, account: AccountRunner) -> None:
        account.on_suspension_change = self._suspension_changed
        account.note_pause()  # the storage may be unusable from the start
        for direction, lane in account.lanes.items():
            self._spawn(lane.workers.run(), f"{direction} faxes of {account.account.name}")
        self._spawn(account.errands.run(), f"errands {account.account.name}")
        if self._webhooks is not None:
            self._webhooks.start(account)

    def _took(self, account: AccountRunner) -> None:
        """Start the work on an account that this node has just taken."""
        self._start_account(account)
        self._planner.add(account)
        account.wake()
        self._checks.begin_again()
        self._wake_senders()
        self._spawn(self._canaries.remember(account), f"canaries of {account.account.name}")
        systemd.notify(STATUS=self._monitor.readiness.status_line())

    async def _close_account(self, account: AccountRunner) -> None:
        """End the work of an account that is no longer in the runtime."""
        self._planner.remove(account)
        await self._planner.end_polls(account)
        if self._webhooks is not None:
            await self._webhooks.end(account)
        await self._runtime.close_account(account)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run `work` in the background; if it dies, the service ends."""
        task = asyncio.create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(self._background_ended)

    def _background_ended(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if task.cancelled() or task.exception() is None:
            return
        self._failure = self._failure or task.exception()
        what = f"An unexpected error ended {task.get_name()}; poller stops, and systemd starts it again."
        self._emit(events.InternalError(what, task.exception()))
        self.stop()

    async def _wind_down(self) -> None:
        """Let downloads finish within `drain`; cut polls off, as the ledger has their pages."""
        await self._planner.stop()
        if self._webhooks is not None:
            await self._webhooks.stop()
        timeout_s = self._runtime.config.drain.total_seconds()
        await asyncio.gather(
            self._runtime.drain(timeout_s) if self._holding is None else self._holding.stop(),
            self._sender.drain(timeout_s),
        )
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    def _suspension_changed(self, account: AccountRunner) -> None:
        """Leave polling to the probe while the account is suspended; afterwards poll all users soon."""
        systemd.notify(STATUS=self._monitor.readiness.status_line())
        if account.is_suspended:
            return
        per_second = min(account.account.limits.requests_per_second, POLLS_PER_S)
        self._planner.poll_within(account, timedelta(seconds=len(account.states) / per_second))
        self._spawn(self._monitor.watch_pace(), "pace")

    def _gate_changed(self) -> None:
        for account in self._runtime.accounts.values():
            account.note_pause()
            account.wake()
        systemd.notify(STATUS=self._monitor.readiness.status_line())
        self._spawn(self._monitor.keep_report(), "runtime report")

    def _reload_soon(self) -> None:
        if not self._stop.is_set():
            self._spawn(self._reload_in_turn(), "reload")

    async def _reload_in_turn(self) -> None:
        """Reload once at a time, however many SIGHUPs arrive."""
        async with self._reloading, self._runtime.changing:
            if not self._stop.is_set():
                await self._reload()

    async def _reload(self) -> None:
        """Apply the new configuration, or report its problems and keep the old one.

        An error in `carry_out` ends the service, like an error in any background work.
        """
        systemd.reloading()
        try:
            # A hung share or a ledger that does not answer must end only this reload.
            async with asyncio.timeout(NO_PROGRESS_S):
                settings = await self._loading.run(self._load)
                prepared = await reload.prepare(self._runtime, settings)
        except TimeoutError:
            self._emit(events.Stalled("reload"))
            self._note_rejected("poller could not read it within two minutes.")
        except (ConfigError, CannotStart, LedgerUnavailable, NoThread) as error:
            problems = error.problems if isinstance(error, ConfigError) else [error]
            for problem in problems:
                self._emit(events.ConfigRejected(see(str(problem), "configuration-rejected")))
            self._note_rejected(str(problems[0]))
        else:
            self._note_rejected(None)
            await reload.carry_out(
                self._runtime, prepared, close=self._close_account, start=self._start_account
            )
            self._planner.plan()
            for account in self._runtime.accounts.values():
                account.errands.wake()
            self._wake_senders()
            self._say_reloaded(settings, prepared)
        systemd.notify(READY=1, STATUS=self._monitor.readiness.status_line())
        await self._monitor.keep_report()

    def _say_reloaded(self, settings: Config, prepared: reload.Prepared) -> None:
        changes = prepared.plan.changes
        said = ["The configuration was reloaded", changes.sentence()]
        said += [_reloaded(settings, prepared.plan.restart_for)]
        said += said_of_left_behind(prepared.left_behind)
        renamed = [f"{before} -> {now}" for before, now in changes.renamed[:NAMED]]
        self._emit(
            events.ServiceReloaded(
                "; ".join(filter(None, said)),
                leaves_faxes=bool(prepared.left_behind),
                users=len(settings.users),
                added=changes.added[:NAMED],
                added_count=len(changes.added),
                removed=changes.removed[:NAMED],
                removed_count=len(changes.removed),
                renamed=renamed,
                renamed_count=len(changes.renamed),
            )
        )

    def _note_rejected(self, problem: str | None) -> None:
        self._runtime.rejected = problem
        self._runtime.services.metrics.set("config_rejected", problem is not None)


def _reloaded(settings: Config, restart_for: tuple[str, ...]) -> str:
    """Return what the reload could not change; systemd copies credentials only at the start."""
    need = "needs" if len(restart_for) == 1 else "need"
    said = [f"{', '.join(restart_for)} {need} a restart"] if restart_for else []
    if any(one.kind == "credential" for one in settings.secrets):
        said.append("a credential that has changed needs `systemctl restart poller`")
    return "; ".join(said)
