"""A process remembers about its users what the ledger has, whatever fails or is edited."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from poller.config.model import Poll
from poller.errors import BadAnswer, LedgerUnavailable
from poller.ingest.runtime import Runtime
from poller.ledger import Ledger, fold, streams
from poller.progress import Covered, NotPolled, Swept
from poller.simulator import Simulator, Switches
from poller.window import Interval, SliceKind
from tests.conftest import APP, MakeConfig, QuickClock, opened_runtime
from tests.integration.at_work import in_background, parts, poll
from tests.integration.in_between import Asked, Between, around

DAY = timedelta(days=1)
START = timedelta(hours=52)
HALF_A_MINUTE = timedelta(seconds=30)


@pytest.fixture
async def runtime(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> AsyncIterator[Runtime]:
    settings = make_config(simulator.base_url, users=("user-a",), poll=Poll(start=START))
    async with opened_runtime(settings, clock) as opened:
        yield opened


@pytest.fixture
def between(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Between:
    return Between(runtime, monkeypatch)


async def remembered_is_held(runtime: Runtime) -> bool:
    _, state = parts(runtime)
    return state.progress == await runtime.services.ledger.progress(state.id)


async def _unanswered(*_: Any, **__: Any) -> Any:
    raise BadAnswer("the list is no JSON")


async def _refuses(_jobs: Any) -> Any:
    raise LedgerUnavailable("full for a moment")


async def test_events_before_a_failed_commit_do_not_count_as_recorded(
    runtime: Runtime, clock: QuickClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await poll(runtime)  # covers everything, which is written a moment later
    with monkeypatch.context() as patched:
        patched.setattr(runtime.services.ledger._writer, "_transaction", _refuses)
        with pytest.raises(LedgerUnavailable):
            await runtime.services.ledger.check_writable()
    clock.advance(HALF_A_MINUTE)
    assert (await poll(runtime)).error is None
    assert await remembered_is_held(runtime)
    _, state = parts(runtime)
    assert state.progress.coverage.covers(clock.now() - START + DAY)


async def test_what_concerns_a_whole_account_is_read_again_when_nobody_knows_that_it_was_recorded(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    await poll(runtime)
    account, state = parts(runtime)
    assert state.progress.sweep_end is not None
    real = runtime.services.ledger.write

    async def then_no_answer(*asked: Any, **named: Any) -> Any:
        await real(*asked, **named)
        raise LedgerUnavailable("it does not answer")

    with monkeypatch.context() as patched:
        patched.setattr(runtime.services.ledger, "write", then_no_answer)
        with pytest.raises(LedgerUnavailable):
            await account._empties.memory.list_again()
    await state.refresh()
    assert await remembered_is_held(runtime)


async def test_sweep_that_ends_while_all_are_forgotten_leaves_memory_as_the_ledger(
    runtime: Runtime, clock: QuickClock
) -> None:
    await poll(runtime)
    account, state = parts(runtime)
    forgetting = asyncio.create_task(account._empties.memory.list_again())
    await asyncio.sleep(0)  # its write is requested
    await state.record_soon(Swept(SliceKind.SWEEP, clock.now(), 0))
    await forgetting
    await state.refresh()
    assert await remembered_is_held(runtime)
    assert state.sweep_now


async def test_commit_that_fails_at_any_point_of_a_poll_leaves_memory_as_the_ledger(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator.switches = Switches(oldest_window_s=2 * 86_400.0)
    writer = runtime.services.ledger._writer
    assert writer is not None
    real = writer._transaction
    for number in itertools.count(1):
        left = number

        async def fails_once(jobs: Any) -> Any:
            nonlocal left
            left -= 1
            return await (_refuses(jobs) if left == 0 else real(jobs))

        simulator.receive(APP, "user-a", completed=clock.now() - timedelta(seconds=40))
        clock.advance(timedelta(hours=7))  # gaps are tried again
        with monkeypatch.context() as patched:
            patched.setattr(writer, "_transaction", fails_once)
            await poll(runtime)
            await runtime.services.ledger.read(
                streams.all_streams
            )  # postponed writes succeed or fail
        clock.advance(HALF_A_MINUTE)
        assert (await poll(runtime)).error is None
        assert await remembered_is_held(runtime)
        if left > 0:
            break
    assert number > 5


async def test_poll_that_is_cut_off_at_any_point_leaves_memory_as_the_ledger(
    runtime: Runtime,
    simulator: Simulator,
    clock: QuickClock,
    between: Between,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    account, _ = parts(runtime)
    simulator.switches = Switches(oldest_window_s=2 * 86_400.0)
    for number in itertools.count(1, 3):
        simulator.receive(APP, "user-a", completed=clock.now() - timedelta(seconds=40))
        clock.advance(timedelta(hours=7))
        task = asyncio.create_task(poll(runtime))

        async def cut_off(task: asyncio.Task[Any] = task) -> None:
            task.cancel()

        between.at(number, cut_off)
        async with between.each():
            await asyncio.wait({task})
        clock.advance(HALF_A_MINUTE)
        with monkeypatch.context() as patched:
            patched.setattr(account.client, "list_received", _unanswered)
            assert (await poll(runtime)).error is not None
        assert await remembered_is_held(runtime)
        if not between.is_done:
            break
    assert number > 5


@pytest.mark.parametrize("edit", ["dismiss", "make due"])
async def test_edit_of_gaps_at_any_point_of_a_poll_is_known_after_it(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, between: Between, edit: str
) -> None:
    simulator.switches = Switches(oldest_window_s=2 * 86_400.0)
    _, state = parts(runtime)
    await poll(runtime)
    async with await Ledger.open(runtime.config.state_url) as operator:

        async def act() -> None:
            bounds = Interval(clock.now() - 60 * DAY, clock.now() - 2 * DAY)
            if edit == "dismiss":
                assert await operator.write(fold.dismiss_gap, state.id, bounds, "old")
            else:
                await operator.write(fold.make_gap_due, state.id, bounds)
            await runtime.read_edits()

        for number in itertools.count(1):
            clock.advance(timedelta(hours=7))
            between.at(number, act)
            async with between.each():
                await poll(runtime)
            assert await remembered_is_held(runtime)
            if not between.is_done:
                break
    assert number > 5


async def test_edits_that_are_read_while_a_poll_notes_a_gap_do_not_undo_it(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator.switches = Switches(oldest_window_s=2 * 86_400.0)
    _, state = parts(runtime)
    read, go_on = asyncio.Event(), asyncio.Event()

    async def slow(really_read: Asked) -> Any:
        held = await really_read()
        read.set()
        await go_on.wait()
        return held

    around(monkeypatch, runtime.services.ledger, fold.some, slow)
    async with in_background(runtime.read_edits()) as (reading,):
        await read.wait()
        await poll(runtime)
        assert state.progress.failed_slices
        go_on.set()
        await asyncio.wait({reading})
    assert state.progress.failed_slices
    assert await remembered_is_held(runtime)


async def test_answer_that_was_overtaken_by_what_was_said_meanwhile_is_read_again(
    runtime: Runtime, clock: QuickClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proof from another user's poll covers what waits, whatever this one's poll does."""
    await poll(runtime)
    _, state = parts(runtime)
    later = Interval(clock.now(), clock.now() + DAY)

    async def overtaken(really_record: Asked) -> Any:
        held = await really_record()
        await state.record_soon(Covered(later))
        return held

    around(monkeypatch, runtime.services.ledger, fold.record, overtaken)
    await state.record(NotPolled(clock.now(), "no answer"))
    assert state.progress.coverage.covers(later.start)
    assert state.progress.last_error == "no answer"
    assert await remembered_is_held(runtime)
