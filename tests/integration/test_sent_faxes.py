"""The archive of sent faxes: listed, followed until they are final, and stored with or without an image."""

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from poller.config.model import Sent
from poller.ingest.account import Lane
from poller.ingest.archive import Archiver
from poller.ingest.fetch import Outcome
from poller.ingest.runtime import Runtime
from poller.ingest.stream_state import StreamState
from poller.ledger import State, backfills, faxes, fold, jobs, streams
from poller.problems import not_in_time, problems
from poller.progress import NotPolled
from poller.simulator import Simulator, Switches
from poller.status import Surroundings, status
from poller.stream import Direction
from poller.window import Interval
from tests.conftest import APP, Event, MakeConfig, QuickClock, opened_runtime
from tests.integration.at_work import calls, faults, parts, poll, said, settled

SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
SENT = Direction.SENT
# One fax that is finished at once, one after several tries, and those that never arrive.
COURSES: dict[str, Any] = {
    "quick": {"course": ((0, "COMPLETE"),)},
    "slow": {"course": ((0, "NEW"), (9, "INPROGRESS"), (60, "PENDING RETRY"), (2400, "COMPLETE"))},
    "engaged": {"course": ((0, "INPROGRESS"), (50, "ERROR")), "error_code": "E41"},
    "cancelled": {"course": ((0, "NEW"), (5, "CANCELED")), "has_image": False},
}
OPEN_POINTS = {
    "as in the guide": {},
    "filtered by creation": {"sent_filter_by": "created"},
    "a status is demanded": {"sent_status_demanded": "yes"},
    "a status is demanded, spelled otherwise": {
        "sent_status_demanded": "yes",
        "sent_status_words": "COMPLETED",
        "sent_filter_by": "created",
    },
    "without a status only whole ones": {"sent_status_demanded": "defaults-to-complete"},
    "never listed under way": {"sent_under_way_listed": "no", "sent_filter_by": "created"},
    "with a time while under way": {"sent_completed_while_under_way": "created"},
    "how it went is not in the list": {"transmission_data": "missing-in-list"},
    "how it went is an array": {"transmission_data": "array", "details_path": "no-s"},
}


class Archive:
    """One user's sent faxes at work."""

    def __init__(self, runtime: Runtime, simulator: Simulator, clock: QuickClock) -> None:
        self.runtime, self.simulator, self.clock = runtime, simulator, clock
        self.account, _ = parts(runtime)

    @property
    def lane(self) -> Lane:
        return self.account.lanes[SENT]

    @property
    def state(self) -> StreamState:
        return next(s for s in self.lane.states.values() if s.user.name == "user-a")

    async def round(self) -> None:
        """Run one poll, and everything that is due."""
        assert not (await self.account.poll(self.state)).failed
        await self.lane.workers.run_until_idle()

    async def pass_time(self, length: timedelta, every: timedelta = 15 * MINUTE) -> None:
        end = self.clock.now() + length
        while self.clock.now() < end:
            self.clock.advance(every)
            await self.round()

    def sidecars(self) -> dict[str, dict[str, Any]]:
        found = [
            json.loads(file.read_bytes())
            for file in self.runtime.config.storage.directory.rglob("*.json")
        ]
        assert len({one["fax_id"] for one in found}) == len(found)
        return {one["fax_id"]: one for one in found}

    def images(self) -> list[Path]:
        return sorted(self.runtime.config.storage.directory.rglob("*.pdf"))


@pytest.fixture
def sent() -> Sent:
    return Sent(archive="image")


@pytest.fixture
async def archive(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock, sent: Sent
) -> AsyncIterator[Archive]:
    settings = make_config(simulator.base_url, of_user={"sent": sent})
    async with opened_runtime(settings, clock) as runtime:
        yield Archive(runtime, simulator, clock)


@pytest.mark.parametrize("switches", OPEN_POINTS.values(), ids=OPEN_POINTS)
async def test_every_sent_fax_is_archived_once_and_only_in_its_end(
    archive: Archive, simulator: Simulator, switches: dict[str, Any]
) -> None:
    simulator.switches = Switches(**switches)
    await archive.round()
    sent = {name: simulator.sent(APP, "user-a", **how) for name, how in COURSES.items()}
    await archive.pass_time(3 * HOUR)
    found = archive.sidecars()
    assert set(found) == {fax.fax_id for fax in sent.values()}
    for name, fax in sent.items():
        sidecar = found[fax.fax_id]
        assert sidecar["direction"] == "sent", name
        assert "received_at" not in sidecar
        assert sidecar["completed_at"].startswith(f"{fax.completed:%Y-%m-%dT%H:%M:%S}")
        data = sidecar["metadata"]["transmission_data"]
        last = data[-1] if isinstance(data, list) else data
        word = fax.course[-1][1]
        assert last["transmission_status"].removesuffix("D") in (word, word.removesuffix("D"))
        assert (sidecar["image"] is None) == (name == "cancelled")
    assert len(archive.images()) == 3
    (row,) = await archive.runtime.services.ledger.read(faxes.find, sent["slow"].fax_id)
    assert (row.state, row.direction) == (State.STORED, SENT)


async def test_fax_under_way_is_neither_stored_nor_a_failure(
    archive: Archive, simulator: Simulator, events: list[Event]
) -> None:
    fax = simulator.sent(APP, "user-a", course=((0, "INPROGRESS"), (7200, "COMPLETE")))
    await archive.pass_time(HOUR)
    assert archive.sidecars() == {}
    (row,) = await archive.runtime.services.ledger.read(faxes.find, fax.fax_id)
    assert (row.state, row.failures) == (State.PENDING, 0)
    assert said(events, "fax-retry", "fax-quarantined") == ["fax-retry"] * len(
        said(events, "fax-retry")
    )
    assert {one.fields["level"] for one in events if one.action == "fax-retry"} == {"debug"}
    await archive.pass_time(2 * HOUR)
    assert set(archive.sidecars()) == {fax.fax_id}


async def test_fax_under_way_for_a_day_is_reported_and_still_asked_about(
    archive: Archive, simulator: Simulator, events: list[Event]
) -> None:
    fax = simulator.sent(APP, "user-a", course=((0, "INPROGRESS"), (3 * 86_400, "COMPLETE")))
    await archive.pass_time(DAY, every=2 * HOUR)
    assert "warning" not in {one.fields["level"] for one in events if one.action == "fax-retry"}
    await archive.pass_time(4 * HOUR, every=2 * HOUR)
    (warned,) = [one for one in events if one.fields["level"] == "warning"]
    assert warned.action == "fax-retry"
    assert "over a day" in str(warned.fields["error"])
    assert warned.fields["direction"] == "sent"
    await archive.pass_time(4 * DAY, every=4 * HOUR)
    assert set(archive.sidecars()) == {fax.fax_id}


@pytest.mark.parametrize("sent", [Sent(archive="metadata")])
async def test_archive_of_metadata_asks_for_no_image(
    archive: Archive, simulator: Simulator
) -> None:
    fax = simulator.sent(APP, "user-a")
    await archive.pass_time(HOUR)
    assert archive.sidecars()[fax.fax_id]["image"] is None
    assert calls(simulator, "image") == 0


async def test_whole_fax_without_an_image_is_archived_alone_once_that_is_given_up(
    archive: Archive, simulator: Simulator, events: list[Event]
) -> None:
    fax = simulator.sent(APP, "user-a", has_image=False)
    await archive.pass_time(6 * DAY, every=6 * HOUR)
    assert archive.sidecars() == {}
    await archive.pass_time(3 * DAY, every=6 * HOUR)
    assert archive.sidecars()[fax.fax_id]["image"] is None
    assert said(events, "fax-quarantined") == []


async def test_two_streams_of_a_user_know_nothing_of_each_other(
    archive: Archive, simulator: Simulator, clock: QuickClock
) -> None:
    received = parts(archive.runtime)[1]
    ledger = archive.runtime.services.ledger
    simulator.switches = Switches(oldest_window_s=2 * 86_400.0)
    await poll(archive.runtime)
    await archive.round()
    before, other = received.progress, archive.state
    assert before.failed_gaps
    assert other.progress.failed_gaps
    bounds = Interval(clock.now() - 60 * DAY, clock.now())
    assert await ledger.write(fold.dismiss_gap, other.id, bounds, "not needed")
    await other.record(NotPolled(clock.now(), "refused", clock.now() + DAY))
    assert (await archive.account.poll(other)).skipped == "eFax refuses the user"
    assert not other.progress.failed_gaps
    clock.advance(MINUTE)
    assert not (await poll(archive.runtime)).failed
    assert received.progress.failed_gaps == before.failed_gaps
    assert received.progress.refusals == 0
    rows = {row.id: row for row in await ledger.read(streams.all_streams)}
    assert rows[other.id].key == "main/user-a/sent"
    assert rows[received.id].key == "main/user-a"
    await settled(archive.account)


async def test_empty_list_is_not_believed_while_a_fax_that_belongs_there_exists(
    archive: Archive, simulator: Simulator, clock: QuickClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await archive.pass_time(HOUR)
    fax = simulator.sent(APP, "user-a")
    await archive.pass_time(2 * HOUR)
    assert set(archive.sidecars()) == {fax.fax_id}
    with monkeypatch.context() as lying:
        lying.setattr("poller.simulator.outbound.listed", lambda *_: [])
        clock.advance(HOUR + SECOND)
        outcome = await archive.account.poll(archive.state)
        assert ["sent faxes" in str(one) for one in outcome.trouble] == [True]
        assert not archive.account.is_suspended
    simulator.delete(fax)
    clock.advance(HOUR)
    assert not (await archive.account.poll(archive.state)).failed


@pytest.mark.parametrize("takes_s", [1800, 3300])
@pytest.mark.parametrize("listed", ["yes", "no"])
async def test_list_by_another_time_than_completion_is_believed(
    archive: Archive, simulator: Simulator, takes_s: int, listed: str
) -> None:
    """A fax that was completed in a window need not be in the list of that window."""
    simulator.switches = Switches(sent_filter_by="created", sent_under_way_listed=listed)
    await archive.round()
    fax = simulator.sent(APP, "user-a", course=((0, "NEW"), (takes_s, "COMPLETE")))
    for _ in range(14):
        archive.clock.advance(15 * MINUTE)
        outcome = await archive.account.poll(archive.state)
        assert (outcome.error, outcome.trouble) == (None, [])
        await archive.lane.workers.run_until_idle()
    assert set(archive.sidecars()) == {fax.fax_id}


async def test_list_of_whole_faxes_alone_is_no_lie_where_one_failed(
    archive: Archive, simulator: Simulator
) -> None:
    simulator.switches = Switches(sent_status_demanded="defaults-to-complete")
    await archive.pass_time(HOUR)
    fax = simulator.sent(APP, "user-a", course=((0, "ERROR"),))
    await archive.pass_time(3 * HOUR)
    assert set(archive.sidecars()) == {fax.fax_id}
    window = Interval(archive.clock.now() - 30 * HOUR, archive.clock.now())
    await archive.runtime.services.ledger.write(
        backfills.ask, archive.state.id, window, archive.clock.now()
    )
    await archive.runtime.read_edits()
    assert (await archive.account.poll(archive.state)).trouble == []


async def test_what_the_list_says_of_the_end_is_taken_at_once_where_no_other_call_tells(
    archive: Archive, simulator: Simulator
) -> None:
    simulator.faults = faults("404@metadata,details=always")
    fax = simulator.sent(APP, "user-a", course=((0, "NEW"), (265 * 60, "COMPLETE")))
    await archive.pass_time(255 * MINUTE)  # by now poller looks once an hour, and has just looked
    assert archive.sidecars() == {}
    await archive.pass_time(15 * MINUTE)
    sidecar = archive.sidecars()[fax.fax_id]
    assert sidecar["metadata"]["transmission_data"]["transmission_status"] == "COMPLETE"
    assert sidecar["completed_at"].startswith(f"{fax.completed:%Y-%m-%dT%H:%M:%S}")


async def test_details_tell_of_the_end_where_the_metadata_do_not(
    archive: Archive, simulator: Simulator
) -> None:
    simulator.faults = faults("404@metadata=always")
    simulator.switches = Switches(sent_filter_by="created", details_path="no-s")
    await archive.pass_time(HOUR)
    fax = simulator.sent(APP, "user-a", course=((0, "NEW"), (2400, "ERROR")), error_code="E44")
    await archive.pass_time(2 * HOUR)
    data = archive.sidecars()[fax.fax_id]["metadata"]["transmission_data"]
    assert (data["transmission_status"], data["error_code"]) == ("ERROR", "E44")
    assert calls(simulator, "details") > 0


async def test_list_that_needs_a_status_is_not_asked_without_one_again(
    archive: Archive, simulator: Simulator
) -> None:
    simulator.switches = Switches(sent_status_demanded="yes")
    await archive.round()
    simulator.requests.clear()
    await archive.pass_time(HOUR)
    asked = [one.target for one in simulator.requests if one.call == "sent-list"]
    assert asked
    assert all("transmission_status=" in target for target in asked)


@pytest.mark.parametrize("sent", [Sent(archive="metadata")])
async def test_fax_that_was_dismissed_meanwhile_is_not_archived(
    archive: Archive, simulator: Simulator
) -> None:
    fax = simulator.sent(APP, "user-a")
    assert not (await archive.account.poll(archive.state)).failed
    ledger, clock = archive.runtime.services.ledger, archive.clock
    (row,) = await ledger.read(faxes.find, fax.fax_id)
    await ledger.write(jobs.dismiss, row.id, now=clock.now(), reason="not wanted")
    account = archive.account
    archiver = Archiver(archive.runtime.services, account.client, paused_s=account.paused_s)
    assert await archiver.fetch(row, archive.state.user) is Outcome.WITHDRAWN
    assert archive.sidecars() == {}


async def test_without_an_archive_nothing_is_asked(runtime: Runtime, simulator: Simulator) -> None:
    simulator.sent(APP, "user-a")
    await poll(runtime)
    account, _ = parts(runtime)
    assert account.lanes[SENT].states == {}
    await account.lanes[SENT].workers.run_until_idle()
    assert calls(simulator, "sent-list") == 0
    rows = await runtime.services.ledger.read(streams.all_streams)
    assert {row.direction for row in rows} == {Direction.RECEIVED}


async def test_late_list_of_sent_faxes_is_told_as_that_and_not_as_a_service_that_hangs(
    archive: Archive, clock: QuickClock
) -> None:
    await archive.round()
    clock.advance(3 * HOUR)
    for user in ("user-a", "user-b"):
        assert not (await poll(archive.runtime, user)).failed
    around = Surroundings(storage={}, accounts=archive.runtime.config.accounts)
    shown = await status(archive.runtime.services.ledger, clock.now(), around)
    assert not_in_time(shown) is None
    (told,) = problems(shown, [])
    assert "main/user-a/sent" in told
    assert "because received faxes come first" in told


async def test_empty_list_may_be_spelled_otherwise_than_that_of_received_faxes(
    archive: Archive, simulator: Simulator, clock: QuickClock
) -> None:
    await poll(archive.runtime)
    simulator.receive(APP, "user-a", completed=clock.now())
    clock.advance(MINUTE)
    await poll(archive.runtime)  # from here on poller knows how this server spells an empty list
    simulator.faults = faults("zero-200@sent-list=always")
    await archive.pass_time(HOUR)
    assert archive.state.progress.failed_polls == 0


async def test_status_is_not_demanded_for_ever_because_of_one_refusal(
    archive: Archive, simulator: Simulator
) -> None:
    def unfiltered() -> int:
        return sum(
            one.call == "sent-list" and "transmission_status" not in one.target
            for one in simulator.requests
        )

    simulator.faults = faults("400@sent-list=first:1")
    await archive.round()
    assert archive.lane.poller._lister._reader._is_status_demanded  # type: ignore[attr-defined]
    await archive.pass_time(25 * HOUR, every=5 * HOUR)
    before = unfiltered()
    await archive.pass_time(HOUR)
    assert unfiltered() >= before + 4
