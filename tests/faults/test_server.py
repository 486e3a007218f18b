"""Rows 41 to 49 of the fault matrix: a server that answers wrongly, refuses, fails or moves its list."""

from collections.abc import AsyncIterator
from datetime import timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from poller.config.model import Limits
from poller.ledger import State, jobs, streams
from poller.simulator import Fault, Faults, Switches
from tests.conftest import APP, Event
from tests.faults.network import ATTEMPTS, NAMES, Bench, bench, trying
from tests.integration.at_work import said

A, B, C = NAMES
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


@pytest.fixture
async def work(tmp_path: Path, events: list[Event]) -> AsyncIterator[Bench]:
    async with bench(tmp_path) as opened:
        await opened.cycle()
        yield opened


def of_a(*effects: str, call: str, first: int = 0, retry_after: str | None = None) -> Faults:
    """These affect only user-a, always or the first times."""
    return Faults(
        rules=tuple(
            Fault(
                effect,
                calls=frozenset({call}),
                user_id=A,
                probability=0.0 if first else 1.0,
                first=first,
                retry_after=retry_after,
            )
            for effect in effects
        )
    )


async def assert_image_refused(work: Bench, effect: str, sentence: str) -> None:
    mine, *theirs = work.one_each()
    work.simulator.faults = of_a(effect, call="image")
    work.clock.advance(MINUTE)
    before = await work.counted(call="image")

    await work.cycle()

    row = await work.row(mine)
    assert (row.state, row.failures) == (State.PENDING, 1)
    assert row.last_error is not None
    assert sentence in row.last_error
    assert not [path for path in work.visible(A) if mine.fax_id in path.name]
    assert work.dot_files() == []
    assert await work.runtime.services.evidence.find(APP, A, mine.fax_id)
    assert [(await work.row(fax)).state for fax in theirs] == [State.STORED] * 2
    # requested as often as a call may be, and once for user-b; all requests count
    assert await work.counted(call="image") - before == ATTEMPTS + 1
    work.simulator.faults = Faults()
    work.clock.advance(MINUTE)
    await work.cycle()
    assert (await work.row(mine)).state is State.STORED


MALFORMED_IMAGES = {
    "bad-padding": "base64",
    "bad-base64": "not strict base64",
    "bom": "not JSON",
    "duplicate-image": "The image continues after its end.",  # where the first of the two ends
    "bad-json": "not JSON",
    "trailing-garbage": "not JSON",
    "html-200": "not JSON",
}


async def test_row_41_an_image_answer_that_is_malformed_is_refused_counted_and_not_stored(
    work: Bench,
) -> None:
    for effect, sentence in MALFORMED_IMAGES.items():
        with trying(effect):
            await assert_image_refused(work, effect, sentence)
    await work.heal()


@pytest.mark.parametrize("effect", ["bom", "bad-json", "trailing-garbage", "html-200"])
async def test_row_41_a_list_answer_that_is_malformed_covers_nothing(
    work: Bench, effect: str
) -> None:
    work.one_each()
    work.simulator.faults = of_a(effect, call="list")
    work.clock.advance(MINUTE)
    watermark = work.state(A).progress.watermark
    before = work.simulator.requests[-1]

    outcomes = await work.cycle()

    assert str(outcomes[A].error) == await work.last_error(A) == "The list answer is not JSON."
    assert work.state(A).progress.watermark == watermark
    since = work.simulator.requests[work.simulator.requests.index(before) + 1 :]
    assert sum(one.call == "list" and one.user == A for one in since) == ATTEMPTS
    assert work.visible(B)
    assert work.visible(C)
    await work.heal()


MISSING_IMAGES = {
    "errors-200": "is an error message",
    "null-image": "contains no image",
    "no-image": "contains no image",
    "empty-document": "contains no image",
    "wrong-fax-id": "is about another fax",
}


async def test_row_42_good_json_without_the_image_is_never_an_empty_file(work: Bench) -> None:
    for effect, sentence in MISSING_IMAGES.items():
        with trying(effect):
            await assert_image_refused(work, effect, sentence)
    await work.heal()


# -- 429 and 503 --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("retry_after", "least_s", "most_s"),
    [
        pytest.param("20", 20, 21, id="seconds"),
        pytest.param("date", 20, 22, id="date"),
        pytest.param("Thu, 01 Jan 1970 00:00:00 GMT", 0, 61, id="past-date"),
        pytest.param("a while", 0, 61, id="garbage"),
        pytest.param("-5", 0, 61, id="negative"),
        pytest.param("1000000000", 3600, 3601, id="ten-to-the-ninth"),
        pytest.param("Fri, 31 Dec 9999 23:59:59 GMT", 3600, 3601, id="far-date"),
    ],
)
async def test_row_43_a_429_pauses_its_account_as_long_as_asked_and_an_hour_at_most(
    work: Bench, retry_after: str, least_s: float, most_s: float
) -> None:
    if retry_after == "date":
        retry_after = format_datetime(work.clock.now() + timedelta(seconds=20), usegmt=True)
    work.one_each()
    work.simulator.faults = of_a("429", call="list", first=1, retry_after=retry_after)
    began = work.clock.mono

    assert not (await work.poll(A)).failed

    assert least_s <= work.clock.mono - began <= most_s
    before = work.clock.mono
    assert not (await work.poll(C)).failed
    assert work.clock.mono == before  # the other account does not wait
    await work.heal()


@pytest.mark.parametrize(
    ("retry_after", "waited_s"),
    [("7", 7), ("1000000000", 10), ("a while", 0.5), ("Thu, 01 Jan 1970 00:00:00 GMT", 0.5)],
)
async def test_row_43_a_503_is_repeated_after_what_it_asks_for_within_max_delay(
    work: Bench, retry_after: str, waited_s: float
) -> None:
    work.one_each()
    work.simulator.faults = of_a("503", call="list", first=1, retry_after=retry_after)
    began = work.clock.mono

    assert not (await work.poll(A)).failed

    assert work.clock.mono - began == pytest.approx(waited_s)
    await work.heal()


# -- tokens and refusals ------------------------------------------------------------------------------


async def test_row_44_a_token_that_ends_in_the_middle_costs_one_sign_in_for_all(
    work: Bench,
) -> None:
    faxes = [work.receive(user) for user in (A, B) for _ in range(4)]
    for user in NAMES:
        await work.poll(user)
    sign_ins = work.simulator.sign_ins[APP]
    work.simulator.end_token(APP)

    await work.fetch()

    assert [(await work.row(fax)).state for fax in faxes] == [State.STORED] * 8
    assert work.simulator.sign_ins[APP] == sign_ins + 1
    await work.heal()


async def test_row_44_a_user_who_is_refused_is_asked_less_and_less_and_nobody_else_suffers(
    work: Bench, events: list[Event]
) -> None:
    work.one_each()
    work.simulator.faults = of_a("403", call="list")
    before = len(work.simulator.requests)
    for _ in range(4 * 60):
        work.clock.advance(MINUTE)
        await work.poll(A)
    asked = len(work.simulator.requests) - before
    assert 5 <= asked <= 10  # in four hours: after 1, 2, 4 … minutes, then hourly
    assert said(events, "user-refused", "account-suspended") == ["user-refused"]
    await work.cycle()
    assert work.visible(B)
    assert work.visible(C)

    work.simulator.faults = Faults()
    work.clock.advance(HOUR)
    await work.heal()
    assert said(events, "user-accepted") == ["user-accepted"]


async def test_row_44_an_account_whose_every_call_is_401_is_not_hammered(work: Bench) -> None:
    work.one_each()
    work.simulator.faults = Faults(rules=(Fault.parse("401@list,image=always"),))
    sign_ins = work.simulator.sign_ins[APP]
    before = await work.counted()
    for _ in range(60):
        work.clock.advance(MINUTE)
        await work.poll(A)
        await work.poll(B)
    assert work.simulator.sign_ins[APP] - sign_ins <= 30
    assert await work.counted() - before <= 60 * 2 * 3
    work.clock.advance(HOUR)
    await work.heal()


# -- faxes that eFax cannot deliver ------------------------------------------------------------------


@pytest.mark.parametrize("status", ["404", "410"])
async def test_row_45_an_image_that_is_gone_is_not_yet_there_until_it_is_quarantined_visibly(
    work: Bench, events: list[Event], status: str
) -> None:
    mine, *_ = work.one_each()
    work.simulator.faults = of_a(status, call="image")
    await work.cycle()
    for _ in range(2):
        assert (await work.row(mine)).state is State.PENDING
        work.clock.advance(3 * DAY)
        await work.cycle()
    assert (await work.row(mine)).state is State.PENDING
    work.clock.advance(2 * DAY)
    await work.cycle()

    row = await work.row(mine)
    assert row.state is State.QUARANTINED
    assert (row.last_error or "").startswith(f"eFax answered the image call with HTTP {status}")
    assert said(events, "fax-quarantined") == ["fax-quarantined"]
    assert b'fax_quarantined{account="main",user="user-a"}' in (
        await work.runtime.services.metrics.render()
    )
    assert (await work.runtime.services.ledger.read(streams.one, work.state(A).id)).quarantined == 1
    assert work.visible(B)
    work.simulator.faults = Faults()
    work.clock.advance(2 * DAY)
    await work.heal(within=80)


async def test_row_46_a_poison_fax_is_quarantined_while_others_flow_and_nothing_is_suspended(
    work: Bench, events: list[Event]
) -> None:
    poison = work.receive(A)
    rule = Fault("500", calls=frozenset({"image"}), fax_id=poison.fax_id, probability=1.0)
    work.simulator.faults = Faults(rules=(rule,))
    others = []
    for _ in range(8):
        others.append(work.receive(A))
        await work.cycle()
        assert not work.account().is_suspended
        work.clock.advance(DAY)

    row = await work.row(poison)
    assert (row.state, row.last_error) == (
        State.QUARANTINED,
        "eFax answered the image call with HTTP 500, INTERNAL_SERVER_ERROR.",
    )
    assert {(await work.row(fax)).state for fax in others} == {State.STORED}
    assert said(events, "account-suspended", "fax-quarantined") == ["fax-quarantined"]
    work.simulator.faults = Faults()
    work.clock.advance(2 * DAY)
    await work.heal(within=120)


async def test_row_47_an_outage_of_hours_is_met_with_few_requests_and_caught_up_without_a_storm(
    tmp_path: Path, events: list[Event]
) -> None:
    async with bench(tmp_path, limits=Limits(5, 10, 8)) as work:
        await work.cycle()
        work.simulator.outage(True)
        before = len(work.proxy.requests)
        for _ in range(6 * 60):
            work.clock.advance(MINUTE)
            if work.clock.now().minute % 10 == 0:
                work.receive(A)
                work.receive(B)
            await work.poll(A)
            await work.poll(B)
        during = len(work.proxy.requests) - before
        assert during < 6 * 12 * 2 + 20  # a probe every five minutes, not 720 polls
        assert said(events, "account-suspended") == ["account-suspended"]

        work.simulator.outage(False)
        work.clock.advance(6 * MINUTE)
        before, began = len(work.proxy.requests), work.clock.mono
        await work.cycle()
        sent = len(work.proxy.requests) - before
        assert sent > 72  # every fax of the outage, and the lists
        assert sent - 10 <= (work.clock.mono - began) * 5 + 2
        assert not await work.runtime.services.ledger.read(jobs.pending_paths, APP)
        assert work.simulator.most_in_flight <= 8
        await work.heal()


# -- lists that move ----------------------------------------------------------------------------------


@pytest.mark.parametrize("effect", ["shift-insert", "shift-delete"])
@pytest.mark.parametrize("order", ["newest", "oldest", "unstable"])
async def test_row_48_a_list_that_shifts_reorders_or_repeats_loses_and_doubles_nothing(
    work: Bench, effect: str, order: str
) -> None:
    work.simulator.switches = Switches(page_cap=3, order=order)
    for minutes in range(12):
        completed = work.clock.now() - timedelta(minutes=minutes // 2)
        work.receive(A, completed=completed)
    work.simulator.faults = of_a(effect, call="list", first=2)
    for _ in range(3):
        work.clock.advance(MINUTE)
        await work.cycle()
    work.simulator.switches = Switches(page_cap=3)
    await work.heal(within=80)


async def test_row_48_a_fax_inserted_late_with_an_old_date_is_found_once(work: Bench) -> None:
    work.one_each()
    await work.cycle()
    work.clock.advance(10 * MINUTE)
    late = work.receive(A, completed=work.clock.now() - 9 * MINUTE)

    outcomes = await work.cycle()

    assert [row.fax_id for row in outcomes[A].discovered] == [late.fax_id]
    await work.heal()


async def test_row_49_a_fax_older_than_the_overlap_is_found_by_a_sweep_and_counted(
    work: Bench,
) -> None:
    await work.cycle()
    work.clock.advance(2 * HOUR)
    await work.cycle()
    late = work.receive(A, completed=work.clock.now() - HOUR)
    outcomes = await work.cycle()
    assert outcomes[A].discovered == []  # beyond the overlap, where no window shows it

    work.clock.advance(HOUR)
    outcomes = await work.cycle()

    assert [row.fax_id for row in outcomes[A].discovered] == [late.fax_id]
    assert (await work.row(late)).found_by == "sweep"
    assert (
        await work.runtime.services.ledger.read(streams.one, work.state(A).id)
    ).found_by_sweep == 1
    await work.heal()
