"""Rows 53 to 55: clocks that are wrong, stepped or in another zone. No fax is missed, the watermark
stays true, nothing storms.

The tests use two times: the world's, of eFax and its faxes, and this machine's, which is `ahead` of
it.
"""

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from poller.config.model import Poll
from poller.daemon.monitor import Monitor
from poller.daemon.planner import Planner
from poller.ingest.runtime import Runtime
from poller.ledger import State, fold
from poller.simulator import Faults, Simulator, Switches
from poller.simulator.state import Fax
from tests.acceptance.installation import assert_stored
from tests.conftest import APP, KEY, NOON, MakeConfig, QuickClock, opened_runtime
from tests.faults.network import trying
from tests.integration.at_work import faults, parts, poll, row

SECOND, MINUTE, HOUR, DAY = (timedelta(**{u: 1}) for u in ("seconds", "minutes", "hours", "days"))
NAMES = {"user-a": "main/user-a"}


@dataclass
class WrongClock(QuickClock):
    """This machine's clock; `ahead` is its error."""

    ahead: timedelta = timedelta(0)

    def true(self) -> datetime:
        return self.wall - self.ahead

    def step(self, by: timedelta) -> None:
        self.wall += by
        self.ahead += by


@dataclass
class World:
    """One user's installation, opened and closed at will, and its watermarks so far."""

    clock: WrongClock
    simulator: Simulator
    open: Callable[[], Any]
    storage: Path
    watermark: datetime | None = None

    def receive(self, before: timedelta = 30 * SECOND) -> Fax:
        return self.simulator.receive(
            APP, "user-a", completed=self.clock.true() - before, distinct=False
        )

    async def poll(self, runtime: Runtime) -> bool:
        """Poll and fetch; return whether the poll succeeded. The watermark must be true after each."""
        outcome = await poll(runtime)
        await runtime.accounts[APP].workers.run_until_idle()
        _, state = parts(runtime)
        covered = (await runtime.services.ledger.read(fold.progress, state.id)).coverage
        assert covered == state.progress.coverage
        if covered.newest_end is not None:
            assert covered.newest_end <= self.clock.true(), "it claims to have listed the future"
        if self.watermark is not None:
            assert state.progress.watermark is not None
            assert state.progress.watermark >= self.watermark, "the watermark moved back"
        self.watermark = state.progress.watermark
        return not outcome.failed and outcome.skipped is None

    async def rounds(self, runtime: Runtime, count: int) -> None:
        """A new fax every minute, and a poll."""
        for _ in range(count):
            self.receive()
            await self.poll(runtime)
            self.clock.advance(MINUTE)


@asynccontextmanager
async def installed(
    make_config: MakeConfig, clock: WrongClock, switches: Switches
) -> AsyncIterator[World]:
    async with Simulator(now=clock.true, seed=3, switches=switches) as simulator:
        simulator.add_app(APP, KEY)
        simulator.add_user(APP, "user-a")
        settings = make_config(simulator.base_url, users=("user-a",), poll=Poll(start=2 * DAY))
        yield World(
            clock, simulator, lambda: opened_runtime(settings, clock), settings.storage.directory
        )


@pytest.fixture
async def world(make_config: MakeConfig) -> AsyncIterator[World]:
    async with installed(make_config, WrongClock(), Switches()) as opened:
        yield opened


async def settle(world: World, *, rounds: int = 4) -> None:
    """Let a last start and some more polls find the rest; everything is there once, requested once."""
    async with world.open() as runtime:
        await world.rounds(runtime, rounds)
        world.clock.advance(MINUTE)
        assert await world.poll(runtime)
        assert not parts(runtime)[1].progress.gaps
    assert_stored(world, world.simulator, names=NAMES)
    assert set(world.simulator.downloads.values()) <= {1}


@pytest.mark.parametrize("ahead", [HOUR, -HOUR, 2 * DAY, -DAY], ids=str)
async def test_row_53_a_clock_that_is_wrong_from_the_start_misses_nothing(
    world: World, ahead: timedelta
) -> None:
    world.clock.step(ahead)
    world.receive(47 * HOUR)  # within the look-back, by eFax's time
    async with world.open() as runtime:
        await world.rounds(runtime, 5)
    world.clock.step(-ahead)  # set right while poller was down
    world.receive()
    world.clock.advance(3 * HOUR)
    await settle(world)


@pytest.mark.parametrize("step", [HOUR, 2 * DAY, -DAY], ids=str)
@pytest.mark.parametrize("noticed", [True, False], ids=["noticed", "before-it-is-noticed"])
async def test_row_53_a_clock_that_steps_while_running_misses_nothing(
    world: World, step: timedelta, noticed: bool
) -> None:
    async with world.open() as runtime:
        await world.rounds(runtime, 3)
        world.clock.step(step)
        if noticed:
            await _noticed(runtime, step)
        requests = len(world.simulator.requests)
        await world.rounds(runtime, 4)
        # four polls of one list each, their images, and what a sweep may add: no storm
        assert len(world.simulator.requests) - requests <= 30
        world.clock.step(-step)
        if noticed:
            await _noticed(runtime, -step)
        await world.rounds(runtime, 2)
        world.receive()
    world.clock.advance(HOUR)
    world.receive(40 * MINUTE)  # while poller was down
    await settle(world)


async def _noticed(runtime: Runtime, step: timedelta) -> None:
    """Do what the monitor does within five seconds."""
    planner = Planner(runtime)
    try:
        await Monitor(runtime, planner)._stepped(step)
    finally:
        await planner.stop()


async def test_row_53_a_machine_that_slept_for_hours_catches_up_and_claims_nothing(
    world: World,
) -> None:
    async with world.open() as runtime:
        await world.rounds(runtime, 3)
        for _ in range(3):
            world.receive()
            world.clock.wall += 4 * HOUR  # the monotonic clock stands still in a suspended machine
            world.receive(2 * HOUR)
            await world.rounds(runtime, 3)
    await settle(world)


async def test_row_53_a_step_puts_off_no_retry_and_quarantines_nothing(world: World) -> None:
    """A fax that failed once, under a clock thirty days ahead, is neither given up nor due in a month."""
    world.simulator.faults = faults("404@image=always")
    fax = world.receive()
    async with world.open() as runtime:
        await world.poll(runtime)
        world.clock.step(30 * DAY)
        await _noticed(runtime, 30 * DAY)
        world.clock.advance(5 * MINUTE)
        await world.poll(runtime)
        world.clock.step(-30 * DAY)
        await _noticed(runtime, -30 * DAY)
        world.simulator.faults = Faults()
        world.clock.advance(2 * MINUTE)
        await world.poll(runtime)
        assert (await row(runtime, fax)).state is State.STORED


# -- 1970 and beyond 2038 -----------------------------------------------------------------------------

EPOCHS = {
    "1970": datetime(1970, 1, 1, 0, 0, 30, tzinfo=UTC),
    "2038": datetime(2038, 1, 19, 3, 14, 7, tzinfo=UTC),
    "2106": datetime(2106, 2, 7, 6, 28, 16, tzinfo=UTC),
}


@pytest.mark.parametrize("name", EPOCHS)
async def test_row_54_a_machine_that_starts_in_another_epoch_works_and_harms_no_watermark(
    world: World, name: str
) -> None:
    """A battery was empty: our clock is wrong from the start, and is set right while poller runs."""
    step = EPOCHS[name] - NOON
    world.clock.step(step)
    world.receive(47 * HOUR)
    async with world.open() as runtime:
        await world.rounds(runtime, 4)
        assert len(world.simulator.downloads) == 5
        world.clock.step(-step)
        await _noticed(runtime, -step)
        await world.rounds(runtime, 2)
    await settle(world)


async def test_row_54_an_installation_that_worked_wakes_up_in_1970_and_harms_no_watermark(
    world: World,
) -> None:
    async with world.open() as runtime:
        await world.rounds(runtime, 3)
    step = EPOCHS["1970"] - NOON
    world.clock.step(step)
    async with world.open() as runtime:
        await world.rounds(runtime, 3)
    world.clock.step(-step)
    await settle(world)


# -- what the server says about the time --------------------------------------------------------------

HONEST = Switches()


async def test_row_53_a_server_whose_date_is_wrong_for_a_while_misses_nothing(
    world: World,
) -> None:
    """eFax's faxes keep the right time; only its Date header is wrong, for two answers or for good."""
    for name, skew, missing in [
        ("an hour ahead", 3600.0, False),
        ("an hour behind", -3600.0, False),
        ("a day behind", -86400.0, False),
        ("none", 0.0, True),
    ]:
        with trying(name):
            async with world.open() as runtime:
                await world.rounds(runtime, 1)
                world.simulator.switches = replace(
                    HONEST, date_skew_s=skew, date_header="missing" if missing else "present"
                )
                for _ in range(2):
                    world.receive()
                    await poll(runtime)
                    world.clock.advance(10 * SECOND)
                world.simulator.switches = HONEST
                await runtime.accounts[APP].workers.run_until_idle()
            world.clock.advance(10 * MINUTE)
    async with world.open() as runtime:
        await poll(runtime)
        await runtime.accounts[APP].workers.run_until_idle()
    assert_stored(world, world.simulator, names=NAMES)


async def test_a_server_without_any_date_is_listed_up_to_five_minutes_ago_and_misses_nothing(
    world: World,
) -> None:
    world.simulator.switches = Switches(date_header="missing")
    async with world.open() as runtime:
        await world.rounds(runtime, 12)
        watermark = parts(runtime)[1].progress.watermark
        assert watermark is not None
        assert 5 * MINUTE <= world.clock.true() - watermark <= 7 * MINUTE
        world.clock.advance(10 * MINUTE)
        await world.poll(runtime)
        await runtime.accounts[APP].workers.run_until_idle()
    assert_stored(world, world.simulator, names=NAMES)


# -- faxes from the future ----------------------------------------------------------------------------


@pytest.mark.parametrize("later", [10 * MINUTE, 5 * HOUR], ids=str)
async def test_a_fax_with_a_time_in_the_future_is_stored_once_and_moves_no_watermark(
    world: World, later: timedelta
) -> None:
    """A list up to now need not show the fax; it is there at the latest when its time has come."""
    fax = world.receive(-later)
    async with world.open() as runtime:
        await world.rounds(runtime, 2)
        for _ in range(12):
            world.clock.advance(later / 10)
            await world.poll(runtime)
        assert (await row(runtime, fax)).state is State.STORED
    await settle(world)


# -- zones --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["-0800", "none"])
async def test_row_55_a_server_of_another_zone_and_the_hour_that_comes_twice(
    make_config: MakeConfig, spelling: Any
) -> None:
    """On 1 November 2026 at 09:00 UTC, Los Angeles repeats its two o'clock hour; everything is in UTC."""
    clock = WrongClock(wall=datetime(2026, 11, 1, 7, 30, tzinfo=UTC))
    with in_zone("America/Los_Angeles"):
        async with installed(make_config, clock, Switches(timestamp=spelling)) as world:
            async with world.open() as runtime:
                for _ in range(5):
                    world.receive(5 * MINUTE)
                    await world.poll(runtime)
                    world.clock.advance(35 * MINUTE)
            await settle(world)


@contextmanager
def in_zone(name: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environ:
        environ.setenv("TZ", name)
        time.tzset()
        yield
    time.tzset()
