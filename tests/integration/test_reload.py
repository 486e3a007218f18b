"""A changed configuration is taken whole or not at all, and disturbs nothing that goes on."""

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
    Config,
    HttpConfig,
    Limits,
    LogConfig,
    Poll,
    SecretRef,
    StateConfig,
    User,
)
from poller.daemon import reload
from poller.errors import CannotStart, ConfigError, LedgerUnavailable, SignInRefused
from poller.ingest.account import AccountRunner
from poller.ingest.fetch import Outcome
from poller.ingest.site import Site
from poller.ledger import State, accounts, streams
from tests.conftest import APP, KEY, MakeConfig, QuickClock
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


async def apply(site: Site, settings: Config) -> tuple[list[str], list[str]]:
    """What needs a restart, and the accounts that were started."""
    started: list[str] = []
    prepared = await reload.prepare(site, settings)
    await reload.carry_out(
        site, prepared, close=site.close_account, start=lambda one: started.append(one.account.name)
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
    site: Site, simulator: Simulator, make_config: MakeConfig
) -> None:
    simulator.add_user(APP, "user-c")
    await poll(site, "user-b")
    before = site.accounts[APP]

    restart_for, started = await apply(
        site, make_config(simulator.base_url, users=("user-b", "user-c"))
    )

    assert (restart_for, started) == ([], [])
    assert site.accounts[APP] is before
    assert {state.key for state in site.states} == {"main/user-b", "main/user-c"}
    assert before.client.suspension.user_count == 2
    await listed(site, simulator, "user-c")
    rows = {row.user: row.removed for row in await site.shop.ledger.read(streams.all_streams)}
    assert rows == {"user-a": True, "user-b": False, "user-c": False}
    assert 'user="user-a"' not in (await site.shop.metrics.render()).decode()


async def test_changed_poll_of_a_user_keeps_what_is_remembered(
    site: Site, simulator: Simulator, make_config: MakeConfig
) -> None:
    await poll(site)
    _, before = parts(site)
    await apply(site, make_config(simulator.base_url, poll=Poll(every=timedelta(minutes=7))))

    _, after = parts(site)
    assert after is before
    assert after.user.poll.every == timedelta(minutes=7)


async def test_changed_limits_and_secret_are_taken_without_a_new_connection(
    site: Site, simulator: Simulator, make_config: MakeConfig
) -> None:
    account = site.accounts[APP]
    site.environ = {"KEY": "another-key", "KEY_2": KEY}
    settings = make_config(simulator.base_url, limits=Limits(2.0, 3, 4))
    await apply(site, with_account(settings, api_key=SecretRef("env", "KEY_2")))

    assert site.accounts[APP] is account
    assert account.client.pacing.speed.limit == 2.0
    assert account.workers.at_once == 6
    assert not (await poll(site)).failed


async def test_changed_secret_is_signed_in_with_at_the_next_call_and_an_unchanged_one_is_not(
    site: Site, simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> None:
    await poll(site)
    await apply(site, make_config(simulator.base_url, limits=Limits(2.0, 3, 4)))
    await poll(site)
    assert simulator.sign_ins[APP] == 1

    site.environ = {"KEY": "another-key"}
    await apply(site, make_config(simulator.base_url))
    assert isinstance((await poll(site)).error, SignInRefused)
    clock.advance(timedelta(seconds=1))
    assert (await poll(site)).skipped is not None  # suspended, and no probe is due
    asked = calls(simulator, "token")

    site.environ = {"KEY": KEY}
    await apply(site, make_config(simulator.base_url))
    assert not (await poll(site)).failed
    assert site.accounts[APP].client.suspension.until is None
    assert calls(simulator, "token") == asked + 1


async def test_account_that_is_added_is_started_and_one_that_is_removed_is_closed(
    site: Site, simulator: Simulator, make_config: MakeConfig
) -> None:
    alone = make_config(simulator.base_url)
    restart_for, started = await apply(site, second(alone, simulator))
    assert (restart_for, started) == ([], ["second"])
    (state,) = site.accounts[OTHER].states.values()
    assert not (await site.accounts[OTHER].poll(state)).failed

    assert await apply(site, alone) == ([], [])
    assert set(site.accounts) == {APP}


@pytest.mark.parametrize("change", [{"name": "renamed"}, {"base_url": "other"}])
async def test_account_with_another_name_or_address_is_closed_and_opened_anew(
    site: Site, simulator: Simulator, make_config: MakeConfig, change: dict[str, str]
) -> None:
    fax, _ = await listed(site, simulator)
    await fetch(site, fax)
    before = site.accounts[APP]
    if "base_url" in change:
        change = {"base_url": f"http://localhost:{simulator.port}"}

    _, started = await apply(site, with_account(make_config(simulator.base_url), **change))

    assert started == [site.accounts[APP].account.name]
    assert site.accounts[APP] is not before
    assert (await poll(site)).discovered == []


async def test_missing_secret_rejects_everything_and_changes_nothing(
    site: Site, simulator: Simulator, make_config: MakeConfig
) -> None:
    before, config = dict(site.accounts), site.config
    settings = second(make_config(simulator.base_url, users=("user-a",)), simulator)
    broken = replace(settings.accounts[1], api_key=SecretRef("env", "NOT_SET"))
    with pytest.raises(ConfigError, match="NOT_SET"):
        await apply(site, replace(settings, accounts=(settings.accounts[0], broken)))

    assert site.accounts == before
    assert site.config is config
    assert len(site.states) == 2


async def test_missing_ca_file_rejects_everything_and_changes_nothing(
    site: Site, simulator: Simulator, make_config: MakeConfig, tmp_path: Path
) -> None:
    before, config = dict(site.accounts), site.config
    settings = with_account(make_config(simulator.base_url), ca_file=tmp_path / "none.pem")
    with pytest.raises(CannotStart, match="ca_file"):
        await apply(site, settings)

    assert site.accounts == before
    assert site.config is config
    assert not (await poll(site)).failed


async def test_ledger_that_takes_no_writes_rejects_everything_and_changes_nothing(
    site: Site, simulator: Simulator, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuses(*_: Any) -> None:
        raise LedgerUnavailable("the ledger is locked")

    monkeypatch.setattr(site.shop.ledger, "check_writable", refuses)
    config = site.config
    with pytest.raises(LedgerUnavailable):
        await apply(site, make_config(simulator.base_url, users=("user-a",)))
    assert site.config is config
    assert len(site.states) == 2


async def test_what_only_a_restart_can_change_is_named_and_stays(
    site: Site, simulator: Simulator, make_config: MakeConfig, tmp_path: Path
) -> None:
    config = site.config
    settings = make_config(
        simulator.base_url,
        state=StateConfig(tmp_path / "elsewhere"),
        evidence_max=1,
        log=LogConfig(level="debug", format="console"),
        http=HttpConfig(None, 9411),
        drain=timedelta(seconds=3),
    )
    restart_for, _ = await apply(site, settings)

    assert restart_for == ["state", "evidence.max", "log.format", "http.listen"]
    assert (site.config.log, site.config.http) == (LogConfig(level="debug"), config.http)
    assert site.config.state == config.state
    assert site.config.drain == timedelta(seconds=3)


@pytest.mark.parametrize(("kind", "heard"), [("file", ["the new one"]), ("credential", [])])
async def test_token_of_the_page_is_read_again_unless_it_is_a_credential(
    site: Site,
    simulator: Simulator,
    make_config: MakeConfig,
    tmp_path: Path,
    kind: Literal["file", "credential"],
    heard: list[str],
) -> None:
    file = tmp_path / "token"
    file.write_text("the new one\n")
    http = HttpConfig(None, token=SecretRef(kind, str(file)))
    site.config = replace(site.config, http=http)
    taken: list[str] = []
    site.on_http_token = taken.append
    restart_for, _ = await apply(site, make_config(simulator.base_url, http=http))
    assert (restart_for, taken) == ([], heard)


async def test_token_that_cannot_be_read_any_more_rejects_the_reload(
    site: Site, simulator: Simulator, make_config: MakeConfig, tmp_path: Path
) -> None:
    http = HttpConfig(None, token=SecretRef("file", str(tmp_path / "none")))
    site.config = replace(site.config, http=http)
    with pytest.raises(ConfigError, match="cannot be read"):
        await apply(site, make_config(simulator.base_url, http=http))


async def test_level_of_the_log_is_changed_by_a_reload(
    site: Site, simulator: Simulator, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = io.StringIO()
    monkeypatch.setattr(log, "_route_standard_logging", lambda: None)
    log.configure("info", "json", None, lines)
    try:
        log.event("token-refreshed", "Said at debug only.", level="debug")
        assert lines.getvalue() == ""
        await apply(site, make_config(simulator.base_url, log=LogConfig(level="debug")))
        log.event("token-refreshed", "Said at debug only.", level="debug")
        assert "token-refreshed" in lines.getvalue()
    finally:
        log.set_level("debug")
        structlog.reset_defaults()


async def test_downloads_that_are_coming_in_go_on_over_a_reload(
    site: Site, simulator: Simulator, make_config: MakeConfig
) -> None:
    account, _ = parts(site)
    fax, _ = await listed(site, simulator)
    with simulator.hold("image") as gate:
        fetching = asyncio.create_task(account.workers.run_until_idle())
        await asyncio.wait_for(gate.reached(), 60)
        await apply(site, make_config(simulator.base_url, limits=Limits(2.0, 3, 4)))
    await fetching
    assert (await row(site, fax)).state is State.STORED
    assert calls(simulator, "image") == 1


async def test_start_is_told_the_account_itself(
    site: Site, simulator: Simulator, make_config: MakeConfig
) -> None:
    started: list[AccountRunner] = []
    prepared = await reload.prepare(site, second(make_config(simulator.base_url), simulator))
    await reload.carry_out(site, prepared, close=site.close_account, start=started.append)
    assert started == [site.accounts[OTHER]]


async def test_ledger_that_does_not_take_the_users_rejects_everything_and_changes_nothing(
    site: Site, simulator: Simulator, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuses(*_: Any) -> None:
        raise LedgerUnavailable("the ledger is full")

    opened: list[AccountRunner] = []
    open_account = site.open_account

    async def watched(account: Account, secret: str) -> AccountRunner:
        opened.append(await open_account(account, secret))
        return opened[-1]

    monkeypatch.setattr(site, "open_account", watched)
    around(monkeypatch, site.shop.ledger, streams.sync, refuses)
    before, config, states = dict(site.accounts), site.config, site.states
    settings = with_account(second(make_config(simulator.base_url), simulator), name="renamed")
    with pytest.raises(LedgerUnavailable, match="full"):
        await apply(site, settings)

    assert (site.accounts, site.config, site.states) == (before, config, states)
    assert not (await poll(site)).failed
    assert [one.account.name for one in opened] == ["renamed"]
    assert not any(one.client._transport._sessions for one in opened)


async def test_what_is_known_of_accounts_that_are_gone_or_renamed_is_forgotten(
    site: Site, simulator: Simulator, make_config: MakeConfig
) -> None:
    alone = make_config(simulator.base_url)
    await apply(site, second(alone, simulator))
    await poll(site)
    (state,) = site.accounts[OTHER].states.values()
    await site.accounts[OTHER].poll(state)
    await suspend(site, simulator)
    site.accounts[OTHER].on_suspended(site.shop.clock.now(), "no answer")
    site.shop.metrics.set("account_suspended", 1, "second")
    await settled(site.accounts[OTHER])
    assert all(row.suspended_until for row in await site.shop.ledger.read(accounts.all_accounts))

    users = tuple(replace(user, account="renamed") for user in alone.accounts[0].users)
    await apply(site, with_account(alone, name="renamed", users=users))

    rows = {row.app_id: row for row in await site.shop.ledger.read(accounts.all_accounts)}
    assert set(rows) == {APP, OTHER}
    assert not any(row.suspended_until or row.reason for row in rows.values())
    shown = (await site.shop.metrics.render()).decode().splitlines()
    of_users = [line for line in shown if ',user="' in line or "account_suspended{" in line]
    assert not [line for line in of_users if "second" in line or "main" in line]


async def test_suspension_of_an_account_that_stays_is_not_forgotten(
    site: Site, simulator: Simulator, make_config: MakeConfig
) -> None:
    await suspend(site, simulator)
    await apply(site, make_config(simulator.base_url, limits=Limits(2.0, 3, 4)))

    (row,) = await site.shop.ledger.read(accounts.all_accounts)
    assert row.suspended_until is not None
    shown = (await site.shop.metrics.render()).decode()
    assert 'poller_account_suspended{account="main"} 1.0' in shown


async def test_user_who_is_removed_while_its_poll_runs_is_not_counted_at_its_end(
    site: Site, simulator: Simulator, make_config: MakeConfig
) -> None:
    account, state = parts(site, "user-b")
    simulator.receive(APP, "user-b", completed=simulator.now() - timedelta(minutes=1))
    with simulator.hold("list"):
        polling = asyncio.create_task(account.poll(state))
        await until(lambda: calls(simulator, "list", "user-b"))
        await apply(site, make_config(simulator.base_url, users=("user-a",)))
    assert len((await polling).discovered) == 1
    assert 'user="user-b"' not in (await site.shop.metrics.render()).decode()


async def test_user_who_is_renamed_leaves_no_series_behind(
    site: Site, make_config: MakeConfig, simulator: Simulator
) -> None:
    await poll(site)
    settings = make_config(simulator.base_url)
    first, *others = settings.accounts[0].users
    await apply(site, with_account(settings, users=(replace(first, name="reception"), *others)))
    await poll(site, "reception")
    shown = (await site.shop.metrics.render()).decode()
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
    """A file that answers nobody until it may go on, or when a test has waited in vain."""
    fifo, go_on = directory / "secret", threading.Event()
    os.mkfifo(fifo)

    def answer() -> None:
        go_on.wait(WITHIN_S / 4)
        fifo.write_bytes(b"a-secret")

    threading.Thread(target=answer, daemon=True).start()
    return SecretRef("file", str(fifo)), go_on


@pytest.mark.parametrize("which", ["api_key", "http.token"])
async def test_secret_on_a_share_that_hangs_stops_nothing_but_its_reload(
    site: Site, simulator: Simulator, tmp_path: Path, which: str
) -> None:
    secret, go_on = hung_secret(tmp_path)
    if which == "api_key":
        accounts = tuple(replace(one, api_key=secret) for one in site.config.accounts)
        changed = replace(site.config, accounts=accounts)
    else:
        site.config = changed = replace(site.config, http=replace(site.config.http, token=secret))
    async with in_background(reload.prepare(site, changed)) as (preparing,):
        fax, _ = await listed(site, simulator)
        assert await fetch(site, fax) is Outcome.STORED
        assert not preparing.done()
        go_on.set()
        prepared = await preparing
    assert "a-secret" in (*prepared.secrets.values(), prepared.http_token)
