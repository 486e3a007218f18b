"""Client and simulator: every pair of values of each open point of sent faxes, sending and notices."""

import contextlib
from dataclasses import replace
from datetime import timedelta
from itertools import combinations

import pytest

from poller.client import Client, Observer, Ports
from poller.config.model import Account, Limits, RetryConfig, SecretRef, User
from poller.efax.outgoing import OutgoingDocument, OutgoingFax
from poller.efax.responses import ListedFax
from poller.efax.transmission import final_status
from poller.errors import Rejected, WindowRefused
from poller.simulator import Switches
from poller.simulator.drawing import template
from poller.stream import Direction
from poller.window import Interval
from tests.conftest import APP, KEY, QuickClock
from tests.efax import Simulator
from tests.integration.test_client import SignIns, Sink
from tests.pairs import Row, of_the_rest, pairwise

NUMBER = "18005550101"
USER = User("main", "ann", APP, "user-a", number=NUMBER)
STATES = ("COMPLETE", "ERROR", "CANCELED", "INPROGRESS")
HOUR = timedelta(hours=1)
ROWS = list(pairwise(of_the_rest()))


def test_the_rows_hold_every_pair_of_values() -> None:
    parameters = of_the_rest()
    for one, other in combinations(parameters, 2):
        met = {(row[one], row[other]) for row in ROWS}
        assert met == {(a, b) for a in parameters[one] for b in parameters[other]}


async def listed(client: Client, clock: QuickClock) -> list[ListedFax]:
    """List what can be seen, state by state where that is demanded."""
    bounds = Interval(clock.now() - HOUR, clock.now() + timedelta(seconds=1))
    try:
        faxes = (await client.list_sent(USER, bounds, 0)).faxes
    except WindowRefused:
        faxes = ()
    found = {fax.fax_id: fax for fax in faxes}
    for state in STATES:
        page = await client.list_sent(USER, bounds, 0, transmission_status=state)
        found |= {fax.fax_id: fax for fax in page.faxes}
    return list(found.values())


async def told(client: Client, clock: QuickClock) -> set[str]:
    try:
        notices = await client.notifications(USER, clock.now() - HOUR)
    except Rejected as error:
        if error.status != 404:
            raise
        return set()
    return {notice.fax_id for notice in notices}


@pytest.mark.parametrize("row", [pytest.param(row, id=f"{n:02}") for n, row in enumerate(ROWS)])
async def test_a_fax_is_sent_found_seen_to_its_end_and_deleted_however_the_server_behaves(
    row: Row, clock: QuickClock
) -> None:
    print(row)
    document = OutgoingDocument("PDF", template(1)["pdf"])
    fax = OutgoingFax("our-id", NUMBER, (document,), csid="POLLER 1")
    async with contextlib.AsyncExitStack() as stack:
        simulator = Simulator(now=clock.now, seed=1, switches=Switches(**row))
        await stack.enter_async_context(simulator)
        simulator.add_app(APP, KEY)
        simulator.add_user(APP, USER.user_id, number=NUMBER)
        account = Account("main", APP, SecretRef("env", "X"), (USER,), base_url=simulator.base_url)
        account = replace(account, limits=Limits(1000, 1000, 8))
        ports = Ports(clock, lambda: 0.5, SignIns(), Observer())
        client = await stack.enter_async_context(
            Client(account, ports, api_key=lambda: KEY, retry=RetryConfig(attempts=1))
        )

        (accepted,) = await client.send(USER, fax)
        assert accepted.destination is not None
        assert NUMBER.endswith(accepted.destination)
        clock.advance(timedelta(seconds=row["send_takes_s"] + 1))

        (found,) = await listed(client, clock)
        assert found.fax_id == accepted.fax_id
        metadata = await client.metadata(USER, found.fax_id, direction=Direction.SENT)
        details = await client.transmission_details(USER, found.fax_id)
        for answer in (metadata, details):
            assert final_status(answer).is_final
            assert final_status(answer).is_complete is (row["send_ends"] == "COMPLETE")
        assert final_status(found.raw).is_final is (row["transmission_data"] != "missing-in-list")
        await client.fetch_image(USER, found.fax_id, sink := Sink(), direction=Direction.SENT)
        assert sink.data.startswith(b"%PDF")

        arrived = {one.fax_id for one in simulator.faxes()}
        is_told = row["notifications"] not in ("empty", "404")
        assert await told(client, clock) == ({found.fax_id} | arrived if is_told else set())
        await client.delete(USER, found.fax_id)
        await client.delete(USER, found.fax_id)
        assert await listed(client, clock) == []
