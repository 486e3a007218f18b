"""An operator acts during a fetch, at every point between reading and acting."""

import errno
import itertools
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from poller.config.model import User
from poller.ingest.fetch import Outcome
from poller.ingest.runtime import Runtime
from poller.ledger import FaxRow, Ledger, State, jobs, streams
from poller.simulator import Simulator
from tests.conftest import Event, QuickClock, stored_files
from tests.integration.at_work import calls, faults, fetch, listed, parts, row
from tests.integration.in_between import Between

DAY = timedelta(days=1)
Patch = pytest.MonkeyPatch


@pytest.fixture
async def operator(runtime: Runtime) -> AsyncIterator[Ledger]:
    """The ledger as `poller dismiss` and `poller retry` open it, while the service runs."""
    async with await Ledger.open(runtime.config.state_url) as ledger:
        yield ledger


@pytest.fixture
def between(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Between:
    return Between(runtime, monkeypatch)


async def test_no_image_is_asked_for_once_its_fax_is_dismissed(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, operator: Ledger, between: Between
) -> None:
    account, _ = parts(runtime)
    account.workers.at_once = 1  # otherwise it looks for more at the same time
    states = []
    for number in itertools.count(1):
        fax, held = await listed(runtime, simulator)
        before = calls(simulator, "image")
        asked: list[int] = []

        async def dismiss(fax: int = held.id, asked: list[int] = asked) -> None:
            await operator.write(jobs.dismiss, fax, now=clock.now(), reason="not needed")
            asked.append(calls(simulator, "image"))

        between.at(number, dismiss)
        async with between.each():
            await account.workers.run_until_idle()
        if not between.is_done:
            break
        had = asked[0] > before
        assert calls(simulator, "image") == asked[0]
        assert (await row(runtime, fax)).state is (State.STORED if had else State.DISMISSED)
        states.append(had)
    assert states.index(True) > 2  # so often before its image was requested
    assert all(states[states.index(True) :])


async def test_fax_with_a_ticket_that_is_dismissed_as_it_waits_its_turn_is_not_published(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, operator: Ledger, monkeypatch: Patch
) -> None:
    account, _ = parts(runtime)
    account.workers.at_once = 1
    with monkeypatch.context() as broken:
        broken.setattr(runtime.services.storage.store, "publish", _fails)
        fax, held = await listed(runtime, simulator)
        await fetch(runtime, fax)
    assert (await row(runtime, fax)).staged is not None
    first, first_row = await listed(runtime, simulator)
    for minutes, one in ((9, first_row), (5, held)):
        await operator.write(jobs.make_due, [one.id], clock.now() - timedelta(minutes=minutes))
    real = account.workers._fetcher.fetch

    async def then_dismissed(one: FaxRow, user: User) -> Outcome:
        outcome = await real(one, user)
        if one.fax_id == first.fax_id:
            await operator.write(jobs.dismiss, held.id, now=clock.now(), reason="wrong patient")
        return outcome

    monkeypatch.setattr(account.workers._fetcher, "fetch", then_dismissed)
    await account.workers.run_until_idle()
    assert (await row(runtime, first)).state is State.STORED
    assert (await row(runtime, fax)).state is State.DISMISSED
    stored = stored_files(runtime.config.storage.directory)
    assert not any(fax.fax_id in str(file) and str(file).endswith(".json") for file in stored)


def _fails(*_: Any) -> bool:
    raise OSError(errno.EIO, "Input/output error")


async def test_fax_postponed_undoes_no_retry(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, operator: Ledger
) -> None:
    fax, held = await listed(runtime, simulator)
    assert await operator.write(jobs.make_due, [held.id], clock.now()) == 1
    retried = await row(runtime, fax)
    await operator.write(jobs.postpone, held.id, held.fence, clock.now() + DAY)
    assert await row(runtime, fax) == retried
    await operator.write(jobs.postpone, held.id, retried.fence, clock.now() + DAY)
    assert (await row(runtime, fax)).next_attempt_at == clock.now() + DAY


async def test_failure_of_an_attempt_undoes_no_retry(
    runtime: Runtime,
    simulator: Simulator,
    clock: QuickClock,
    operator: Ledger,
    between: Between,
    events: list[Event],
) -> None:
    account, _ = parts(runtime)
    account.workers.at_once = 1
    simulator.faults = faults("404@image=always")
    for number in itertools.count(1):
        fax, held = await listed(runtime, simulator)
        await fetch(runtime, fax)
        clock.advance(8 * DAY)  # the next failure quarantines it
        events.clear()
        retried: list[object] = []

        async def retry(fax: int = held.id, retried: list[object] = retried) -> None:
            assert await operator.write(jobs.make_due, [fax], clock.now()) == 1
            retried.append(clock.now())

        between.at(number, retry)
        async with between.each():
            await account.workers.run_until_idle()
        now = await row(runtime, fax)
        if not between.is_done:
            assert now.state is State.QUARANTINED
            break
        assert now.state is State.PENDING
        assert now.first_failed_at in (None, *retried)
        assert now.failures <= 1
        await operator.write(jobs.dismiss, held.id, now=clock.now(), reason="through with it")
    assert number > 6


async def test_failure_of_a_fax_that_was_dismissed_meanwhile_announces_no_retry(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, events: list[Event]
) -> None:
    simulator.faults = faults("404@image=always")
    fax, held = await listed(runtime, simulator)
    events.clear()
    real = parts(runtime)[0].client.fetch_image

    async def meanwhile(*asked: Any, **named: Any) -> Any:
        try:
            return await real(*asked, **named)
        finally:
            ledger = runtime.services.ledger
            await ledger.write(jobs.dismiss, held.id, now=clock.now(), reason="not needed")

    parts(runtime)[0].client.fetch_image = meanwhile  # type: ignore[method-assign]
    assert await fetch(runtime, fax) is Outcome.WITHDRAWN
    assert not [event for event in events if event.action == "fax-retry"]


async def test_fax_of_a_user_who_is_removed_while_it_waits_is_not_asked_for(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, operator: Ledger
) -> None:
    fax, held = await listed(runtime, simulator)
    await operator.write(streams.sync, [], clock.now())
    assert await fetch(runtime, fax) is Outcome.WITHDRAWN
    assert not calls(simulator, "image")
    assert (await row(runtime, fax)) == held
