"""Which user is polled when, with the real scheduler and a simulated eFax."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from poller.config.model import Limits, Poll
from poller.daemon import planner as planner_module
from poller.daemon.planner import Planner
from poller.daemon.trigger import PollTrigger
from poller.ingest import account as account_module
from poller.ingest.runtime import Runtime
from poller.ingest.stream_state import StreamState
from poller.ledger import streams
from poller.progress import OurClockSet
from poller.stream import Direction
from tests.conftest import APP, KEY, Event, MakeConfig, QuickClock, opened_runtime
from tests.efax import Simulator
from tests.integration.at_work import calls, faults, parts, poll, said, until

OFTEN = Poll(every=timedelta(milliseconds=100))
SELDOM = Poll(every=timedelta(hours=1))


@pytest.fixture
def clock() -> QuickClock:
    """Begins with APScheduler's time."""
    return QuickClock(wall=datetime.now(UTC))


@pytest.fixture
async def planner(runtime: Runtime) -> AsyncIterator[Planner]:
    planner = Planner(runtime)
    yield planner
    await planner.stop()


def change(runtime: Runtime, poll: Poll) -> None:
    for state in runtime.states:
        state.user = replace(state.user, poll=poll)


def job(planner: Planner, state: StreamState) -> object:
    return planner._scheduler.get_job(str(state.id))


def next_run(planner: Planner, state: StreamState) -> datetime:
    at: datetime = planner._scheduler.get_job(str(state.id)).next_run_time
    return at


async def test_each_user_has_one_job_that_drops_no_late_run(
    runtime: Runtime, planner: Planner, clock: QuickClock
) -> None:
    change(runtime, SELDOM)
    planner.start()

    jobs = {job.name: job for job in planner._scheduler.get_jobs() if job.id != "tick"}
    assert set(jobs) == {"main/user-a", "main/user-b"}
    for one in jobs.values():
        assert isinstance(one.trigger, PollTrigger)
        assert (one.coalesce, one.max_instances, one.misfire_grace_time) == (True, 1, None)
    for state in runtime.states:
        assert next_run(planner, state) - clock.now() < timedelta(seconds=1)


async def test_every_user_is_polled_soon_after_the_start_and_then_on_schedule(
    runtime: Runtime, planner: Planner, simulator: Simulator, clock: QuickClock
) -> None:
    change(runtime, SELDOM)
    planner.start()
    await until(lambda: all(state.progress.last_success_at for state in runtime.states))
    await until(lambda: all(state.poll_began_at is None for state in runtime.states))

    assert all(next_run(planner, state) > datetime.now(UTC) for state in runtime.states)
    assert calls(simulator, "list") > 2


async def test_first_polls_of_an_account_are_spread_whatever_its_limit(
    runtime: Runtime, planner: Planner, clock: QuickClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(runtime, Poll(every=timedelta(days=9)))
    monkeypatch.setattr(planner_module, "POLLS_PER_S", 2 / 86_400)  # both users within a day
    planner.start()
    later = [next_run(planner, state) - clock.now() for state in runtime.states]
    assert timedelta(minutes=1) < max(later) <= timedelta(days=1)


async def test_user_who_needs_no_sweep_waits_for_the_schedule(
    runtime: Runtime, planner: Planner, clock: QuickClock
) -> None:
    change(runtime, SELDOM)
    for state in runtime.states:
        state.sweep_now = False
    planner.start()
    for state in runtime.states:
        trigger = PollTrigger(SELDOM, f"{APP}/{state.user.user_id}")
        assert next_run(planner, state) == trigger.get_next_fire_time(None, clock.now())


async def test_schedule_that_asks_for_more_than_the_limit_is_stretched_evenly_and_said(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock, events: list[Event]
) -> None:
    settings = make_config(
        simulator.base_url, poll=Poll(every=timedelta(seconds=1)), limits=Limits(1.0, 3, 2)
    )
    async with opened_runtime(settings, clock) as runtime:
        planner = Planner(runtime)
        planner.start()
        factors = [planner._scheduler.get_job(str(s.id)).trigger.factor for s in runtime.states]
        shown = (await runtime.services.metrics.render()).decode()
        await planner.stop()
    # Each user's sweep is two lists an hour and the deep one ten a day, which do not stretch.
    sweeps_per_s = 2 * (2 / 3600 + 10 / 86_400)
    assert factors == pytest.approx([2 / (0.75 - sweeps_per_s)] * 2)
    (stretched,) = [event.fields for event in events if event.action == "schedule-stretched"]
    assert stretched["factor"] == 2.67
    assert f'poller_schedule_stretch_ratio{{account="main"}} {factors[0]}' in shown


async def test_hung_poll_does_not_stop_those_of_others_and_its_later_ones_are_counted_as_skipped(
    runtime: Runtime, planner: Planner, simulator: Simulator
) -> None:
    change(runtime, OFTEN)
    with simulator.hold("list", user="user-a"):
        planner.start()
        await until(lambda: calls(simulator, "list", "user-b") > 2)
        _, hung = parts(runtime)
        assert hung.poll_began_at is not None
        assert calls(simulator, "list", "user-a") == 1
        while b'outcome="skipped",user="user-a"} 1' not in await runtime.services.metrics.render():
            await asyncio.sleep(0.02)
    await until(lambda: hung.progress.last_success_at)
    await until(lambda: calls(simulator, "list", "user-a") > 2)


async def test_stuck_poll_is_ended_and_named_while_the_others_continue(
    runtime: Runtime, planner: Planner, simulator: Simulator, clock: QuickClock, events: list[Event]
) -> None:
    change(runtime, OFTEN)
    _, stuck = parts(runtime)
    with simulator.hold("list", user="user-a"):
        planner.start()
        await until(lambda: calls(simulator, "list", "user-a"))
        clock.advance(timedelta(seconds=105))
        planner.end_stuck_polls()
        assert not [e for e in events if e.action == "stalled"]
        clock.advance(timedelta(seconds=6))  # it looks every ten seconds
        before = calls(simulator, "list", "user-b")
        await until(lambda: calls(simulator, "list", "user-b") > before)
        planner.end_stuck_polls()
        await until(lambda: stuck.poll_began_at is None)
    assert [e.fields["user"] for e in events if e.action == "stalled"] == ["user-a"]
    await until(lambda: stuck.progress.last_success_at)


async def test_poll_that_pauses_between_two_tries_is_not_stuck(
    runtime: Runtime, planner: Planner, clock: QuickClock, events: list[Event]
) -> None:
    account, state = parts(runtime)
    state.poll_began_at = clock.monotonic()
    polled = account_module._POLLED.set(state)
    account_module.ClientObserver(account).pausing(60)
    account_module._POLLED.reset(polled)
    clock.advance(timedelta(seconds=165))
    assert not planner._is_stuck(account, state)
    clock.advance(timedelta(seconds=5))
    assert planner._is_stuck(account, state)
    state.poll_began_at = None


async def test_stop_ends_polls_under_way(
    runtime: Runtime, planner: Planner, simulator: Simulator
) -> None:
    change(runtime, SELDOM)
    with simulator.hold("list"):
        planner.start()
        await until(lambda: calls(simulator, "list") == 2)
        await planner.stop()
    assert all(state.poll_began_at is None for state in runtime.states)
    assert all(state.progress.last_success_at is None for state in runtime.states)


async def test_polls_of_one_account_can_be_ended_while_those_of_others_continue(
    runtime: Runtime, planner: Planner, simulator: Simulator
) -> None:
    change(runtime, SELDOM)
    other = replace(runtime.accounts[APP].account, name="other", app_id="app-2", users=())
    ended = await runtime.open_account(other, KEY)
    account, moved = parts(runtime, "user-b")
    del account.states[moved.id]
    ended.states[moved.id] = moved
    runtime.accounts["app-2"] = ended
    simulator.add_app("app-2", KEY)
    with simulator.hold("health"):
        planner.start()
        await until(lambda: len(planner._polls) == 2)
        await planner.end_polls(ended)
        (going_on,) = planner._polls.values()
    assert going_on[0] is account
    assert moved.poll_began_at is None


async def test_bug_met_by_one_user_stops_neither_the_others_nor_the_next_poll(
    runtime: Runtime, planner: Planner, monkeypatch: pytest.MonkeyPatch, events: list[Event]
) -> None:
    change(runtime, OFTEN)
    account, unlucky = parts(runtime)
    real, bugs = account.poll, 0

    async def poll(state: StreamState, *, until: float | None = None) -> object:
        nonlocal bugs
        if state is unlucky and bugs < 2:
            bugs += 1
            raise ZeroDivisionError("a bug")
        return await real(state, until=until)

    monkeypatch.setattr(account, "poll", poll)
    planner.start()
    await until(lambda: all(state.progress.last_success_at for state in runtime.states))

    assert bugs == 2
    own = ("internal-error", "poll-failed", "poll-recovered")
    await until(lambda: said(events, *own) == list(own))


async def test_polls_that_a_bug_ends_fail_and_its_trace_is_logged_once_until_one_succeeds(
    runtime: Runtime, planner: Planner, monkeypatch: pytest.MonkeyPatch, events: list[Event]
) -> None:
    account, state = parts(runtime)
    trigger = PollTrigger(state.user.poll, state.key, 1.0)

    async def meets_a_bug(*_: object, **__: object) -> object:
        raise KeyError("Dr. Jane Roe")

    for _ in range(2):
        with monkeypatch.context() as broken:
            broken.setattr(account.lanes[Direction.RECEIVED].poller._time, "now", meets_a_bug)
            await planner._poll(account, state, trigger)
            await planner._poll(account, state, trigger)
        (row, _) = await runtime.services.ledger.read(streams.all_streams)
        assert (row.failed_polls, state.failed_polls) == (2, 2)
        assert row.last_error == ("An unexpected error (KeyError): see internal-error in the log.")
        await planner._poll(account, state, trigger)
        assert state.failed_polls == 0
    assert said(events, "internal-error", "poll-failed", "poll-recovered") == [
        "internal-error", "poll-failed", "poll-recovered",
    ] * 2  # fmt: skip
    traced = [event.fields["error"] for event in events if event.action == "internal-error"]
    assert [type(error) for error in traced] == [KeyError, KeyError]
    counted = 'poller_polls_total{account="main",outcome="failed",user="user-a"} 4.0'
    assert counted in (await runtime.services.metrics.render()).decode()


async def test_plan_gives_every_job_a_new_time_and_leaves_polls_under_way_alone(
    runtime: Runtime, planner: Planner, simulator: Simulator, clock: QuickClock
) -> None:
    change(runtime, SELDOM)
    _, state = parts(runtime)
    with simulator.hold("list", user="user-a"):
        planner.start()
        await until(lambda: calls(simulator, "list", "user-a"))
        clock.wall += timedelta(days=3)
        state.sweep_now = False
        planner.plan()
        assert next_run(planner, state) > clock.now()
        assert state.poll_began_at is not None
    await until(lambda: state.progress.last_success_at)


async def test_next_poll_can_be_brought_forward_but_not_put_off(
    runtime: Runtime, planner: Planner, clock: QuickClock
) -> None:
    change(runtime, Poll(every=None, cron="0 3 1 1 *", timezone=ZoneInfo("UTC")))
    for state in runtime.states:
        state.sweep_now = False
    account, state = parts(runtime)
    planner.start()
    assert next_run(planner, state) > clock.now() + timedelta(days=1)

    planner.poll_within(account, timedelta(minutes=10))
    soon = next_run(planner, state)
    assert clock.now() <= soon <= clock.now() + timedelta(minutes=10)
    planner.poll_within(account, timedelta(days=9))
    assert next_run(planner, state) <= soon

    planner.poll_soon(state)
    await until(lambda: state.progress.last_success_at)
    assert next_run(planner, state) > datetime.now(UTC) + timedelta(days=1)


async def test_user_is_overdue_when_the_poll_after_the_last_good_one_is_long_past(
    runtime: Runtime, planner: Planner, clock: QuickClock
) -> None:
    _, state = parts(runtime)
    change(runtime, SELDOM)
    assert planner.is_overdue(state)  # never polled
    await poll(runtime)
    planner.plan()
    assert not planner.is_overdue(state)
    clock.wall += timedelta(hours=1, minutes=55)
    assert not planner.is_overdue(state)
    clock.wall += timedelta(hours=1, minutes=10)
    assert planner.is_overdue(state)


async def test_removed_user_can_neither_be_brought_forward_nor_be_in_time(
    runtime: Runtime, planner: Planner
) -> None:
    _, state = parts(runtime)
    planner.poll_soon(state)
    assert job(planner, state) is None
    assert planner.is_overdue(state)


async def test_tick_tells_that_the_scheduler_works(
    runtime: Runtime, planner: Planner, clock: QuickClock
) -> None:
    change(runtime, SELDOM)
    planner.start()
    tick = planner._scheduler.get_job("tick")
    clock.advance(timedelta(seconds=30))
    await tick.func()
    assert planner.tick_at == clock.monotonic()


async def test_failing_poll_is_no_reason_to_stop_polling(
    runtime: Runtime, planner: Planner, simulator: Simulator
) -> None:
    change(runtime, OFTEN)
    simulator.faults = faults("html-200@list=first:4")
    planner.start()
    await until(lambda: all(state.progress.last_success_at for state in runtime.states))


async def test_every_job_finds_its_next_time_at_once_after_a_clock_set_forward_by_decades(
    runtime: Runtime, planner: Planner
) -> None:
    planner.start()
    for job in planner._scheduler.get_jobs():
        assert isinstance(job.trigger, PollTrigger), "others walk through every run they missed"


async def test_user_is_overdue_also_when_the_last_good_poll_bears_the_time_of_a_clock_that_was_ahead(
    runtime: Runtime, planner: Planner, clock: QuickClock
) -> None:
    planner.start()
    await poll(runtime)
    _, state = parts(runtime)
    clock.wall -= timedelta(days=30)
    await state.record_soon(OurClockSet(timedelta(days=-30)))
    clock.wall += timedelta(days=2)

    assert planner.is_overdue(state)
