"""The checks that keep the daemon honest; their loops run in the time of the test's clock."""

import asyncio
import os
import re
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from aiohttp import web

from poller.client.resolver import MOST, Resolver
from poller.config.model import Config, Expect, Heartbeat, Poll
from poller.daemon.monitor import Monitor
from poller.daemon.planner import Planner
from poller.errors import LedgerUnavailable
from poller.ingest.runtime import Runtime
from poller.ledger import jobs, meta, streams
from poller.progress import NotPolled
from poller.runtime_report import RuntimeReport
from poller.simulator import Simulator
from poller.store import syscalls
from tests.conftest import APP, Event, MakeConfig, QuickClock, opened_runtime
from tests.integration.at_work import (
    calls,
    faults,
    fetch,
    in_background,
    listed,
    mount,
    parts,
    poll,
    said,
    settled,
    suspend,
    unmount,
    until,
)
from tests.integration.in_between import around

CRON = Poll(every=None, cron="0 3 1 1 *", timezone=ZoneInfo("UTC"))
NAMES = {
    "gate", "clock", "stuck polls", "gauges", "probes", "proofs", "summary", "silence", "failing faxes",
    "ledger check", "pace",
}  # fmt: skip


@pytest.fixture
def clock() -> QuickClock:
    return QuickClock(wall=datetime.now(UTC))


@pytest.fixture
async def planner(runtime: Runtime) -> AsyncIterator[Planner]:
    planner = Planner(runtime)
    yield planner
    await planner.stop()


@pytest.fixture
async def monitor(runtime: Runtime, planner: Planner) -> Monitor:
    return Monitor(runtime, planner)


@asynccontextmanager
async def running(monitor: Monitor, *names: str) -> AsyncIterator[None]:
    """Let only these loops run."""
    loops = monitor.loops()
    for name in set(loops) - set(names):
        loops[name].close()
    async with in_background(*(loops[name] for name in names)):
        yield


def count(events: list[Event], action: str) -> int:
    return len(said(events, action))


# -- storage -----------------------------------------------------------------------------------------


async def test_gate_is_looked_at_again_and_again_and_opens_by_itself(
    runtime: Runtime, monitor: Monitor, events: list[Event]
) -> None:
    async with running(monitor, "gate"):
        unmount(runtime)
        await until(lambda: not runtime.services.gate.usable)
        assert monitor.readiness.troubles()[0].startswith("Nothing is fetched")
        assert "degraded" in monitor.readiness.status_line()
        mount(runtime)
        await until(lambda: runtime.services.gate.usable)
    assert said(events, "storage-unusable", "storage-usable") == [
        "storage-unusable",
        "storage-usable",
    ]


async def test_low_disk_is_reported_once_and_again_only_after_it_was_well(
    runtime: Runtime,
    monitor: Monitor,
    clock: QuickClock,
    events: list[Event],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runtime.config = replace(runtime.config, storage=replace(runtime.config.storage, min_free=1000))
    free = 5000

    def space(root: int) -> Any:
        real = os.fstatvfs(root)
        return SimpleNamespace(
            f_bavail=free, f_frsize=1, f_files=real.f_files, f_favail=real.f_favail
        )

    monkeypatch.setattr(syscalls, "space", space)
    async with running(monitor, "gate"):
        for step, low in [(1999, True), (2100, True), (2201, False), (2050, False), (1500, True)]:
            free = step
            rounds = len(clock.slept) + 3
            await until(lambda: len(clock.slept) > rounds)  # noqa: B023
            assert monitor._disk_low is low
    assert said(events, "disk-low", "disk-ok") == ["disk-low", "disk-ok", "disk-low"]
    shown = (await runtime.services.metrics.render()).decode()
    assert "\npoller_storage_min_free_bytes 1000.0\n" in shown


# -- clock ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [timedelta(days=2), timedelta(days=-1)])
async def test_clock_step_is_reported_and_plans_every_poll_again(
    runtime: Runtime, planner: Planner, monitor: Monitor, clock: QuickClock, events: list[Event],
    step: timedelta,
) -> None:  # fmt: skip
    account, state = parts(runtime)
    await poll(runtime)
    server = account.client.server_clock.now(clock.now())
    assert server is not None
    await state.record(NotPolled(clock.now(), "refused", clock.now() + timedelta(hours=1)))
    state.user = replace(state.user, poll=CRON)
    async with running(monitor, "clock"):
        await asyncio.sleep(0.01)
        assert not count(events, "clock-stepped")
        clock.wall += step
        await until(lambda: count(events, "clock-stepped"))
        await asyncio.sleep(0.01)

    (stepped,) = [event.fields for event in events if event.action == "clock-stepped"]
    assert stepped["step_s"] == pytest.approx(step.total_seconds(), abs=1)
    assert parts(runtime)[1].progress.refused_until is None
    assert planner._scheduler.get_job(str(state.id)) is not None
    now = account.client.server_clock.now(clock.now())
    assert now is not None
    assert abs(now - server) < timedelta(hours=1)  # eFax's clock was not set


# -- silence ----------------------------------------------------------------------------------------


def expecting(settings: Config, within: timedelta) -> Config:
    """The same configuration, in which each user should receive something."""
    (account,) = settings.accounts
    users = tuple(replace(user, expect=Expect(within)) for user in account.users)
    return replace(settings, accounts=(replace(account, users=users),))


async def poll_both(runtime: Runtime) -> None:
    for user in ("user-a", "user-b"):
        await poll(runtime, user)


async def test_silence_is_reported_once_until_a_fax_arrives(
    runtime: Runtime, simulator: Simulator, monitor: Monitor, clock: QuickClock, events: list[Event]
) -> None:
    _, state = parts(runtime)
    state.user = replace(state.user, expect=Expect(timedelta(days=2)))
    await listed(runtime, simulator)
    for days in (1, 0.9, 0.2, 1, 1):
        clock.advance(timedelta(days=days))
        await poll(runtime)
        await monitor._look_for_silence()
    assert count(events, "silence") == 1
    silent = 'poller_user_silent{account="main",user="user-a"} '
    assert silent + "1.0" in (await runtime.services.metrics.render()).decode()

    clock.advance(timedelta(hours=1))
    await listed(runtime, simulator)
    await monitor._look_for_silence()
    assert silent + "0.0" in (await runtime.services.metrics.render()).decode()
    clock.advance(timedelta(days=3))
    await poll(runtime)
    await monitor._look_for_silence()
    assert count(events, "silence") == 2


async def test_user_who_never_received_anything_is_silent_too(
    runtime: Runtime, monitor: Monitor, clock: QuickClock, events: list[Event]
) -> None:
    _, state = parts(runtime)
    state.user = replace(state.user, expect=Expect(timedelta(hours=1)))
    clock.advance(timedelta(hours=1, minutes=1))
    await poll(runtime)
    async with running(monitor, "silence"):
        await until(lambda: count(events, "silence"))
        await asyncio.sleep(0.01)
    assert count(events, "silence") == 1


async def test_time_of_a_fax_that_lies_in_the_future_does_not_hide_silence(
    runtime: Runtime, simulator: Simulator, monitor: Monitor, clock: QuickClock, events: list[Event]
) -> None:
    account, state = parts(runtime)
    state.user = replace(state.user, expect=Expect(timedelta(hours=1)))
    _, row = await listed(runtime, simulator)
    account._on_discovered(state, [replace(row, received_at=clock.now() + timedelta(days=999))])
    clock.advance(timedelta(hours=2))
    await poll(runtime)
    await monitor._look_for_silence()
    assert count(events, "silence") == 1


async def test_an_outage_is_no_silence_of_its_users(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock, events: list[Event]
) -> None:
    """Nor after a restart in the middle, which remembers nothing of how long it lasted."""
    settings = expecting(make_config(simulator.base_url), timedelta(hours=2))
    async with opened_runtime(settings, clock) as runtime:
        await poll_both(runtime)
        await suspend(runtime, simulator)
        monitor = Monitor(runtime, Planner(runtime))
        for _ in range(6):
            await monitor._look_for_silence()
            clock.advance(timedelta(hours=1))
    async with opened_runtime(settings, clock) as runtime:
        monitor = Monitor(runtime, Planner(runtime))
        await monitor._look_for_silence()
        assert not said(events, "silence")
        simulator.outage(False)
        await poll_both(runtime)
        await monitor._look_for_silence()
        assert said(events, "silence") == ["silence", "silence"]


async def test_after_a_downtime_silence_counts_only_listed_time(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock, events: list[Event]
) -> None:
    """Both were silent before; faxes of one arrived while poller was off."""
    settings = expecting(make_config(simulator.base_url), timedelta(days=2))
    async with opened_runtime(settings, clock) as runtime:
        clock.advance(timedelta(days=2, hours=1))
        await poll_both(runtime)
        await Monitor(runtime, Planner(runtime))._look_for_silence()
        assert said(events, "silence") == ["silence", "silence"]
    clock.advance(timedelta(days=3))
    simulator.receive(APP, "user-a", completed=clock.now() - timedelta(hours=50))
    simulator.receive(APP, "user-a", completed=clock.now() - timedelta(hours=47))
    events.clear()
    async with opened_runtime(settings, clock) as runtime:
        monitor = Monitor(runtime, Planner(runtime))
        await monitor._look_for_silence()
        assert not said(events, "silence")
        await poll_both(runtime)
        await monitor._look_for_silence()
        assert [e.fields["user"] for e in events if e.action == "silence"] == ["user-b"]


# -- regular reports ----------------------------------------------------------------------------------


async def test_account_summary_tells_what_happened_since_the_last_one(
    runtime: Runtime, simulator: Simulator, monitor: Monitor, events: list[Event]
) -> None:
    await listed(runtime, simulator)
    await runtime.accounts[APP].workers.run_until_idle()
    await listed(runtime, simulator)
    await monitor._summarise()
    await monitor._summarise()

    first, second = [event.fields for event in events if event.action == "account-summary"]
    assert first | {"lag_s": 0} == {
        "account": "main", "users": 2, "polls": 2, "failed_polls": 0, "discovered": 2,
        "stored": 1, "failed_fetches": 0, "rate_limited": 0, "pending": 1, "quarantined": 0,
        "lag_s": 0, "suspended": False, "level": "info",
    }  # fmt: skip
    assert (second["polls"], second["stored"], second["pending"]) == (0, 0, 1)


async def test_ledger_that_cannot_be_read_ends_none_of_the_loops(
    runtime: Runtime, monitor: Monitor, monkeypatch: pytest.MonkeyPatch, clock: QuickClock
) -> None:
    asked = 0

    async def refuses(_: object) -> Any:
        nonlocal asked
        asked += 1
        raise LedgerUnavailable("the ledger is locked")

    around(monkeypatch, runtime.services.ledger, streams.all_streams, refuses)
    async with running(monitor, "summary", "gauges"):
        await until(lambda: asked > 40)


async def test_the_status_line_knows_what_is_pending_from_the_start(
    runtime: Runtime, simulator: Simulator, monitor: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(_: float) -> None:
        await asyncio.Event().wait()

    await listed(runtime, simulator)
    monkeypatch.setattr(runtime.services.clock, "sleep", never)
    async with running(monitor, "gauges"):
        await until(lambda: "1 pending" in monitor.readiness.status_line())


async def test_gauges_and_status_line_follow_the_ledger(
    runtime: Runtime, simulator: Simulator, monitor: Monitor
) -> None:
    await listed(runtime, simulator)
    async with running(monitor, "gauges"):
        await until(lambda: "1 pending" in monitor.readiness.status_line())
    assert monitor.readiness.status_line().startswith(
        "2 users, 1 pending, 0 quarantined, largest lag "
    )
    rendered = (await runtime.services.metrics.render()).decode()
    assert 'poller_fax_pending{account="main",direction="received",user="user-a"} 1.0' in rendered
    assert 'poller_account_suspended{account="main"} 0.0' in rendered

    await suspend(runtime, simulator)
    assert "suspended: main" in monitor.readiness.status_line()
    runtime.rejected = "a.yaml:1: poll: mistake"
    assert "the last reload was rejected" in monitor.readiness.status_line()


async def test_what_only_the_service_knows_is_kept_for_those_outside_when_it_changes(
    runtime: Runtime, simulator: Simulator, monitor: Monitor, clock: QuickClock
) -> None:
    ledger, client = runtime.services.ledger, runtime.accounts[APP].client
    directory = str(runtime.config.storage.directory)
    await monitor._gauges()
    assert RuntimeReport.read(await ledger.read(meta.value, meta.RUNTIME_REPORT)) == RuntimeReport(
        directory
    )

    commits = ledger.commits
    await monitor._gauges()
    assert ledger.commits == commits

    unmount(runtime)
    await runtime.services.gate.look_again()
    runtime.rejected = "a.yaml:1: poll: mistake"
    client.pacing.rate_limited(clock.monotonic(), 1.0)
    await monitor._gauges()
    said = RuntimeReport.read(await ledger.read(meta.value, meta.RUNTIME_REPORT))
    assert said is not None
    assert (said.reason, said.rejected) == (runtime.services.gate.reason, runtime.rejected)
    assert said.reason is not None
    assert said.rates == {"main": float(f"{client.pacing.speed.rate:.2g}")}


# -- alive --------------------------------------------------------------------------------------------


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(tmp_path / "notify"))
        told.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "30000000")
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        yield told


def heard(told: socket.socket) -> list[bytes]:
    messages = []
    while True:
        try:
            messages.append(told.recv(4096))
        except BlockingIOError:
            return messages


@pytest.mark.parametrize("what", ["scheduler", "ledger"])
async def test_watchdog_is_fed_only_while_scheduler_and_ledger_make_progress(
    runtime: Runtime, planner: Planner, monitor: Monitor, clock: QuickClock, systemd: socket.socket,
    monkeypatch: pytest.MonkeyPatch, what: str,
) -> None:  # fmt: skip
    planner.tick_at = clock.monotonic() + 1e6
    async with running(monitor, "watchdog"):
        await until(lambda: b"WATCHDOG=1" in heard(systemd))
        with monkeypatch.context() as stands_still:
            since = clock.monotonic() - 121
            if what == "scheduler":
                stands_still.setattr(planner, "tick_at", since)
            else:
                stands_still.setattr(
                    type(runtime.services.ledger), "waiting_since", property(lambda _: since)
                )
            heard(systemd)
            await asyncio.sleep(0.01)
            assert heard(systemd) == []
            assert not monitor.readiness.alive()
            assert "no progress" in monitor.readiness.troubles()[-1]
        await until(lambda: b"WATCHDOG=1" in heard(systemd))


async def test_standstill_of_scheduler_or_ledger_is_reported_once_by_name(
    monitor: Monitor, planner: Planner, clock: QuickClock, events: list[Event]
) -> None:
    planner.tick_at = clock.monotonic() - 121
    async with running(monitor, "stuck polls"):
        slept = len(clock.slept)
        await until(lambda: len(clock.slept) > slept + 5)
        assert [e.fields["what"] for e in events if e.action == "stalled"] == ["scheduler"]
        planner.tick_at = clock.monotonic() + 1e6
        slept = len(clock.slept)
        await until(lambda: len(clock.slept) > slept + 2)
        planner.tick_at = clock.monotonic() - 121
        await until(lambda: count(events, "stalled") == 2)


async def test_part_of_the_monitoring_that_hangs_is_named_and_the_next_one_comes(
    monitor: Monitor, monkeypatch: pytest.MonkeyPatch, events: list[Event]
) -> None:
    began = 0

    async def hang() -> None:
        nonlocal began
        began += 1
        await asyncio.Event().wait()

    monkeypatch.setattr("poller.ingest.hang_timeout.NO_PROGRESS_S", 0.02)
    monkeypatch.setattr(monitor, "_gauges", hang)
    async with running(monitor, "gauges"):
        await until(lambda: began >= 3)
    assert {e.fields["what"] for e in events if e.action == "stalled"} == {"gauges"}


async def test_loops_are_those_that_are_asked_for(
    runtime: Runtime, monitor: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    for url, more in [(None, set()), ("http://127.0.0.1:1/", {"heartbeat"})]:
        runtime.config = replace(runtime.config, heartbeat=Heartbeat(url))
        loops = monitor.loops()
        for loop in loops.values():
            loop.close()
        assert set(loops) == NAMES | more


async def test_stuck_polls_are_looked_for(
    runtime: Runtime, monitor: Monitor, planner: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = asyncio.Event()
    monkeypatch.setattr(planner, "end_stuck_polls", looks.set)
    async with running(monitor, "stuck polls"), asyncio.timeout(90):
        await looks.wait()


# -- heartbeat ----------------------------------------------------------------------------------------


@asynccontextmanager
async def dead_man() -> AsyncIterator[Any]:
    """A heartbeat service: its address, its pings, and its answer."""
    service = SimpleNamespace(pings=0, status=200, url="")

    async def ping(_: web.Request) -> web.Response:
        service.pings += 1
        return web.Response(status=service.status)

    app = web.Application()
    app.router.add_get("/ping", ping)
    runner = web.AppRunner(app)
    await runner.setup()
    runtime = web.TCPSite(runner, "127.0.0.1", 0)
    await runtime.start()
    service.url = f"http://127.0.0.1:{runner.addresses[0][1]}/ping"
    try:
        yield service
    finally:
        await runner.cleanup()


async def all_polled(runtime: Runtime, planner: Planner) -> None:
    for state in runtime.states:
        await poll(runtime, state.user.name)
        state.sweep_now = False
        state.user = replace(state.user, poll=CRON)
    planner.plan()


async def overdue(runtime: Runtime, monitor: Monitor) -> dict[str, str]:
    """Return what the metrics say about each user, and about the whole."""
    await monitor._gauges()
    shown = (await runtime.services.metrics.render()).decode()
    of_users = re.findall(r'^poller_user_overdue\{.*user="(.*)"\} (.*)$', shown, re.MULTILINE)
    return {**dict(of_users), "ready": re.findall("^poller_ready (.*)$", shown, re.MULTILINE)[0]}


async def test_heartbeat_is_sent_only_while_every_user_was_really_polled(
    runtime: Runtime, simulator: Simulator, planner: Planner, monitor: Monitor, clock: QuickClock
) -> None:
    async with dead_man() as service:
        runtime.config = replace(runtime.config, heartbeat=Heartbeat(service.url))
        await poll(runtime, "user-a")
        planner.plan()
        await monitor._heartbeat.ping()
        assert service.pings == 0
        assert monitor.readiness.troubles() == []  # not yet
        clock.advance(timedelta(minutes=6))
        planner.tick_at = clock.monotonic()
        await poll(runtime, "user-a")
        await monitor.watch_pace()
        assert monitor.readiness.catching_up  # calms the page, but is no readiness
        assert monitor.readiness.troubles() == [
            "1 of 2 users were not polled in time, for example main/user-b. "
            "See `poller help user-overdue`."
        ]
        assert await overdue(runtime, monitor) == {"user-a": "0.0", "user-b": "1.0", "ready": "0.0"}

        await all_polled(runtime, planner)
        await monitor._heartbeat.ping()
        assert service.pings == 1
        assert monitor.readiness.troubles() == []
        assert await overdue(runtime, monitor) == {"user-a": "0.0", "user-b": "0.0", "ready": "1.0"}

        runtime.services.gate.close("the disk is gone")
        await monitor._heartbeat.ping()
        assert service.pings == 1


@pytest.mark.parametrize("fault", ["html-200@list=always", "403@list=always"])
async def test_heartbeat_stops_while_the_last_poll_of_a_user_failed(
    runtime: Runtime, simulator: Simulator, planner: Planner, monitor: Monitor, fault: str
) -> None:
    async with dead_man() as service:
        runtime.config = replace(runtime.config, heartbeat=Heartbeat(service.url))
        await all_polled(runtime, planner)
        simulator.faults = faults(fault)
        await poll(runtime, "user-a")
        assert monitor.readiness.troubles() == []
        await monitor._heartbeat.ping()
        assert service.pings == 0
        simulator.faults = faults()
        parts(runtime)[1].ask_anyway = True
        await poll(runtime, "user-a")
        await monitor._heartbeat.ping()
        assert service.pings == 1


async def test_account_whose_every_list_is_nonsense_is_not_ready_before_its_users_are_overdue(
    runtime: Runtime, simulator: Simulator, planner: Planner, monitor: Monitor, clock: QuickClock
) -> None:
    await all_polled(runtime, planner)
    simulator.faults = faults("html-200@list=always")
    clock.advance(timedelta(minutes=3))
    for user in ("user-a", "user-a", "user-b"):
        await poll(runtime, user)
        planner.tick_at = clock.monotonic()
        assert monitor.readiness.troubles() == []  # one bad poll, or one user's trouble
    await poll(runtime, "user-b")
    (trouble,) = monitor.readiness.troubles()
    assert trouble.startswith("The last polls of every user in account main failed")
    assert (await overdue(runtime, monitor))["ready"] == "0.0"

    _, state = parts(runtime)
    state.progress = replace(state.progress, refusals=1)  # that is only the user's trouble
    assert monitor.readiness.troubles() == [trouble]
    state.progress = replace(state.progress, refusals=0)
    simulator.faults = faults()
    await poll(runtime, "user-a")
    assert monitor.readiness.troubles() == []


async def test_heartbeat_stops_while_the_account_is_suspended(
    runtime: Runtime, simulator: Simulator, planner: Planner, monitor: Monitor
) -> None:
    await all_polled(runtime, planner)
    await suspend(runtime, simulator)
    async with dead_man() as service:
        runtime.config = replace(runtime.config, heartbeat=Heartbeat(service.url))
        await monitor._heartbeat.ping()
        assert service.pings == 0
    assert monitor.readiness.troubles()[0].startswith("Account main is suspended: ")


async def test_heartbeat_stops_when_a_fax_has_failed_for_a_day_until_it_is_dismissed(
    runtime: Runtime, simulator: Simulator, planner: Planner, monitor: Monitor, clock: QuickClock
) -> None:
    fax, row = await listed(runtime, simulator, trouble="null-image")
    await fetch(runtime, fax)
    async with dead_man() as service:
        runtime.config = replace(runtime.config, heartbeat=Heartbeat(service.url))
        for hours in (23, 2):
            clock.advance(timedelta(hours=hours))
            await all_polled(runtime, planner)
            planner.tick_at = clock.monotonic()
            await monitor._look_for_failing()
            await monitor._heartbeat.ping()
            assert monitor.readiness.troubles() == []
            assert service.pings == 1  # at 23 hours, not at 25
        await runtime.services.ledger.write(
            jobs.dismiss, row.id, now=clock.now(), reason="eFax lost it"
        )
        await monitor._look_for_failing()
        await monitor._heartbeat.ping()
        assert service.pings == 2


async def test_failing_heartbeat_is_reported_once_and_its_recovery_with_the_count(
    runtime: Runtime, planner: Planner, monitor: Monitor, events: list[Event]
) -> None:
    await all_polled(runtime, planner)
    async with dead_man() as service:
        runtime.config = replace(runtime.config, heartbeat=Heartbeat(service.url))
        service.status = 500
        for _ in range(3):
            await monitor._heartbeat.ping()
        service.status = 200
        planner.tick_at = monitor._clock.monotonic() + 1e6
        async with running(monitor, "heartbeat"):
            await until(lambda: count(events, "heartbeat-recovered"))
    told = [event for event in events if event.action.startswith("heartbeat-")]
    assert [event.action for event in told] == ["heartbeat-failed", "heartbeat-recovered"]
    assert told[1].fields["failures"] == 3


@pytest.mark.parametrize("host", ["hc..invalid", "h" * 64 + ".invalid", "h\u200dc.invalid"])
async def test_heartbeat_to_a_name_that_nobody_can_look_up_fails_like_any_other(
    runtime: Runtime, planner: Planner, monitor: Monitor, events: list[Event], host: str
) -> None:
    await all_polled(runtime, planner)
    runtime.config = replace(runtime.config, heartbeat=Heartbeat(f"http://{host}/secret"))
    await monitor._heartbeat.ping()
    (failed,) = [event for event in events if event.action == "heartbeat-failed"]
    assert "secret" not in repr(failed)


async def test_heartbeat_goes_through_its_proxy(
    runtime: Runtime, planner: Planner, monitor: Monitor, events: list[Event]
) -> None:
    await all_polled(runtime, planner)
    async with dead_man() as proxy:
        heartbeat = Heartbeat("http://monitor.invalid/ping", proxy=proxy.url.removesuffix("/ping"))
        runtime.config = replace(runtime.config, heartbeat=heartbeat)
        await monitor._heartbeat.ping()
        assert proxy.pings == 1
    assert not said(events, "heartbeat-failed")


async def test_heartbeat_whose_name_is_not_answered_holds_its_own_threads_alone(
    runtime: Runtime, planner: Planner, monitor: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: over.wait(60))
    monitor._heartbeat._resolver = Resolver("the heartbeat", within_s=0.001)
    await all_polled(runtime, planner)
    runtime.config = replace(runtime.config, heartbeat=Heartbeat("http://monitor.invalid/ping"))
    for _ in range(2 * MOST):
        await monitor._heartbeat.ping()
    names = [one.name for one in threading.enumerate()]
    over.set()
    assert 1 <= sum(name.startswith("names of the heartbeat") for name in names) <= MOST
    assert not any(name.startswith("asyncio") for name in names)


# -- probes -------------------------------------------------------------------------------------------


async def test_suspended_account_is_probed_although_its_schedule_is_a_cron_time_far_away(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> None:
    async with opened_runtime(make_config(simulator.base_url, poll=CRON), clock) as runtime:
        planner = Planner(runtime)
        monitor = Monitor(runtime, planner)
        account = runtime.accounts[APP]
        for state in runtime.states:
            state.sweep_now = False
        planner.start()
        await suspend(runtime, simulator)
        before = len(simulator.requests)
        async with running(monitor, "probes"):
            await until(lambda: len(simulator.requests) > before)
            assert account.is_suspended
            simulator.outage(False)
            await until(lambda: not account.is_suspended)
        await planner.stop()
        await settled(account)


async def test_probes_end_with_their_account_and_begin_with_its_replacement(
    runtime: Runtime, simulator: Simulator, planner: Planner, monitor: Monitor, clock: QuickClock
) -> None:
    old = runtime.accounts[APP]
    asked: list[str] = []
    await suspend(runtime, simulator)
    await runtime.close_account(old)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner, "poll_soon", lambda state: asked.append(state.key))
        async with running(monitor, "probes"):
            slept = len(clock.slept)
            await until(lambda: len(clock.slept) > slept + 400)
            assert asked == []
            new = await runtime.add_account(old.account)
            new.states = old.states
            await suspend(runtime, simulator)
            await until(lambda: len(set(asked)) == 2)


async def test_users_who_are_configured_and_not_at_work_are_a_trouble(
    runtime: Runtime, planner: Planner, monitor: Monitor
) -> None:
    for state in runtime.states:
        state.sweep_now = False
    planner.start()
    for state in runtime.states:
        await runtime.accounts[APP].poll(state)
    assert monitor.readiness.troubles() == []
    runtime.accounts[APP].states.popitem()
    (trouble,) = monitor.readiness.troubles()
    assert trouble.startswith("The service polls 1 users, but 2 are configured")


async def test_probing_continues_with_another_user_when_one_is_refused(
    runtime: Runtime, simulator: Simulator, planner: Planner, monitor: Monitor
) -> None:
    for state in runtime.states:
        state.sweep_now = False
        state.user = replace(state.user, poll=CRON)
    planner.start()
    await suspend(runtime, simulator)
    before = {user: calls(simulator, "list", user) for user in ("user-a", "user-b")}
    simulator.faults = replace(faults("503@list=always"), outage=False)
    async with running(monitor, "probes"):
        await until(lambda: all(calls(simulator, "list", user) > before[user] for user in before))


async def test_fetch_of_a_healthy_runtime_is_no_trouble(
    runtime: Runtime, simulator: Simulator, planner: Planner, monitor: Monitor
) -> None:
    fax, _ = await listed(runtime, simulator)
    await fetch(runtime, fax)
    await all_polled(runtime, planner)
    assert monitor.readiness.troubles() == []
