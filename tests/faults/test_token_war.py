"""Another program signs in with our App ID for a day: poller reports it once, gives way, and faxes arrive."""

from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from poller.config.model import RetryConfig
from poller.ingest.runtime import Runtime
from poller.simulator import Simulator
from poller.simulator.state import Fax
from tests.conftest import APP, Event, MakeConfig, QuickClock, opened_runtime
from tests.exhaustive import EXHAUSTIVE
from tests.integration.at_work import parts, poll, row, said

HOURS, STEP = (24, timedelta(minutes=1)) if EXHAUSTIVE else (4, timedelta(minutes=2))
# In the worst case a token is lost at once. Then sign-ins are half a minute apart, a minute, and so
# on; from the sixth loss within an hour they are eight minutes apart, and ten from the seventh.
IN_THE_FIRST_HOUR, IN_A_LATER_HOUR = 12, 8


class Rival:
    """The other program: it signs in at regular intervals."""

    def __init__(self, simulator: Simulator, every: timedelta) -> None:
        self._simulator = simulator
        self._every = every
        self._next = simulator.now()

    def act(self) -> None:
        if self._simulator.now() >= self._next:
            self._simulator.end_token(APP)
            self._next = self._simulator.now() + self._every


class Hours:
    """Our sign-ins, counted by the hour in which the simulator saw them."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self._before = 0
        self.counted: Counter[int] = Counter()

    def look(self) -> None:
        total = self._simulator.sign_ins[APP]
        self.counted[int(self._simulator.now().timestamp() // 3600)] += total - self._before
        self._before = total


@pytest.fixture
async def at_work(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> AsyncIterator[Runtime]:
    settings = make_config(
        simulator.base_url,
        users=("user-a",),
        retry=RetryConfig(attempts=2, max_delay=timedelta(seconds=10)),
    )
    async with opened_runtime(settings, clock) as runtime:
        yield runtime


async def hour(runtime: Runtime, clock: QuickClock, rival: Rival, hours: Hours) -> None:
    """Run an hour of polls, each followed by fetching; the rival signs in between."""
    account, _ = parts(runtime)
    end = clock.now() + timedelta(hours=1)
    while clock.now() < end:
        due = clock.now() + STEP
        rival.act()
        await poll(runtime)
        await account.workers.run_until_idle()
        hours.look()
        clock.advance(max(timedelta(0), due - clock.now()))


@pytest.mark.timeout(900 if EXHAUSTIVE else 300)
@pytest.mark.parametrize("every_s", [1, 300, 3000])
async def test_a_war_of_a_day_is_said_once_costs_few_sign_ins_and_delays_no_fax_for_an_hour(
    at_work: Runtime, simulator: Simulator, clock: QuickClock, events: list[Event], every_s: int
) -> None:
    rival, hours = Rival(simulator, timedelta(seconds=every_s)), Hours(simulator)
    await poll(at_work)
    for _ in range(HOURS):
        fax = arrived(simulator)
        await hour(at_work, clock, rival, hours)
        stored_at = (await row(at_work, fax)).stored_at
        assert stored_at is not None, "a fax waited for more than an hour"
    assert said(events, "token-war") == ["token-war"]
    first, *later = [count for _, count in sorted(hours.counted.items())]
    assert first <= IN_THE_FIRST_HOUR
    assert max(later) <= IN_A_LATER_HOUR
    assert not at_work.accounts[APP].is_suspended
    assert not said(events, "fax-quarantined", "user-refused", "account-suspended")


async def test_peace_is_said_when_the_other_program_has_stopped_for_a_day(
    at_work: Runtime, simulator: Simulator, clock: QuickClock, events: list[Event]
) -> None:
    rival, hours = Rival(simulator, timedelta(minutes=5)), Hours(simulator)
    await hour(at_work, clock, rival, hours)
    fought = simulator.sign_ins[APP]
    at_war = 'poller_token_war{account="main"} '
    assert at_work.accounts[APP].client.is_at_war
    assert at_war + "1.0" in (await at_work.services.metrics.render()).decode()
    for _ in range(26):
        await poll(at_work)
        clock.advance(timedelta(hours=1))
    assert said(events, "token-war", "token-war-over") == ["token-war", "token-war-over"]
    assert not at_work.accounts[APP].client.is_at_war
    assert at_war + "0.0" in (await at_work.services.metrics.render()).decode()
    assert simulator.sign_ins[APP] - fought <= 3  # the last lost one, and the end of a day


async def test_a_service_that_restarts_all_the_time_in_a_war_keeps_its_budget(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> None:
    """Each start needs its own token, and forgets that there was a war."""
    settings = make_config(simulator.base_url, users=("user-a",))
    began = clock.now()
    fax = arrived(simulator)
    for _ in range(15):
        async with opened_runtime(settings, clock) as runtime:
            simulator.end_token(APP)
            await poll(runtime)
            await parts(runtime)[0].workers.run_until_idle()
        clock.advance(timedelta(seconds=10))
        passed_s = (clock.now() - began).total_seconds()
    assert simulator.sign_ins[APP] <= 5 + passed_s / 30 + 1
    async with opened_runtime(settings, clock) as runtime:
        assert (await row(runtime, fax)).stored_at is not None


def arrived(simulator: Simulator) -> Fax:
    return simulator.receive(
        APP, "user-a", completed=simulator.now() - timedelta(minutes=1), distinct=False
    )
