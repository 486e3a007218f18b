"""How many lines poller logs in a day of outage for a thousand users."""

import io
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import structlog

from poller import log
from poller.config.model import Expect, Poll, RetryConfig, User
from poller.daemon.monitor import Monitor
from poller.daemon.planner import Planner
from poller.ingest.runtime import Runtime
from poller.progress import Swept
from poller.simulator import Simulator
from poller.window import SliceKind
from tests.acceptance.filled_ledger import fill, names
from tests.conftest import APP, MakeConfig, QuickClock, opened_runtime
from tests.integration.at_work import settled

USERS = 1000
STEP = timedelta(minutes=4)  # a probe comes about every five minutes
MOST_LINES = 300


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    log.configure("info", "json", b"k" * 32, stream)
    yield stream
    structlog.reset_defaults()


@pytest.fixture
async def runtime(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock, out: io.StringIO
) -> AsyncIterator[Runtime]:
    for user in names(USERS):
        simulator.add_user(APP, f"id-of-{user}")
    settings = make_config(
        simulator.base_url, retry=RetryConfig(attempts=1, max_delay=timedelta(seconds=1))
    )
    users = tuple(
        User("main", user, APP, f"id-of-{user}", poll=Poll(), expect=Expect(timedelta(hours=12)))
        for user in names(USERS)
    )
    (account,) = settings.accounts
    settings = replace(settings, accounts=(replace(account, users=users),))
    await fill(settings.state_url, USERS, clock.now(), well=True)
    async with opened_runtime(settings, clock) as opened:
        for state in opened.states:  # as after the sweeps of a start
            state.sweep_now = False
            state.apply(
                *(Swept(kind, clock.now()) for kind in (SliceKind.SWEEP, SliceKind.DEEP_SWEEP))
            )
        yield opened


def lines(out: io.StringIO) -> list[dict[str, Any]]:
    """Return the events since the last look."""
    text = out.getvalue()
    out.seek(0)
    out.truncate()
    return [json.loads(line) for line in text.splitlines()]


async def day(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, effects: tuple[str, ...]
) -> None:
    """eFax fails for 24 hours in these ways, one after the other, and others than the probe poll too."""
    account, turn = runtime.accounts[APP], itertools.count()
    states, ways = itertools.cycle(account.states.values()), itertools.cycle(effects)
    monitor = Monitor(runtime, Planner(runtime))
    end = clock.now() + timedelta(days=1)
    while clock.now() < end:
        simulator.outage(True, next(ways))
        for _ in range(3):
            await account.poll(next(states))
        clock.advance(STEP)
        if next(turn) % 3 == 0:
            await monitor._look_for_silence()
    await settled(account)


@pytest.mark.parametrize("effects", [("503",), ("503", "html-502", "reset", "401")])
async def test_a_day_of_outage_for_a_thousand_users_is_few_lines_and_its_end_one(
    runtime: Runtime,
    simulator: Simulator,
    clock: QuickClock,
    out: io.StringIO,
    effects: tuple[str, ...],
) -> None:
    account = runtime.accounts[APP]
    some = list(account.states.values())[::100]
    for state in some:
        assert (await account.poll(state)).error is None
    assert lines(out) == []

    await day(runtime, simulator, clock, effects)
    said = Counter(one["event"]["action"] for one in lines(out))
    assert said.total() <= MOST_LINES
    # once for the list call, once for the sign-in
    assert said["account-suspended"] <= 2 * len(effects)
    assert said.keys() <= {"account-suspended", "poll-failed", "rate-limited"}

    simulator.outage(False)
    clock.advance(timedelta(minutes=6))
    failed = [state for state in account.states.values() if state.poll_alarm]
    for state in [*failed, *some]:
        assert (await account.poll(state)).error is None
    said_now = lines(out)
    recovered = Counter(one["event"]["action"] for one in said_now)
    assert recovered == Counter({"account-resumed": 1, "poll-recovered": said["poll-failed"]})
    assert all(one["poller"]["failures"] >= 1 for one in said_now)
