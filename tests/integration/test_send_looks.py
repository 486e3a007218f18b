"""How poller asks eFax about a fax of ours: seldom, to the end, and not misled by another's."""

from collections import Counter
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from poller.client import Client
from poller.ingest.runtime import Runtime
from poller.ingest.sending import Sender
from poller.ingest.sent_look import SentLook
from poller.ledger import SendRow, SendState
from poller.pacing import Kind, Slots, Ticket
from poller.simulator import Switches
from tests.conftest import APP, QuickClock
from tests.efax import Simulator
from tests.integration.at_work import calls, faults, parts, until
from tests.integration.test_sending import (
    NUMBER,
    asked,
    asked_for_page,
    now,
    runtime,
    sent,
    serving,
    simulator,
    until_done,
)

__all__ = ["runtime", "simulator"]  # fixtures


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> Counter[Kind]:
    """Return what was requested, by precedence."""
    asked_for: Counter[Kind] = Counter()
    real = Slots.enqueue

    def enqueue(self: Slots, ticket: Ticket) -> None:
        asked_for[ticket.kind] += 1
        real(self, ticket)

    monkeypatch.setattr(Slots, "enqueue", enqueue)
    return asked_for


def look(runtime: Runtime, row: SendRow) -> SentLook:
    account, state = parts(runtime)
    return SentLook(account.client, state.user, row)


# -- its transmission -----------------------------------------------------------------------------


async def test_the_service_follows_a_fax_behind_what_it_receives(
    runtime: Runtime, kinds: Counter[Kind]
) -> None:
    row = await Sender(runtime).send(await asked(runtime))
    kinds.clear()
    async with serving(runtime):
        assert (await until_done(runtime, row)).state is SendState.TRANSMITTED
    assert set(kinds) == {Kind.SENT_LIST}


async def test_a_self_test_does_not_wait_behind_received_faxes(
    runtime: Runtime, kinds: Counter[Kind]
) -> None:
    row = await Sender(runtime).send(await asked_for_page(runtime))
    kinds.clear()
    async with serving(runtime):
        while (await now(runtime, row)).state is not SendState.TRANSMITTED:
            await until(lambda: kinds)
    assert set(kinds) == {Kind.OTHER}


async def test_a_fax_that_efax_tries_for_a_day_costs_few_requests(
    runtime: Runtime, simulator: Simulator
) -> None:
    simulator.switches = Switches(send_takes_s=23 * 3600.0)
    sender = Sender(runtime)
    row = await sender.send(await asked(runtime))
    before = len(simulator.requests)
    assert (await sender.follow(row)).state is SendState.TRANSMITTED
    assert len(simulator.requests) - before < 250


async def test_the_way_that_told_how_it_stands_is_asked_first(
    runtime: Runtime, simulator: Simulator
) -> None:
    simulator.switches = Switches(send_takes_s=60.0)
    simulator.faults = faults("404@metadata=always")
    sender = Sender(runtime)
    row = await sender.follow(await sender.send(await asked(runtime)))
    assert row.state is SendState.TRANSMITTED
    assert calls(simulator, "metadata") == 1
    assert calls(simulator, "details") > 5


# -- whether eFax took it -------------------------------------------------------------------------


@pytest.mark.parametrize("cap", [25, 100])
async def test_a_fax_is_found_behind_all_that_were_sent_after_it(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, cap: int
) -> None:
    simulator.switches = Switches(page_cap=cap, send_transaction_id_in_list="ignored")
    row = await Sender(runtime).send(await asked(runtime))
    clock.advance(timedelta(minutes=5))
    for number in range(120):
        simulator.sent(APP, "user-a", destination=NUMBER, reference=f"another-{number}")
    clock.advance(timedelta(minutes=5))
    assert await look(runtime, row).find() == row.fax_id


async def test_a_list_whose_pages_are_all_the_first_ends(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    simulator.switches = Switches(
        page_cap=3, paging_headers="ignored", send_transaction_id_in_list="ignored"
    )
    for number in range(9):
        simulator.sent(APP, "user-a", destination=NUMBER, reference=f"another-{number}")
    clock.advance(timedelta(minutes=5))
    row = replace(await asked(runtime), sent_at=clock.now())
    assert await look(runtime, row).find() is None
    assert calls(simulator, "sent-list") <= 10


async def test_anothers_fax_that_leaves_the_list_meanwhile_is_not_ours(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """eFax ignores the filter, records tell nothing, and the other fax is transmitted between calls."""
    simulator.switches = Switches(
        send_transaction_id_in_list="ignored", client_tracking_data="missing"
    )
    row = replace(await asked(runtime), sent_at=clock.now())
    course = ((0.0, "INPROGRESS"), (60.0, "COMPLETE"))
    simulator.sent(APP, "user-a", destination=NUMBER, course=course)
    simulator.sent(APP, "user-a", destination=NUMBER)
    clock.advance(timedelta(seconds=5))
    real = Client.list_sent

    async def list_sent(self: Client, *args: Any, **how: Any) -> Any:
        page = await real(self, *args, **how)
        if how["transmission_status"] == "INPROGRESS" and page.faxes:
            clock.advance(timedelta(minutes=2))
        return page

    monkeypatch.setattr(Client, "list_sent", list_sent)
    assert await look(runtime, row).find() is None
    assert len(sent(simulator)) == 2


@pytest.mark.parametrize("is_earlier", [True, False])
async def test_a_record_that_cannot_be_of_our_fax_is_not_ours(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, is_earlier: bool
) -> None:
    """eFax shows another's fax for our id, and nothing for the made-up ones."""
    simulator.switches = Switches(client_tracking_data="missing")
    row = replace(await asked(runtime), sent_at=clock.now())
    other = simulator.sent(
        *(APP, "user-a"),
        destination=NUMBER if is_earlier else "13235559999",
        created=clock.now() - timedelta(hours=2 if is_earlier else 0),
        transaction_id=row.transaction_id,
    )
    other.fields = {"transaction_id": None}
    clock.advance(timedelta(minutes=5))
    assert await look(runtime, row).find() is None
