"""A changed configuration is taken as a whole or not at all, and disturbs nothing that runs."""

import asyncio
import io
import os
import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
import structlog

from poller import log
from poller.config.model import (
    Account,
    AccountHook,
    Archive,
    Canary,
    Config,
    Delete,
    HttpConfig,
    Limits,
    LogConfig,
    Poll,
    SecretRef,
    Sent,
    StateConfig,
    User,
    WebhookConfig,
)
from poller.daemon import reload
from poller.errors import CannotStart, ConfigError, LedgerUnavailable, SignInRefused
from poller.ingest.account import AccountRunner
from poller.ingest.fetch import Outcome
from poller.ingest.runtime import Runtime
from poller.ledger import State, accounts, streams
from poller.stream import Direction
from tests.conftest import APP, KEY, MakeConfig, QuickClock, opened_runtime
from tests.efax import Simulator
from tests.integration.at_work import (
    WITHIN_S,
    calls,
    fetch,
    in_background,
    listed,
    parts,
    poll,
    row,
    settled,
    suspend,
    until,
)
from tests.integration.in_between import around

OTHER = "app-2"


async def apply(runtime: Runtime, settings: Config) -> tuple[list[str], list[str]]:
    """Return what needs a restart, and the accounts that were started."""
    started: list[str] = []
    prepared = await reload.prepare(runtime, settings)
    await reload.carry_out(
        runtime,
        prepared,
        close=runtime.close_account,
        start=lambda one: started.append(one.account.name),
    )
    return list(prepared.plan.restart_for), started


def with_account(settings: Config, **changes: Any) -> Config:
    return replace(settings, accounts=(replace(settings.accounts[0], **changes),))


def second(settings: Config, simulator: Simulator) -> Config:
    simulator.add_app(OTHER, KEY)
    simulator.add_user(OTHER, "user-c")
    account = Account(
        "second", OTHER, SecretRef("env", "KEY"),
        (User("second", "user-c", OTHER, "user-c"),), simulator.base_url,
    )  # fmt: skip
    return replace(settings, accounts=(*settings.accounts, account))


async def test_user_that_is_added_is_polled_and_one_that_is_removed_is_forgotten(
    runtime: Runtime, simulator: Simulator, make_config: MakeConfig
) -> None:
    simulator.add_user(APP, "user-c")
    await poll(runtime, "user-b")
    before = runtime.accounts[APP]

    restart_for, started = await apply(
        runtime, make_config(simulator.base_url, users=("user-b", "user-c"))
    )

    assert (restart_for, started) == ([], [])
    assert runtime.accounts[APP] is before
    assert {state.key for state in runtime.states} == {"main/user-b", "main/user-c"}
    assert before.client.suspension.user_count == 2
    await listed(runtime, simulator, "user-c")
    rows = {
        row.user: row.removed for row in await runtime.services.ledger.read(streams.all_streams)
    }
    assert rows == {"user-a": True, "user-b": False, "user-c": False}
    assert 'user="user-a"' not in (await runtime.services.metrics.render()).decode()


async def test_changed_poll_of_a_user_keeps_its_memory(
    runtime: Runtime, simulator: Simulator, make_config: MakeConfig
) -> None:
    await poll(runtime)
    _, before = parts(runtime)
    await apply(runtime, make_config(simulator.base_url, poll=Poll(every=timedelta(minutes=7))))

    _, after = parts(runtime)
    assert after is before
    assert after.user.poll.every == timedelta(minutes=7)


async def test_changed_limits_and_secret_are_taken_without_a_new_connection(
    runtime: Runtime, simulator: Simulator, make_config: MakeConfig
) -> None:
    account = runtime.accounts[APP]
    runtime.environ = {"KEY": "another-key", "KEY_2": KEY}
    settings = make_config(simulator.base_url, limits=Limits(2.0, 3, 4))
    await apply(runtime, with_account(settings, api_key=SecretRef("env", "KEY_2")))

    assert runtime.accounts[APP] is account
    assert account.client.pacing.speed.limit == 2.0
    assert account.workers.at_once == 6
    assert not (await poll(runtime)).failed


async def test_changed_secret_is_signed_in_with_at_the_next_call_and_an_unchanged_one_is_not(
    runtime: Runtime, simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> None:
    await poll(runtime)
    await apply(runtime, make_config(simulator.base_url, limits=Limits(2.0, 3, 4)))
    await poll(runtime)
    assert simulator.sign_ins[APP] == 1

    runtime.environ = {"KEY": "another-key"}
    await apply(runtime, make_config(simulator.base_url))
    assert isinstance((await poll(runtime)).error, SignInRefused)
    clock.advance(timedelta(seconds=1))
    assert (await poll(runtime)).skipped is not None  # suspended, and no probe is due
    asked = calls(simulator, "token")

    runtime.environ = {"KEY": KEY}
    await apply(runtime, make_config(simulator.base_url))
    assert not (await poll(runtime)).failed
    assert runtime.accounts[APP].client.suspension.until is None
    assert calls(simulator, "token") == asked + 1


async def test_account_that_is_added_is_started_and_one_that_is_removed_is_closed(
    runtime: Runtime, simulator: Simulator, make_config: MakeConfig
) -> None:
    alone = make_config(simulator.base_url)
    restart_for, started = await apply(runtime, second(alone, simulator))
    assert (restart_for, started) == ([], ["second"])
    (state,) = runtime.accounts[OTHER].states.values()
    assert not (await runtime.accounts[OTHER].poll(state)).failed

    assert await apply(runtime, alone) == ([], [])
    assert set(runtime.accounts) == {APP}


@pytest.mark.parametrize("change", [{"name": "renamed"}, {"base_url": "other"}])
async def test_account_with_another_name_or_address_is_closed_and_opened_again(
    runtime: Runtime, simulator: Simulator, make_config: MakeConfig, change: dict[str, str]
) -> None:
    fax, _ = await listed(runtime, simulator)
    await fetch(runtime, fax)
    before = runtime.accounts[APP]
    if "base_url" in change:
        change = {"base_url": f"http://localhost:{simulator.port}"}

    _, started = await apply(runtime, with_account(make_config(simulator.base_url), **change))

    assert started == [runtime.accounts[APP].account.name]
    assert runtime.accounts[APP] is not before
    assert (await poll(runtime)).discovered == []


async def test_missing_secret_rejects_everything_and_changes_nothing(
    runtime: Runtime, simulator: Simulator, make_config: MakeConfig
) -> None:
    before, config = dict(runtime.accounts), runtime.config
    settings = second(make_config(simulator.base_url, users=("user-a",)), simulator)
    broken = replace(settings.accounts[1], api_key=SecretRef("env", "NOT_SET"))
    with pytest.raises(ConfigError, match="NOT_SET"):
        await apply(runtime, replace(settings, accounts=(settings.accounts[0], broken)))

    assert runtime.accounts == before
    assert runtime.config is config
    assert len(runtime.states) == 2


async def test_missing_ca_file_rejects_everything_and_changes_nothing(
    runtime: Runtime, simulator: Simulator, make_config: MakeConfig, tmp_path: Path
) -> None:
    before, config = dict(runtime.accounts), runtime.config
    settings = with_account(make_config(simulator.base_url), ca_file=tmp_path / "none.pem")
    with pytest.raises(CannotStart, match="ca_file"):
        await apply(runtime, settings)

    assert runtime.accounts == before
    assert runtime.config is config
    assert not (await poll(runtime)).failed


async def test_ledger_that_takes_no_writes_rejects_everything_and_changes_nothing(
    runtime: Runtime, simulator: Simulator, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuses(*_: Any) -> None:
        raise LedgerUnavailable("the ledger is locked")

    monkeypatch.setattr(runtime.services.ledger, "check_writable", refuses)
    config = runtime.config
    with pytest.raises(LedgerUnavailable):
        await apply(runtime, make_config(simulator.base_url, users=("user-a",)))
    assert runtime.config is config
    assert len(runtime.states) == 2


async def test_what_only_a_restart_can_change_is_named_and_stays(
    runtime: Runtime, simulator: Simulator, make_config: MakeConfig, tmp_path: Path
) -> None:
    config = runtime.config
    settings = make_config(
        simulator.base_url,
        state=StateConfig(tmp_path / "elsewhere"),
        evidence_max=1,
        log=LogConfig(level="debug", format="console"),
        http=HttpConfig(None, 9411),
        webhook=WebhookConfig("127.0.0.1", 9412),
        drain=timedelta(seconds=3),
    )
    restart_for, _ = await apply(runtime, settings)

    assert restart_for == ["state", "evidence.max", "log.format", "http.listen", "webhook"]
    assert (runtime.config.log, runtime.config.http) == (LogConfig(level="debug"), config.http)
    assert (runtime.config.state, runtime.config.webhook) == (config.state, None)
    assert runtime.config.drain == timedelta(seconds=3)


@pytest.mark.parametrize(("kind", "heard"), [("file", ["the new one"]), ("credential", [])])
async def test_token_of_the_page_is_read_again_unless_it_is_a_credential(
    runtime: Runtime,
    simulator: Simulator,
    make_config: MakeConfig,
    tmp_path: Path,
    kind: Literal["file", "credential"],
    heard: list[str],
) -> None:
    file = tmp_path / "token"
    file.write_text("the new one\n")
    http = HttpConfig(None, token=SecretRef(kind, str(file)))
    runtime.config = replace(runtime.config, http=http)
    taken: list[str] = []
    runtime.on_http_token = taken.append
    restart_for, _ = await apply(runtime, make_config(simulator.base_url, http=http))
    assert (restart_for, taken) == ([], heard)


async def test_token_that_has_become_unreadable_rejects_the_reload(
    runtime: Runtime, simulator: Simulator, make_config: MakeConfig, tmp_path: Path
) -> None:
    http = HttpConfig(None, token=SecretRef("file", str(tmp_path / "none")))
    runtime.config = replace(runtime.config, http=http)
    with pytest.raises(ConfigError, match="cannot be read"):
        await apply(runtime, make_config(simulator.base_url, http=http))


async def test_path_and_secret_of_a_web_hook_are_taken_at_once_and_its_listener_is_not(
    runtime: Runtime, simulator: Simulator, make_config: MakeConfig, tmp_path: Path
) -> None:
    assert runtime.hook_secrets == {}
    settings = make_config(simulator.base_url, webhook=WebhookConfig("127.0.0.1", 9411))
    runtime.config = replace(runtime.config, webhook=WebhookConfig("127.0.0.1", 9410))
    file = tmp_path / "hook"
    for path, secret in (("/one", "the first"), ("/two", "the second")):
        file.write_text(secret)
        hook = AccountHook(path, SecretRef("file", str(file)))
        restart_for, _ = await apply(runtime, with_account(settings, webhook=hook))
        assert restart_for == ["webhook"]
        assert runtime.accounts[APP].account.webhook == hook
        assert runtime.hook_secrets == {APP: secret}
        assert runtime.config.webhook == WebhookConfig("127.0.0.1", 9410)
    await apply(runtime, settings)
    assert runtime.hook_secrets == {}


async def test_secret_of_a_web_hook_that_cannot_be_read_rejects_the_reload_and_the_start(
    runtime: Runtime, simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> None:
    hook = AccountHook("/efax", SecretRef("env", "NO_HOOK"))
    settings = with_account(make_config(simulator.base_url), webhook=hook)
    config = runtime.config
    with pytest.raises(ConfigError, match="environment variable NO_HOOK is not set"):
        await apply(runtime, settings)
    assert runtime.config is config
    with pytest.raises(ConfigError, match="environment variable NO_HOOK is not set"):
        async with opened_runtime(settings, clock):
            raise AssertionError


async def test_secret_of_a_web_hook_is_read_at_a_start_and_never_shown(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> None:
    hook = AccountHook("/efax", SecretRef("env", "KEY"))
    settings = with_account(make_config(simulator.base_url), webhook=hook)
    async with opened_runtime(settings, clock) as runtime:
        assert runtime.hook_secrets == {APP: KEY}
        assert KEY not in repr(runtime)
        assert KEY not in repr(await reload.prepare(runtime, settings))


async def test_changes_for_users_take_effect_at_once(
    runtime: Runtime, simulator: Simulator, make_config: MakeConfig
) -> None:
    settings = make_config(simulator.base_url)
    new: dict[str, Any] = {
        "number": "13235550142",
        "mark_downloaded": False,
        "sent": Sent("image"),
        "delete": Delete(timedelta(days=30)),
        "canary": Canary(timedelta(days=1)),
    }
    users = tuple(replace(user, **new) for user in settings.accounts[0].users)
    restart_for, _ = await apply(runtime, with_account(settings, users=users))
    assert restart_for == []
    # in the users' streams, as many as they have now
    assert {state.user for state in runtime.states} == set(users)


async def test_reloads_turn_the_archive_on_and_off_and_it_continues_where_it_was(
    runtime: Runtime, simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> None:
    account, received = parts(runtime)
    lane = account.lanes[Direction.SENT]

    async def turn(archive: Archive) -> None:
        settings = make_config(simulator.base_url, of_user={"sent": Sent(archive)})
        assert await apply(runtime, settings) == ([], [])
        assert parts(runtime) == (account, received)

    async def round_of_sent() -> list[str]:
        clock.advance(timedelta(minutes=20))
        for state in list(lane.states.values()):
            assert not (await account.poll(state)).failed
        await lane.workers.run_until_idle()
        directory = runtime.config.storage.directory
        return sorted(path.stem for path in directory.rglob("*.json"))

    fax = simulator.sent(APP, "user-a")
    assert await round_of_sent() == []
    await turn("metadata")
    assert {state.key for state in lane.states.values()} == {"main/user-a/sent", "main/user-b/sent"}
    assert await round_of_sent() == [fax.fax_id]
    text = (await runtime.services.metrics.render()).decode()
    assert 'direction="sent"' in text
    await turn("none")
    assert lane.states == {}
    assert 'direction="sent"' not in (await runtime.services.metrics.render()).decode()
    asked = calls(simulator, "sent-list")
    later = simulator.sent(APP, "user-a")
    assert await round_of_sent() == [fax.fax_id]
    assert calls(simulator, "sent-list") == asked
    await turn("image")
    assert await round_of_sent() == sorted([fax.fax_id, later.fax_id])
    state = next(one for one in lane.states.values() if one.user.name == "user-a")
    assert state.progress.gaps == ()
    assert (await row(runtime, later)).file == (await row(runtime, later)).path + ".pdf"


async def test_level_of_the_log_is_changed_by_a_reload(
    runtime: Runtime, simulator: Simulator, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = io.StringIO()
    monkeypatch.setattr(log, "_route_standard_logging", lambda: None)
    log.configure("info", "json", None, lines)
    try:
        log.event("token-refreshed", "Said at debug only.", level="debug")
        assert lines.getvalue() == ""
        await apply(runtime, make_config(simulator.base_url, log=LogConfig(level="debug")))
        log.event("token-refreshed", "Said at debug only.", level="debug")
        assert "token-refreshed" in lines.getvalue()
    finally:
        log.set_level("debug")
        structlog.reset_defaults()


async def test_downloads_that_are_coming_in_go_on_over_a_reload(
    runtime: Runtime, simulator: Simulator, make_config: MakeConfig
) -> None:
    account, _ = parts(runtime)
    fax, _ = await listed(runtime, simulator)
    with simulator.hold("image") as gate:
        fetching = asyncio.create_task(account.workers.run_until_idle())
        await asyncio.wait_for(gate.reached(), 60)
        await apply(runtime, make_config(simulator.base_url, limits=Limits(2.0, 3, 4)))
    await fetching
    assert (await row(runtime, fax)).state is State.STORED
    assert calls(simulator, "image") == 1


async def test_start_is_told_the_account_itself(
    runtime: Runtime, simulator: Simulator, make_config: MakeConfig
) -> None:
    started: list[AccountRunner] = []
    prepared = await reload.prepare(runtime, second(make_config(simulator.base_url), simulator))
    await reload.carry_out(runtime, prepared, close=runtime.close_account, start=started.append)
    assert started == [runtime.accounts[OTHER]]


async def test_ledger_that_does_not_take_the_users_rejects_everything_and_changes_nothing(
    runtime: Runtime, simulator: Simulator, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuses(*_: Any) -> None:
        raise LedgerUnavailable("the ledger is full")

    opened: list[AccountRunner] = []
    open_account = runtime.open_account

    async def watched(account: Account, secret: str) -> AccountRunner:
        opened.append(await open_account(account, secret))
        return opened[-1]

    monkeypatch.setattr(runtime, "open_account", watched)
    around(monkeypatch, runtime.services.ledger, streams.sync_account, refuses)
    before, config, states = dict(runtime.accounts), runtime.config, runtime.states
    settings = with_account(second(make_config(simulator.base_url), simulator), name="renamed")
    with pytest.raises(LedgerUnavailable, match="full"):
        await apply(runtime, settings)

    assert (runtime.accounts, runtime.config, runtime.states) == (before, config, states)
    assert not (await poll(runtime)).failed
    assert [one.account.name for one in opened] == ["renamed"]
    assert not any(one.client._transport._sessions for one in opened)


async def test_what_is_known_of_accounts_that_are_gone_or_renamed_is_forgotten(
    runtime: Runtime, simulator: Simulator, make_config: MakeConfig
) -> None:
    alone = make_config(simulator.base_url)
    await apply(runtime, second(alone, simulator))
    await poll(runtime)
    (state,) = runtime.accounts[OTHER].states.values()
    await runtime.accounts[OTHER].poll(state)
    await suspend(runtime, simulator)
    runtime.accounts[OTHER].on_suspended(runtime.services.clock.now(), "no answer")
    runtime.services.metrics.set("account_suspended", 1, "second")
    await settled(runtime.accounts[OTHER])
    assert all(
        row.suspended_until for row in await runtime.services.ledger.read(accounts.all_accounts)
    )

    users = tuple(replace(user, account="renamed") for user in alone.accounts[0].users)
    await apply(runtime, with_account(alone, name="renamed", users=users))

    rows = {row.app_id: row for row in await runtime.services.ledger.read(accounts.all_accounts)}
    assert set(rows) == {APP, OTHER}
    assert not any(row.suspended_until or row.reason for row in rows.values())
    shown = (await runtime.services.metrics.render()).decode().splitlines()
    of_users = [line for line in shown if ',user="' in line or "account_suspended{" in line]
    assert not [line for line in of_users if "second" in line or "main" in line]


async def test_suspension_of_an_account_that_stays_is_not_forgotten(
    runtime: Runtime, simulator: Simulator, make_config: MakeConfig
) -> None:
    await suspend(runtime, simulator)
    await apply(runtime, make_config(simulator.base_url, limits=Limits(2.0, 3, 4)))

    (row,) = await runtime.services.ledger.read(accounts.all_accounts)
    assert row.suspended_until is not None
    shown = (await runtime.services.metrics.render()).decode()
    assert 'poller_account_suspended{account="main"} 1.0' in shown


async def test_user_who_is_removed_while_its_poll_runs_is_not_counted_at_its_end(
    runtime: Runtime, simulator: Simulator, make_config: MakeConfig
) -> None:
    account, state = parts(runtime, "user-b")
    simulator.receive(APP, "user-b", completed=simulator.now() - timedelta(minutes=1))
    with simulator.hold("list"):
        polling = asyncio.create_task(account.poll(state))
        await until(lambda: calls(simulator, "list", "user-b"))
        await apply(runtime, make_config(simulator.base_url, users=("user-a",)))
    assert len((await polling).discovered) == 1
    assert 'user="user-b"' not in (await runtime.services.metrics.render()).decode()


async def test_user_who_is_renamed_leaves_no_series_behind(
    runtime: Runtime, make_config: MakeConfig, simulator: Simulator
) -> None:
    await poll(runtime)
    settings = make_config(simulator.base_url)
    first, *others = settings.accounts[0].users
    await apply(runtime, with_account(settings, users=(replace(first, name="reception"), *others)))
    await poll(runtime, "reception")
    shown = (await runtime.services.metrics.render()).decode()
    assert 'user="reception"' in shown
    assert 'user="user-a"' not in shown


def test_plan_says_what_becomes_of_each_account(make_config: MakeConfig) -> None:
    (main,) = make_config("http://one").accounts
    stays, moves, goes, comes = (
        replace(main, name=name, app_id=f"app-{name}", users=())
        for name in ("stays", "moves", "goes", "comes")
    )
    old = make_config("http://one", accounts=(main, stays, moves, goes))
    other = replace(moves, base_url="http://two")
    limited = replace(stays, limits=Limits(1.0, 1, 1), api_key=SecretRef("env", "KEY_2"))
    fewer = replace(main, users=main.users[1:])
    planned = reload.plan(
        old, make_config("http://one", accounts=(comes, other, limited, fewer), evidence_max=1)
    )
    assert planned.stay == (limited, fewer)
    assert (planned.replaced, planned.new, planned.gone) == ((other,), (comes,), (goes.app_id,))
    assert planned.changes.removed == ("main/user-a",)
    assert planned.restart_for == ("evidence.max",)
    assert planned.settings.evidence_max == old.evidence_max


def hung_secret(directory: Path) -> tuple[SecretRef, threading.Event]:
    """A file that answers nobody until it may continue, or when a test has waited in vain."""
    fifo, go_on = directory / "secret", threading.Event()
    os.mkfifo(fifo)

    def answer() -> None:
        go_on.wait(WITHIN_S / 4)
        fifo.write_bytes(b"a-secret")

    threading.Thread(target=answer, daemon=True).start()
    return SecretRef("file", str(fifo)), go_on


@pytest.mark.parametrize("which", ["api_key", "webhook.secret", "http.token"])
async def test_secret_on_a_share_that_hangs_stops_nothing_but_its_reload(
    runtime: Runtime, simulator: Simulator, tmp_path: Path, which: str
) -> None:
    secret, go_on = hung_secret(tmp_path)
    if which == "api_key":
        changed = with_account(runtime.config, api_key=secret)
    elif which == "webhook.secret":
        changed = with_account(runtime.config, webhook=AccountHook("/efax", secret))
    else:
        runtime.config = changed = replace(
            runtime.config, http=replace(runtime.config.http, token=secret)
        )
    async with in_background(reload.prepare(runtime, changed)) as (preparing,):
        fax, _ = await listed(runtime, simulator)
        assert await fetch(runtime, fax) is Outcome.STORED
        assert not preparing.done()
        go_on.set()
        prepared = await preparing
    of_accounts = (*prepared.secrets.values(), *prepared.hook_secrets.values())
    assert "a-secret" in (*of_accounts, prepared.http_token)


def test_archive_that_is_turned_on_or_off_is_a_change_by_itself(make_config: MakeConfig) -> None:
    without = make_config("http://127.0.0.1:1", users=("user-a",))
    archived = make_config(
        "http://127.0.0.1:1", users=("user-a",), of_user={"sent": Sent(archive="image")}
    )
    on, off = reload.plan(without, archived).changes, reload.plan(archived, without).changes
    assert (on.added, on.removed, on.renamed) == (("main/user-a/sent",), (), ())
    assert (off.added, off.removed) == ((), ("main/user-a/sent",))
    account = replace(archived.accounts[0], users=(replace(archived.users[0], user_id="other"),))
    another = reload.plan(archived, replace(archived, accounts=(account,))).changes
    assert (another.added, another.removed) == (("main/user-a",), ("main/user-a",))
