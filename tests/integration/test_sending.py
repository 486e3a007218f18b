"""A fax goes out once, whatever happens to the answer; and poller recognizes a page of ours."""

import asyncio
import errno
import json
import stat
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from poller import outbox
from poller.config.model import Canary
from poller.daemon.background_checks import BackgroundChecks
from poller.daemon.canaries import Canaries
from poller.documents.checkers import Checkers
from poller.drawn_page import page
from poller.errors import LedgerUnavailable, NotKept
from poller.ingest.runtime import Runtime
from poller.ingest.send_request import (
    SELFTEST,
    ask_to_send,
    drawn,
    new_fax,
    new_page,
    tidy_outbox,
    withdraw,
)
from poller.ingest.sending import IN_DOUBT_AFTER_S, Sender
from poller.ledger import Ledger, SendRow, SendState, faxes, sends
from poller.outbox import OutboxDocument
from poller.problems import problems
from poller.recognition import csid_of
from poller.simulator import Switches
from poller.simulator.state import SentFax
from poller.status import Surroundings, status
from tests.conftest import APP, KEY, Event, MakeConfig, QuickClock, opened_runtime
from tests.efax import Simulator
from tests.integration.at_work import (
    WITHIN_S,
    calls,
    faults,
    in_background,
    parts,
    poll,
    said,
    until,
)

NUMBER, OWN_NUMBER = "13235551212", "18005550123"
DOCUMENT = OutboxDocument("pdf", page("ORDER", ["A page"]))


@pytest.fixture
async def simulator(clock: QuickClock) -> AsyncIterator[Simulator]:
    async with Simulator(now=clock.now, seed=1) as running:
        running.add_app(APP, KEY)
        running.add_user(APP, "user-a", number=OWN_NUMBER)
        running.add_user(APP, "user-b")
        yield running


@pytest.fixture
async def runtime(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> AsyncIterator[Runtime]:
    settings = make_config(simulator.base_url)
    users = tuple(replace(user, number=OWN_NUMBER) for user in settings.accounts[0].users)
    account = replace(settings.accounts[0], users=users)
    async with opened_runtime(replace(settings, accounts=(account,)), clock) as opened:
        yield opened


async def asked(runtime: Runtime, *documents: OutboxDocument) -> SendRow:
    _, state = parts(runtime)
    services, directory = runtime.services, runtime.config.state_directory
    new = new_fax(state.id, NUMBER)
    some = documents or (DOCUMENT,)
    return await ask_to_send(services.ledger, directory, new, some, services.clock.now())


async def asked_for_page(runtime: Runtime, within: timedelta = timedelta(minutes=15)) -> SendRow:
    _, state = parts(runtime)
    services, directory = runtime.services, runtime.config.state_directory
    now = services.clock.now()
    new = new_page(state.id, state.user, SELFTEST, now + within)
    return await ask_to_send(services.ledger, directory, new, [drawn(new, now)], now)


async def now(runtime: Runtime, row: SendRow) -> SendRow:
    return await runtime.services.ledger.read(sends.one, row.id)


def sent(simulator: Simulator) -> list[SentFax]:
    """Return what eFax has taken."""
    return [fax for box in simulator.apps[APP].users.values() for fax in box.sent]


def in_outbox(runtime: Runtime) -> list[Path]:
    return sorted((runtime.config.state_directory / "outbox").glob("*/*"))


# -- everything goes well -------------------------------------------------------------------------


async def test_a_fax_is_sent_once_and_followed_to_its_number(
    runtime: Runtime, simulator: Simulator, events: list[Event]
) -> None:
    row = await asked(runtime)
    sender = Sender(runtime)
    accepted = await sender.send(row)
    (fax,) = sent(simulator)
    assert (accepted.state, accepted.fax_id) == (SendState.ACCEPTED, fax.fax_id)
    assert fax.transaction_id == fax.reference == row.transaction_id
    assert fax.destination == NUMBER
    assert in_outbox(runtime) == []
    done = await sender.follow(accepted)
    assert (done.state, done.status) == (SendState.TRANSMITTED, "COMPLETE")
    assert done.finished_at is not None
    assert [e.fields["transaction_id"] for e in events if e.action == "fax-sent"] == [
        row.transaction_id
    ] * 2
    assert calls(simulator, "send") == 1
    text = (await runtime.services.metrics.render()).decode()
    for outcome, count in (("accepted", 1.0), ("transmitted", 1.0), ("failed", 0.0)):
        line = f'poller_sent_total{{account="main",outcome="{outcome}",user="user-a"}} {count}'
        assert line in text


async def test_documents_wait_for_the_service_alone_and_in_their_order(runtime: Runtime) -> None:
    tiff = OutboxDocument("tiff", b"II*\0")
    row = await asked(runtime, *([DOCUMENT] * 9), tiff, tiff)
    directory = runtime.config.state_directory
    found = outbox.documents(directory, row.transaction_id)
    assert [one.format for one in found] == ["pdf"] * 9 + ["tiff"] * 2
    modes = {stat.S_IMODE(path.stat().st_mode) for path in in_outbox(runtime)}
    assert modes == {0o600}
    assert stat.S_IMODE((directory / "outbox").stat().st_mode) == 0o700


async def test_documents_that_no_row_needs_are_removed_at_a_start(
    runtime: Runtime, clock: QuickClock
) -> None:
    clock.wall = datetime.now(UTC)  # that of the folders
    waiting, done = await asked(runtime), await asked(runtime)
    await runtime.services.ledger.write(sends.withdraw, done.id, clock.now(), "interrupted")
    directory = runtime.config.state_directory
    outbox.put(directory, "without-a-row", [DOCUMENT])
    ledger = runtime.services.ledger
    assert await tidy_outbox(ledger, directory, clock.now())
    # somebody may be about to write the row of the new one
    assert set(outbox.folders(directory)) == {waiting.transaction_id, "without-a-row"}
    assert not await tidy_outbox(ledger, directory, clock.now() + timedelta(hours=2))
    assert outbox.folders(directory) == []  # what has waited this long is not sent any more
    assert not await tidy_outbox(ledger, directory, clock.now())


async def test_the_documents_of_a_row_that_could_not_be_written_are_removed(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(*_: Any) -> None:
        raise LedgerUnavailable("the disk is full")

    monkeypatch.setattr(runtime.services.ledger, "write", refused)
    with pytest.raises(LedgerUnavailable):
        await asked(runtime)
    assert in_outbox(runtime) == []


def test_the_page_that_we_draw_is_whole(tmp_path: Path) -> None:
    checkers = Checkers()
    path = tmp_path / "page.pdf"
    path.write_bytes(page("7K3Q9X2M", ["(a) back\\slash", "größer"]))
    with path.open("rb") as file:
        document = checkers.inspect(file.fileno())
    checkers.close()
    assert (document.pages, document.problem) == (1, None)


# -- what eFax has certainly not taken ------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "said_why"),
    [("400@send=always", "400"), ("403@send=always", "403"), ("429@send=first:9", "429")],
)
async def test_a_fax_that_is_refused_has_failed_and_is_not_sent_later(
    runtime: Runtime, simulator: Simulator, events: list[Event], rule: str, said_why: str
) -> None:
    simulator.faults = faults(rule)
    row = await Sender(runtime).send(await asked(runtime))
    assert (row.state, row.fax_id) == (SendState.FAILED, None)
    assert said_why in (row.error or "")
    assert said(events, "send-failed", "fax-sent", "send-in-doubt") == ["send-failed"]
    assert sent(simulator) == []
    assert in_outbox(runtime) == []


async def test_after_a_429_the_fax_is_sent_again_because_it_was_not_taken(
    runtime: Runtime, simulator: Simulator
) -> None:
    simulator.faults = faults("429@send=first:1")
    row = await Sender(runtime).send(await asked(runtime))
    assert row.state is SendState.ACCEPTED
    assert (len(sent(simulator)), calls(simulator, "send")) == (1, 2)


async def test_a_fax_whose_documents_are_gone_has_failed(
    runtime: Runtime, simulator: Simulator
) -> None:
    row = await asked(runtime)
    outbox.remove(runtime.config.state_directory, row.transaction_id)
    failed = await Sender(runtime).send(row)
    assert failed.state is SendState.FAILED
    assert "cannot read its documents" in (failed.error or "")
    assert calls(simulator, "send") == 0


async def test_a_page_that_was_late_before_it_could_be_sent_is_not_sent(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    row = await asked_for_page(runtime)
    clock.advance(timedelta(minutes=20))
    row = await Sender(runtime).send(row)
    assert (row.state, row.error) == (SendState.FAILED, "it was late before poller could send it")
    assert sent(simulator) == []
    assert in_outbox(runtime) == []


async def test_a_fax_that_waited_for_more_than_an_hour_is_not_sent(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    row = await asked(runtime)
    clock.advance(timedelta(hours=2))
    assert (await Sender(runtime).send(row)).state is SendState.FAILED
    assert calls(simulator, "send") == 0


async def test_a_fax_that_was_withdrawn_meanwhile_is_not_sent(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    row = await asked(runtime)
    await runtime.services.ledger.write(sends.withdraw, row.id, clock.now(), "interrupted")
    assert (await Sender(runtime).send(row)).state is SendState.FAILED
    assert calls(simulator, "send") == 0
    assert in_outbox(runtime) == []


async def test_what_a_command_withdraws_leaves_no_documents(
    runtime: Runtime, clock: QuickClock
) -> None:
    row, ledger = await asked(runtime), runtime.services.ledger
    done = await withdraw(ledger, runtime.config.state_directory, row, clock.now(), "interrupted")
    assert (done.state, in_outbox(runtime)) == (SendState.FAILED, [])
    sending = await asked(runtime)
    await ledger.write(sends.begin, sending.id, None, clock.now())
    held = await withdraw(ledger, runtime.config.state_directory, sending, clock.now(), "late")
    assert held.state is SendState.SENDING
    assert in_outbox(runtime) != []


async def test_documents_of_a_user_who_was_removed_do_not_stay(
    runtime: Runtime, clock: QuickClock
) -> None:
    await asked(runtime)
    settings = runtime.config
    account = settings.accounts[0]
    fewer = replace(settings, accounts=(replace(account, users=account.users[1:]),))
    runtime.config = fewer
    await runtime.take_streams(await runtime.record_streams(fewer))
    async with serving(runtime):
        await until(lambda: in_outbox(runtime) == [])


async def test_a_failed_transmission_is_reported_with_its_reason(
    runtime: Runtime, simulator: Simulator, events: list[Event]
) -> None:
    simulator.switches = Switches(send_ends="ERROR")
    sender = Sender(runtime)
    row = await sender.follow(await sender.send(await asked(runtime)))
    assert row.state is SendState.FAILED
    assert row.fax_id is not None
    assert "ERROR" in (row.error or "")
    assert said(events, "fax-sent", "send-failed") == ["fax-sent", "send-failed"]


# -- the answer is lost ---------------------------------------------------------------------------

LOST = ["reset@send=first:1", "done-500@send=first:1", "bad-json@send=first:1"]


@pytest.mark.parametrize("rule", LOST)
async def test_a_fax_whose_answer_is_lost_is_looked_for_and_not_sent_again(
    runtime: Runtime, simulator: Simulator, rule: str
) -> None:
    simulator.faults = faults(rule)
    row = await Sender(runtime).send(await asked(runtime))
    (fax,) = sent(simulator)
    assert (row.state, row.fax_id) == (SendState.ACCEPTED, fax.fax_id)
    assert calls(simulator, "send") == 1


@pytest.mark.parametrize(
    "switches",
    [
        pytest.param(Switches(send_transaction_id_in_list="no"), id="the-filter-shows-nothing"),
        pytest.param(Switches(send_transaction_id_in_list="ignored"), id="the-filter-is-ignored"),
        pytest.param(Switches(sent_status_demanded="yes"), id="a-status-is-demanded"),
        pytest.param(
            Switches(sent_status_demanded="defaults-to-complete", send_takes_s=60.0),
            id="complete-ones-only",
        ),
        pytest.param(Switches(sent_under_way_listed="no", send_takes_s=60.0), id="final-ones-only"),
        pytest.param(Switches(client_tracking_data="array"), id="tracking-data-in-an-array"),
        pytest.param(Switches(client_tracking_data="missing"), id="no-tracking-data"),
        pytest.param(Switches(sent_filter_by="created"), id="the-window-is-of-creation"),
        pytest.param(Switches(list_fields="only-id"), id="only-ids-are-listed"),
    ],
)
async def test_a_lost_fax_is_found_however_efax_lists_it(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, switches: Switches
) -> None:
    """Others were sent to the same number, by us and by another program."""
    before = clock.now() - timedelta(minutes=30)
    simulator.sent(APP, "user-a", created=before, destination=NUMBER, reference="anothers")
    simulator.switches = switches
    simulator.faults = faults("reset@send=first:1")
    row = await Sender(runtime).send(await asked(runtime))
    ours = sent(simulator)[-1]
    assert (row.state, row.fax_id) == (SendState.ACCEPTED, ours.fax_id)
    assert calls(simulator, "send") == 1


@pytest.mark.parametrize(
    "switches",
    [
        Switches(),
        Switches(send_transaction_id_in_list="ignored"),
        Switches(send_transaction_id_in_list="ignored", client_tracking_data="missing"),
    ],
    ids=["as-described", "the-filter-is-ignored", "nothing-tells-faxes-apart"],
)
async def test_a_fax_that_was_not_taken_is_in_doubt_after_two_minutes_and_never_sent_again(
    runtime: Runtime,
    simulator: Simulator,
    clock: QuickClock,
    events: list[Event],
    switches: Switches,
) -> None:
    before = clock.now() - timedelta(minutes=30)
    simulator.sent(APP, "user-a", created=before, destination=NUMBER, reference="anothers")
    simulator.switches = switches
    simulator.faults = faults("500@send=always")
    row = await Sender(runtime).send(await asked(runtime))
    assert row.state is SendState.IN_DOUBT
    assert row.finished_at is not None
    assert row.finished_at - (row.sent_at or row.asked_at) >= timedelta(seconds=IN_DOUBT_AFTER_S)
    assert said(events, "send-in-doubt", "fax-sent", "send-failed") == ["send-in-doubt"]
    assert calls(simulator, "send") == 1
    assert in_outbox(runtime) == []
    assert (await Sender(runtime).send(row)).state is SendState.IN_DOUBT
    assert calls(simulator, "send") == 1


async def test_two_lost_faxes_to_one_number_are_told_apart(
    runtime: Runtime, simulator: Simulator
) -> None:
    simulator.faults = faults("reset@send=first:2")
    rows = [await asked(runtime), await asked(runtime)]
    sender = Sender(runtime)
    found = await asyncio.gather(*(sender.send(row) for row in rows))
    by_reference = {fax.reference: fax.fax_id for fax in sent(simulator)}
    assert [by_reference[row.transaction_id] for row in found] == [row.fax_id for row in found]


# -- the service ----------------------------------------------------------------------------------


@asynccontextmanager
async def serving(runtime: Runtime) -> AsyncIterator[Sender]:
    """Do what a service does about sending; it learns of requests from the ledger's edits."""
    sender, canaries = Sender(runtime), Canaries(runtime)

    def wake() -> None:
        sender.wake()
        canaries.wake()

    checks = BackgroundChecks(runtime, on_edit=wake).loops()
    checks["files"].close()
    async with in_background(sender.run(), canaries.run(), checks["edits"]):
        yield sender


async def test_a_service_that_sends_nothing_reads_nothing_for_it(
    runtime: Runtime, clock: QuickClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: Counter[str] = Counter()
    real = Ledger.read

    def read(self: Ledger, query: Any, *args: Any, **how: Any) -> Any:
        seen[query.__name__] += query.__module__ == sends.__name__
        return real(self, query, *args, **how)

    monkeypatch.setattr(Ledger, "read", read)
    async with serving(runtime):
        until_then = clock.monotonic() + 600.0
        await until(lambda: clock.monotonic() > until_then)
        once = {"unfinished": 6, "in_doubt_since": 1}  # as the start looks around
        assert all(count <= once.get(name, 0) for name, count in seen.items()), seen
        row = await until_done(runtime, await asked(runtime))
        assert row.state is SendState.TRANSMITTED
        await status(runtime.services.ledger, clock.now(), Surroundings({}))
        assert "late_canaries" not in seen


async def until_done(runtime: Runtime, row: SendRow) -> SendRow:
    while (found := await now(runtime, row)).finished_at is None:
        await asyncio.sleep(0.01)
    return found


async def test_the_service_sends_what_it_is_asked_for(
    runtime: Runtime, simulator: Simulator
) -> None:
    async with serving(runtime):
        rows = [await asked(runtime) for _ in range(4)]
        done = [await until_done(runtime, row) for row in rows]
    assert {row.state for row in done} == {SendState.TRANSMITTED}
    assert sorted(fax.fax_id for fax in sent(simulator)) == sorted(str(r.fax_id) for r in done)


async def test_what_an_earlier_run_was_sending_is_looked_for_and_never_sent(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    taken, lost = await asked(runtime), await asked(runtime)
    for row in (taken, lost):
        assert await runtime.services.ledger.write(sends.begin, row.id, None, clock.now())
    fax = simulator.sent(APP, "user-a", destination=NUMBER, reference=taken.transaction_id)
    async with in_background(Sender(runtime).run()):
        done = [await until_done(runtime, row) for row in (taken, lost)]
    assert [row.state for row in done] == [SendState.TRANSMITTED, SendState.IN_DOUBT]
    assert done[0].fax_id == fax.fax_id
    assert calls(simulator, "send") == 0


async def test_a_fax_in_doubt_is_found_when_it_is_listed_after_all(
    runtime: Runtime, simulator: Simulator, events: list[Event]
) -> None:
    simulator.faults = faults("500@send=first:1")
    row = await Sender(runtime).send(await asked(runtime))
    assert row.state is SendState.IN_DOUBT
    fax = simulator.sent(APP, "user-a", destination=NUMBER, reference=row.transaction_id)
    async with in_background(Sender(runtime).run()):
        while (found := await now(runtime, row)).state is not SendState.TRANSMITTED:
            await asyncio.sleep(0.01)
    assert (found.fax_id, found.error) == (fax.fax_id, None)
    assert said(events, "send-in-doubt", "fax-sent") == ["send-in-doubt", "fax-sent", "fax-sent"]
    assert calls(simulator, "send") == 1


async def test_a_fax_in_doubt_is_looked_for_though_nothing_else_is_open(
    runtime: Runtime, simulator: Simulator
) -> None:
    async with serving(runtime) as sender:
        await until(lambda: not sender._is_left_over)
        simulator.faults = faults("500@send=first:1")
        row = await until_done(runtime, await asked(runtime))
        assert row.state is SendState.IN_DOUBT
        simulator.sent(APP, "user-a", destination=NUMBER, reference=row.transaction_id)
        async with asyncio.timeout(WITHIN_S):
            while (await now(runtime, row)).state is not SendState.TRANSMITTED:
                await asyncio.sleep(0.01)


async def test_a_stop_waits_for_the_answer_to_a_fax_being_sent(
    runtime: Runtime, simulator: Simulator
) -> None:
    with simulator.hold("send") as hold:
        async with serving(runtime) as sender:
            row = await asked(runtime)
            await hold.reached()
            draining = asyncio.create_task(sender.drain(60))
            await asyncio.sleep(0.01)
            hold.open()
            await draining
    assert (await now(runtime, row)).state is SendState.ACCEPTED


async def test_a_row_of_a_user_who_is_not_configured_waits(
    runtime: Runtime, simulator: Simulator
) -> None:
    account, state = parts(runtime)
    del account.states[state.id]
    sender = Sender(runtime)
    row = await runtime.services.ledger.write(
        sends.ask, sends.NewSend(state.id, "ours", "operator", NUMBER), runtime.services.clock.now()
    )
    await sender._begin()
    assert row.id not in sender._tasks
    await sender.drain(60)
    assert (await now(runtime, row)).state is SendState.WAITING


async def test_an_outcome_is_written_until_the_ledger_takes_it(
    runtime: Runtime, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refusals = sends.accepted, [1, 2, 3]

    def refused(*args: Any) -> SendRow:
        if refusals:
            refusals.pop()
            raise LedgerUnavailable("the disk is full")
        return real(*args)

    monkeypatch.setattr(sends, "accepted", refused)
    row = await Sender(runtime).send(await asked(runtime))
    assert row.state is SendState.ACCEPTED
    assert refusals == []


# -- a page to our own number ---------------------------------------------------------------------


@pytest.mark.parametrize("csid", ["kept", "carrier"])
async def test_our_page_is_known_again_and_becomes_a_file(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, csid: str
) -> None:
    simulator.switches = Switches(send_csid=csid)
    simulator.receive(APP, "user-a", completed=clock.now() - timedelta(minutes=1), pages=1)
    asked_for = await asked_for_page(runtime)
    sender = Sender(runtime)
    await sender.follow(await sender.send(asked_for))
    clock.advance(timedelta(seconds=5))
    await poll(runtime)
    account, _ = parts(runtime)
    await account.workers.run_until_idle()
    row = await now(runtime, asked_for)
    own = [fax for fax in simulator.faxes() if fax.destination == OWN_NUMBER]
    assert [fax.fax_id for fax in own] == [row.arrived_fax_id]
    assert (row.is_stored, row.pages, row.damaged) == (True, 1, False)
    sidecar = (runtime.config.storage.directory / str(row.file)).with_suffix(".json")
    assert json.loads(sidecar.read_text())["canary"] is True  # nobody's fax
    if csid == "kept":
        assert own[0].tsid == csid_of(str(row.code))


async def test_somebody_elses_fax_to_our_number_is_not_our_page(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    asked_for = await asked_for_page(runtime)
    simulator.faults = faults("500@send=always")
    await Sender(runtime).send(asked_for)
    simulator.receive(APP, "user-a", completed=clock.now(), pages=1, destination=OWN_NUMBER)
    clock.advance(timedelta(minutes=1))
    await poll(runtime)
    assert (await now(runtime, asked_for)).arrived_fax_id is None


async def test_the_page_goes_to_the_number_as_efax_wants_it(runtime: Runtime) -> None:
    _, state = parts(runtime)
    at = runtime.services.clock.now()
    dialled = {
        number: new_page(state.id, replace(state.user, number=number), SELFTEST, at).destination
        for number in ("3235551212", "+13235551212", "+442079460018", "123456")
    }
    assert list(dialled.values()) == [NUMBER, NUMBER, "+442079460018", "123456"]


# -- canaries -------------------------------------------------------------------------------------

CANARY = Canary(every=timedelta(hours=1), within=timedelta(minutes=30))


@pytest.fixture
def canaries(runtime: Runtime) -> Canaries:
    _, state = parts(runtime)
    state.user = replace(state.user, canary=CANARY)
    return Canaries(runtime)


async def fly(runtime: Runtime, canaries: Canaries) -> None:
    """Send a canary, and follow it and the fax that it becomes to their end."""
    _, state = parts(runtime)
    await canaries._send_due(state, CANARY)
    sender = Sender(runtime)
    for row in await runtime.services.ledger.read(sends.unfinished):
        await sender.follow(await sender.send(row))


async def receive(runtime: Runtime, clock: QuickClock) -> None:
    clock.advance(timedelta(seconds=10))
    await poll(runtime)
    account, _ = parts(runtime)
    await account.workers.run_until_idle()


async def gauges(runtime: Runtime) -> dict[str, float]:
    text = (await runtime.services.metrics.render()).decode()
    lines = [line.rpartition(" ") for line in text.splitlines() if line.startswith("poller_canary")]
    return {name.partition("{")[0]: float(value) for name, _, value in lines}


async def test_a_canary_is_timed_to_its_file(
    runtime: Runtime, canaries: Canaries, clock: QuickClock, events: list[Event]
) -> None:
    began = clock.now()
    await fly(runtime, canaries)
    await receive(runtime, clock)
    await canaries._look()
    (arrived,) = [event for event in events if event.action == "canary-arrived"]
    trip_s = arrived.fields["round_trip_s"]
    assert 0 < trip_s <= (clock.now() - began).total_seconds()
    measured = await gauges(runtime)
    assert measured["poller_canary_round_trip_seconds"] == pytest.approx(trip_s, abs=1)
    assert measured["poller_canary_late"] == 0
    assert await runtime.services.ledger.read(sends.unfinished) == []
    (row,) = await runtime.services.ledger.read(faxes.find, arrived.fields["fax_id"])
    assert row.canary


async def test_a_fax_that_is_no_canary_is_none(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    fax = simulator.receive(APP, "user-a", completed=clock.now() - timedelta(minutes=1))
    await poll(runtime)
    (row,) = await runtime.services.ledger.read(faxes.find, fax.fax_id)
    assert not row.canary


async def test_a_late_canary_is_reported_once_and_its_arrival_too(
    runtime: Runtime, canaries: Canaries, clock: QuickClock, events: list[Event]
) -> None:
    await fly(runtime, canaries)
    clock.advance(CANARY.within)
    for _ in range(3):
        await canaries._look()
    assert said(events, "canary-late", "canary-arrived") == ["canary-late"]
    assert (await gauges(runtime))["poller_canary_late"] == 1
    await receive(runtime, clock)
    for _ in range(3):
        await canaries._look()
    assert said(events, "canary-late", "canary-arrived") == ["canary-late", "canary-arrived"]
    assert (await gauges(runtime))["poller_canary_late"] == 0


async def test_a_canary_that_could_not_be_sent_is_late_until_another_arrives(
    runtime: Runtime,
    simulator: Simulator,
    canaries: Canaries,
    clock: QuickClock,
    events: list[Event],
) -> None:
    simulator.faults = faults("400@send=first:1")
    await fly(runtime, canaries)
    clock.advance(CANARY.within)
    await canaries._look()
    (late,) = [event for event in events if event.action == "canary-late"]
    assert "it was not sent" in late.fields["reason"]
    clock.advance(CANARY.every)
    await canaries._look()
    assert (await gauges(runtime))["poller_canary_late"] == 1
    (account,) = runtime.config.accounts
    users = tuple(replace(user, canary=CANARY) for user in account.users)
    around = Surroundings({}, accounts=[replace(account, users=users)])
    shown = await status(runtime.services.ledger, clock.now(), around)
    (sentence,) = problems(shown, [])
    assert sentence.startswith("The canary of main/user-a, requested at 2026-03-02 12:")
    assert "it was not sent" in sentence
    await fly(runtime, canaries)
    await receive(runtime, clock)
    await canaries._look()
    assert (await gauges(runtime))["poller_canary_late"] == 0


async def test_a_canary_that_was_refused_does_not_take_the_fax_of_the_next_one(
    runtime: Runtime, simulator: Simulator, canaries: Canaries, clock: QuickClock
) -> None:
    simulator.switches = Switches(send_csid="carrier")
    await poll(runtime)
    simulator.faults = faults("400@send=first:1")
    await fly(runtime, canaries)
    for _ in range(3):
        clock.advance(timedelta(days=1))
        await fly(runtime, canaries)
        await receive(runtime, clock)
    rows = [await runtime.services.ledger.read(sends.one, number) for number in range(1, 5)]
    assert [row.arrived_fax_id is not None for row in rows] == [False, True, True, True]
    assert all((row.round_trip_s or 0) < 600 for row in rows)


async def test_a_fax_to_oneself_after_a_canary_was_refused_is_no_canary(
    runtime: Runtime, simulator: Simulator, canaries: Canaries, clock: QuickClock
) -> None:
    simulator.faults = faults("400@send=first:1")
    await fly(runtime, canaries)
    fax = simulator.receive(
        *(APP, "user-a"),
        completed=clock.now(),
        pages=1,
        originating=OWN_NUMBER,
        destination=OWN_NUMBER,
        tsid="Front desk",
    )
    await receive(runtime, clock)
    (row,) = await runtime.services.ledger.read(faxes.find, fax.fax_id)
    assert not row.canary


async def test_a_start_soon_after_a_canary_sends_no_other(
    runtime: Runtime, simulator: Simulator, canaries: Canaries, clock: QuickClock
) -> None:
    for _ in range(3):
        await fly(runtime, canaries)
    assert len(sent(simulator)) == 1
    clock.advance(-timedelta(days=2))  # the clock had been ahead
    await fly(runtime, canaries)
    assert len(sent(simulator)) == 2


async def test_what_canaries_have_measured_is_known_after_a_start(
    runtime: Runtime, canaries: Canaries, clock: QuickClock
) -> None:
    await fly(runtime, canaries)
    await receive(runtime, clock)
    await canaries._look()
    before = await gauges(runtime)
    runtime.services.metrics._users.clear()
    async with in_background(canaries.run()):
        await until(lambda: len(runtime.services.metrics._users) > 0)
        while not await gauges(runtime):
            await asyncio.sleep(0.01)
    after = await gauges(runtime)
    assert after | {"poller_canary_late": 0.0} == before


async def test_each_user_with_a_canary_has_its_own_job(
    runtime: Runtime, canaries: Canaries
) -> None:
    scheduler = AsyncIOScheduler(timezone=UTC)
    scheduler.start(paused=True)
    try:
        canaries.plan(scheduler)
        (job,) = scheduler.get_jobs()
        assert datetime.now(UTC) < job.next_run_time <= datetime.now(UTC) + CANARY.every
        await job.func(*job.args)
        (row,) = await runtime.services.ledger.read(sends.unfinished)
        assert (row.purpose, row.destination) == ("canary", OWN_NUMBER)
    finally:
        scheduler.shutdown(wait=False)


async def test_a_canary_whose_page_cannot_be_kept_is_reported(
    runtime: Runtime, canaries: Canaries, events: list[Event]
) -> None:
    (runtime.config.state_directory / "outbox").write_text("a file is in the way")
    _, state = parts(runtime)
    await canaries._send_due(state, CANARY)
    (late,) = [event for event in events if event.action == "canary-late"]
    assert "cannot store the fax" in late.fields["reason"]


async def test_full_disk_keeps_no_half_of_a_fax_and_is_a_sentence(
    runtime: Runtime, clock: QuickClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = outbox._write

    def full(path: Path, content: bytes) -> None:
        real(path, content[:10])
        if path.stem == "2":
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(outbox, "_write", full)
    ledger, directory = runtime.services.ledger, runtime.config.state_directory
    new = new_fax(parts(runtime)[1].id, NUMBER)
    with pytest.raises(NotKept, match="No space left on device; nothing was sent"):
        await ask_to_send(ledger, directory, new, [DOCUMENT, DOCUMENT], clock.now())
    assert outbox.folders(directory) == []
