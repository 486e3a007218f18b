"""`image.mark_downloaded: false`: a fax that was new in the portal stays new after poller stores it."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from poller.config.model import Config, Poll, Sweep
from poller.ingest.runtime import Runtime
from poller.ledger import errands, jobs
from poller.ledger.tables import JobKind
from poller.simulator.state import Fax
from tests.conftest import APP, Event, MakeConfig, QuickClock, opened_runtime
from tests.efax import Simulator
from tests.integration.at_work import calls, faults, listed, parts, poll, row, said

DAY = timedelta(days=1)


def marking(settings: Config) -> Config:
    (account,) = settings.accounts
    users = tuple(replace(user, mark_downloaded=False) for user in account.users)
    return replace(settings, accounts=(replace(account, users=users),))


@pytest.fixture
async def runtime(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> AsyncIterator[Runtime]:
    async with opened_runtime(marking(make_config(simulator.base_url)), clock) as opened:
        yield opened


async def stored(runtime: Runtime, simulator: Simulator, **fields: Any) -> Fax:
    fax, _ = await listed(runtime, simulator, distinct=False, **fields)
    await parts(runtime)[0].workers.run_until_idle()
    return fax


async def run_errands(runtime: Runtime) -> None:
    await runtime.accounts[APP].errands.run_until_idle()


async def waiting(runtime: Runtime) -> int:
    return await runtime.services.ledger.read(errands.waiting, APP, JobKind.MARK)


def is_new(fax: Fax) -> bool:
    return not fax.image_downloaded


async def test_the_mark_is_put_back_after_the_fax_is_stored(
    runtime: Runtime, simulator: Simulator
) -> None:
    fax = await stored(runtime, simulator)
    assert not is_new(fax)
    await run_errands(runtime)
    assert is_new(fax)
    assert not await waiting(runtime)


async def test_the_mark_of_a_fax_that_somebody_had_opened_stays(
    runtime: Runtime, simulator: Simulator
) -> None:
    fax = await stored(runtime, simulator, image_downloaded=True)
    await run_errands(runtime)
    assert not is_new(fax)
    assert not calls(simulator, "mark")


async def test_by_default_no_mark_is_touched(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> None:
    async with opened_runtime(make_config(simulator.base_url), clock) as runtime:
        await stored(runtime, simulator)
        await run_errands(runtime)
        assert not calls(simulator, "mark")
        assert not await waiting(runtime)


async def test_a_fax_that_is_fetched_again_keeps_the_mark_that_people_have_set(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    fax = await stored(runtime, simulator)
    await run_errands(runtime)
    fax.image_downloaded = True  # somebody read it in the portal
    held = await row(runtime, fax)
    await runtime.services.ledger.write(jobs.fetch_again, [held.id], clock.now())
    await parts(runtime)[0].workers.run_until_idle()
    await run_errands(runtime)
    assert not is_new(fax)


async def test_a_kill_does_not_forget_the_mark(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> None:
    settings = marking(make_config(simulator.base_url))
    async with opened_runtime(settings, clock) as runtime:
        fax = await stored(runtime, simulator)
    async with opened_runtime(settings, clock) as runtime:
        assert await runtime.accounts[APP].errands.look() is not None
        await run_errands(runtime)
        assert is_new(fax)


@pytest.mark.parametrize(("status", "said_of_it"), [("403", ["mark-left"]), ("404", [])])
async def test_a_refusal_is_repeated_for_a_week_and_said_once(
    status: str,
    said_of_it: list[str],
    runtime: Runtime,
    simulator: Simulator,
    clock: QuickClock,
    events: list[Event],
) -> None:
    """A fax that has gone at eFax needs no mark."""
    simulator.faults = faults(f"{status}@mark=always")
    await stored(runtime, simulator)
    for _ in range(40):
        await run_errands(runtime)
        clock.advance(timedelta(hours=6))
    assert said(events, "mark-left") == said_of_it
    assert not await waiting(runtime)


async def test_the_deep_sweep_ends_though_all_that_is_known_is_listed_as_not_downloaded(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> None:
    rule = Poll(deep_sweep=Sweep(DAY, 7 * DAY))
    async with opened_runtime(
        marking(make_config(simulator.base_url, poll=rule)), clock
    ) as runtime:
        for _ in range(3):
            await stored(runtime, simulator)
        await run_errands(runtime)
        clock.advance(2 * DAY)
        asked = len(simulator.requests)
        outcome = await poll(runtime)
        assert not outcome.failed
        unread = [one for one in simulator.requests[asked:] if "image_downloaded" in one.target]
        assert len(unread) == 2  # one pass, with its end, shows nothing unknown
        _, state = parts(runtime)
        assert state.progress.deep_sweep_end is not None
        assert clock.now() - state.progress.deep_sweep_end < timedelta(minutes=1)
