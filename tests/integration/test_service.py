"""The daemon as a whole, in the test's own process: start, work, reload, stop."""

import asyncio
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from poller.config.model import (
    AccountHook,
    Config,
    HttpConfig,
    Poll,
    SecretRef,
    WebhookConfig,
)
from poller.daemon import service
from poller.daemon.monitor import Monitor
from poller.daemon.webhooks import Webhooks
from poller.errors import CannotStart, ConfigError, LedgerUnavailable, Problem
from poller.ingest.gate import Gate
from poller.ingest.runtime import Runtime, open_runtime
from poller.ledger import accounts, meta, streams
from poller.metrics import Metrics
from poller.runtime_report import RuntimeReport
from tests.conftest import APP, KEY, Event, MakeConfig, stored_files
from tests.efax import Simulator
from tests.integration.at_work import (
    HELD_S,
    WITHIN_S,
    calls,
    faults,
    in_background,
    said,
    unmount,
    until,
)
from tests.integration.in_between import around

OFTEN = Poll(every=timedelta(milliseconds=100))
Load = Callable[[], Config]


@pytest.fixture
async def efax() -> AsyncIterator[Simulator]:
    """A simulated eFax in real time, because the service uses the system's clock."""
    async with Simulator(seed=1) as running:
        running.add_app(APP, KEY)
        for user in ("user-a", "user-b"):
            running.add_user(APP, user)
        yield running


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what systemd hears."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(tmp_path / "notify"))
        ear.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))

        def heard() -> list[str]:
            messages = []
            while True:
                try:
                    messages.append(ear.recv(4096).decode())
                except BlockingIOError:
                    return messages

        yield heard


class Running:
    """A running service: its parts, and its task."""

    runtime: Runtime
    monitor: Monitor
    webhooks: Webhooks | None
    task: asyncio.Task[None]


@asynccontextmanager
async def started(settings: Config, load: Load | None = None) -> AsyncIterator[Running]:
    loop = asyncio.get_running_loop()
    now, ready = Running(), asyncio.Event()

    @asynccontextmanager
    async def serve(
        runtime: Runtime, monitor: Monitor, webhooks: Webhooks | None
    ) -> AsyncIterator[None]:
        now.runtime, now.monitor, now.webhooks = runtime, monitor, webhooks
        ready.set()
        yield

    opening = open_runtime(settings, {"KEY": KEY}, metrics=Metrics("test"))
    work = service.run(settings, opening, load=load or (lambda: settings), serve=serve)
    try:
        async with in_background(work) as (now.task,):
            await asyncio.wait(
                [now.task, asyncio.ensure_future(ready.wait())], return_when="FIRST_COMPLETED"
            )
            yield now
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(number)
        loop.set_exception_handler(None)


async def stopped(running: Running) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(running.task, 90)


async def test_service_tells_ready_fetches_what_comes_and_drains_on_sigterm(
    efax: Simulator, make_config: MakeConfig, events: list[Event], told: Callable[[], list[str]]
) -> None:
    settings = make_config(efax.base_url, poll=OFTEN)
    async with started(settings) as running:
        await until(lambda: calls(efax, "list", "user-b"))
        efax.receive(APP, "user-b", completed=datetime.now(UTC) - timedelta(seconds=1))
        await until(lambda: "fax-stored" in said(events, "fax-stored"))
        await stopped(running)

    assert len(stored_files(settings.storage.directory)) == 2
    assert said(
        events, "service-started", "service-ready", "service-stopping", "service-stopped"
    ) == ["service-started", "service-ready", "service-stopping", "service-stopped"]
    heard = told()
    assert heard[0].startswith("READY=1\nSTATUS=2 users")
    assert heard[-1].startswith("STOPPING=1")


async def test_second_signal_does_no_harm(
    efax: Simulator, make_config: MakeConfig, events: list[Event]
) -> None:
    async with started(make_config(efax.base_url, poll=OFTEN)) as running:
        await until(lambda: said(events, "service-ready"))
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        await stopped(running)
    assert said(events, "service-stopping") == ["service-stopping"]


async def test_background_work_that_dies_ends_the_service_with_its_error(
    efax: Simulator,
    make_config: MakeConfig,
    events: list[Event],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def dies(_: Monitor) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Monitor, "_watch_gate", dies)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        async with started(make_config(efax.base_url, poll=OFTEN)) as running:
            await asyncio.wait([running.task], timeout=WITHIN_S)
    assert said(events, "internal-error", "service-stopped") == ["internal-error"]


async def test_unusable_storage_is_ready_but_degraded(
    efax: Simulator, make_config: MakeConfig, events: list[Event], told: Callable[[], list[str]]
) -> None:
    settings = make_config(efax.base_url, poll=OFTEN)
    efax.receive(APP, "user-a", completed=datetime.now(UTC) - timedelta(seconds=1))
    with efax.hold("image"):
        async with started(settings) as running:
            await until(lambda: said(events, "fax-discovered"))
            await stopped(running)
        unmount(running.runtime)
    async with started(settings) as running:
        await until(lambda: said(events, "service-ready") == ["service-ready"] * 2)
        rows = await running.runtime.services.ledger.read(accounts.all_accounts)
        while rows[0].paused_since is None:  # the give-up clock stands still from the start
            rows = await running.runtime.services.ledger.read(accounts.all_accounts)
        await stopped(running)
    assert "degraded: the storage directory" in "".join(told())


async def test_gate_that_shuts_and_opens_again_is_reported_and_fetching_continues(
    efax: Simulator, make_config: MakeConfig, events: list[Event], told: Callable[[], list[str]]
) -> None:
    async with started(make_config(efax.base_url, poll=OFTEN)) as running:
        await until(lambda: said(events, "service-ready"))
        running.runtime.services.gate.close("the share is gone")
        assert "degraded: the share is gone" in "".join(told())
        efax.receive(APP, "user-a", completed=datetime.now(UTC) - timedelta(seconds=1))
        await until(lambda: said(events, "fax-stored"))
        await stopped(running)


async def test_outage_is_probed_and_everybody_is_polled_when_it_ends(
    efax: Simulator, make_config: MakeConfig, events: list[Event]
) -> None:
    efax.faults = faults("403@token=first:1")
    async with started(make_config(efax.base_url, poll=Poll(every=timedelta(days=1)))) as running:
        account = running.runtime.accounts[APP]
        await until(lambda: account.is_suspended)
        account.client.suspension.until = datetime.now(UTC)  # five seconds are long
        await until(lambda: said(events, "account-resumed"))
        await until(lambda: all(state.progress.last_success_at for state in running.runtime.states))
        await stopped(running)


# -- reload -------------------------------------------------------------------------------------------


async def test_sighup_takes_a_changed_configuration(
    efax: Simulator, make_config: MakeConfig, events: list[Event], told: Callable[[], list[str]]
) -> None:
    settings = make_config(efax.base_url, poll=OFTEN)
    efax.add_user(APP, "user-c")
    changed = make_config(efax.base_url, poll=OFTEN, users=("user-a", "user-c"), evidence_max=1)
    async with started(settings, lambda: changed) as running:
        await until(lambda: calls(efax, "list", "user-b"))
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: calls(efax, "list", "user-c"))
        await until(lambda: said(events, "service-reloaded"))
        await stopped(running)
    (reloaded,) = [event for event in events if event.action == "service-reloaded"]
    assert "evidence.max needs a restart" in reloaded.message
    heard = "".join(told())
    assert heard.index("RELOADING=1") < heard.rindex("READY=1")


async def test_reload_names_changed_users_and_faxes_that_nobody_fetches_now(
    efax: Simulator, make_config: MakeConfig, events: list[Event]
) -> None:
    users = [f"user-{letter}" for letter in "cdefghijklmn"]
    for user in users:
        efax.add_user(APP, user)
    efax.faults = faults("404@image=always")
    efax.receive(APP, "user-b", completed=efax.now() - timedelta(minutes=1))
    settings = make_config(efax.base_url, poll=OFTEN)
    (kept, *_), account = settings.users, settings.accounts[0]
    changed = make_config(efax.base_url, poll=OFTEN, users=("user-a", *users))
    more = changed.accounts[0].users[1:]
    account = replace(account, users=(replace(kept, name="desk-555-123-4567"), *more))
    loads = iter([replace(settings, accounts=(account,)), settings])
    async with started(settings, lambda: next(loads)) as running:
        await until(lambda: said(events, "fax-discovered"))
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: said(events, "service-reloaded"))
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: len(said(events, "service-reloaded")) == 2)
        await stopped(running)
    first, second = [event for event in events if event.action == "service-reloaded"]
    assert first.message == (
        "The configuration was reloaded; users: 12 added, 1 removed, 1 renamed; "
        "user main/user-b was removed with 0 quarantined and 1 pending fax; "
        "poller no longer fetches them."
    )
    assert first.fields["level"] == "warning"
    assert list(first.fields["added"]) == [f"main/{user}" for user in users[:10]]
    assert list(first.fields["removed"]) == ["main/user-b"]
    assert list(first.fields["renamed"]) == ["main/user-a -> main/desk-555-123-4567"]
    counts = [first.fields[f"{what}_count"] for what in ("added", "removed", "renamed")]
    assert counts == [12, 1, 1]
    assert (second.fields["level"], second.fields["removed_count"]) == ("info", 12)
    assert "no longer fetches" not in second.message


async def test_a_web_hook_continues_with_an_account_whose_address_has_changed(
    efax: Simulator, make_config: MakeConfig, events: list[Event]
) -> None:
    def configured(base_url: str) -> Config:
        hook = AccountHook("/efax/main", SecretRef("env", "KEY"))
        listen = WebhookConfig("127.0.0.1", 0)
        config = make_config(base_url, poll=Poll(every=timedelta(hours=6)), webhook=listen)
        return replace(config, accounts=(replace(config.accounts[0], webhook=hook),))

    elsewhere = configured(efax.base_url.replace("127.0.0.1", "localhost"))
    async with started(configured(efax.base_url), lambda: elsewhere) as running:
        await until(lambda: len(said(events, "poll-completed")) == 2)
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: said(events, "service-reloaded"))
        await until(lambda: len(said(events, "poll-completed")) == 4)
        webhooks = running.webhooks
        assert webhooks is not None
        assert await webhooks.find("/efax/main") == (APP, KEY)
        efax.receive(APP, "user-b", completed=datetime.now(UTC) - timedelta(seconds=1))
        webhooks.taken(APP, b'{"user_id": "user-b"}')
        await until(lambda: said(events, "fax-stored"))
        await until(lambda: calls(efax, "notifications"))
        await stopped(running)
        assert await webhooks.find("/efax/main") is None
    assert len(said(events, "poll-completed")) == 5
    assert said(events, "internal-error", "stalled") == []


async def test_reload_says_that_a_changed_credential_needs_a_restart(
    efax: Simulator, make_config: MakeConfig, events: list[Event]
) -> None:
    token = HttpConfig(host=None, token=SecretRef("credential", "status-token"))
    settings = make_config(efax.base_url, poll=OFTEN, http=token)
    async with started(settings) as running:
        await until(lambda: calls(efax, "list", "user-b"))
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: said(events, "service-reloaded"))
        await stopped(running)
    (reloaded,) = [event for event in events if event.action == "service-reloaded"]
    assert reloaded.message == (
        "The configuration was reloaded; a credential that has changed needs "
        "`systemctl restart poller`."
    )


async def test_every_problem_of_a_broken_configuration_is_reported_and_the_old_one_stays(
    efax: Simulator, make_config: MakeConfig, events: list[Event]
) -> None:
    def broken() -> Config:
        raise ConfigError([Problem("a.yaml", 1, "poll", "x"), Problem("a.yaml", 2, "poll", "y")])

    async with started(make_config(efax.base_url, poll=OFTEN), broken) as running:
        await until(lambda: calls(efax, "list"))
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: said(events, "config-rejected") == ["config-rejected"] * 2)
        before = calls(efax, "list")
        await until(lambda: calls(efax, "list") > before)
        await stopped(running)


async def test_what_makes_the_storage_unusable_is_kept_for_those_outside_at_once(
    efax: Simulator, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poller.daemon.monitor._GAUGES_S", 1e6)
    async with started(make_config(efax.base_url, poll=OFTEN)) as running:
        ledger, gate = running.runtime.services.ledger, running.runtime.services.gate

        async def reason() -> str | None:
            verdict = RuntimeReport.read(await ledger.read(meta.value, meta.RUNTIME_REPORT))
            return verdict.reason if verdict is not None else None

        await until(lambda: calls(efax, "list"))
        unmount(running.runtime)
        await until(lambda: gate.reason)
        while await reason() != gate.reason:
            await asyncio.sleep(0)
        await stopped(running)


async def test_a_rejected_configuration_is_shown_until_one_is_taken(
    efax: Simulator, make_config: MakeConfig, events: list[Event]
) -> None:
    settings = make_config(efax.base_url, poll=OFTEN)
    mended = False

    def load() -> Config:
        if mended:
            return settings
        raise ConfigError([Problem("a.yaml", 1, "poll", "x"), Problem("a.yaml", 2, "poll", "y")])

    async with started(settings, load) as running:
        runtime = running.runtime
        await until(lambda: calls(efax, "list"))
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: said(events, "config-rejected") == ["config-rejected"] * 2)
        assert runtime.rejected is not None
        assert runtime.rejected.startswith("a.yaml:1: poll: x")
        assert "poller_config_rejected 1.0" in (await runtime.services.metrics.render()).decode()
        mended = True
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: said(events, "service-reloaded"))
        assert running.runtime.rejected is None
        assert "poller_config_rejected 0.0" in (await runtime.services.metrics.render()).decode()
        await stopped(running)


async def test_configuration_on_a_hung_share_ends_its_reload_and_the_next_one_is_taken(
    efax: Simulator, make_config: MakeConfig, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_config(efax.base_url, poll=OFTEN)
    let_go, loads = threading.Event(), 0

    def load() -> Config:
        nonlocal loads
        loads += 1
        if loads == 1:
            let_go.wait(HELD_S)
        return settings

    try:
        async with started(settings, load) as running:
            await until(lambda: calls(efax, "list"))
            with monkeypatch.context() as impatient:
                impatient.setattr("poller.daemon.service.NO_PROGRESS_S", 0.1)
                os.kill(os.getpid(), signal.SIGHUP)
                await until(lambda: said(events, "stalled"))
            before = calls(efax, "list")
            await until(lambda: calls(efax, "list") > before)
            os.kill(os.getpid(), signal.SIGHUP)
            await until(lambda: said(events, "service-reloaded"))
            let_go.set()
            await stopped(running)
    finally:
        let_go.set()
    assert [e.fields["what"] for e in events if e.action == "stalled"] == ["reload"]


async def test_ca_file_that_is_missing_after_a_reload_does_not_end_the_service(
    efax: Simulator, make_config: MakeConfig, events: list[Event], tmp_path: Path
) -> None:
    settings = make_config(efax.base_url, poll=OFTEN)
    account = replace(settings.accounts[0], ca_file=tmp_path / "none.pem")
    async with started(settings, lambda: replace(settings, accounts=(account,))) as running:
        await until(lambda: calls(efax, "list"))
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: said(events, "config-rejected"))
        assert not running.task.done()
        await stopped(running)


async def test_polls_that_wait_for_their_turn_are_ended_when_their_account_is_replaced(
    efax: Simulator, make_config: MakeConfig, events: list[Event]
) -> None:
    settings = make_config(efax.base_url, poll=OFTEN)
    account = replace(settings.accounts[0], name="renamed")
    async with started(settings, lambda: replace(settings, accounts=(account,))) as running:
        await until(lambda: all(state.progress.last_success_at for state in running.runtime.states))
        old = running.runtime.accounts[APP]
        old.client.pacing.rate_limited(running.runtime.services.clock.monotonic(), 600)
        await until(
            lambda: old.client.pacing.slots.waiting == 2 and not old.client.pacing.slots.under_way
        )
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: said(events, "service-reloaded"))
        before = {user: calls(efax, "list", user) for user in ("user-a", "user-b")}
        await until(lambda: all(calls(efax, "list", user) > before[user] for user in before))
        assert running.runtime.accounts[APP] is not old
        assert running.monitor.readiness.troubles() == []
        await stopped(running)


async def test_ledger_that_fails_before_the_reload_begins_changes_nothing(
    efax: Simulator,
    make_config: MakeConfig,
    events: list[Event],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refuses(*_: Any) -> None:
        raise LedgerUnavailable("the ledger is full")

    settings = make_config(efax.base_url, poll=OFTEN)
    account = replace(settings.accounts[0], name="renamed")
    async with started(settings, lambda: replace(settings, accounts=(account,))) as running:
        await until(lambda: all(state.progress.last_success_at for state in running.runtime.states))
        around(monkeypatch, running.runtime.services.ledger, streams.sync_account, refuses)
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: said(events, "config-rejected"))
        before = {user: calls(efax, "list", user) for user in ("user-a", "user-b")}
        await until(lambda: all(calls(efax, "list", user) > before[user] for user in before))
        assert {state.key for state in running.runtime.states} == {"main/user-a", "main/user-b"}
        assert running.monitor.readiness.troubles() == []
        await stopped(running)


async def test_reload_that_fails_half_way_ends_the_service_with_its_error(
    efax: Simulator,
    make_config: MakeConfig,
    events: list[Event],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refuses(*_: Any) -> None:
        raise LedgerUnavailable("the ledger is locked")

    settings = make_config(efax.base_url, poll=OFTEN)
    account = replace(settings.accounts[0], name="renamed")
    with pytest.raises(LedgerUnavailable, match="locked"):  # noqa: PT012
        async with started(settings, lambda: replace(settings, accounts=(account,))) as running:
            await until(
                lambda: all(state.progress.last_success_at for state in running.runtime.states)
            )
            monkeypatch.setattr("poller.ingest.runtime.load_streams", refuses)
            os.kill(os.getpid(), signal.SIGHUP)
            await asyncio.wait([running.task], timeout=WITHIN_S)
            assert (
                "The service polls 0 users, but 2 are configured"
                in running.monitor.readiness.troubles()[0]
            )
    assert said(events, "internal-error", "config-rejected", "service-stopped") == [
        "internal-error"
    ]


async def test_service_that_is_stopped_while_a_reload_drains_an_account_ends(
    efax: Simulator, make_config: MakeConfig, events: list[Event]
) -> None:
    settings = make_config(efax.base_url, poll=OFTEN, drain=timedelta(seconds=0.2))
    account = replace(settings.accounts[0], name="renamed")
    efax.receive(APP, "user-a", completed=datetime.now(UTC) - timedelta(seconds=1))
    changed = replace(settings, accounts=(account,), drain=timedelta(minutes=1))
    efax.faults = faults("stall-mid-body@image=always")
    async with started(settings, lambda: changed) as running:
        old = running.runtime.accounts[APP]
        await until(lambda: calls(efax, "image"))
        await until(lambda: old.workers._running)
        fax = next(iter(old.workers._running))
        await until(lambda: old.workers._fetcher.is_arriving(fax))
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: running.runtime.accounts[APP] is not old)
        await stopped(running)
        assert not old.workers._running
        assert not old.client._transport._sessions
    assert said(events, "internal-error", "service-reloaded") == []


async def test_reloads_that_come_close_together_are_done_one_after_the_other(
    efax: Simulator, make_config: MakeConfig, events: list[Event]
) -> None:
    settings = make_config(efax.base_url, poll=OFTEN)
    names = iter(("one", "two", "three"))

    def load() -> Config:
        account = replace(settings.accounts[0], name=next(names))
        return replace(settings, accounts=(account,))

    async with started(settings, load) as running:
        await until(lambda: calls(efax, "list"))
        for times in (1, 2, 3):
            os.kill(os.getpid(), signal.SIGHUP)
            await until(lambda: times)  # noqa: B023
            await asyncio.sleep(0)
        await until(lambda: len(said(events, "service-reloaded")) == 3)
        assert running.runtime.accounts[APP].account.name == "three"
        await stopped(running)
    assert said(events, "poll-failed", "internal-error") == []


async def test_service_that_cannot_start_says_why(
    efax: Simulator, make_config: MakeConfig, events: list[Event]
) -> None:
    settings = make_config(efax.base_url)
    settings.storage.directory.mkdir()
    (settings.storage.directory / "letter").write_text("somebody's")
    with pytest.raises(CannotStart, match="not empty"):
        async with started(settings) as running:
            await asyncio.wait([running.task], timeout=WITHIN_S)
    assert said(events, "start-refused", "service-ready") == ["start-refused"]


async def test_service_that_was_up_and_ended_is_not_said_to_be_refused(
    efax: Simulator, make_config: MakeConfig, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gone(_: Gate) -> bool:
        raise LedgerUnavailable("gone")

    with suppress(LedgerUnavailable):
        async with started(make_config(efax.base_url)) as running:
            monkeypatch.setattr(Gate, "check", gone)
            await asyncio.wait([running.task], timeout=WITHIN_S)
    assert said(events, "start-refused", "internal-error") == ["internal-error"]
