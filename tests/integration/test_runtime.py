"""Open and close an installation: users match the configuration, and some cannot start."""

from dataclasses import replace
from typing import Any

import pytest

from poller.config.model import SecretRef, StorageConfig, User
from poller.errors import CannotStart, ConfigError, StorageUnusable
from poller.ingest.runtime import Runtime
from poller.ledger import accounts, streams
from poller.simulator import Simulator
from tests.conftest import APP, Event, MakeConfig, QuickClock, opened_runtime
from tests.integration.at_work import fetch, listed, parts, poll, row, said


async def test_user_who_is_no_longer_configured_stays_in_the_ledger_and_is_not_fetched(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> None:
    settings = make_config(simulator.base_url)
    async with opened_runtime(settings, clock) as runtime:
        await listed(runtime, simulator, "user-b")

    fewer = make_config(simulator.base_url, users=("user-a",))
    async with opened_runtime(fewer, clock) as runtime:
        await runtime.accounts[APP].workers.run_until_idle()
        rows = {one.user: one for one in await runtime.services.ledger.read(streams.all_streams)}
        assert [state.key for state in runtime.states] == ["main/user-a"]
        assert runtime.accounts[APP].client.suspension.user_count == 1
    assert rows["user-b"].removed
    assert rows["user-b"].pending == 1
    assert not simulator.downloads

    async with opened_runtime(settings, clock) as runtime:
        await runtime.accounts[APP].workers.run_until_idle()
    assert sum(simulator.downloads.values()) == 1


async def test_renamed_account_and_user_fetch_nothing_again(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> None:
    settings = make_config(simulator.base_url)
    async with opened_runtime(settings, clock) as runtime:
        fax, _ = await listed(runtime, simulator)
        await fetch(runtime, fax)
    (account,) = settings.accounts
    users = tuple(User("office", f"new-{u.name}", APP, u.user_id) for u in account.users)
    renamed = replace(settings, accounts=(replace(account, name="office", users=users),))

    async with opened_runtime(renamed, clock) as runtime:
        for state in runtime.states:
            assert (await runtime.accounts[APP].poll(state)).discovered == []
        assert (await row(runtime, fax)).account == "office"
    assert sum(simulator.downloads.values()) == 1


async def test_state_survives_a_restart_and_the_first_poll_sweeps_again(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> None:
    settings = make_config(simulator.base_url)
    async with opened_runtime(settings, clock) as runtime:
        await listed(runtime, simulator)
        _, before = parts(runtime)

    async with opened_runtime(settings, clock) as runtime:
        _, after = parts(runtime)
        assert after.progress.coverage == before.progress.coverage
        assert after.progress.pinned_start == before.progress.pinned_start
        assert after.progress.last_received_at == before.progress.last_received_at
        assert after.sweep_now
        assert after.progress.watermark == before.progress.watermark


async def test_user_before_the_first_poll_has_no_watermark_and_no_gap(runtime: Runtime) -> None:
    _, state = parts(runtime)
    assert state.progress.watermark is None
    assert state.progress.gaps == ()
    assert state.progress.failed_gaps == ()


async def test_missing_secret_keeps_it_from_opening(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> None:
    settings = make_config(simulator.base_url)
    (account,) = settings.accounts
    nameless = replace(account, api_key=SecretRef("env", "NOT_SET"))
    with pytest.raises(ConfigError, match="NOT_SET"):
        async with opened_runtime(replace(settings, accounts=(nameless,)), clock):
            pass


async def test_directory_with_foreign_files_is_refused_at_the_first_start(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock, tmp_path: Any
) -> None:
    used = tmp_path / "used"
    used.mkdir()
    (used / "letter.txt").write_text("somebody's")
    settings = make_config(simulator.base_url, storage=StorageConfig(used, min_free=1))
    with pytest.raises(CannotStart, match="not empty"):
        async with opened_runtime(settings, clock):
            pass


async def test_unmounted_storage_is_no_reason_not_to_start(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock, events: list[Event]
) -> None:
    settings = make_config(simulator.base_url)
    async with opened_runtime(settings, clock):
        pass
    (settings.storage.directory / ".poller-storage").unlink()

    async with opened_runtime(settings, clock) as runtime:
        assert not runtime.services.gate.usable
        await poll(runtime)
    assert said(events, "storage-unusable") == ["storage-unusable"]


async def test_storage_that_goes_away_while_it_is_tidied_is_no_reason_not_to_start(
    simulator: Simulator,
    make_config: MakeConfig,
    clock: QuickClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def gone(*_: Any, **__: Any) -> int:
        raise StorageUnusable("the share is gone")

    monkeypatch.setattr("poller.store.Storage.tidy", gone)
    async with opened_runtime(make_config(simulator.base_url), clock) as runtime:
        reason = runtime.services.gate.reason
        assert reason == "the share is gone. See `poller help storage-unusable`."


async def test_drain_of_the_runtime_ends_the_workers_of_every_account(runtime: Runtime) -> None:
    await runtime.drain(1.0)
    assert all(account.workers.in_flight == 0 for account in runtime.accounts.values())


async def test_account_that_is_no_longer_configured_is_not_shown_as_suspended_for_ever(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> None:
    settings = make_config(simulator.base_url)
    async with opened_runtime(settings, clock) as runtime:
        await runtime.services.ledger.write(
            accounts.set_suspended, "app-2", "gone", clock.now(), "no answer"
        )
    async with opened_runtime(settings, clock) as runtime:
        rows = {
            row.app_id: row for row in await runtime.services.ledger.read(accounts.all_accounts)
        }
    assert rows["app-2"].suspended_until is None
