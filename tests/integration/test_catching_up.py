"""The first minutes, and an eFax that answers slowly: what the status says, and that it is calm."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from poller.backlog import CatchUp
from poller.daemon.ledger_check import LedgerCheck
from poller.daemon.pace_watch import PaceWatch
from poller.daemon.planner import Planner
from poller.daemon.readiness import Readiness
from poller.efax.requests import Call
from poller.ingest.runtime import Runtime
from poller.ledger import jobs, streams
from poller.problems import NOT_IN_TIME, problems
from poller.progress import SliceFailed
from poller.runtime_report import RuntimeReport
from poller.simulator import Simulator
from poller.slowness import Slow
from poller.status import Pace, Surroundings, status
from tests.conftest import APP, Event, QuickClock
from tests.integration.at_work import (
    faults,
    fetch,
    listed,
    parts,
    poll,
    said,
    suspend,
)

MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)


class Watched:
    """A runtime whose pace is watched, and its status as the running service shows it."""

    def __init__(self, runtime: Runtime, clock: QuickClock) -> None:
        self.runtime, self.clock = runtime, clock
        self.begun: dict[str, CatchUp] = {}
        self._watch = PaceWatch(runtime, self.begun)

    async def look(self) -> dict[str, Any]:
        await self._watch.look_for_backlogs()
        return await self.shown()

    async def shown(self, allowed: float = 5.0, *, running: bool = True) -> dict[str, Any]:
        around = Surroundings(
            {"usable": True},
            running,
            paces={"main": Pace(5.0, allowed)},
            accounts=self.runtime.config.accounts,
            catching_up=self.begun,
        )
        return await status(self.runtime.services.ledger, self.clock.now(), around)

    async def account(self) -> dict[str, Any]:
        (account,) = (await self.look())["accounts"]
        return dict(account)

    async def catching_up(self) -> tuple[int, int] | None:
        found = (await self.account())["catching_up"]
        return found and (found["done"], found["left"])


@pytest.fixture
def watched(runtime: Runtime, clock: QuickClock) -> Watched:
    return Watched(runtime, clock)


# -- catching up -------------------------------------------------------------------------------------


async def test_a_first_start_catches_up_until_every_look_back_is_listed(
    watched: Watched, runtime: Runtime, clock: QuickClock
) -> None:
    assert await watched.catching_up() == (0, 16)  # two users, eight lists each
    assert (await watched.account())["pending_s"] == 0.0  # no fax is known yet
    _, state = parts(runtime)
    account = runtime.accounts[APP]
    await account.poll(state, until=clock.monotonic())  # its newest slice, and no time for more
    shown = await watched.look()
    first, second = shown["users"]
    assert first["gaps"]
    assert first["failed_gaps"] == []
    assert (first["lists_left"], second["lists_left"]) == (7, 8)
    assert shown["accounts"][0]["catching_up"]["done"] == 1
    assert problems(shown, []) == []
    await poll(runtime)
    assert await watched.catching_up() == (8, 8)
    await poll(runtime, "user-b")
    assert await watched.catching_up() is None
    assert watched.begun == {}


async def test_a_gap_that_was_refused_is_a_gap_and_no_catching_up(
    watched: Watched, runtime: Runtime, clock: QuickClock, events: list[Event]
) -> None:
    account, state = parts(runtime)
    await account.poll(state, until=clock.monotonic())
    assert not said(events, "gap-opened")
    (gap,) = state.progress.gaps
    await state.record(SliceFailed(gap, clock.now() + DAY, "HTTP 400"))
    first, _ = (await watched.look())["users"]
    assert (first["lists_left"], len(first["failed_gaps"])) == (0, 1)


async def test_under_429_an_unlisted_look_back_stays_visible_as_catching_up(
    watched: Watched, runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    account, state = parts(runtime)
    await poll(runtime, "user-b")
    await account.poll(state, until=clock.monotonic())
    assert await watched.catching_up() == (0, 7)
    simulator.faults = faults("429@list=always")
    clock.advance(20 * MINUTE)
    outcome = await poll(runtime)
    assert outcome.error is not None
    assert await watched.catching_up() == (0, 7)


async def test_after_a_day_of_downtime_users_are_behind_and_not_late(
    watched: Watched, runtime: Runtime, clock: QuickClock
) -> None:
    for user in ("user-a", "user-b"):
        await poll(runtime, user)
    clock.advance(DAY)
    runtime.accounts[APP].started = clock.now()  # as a start does
    late = [f"2 of 2 {NOT_IN_TIME}, for example main/user-a."]
    shown = await watched.look()
    assert [row["overdue"] for row in shown["users"]] == [True, True]
    assert shown["accounts"][0]["catching_up"]["left"] == 4
    assert problems(shown, late) == []
    suspended = shown | {"accounts": [shown["accounts"][0] | {"catching_up": None}]}
    assert problems(suspended, late) == late
    for user in ("user-a", "user-b"):
        await poll(runtime, user)
    assert await watched.catching_up() is None


async def test_users_are_late_if_nothing_is_listed_or_stored_for_minutes_while_catching_up(
    watched: Watched, runtime: Runtime, clock: QuickClock
) -> None:
    for user in ("user-a", "user-b"):
        await poll(runtime, user)
    clock.advance(DAY)
    runtime.accounts[APP].started = clock.now()  # as a start does
    late = [f"2 of 2 {NOT_IN_TIME}, for example main/user-a."]
    assert problems(await watched.look(), late) == []
    clock.advance(4 * MINUTE)
    assert problems(await watched.shown(), late) == []
    clock.advance(2 * MINUTE)  # the service hangs: only `poller status` still looks
    shown = await watched.shown()
    assert shown["accounts"][0]["catching_up"] == {"done": 0, "left": 4, "seconds": None}
    assert problems(shown, late) == late
    await poll(runtime)
    assert problems(await watched.shown(), late) == []


async def test_a_suspended_account_does_not_catch_up_and_a_resumed_one_does(
    watched: Watched, runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    await poll(runtime)
    assert await watched.catching_up() is not None  # the other user was never listed
    await suspend(runtime, simulator)
    before_next_look = await watched.shown()
    assert before_next_look["accounts"][0]["catching_up"] is None
    clock.advance(2 * DAY)
    assert await watched.catching_up() is None
    assert (await watched.account())["pending_s"] == 0.0
    resumed = runtime.accounts[APP]
    simulator.outage(False)
    clock.advance(6 * MINUTE)
    _, state = parts(runtime)
    await resumed.poll(state, until=clock.monotonic())
    assert not resumed.is_suspended
    found = await watched.catching_up()
    assert found is not None
    assert found[1] >= 3  # the other user's two days, in slices


async def test_a_resumed_account_catches_up_what_came_meanwhile(
    watched: Watched, runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    for user in ("user-a", "user-b"):
        await poll(runtime, user)
    await suspend(runtime, simulator)
    clock.advance(2 * DAY)
    simulator.outage(False)
    account, state = parts(runtime)
    await account.poll(state, until=clock.monotonic())
    assert not account.is_suspended
    assert state.progress.untried_gaps
    _, other = (await watched.look())["users"]
    assert other["lists_left"] == 3


# -- how fast, and how long --------------------------------------------------------------------------


async def test_pending_faxes_take_as_long_as_those_of_the_last_minutes_did(
    watched: Watched, runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    for user in ("user-a", "user-b"):
        await poll(runtime, user)
    faxes = [
        simulator.receive(APP, "user-a", completed=simulator.now() - MINUTE) for _ in range(12)
    ]
    await poll(runtime)
    assert (await watched.account())["pending_s"] == pytest.approx(12 / 5)  # at the limit
    clock.advance(MINUTE)
    assert (await watched.account())["pending_s"] is None  # nothing was stored for a minute
    for fax in faxes[:6]:
        await fetch(runtime, fax)
    account = await watched.account()
    assert account["pending"] == 6
    assert account["pending_s"] == pytest.approx(60, rel=0.1)
    assert (account["stored_per_hour"], account["discovered_per_hour"]) == (6, 12)
    clock.advance(61 * MINUTE)
    account = await watched.account()
    assert (account["stored_per_hour"], account["discovered_per_hour"]) == (0, 0)
    stopped = (await watched.shown(running=False))["accounts"][0]
    names = ("pending", "pending_s", "stored_per_hour", "discovered_per_hour", "catching_up")
    assert [stopped[name] for name in names] == [6, None, None, None, None]


async def test_a_fax_that_has_failed_is_no_backlog(
    watched: Watched, runtime: Runtime, simulator: Simulator
) -> None:
    await poll(runtime, "user-b")
    fax, row = await listed(runtime, simulator)
    assert (await runtime.services.ledger.read(jobs.untried))[row.stream].count == 1
    simulator.faults = faults("500@image=always")
    await fetch(runtime, fax)
    assert await runtime.services.ledger.read(jobs.untried) == {}
    account = await watched.account()
    assert (account["pending"], account["pending_s"]) == (1, 0.0)


async def test_many_faxes_at_once_are_a_backlog_also_long_after_the_start(
    watched: Watched, runtime: Runtime, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for user in ("user-a", "user-b"):
        await poll(runtime, user)
    simulator.receive(APP, "user-a", completed=simulator.now() - MINUTE)
    await poll(runtime)
    assert await watched.catching_up() is None
    monkeypatch.setattr("poller.backlog._BEGINS_S", 0.0001)  # of the limit of 1000 a second
    assert await watched.catching_up() == (0, 1)


async def test_new_faxes_are_counted_from_the_first_one_seen_since(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    seen = []
    for _ in range(7):
        _, row = await listed(runtime, simulator)
        seen.append((row.first_seen_at, row.stream))
        clock.advance(10 * MINUTE)
    read = runtime.services.ledger.read
    for back, (at, stream) in enumerate(reversed(seen), 1):
        assert await read(streams.discovered_since, at) == {stream: back}
    assert await read(streams.discovered_since, clock.now()) == {}


# -- eFax is slow ------------------------------------------------------------------------------------


async def test_slow_answers_are_said_once_and_shown_until_they_are_in_time_again(
    runtime: Runtime, clock: QuickClock, watched: Watched, events: list[Event]
) -> None:
    account = runtime.accounts[APP]
    watch = PaceWatch(runtime, {})

    def answers(seconds: float, count: int) -> None:
        for _ in range(count):
            clock.advance(timedelta(seconds=15))
            account._observer.request(Call.LIST, 200, seconds)
            watch.look_for_slowness()

    gauge = 'poller_efax_slow{account="main"} '
    answers(0.2, 4)
    assert f"{gauge}0.0" in (await runtime.services.metrics.render()).decode()
    answers(7.4, 30)
    assert said(events, "efax-slow", "efax-slow-over") == ["efax-slow"]
    assert f"{gauge}1.0" in (await runtime.services.metrics.render()).decode()
    (row,) = (await watched.look())["accounts"]
    row["slow"] = {"call": "list", "seconds": 7.4}
    assert problems({"accounts": [row]}, []) == [
        "eFax, or a proxy before it, answers account main slowly: a list takes about 7 s, so faxes "
        "come later. See `poller help efax-slow`."
    ]
    answers(0.2, 40)
    assert said(events, "efax-slow", "efax-slow-over") == ["efax-slow", "efax-slow-over"]
    assert f"{gauge}0.0" in (await runtime.services.metrics.render()).decode()


async def test_what_the_service_knows_of_pace_comes_back_from_its_report(
    runtime: Runtime, clock: QuickClock
) -> None:
    planner = Planner(runtime)
    services = runtime.services
    readiness = Readiness(runtime, planner, LedgerCheck(services.ledger, services.clock))
    readiness.catching_up["main"] = CatchUp(clock.now(), clock.now() - DAY, 96, 1000)
    runtime.accounts[APP].slowness.slow = Slow("image", 12.3)
    report = readiness.report()
    assert RuntimeReport.read(report.text()) == report
    assert report.slow == {"main": Slow("image", 12)}
    await planner.stop()
    await asyncio.sleep(0)
