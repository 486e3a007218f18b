"""One thing hangs: poller names it, cuts it off and repeats it; all else continues."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from poller.client import Timeouts
from poller.config.model import Poll, User
from poller.daemon.background_checks import BackgroundChecks
from poller.daemon.monitor import Monitor
from poller.daemon.planner import Planner
from poller.errors import LedgerUnavailable
from poller.ingest.runtime import Runtime
from poller.ledger import jobs, meta, streams
from tests.conftest import APP, Event, QuickClock
from tests.efax import Simulator
from tests.faults.network import bench
from tests.integration.at_work import in_background, listed, row, said, until
from tests.integration.in_between import Asked, around

OFTEN = Poll(every=timedelta(milliseconds=200))


@pytest.fixture
def clock() -> QuickClock:
    """Begins with APScheduler's time."""
    return QuickClock(wall=datetime.now(UTC))


@pytest.fixture
async def planner(runtime: Runtime) -> AsyncIterator[Planner]:
    planner = Planner(runtime)
    yield planner
    await planner.stop()


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two minutes become less than one second, which a busy machine may still take."""
    monkeypatch.setattr("poller.ingest.hang_timeout.NO_PROGRESS_S", 0.7)


def hanging_once(real: Callable[..., Any]) -> Callable[..., Any]:
    """`real`, but the first call never ends."""
    hung = False

    async def call(*args: Any, **named: Any) -> Any:
        nonlocal hung
        if not hung:
            hung = True
            await asyncio.Event().wait()
        return await real(*args, **named)

    return call


def stalled(events: list[Event]) -> list[str]:
    return [event.fields["what"] for event in events if event.action == "stalled"]


@pytest.mark.parametrize("call", ["health", "token"])
async def test_a_hang_that_all_polls_of_an_account_wait_for_does_not_stop_another_account(
    call: str, tmp_path: Path, clock: QuickClock, events: list[Event]
) -> None:
    """One asks for the time, or signs in, for all; the others wait for it behind a lock."""
    async with bench(tmp_path, clock=clock, timeouts=Timeouts()) as work:
        for state in work.runtime.states:
            state.user = _polled(state.user, OFTEN)
        assert not (await work.poll("user-c")).failed
        planner = Planner(work.runtime)
        monitor = Monitor(work.runtime, planner)
        with work.simulator.hold(call) as gate:
            planner.start()
            await gate.reached()
            await until(lambda: all(work.state(u).poll_began_at for u in ("user-a", "user-b")))
            clock.advance(timedelta(seconds=140))
            planner.tick_at = clock.monotonic()
            fax = work.receive("user-c")
            await until(lambda: said(events, "fax-discovered"))
            await monitor._end_stuck()
            assert monitor.readiness.alive()
        ended = [event.fields for event in events if event.action == "stalled"]
        assert {(one["what"], one["user"]) for one in ended} == {
            ("poll", "user-a"), ("poll", "user-b"),
        }  # fmt: skip
        assert (await work.row(fax)).user == "user-c"
        await until(lambda: all(state.progress.last_success_at for state in work.runtime.states))
        await planner.stop()


def _polled(user: User, poll: Poll) -> User:
    return replace(user, poll=replace(poll, start=user.poll.start))


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("step", [jobs.streams_with_due, jobs.due])
async def test_a_hanging_search_for_due_work_is_repeated(
    runtime: Runtime,
    simulator: Simulator,
    events: list[Event],
    monkeypatch: pytest.MonkeyPatch,
    step: Callable[..., object],
) -> None:
    fax, _ = await listed(runtime, simulator)
    around(monkeypatch, runtime.services.ledger, step, hanging_once(lambda read: read()))
    async with in_background(runtime.accounts[APP].workers.run()):
        await until(lambda: said(events, "fax-stored"))
    assert set(stalled(events)) == {"fetching"}
    event = next(event for event in events if event.action == "stalled")
    assert event.fields["account"] == "main"
    assert (await row(runtime, fax)).stored_at is not None


@pytest.mark.usefixtures("_impatient")
async def test_gate_that_hangs_is_looked_at_again(
    runtime: Runtime, planner: Planner, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = runtime.services.gate
    looks = 0
    real = gate.check

    async def counted() -> bool:
        nonlocal looks
        looks += 1
        return await real()

    monkeypatch.setattr(gate, "check", hanging_once(counted))
    await loop_until(Monitor(runtime, planner).loops(), "gate", lambda: looks >= 2)
    assert set(stalled(events)) == {"gate"}


@pytest.mark.usefixtures("_impatient")
async def test_clock_step_delayed_by_the_ledger_is_reported_and_the_next_one_is_seen(
    runtime: Runtime,
    planner: Planner,
    clock: QuickClock,
    events: list[Event],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runtime, "forget_far_future", hanging_once(runtime.forget_far_future))

    def stepped() -> bool:
        if not stalled(events):
            clock.wall += timedelta(minutes=1)  # repeatedly: the loop needs an earlier reading
            return False
        clock.wall += timedelta(minutes=1)
        return len(said(events, "clock-stepped")) >= 2

    await loop_until(Monitor(runtime, planner).loops(), "clock", stepped)
    assert set(stalled(events)) == {"clock"}


@pytest.mark.usefixtures("_impatient")
async def test_look_for_edited_gaps_hangs_and_is_done_again(
    runtime: Runtime, simulator: Simulator, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0

    async def counted(read: Asked) -> object:
        nonlocal looks
        looks += 1
        return await read()

    around(monkeypatch, runtime.services.ledger, meta.edits, hanging_once(counted))
    await loop_until(BackgroundChecks(runtime).loops(), "edits", lambda: looks >= 2)
    assert set(stalled(events)) == {"edits"}


async def test_question_to_the_ledger_that_hangs_shuts_the_gate_until_it_answers(
    runtime: Runtime, simulator: Simulator, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a share that hangs: no caller may wait forever."""
    fax, _ = await listed(runtime, simulator)
    readers = runtime.services.ledger._readers
    with monkeypatch.context() as impatient:
        impatient.setattr("poller.ledger.ledger.READ_WITHIN_S", 0.05)
        impatient.setattr(readers, "run", hanging_once(readers.run))
        with pytest.raises(LedgerUnavailable, match="has not answered for"):
            await runtime.services.ledger.read(streams.all_streams, include_removed=False)
        impatient.setattr(readers, "run", hanging_once(readers.run))
        await runtime.accounts[APP].workers.run_until_idle()
    (unusable,) = [event.fields for event in events if event.action == "storage-unusable"]
    assert "has not answered" in unusable["reason"]
    for task in list(runtime.services.ledger._reads):
        task.cancel()  # no thread ends what hangs here
    runtime.services.clock.advance(timedelta(minutes=1))  # type: ignore[attr-defined]
    await runtime.accounts[APP].workers.run_until_idle()
    assert (await row(runtime, fax)).stored_at is not None


async def loop_until(loops: dict[str, Any], name: str, happened: Callable[[], Any]) -> None:
    """Let one background loop run until something is true."""
    for other in set(loops) - {name}:
        loops[other].close()
    async with in_background(loops[name]):
        await until(happened)
