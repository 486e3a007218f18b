"""Ten days of other trouble quarantine no fax; a fax's own trouble does."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from poller.config.model import Account, Config, User
from poller.ingest.account import AccountRunner
from poller.ingest.fetch import Outcome
from poller.ingest.runtime import Runtime
from poller.ledger import State
from poller.simulator import Fault, Faults, Simulator
from poller.simulator.state import Fax
from tests.conftest import APP, KEY, Event, MakeConfig, QuickClock, opened_runtime
from tests.integration.at_work import (
    end_outage,
    fetch,
    listed,
    mount,
    parts,
    poll,
    row,
    settled,
    suspend,
    unmount,
)

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
OTHER_APP = "app-2"


@pytest.fixture
def settings(simulator: Simulator, make_config: MakeConfig) -> Config:
    """Two accounts: `main` with two users, `second` with one."""
    simulator.add_app(OTHER_APP, KEY)
    simulator.add_user(OTHER_APP, "user-c")
    made = make_config(simulator.base_url)
    (main,) = made.accounts
    user = User("second", "user-c", OTHER_APP, "user-c", poll=main.users[0].poll)
    second: Account = replace(main, name="second", app_id=OTHER_APP, users=(user,))
    return replace(made, accounts=(main, second))


@asynccontextmanager
async def started(settings: Config, clock: QuickClock) -> AsyncIterator[Runtime]:
    """An installation at work, as the service starts it."""
    async with opened_runtime(settings, clock) as runtime:
        for account in runtime.accounts.values():
            account.note_pause()
            await settled(account)
        runtime.services.gate.on_change = lambda: (
            [a.note_pause() for a in runtime.accounts.values()] and None
        )
        yield runtime


async def work(runtime: Runtime, clock: QuickClock, days: int) -> None:
    """Let the days pass as in the service: polls, due faxes, a look at the storage, twice a day."""
    for _ in range(days * 2):
        clock.advance(12 * HOUR)
        await runtime.services.gate.check()
        for account in runtime.accounts.values():
            await settled(account)
            for state in list(account.states.values()):
                await account.poll(state)
            await account.workers.run_until_idle()
            await settled(account)


async def failed_once(runtime: Runtime, simulator: Simulator, effect: str = "500") -> Fax:
    """A fax of `main` whose first attempt failed, for a reason that will pass."""
    fax, _ = await listed(runtime, simulator)
    simulator.faults = Faults.of(f"{effect}@image=always")
    assert await fetch(runtime, fax) is not Outcome.STORED
    simulator.faults = Faults()
    assert (await row(runtime, fax)).first_failed_at is not None
    return fax


async def poison(runtime: Runtime, simulator: Simulator) -> Fax:
    """A fax of `second` that eFax can never deliver."""
    account = runtime.accounts[OTHER_APP]
    (state,) = account.states.values()
    fax = simulator.receive(
        OTHER_APP, "user-c", completed=simulator.now() - timedelta(minutes=1), trouble="null-image"
    )
    await account.poll(state)
    await account.workers.run_until_idle()
    assert (await row(runtime, fax)).failures == 1
    return fax


def main_is_out(simulator: Simulator) -> None:
    """An outage of eFax for only the users of `main`."""
    rules = tuple(Fault("503", probability=1.0, user_id=user) for user in ("user-a", "user-b"))
    simulator.faults = Faults(rules=rules)


def said_quarantined(events: list[Event]) -> list[str]:
    return [event.fields["fax_id"] for event in events if event.action == "fax-quarantined"]


async def test_suspended_account_of_ten_days_with_a_restart_quarantines_only_the_poison_of_another(
    settings: Config, simulator: Simulator, clock: QuickClock, events: list[Event]
) -> None:
    async with started(settings, clock) as runtime:
        fax = await failed_once(runtime, simulator)
        bad = await poison(runtime, simulator)
        main_is_out(simulator)
        await work(runtime, clock, 5)
        assert runtime.accounts[APP].is_suspended
        assert not runtime.accounts[OTHER_APP].is_suspended
    async with started(settings, clock) as runtime:
        await work(runtime, clock, 5)
        assert runtime.accounts[APP].is_suspended
        assert (await row(runtime, fax)).state is State.PENDING
        assert (await row(runtime, bad)).state is State.QUARANTINED
        assert said_quarantined(events) == [bad.fax_id]

        # Lists work again, but the image still fails: that is not yet long enough.
        simulator.faults = Faults.of("500@image=always")
        await work(runtime, clock, 1)
        assert not runtime.accounts[APP].is_suspended
        assert (await row(runtime, fax)).state is State.PENDING
        assert (await row(runtime, fax)).failures > 1

        simulator.faults = Faults()
        await work(runtime, clock, 1)
        assert (await row(runtime, fax)).state is State.STORED
        assert (await row(runtime, bad)).state is State.QUARANTINED
        assert said_quarantined(events) == [bad.fax_id]

        bad.trouble = None  # it recovers: the daily attempt brings it
        await work(runtime, clock, 2)
        assert (await row(runtime, bad)).state is State.STORED


async def test_unusable_storage_of_ten_days_with_a_restart_quarantines_nothing(
    settings: Config, simulator: Simulator, clock: QuickClock, events: list[Event]
) -> None:
    async with started(settings, clock) as runtime:
        fax = await failed_once(runtime, simulator, "404")
        bad = await poison(runtime, simulator)
        await work(runtime, clock, 5)
        assert (await row(runtime, fax)).state is State.STORED
        late = await failed_once(runtime, simulator, "404")
        unmount(runtime)
        await work(runtime, clock, 5)
        assert not runtime.services.gate.usable
    asked = len([seen for seen in simulator.requests if seen.call == "image"])
    async with started(settings, clock) as runtime:
        await work(runtime, clock, 5)
        assert len([seen for seen in simulator.requests if seen.call == "image"]) == asked
        mount(runtime)
        await work(runtime, clock, 1)
        # What had failed for five days before is six days old now, not sixteen.
        assert (await row(runtime, bad)).state is State.PENDING
        assert (await row(runtime, late)).state is State.STORED
        assert said_quarantined(events) == []
        await work(runtime, clock, 3)
        assert said_quarantined(events) == [bad.fax_id]


async def _down_while_suspended(runtime: Runtime, simulator: Simulator) -> None:
    await suspend(runtime, simulator)


async def _down_while_unusable(runtime: Runtime, _: Simulator) -> None:
    unmount(runtime)
    assert not await runtime.services.gate.look_again()
    await settled(runtime.accounts[APP])


async def _down_before_anything_was_noticed(runtime: Runtime, simulator: Simulator) -> None:
    await poll(runtime)
    simulator.outage(True)


Begin = Callable[[Runtime, Simulator], Any]


@pytest.mark.parametrize(
    "begin", [_down_while_suspended, _down_while_unusable, _down_before_anything_was_noticed]
)
async def test_ten_days_in_which_the_process_itself_was_down_quarantine_nothing(
    settings: Config,
    simulator: Simulator,
    clock: QuickClock,
    events: list[Event],
    begin: Begin,
) -> None:
    async with started(settings, clock) as runtime:
        fax = await failed_once(runtime, simulator)
        await begin(runtime, simulator)
    clock.advance(10 * DAY)
    async with started(settings, clock) as runtime:
        # The first attempt after that fails as well, because the trouble lasts.
        assert await fetch(runtime, fax) in (Outcome.FAILED, Outcome.POSTPONED)
        await work(runtime, clock, 1)
        assert (await row(runtime, fax)).state is State.PENDING
        if begin is _down_while_unusable:
            mount(runtime)
        else:
            await end_outage(runtime, simulator, clock)
        simulator.faults = Faults.of("500@image=always")
        await work(runtime, clock, 1)
        assert (await row(runtime, fax)).state is State.PENDING
        assert (await row(runtime, fax)).failures > 1
        assert said_quarantined(events) == []
        await work(runtime, clock, 8)
        assert said_quarantined(events) == [fax.fax_id]


async def test_many_short_runs_give_up_too(
    settings: Config, simulator: Simulator, clock: QuickClock, events: list[Event]
) -> None:
    """`poller once` every twenty hours: the time between two runs counts."""
    async with started(settings, clock) as runtime:
        bad = await poison(runtime, simulator)
    for _ in range(10):
        clock.advance(20 * HOUR)
        async with started(settings, clock) as runtime:
            account: AccountRunner = runtime.accounts[OTHER_APP]
            await account.poll(next(iter(account.states.values())))
            await account.workers.run_until_idle()
    assert said_quarantined(events) == [bad.fax_id]


async def test_one_long_downtime_is_counted_once(
    settings: Config, clock: QuickClock, simulator: Simulator
) -> None:
    async with started(settings, clock) as runtime:
        await poll(runtime)
    clock.advance(10 * DAY)
    for _ in range(3):
        async with started(settings, clock) as runtime:
            account, _ = parts(runtime)
            assert await account.paused_s() == pytest.approx(10 * DAY.total_seconds(), abs=60)


async def test_time_between_two_polls_of_a_weekly_schedule_is_no_downtime(
    settings: Config, clock: QuickClock, simulator: Simulator
) -> None:
    async with started(settings, clock) as runtime:
        await poll(runtime)
        for _ in range(6 * 24):  # the service looks at its gate all the time, and polls nobody
            clock.advance(HOUR)
            assert await runtime.services.gate.check()
    clock.advance(HOUR)
    async with started(settings, clock) as runtime:
        account, _ = parts(runtime)
        assert await account.paused_s() == 0
    clock.advance(6 * DAY)
    async with started(settings, clock) as runtime:
        account, _ = parts(runtime)
        assert await account.paused_s() == pytest.approx(6 * DAY.total_seconds(), abs=60)
