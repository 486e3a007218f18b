"""Fetch what is due: users take turns, nobody is fetched twice, and `drain` is the only end."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from poller.config.model import Limits, User
from poller.documents import StoredFile
from poller.errors import LedgerUnavailable
from poller.ingest.account import AccountRunner
from poller.ingest.fetch import Fetcher, Outcome
from poller.ingest.runtime import Runtime
from poller.ingest.workers import FetchWorkers, Ring, images_at_once
from poller.ledger import FaxRow, State, jobs, meta, streams
from poller.simulator import Faults
from tests.conftest import APP, Event, MakeConfig, QuickClock, opened_runtime
from tests.efax import Simulator
from tests.integration.at_work import (
    WITHIN_S,
    calls,
    faults,
    fetch,
    in_background,
    listed,
    mount,
    parts,
    poll,
    row,
    suspend,
    unmount,
    until,
)
from tests.integration.in_between import Asked, around

SECOND = timedelta(seconds=1)


def receive(simulator: Simulator, user: str, count: int) -> None:
    for _ in range(count):
        simulator.receive(APP, user, completed=simulator.now() - SECOND, distinct=False)


async def stored(runtime: Runtime, user: str) -> int:
    return (await runtime.services.ledger.read(streams.one, parts(runtime, user)[1].id)).stored


async def quiet(turns: int = 15) -> None:
    """Let everything run that can."""
    for _ in range(turns):
        await asyncio.sleep(0.002)


# -- turns -------------------------------------------------------------------------------------


async def test_backlog_of_hundreds_delays_anothers_new_fax_by_a_few_requests(
    runtime: Runtime, simulator: Simulator
) -> None:
    account, _ = parts(runtime)
    receive(simulator, "user-a", 200)
    await poll(runtime, "user-a")
    async with in_background(account.workers.run()):
        await until(lambda: calls(simulator, "image") > 20)
        fax = simulator.receive(APP, "user-b", completed=simulator.now() - SECOND)
        await poll(runtime, "user-b")
        before = calls(simulator, "image", "user-a")
        await until(lambda: calls(simulator, "image", "user-b"))
        between = calls(simulator, "image", "user-a") - before
        await until(lambda: simulator.downloads[fax])
    assert between <= account.workers.at_once + 2
    assert calls(simulator, "image", "user-a") < 200


async def test_retry_that_falls_due_does_not_wait_for_anothers_backlog(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    account, _ = parts(runtime)
    fax, _ = await listed(runtime, simulator, "user-b")
    simulator.faults = faults("404@image=always")
    assert await fetch(runtime, fax) is Outcome.NOT_YET
    simulator.faults = Faults()
    receive(simulator, "user-a", 200)
    await poll(runtime, "user-a")
    async with in_background(account.workers.run()):
        await until(lambda: calls(simulator, "image", "user-a") > 20)
        clock.advance(timedelta(minutes=1))
        before = calls(simulator, "image", "user-a")
        await until(lambda: simulator.downloads[fax])
        between = calls(simulator, "image", "user-a") - before
    assert between <= account.workers.at_once + 10


@pytest.mark.parametrize(("users", "held"), [(1, 64), (10, 640), (50, 1000), (9_000, 9_000)])
def test_rows_read_ahead_are_about_a_thousand_or_one_of_each_user_who_waits(
    users: int, held: int
) -> None:
    turns = Ring()
    for user in range(users):
        turns.add(user)
    assert users * turns.ahead() == held  # one is fetched as soon as it is read


async def test_no_more_are_fetched_at_once_than_wanted_and_all_of_them_are(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> None:
    settings = make_config(simulator.base_url, limits=Limits(1000, 1000, 4))
    async with opened_runtime(settings, clock) as runtime:
        account, _ = parts(runtime)
        receive(simulator, "user-a", 30)
        await poll(runtime, "user-a")
        most = 0

        def look(_fax: FaxRow, _outcome: Outcome) -> None:
            nonlocal most
            most = max(most, account.workers.in_flight)

        account.on_fetched = look
        await account.workers.run_until_idle()

        assert most == account.workers.at_once == images_at_once(4) == 6
        assert await stored(runtime, "user-a") == 30
        assert simulator.most_in_flight <= 3  # a quarter of the slots stays free for lists
        assert set(simulator.downloads.values()) == {1}


@pytest.mark.parametrize(("in_flight", "images"), [(1, 2), (2, 2), (4, 6), (8, 12), (10, 14)])
def test_images_leave_a_quarter_of_the_slots_free(in_flight: int, images: int) -> None:
    assert images_at_once(in_flight) == images


async def test_held_user_is_passed_over_until_let_go(
    runtime: Runtime, simulator: Simulator
) -> None:
    account, held = parts(runtime, "user-a")
    for user in ("user-a", "user-b"):
        receive(simulator, user, 3)
        await poll(runtime, user)
    assert await held.images.hold(1.0)
    async with in_background(account.workers.run()):
        await until(lambda: calls(simulator, "image", "user-b") == 3)
        await quiet()
        assert calls(simulator, "image", "user-a") == 0

        held.images.let_go()
        account.workers.wake()
        await until(lambda: calls(simulator, "image", "user-a") == 3)


async def test_hold_gives_up_when_an_image_takes_too_long(runtime: Runtime) -> None:
    _, state = parts(runtime)
    assert state.images.begin()
    assert not await state.images.hold(0.01)
    assert not state.images.held


async def test_hold_that_is_cancelled_while_it_waits_lets_go(runtime: Runtime) -> None:
    _, state = parts(runtime)
    assert state.images.begin()
    async with in_background(state.images.hold(WITHIN_S)) as (waiting,):
        await until(lambda: state.images.held)
        waiting.cancel()
        await asyncio.wait({waiting})
        assert not state.images.held


@pytest.mark.parametrize("step", [jobs.due, meta.write_check])
async def test_user_who_is_held_while_a_fax_of_theirs_is_chosen_is_passed_over(
    runtime: Runtime,
    simulator: Simulator,
    clock: QuickClock,
    monkeypatch: pytest.MonkeyPatch,
    step: Callable[..., object],
) -> None:
    account, state = parts(runtime)
    await listed(runtime, simulator)
    clock.advance(2 * SECOND)  # the gate looks again

    async def hold_meanwhile(ask: Asked) -> Any:
        answer = await ask()
        assert await state.images.hold(1.0)
        return answer

    with monkeypatch.context() as patched:
        around(patched, runtime.services.ledger, step, hold_meanwhile)
        await account.workers.run_until_idle()
    assert not calls(simulator, "image")

    state.images.let_go()
    await account.workers.run_until_idle()
    assert calls(simulator, "image") == 1


async def test_suspended_account_starts_nothing(runtime: Runtime, simulator: Simulator) -> None:
    account, _ = parts(runtime)
    receive(simulator, "user-a", 3)
    await poll(runtime, "user-a")
    await suspend(runtime, simulator)
    async with in_background(account.workers.run()):
        account.workers.wake()
        await quiet()
    await account.workers.run_until_idle()
    assert calls(simulator, "image") == 0


async def test_closed_gate_starts_nothing_and_an_open_one_continues(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    account, _ = parts(runtime)
    receive(simulator, "user-a", 3)
    await poll(runtime, "user-a")
    unmount(runtime)
    clock.advance(2 * SECOND)
    async with in_background(account.workers.run()):
        await until(lambda: not runtime.services.gate.usable)
        await quiet()
        assert not simulator.downloads
        mount(runtime)
        clock.advance(5 * SECOND)
        account.workers.wake()
        await until(lambda: len(simulator.downloads) == 3)


async def test_ledger_that_cannot_be_read_closes_the_gate(
    runtime: Runtime, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    account, _ = parts(runtime)
    await listed(runtime, simulator)

    async def refuses(*_: Any, **__: Any) -> list[int]:
        raise LedgerUnavailable("the ledger is locked")

    around(monkeypatch, runtime.services.ledger, jobs.due, refuses)
    await account.workers.run_until_idle()

    assert (
        runtime.services.gate.reason == "the ledger is locked. See `poller help ledger-unusable`."
    )
    assert not simulator.downloads


async def test_fax_that_another_process_made_due_is_found_without_being_woken(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poller.ingest.workers._LOOK_AGAIN_S", 0.02)
    account, _ = parts(runtime)
    fax, _ = await listed(runtime, simulator)
    simulator.faults = faults("404@image=always")
    await fetch(runtime, fax)
    simulator.faults = Faults()
    async with in_background(account.workers.run()):
        await quiet()
        assert not simulator.downloads
        await runtime.services.ledger.write(
            jobs.make_due, [(await row(runtime, fax)).id], clock.now()
        )
        clock.advance(SECOND)
        await until(lambda: simulator.downloads[fax])


async def test_user_who_is_removed_while_faxes_wait_is_no_longer_fetched(
    runtime: Runtime, simulator: Simulator
) -> None:
    account, state = parts(runtime)
    receive(simulator, "user-a", 3)
    await poll(runtime)
    del account.states[state.id]

    await account.workers.run_until_idle()

    assert not simulator.downloads


async def test_user_who_is_removed_between_turn_and_start_stops_nothing(
    runtime: Runtime, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    account, state = parts(runtime)
    for user in ("user-a", "user-b"):
        receive(simulator, user, 2)
        await poll(runtime, user)
    real = runtime.services.gate.check

    async def check() -> bool:
        account.states.pop(state.id, None)
        return await real()

    monkeypatch.setattr(runtime.services.gate, "check", check)
    await account.workers.run_until_idle()

    assert calls(simulator, "image", "user-a") == 0
    assert calls(simulator, "image", "user-b") == 2


# -- drain -----------------------------------------------------------------------------------------


async def test_drain_lets_arriving_images_end_and_cuts_off_what_only_waits(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> None:
    settings = make_config(simulator.base_url, limits=Limits(1000, 1000, 4))
    async with opened_runtime(settings, clock) as runtime:
        account, state = parts(runtime)
        receive(simulator, "user-a", 6)
        await poll(runtime)
        simulator.faults = faults("drip@image=always")
        simulator.faults = Faults(
            rules=simulator.faults.rules, drip_bytes=1024, drip_interval_s=0.003
        )
        async with in_background(account.workers.run()) as (work,):
            await until(lambda: len(arriving(account)) == 3)
            assert account.workers.in_flight == 6  # three of them have no slot yet

            await account.workers.drain(WITHIN_S)

            assert account.workers.in_flight == 0
            await asyncio.wait_for(work, WITHIN_S)
        user = await runtime.services.ledger.read(streams.one, state.id)
        assert (user.stored, user.pending) == (3, 3)
        assert calls(simulator, "image") == 3


async def test_drain_cuts_off_an_image_that_takes_longer_than_allowed(
    runtime: Runtime, simulator: Simulator
) -> None:
    account, _ = parts(runtime)
    fax, _ = await listed(runtime, simulator)
    simulator.faults = faults("stall-mid-body@image=always")
    async with in_background(account.workers.run()) as (work,):
        await until(lambda: arriving(account))

        await account.workers.drain(0.03)

        await asyncio.wait_for(work, WITHIN_S)
    still = await row(runtime, fax)
    assert (still.state, still.failures) == (State.PENDING, 0)
    assert account.workers.in_flight == 0
    assert list(runtime.config.storage.directory.rglob(f".{fax.fax_id}*")) == []


async def test_drain_of_idle_workers_ends_at_once_and_twice_does_no_harm(runtime: Runtime) -> None:
    account, _ = parts(runtime)
    async with in_background(account.workers.run()) as (work,):
        await account.workers.drain(WITHIN_S)
        await account.workers.drain(WITHIN_S)
        await asyncio.wait_for(work, WITHIN_S)


def arriving(account: AccountRunner) -> list[int]:
    workers = account.workers
    return [fax for fax in list(workers._running) if workers._fetcher.is_arriving(fax)]


# -- never twice at once -----------------------------------------------------------------------------


@dataclass
class Restless(Fetcher):
    """Ends each attempt in another way, and notes which are running."""

    runtime: Runtime
    random: random.Random
    under_way: Counter[int] = field(default_factory=Counter)
    attempts: Counter[int] = field(default_factory=Counter)
    most: int = 0

    def is_arriving(self, fax: int) -> bool:
        return bool(self.under_way[fax])

    async def fetch(self, fax: FaxRow, user: User) -> Outcome:
        ledger, now = self.runtime.services.ledger, self.runtime.services.clock.now()
        self.under_way[fax.id] += 1
        self.attempts[fax.id] += 1
        self.most = max(self.most, *self.under_way.values())
        try:
            for _ in range(self.random.randrange(4)):
                await asyncio.sleep(0)
            if self.random.random() < 0.5:
                await ledger.write(jobs.postpone, fax.id, fax.fence, now)
                return Outcome.POSTPONED
            file = StoredFile(f"{fax.fax_id}.pdf", "pdf", 1, "0" * 64, 1, damaged=False)
            await ledger.write_together(jobs.stored, jobs.Stored(fax.id, now, file))
            return Outcome.STORED
        finally:
            self.under_way[fax.id] -= 1


@pytest.mark.parametrize("seed", range(4))
async def test_no_fax_is_fetched_twice_at_once_however_often_the_workers_are_woken(
    runtime: Runtime, simulator: Simulator, seed: int
) -> None:
    account, state = parts(runtime)
    for user in ("user-a", "user-b"):
        receive(simulator, user, 20)
        await poll(runtime, user)
    chance = random.Random(seed)
    restless = Restless(runtime, chance)
    workers = FetchWorkers(
        account.account,
        runtime.services,
        restless,
        users=account.states,
        may_ask=lambda: chance.random() < 0.9,
    )
    workers.at_once = 5
    async with in_background(workers.run()), asyncio.timeout(WITHIN_S):
        while await stored(runtime, "user-a") + await stored(runtime, "user-b") < 40:
            workers.wake(chance.choice([None, *account.states]))
            if chance.random() < 0.1:
                await state.images.hold(0.005)
                state.images.let_go()
    assert restless.most == 1
    assert len(restless.attempts) == 40


async def test_postponed_fax_does_not_make_the_workers_spin(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    account, _ = parts(runtime)
    fax, _ = await listed(runtime, simulator)
    simulator.faults = faults("429@image+1=always")
    async with in_background(account.workers.run()):
        await until(lambda: account.tally["postponed"])
        requests, commits = calls(simulator, "image"), runtime.services.ledger.commits
        for _ in range(10):
            account.workers.wake()
            await quiet(2)
        assert calls(simulator, "image") == requests
        assert runtime.services.ledger.commits - commits < 5
    assert (await row(runtime, fax)).failures == 0


async def test_attempt_that_cannot_even_be_recorded_is_reported_and_not_repeated_at_once(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, monkeypatch: pytest.MonkeyPatch,
    events: list[Event],
) -> None:  # fmt: skip
    await listed(runtime, simulator)
    account, _ = parts(runtime)

    async def bug(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(account.workers._fetcher, "fetch", bug)
    assert await account.workers._start_one(look=True)
    await asyncio.wait(account.workers._running.values())

    clock.advance(timedelta(seconds=29))
    assert not await account.workers._start_one(look=True)
    assert account.tally["failed"] == 1
    clock.advance(timedelta(seconds=2))
    assert await account.workers._start_one(look=True)
    await asyncio.wait(account.workers._running.values())
    assert account.tally["failed"] == 2
    assert [event.action for event in events].count("internal-error") == 2
