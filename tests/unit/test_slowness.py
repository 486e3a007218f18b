"""When answers count as slow: thirty of a kind at most, of the last ten minutes."""

import pytest

from poller.efax.requests import Call
from poller.slowness import Slow, Slowness


def after(
    slowness: Slowness, seconds: float, *, begin: int, end: int, call: Call = Call.LIST
) -> list[bool]:
    """An answer that took so long every ten seconds; at each whether it counts as slow."""
    found = []
    for now in range(begin, end, 10):
        slowness.answered(call, 200, seconds, now)
        found.append(slowness.look(now) is not None)
    return found


@pytest.mark.parametrize(("call", "limit"), [(Call.LIST, 5.0), (Call.IMAGE, 10.0)])
def test_slow_is_said_after_two_minutes_and_is_over_after_two_good_ones(
    call: Call, limit: float
) -> None:
    slowness = Slowness()
    assert after(slowness, limit, begin=0, end=150, call=call) == [False] * 14 + [True]
    assert slowness.look(150) == Slow(call.value, limit)
    # The middle one is good after as many good answers as slow ones; then two minutes pass.
    good = after(slowness, limit - 0.1, begin=160, end=460, call=call)
    assert good.index(False) == 14 + 12
    assert slowness.look(460) is None


def test_fast_answers_between_slow_ones_are_no_slowness() -> None:
    slowness = Slowness()
    for now in range(0, 600, 10):
        slowness.answered(Call.LIST, 200, 60.0 if now % 30 == 0 else 0.2, now)
        assert slowness.look(now) is None


def test_a_list_that_never_came_counts_and_a_connection_that_breaks_at_once_does_not() -> None:
    slowness = Slowness()
    for now in range(0, 300, 10):
        slowness.answered(Call.LIST, None, 0.1, now)
        slowness.answered(Call.LIST, 429, 60.0, now)
        slowness.answered(Call.TOKEN, 200, 60.0, now)
        assert slowness.look(now) is None
    for now in range(300, 600, 10):
        slowness.answered(Call.LIST, None, 60.0, now)
        slowness.look(now)
    assert slowness.slow == Slow("list", 60.0)


def test_slowness_ends_when_requests_stop() -> None:
    slowness = Slowness()
    after(slowness, 20.0, begin=0, end=300)
    assert slowness.look(800) is not None
    assert slowness.look(1000) is not None  # nothing known any more, for the first time
    assert slowness.look(1120) is None


def test_two_answers_say_nothing() -> None:
    slowness = Slowness()
    for now in (0, 300):
        slowness.answered(Call.LIST, 200, 60.0, now)
        assert slowness.look(now) is None
    assert slowness.look(500) is None


def test_of_two_calls_the_slower_one_in_its_own_measure_is_named() -> None:
    slowness = Slowness()
    for now in range(0, 300, 10):
        slowness.answered(Call.LIST, 200, 30.0, now)
        slowness.answered(Call.IMAGE, 200, 40.0, now)
        slowness.look(now)
    assert slowness.slow == Slow("list", 30.0)
