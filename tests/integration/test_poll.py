"""Poll one user of a simulated eFax: windows, gaps, the two sweeps, refusals."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from poller.config.model import Poll
from poller.errors import BadAnswer, UserRefused
from poller.ingest.account import AccountRunner
from poller.ingest.poll_run import PollOutcome
from poller.ingest.reading import ListReader
from poller.ingest.runtime import Runtime
from poller.ingest.stream_state import StreamState
from poller.ledger import jobs, streams
from poller.progress import NotPolled, Pinned
from poller.simulator import Fault, Faults, Simulator, Switches
from poller.window import SliceKind
from tests.conftest import APP, Event, MakeConfig, QuickClock, opened_runtime
from tests.integration.at_work import refuse_windows

DEEP = SliceKind.DEEP_SWEEP


def parts(runtime: Runtime, user: str = "user-a") -> tuple[AccountRunner, StreamState]:
    account = runtime.accounts[APP]
    return account, next(s for s in account.states.values() if s.user.name == user)


async def poll(runtime: Runtime, user: str = "user-a") -> PollOutcome:
    account, state = parts(runtime, user)
    return await account.poll(state)


def faults(*rules: str) -> Faults:
    return Faults(rules=tuple(Fault.parse(rule) for rule in rules))


async def test_first_poll_reaches_back_to_the_start_and_covers_all_of_it(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    ages = (timedelta(minutes=5), timedelta(days=3), timedelta(days=6, hours=23))
    for age in ages:
        simulator.receive(APP, "user-a", completed=clock.now() - age)
    simulator.receive(APP, "user-a", completed=clock.now() - timedelta(days=8))

    outcome = await poll(runtime)

    _, state = parts(runtime)
    assert len(outcome.discovered) == 3
    assert not outcome.failed
    assert state.progress.gaps == ()
    assert state.progress.watermark is not None
    assert clock.now() - state.progress.watermark < timedelta(seconds=5)


async def test_a_fax_of_the_current_second_is_found_and_no_later_time_counts_as_listed(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    clock.advance(timedelta(milliseconds=900))  # the server's Date has only seconds
    fax = simulator.receive(APP, "user-a")
    clock.advance(timedelta(milliseconds=50))

    outcome = await poll(runtime)

    _, state = parts(runtime)
    assert [row.fax_id for row in outcome.discovered] == [fax.fax_id]
    assert outcome.late_s == []
    assert state.progress.coverage.newest_end is not None
    assert state.progress.coverage.newest_end <= clock.now()
    clock.advance(timedelta(seconds=30))
    assert (await poll(runtime)).discovered == []


async def test_where_the_future_is_refused_each_poll_asks_up_to_now(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    simulator.switches = Switches(future_window="refused", longest_window_s=10_800.0)
    clock.advance(timedelta(milliseconds=900))
    ages = [timedelta(milliseconds=950), timedelta(hours=4), timedelta(days=3)]
    for age in ages:
        simulator.receive(APP, "user-a", completed=clock.now() - age)
    in_this_second = simulator.receive(APP, "user-a")
    in_this_second.image_downloaded = True  # otherwise the not-downloaded list would have it

    outcome = await poll(runtime)

    _, state = parts(runtime)
    assert not outcome.failed
    assert len(outcome.discovered) == len(ages)
    assert state.progress.gaps == ()
    clock.advance(timedelta(seconds=30))
    before = len(simulator.requests)
    outcome = await poll(runtime)
    assert [row.fax_id for row in outcome.discovered] == [in_this_second.fax_id]
    clock.advance(timedelta(seconds=30))
    assert not (await poll(runtime)).failed
    statuses = [one.status for one in simulator.requests[before:] if one.call == "list"]
    assert statuses.count(400) == 1, "the future was asked for again"


async def test_second_poll_of_a_quiet_user_is_one_request_and_finds_nothing(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    simulator.receive(APP, "user-a", completed=clock.now() - timedelta(hours=20))
    await poll(runtime)
    before = len(simulator.requests)
    clock.advance(timedelta(seconds=10))

    outcome = await poll(runtime)

    assert outcome.discovered == []
    assert [one.call for one in simulator.requests[before:]] == ["list"]


async def test_first_success_ten_days_after_install_still_reaches_back_to_the_start(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    fax = simulator.receive(APP, "user-a", completed=clock.now() - timedelta(days=6))
    simulator.outage(True)
    assert (await poll(runtime)).failed
    clock.advance(timedelta(days=10))
    simulator.outage(False)

    outcome = await poll(runtime)

    assert [row.fax_id for row in outcome.discovered] == [fax.fax_id]


async def test_refused_old_slice_leaves_a_gap_and_todays_faxes_arrive(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, events: list[Event]
) -> None:
    simulator.switches = Switches(oldest_window_s=2 * 86_400.0)
    old = simulator.receive(APP, "user-a", completed=clock.now() - timedelta(days=6))
    old.image_downloaded = True  # otherwise the not-downloaded list would have it
    today = simulator.receive(APP, "user-a", completed=clock.now() - timedelta(hours=1))

    outcome = await poll(runtime)

    _, state = parts(runtime)
    assert [row.fax_id for row in outcome.discovered] == [today.fax_id]
    assert not outcome.failed
    assert state.progress.failed_gaps
    assert [event.action for event in events].count("gap-opened") == 1


@pytest.mark.parametrize("status", [403, 404])
async def test_old_slice_answered_with_403_or_404_leaves_a_gap_and_refuses_no_user(
    runtime: Runtime,
    simulator: Simulator,
    clock: QuickClock,
    events: list[Event],
    monkeypatch: pytest.MonkeyPatch,
    status: int,
) -> None:
    refuse_windows(monkeypatch, status, older_than=timedelta(days=2.5))
    simulator.receive(APP, "user-a", completed=clock.now() - timedelta(hours=1))
    discovered = []
    for _ in range(5):
        outcome = await poll(runtime)
        assert (outcome.skipped, outcome.error) == (None, None)
        discovered += outcome.discovered
        clock.advance(timedelta(minutes=6))
    _, state = parts(runtime)
    assert len(discovered) == 1
    assert state.progress.failed_gaps
    assert len(state.progress.failed_slices) <= 12  # not each hour of it
    assert "user-refused" not in [event.action for event in events]


async def test_sweep_that_is_answered_with_403_is_tried_again_and_refuses_no_user(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await poll(runtime)
    _, state = parts(runtime)
    end = state.progress.deep_sweep_end
    refuse_windows(monkeypatch, 403, older_than=timedelta(days=2.5))
    clock.advance(timedelta(days=1, minutes=1))
    outcome = await poll(runtime)
    assert (outcome.error, len(outcome.trouble)) == (None, 1)
    assert state.progress.deep_sweep_end == end
    monkeypatch.undo()
    clock.advance(timedelta(minutes=6))
    assert not (await poll(runtime)).failed
    assert state.progress.deep_sweep_end != end


async def test_refused_old_gap_is_tried_again_at_growing_intervals_and_closes(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, events: list[Event]
) -> None:
    simulator.switches = Switches(oldest_window_s=2 * 86_400.0)
    old = simulator.receive(APP, "user-a", completed=clock.now() - timedelta(days=6))
    old.image_downloaded = True
    await poll(runtime)
    before = len(simulator.requests)
    clock.advance(timedelta(seconds=5))
    await poll(runtime)
    assert len(simulator.requests) - before == 1  # only the newest slice: the gap is not due yet

    simulator.switches = Switches()
    clock.advance(timedelta(hours=7))
    outcome = await poll(runtime)

    _, state = parts(runtime)
    assert [row.fax_id for row in outcome.discovered] == [old.fax_id]
    assert state.progress.gaps == ()
    assert [event.action for event in events if event.action.startswith("gap")] == [
        "gap-opened",
        "gap-closed",
    ]


async def test_late_fax_within_the_overlap_is_found_by_the_next_poll_and_measured(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, events: list[Event]
) -> None:
    await poll(runtime)
    clock.advance(timedelta(minutes=10))
    await poll(runtime)
    late = simulator.receive(APP, "user-a", completed=clock.now() - timedelta(minutes=9))
    clock.advance(timedelta(seconds=30))

    outcome = await poll(runtime)

    assert [row.fax_id for row in outcome.discovered] == [late.fax_id]
    assert "late-arrivals" in [event.action for event in events]


async def test_late_fax_beyond_the_overlap_is_found_by_the_sweep_and_counted(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    await poll(runtime)
    clock.advance(timedelta(hours=1, minutes=1))
    late = simulator.receive(APP, "user-a", completed=clock.now() - timedelta(minutes=50))
    late_too = simulator.receive(APP, "user-a", completed=clock.now() - timedelta(hours=5))

    outcome = await poll(runtime)

    _, state = parts(runtime)
    assert {row.fax_id for row in outcome.discovered} == {late.fax_id, late_too.fax_id}
    assert (await runtime.services.ledger.read(streams.one, state.id)).found_by_sweep == 1


async def test_late_fax_beyond_every_window_is_found_in_the_not_downloaded_list(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    await poll(runtime)
    for _ in range(9):
        clock.advance(timedelta(days=1))
        await poll(runtime)
    late = simulator.receive(APP, "user-a", completed=clock.now() - timedelta(days=10))
    clock.advance(timedelta(days=1))

    outcome = await poll(runtime)

    assert [row.fax_id for row in outcome.discovered] == [late.fax_id]
    assert outcome.discovered[0].found_by == "not-downloaded"


async def test_fax_that_somebody_else_downloaded_is_still_new(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    fax = simulator.receive(APP, "user-a", completed=clock.now() - timedelta(hours=1))
    fax.image_downloaded = True

    assert [row.fax_id for row in (await poll(runtime)).discovered] == [fax.fax_id]


async def test_not_downloaded_list_is_read_while_no_image_of_the_user_is_fetched(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    account, state = parts(runtime)
    simulator.receive(APP, "user-a", completed=clock.now() - timedelta(hours=1))
    started: list[bool] = []
    read = ListReader.read_not_downloaded

    async def reading(self: ListReader, *arguments: Any) -> Any:
        started.append(await account.workers._start_one(look=True))
        return await read(self, *arguments)

    monkeypatch.setattr(ListReader, "read_not_downloaded", reading)
    await account.poll(state)

    assert started == [False]
    await account.workers.run_until_idle()
    assert sum(simulator.downloads.values()) == 1


async def test_refused_user_is_asked_again_after_a_minute_then_two_and_said_once(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, events: list[Event]
) -> None:
    simulator.faults = faults("403@list=always")
    _, state = parts(runtime)
    assert (await poll(runtime)).failed
    before = len(simulator.requests)
    assert (await poll(runtime)).skipped is not None
    assert len(simulator.requests) == before
    clock.advance(timedelta(seconds=80))
    assert (await poll(runtime)).failed
    assert state.progress.refused_until is not None
    assert (
        timedelta(seconds=90) < state.progress.refused_until - clock.now() < timedelta(seconds=150)
    )

    simulator.faults = Faults()
    clock.advance(timedelta(seconds=150))
    assert not (await poll(runtime)).failed
    said = [event.action for event in events if event.action.startswith("user-")]
    assert said == ["user-refused", "user-accepted"]


async def test_user_whose_every_window_is_refused_is_a_refused_user(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    simulator.faults = faults("400@list=always")

    outcome = await poll(runtime)

    assert isinstance(outcome.error, UserRefused)
    assert len(simulator.requests) < 10


async def test_too_long_window_is_halved_until_it_is_taken(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    simulator.switches = Switches(longest_window_s=10_800.0)
    ages = [timedelta(hours=hours) for hours in range(1, 160, 13)]
    for age in ages:
        simulator.receive(APP, "user-a", completed=clock.now() - age)

    outcome = await poll(runtime)

    _, state = parts(runtime)
    assert len(outcome.discovered) == len(ages)
    assert state.progress.gaps == ()


async def test_ignored_paging_headers_lose_no_fax(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    simulator.switches = Switches(paging_headers="ignored", default_page=10)
    for minutes in range(0, 35 * 60, 30):
        simulator.receive(APP, "user-a", completed=clock.now() - timedelta(minutes=minutes))

    outcome = await poll(runtime)

    assert len({row.fax_id for row in outcome.discovered}) == 70


async def test_list_that_shrinks_between_two_pages_is_read_again(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    simulator.switches = Switches(page_cap=3)
    simulator.faults = faults("shift-delete@list=first:4")
    for minutes in range(1, 21):
        simulator.receive(APP, "user-a", completed=clock.now() - timedelta(minutes=minutes))

    await poll(runtime)
    simulator.faults = Faults()
    _, state = parts(runtime)
    remaining = {fax.fax_id for fax in simulator.faxes()}
    rows = await runtime.services.ledger.read(jobs.due, state.id, clock.now(), 100)
    assert remaining <= {row.fax_id for row in rows}


async def test_server_date_an_hour_ahead_is_not_believed_until_three_agree(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    simulator.switches = Switches(date_skew_s=3600.0)

    await poll(runtime)

    _, state = parts(runtime)
    health = [one.call for one in simulator.requests].count("health")
    assert health == 3
    assert state.progress.watermark is not None
    assert state.progress.watermark - clock.now() > timedelta(minutes=58)


async def test_answers_without_a_date_mean_our_clock_less_five_minutes(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    simulator.switches = Switches(date_header="missing")

    await poll(runtime)

    _, state = parts(runtime)
    assert state.progress.watermark is not None
    assert timedelta(minutes=4) < clock.now() - state.progress.watermark < timedelta(minutes=6)


async def test_outage_suspends_the_account_and_later_polls_cost_no_request(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, events: list[Event]
) -> None:
    await poll(runtime, "user-a")
    await poll(runtime, "user-b")
    simulator.outage(True)
    await poll(runtime, "user-a")
    await poll(runtime, "user-b")
    assert runtime.accounts[APP].is_suspended
    before = len(simulator.requests)
    for _ in range(20):
        assert (await poll(runtime)).skipped is not None
    assert len(simulator.requests) == before

    simulator.outage(False)
    clock.advance(timedelta(minutes=1))
    assert (await poll(runtime)).skipped is None
    assert not runtime.accounts[APP].is_suspended
    said = [event.action for event in events if event.action.startswith("account-")]
    assert said == ["account-suspended", "account-resumed"]


async def test_failure_is_reported_once_and_the_recovery_with_its_count(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, events: list[Event]
) -> None:
    await poll(runtime)
    simulator.faults = faults("html-200@list=always")
    for _ in range(3):
        clock.advance(timedelta(seconds=30))
        await poll(runtime)
    simulator.faults = Faults()
    await poll(runtime)

    said = [event for event in events if event.action in ("poll-failed", "poll-recovered")]
    assert [event.action for event in said] == ["poll-failed", "poll-recovered"]
    assert said[1].fields["failures"] == 3


async def test_entry_without_an_id_leaves_its_slice_a_gap_and_everything_else_is_listed(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = simulator.receive(APP, "user-a", completed=clock.now() - timedelta(days=3, hours=2))
    bad = simulator.receive(APP, "user-a", completed=clock.now() - timedelta(days=3))
    bad.fields["fax_id"] = None

    found = []
    for _ in range(14):
        outcome = await poll(runtime)
        found += [row.fax_id for row in outcome.discovered]
        clock.advance(timedelta(hours=1))

    _, state = parts(runtime)
    gaps = state.progress.failed_gaps
    assert found == [good.fax_id]
    assert len(gaps) == 1
    assert gaps[0].length <= timedelta(hours=1)
    assert gaps[0].start < bad.completed < gaps[0].end


async def test_start_that_is_changed_to_an_earlier_time_adds_a_gap_that_is_listed(
    simulator: Simulator, clock: QuickClock, make_config: MakeConfig
) -> None:
    old = simulator.receive(APP, "user-a", completed=clock.now() - timedelta(days=20))
    old.image_downloaded = True
    async with opened_runtime(make_config(simulator.base_url), clock) as first:
        assert (await poll(first)).discovered == []
    clock.advance(timedelta(hours=1))
    longer = Poll(start=timedelta(days=30))
    async with opened_runtime(make_config(simulator.base_url, poll=longer), clock) as second:
        outcome = await poll(second)

    assert [row.fax_id for row in outcome.discovered] == [old.fax_id]


async def test_long_downtime_is_caught_up_from_where_the_last_run_ended(
    simulator: Simulator, clock: QuickClock, make_config: MakeConfig
) -> None:
    async with opened_runtime(make_config(simulator.base_url), clock) as first:
        await poll(first)
    expected = set()
    for day in range(30):
        fax = simulator.receive(APP, "user-a", completed=clock.now() + timedelta(days=day, hours=1))
        fax.image_downloaded = True
        expected.add(fax.fax_id)
    clock.advance(timedelta(days=31))
    async with opened_runtime(make_config(simulator.base_url), clock) as second:
        outcome = await poll(second)
        _, state = parts(second)

    assert {row.fax_id for row in outcome.discovered} == expected
    assert state.progress.gaps == ()


async def test_fax_from_the_future_is_stored_and_moves_no_watermark(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    await poll(runtime)
    simulator.receive(APP, "user-a", completed=clock.now() + timedelta(minutes=2))
    outcome = await poll(runtime)
    clock.advance(timedelta(minutes=3))
    outcome_later = await poll(runtime)

    _, state = parts(runtime)
    assert len(outcome.discovered) + len(outcome_later.discovered) == 1
    assert state.progress.watermark is not None
    assert state.progress.watermark <= clock.now()


async def test_gaps_are_left_to_the_next_poll_when_this_ones_time_is_over(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    account, state = parts(runtime)

    await account.poll(state, until=clock.monotonic())
    assert state.progress.gaps
    assert len([one for one in simulator.requests if one.call == "list"]) == 1
    clock.advance(timedelta(seconds=30))
    await account.poll(state, until=clock.monotonic() + 30)
    assert state.progress.gaps == ()


async def test_refused_old_windows_cost_three_requests_a_day_of_them_and_one_failed_slice(
    simulator: Simulator, clock: QuickClock, make_config: MakeConfig
) -> None:
    simulator.switches = Switches(oldest_window_s=2 * 86_400.0)
    settings = make_config(simulator.base_url, poll=Poll(start=timedelta(days=30)))
    async with opened_runtime(settings, clock) as runtime:
        await poll(runtime)
        _, state = parts(runtime)

    assert len(state.progress.failed_slices) < 40
    assert len([one for one in simulator.requests if one.call == "list"]) < 28 * 3 + 40


async def test_old_windows_that_are_refused_take_no_longer_than_the_poll_has_time(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    simulator.switches = Switches(oldest_window_s=2 * 86_400.0)
    account, state = parts(runtime)
    await account.poll(state, until=clock.monotonic())
    requests = len(simulator.requests)
    for _ in range(30):
        clock.advance(timedelta(seconds=30))
        await account.poll(state, until=clock.monotonic())
        assert len(simulator.requests) - requests <= 3
        requests = len(simulator.requests)


async def test_failing_sweep_is_reported_once_and_again_when_complete(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, events: list[Event]
) -> None:
    account, state = parts(runtime)
    await account.poll(state)
    for trouble in (True, True, True, True, False):
        clock.advance(timedelta(hours=25))
        with pytest.MonkeyPatch.context() as patch:
            if trouble:
                patch.setattr(ListReader, "read_not_downloaded", _fails)
            outcome = await account.poll(state)
        assert outcome.error is None
        assert state.fails_to_sweep == (trouble and state.sweep_alarms[DEEP].failures >= 3)

    said = [event.action for event in events if event.action.startswith("sweep")]
    assert said == ["sweep-failed", "sweep-recovered"]


async def _fails(*_: Any) -> Any:
    raise BadAnswer("the not-downloaded list is out of order")


async def test_slow_image_delays_neither_the_polls_nor_the_next_sweep(
    runtime: Runtime, clock: QuickClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poller.ingest.sweeps._HOLD_IMAGES_S", 0.01)
    account, state = parts(runtime)
    assert state.images.begin()
    outcome = await account.poll(state)
    assert not outcome.failed
    assert state.progress.deep_sweep_end is None
    assert not state.images.held
    state.images.end()
    clock.advance(timedelta(minutes=6))
    await account.poll(state)
    assert state.progress.deep_sweep_end is not None


async def test_late_arrivals_are_said_once_an_hour(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, events: list[Event]
) -> None:
    await poll(runtime)
    for _ in range(5):
        clock.advance(timedelta(minutes=10))
        await poll(runtime)
        simulator.receive(APP, "user-a", completed=clock.now() - timedelta(minutes=9))
        await poll(runtime)

    assert [event.action for event in events].count("late-arrivals") == 1


async def test_clock_that_was_a_month_ahead_puts_nothing_off_for_a_month(
    simulator: Simulator, clock: QuickClock, make_config: MakeConfig
) -> None:
    settings = make_config(simulator.base_url)
    simulator.faults = faults("404@image=always")
    simulator.receive(APP, "user-a", completed=clock.now() - timedelta(hours=1))
    right = clock.wall
    clock.wall += timedelta(days=30)
    simulator.switches = Switches(date_skew_s=-30 * 86_400.0)
    async with opened_runtime(settings, clock) as first:
        account, state = parts(first)
        await account.poll(state)
        await account.workers.run_until_idle()
        until = clock.now() + timedelta(minutes=1)
        await state.record(NotPolled(clock.now(), "refused", until))
    clock.wall = right + timedelta(minutes=5)
    simulator.switches, simulator.faults = Switches(), Faults()
    async with opened_runtime(settings, clock) as second:
        account, state = parts(second)
        assert state.progress.last_success_at is not None
        assert state.progress.last_success_at <= clock.now()  # it vouches for nothing to come
        assert not (await account.poll(state)).failed
        await account.workers.run_until_idle()
        row = await second.services.ledger.read(streams.one, state.id)
        assert (row.stored, row.pending) == (1, 0)


async def test_time_of_the_server_is_asked_for_once_however_many_polls_begin_together(
    runtime: Runtime, simulator: Simulator
) -> None:
    account = runtime.accounts[APP]
    await asyncio.gather(*(account.poll(state) for state in account.states.values()))
    assert [one.call for one in simulator.requests].count("health") == 1


async def test_start_pinned_by_a_clock_far_ahead_is_pinned_again(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    fax = simulator.receive(APP, "user-a", completed=clock.now() - timedelta(days=6))
    _, state = parts(runtime)
    pinned = Pinned(clock.now() + timedelta(days=23), str(state.user.poll.start))
    await state.record(pinned)
    state.progress = replace(state.progress, our_first_seen=clock.now() + timedelta(days=30))

    outcome = await poll(runtime)

    assert not outcome.failed
    assert [row.fax_id for row in outcome.discovered] == [fax.fax_id]
