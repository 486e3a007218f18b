"""A changed configuration is taken whole or not at all, and disturbs nothing that goes on."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from poller.config.model import Account, Config, Limits, LogConfig, Poll, SecretRef, User
from poller.daemon import reload
from poller.errors import CannotStart, ConfigError, LedgerUnavailable
from poller.ingest.account import AccountAtWork
from poller.ingest.site import Site
from poller.simulator import Simulator
from tests.conftest import APP, KEY, MakeConfig
from tests.integration.at_work import fetch, listed, parts, poll

OTHER = "app-2"


async def apply(site: Site, settings: Config) -> tuple[list[str], list[str]]:
    """What needs a restart, and the accounts that were started."""
    started: list[str] = []
    restart_for = await reload.apply(site, settings, lambda one: started.append(one.account.name))
    return restart_for, started


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
    rows = {row.user: row.removed for row in await site.shop.ledger.users()}
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
    assert account.client.pacing.limit == 2.0
    assert account.workers.at_once == 6
    assert not (await poll(site)).failed


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
        state_url=f"sqlite:///{tmp_path}/elsewhere/poller.db",
        evidence_max=1,
        log=LogConfig(level="debug"),
        drain=timedelta(seconds=3),
    )
    restart_for, _ = await apply(site, settings)

    assert restart_for == ["state_url", "evidence_max"]
    assert site.config.state_url == config.state_url
    assert site.config.drain == timedelta(seconds=3)


async def test_start_is_told_the_account_itself(
    site: Site, simulator: Simulator, make_config: MakeConfig
) -> None:
    started: list[AccountAtWork] = []
    await reload.apply(site, second(make_config(simulator.base_url), simulator), started.append)
    assert started == [site.accounts[OTHER]]
