"""An old window that an operator asks for: listed apart from the live watermark, once, to its end."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from poller.config.model import Poll
from poller.daemon.background_checks import BackgroundChecks
from poller.daemon.planner import Planner
from poller.efax.timestamps import parse_timestamp
from poller.errors import BadAnswer
from poller.ingest.runtime import Runtime
from poller.ingest.stream_state import StreamState
from poller.ledger import Backfill, BackfillFound, backfills, fold, streams
from poller.problems import problems
from poller.progress import NotPolled
from poller.simulator import Simulator, Switches
from poller.simulator.state import Fax
from poller.status import Surroundings, span, status
from poller.stream import Direction
from poller.window import Coverage, Interval
from tests.conftest import APP, Event, MakeConfig, QuickClock, opened_runtime
from tests.integration.at_work import (
    end_outage,
    faults,
    fetch,
    parts,
    poll,
    refuse_windows,
    said,
    suspend,
    until,
)

DAY = timedelta(days=1)


@pytest.fixture
async def polled(runtime: Runtime, simulator: Simulator) -> StreamState:
    """A user whose week is listed; requests after this are the test's."""
    await poll(runtime)
    simulator.requests.clear()
    _, state = parts(runtime)
    return state


def old_fax(simulator: Simulator, days: float) -> Fax:
    """A fax that arrived this long ago, and that somebody has since opened in the portal."""
    fax = simulator.receive(APP, "user-a", completed=simulator.now() - days * DAY)
    fax.image_downloaded = True
    return fax


def days_ago(clock: QuickClock, start: float, end: float) -> Interval:
    return Interval(clock.now() - start * DAY, clock.now() - end * DAY)


async def ask(runtime: Runtime, window: Interval) -> Backfill:
    """Do what `poller backfill` writes, and what the daemon does with it."""
    _, state = parts(runtime)
    asked = await runtime.services.ledger.write(
        backfills.ask, state.id, window, runtime.services.clock.now()
    )
    await runtime.read_edits()
    return asked


async def now_of(runtime: Runtime, asked: Backfill) -> Backfill:
    return await runtime.services.ledger.read(backfills.one, asked.id)


def windows(simulator: Simulator, before: datetime) -> list[Interval]:
    """Return the windows of all list requests that end before a time, in order."""
    found = []
    for seen in simulator.requests:
        query = {name: values[0] for name, values in parse_qs(urlsplit(seen.target).query).items()}
        if seen.call == "list" and "min_completed_timestamp" in query:
            start, end = (
                parse_timestamp(query[f"{which}_completed_timestamp"]) for which in ("min", "max")
            )
            assert start is not None
            assert end is not None
            if end < before:
                found.append(Interval(start, end))
    return found


async def test_backfill_finds_what_lies_before_the_look_back_and_moves_no_watermark(
    runtime: Runtime,
    simulator: Simulator,
    clock: QuickClock,
    polled: StreamState,
    events: list[Event],
) -> None:
    fax = old_fax(simulator, 20)
    watermark, gaps = polled.progress.watermark, polled.progress.gaps
    window = days_ago(clock, 25, 15)
    asked = await ask(runtime, window)

    outcome = await poll(runtime)

    assert [row.fax_id for row in outcome.discovered] == [fax.fax_id]
    assert outcome.discovered[0].found_by == "backfill"
    assert polled.progress.watermark is not None
    assert watermark is not None
    assert polled.progress.watermark >= watermark
    assert polled.progress.gaps == gaps == ()
    ledger = runtime.services.ledger
    assert window in (await ledger.read(fold.progress, polled.id)).coverage.intervals
    done = await now_of(runtime, asked)
    assert (done.rest, done.not_listed, done.done_at is not None) == (None, (), True)
    assert said(events, "backfill-completed") == ["backfill-completed"]
    assert await ledger.read(backfills.found, asked.id) == BackfillFound(
        discovered=1, stored=0, pending=1, failed=0
    )
    await fetch(runtime, fax)
    assert await ledger.read(backfills.found, asked.id) == BackfillFound(
        discovered=1, stored=1, pending=0, failed=0
    )


async def test_each_part_is_listed_once_newest_first_also_where_it_is_listed_already(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, polled: StreamState
) -> None:
    window = days_ago(clock, 6, 2)
    await ask(runtime, window)
    await poll(runtime)
    await poll(runtime)
    asked_for = windows(simulator, before=window.end + timedelta(minutes=1))
    assert len(asked_for) == 5
    assert asked_for == sorted(asked_for, reverse=True)
    assert Coverage(tuple(asked_for)).gaps(window.start, window.end) == ()


async def test_live_polls_come_first_and_a_backfill_continues_where_its_time_ended(
    runtime: Runtime,
    simulator: Simulator,
    clock: QuickClock,
    polled: StreamState,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ticking() -> float:
        clock.mono += 0.01
        return clock.mono

    monkeypatch.setattr(clock, "monotonic", ticking)
    account, _ = parts(runtime)
    window = days_ago(clock, 30, 20)
    asked = await ask(runtime, window)
    rests = {window}
    while (rest := (await now_of(runtime, asked)).rest) is not None:
        rests.add(rest)
        seen = len(simulator.requests)
        await account.poll(polled, until=clock.mono + 0.5)
        assert windows_of(simulator, seen)[0].end > clock.now() - timedelta(minutes=1)
    assert len(rests) > 2
    asked_for = windows(simulator, before=window.end + timedelta(minutes=1))
    assert len(asked_for) == len(set(asked_for)) == 11


def windows_of(simulator: Simulator, since: int) -> list[Interval]:
    later = simulator.requests[since:]
    kept, simulator.requests[:] = simulator.requests[:], later
    try:
        return windows(simulator, before=datetime.max.replace(tzinfo=later[0].at.tzinfo))
    finally:
        simulator.requests[:] = kept


async def test_refused_windows_are_reported_and_never_covered(
    runtime: Runtime,
    simulator: Simulator,
    clock: QuickClock,
    polled: StreamState,
    events: list[Event],
) -> None:
    simulator.switches = Switches(oldest_window_s=20.5 * 86_400)
    fax = old_fax(simulator, 18)
    window = days_ago(clock, 25, 15)
    asked = await ask(runtime, window)

    outcome = await poll(runtime)

    assert not outcome.failed
    assert [row.fax_id for row in outcome.discovered] == [fax.fax_id]
    done = await now_of(runtime, asked)
    assert done.rest is None
    assert all("400" in reason for _, reason in done.not_listed)
    unlisted = Coverage(tuple(interval for interval, _ in done.not_listed))
    covered = (await runtime.services.ledger.read(fold.progress, polled.id)).coverage
    assert unlisted.intervals[0].start == window.start
    assert not any(covered.covers(one.start) for one in unlisted.intervals)
    both = Coverage(unlisted.intervals + covered.intervals)
    assert both.gaps(window.start, window.end) == ()
    (event,) = [event for event in events if event.action == "backfill-completed"]
    assert event.fields["level"] == "warning"
    assert polled.progress.failed_gaps == ()


async def test_a_slice_that_fails_is_requested_later_in_shorter_slices_until_it_succeeds(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, polled: StreamState
) -> None:
    window = days_ago(clock, 15.9, 15.1)
    asked = await ask(runtime, window)
    simulator.faults = faults("bad-json@list=always")
    account, _ = parts(runtime)
    outcome = await account.backfill(polled)
    assert [type(error) for error in outcome.trouble] == [BadAnswer]
    held = await now_of(runtime, asked)
    assert held.rest == window
    assert held.last_error
    before = len(simulator.requests)
    assert not (await account.backfill(polled)).trouble  # it is not due yet
    assert len(simulator.requests) == before

    simulator.faults = faults()
    clock.advance(timedelta(minutes=6))
    outcome = await poll(runtime)
    assert not outcome.failed
    done = await now_of(runtime, asked)
    assert (done.rest, done.not_listed, done.last_error) == (None, (), None)
    asked_for = windows_of(simulator, before)
    old = [one.length for one in asked_for if one.end < window.end + timedelta(minutes=1)]
    assert timedelta(hours=7) < max(old) < timedelta(hours=13)


async def test_an_hour_that_fails_again_and_again_is_given_up_and_said(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, polled: StreamState
) -> None:
    window = days_ago(clock, 15.1, 15)
    asked = await ask(runtime, window)
    simulator.faults = faults("bad-json@list=always")
    account, _ = parts(runtime)
    for _ in range(30):
        await account.backfill(polled)
        clock.advance(timedelta(minutes=6))
    done = await now_of(runtime, asked)
    assert done.rest is None
    assert Coverage(tuple(one for one, _ in done.not_listed)).intervals == (window,)
    assert not (await runtime.services.ledger.read(fold.progress, polled.id)).coverage.covers(
        window.start
    )


@pytest.mark.parametrize("status", [403, 404])
async def test_a_window_that_is_answered_with_403_or_404_is_not_listed_and_refuses_no_user(
    runtime: Runtime,
    simulator: Simulator,
    clock: QuickClock,
    polled: StreamState,
    events: list[Event],
    monkeypatch: pytest.MonkeyPatch,
    status: int,
) -> None:
    refuse_windows(monkeypatch, status, older_than=20.5 * DAY)
    window = days_ago(clock, 25, 19)
    asked = await ask(runtime, window)
    for _ in range(20):
        outcome = await poll(runtime)
        assert (outcome.skipped, outcome.error) == (None, None)
        clock.advance(timedelta(minutes=6))
    done = await now_of(runtime, asked)
    assert (done.rest, done.done_at is not None) == (None, True)
    unlisted = Coverage(tuple(interval for interval, _ in done.not_listed))
    assert unlisted.intervals[0].start == window.start
    assert all(str(status) in reason for _, reason in done.not_listed)
    covered = (await runtime.services.ledger.read(fold.progress, polled.id)).coverage
    assert Coverage(unlisted.intervals + covered.intervals).gaps(window.start, window.end) == ()
    assert said(events, "user-refused", "backfill-completed") == ["backfill-completed"]


async def test_a_user_who_is_refused_in_the_middle_of_a_backfill_is_refused_and_it_stays_asked_for(
    runtime: Runtime,
    simulator: Simulator,
    clock: QuickClock,
    polled: StreamState,
    events: list[Event],
) -> None:
    asked = await ask(runtime, days_ago(clock, 16, 15))
    simulator.faults = faults("403@list=always")
    for _ in range(3):
        await poll(runtime)
        clock.advance(timedelta(minutes=6))
    assert polled.progress.refusals
    held = await now_of(runtime, asked)
    assert (held.rest, held.not_listed) == (asked.window, ())
    assert said(events, "user-refused") == ["user-refused"]


async def test_a_suspended_account_leaves_the_backfill_asked_for_and_it_is_done_afterwards(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, polled: StreamState
) -> None:
    asked = await ask(runtime, days_ago(clock, 16, 15))
    await suspend(runtime, simulator)
    account, _ = parts(runtime)
    assert (await account.backfill(polled)).error is not None
    held = await now_of(runtime, asked)
    assert held.rest is not None
    assert held.last_error
    await end_outage(runtime, simulator, clock)
    await poll(runtime)
    assert (await now_of(runtime, asked)).done_at is not None


async def test_a_backfill_outlives_the_process(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> None:
    settings = make_config(simulator.base_url)
    async with opened_runtime(settings, clock) as runtime:
        await poll(runtime)
        asked = await ask(runtime, days_ago(clock, 16, 15))
    fax = old_fax(simulator, 15.5)
    async with opened_runtime(settings, clock) as runtime:
        _, state = parts(runtime)
        assert state.progress.backfill_waits is True
        assert [row.fax_id for row in (await poll(runtime)).discovered] == [fax.fax_id]
        assert (await now_of(runtime, asked)).done_at is not None
        assert not await runtime.services.ledger.read(backfills.all_waiting)
    async with opened_runtime(settings, clock) as runtime:
        assert not parts(runtime)[1].progress.backfill_waits


async def test_a_backfill_does_not_wait_for_future_time(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, polled: StreamState
) -> None:
    asked = await ask(runtime, Interval(clock.now() - DAY, clock.now() + DAY))
    await poll(runtime)
    assert (await now_of(runtime, asked)).done_at is not None
    newest = (await runtime.services.ledger.read(fold.progress, polled.id)).coverage.newest_end
    assert newest is not None
    assert newest <= simulator.now()


async def test_a_user_who_was_never_polled_is_still_listed_from_its_start(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    account, state = parts(runtime)
    old, recent = old_fax(simulator, 15.5), old_fax(simulator, 3)
    await ask(runtime, days_ago(clock, 16, 15))
    first = await account.backfill(state)
    assert [row.fax_id for row in first.discovered] == [old.fax_id]
    assert [row.fax_id for row in (await poll(runtime)).discovered] == [recent.fax_id]
    assert state.progress.gaps == ()


async def test_the_same_window_requested_again_continues_and_begins_again_once_finished(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, polled: StreamState
) -> None:
    window = days_ago(clock, 16, 15)
    first = await ask(runtime, window)
    assert (await ask(runtime, window)).id == first.id
    await poll(runtime)
    again = await ask(runtime, window)
    assert again.id != first.id
    assert again.rest == window


async def test_a_find_of_a_backfill_does_not_count_as_late(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, polled: StreamState
) -> None:
    old_fax(simulator, 2)  # the window had missed it
    await ask(runtime, days_ago(clock, 3, 1))
    account, _ = parts(runtime)
    assert len((await account.backfill(polled)).discovered) == 1
    assert (await runtime.services.ledger.read(streams.one, polled.id)).late_max_s == 0
    assert (
        "poller_visibility_delay_seconds_count 0.0"
        in (await runtime.services.metrics.render()).decode()
    )


async def test_daemon_takes_a_backfill_up_and_carries_it_through_between_two_rare_polls(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, events: list[Event]
) -> None:
    clock.wall = datetime.now(clock.wall.tzinfo)  # APScheduler uses it
    for state in runtime.states:
        state.user = replace(state.user, poll=Poll(every=timedelta(hours=12)))
        await poll(runtime, state.user.name)
    _, state = parts(runtime)
    simulator.requests.clear()
    planner = Planner(runtime)
    planner.start()
    try:
        asked = await ask(runtime, days_ago(clock, 16, 15))
        BackgroundChecks(runtime, planner.poll_soon)._begin_backfills()
        await until(lambda: said(events, "backfill-completed"))
    finally:
        await planner.stop()
    assert (await now_of(runtime, asked)).done_at is not None
    assert {seen.user for seen in simulator.requests} == {"user-a"}


async def test_poll_follows_at_once_where_a_backfill_is_not_through(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock.wall = datetime.now(clock.wall.tzinfo)
    account, state = parts(runtime)
    state.user = replace(state.user, poll=Poll(every=timedelta(hours=12)))
    await poll(runtime)
    planner = Planner(runtime)
    planner.start()
    try:
        state.progress = replace(state.progress, backfill_waits=True)
        state.backfill_not_before = clock.monotonic() + 90
        job = planner._scheduler.get_job(str(state.id))
        job.modify(next_run_time=clock.now() + timedelta(hours=12))
        await planner._poll(account, state, job.trigger)
        job = planner._scheduler.get_job(str(state.id))
        assert job.next_run_time - clock.now() <= timedelta(seconds=90)
    finally:
        await planner.stop()


@pytest.mark.parametrize("trouble", ["500@list=always", "403@list=always", "refused"])
async def test_user_who_fails_is_polled_on_schedule_however_long_a_backfill_waits(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, trouble: str
) -> None:
    clock.wall = datetime.now(clock.wall.tzinfo)
    account, state = parts(runtime)
    state.user = replace(state.user, poll=Poll(every=timedelta(hours=12)))
    await poll(runtime)
    await ask(runtime, days_ago(clock, 16, 15))
    if trouble == "refused":
        await state.record(NotPolled(clock.now(), "refused", clock.now() + timedelta(hours=1)))
    else:
        simulator.faults = faults(trouble)
    planner = Planner(runtime)
    planner.start()
    try:
        later = clock.now() + timedelta(hours=6)
        job = planner._scheduler.get_job(str(state.id))
        job.modify(next_run_time=later)
        await planner._poll(account, state, job.trigger)
        assert state.progress.backfill_waits
        assert planner._scheduler.get_job(str(state.id)).next_run_time == later
    finally:
        await planner.stop()


async def test_a_backfill_withdrawn_during_a_list_ends_there_and_stays_ended(
    runtime: Runtime,
    simulator: Simulator,
    clock: QuickClock,
    polled: StreamState,
    events: list[Event],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    window = days_ago(clock, 30, 20)
    asked = await ask(runtime, window)
    ledger = runtime.services.ledger
    account, _ = parts(runtime)
    real = account.lanes[Direction.RECEIVED].poller._lister._reader.read

    async def withdraw_at_once(*arguments: Any) -> Any:
        await ledger.write(backfills.withdraw, polled.id, clock.now())
        return await real(*arguments)

    monkeypatch.setattr(
        account.lanes[Direction.RECEIVED].poller._lister._reader, "read", withdraw_at_once
    )
    await account.backfill(polled)
    held = await now_of(runtime, asked)
    assert held.withdrawn
    assert held.rest == window
    assert len(windows(simulator, before=window.end + timedelta(minutes=1))) == 1
    assert not polled.progress.backfill_waits
    assert said(events, "backfill-completed") == []
    assert (await ask(runtime, window)).id != asked.id


async def test_status_shows_a_waiting_backfill_and_why_it_makes_no_progress(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, polled: StreamState
) -> None:
    async def shown() -> tuple[dict[str, Any], list[str]]:
        answer = await status(runtime.services.ledger, clock.now(), Surroundings({"usable": True}))
        return next(row for row in answer["users"] if row["user"] == "user-a"), problems(answer, [])

    asked = await ask(runtime, days_ago(clock, 16, 15))
    row, sentences = await shown()
    assert (row["backfills"], row["backfill_error"]) == ([span(asked.window)], None)
    assert sentences == []
    simulator.faults = faults("bad-json@list=always")
    account, _ = parts(runtime)
    await account.backfill(polled)
    row, sentences = await shown()
    assert row["backfill_error"]
    assert sentences == [
        "A backfill for main/user-a makes no progress; poller tries it again. "
        "See `poller help backfill-stuck`."
    ]
    await runtime.services.ledger.write(backfills.withdraw, polled.id, clock.now())
    row, sentences = await shown()
    assert (row["backfills"], row["backfill_error"], sentences) == ([], None, [])
