"""pacing: the rate, the slots, whose turn it is, and 429s."""

import heapq
import itertools
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poller.pacing import Kind, Pacing, Ticket, Turns
from tests.exhaustive import often

NOW = datetime(2024, 5, 21, 4, 27, 56, tzinfo=UTC)
SECOND = timedelta(seconds=1)

quick = settings(
    deadline=None, max_examples=often(30), suppress_health_check=[HealthCheck.too_slow]
)  # a busy machine is not a defect


@dataclass(frozen=True)
class Arrival:
    at: float
    kind: Kind
    user: str
    takes_s: float


def tickets(kind: Kind, user: str, count: int) -> list[Ticket]:
    return [Ticket(kind, user) for _ in range(count)]


def waiting(pacing: Pacing, several: Iterable[Ticket]) -> None:
    for ticket in several:
        pacing.slots.enqueue(ticket)


def simulate(
    pacing: Pacing, arrivals: Sequence[Arrival], takes_s: dict[Ticket, float] | None = None
) -> list[tuple[float, Ticket]]:
    """Move a virtual clock from event to event; return when each request was sent.

    One that takes more than four seconds is reset, and the HTTP client repeats it by itself.
    """
    order = itertools.count()
    events: list[tuple[float, int, str, Ticket | None]] = []
    takes_s = {} if takes_s is None else takes_s
    for arrival in arrivals:
        comes = Ticket(arrival.kind, arrival.user)
        takes_s[comes] = arrival.takes_s
        heapq.heappush(events, (arrival.at, next(order), "arrives", comes))
    granted: list[tuple[float, Ticket]] = []
    while events:
        now, _, what, ticket = heapq.heappop(events)
        if ticket is not None and what == "arrives":
            pacing.slots.enqueue(ticket)
        elif ticket is not None:
            if takes_s[ticket] > 4:
                granted.append((now + pacing.repeat(now), ticket))
            pacing.release(ticket, now)
        for going in pacing.grant(now):
            granted.append((now, going))
            heapq.heappush(events, (now + takes_s[going], next(order), "ends", going))
        assert pacing.slots.under_way <= pacing.slots.in_flight
        wake = pacing.wakes_at(now)
        if wake is not None:
            assert wake > now, "what could go now was not granted"
            heapq.heappush(events, (wake, next(order), "wakes", None))
        assert next(order) < 100_000, "it wakes up again and again"
    return granted


def refusals(arrivals: Iterable[float], rate: float, capacity: float) -> int:
    """Count what a server's token bucket would refuse."""
    tokens, at, refused = capacity, 0.0, 0
    for now in sorted(arrivals):
        tokens = min(capacity, tokens + (now - at) * rate)
        at = now
        if tokens < 1 - 1e-6:
            refused += 1
        else:
            tokens -= 1
    return refused


arrivals_of_all_kinds = st.lists(
    st.builds(
        Arrival,
        at=st.floats(0, 20),
        kind=st.sampled_from(Kind),
        user=st.sampled_from(["a", "b", "c", "d"]),
        takes_s=st.floats(0, 5),
    ),
    max_size=120,
)
rates = st.sampled_from([0.5, 1.0, 5.0, 7.3, 50.0])


@quick
@given(arrivals_of_all_kinds, rates, st.integers(2, 12), st.integers(1, 9))
def test_whatever_arrives_goes_and_no_window_sees_more_than_the_rate_and_its_burst(
    arrivals: list[Arrival], rate: float, burst: int, in_flight: int
) -> None:
    granted = simulate(Pacing(rate, burst, in_flight, now=0.0), arrivals)
    assert len({ticket for _, ticket in granted}) == len(arrivals)
    times = sorted(at for at, _ in granted)
    for first, begin in enumerate(times):
        for count, end in enumerate(times[first:], 1):
            assert count <= rate * (end - begin) + burst - 1 + 1e-4


@quick
@given(arrivals_of_all_kinds, rates, st.integers(1, 12), st.integers(1, 9), st.data())
def test_a_server_with_a_burst_of_two_more_never_refuses_though_the_network_is_uneven(
    arrivals: list[Arrival], rate: float, burst: int, in_flight: int, data: st.DataObject
) -> None:
    granted = simulate(Pacing(rate, burst, in_flight, now=0.0), arrivals)
    delays = data.draw(st.lists(st.floats(0, 1.9), min_size=len(granted), max_size=len(granted)))
    reached = [at + delay / rate for (at, _), delay in zip(granted, delays, strict=True)]
    assert refusals(reached, rate, burst + 2) == 0


@quick
@given(arrivals_of_all_kinds, rates, st.integers(2, 12), st.data())
def test_a_server_that_stalls_and_then_counts_what_waited_never_refuses(
    arrivals: list[Arrival], rate: float, burst: int, data: st.DataObject
) -> None:
    """A request is counted at any time between its sending and its answer."""
    answered = [replace(arrival, takes_s=min(arrival.takes_s, 4.0)) for arrival in arrivals]
    in_flight = data.draw(st.integers(1, burst - 1))
    takes: dict[Ticket, float] = {}
    granted = simulate(Pacing(rate, burst, in_flight, now=0.0), answered, takes)
    counted = [at + data.draw(st.floats(0, 1)) * takes[ticket] for at, ticket in granted]
    assert refusals(counted, rate, burst + 2) == 0


def test_requests_delayed_on_the_way_do_not_arrive_together_with_later_ones() -> None:
    pacing = Pacing(50, burst=20, in_flight=8, now=0.0)
    waiting(pacing, tickets(Kind.LIST, "a", 60))
    held = pacing.grant(0.0)
    assert pacing.grant(3.0) == []
    for ticket in held:
        pacing.release(ticket, 3.0)
    sent = pacing.grant(3.0)
    assert refusals([3.0] * (len(held) + len(sent)), 50, 22) == 0
    assert sent


@pytest.mark.parametrize(
    ("quiet_s", "at_once"),
    [
        pytest.param(0.0, 0, id="none at the same moment"),
        pytest.param(0.7, 3, id="as many as have come since"),
        pytest.param(60.0, 9, id="the whole burst after a while"),
    ],
)
def test_a_poller_that_follows_another_one_does_not_begin_with_a_second_burst(
    quiet_s: float, at_once: int
) -> None:
    pacing = Pacing(5, burst=10, in_flight=50, now=0.0)
    pacing.follow(quiet_s)
    waiting(pacing, tickets(Kind.LIST, "a", 50))
    assert len(pacing.grant(0.0)) == at_once


def test_answers_that_are_under_way_free_their_places_before_their_bodies_end() -> None:
    pacing = Pacing(5, burst=3, in_flight=8, now=0.0)
    waiting(pacing, tickets(Kind.IMAGE, "a", 4))
    image, _ = pacing.grant(0.0)
    assert pacing.grant(0.4) == []
    pacing.answered(image, 0.4)
    assert len(pacing.grant(0.7)) == 1
    assert pacing.slots.under_way == 3


def test_without_an_answer_for_a_second_one_token_at_a_time_comes_again() -> None:
    pacing = Pacing(5, burst=3, in_flight=8, now=0.0)
    waiting(pacing, tickets(Kind.LIST, "a", 5))
    assert len(pacing.grant(0.0)) == 2
    assert pacing.wakes_at(0.0) == pytest.approx(1.0)
    assert len(pacing.grant(1.0)) == 1
    assert len(pacing.grant(100.0)) == 1


@pytest.mark.parametrize(
    ("burst", "at_once"),
    [pytest.param(10, 9, id="one less"), pytest.param(1, 1, id="at least one")],
)
def test_the_poller_uses_one_less_than_the_burst(burst: int, at_once: int) -> None:
    pacing = Pacing(5, burst, in_flight=50, now=0.0)
    waiting(pacing, tickets(Kind.LIST, "a", 50))
    first = pacing.grant(0.0)
    assert len(first) == at_once
    for ticket in first:
        pacing.release(ticket, 1.0)
    assert len(pacing.grant(1000.0)) == at_once


def test_what_was_used_is_the_average_of_the_last_minute_repetitions_included() -> None:
    pacing = Pacing(10, 100, 50, 0)
    waiting(pacing, tickets(Kind.LIST, "a", 30))
    assert len(pacing.grant(0.5)) == 30
    pacing.repeat(20.2)
    assert pacing.used(20.2) == pytest.approx(31 / 60)
    pacing.repeat(20.9)
    assert pacing.used(59.0) == pytest.approx(32 / 60)
    assert pacing.used(61.0) == pytest.approx(2 / 60)
    pacing.repeat(70.0)
    assert len(pacing._sent) == 2  # it keeps at most a minute
    assert pacing.used(200.0) == 0


def test_lists_go_before_images_and_sign_ins_before_both() -> None:
    pacing = Pacing(5, burst=4, in_flight=8, now=0.0)
    waiting(pacing, tickets(Kind.IMAGE, "a", 1000))
    waiting(pacing, [Ticket(Kind.LIST, "a"), Ticket(Kind.OTHER, "")])
    assert [t.kind for t in pacing.grant(0.0)] == [Kind.OTHER, Kind.LIST, Kind.IMAGE]


def test_images_get_every_fourth_token_while_lists_wait_too() -> None:
    pacing = Pacing(5, burst=13, in_flight=50, now=0.0)
    waiting(pacing, tickets(Kind.LIST, "a", 50) + tickets(Kind.IMAGE, "b", 50))
    kinds = [ticket.kind.name[0] for ticket in pacing.grant(0.0)]
    assert "".join(kinds) == "LLLILLLILLLI"


def test_lists_that_went_while_no_image_waited_are_not_counted() -> None:
    pacing = Pacing(5, burst=20, in_flight=50, now=0.0)
    waiting(pacing, tickets(Kind.LIST, "a", 5))
    pacing.grant(0.0)
    waiting(pacing, tickets(Kind.LIST, "a", 4) + tickets(Kind.IMAGE, "b", 1))
    kinds = [ticket.kind.name[0] for ticket in pacing.grant(0.0)]
    assert "".join(kinds) == "LLLIL"


def test_lists_leave_nothing_to_images_that_could_not_go() -> None:
    pacing = Pacing(5, burst=20, in_flight=8, now=0.0)
    waiting(pacing, tickets(Kind.IMAGE, "b", 20))
    assert len(pacing.grant(0.0)) == 6
    waiting(pacing, tickets(Kind.LIST, "a", 20))
    assert [ticket.kind for ticket in pacing.grant(0.0)] == [Kind.LIST] * 2


@quick
@given(st.lists(st.sampled_from(Kind), min_size=1, max_size=200), st.integers(1, 9))
def test_of_any_four_tokens_one_is_for_an_image_that_could_go(
    kinds: list[Kind], in_flight: int
) -> None:
    pacing = Pacing(1000, burst=2, in_flight=in_flight, now=0.0)
    waiting(pacing, [Ticket(kind, "a") for kind in kinds])
    images = kinds.count(Kind.IMAGE)
    passed_over = 0
    for step in range(1, len(kinds) + 1):
        (ticket,) = pacing.grant(step * 2.0)
        pacing.release(ticket, step * 2.0)
        images -= ticket.kind is Kind.IMAGE
        passed_over = 0 if ticket.kind is Kind.IMAGE or not images else passed_over + 1
        assert passed_over <= 3
    assert pacing.slots.waiting == 0


LOW = (Kind.SENT_LIST, Kind.SENT_IMAGE, Kind.LAST)


def test_sent_faxes_go_after_received_ones_and_deletions_come_last() -> None:
    pacing = Pacing(5, burst=100, in_flight=100, now=0.0)
    waiting(pacing, [Ticket(kind, "a") for kind in reversed(Kind)])
    assert [ticket.kind for ticket in pacing.grant(0.0)] == list(Kind)


def test_a_sent_list_goes_where_no_image_could_go() -> None:
    pacing = Pacing(5, burst=100, in_flight=4, now=0.0)
    waiting(pacing, tickets(Kind.IMAGE, "a", 9) + tickets(Kind.SENT_LIST, "a", 1))
    kinds = [ticket.kind for ticket in pacing.grant(0.0)]
    assert kinds == [Kind.IMAGE] * 3 + [Kind.SENT_LIST]


@pytest.mark.parametrize(
    ("in_flight", "slow", "low"),
    [
        pytest.param(1, 1, 1, id="one slot is for all"),
        pytest.param(2, 1, 1, id="of two one is left"),
        pytest.param(3, 1, 2, id="of three one, but for lists"),
        pytest.param(4, 2, 3, id="of four two"),
        pytest.param(5, 2, 3, id="of five two"),
        pytest.param(8, 4, 6, id="of eight four"),
    ],
)
@pytest.mark.parametrize("kind", [Kind.SENT_IMAGE, Kind.LAST])
def test_sent_images_and_deletions_leave_half_of_the_slots_free_and_sent_lists_a_quarter(
    kind: Kind, in_flight: int, slow: int, low: int
) -> None:
    pacing = Pacing(5, burst=100, in_flight=in_flight, now=0.0)
    waiting(pacing, tickets(Kind.SENT_IMAGE, "a", 50) + tickets(kind, "a", 50))
    assert len(pacing.grant(0.0)) == slow
    waiting(pacing, tickets(Kind.SENT_LIST, "a", 50))
    assert len(pacing.grant(0.0)) == low - slow
    waiting(pacing, tickets(Kind.LIST, "a", 50))
    assert len(pacing.grant(0.0)) == in_flight - low


def test_where_sent_images_hold_slots_a_list_still_finds_one_beside_images() -> None:
    pacing = Pacing(5, burst=100, in_flight=8, now=0.0)
    waiting(pacing, tickets(Kind.SENT_IMAGE, "a", 50))
    assert len(pacing.grant(0.0)) == 4
    waiting(pacing, tickets(Kind.IMAGE, "a", 50))
    assert [ticket.kind for ticket in pacing.grant(0.0)] == [Kind.IMAGE] * 3
    waiting(pacing, tickets(Kind.LIST, "a", 2))
    assert [ticket.kind for ticket in pacing.grant(0.0)] == [Kind.LIST]


def test_fewer_slots_than_are_held_let_nobody_go() -> None:
    pacing = Pacing(5, burst=100, in_flight=8, now=0.0)
    waiting(pacing, tickets(Kind.SENT_IMAGE, "a", 5) + tickets(Kind.IMAGE, "a", 1))
    assert len(pacing.grant(0.0)) == 5
    pacing.set_limits(5, burst=100, in_flight=2, now=0.0)
    waiting(pacing, tickets(Kind.IMAGE, "a", 1))
    assert pacing.grant(0.0) == []


@quick
@given(arrivals_of_all_kinds, rates, st.integers(1, 12), st.integers(1, 9))
def test_received_faxes_keep_their_rules_among_themselves_whatever_else_there_is(
    arrivals: list[Arrival], rate: float, burst: int, in_flight: int
) -> None:
    """No lower kind goes while a higher kind could, and everything is within bounds."""
    pacing = Pacing(rate, burst, in_flight, now=0.0)
    slots = pacing.slots
    start = slots.start

    def checked(kind: Kind) -> Ticket:
        if kind in LOW:
            assert not slots._queues[Kind.OTHER]
            assert not slots._queues[Kind.LIST]
            assert not slots._image_may_go()
        ticket = start(kind)
        held = {one: len(slots._under_way[one]) for one in Kind}
        low = sum(held[one] for one in LOW)
        if kind in LOW:
            assert low <= max(1, in_flight - -(-in_flight // 4))
        if kind in (Kind.SENT_IMAGE, Kind.LAST):
            assert held[Kind.SENT_IMAGE] + held[Kind.LAST] <= max(1, in_flight // 2)
        return ticket

    slots.start = checked  # type: ignore[method-assign]
    assert len({ticket for _, ticket in simulate(pacing, arrivals)}) == len(arrivals)


@pytest.mark.parametrize(
    ("in_flight", "images"),
    [
        pytest.param(1, 1, id="one slot is for all"),
        pytest.param(2, 1, id="of two one is left"),
        pytest.param(4, 3, id="of four one"),
        pytest.param(5, 3, id="of five two"),
        pytest.param(8, 6, id="of eight two"),
    ],
)
def test_images_leave_a_quarter_of_the_slots_free(in_flight: int, images: int) -> None:
    pacing = Pacing(5, burst=100, in_flight=in_flight, now=0.0)
    waiting(pacing, tickets(Kind.IMAGE, "a", 50))
    assert len(pacing.grant(0.0)) == images
    waiting(pacing, tickets(Kind.LIST, "a", 50))
    assert len(pacing.grant(0.0)) == in_flight - images


def test_a_slot_is_free_again_when_its_request_has_ended() -> None:
    pacing = Pacing(5, burst=100, in_flight=2, now=0.0)
    waiting(pacing, tickets(Kind.LIST, "a", 3))
    first, _ = pacing.grant(0.0)
    assert pacing.grant(1.0) == []
    assert pacing.wakes_at(1.0) is None
    pacing.release(first, 1.0)
    pacing.release(first, 1.0)
    assert pacing.slots.under_way == 1
    assert len(pacing.grant(1.0)) == 1


def test_wakes_at_is_now_when_somebody_could_go_now_and_never_when_nobody_waits() -> None:
    pacing = Pacing(5, burst=3, in_flight=2, now=0.0)
    assert pacing.wakes_at(0.0) is None
    pacing.slots.enqueue(Ticket(Kind.LIST, "a"))
    assert pacing.wakes_at(7.0) == 7.0


def test_users_take_turns_in_each_kind() -> None:
    for kind in Kind:
        pacing = Pacing(5, burst=100, in_flight=200, now=0.0)
        waiting(pacing, tickets(kind, "a", 4) + tickets(kind, "b", 2) + tickets(kind, "c", 3))
        assert "".join(t.user for t in pacing.grant(0.0)) == "abcabcaca"


def test_tickets_of_one_user_keep_their_order() -> None:
    pacing = Pacing(5, burst=10, in_flight=20, now=0.0)
    several = tickets(Kind.LIST, "a", 9)
    waiting(pacing, several)
    assert pacing.grant(0.0) == several


def test_a_new_users_fax_waits_behind_one_of_a_backlog_of_thousands_at_most() -> None:
    pacing = Pacing(5, burst=2, in_flight=8, now=0.0)
    waiting(pacing, tickets(Kind.IMAGE, "a", 5000))
    for step in range(10):
        pacing.release(pacing.grant(step * 1.0)[0], step * 1.0)
    pacing.slots.enqueue(Ticket(Kind.IMAGE, "b"))
    users = [pacing.grant(step * 2.0)[0].user for step in (10, 11)]
    assert "b" in users


def test_a_backlog_of_thousands_costs_no_more_per_turn_than_a_short_one() -> None:
    began = time.process_time()
    pacing = Pacing(5, burst=30_001, in_flight=60_000, now=0.0)
    backlog = tickets(Kind.IMAGE, "a", 30_000) + tickets(Kind.LIST, "b", 10_000)
    waiting(pacing, backlog)
    for ticket in backlog[:15_000]:
        pacing.cancel(ticket)
    assert len(pacing.grant(0.0)) == 25_000
    assert time.process_time() - began < 20  # seconds; walking the queue would take minutes


def test_a_cancelled_ticket_does_not_go_and_a_cancelled_request_frees_its_slot() -> None:
    pacing = Pacing(5, burst=10, in_flight=1, now=0.0)
    gone, stays, last = tickets(Kind.IMAGE, "a", 3)
    waiting(pacing, [gone, stays, last])
    pacing.cancel(gone)
    assert pacing.grant(0.0) == [stays]
    pacing.cancel(stays)
    pacing.cancel(stays)
    assert pacing.grant(0.0) == [last]
    assert (pacing.slots.waiting, pacing.slots.under_way) == (0, 1)


def test_cancelling_what_never_waited_changes_nothing() -> None:
    turns = Turns()
    waits, stranger = tickets(Kind.LIST, "a", 2)
    turns.add(waits)
    turns.remove(stranger)
    turns.remove(Ticket(Kind.LIST, "b"))
    assert len(turns) == 1
    assert turns.take() is waits


def test_a_user_whose_only_ticket_is_cancelled_has_no_turn() -> None:
    pacing = Pacing(5, burst=10, in_flight=8, now=0.0)
    gone, stays = Ticket(Kind.LIST, "a"), Ticket(Kind.LIST, "b")
    waiting(pacing, [gone, stays])
    pacing.cancel(gone)
    assert pacing.grant(0.0) == [stays]


def test_a_repeat_by_the_http_client_takes_a_token_at_once() -> None:
    pacing = Pacing(5, burst=3, in_flight=8, now=0.0)
    assert pacing.repeat(0.0) == 0
    waiting(pacing, tickets(Kind.LIST, "a", 3))
    assert len(pacing.grant(0.0)) == 1


def test_a_repeat_waits_for_its_token_and_everybody_else_waits_behind_it() -> None:
    pacing = Pacing(5, burst=2, in_flight=8, now=0.0)
    waiting(pacing, tickets(Kind.LIST, "a", 2))
    pacing.release(pacing.grant(0.0)[0], 0.0)
    assert pacing.repeat(0.0) == pytest.approx(0.2)
    assert pacing.repeat(0.1) == pytest.approx(0.3)
    assert pacing.wakes_at(0.1) == pytest.approx(0.6)
    assert pacing.grant(0.5) == []
    assert len(pacing.grant(0.6)) == 1


def test_a_repeat_waits_for_the_end_of_a_pause() -> None:
    pacing = Pacing(5, burst=10, in_flight=8, now=0.0)
    pacing.rate_limited(0.0, 7)
    assert pacing.repeat(2.0) == pytest.approx(5)
    assert pacing.repeat(2.0) == pytest.approx(5 + 1 / 2.5)


def test_nothing_goes_in_a_pause_and_one_request_when_it_ends() -> None:
    pacing = Pacing(5, burst=10, in_flight=8, now=0.0)
    waiting(pacing, tickets(Kind.OTHER, "a", 20))
    pacing.rate_limited(0.0, 30)
    assert pacing.speed.paused_until == 30
    assert pacing.grant(29.99) == []
    assert pacing.wakes_at(29.99) == 30
    assert len(pacing.grant(30.0)) == 1
    assert pacing.speed.paused_until is None


@pytest.mark.parametrize("retry_after_s", [None, 0.0], ids=["no header", "zero or a past date"])
def test_pauses_grow_to_a_minute_when_the_server_names_none(retry_after_s: float | None) -> None:
    pacing = Pacing(5, burst=10, in_flight=8, now=0.0)
    now, pauses = 0.0, []
    for _ in range(8):
        pacing.rate_limited(now, retry_after_s)
        assert pacing.speed.paused_until is not None
        pauses.append(pacing.speed.paused_until - now)
        now = pacing.speed.paused_until
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


def test_a_success_makes_the_next_pause_short_again() -> None:
    pacing = Pacing(5, burst=10, in_flight=8, now=0.0)
    pacing.rate_limited(0.0, None)
    pacing.rate_limited(10.0, None)
    pacing.succeeded(20.0)
    pacing.rate_limited(21.0, None)
    assert pacing.speed.paused_until == 22


def test_the_rate_halves_down_to_a_twentieth_of_the_limit() -> None:
    pacing = Pacing(5, burst=10, in_flight=8, now=0.0)
    found = []
    for step in range(6):
        pacing.rate_limited(step * 100.0, 1)
        found.append(pacing.speed.rate)
    assert found == [2.5, 1.25, 0.625, 0.3125, 0.25, 0.25]


def test_several_429s_to_requests_sent_before_the_pause_count_once() -> None:
    pacing = Pacing(5, burst=10, in_flight=8, now=0.0)
    for _ in range(5):
        pacing.rate_limited(0.5, None, sent_at=0.0)
    pacing.rate_limited(3.0, None, sent_at=0.1)  # its answer took longer than the pause
    assert pacing.speed.rate == 2.5
    assert pacing.speed.paused_until is None
    pacing.rate_limited(3.0, None, sent_at=2.0)
    assert pacing.speed.rate == 1.25


def test_a_late_429_may_make_the_pause_longer_but_never_shorter() -> None:
    pacing = Pacing(5, burst=10, in_flight=8, now=0.0)
    pacing.rate_limited(0.0, 10)
    pacing.rate_limited(0.1, 40)
    pacing.rate_limited(0.2, 5)
    assert pacing.speed.paused_until == pytest.approx(40.1)
    assert pacing.speed.rate == 2.5


def test_the_rate_recovers_in_minutes_of_success() -> None:
    pacing = Pacing(5, burst=10, in_flight=8, now=0.0)
    pacing.rate_limited(0.0, 10)
    found = []
    for now in range(5, 200, 5):
        pacing.succeeded(float(now))
        found.append(pacing.speed.rate)
    assert found[:2] == [2.5, 2.5]
    assert found[2] == pytest.approx(2.5 + 5 * 5 / 300)
    assert found[-1] == 5


def test_a_success_after_a_quiet_hour_vouches_for_a_minute_only() -> None:
    pacing = Pacing(5, burst=10, in_flight=8, now=0.0)
    pacing.rate_limited(0.0, 10)
    pacing.succeeded(3610.0)
    assert pacing.speed.rate == pytest.approx(2.5 + 1)


def test_an_answer_to_a_request_from_before_the_pause_is_no_success() -> None:
    pacing = Pacing(5, burst=10, in_flight=8, now=0.0)
    pacing.rate_limited(1.0, 10)
    pacing.succeeded(5.0)
    pacing.succeeded(60.0, sent_at=0.5)
    assert pacing.speed.rate == 2.5
    pacing.succeeded(60.0, sent_at=50.0)
    assert pacing.speed.rate > 2.5


def test_an_answer_in_a_pause_does_not_end_it() -> None:
    pacing = Pacing(5, burst=3, in_flight=8, now=0.0)
    waiting(pacing, tickets(Kind.LIST, "a", 3))
    first, _ = pacing.grant(0.0)
    pacing.rate_limited(0.1, 20)
    pacing.release(first, 0.2)
    assert pacing.wakes_at(0.2) == pytest.approx(20.1 + 1 / 2.5)


def test_new_limits_hold_at_once_and_a_slowed_account_stays_slowed() -> None:
    pacing = Pacing(5, burst=10, in_flight=8, now=0.0)
    pacing.rate_limited(0.0, 1)
    pacing.set_limits(20, burst=3, in_flight=2, now=100.0)
    assert (pacing.speed.limit, pacing.speed.rate) == (20, 10)
    waiting(pacing, tickets(Kind.LIST, "a", 9))
    assert len(pacing.grant(100.0)) == 2
    pacing.set_limits(20, burst=9, in_flight=1, now=100.0)
    assert pacing.grant(200.0) == []
    assert pacing.wakes_at(200.0) is None


def test_it_is_known_whose_requests_wait() -> None:
    pacing = Pacing(5, burst=2, in_flight=8, now=0.0)
    waiting(pacing, [Ticket(Kind.LIST, "a"), Ticket(Kind.IMAGE, "b")])
    assert pacing.slots.has_waiting("a")
    pacing.grant(0.0)
    assert not pacing.slots.has_waiting("a")
    assert pacing.slots.has_waiting("b")
    assert not pacing.slots.has_waiting("c")


def test_who_is_in_a_hurry_goes_first_and_in_turn() -> None:
    pacing = Pacing(10, 10, 8, now=0)
    waiting(pacing, [ticket for user in "abcd" for ticket in tickets(Kind.LIST, user, 2)])
    pacing.slots.hurry("d")
    pacing.slots.hurry("c")
    pacing.slots.hurry("e")  # who comes later
    waiting(pacing, tickets(Kind.LIST, "e", 1))
    assert [pacing.slots.start(Kind.LIST).user for _ in range(5)] == ["d", "c", "e", "d", "c"]
    pacing.slots.calm("c")
    waiting(pacing, tickets(Kind.LIST, "c", 1))
    left = [pacing.slots.start(Kind.LIST).user for _ in range(5)]
    assert left == ["a", "b", "c", "a", "b"]


def test_a_user_no_longer_in_a_hurry_goes_last_again() -> None:
    turns = Turns()
    mine, other = tickets(Kind.LIST, "a", 3), tickets(Kind.LIST, "b", 2)
    for ticket in (*other, *mine[:2]):
        turns.add(ticket)
    turns.hurry("a")
    turns.calm("a")
    turns.add(mine[2])  # after its own others, which are still ahead
    assert "a" in turns
    assert [turns.take() for _ in range(5)] == [mine[0], other[0], mine[1], other[1], mine[2]]
    assert "a" not in turns


def test_a_ticket_of_one_in_a_hurry_can_be_taken_back() -> None:
    turns = Turns()
    first, second = tickets(Kind.LIST, "a", 2)
    turns.hurry("a")
    turns.add(first)
    turns.remove(second)
    turns.remove(first)
    assert (len(turns), "a" in turns) == (0, False)
