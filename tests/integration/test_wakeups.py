"""When notices cause a poll."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from itertools import pairwise

import pytest

from poller.daemon.wakeups import Wakeups
from poller.ingest.runtime import Runtime
from poller.ingest.stream_state import StreamState
from tests.conftest import QuickClock
from tests.integration.at_work import in_background, parts, until

MINUTE = timedelta(minutes=1)


class Polls:
    """When each user was to be polled, in seconds since the start."""

    def __init__(self, clock: QuickClock) -> None:
        self._clock = clock
        self._start = clock.mono
        self.at: list[tuple[str, float]] = []
        self.on_poll: Callable[[StreamState], None] = lambda _: None

    def __call__(self, stream: StreamState, delay: timedelta) -> None:
        at = self._clock.mono - self._start + delay.total_seconds()
        self.at.append((stream.user.name, round(at, 1)))
        self.on_poll(stream)

    @property
    def seconds(self) -> list[float]:
        return [at for _, at in self.at]


@pytest.fixture
def polls(clock: QuickClock) -> Polls:
    return Polls(clock)


@asynccontextmanager
async def waking(polls: Polls, clock: QuickClock) -> AsyncIterator[Wakeups]:
    wakeups = Wakeups(polls, clock)
    async with in_background(wakeups.run()):
        await asyncio.sleep(0)
        yield wakeups


async def is_over(wakeups: Wakeups) -> None:
    await until(lambda: not (wakeups._wakes or wakeups._asked))


async def test_who_is_named_is_polled_at_once_and_after_ten_and_sixty_seconds(
    runtime: Runtime, clock: QuickClock, polls: Polls
) -> None:
    _, state = parts(runtime)
    async with waking(polls, clock) as wakeups:
        wakeups.wake([state])
        assert polls.at == [("user-a", 0.0)]
        await is_over(wakeups)
    assert polls.at == [("user-a", at) for at in (0.0, 10.0, 60.0)]


async def test_nobody_is_polled_again_once_something_new_was_listed(
    runtime: Runtime, clock: QuickClock, polls: Polls
) -> None:
    _, state = parts(runtime)

    def list_at_the_second(stream: StreamState) -> None:
        stream.discovered += len(polls.at) == 2

    polls.on_poll = list_at_the_second
    async with waking(polls, clock) as wakeups:
        wakeups.wake([state])
        await is_over(wakeups)
    assert polls.seconds == [0.0, 10.0]


async def test_notices_that_come_again_and_again_poll_every_five_seconds_at_most(
    runtime: Runtime, clock: QuickClock, polls: Polls
) -> None:
    _, state = parts(runtime)
    async with waking(polls, clock) as wakeups:
        for _ in range(21):
            wakeups.wake([state])
            await clock.sleep(1.0)
        await is_over(wakeups)
    pauses = [after - before for before, after in pairwise(polls.seconds)]
    assert min(pauses) >= 5
    assert 5 <= len(polls.seconds) <= 9


async def test_a_poll_that_is_under_way_is_followed_by_another(
    runtime: Runtime, clock: QuickClock, polls: Polls
) -> None:
    _, state = parts(runtime)
    state.poll_began_at = clock.mono
    async with waking(polls, clock) as wakeups:
        wakeups.wake([state])
        await until(lambda: clock.mono >= 1003)
        assert polls.at == []
        state.poll_began_at = None
        await is_over(wakeups)
    assert 3 <= polls.seconds[0] < 10
    assert polls.seconds[-1] == 60.0


async def test_streams_that_are_woken_together_are_spread_and_end_together(
    runtime: Runtime, clock: QuickClock, polls: Polls
) -> None:
    first, second = runtime.states

    def list_one(stream: StreamState) -> None:
        first.discovered += stream is first

    polls.on_poll = list_one
    async with waking(polls, clock) as wakeups:
        wakeups.wake([first, second], MINUTE)
        await is_over(wakeups)
    assert sorted(name for name, _ in polls.at) == ["user-a", "user-b"]
    assert 0 < max(polls.seconds) < 60
    assert len(set(polls.seconds)) == 2
