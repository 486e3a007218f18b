"""Waiting for a turn: the asyncio side of pacing."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest

from poller.client import Observer, Ports
from poller.client.pacer import Pacer
from poller.pacing import Kind, Pacing


class Clock:
    """A clock that stands until the test moves it."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.sleeps = 0
        self._alarms: list[tuple[float, asyncio.Future[None]]] = []

    def now(self) -> datetime:
        return datetime(2024, 1, 1, tzinfo=UTC)

    def monotonic(self) -> float:
        return self.seconds

    @property
    def sleepers(self) -> int:
        return sum(not alarm.done() for _, alarm in self._alarms)

    async def sleep(self, seconds: float) -> None:
        self.sleeps += 1
        alarm = asyncio.get_running_loop().create_future()
        self._alarms.append((self.seconds + seconds, alarm))
        await alarm

    async def advance(self, seconds: float) -> None:
        self.seconds += seconds
        for at, alarm in self._alarms:
            if at <= self.seconds and not alarm.done():
                alarm.set_result(None)
        await settle()


class Unused:
    async def load(self, app_id: str) -> Any: ...
    async def save(self, app_id: str, level: float, at: datetime) -> None: ...
    async def token(self, app_id: str) -> Any: ...
    async def save_token(self, app_id: str, kept: Any) -> None: ...


class Desk(Observer):
    """A pacer whose callers keep their turn until they are let go."""

    def __init__(self, rate: float, burst: int, in_flight: int) -> None:
        self.clock = Clock()
        self.pacing = Pacing(rate, burst, in_flight, 0.0)
        self.waits: list[float] = []
        self.may_ask = True
        ports = Ports(self.clock, lambda: 0.5, Unused(), self, may_ask=lambda: self.may_ask)
        self.pacer = Pacer(self.pacing, ports)
        self.inside: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []
        self._leave: dict[str, asyncio.Event] = {}

    def waited(self, seconds: float) -> None:
        self.waits.append(seconds)

    async def come(self, name: str, kind: Kind = Kind.LIST) -> asyncio.Task[None]:
        self._leave[name] = asyncio.Event()
        task = asyncio.create_task(self._take_turn(name, kind))
        self.tasks.append(task)
        await settle()
        return task

    async def _take_turn(self, name: str, kind: Kind) -> None:
        async with self.pacer.turn(kind, name):
            self.inside.append(name)
            try:
                await self._leave[name].wait()
            finally:
                self.inside.remove(name)

    async def go(self, name: str) -> None:
        self._leave[name].set()
        await settle()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
async def desks() -> AsyncIterator[list[Desk]]:
    desks: list[Desk] = []
    yield desks
    for desk in desks:
        for task in desk.tasks:
            task.cancel()
        await asyncio.gather(*desk.tasks, return_exceptions=True)
        await desk.pacer.close()
        assert desk.clock.sleepers == 0


def desk(desks: list[Desk], rate: float = 1, burst: int = 3, in_flight: int = 8) -> Desk:
    desks.append(Desk(rate, burst, in_flight))
    return desks[-1]


async def test_a_burst_goes_at_once_and_the_next_one_waits_for_its_token(
    desks: list[Desk],
) -> None:
    one = desk(desks)
    for name in "abc":
        await one.come(name)
    assert one.inside == ["a", "b"]
    await one.go("a")
    await one.clock.advance(1.01)
    assert one.inside == ["b", "c"]
    assert one.waits == [0, 0, pytest.approx(1.01)]


async def test_a_slot_is_held_until_the_block_ends(desks: list[Desk]) -> None:
    one = desk(desks, rate=100, burst=100, in_flight=1)
    await one.come("a")
    await one.come("b")
    await one.clock.advance(50)
    assert one.inside == ["a"]
    await one.go("a")
    assert one.inside == ["b"]


async def test_a_block_that_raises_gives_its_slot_back(desks: list[Desk]) -> None:
    one = desk(desks, in_flight=1)
    with pytest.raises(ValueError, match="x"):
        async with one.pacer.turn(Kind.LIST, "a"):
            raise ValueError("x")
    await one.come("b")
    assert one.inside == ["b"]


async def test_a_caller_cancelled_while_waiting_lets_the_others_continue(desks: list[Desk]) -> None:
    one = desk(desks, in_flight=1)
    await one.come("a")
    waiting = await one.come("b")
    await one.come("c")
    waiting.cancel()
    await one.go("a")
    await one.clock.advance(10)
    assert one.inside == ["c"]


async def test_a_caller_cancelled_just_as_its_turn_comes_lets_the_next_one_go(
    desks: list[Desk],
) -> None:
    one = desk(desks, in_flight=1)
    await one.come("a")
    waiting = await one.come("b")
    await one.come("c")
    one._leave["a"].set()
    for _ in range(10):
        await asyncio.sleep(0)
        if not one.inside:  # a has just left; b is chosen and does not know yet
            break
    assert one.pacing.slots.under_way == 1
    waiting.cancel()
    await settle()
    await one.clock.advance(10)
    assert one.inside == ["c"]
    assert one.pacing.slots.under_way == 1


async def test_a_caller_chosen_after_its_cancellation_lets_the_next_one_go(
    desks: list[Desk],
) -> None:
    one = desk(desks, rate=100, burst=100, in_flight=1)
    await one.come("a")
    waiting = await one.come("b")
    await one.come("c")
    waiting.cancel()
    one.pacing.set_limits(100, 100, 2, 0.0)
    one.pacer.pump()  # b's task has not run yet
    await settle()
    assert one.inside == ["a", "c"]


async def test_a_caller_cancelled_inside_its_turn_gives_its_slot_back(desks: list[Desk]) -> None:
    one = desk(desks, in_flight=1)
    (await one.come("a")).cancel()
    await settle()
    await one.come("b")
    assert one.inside == ["b"]


async def test_those_who_wait_can_be_sent_away(desks: list[Desk]) -> None:
    one = desk(desks, rate=100, burst=100, in_flight=1)
    await one.come("a")
    dismissed = [await one.come(name) for name in "bc"]
    dismissed[1].cancel()
    await one.come("d", Kind.IMAGE)
    one.pacer.dismiss((Kind.LIST,), lambda: ValueError("go home"))
    await settle()
    assert isinstance(dismissed[0].exception(), ValueError)
    assert dismissed[1].cancelled()
    await one.go("a")
    assert one.inside == ["d"]


async def test_there_is_one_timer_however_many_wait(desks: list[Desk]) -> None:
    one = desk(desks)
    for name in "abcdefg":
        await one.come(name)
    assert one.clock.sleepers == 1
    assert one.clock.sleeps == 1


async def test_the_timer_is_set_earlier_when_the_rate_rises(desks: list[Desk]) -> None:
    one = desk(desks, rate=0.01)
    for name in "abc":
        await one.come(name)
    await one.go("a")
    one.pacing.set_limits(100, 3, 8, 0.0)
    one.pacer.pump()
    await settle()
    assert one.clock.sleepers == 1
    await one.clock.advance(0.5)
    assert one.inside == ["b", "c"]


async def test_a_pause_that_comes_later_is_kept_by_the_timer_that_was_set_before(
    desks: list[Desk],
) -> None:
    one = desk(desks)
    for name in "abc":
        await one.come(name)
    one.pacing.rate_limited(0.0, 20)
    await one.clock.advance(10)
    assert one.inside == ["a", "b"]
    await one.clock.advance(12)
    assert one.inside == ["a", "b", "c"]


async def test_a_repeat_takes_a_token_from_those_who_wait(desks: list[Desk]) -> None:
    one = desk(desks)
    for name in "ab":
        await one.come(name)
    assert one.pacer.repeat() > 0
    assert one.waits[-1] > 0
    await one.come("c")
    await one.go("a")
    await one.clock.advance(1.01)
    assert "c" not in one.inside
    for _ in range(3):
        await one.clock.advance(1.01)
    assert "c" in one.inside


async def test_closing_sends_away_those_who_wait_and_those_who_come_later(
    desks: list[Desk],
) -> None:
    one = desk(desks, in_flight=1)
    await one.come("a")
    waiting = [await one.come(name) for name in "bc"]
    await one.pacer.close()
    waiting.append(await one.come("d"))
    await settle()
    assert all(task.cancelled() for task in waiting)
    assert one.pacing.slots.waiting == 0
    await one.go("a")
    assert one.pacing.slots.under_way == 0
    assert one.clock.sleepers == 0


async def test_closing_stops_the_timer(desks: list[Desk]) -> None:
    one = desk(desks)
    for name in "abc":
        await one.come(name)
    await one.pacer.close()
    await one.pacer.close()
    assert one.clock.sleepers == 0
