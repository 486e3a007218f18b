"""Fetch one fax of a simulated eFax: stored, tried again, quarantined, and never lost."""

import asyncio
import errno
import json
import os
import threading
from collections import Counter
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from poller.config.model import Config
from poller.documents import Document, DocumentFormat, checker, not_whole
from poller.documents.checker import Checker, Killed
from poller.documents.checkers import MOST, Checkers
from poller.documents.child import SAMPLE
from poller.efax.responses import listed_pages
from poller.errors import LedgerUnavailable
from poller.ingest.fetch import Broken, Outcome
from poller.ingest.runtime import Runtime
from poller.ledger import FaxRow, State, faxes, jobs, streams
from poller.simulator import Faults, Simulator, Switches
from poller.simulator.state import Fax
from poller.store import Identity, recovery, syscalls
from poller.store.folder import Names
from tests.conftest import APP, Event, MakeConfig, QuickClock, opened_runtime, stored_files
from tests.hostile_documents import bomb
from tests.integration.at_work import (
    WITHIN_S,
    Held,
    calls,
    end_outage,
    fetch,
    files,
    in_background,
    listed,
    mount,
    parts,
    poll,
    row,
    said,
    settled,
    suspend,
    unmount,
    until,
)
from tests.integration.at_work import faults as scripted
from tests.integration.in_between import Asked, around

DAY = timedelta(days=1)
FETCHED = ("fax-stored", "fax-retry", "fax-quarantined", "fax-damaged")


def faults(*image_requests: str | None) -> Faults:
    return scripted(script=image_requests)


def always(effect: str) -> Faults:
    return scripted(f"{effect}@image=always")


# -- stored ------------------------------------------------------------------------------------


async def test_fetched_fax_is_a_file_a_sidecar_and_a_stored_row(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, events: list[Event]
) -> None:
    fax, _ = await listed(runtime, simulator, pages=2)

    assert await fetch(runtime, fax) is Outcome.STORED

    stored = await row(runtime, fax)
    assert stored.state is State.STORED
    assert stored.next_attempt_at is None
    image, sidecar = sorted(stored_files(runtime.config.storage.directory), reverse=True)
    assert image.read_bytes() == simulator.image_bytes(fax)
    content = json.loads(sidecar.read_text())
    assert content["fax_id"] == fax.fax_id
    assert content["image"]["sha256"] == stored.sha256
    assert content["image"]["pages"] == content["image"]["listed_pages"] == 2
    assert content["image"]["damaged"] is False
    assert said(events, *FETCHED) == ["fax-stored"]
    assert not files(runtime.config.storage.directory, ".fax*")


async def test_latency_is_not_measured_for_a_fax_without_a_time(
    runtime: Runtime, simulator: Simulator
) -> None:
    fax, found = await listed(runtime, simulator, fields={"completed_timestamp": None})
    assert found.received_at is None

    assert await fetch(runtime, fax) is Outcome.STORED


@pytest.mark.parametrize(
    ("pages", "count"),
    [(2, 2), ("3", 3), (None, None), ("two", None), ("", None), (0, None), (-1, None), ([], None)],
)
def test_listed_page_count_may_be_missing_or_a_text(pages: Any, count: int | None) -> None:
    assert listed_pages({"pages": pages}) == count


# -- tried again inside an attempt ---------------------------------------------------------------


@pytest.mark.parametrize(
    "effect",
    ["bad-base64", "wrong-fax-id", "bad-json", "html-200", "null-image", "no-image", "cut"],
)
async def test_bad_answer_is_repeated_inside_the_attempt_and_heals(
    runtime: Runtime, simulator: Simulator, effect: str
) -> None:
    fax, _ = await listed(runtime, simulator)
    simulator.faults = faults(effect, effect)

    assert await fetch(runtime, fax) is Outcome.STORED
    assert calls(simulator, "image") == 3


@pytest.mark.parametrize(
    ("effect", "requests"),
    [("bad-base64", 3), ("html-200", 3), ("500", 3), ("reset-mid-body", 3), ("400", 1)],
)
async def test_answer_that_stays_bad_fails_the_attempt_and_is_kept_as_evidence(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, effect: str, requests: int
) -> None:
    fax, _ = await listed(runtime, simulator)
    simulator.faults = always(effect)

    assert await fetch(runtime, fax) is Outcome.FAILED

    failed = await row(runtime, fax)
    assert calls(simulator, "image") == requests
    assert failed.state is State.PENDING
    assert failed.failures == 1
    assert failed.first_failed_at is not None
    assert failed.next_attempt_at is not None
    assert failed.next_attempt_at - clock.now() <= timedelta(seconds=30)
    assert await runtime.services.evidence.find(APP, "user-a", fax.fax_id)
    assert stored_files(runtime.config.storage.directory) == []


async def test_bytes_that_are_no_document_fail_and_are_kept_as_evidence(
    runtime: Runtime, simulator: Simulator
) -> None:
    fax, _ = await listed(runtime, simulator)
    simulator.faults = always("no-document")

    assert await fetch(runtime, fax) is Outcome.FAILED

    kept = await runtime.services.evidence.find(APP, "user-a", fax.fax_id)
    assert any(path.suffix == ".image" for path in kept)
    assert stored_files(runtime.config.storage.directory) == []


async def test_repeated_failure_is_a_warning_once_until_its_kind_changes(
    runtime: Runtime, simulator: Simulator, events: list[Event]
) -> None:
    fax, _ = await listed(runtime, simulator)
    for effect in ("400", "400", "413"):
        simulator.faults = always(effect)
        await fetch(runtime, fax)

    levels = [event.fields["level"] for event in events if event.action == "fax-retry"]
    assert levels == ["warning", "debug", "warning"]


# -- broken documents ------------------------------------------------------------------------------


async def test_document_that_is_cut_once_is_fetched_again_and_stored_whole(
    runtime: Runtime, simulator: Simulator, events: list[Event]
) -> None:
    fax, _ = await listed(runtime, simulator)
    simulator.faults = faults("cut-document")

    assert await fetch(runtime, fax) is Outcome.STORED

    assert not (await row(runtime, fax)).damaged
    assert await runtime.services.evidence.find(APP, "user-a", fax.fax_id)
    assert "fax-damaged" not in said(events, *FETCHED)


async def test_document_that_is_cut_the_same_way_twice_is_stored_damaged_and_said(
    runtime: Runtime, simulator: Simulator, events: list[Event]
) -> None:
    fax, _ = await listed(runtime, simulator)
    simulator.faults = always("cut-document")

    assert await fetch(runtime, fax) is Outcome.STORED

    stored = await row(runtime, fax)
    (sidecar,) = files(runtime.config.storage.directory, "*.json")
    assert stored.damaged
    assert json.loads(sidecar.read_text())["image"]["damaged"] is True
    assert said(events, *FETCHED) == ["fax-stored", "fax-damaged"]
    assert (
        'outcome="damaged",user="user-a"} 1.0' in (await runtime.services.metrics.render()).decode()
    )
    assert calls(simulator, "image") == 2


async def test_page_count_other_than_listed_is_stored_and_flagged(
    runtime: Runtime, simulator: Simulator, events: list[Event]
) -> None:
    fax, _ = await listed(runtime, simulator, pages=1, fields={"pages": "3"})

    assert await fetch(runtime, fax) is Outcome.STORED

    (sidecar,) = files(runtime.config.storage.directory, "*.json")
    image = json.loads(sidecar.read_text())["image"]
    assert (image["pages"], image["listed_pages"], image["damaged"]) == (1, 3, True)
    assert [e.fields["problem"] for e in events if e.action == "fax-damaged"] == [
        "pages-differ: it has 1 pages, the list says 3"
    ]


async def test_document_broken_in_two_ways_fails_and_the_second_way_again_stores_it(
    runtime: Runtime, simulator: Simulator
) -> None:
    fax, _ = await listed(runtime, simulator, pages=1, fields={"pages": 3})
    simulator.faults = faults("cut-document", None)

    assert await fetch(runtime, fax) is Outcome.FAILED
    assert (await row(runtime, fax)).last_problem == "pages-differ: it has 1 pages, the list says 3"
    assert stored_files(runtime.config.storage.directory) == []

    before = calls(simulator, "image")
    assert await fetch(runtime, fax) is Outcome.STORED
    assert calls(simulator, "image") == before + 1
    assert (await row(runtime, fax)).damaged


async def test_document_that_ends_the_process_that_checks_it_is_stored_damaged_and_said(
    runtime: Runtime, simulator: Simulator, events: list[Event]
) -> None:
    fax, _ = await listed(runtime, simulator)
    fax.documents = {"pdf": bomb(2000)}

    assert await fetch(runtime, fax) is Outcome.STORED

    (image,) = files(runtime.config.storage.directory, "*.pdf")
    (sidecar,) = files(runtime.config.storage.directory, "*.json")
    about = json.loads(sidecar.read_text())["image"]
    assert (about["damaged"], about["pages"], about["format"]) == (True, None, "pdf")
    assert image.read_bytes() == bomb(2000)
    (problem,) = [e.fields["problem"] for e in events if e.action == "fax-damaged"]
    assert problem.startswith("unchecked-memory: the document could not be checked")
    assert calls(simulator, "image") == 2
    other, _ = await listed(runtime, simulator)
    assert await fetch(runtime, other) is Outcome.STORED
    assert not (await row(runtime, other)).damaged


async def test_process_that_was_killed_twice_in_a_row_says_nothing_of_the_fax(
    runtime: Runtime, simulator: Simulator, monkeypatch: pytest.MonkeyPatch, events: list[Event]
) -> None:
    """The kernel kills it because memory ran out, or an operator does."""
    fax, _ = await listed(runtime, simulator)
    with monkeypatch.context() as patched:
        patched.setattr(Checker, "check", killed)
        for _ in range(2):
            assert await fetch(runtime, fax) is Outcome.POSTPONED
    postponed = await row(runtime, fax)
    assert (postponed.state, postponed.failures) == (State.PENDING, 0)
    assert runtime.services.gate.usable
    assert await fetch(runtime, fax) is Outcome.STORED
    assert not (await row(runtime, fax)).damaged
    assert "fax-damaged" not in said(events, *FETCHED)


async def test_fax_whose_check_is_killed_each_time_is_stored_damaged_and_said_to_be_unchecked(
    runtime: Runtime, simulator: Simulator, monkeypatch: pytest.MonkeyPatch, events: list[Event]
) -> None:
    """The machine is too small for it: poller must not fetch it forever."""
    fax, _ = await listed(runtime, simulator)
    monkeypatch.setattr(Checker, "check", killed)
    outcomes = [await fetch(runtime, fax) for _ in range(3)]
    assert outcomes == [Outcome.POSTPONED, Outcome.POSTPONED, Outcome.STORED]
    (damaged,) = [e for e in events if e.action == "fax-damaged"]
    assert damaged.fields["problem"].startswith("unchecked-crash: ")
    assert "could not be checked" in damaged.message
    assert "broken" not in damaged.message


def killed(_: Checker, fd: int, kind: DocumentFormat) -> Document:
    raise Killed(kind)


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        ("pdf-no-eof: it is cut", "the document is not whole: pdf-no-eof: it is cut"),
        ("unchecked-time: it could not be checked", "unchecked-time: it could not be checked"),
    ],
)
def test_what_could_not_be_checked_is_not_called_broken(problem: str, said: str) -> None:
    assert str(Broken(problem)) == said


async def test_slow_documents_leave_the_storage_threads_for_looks(
    runtime: Runtime, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, checks = threading.Event(), Counter[str]()

    def slow(_: Checkers, fd: int) -> Document:
        checks["begun"] += 1
        assert go_on.wait(60)
        return Document("pdf", 1)

    monkeypatch.setattr(Checkers, "inspect", slow)
    storage = runtime.services.storage

    async def check(path: str) -> Document:
        async with storage.draft(path, Identity("app", "user", path)) as draft:
            await draft.reset()
            await draft.write(SAMPLE)
            return await draft.check()

    checking = [asyncio.create_task(check(f"main/slow-{n}")) for n in range(16)]
    async with asyncio.timeout(60):
        while checks["begun"] < 6:
            await asyncio.sleep(0.01)
        try:
            assert await storage.check() is None
            assert await storage.free_bytes()
        finally:
            go_on.set()
        assert len(await asyncio.gather(*checking)) == 16


async def test_fax_is_postponed_while_all_processes_that_check_documents_are_busy(
    runtime: Runtime, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    fax, _ = await listed(runtime, simulator)
    checkers = runtime.services.storage._checkers
    monkeypatch.setattr("poller.documents.checkers._MOMENT_S", 0)
    monkeypatch.setattr("poller.documents.checkers.FREE_S", 0.1)
    monkeypatch.setattr(checkers, "_idle", [])
    monkeypatch.setattr(checkers, "_count", MOST)
    assert await fetch(runtime, fax) is Outcome.POSTPONED
    assert (await row(runtime, fax)).failures == 0
    assert runtime.services.gate.usable


async def test_process_that_ended_while_it_checked_a_good_document_blames_it_for_nothing(
    runtime: Runtime, simulator: Simulator, monkeypatch: pytest.MonkeyPatch, events: list[Event]
) -> None:
    """The second download decides."""
    fax, _ = await listed(runtime, simulator)
    real = Checker.check

    def killed_once(self: Checker, fd: int, kind: DocumentFormat) -> Document:
        monkeypatch.setattr(Checker, "check", real)
        real(self, fd, kind)
        return not_whole(kind, "unchecked-crash")

    monkeypatch.setattr(Checker, "check", killed_once)
    assert await fetch(runtime, fax) is Outcome.STORED
    assert not (await row(runtime, fax)).damaged
    assert calls(simulator, "image") == 2
    assert "fax-damaged" not in said(events, *FETCHED)


async def test_fax_is_postponed_while_no_document_can_be_checked(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, events: list[Event]
) -> None:
    fax, _ = await listed(runtime, simulator)
    runtime.services.storage._checkers = checkers = Checkers()  # whose first process starts now
    with pytest.MonkeyPatch.context() as broken:
        broken.setattr(checker, "_interpreter", lambda: "/there/is/none")
        assert await fetch(runtime, fax) is Outcome.POSTPONED
        gate = runtime.services.gate
        assert "no document can be checked" in str(gate.reason)
        clock.advance(timedelta(seconds=5))
        assert not await gate.check()  # so that no image is requested in vain
        assert await poll(runtime)
    postponed = await row(runtime, fax)
    assert (postponed.state, postponed.failures, postponed.damaged) == (State.PENDING, 0, False)
    assert stored_files(runtime.config.storage.directory) == []
    clock.advance(timedelta(seconds=5))
    assert await gate.check()
    assert await fetch(runtime, fax) is Outcome.STORED
    assert not (await row(runtime, fax)).damaged
    assert said(events, "storage-unusable", "storage-usable") == [
        "storage-unusable",
        "storage-usable",
    ]
    checkers.close()


# -- not yet, and giving up -----------------------------------------------------------------------


async def test_image_that_is_not_there_yet_is_asked_for_at_growing_intervals(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    fax, _ = await listed(runtime, simulator)
    simulator.faults = always("404")
    waits = []
    for _ in range(4):
        assert await fetch(runtime, fax) is Outcome.NOT_YET
        due = (await row(runtime, fax)).next_attempt_at
        assert due is not None
        waits.append((due - clock.now()).total_seconds())

    assert waits == pytest.approx([30, 60, 120, 240])
    assert calls(simulator, "image") == 4

    simulator.faults = Faults()
    assert await fetch(runtime, fax) is Outcome.STORED


async def test_fax_is_quarantined_only_by_its_own_failed_attempt_after_the_time(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, events: list[Event]
) -> None:
    fax, _ = await listed(runtime, simulator)
    simulator.faults = always("404")
    assert await fetch(runtime, fax) is Outcome.NOT_YET
    clock.advance(timedelta(days=6, hours=23))
    assert await fetch(runtime, fax) is Outcome.NOT_YET

    clock.advance(timedelta(hours=2))
    await poll(runtime)
    assert (await row(runtime, fax)).state is State.PENDING
    assert await fetch(runtime, fax) is Outcome.QUARANTINED

    assert (await row(runtime, fax)).state is State.QUARANTINED
    assert said(events, *FETCHED)[-1] == "fax-quarantined"
    _, state = parts(runtime)
    assert (await runtime.services.ledger.read(streams.one, state.id)).quarantined == 1


async def quarantined(runtime: Runtime, simulator: Simulator, clock: QuickClock) -> Fax:
    fax, _ = await listed(runtime, simulator)
    simulator.faults = always("404")
    await fetch(runtime, fax)
    clock.advance(8 * DAY)
    assert await fetch(runtime, fax) is Outcome.QUARANTINED
    return fax


async def test_quarantined_fax_is_tried_once_a_day_and_leaves_when_it_can_be_had(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, events: list[Event]
) -> None:
    fax = await quarantined(runtime, simulator, clock)
    account, state = parts(runtime)
    requests = []
    for _ in range(3):
        before = calls(simulator, "image")
        for _ in range(24):
            clock.advance(timedelta(hours=1))
            await account.workers.run_until_idle()
        requests.append(calls(simulator, "image") - before)
    assert requests == [1, 1, 1]
    assert said(events, "fax-quarantined") == ["fax-quarantined"]

    simulator.faults = Faults()
    clock.advance(DAY)
    await account.workers.run_until_idle()

    assert (await row(runtime, fax)).state is State.STORED
    user = await runtime.services.ledger.read(streams.one, state.id)
    assert (user.quarantined, user.pending, user.stored) == (0, 0, 1)


async def test_outage_of_ten_days_quarantines_nothing(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    fax, _ = await listed(runtime, simulator)
    simulator.faults = always("500")
    assert await fetch(runtime, fax) is Outcome.FAILED
    await suspend(runtime, simulator)
    clock.advance(10 * DAY)
    assert await fetch(runtime, fax) is Outcome.POSTPONED
    await end_outage(runtime, simulator, clock)

    assert await fetch(runtime, fax) is Outcome.FAILED
    assert (await row(runtime, fax)).state is State.PENDING

    clock.advance(7 * DAY)  # long enough, with eFax at work
    assert await fetch(runtime, fax) is Outcome.QUARANTINED


async def test_disk_that_is_full_for_ten_days_quarantines_nothing(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    account, _ = parts(runtime)
    runtime.services.gate.on_change = account.note_pause
    fax, _ = await listed(runtime, simulator)
    simulator.faults = always("404")
    assert await fetch(runtime, fax) is Outcome.NOT_YET
    with monkeypatch.context() as full:
        full.setattr(syscalls, "space", no_space)
        clock.advance(timedelta(seconds=5))
        assert not await runtime.services.gate.check()
        await settled(account)
        before = calls(simulator, "image")
        for _ in range(10):
            clock.advance(DAY)
            await account.workers.run_until_idle()
        assert calls(simulator, "image") == before
    clock.advance(timedelta(seconds=5))
    assert await runtime.services.gate.check()
    await settled(account)

    assert await fetch(runtime, fax) is Outcome.NOT_YET
    assert (await row(runtime, fax)).state is State.PENDING


def no_space(root: int) -> Any:
    real = os.fstatvfs(root)
    return SimpleNamespace(
        f_bavail=0, f_frsize=real.f_frsize, f_files=real.f_files, f_favail=real.f_favail
    )


# -- the account's fault -----------------------------------------------------------------------------


async def test_fax_of_a_suspended_account_is_postponed_and_nothing_is_held_against_it(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    fax, _ = await listed(runtime, simulator)
    await suspend(runtime, simulator)
    before = len(simulator.requests)

    assert await fetch(runtime, fax) is Outcome.POSTPONED

    postponed = await row(runtime, fax)
    assert len(simulator.requests) == before
    assert (postponed.failures, postponed.attempts, postponed.first_failed_at) == (0, 0, None)
    assert postponed.next_attempt_at == clock.now() + timedelta(seconds=30)


async def test_fax_that_met_only_429_is_postponed(runtime: Runtime, simulator: Simulator) -> None:
    fax, _ = await listed(runtime, simulator)
    simulator.faults = always("429")

    assert await fetch(runtime, fax) is Outcome.POSTPONED
    assert (await row(runtime, fax)).failures == 0


# -- storage and ledger -------------------------------------------------------------------------------


async def test_nothing_is_asked_for_while_the_storage_is_unusable_and_the_fax_stays_due(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, events: list[Event]
) -> None:
    account, state = parts(runtime)
    fax, _ = await listed(runtime, simulator)
    unmount(runtime)

    assert await fetch(runtime, fax) is Outcome.POSTPONED
    assert not runtime.services.gate.usable
    await account.workers.run_until_idle()

    assert not simulator.downloads
    assert calls(simulator, "image") == 0
    due = await runtime.services.ledger.read(jobs.due, state.id, clock.now(), 10)
    assert [one.fax_id for one in due] == [fax.fax_id]
    assert due[0].failures == 0

    mount(runtime)
    clock.advance(timedelta(seconds=2))
    await account.workers.run_until_idle()
    assert (await row(runtime, fax)).state is State.STORED
    assert said(events, "storage-unusable", "storage-usable") == [
        "storage-unusable",
        "storage-usable",
    ]


async def test_foreign_file_of_the_same_name_fails_that_fax_alone_and_stays_as_it_is(
    runtime: Runtime, simulator: Simulator
) -> None:
    account, _ = parts(runtime)
    fax, found = await listed(runtime, simulator)
    other, _ = await listed(runtime, simulator)
    foreign = runtime.config.storage.directory / f"{found.path}.pdf"
    foreign.parent.mkdir(parents=True, exist_ok=True)
    foreign.write_bytes(b"somebody else's")

    await account.workers.run_until_idle()

    failed = await row(runtime, fax)
    assert (failed.state, failed.failures) == (State.PENDING, 1)
    assert foreign.name in str(failed.last_error)
    assert foreign.read_bytes() == b"somebody else's"
    assert (await row(runtime, other)).state is State.STORED
    assert runtime.services.gate.usable


async def test_fax_larger_than_the_file_system_takes_fails_alone(
    runtime: Runtime, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    account, _ = parts(runtime)
    large, _ = await listed(runtime, simulator)
    small, _ = await listed(runtime, simulator)
    real = syscalls.write
    size = len(simulator.image_bytes(large))

    def write(fd: int, data: Any) -> None:
        if len(data) == size and bytes(data) == simulator.image_bytes(large):
            raise OSError(27, "File too large")
        real(fd, data)

    monkeypatch.setattr(syscalls, "write", write)
    await account.workers.run_until_idle()

    assert (await row(runtime, large)).failures == 1
    assert (await row(runtime, small)).state is State.STORED


async def test_bug_met_by_one_fax_does_not_stop_the_others(
    runtime: Runtime, simulator: Simulator, monkeypatch: pytest.MonkeyPatch, events: list[Event]
) -> None:
    account, _ = parts(runtime)
    unlucky, found = await listed(runtime, simulator)
    others = [(await listed(runtime, simulator))[0] for _ in range(3)]
    real = runtime.services.storage.store.admit

    def admit(path: str, **how: bool) -> bool:
        if path == found.path:
            raise ZeroDivisionError("a bug")
        return real(path, **how)

    monkeypatch.setattr(runtime.services.storage.store, "admit", admit)
    await account.workers.run_until_idle()

    failed = await row(runtime, unlucky)
    assert (failed.state, failed.failures, failed.last_error) == (State.PENDING, 1, "a bug")
    assert [(await row(runtime, fax)).state for fax in others] == [State.STORED] * 3
    assert said(events, *FETCHED).count("fax-retry") == 1


def held_record(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> tuple[asyncio.Event, asyncio.Event]:
    """Hold the recording of a stored fax; return what tells that it began, and what lets it continue."""
    recording, go_on = asyncio.Event(), asyncio.Event()

    async def stored(write: Asked) -> None:
        recording.set()
        await go_on.wait()
        await write()

    around(monkeypatch, runtime.services.ledger, jobs.stored, stored)
    return recording, go_on


async def test_outcome_is_recorded_although_the_attempt_is_cancelled_meanwhile(
    runtime: Runtime, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    fax, _ = await listed(runtime, simulator)
    recording, go_on = held_record(runtime, monkeypatch)
    attempt = asyncio.create_task(fetch(runtime, fax))
    await recording.wait()
    attempt.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attempt
    go_on.set()

    rows: list[FaxRow] = []
    while not rows or rows[-1].state is not State.STORED:
        rows.append(await row(runtime, fax))
    assert sum(simulator.downloads.values()) == 1


async def test_failure_is_recorded_although_the_attempt_is_cancelled_meanwhile(
    runtime: Runtime, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    fax, _ = await listed(runtime, simulator)
    simulator.faults = always("404")
    recording, go_on, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def attempt_failed(write: Asked) -> Any:
        recording.set()
        await go_on.wait()
        await write()
        done.set()

    around(monkeypatch, runtime.services.ledger, jobs.attempt_failed, attempt_failed)
    attempt = asyncio.create_task(fetch(runtime, fax))
    await recording.wait()
    attempt.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attempt
    go_on.set()
    await done.wait()

    assert (await row(runtime, fax)).failures == 1


async def test_ledger_that_does_not_take_the_record_closes_the_gate_and_costs_no_second_download(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    fax, _ = await listed(runtime, simulator)

    async def refuses(*_: Any, **__: Any) -> None:
        raise LedgerUnavailable("the ledger is locked")

    with monkeypatch.context() as locked:
        around(locked, runtime.services.ledger, jobs.stored, refuses)
        assert await fetch(runtime, fax) is Outcome.POSTPONED
    assert (
        runtime.services.gate.reason == "the ledger is locked. See `poller help ledger-unusable`."
    )
    assert (await row(runtime, fax)).state is State.PENDING

    assert await fetch(runtime, fax) is Outcome.STORED
    assert sum(simulator.downloads.values()) == 1
    assert not files(runtime.config.storage.directory, f".*{fax.fax_id}*")


async def test_crash_between_link_and_record_costs_no_second_download_after_the_restart(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> None:
    settings = make_config(simulator.base_url)
    async with opened_runtime(settings, clock) as runtime:
        fax, _ = await listed(runtime, simulator)

        async def crash(*_: Any, **__: Any) -> None:
            raise asyncio.CancelledError

        with pytest.MonkeyPatch.context() as patch:
            around(patch, runtime.services.ledger, jobs.stored, crash)
            with pytest.raises(asyncio.CancelledError):
                await fetch(runtime, fax)
        assert (await row(runtime, fax)).state is State.PENDING
    assert len(stored_files(settings.storage.directory)) == 2

    async with opened_runtime(settings, clock) as runtime:
        await runtime.accounts[APP].workers.run_until_idle()
        assert (await row(runtime, fax)).state is State.STORED

    assert sum(simulator.downloads.values()) == 1
    assert len(stored_files(settings.storage.directory)) == 2
    assert not files(settings.storage.directory, f".*{fax.fax_id}*")


async def test_crash_in_mid_download_leaves_nothing_behind_after_the_restart(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> None:
    settings = make_config(simulator.base_url)
    async with opened_runtime(settings, clock) as runtime:
        fax, found = await listed(runtime, simulator)
    directory = (settings.storage.directory / found.path).parent
    directory.mkdir(parents=True)
    half = directory / Names(fax.fax_id, "0123abcd").dot_image
    half.write_bytes(b"%PDF-1.4 half of")

    async with opened_runtime(settings, clock) as runtime:
        assert not half.exists()
        assert await fetch(runtime, fax) is Outcome.STORED

    assert {path.suffix for path in stored_files(settings.storage.directory)} == {".pdf", ".json"}


async def test_image_that_can_be_had_only_later_is_not_asked_for_in_between(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    simulator.switches = Switches(image_not_yet_s=45.0)
    account, _ = parts(runtime)
    fax, _ = await listed(runtime, simulator, completed=clock.now())
    for _ in range(20):
        await account.workers.run_until_idle()
    assert calls(simulator, "image") == 1

    clock.advance(timedelta(seconds=60))
    await account.workers.run_until_idle()
    assert calls(simulator, "image") == 2
    assert (await row(runtime, fax)).state is State.STORED
    await until(lambda: account.workers.in_flight == 0)


async def test_directory_of_one_user_that_takes_nothing_stops_nobody_else(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, monkeypatch: pytest.MonkeyPatch,
    events: list[Event],
) -> None:  # fmt: skip
    bad, _ = await listed(runtime, simulator, "user-a")
    good, _ = await listed(runtime, simulator, "user-b")
    make = syscalls.make_directory

    def refused(name: str, at: int, mode: int) -> None:
        if name == "user-a":
            raise PermissionError(13, "Permission denied")
        make(name, at, mode)

    monkeypatch.setattr(syscalls, "make_directory", refused)

    assert await fetch(runtime, bad) is Outcome.FAILED
    assert runtime.services.gate.usable
    assert await fetch(runtime, good) is Outcome.STORED
    failed = await row(runtime, bad)
    assert failed.failures == 1
    assert str(failed.last_error).startswith("the directory main/user-a/")
    assert str(failed.last_error).endswith("Permission denied; check its owner and mode")
    assert failed.next_attempt_at is not None
    assert failed.next_attempt_at > clock.now()
    assert "storage-unusable" not in [event.action for event in events]


async def test_image_that_is_always_cut_off_does_not_suspend_the_only_users_account(
    simulator: Simulator, clock: QuickClock, make_config: MakeConfig
) -> None:
    async with opened_runtime(make_config(simulator.base_url, users=("user-a",)), clock) as runtime:
        simulator.faults = always("cut")
        for _ in range(3):
            fax, _ = await listed(runtime, simulator)
            assert await fetch(runtime, fax) is Outcome.FAILED
        assert not runtime.accounts[APP].is_suspended


async def test_disk_that_is_full_though_it_looks_well_counts_against_no_fax(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, monkeypatch: pytest.MonkeyPatch,
    events: list[Event],
) -> None:  # fmt: skip
    """A quota: a small file still fits, and the reported free space is plenty."""
    fax, _ = await listed(runtime, simulator)
    write = syscalls.write

    def full(fd: int, data: bytes | bytearray) -> None:
        if len(data) > 100:
            raise OSError(122, "Disk quota exceeded")
        write(fd, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(syscalls, "write", full)
        for _ in range(5):
            clock.advance(timedelta(minutes=1))
            assert (
                await runtime.services.gate.check()
            )  # a look finds nothing, so an attempt may try
            assert await fetch(runtime, fax) is Outcome.POSTPONED
            assert not runtime.services.gate.usable
    assert (await row(runtime, fax)).failures == 0

    clock.advance(timedelta(minutes=1))
    assert await runtime.services.gate.check()
    assert await fetch(runtime, fax) is Outcome.STORED
    assert runtime.services.gate.usable
    assert said(events, "storage-unusable", "storage-usable") == [
        "storage-unusable",
        "storage-usable",
    ]


async def left_by_a_crash(settings: Config, clock: QuickClock, simulator: Simulator) -> FaxRow:
    """A fax that is visible, by links, and whose sidecar still has its dot-name; its row is not stored."""

    async def crash(*_: Any, **__: Any) -> None:
        raise asyncio.CancelledError

    async with opened_runtime(settings, clock) as runtime:
        fax, found = await listed(runtime, simulator)
        with pytest.MonkeyPatch.context() as patch:
            around(patch, runtime.services.ledger, jobs.stored, crash)
            patch.setattr(syscalls, "rename", lambda *_: errno.EINVAL)
            with pytest.raises(asyncio.CancelledError):
                await fetch(runtime, fax)
        ticket = (await row(runtime, fax)).staged
    assert ticket is not None
    sidecar = settings.storage.directory / f"{found.path}.json"
    sidecar.with_name(ticket.ticket.partition("/")[2]).hardlink_to(sidecar)
    return found


async def test_a_drain_lets_what_a_crash_has_left_be_carried_to_its_end(
    simulator: Simulator,
    make_config: MakeConfig,
    clock: QuickClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = make_config(simulator.base_url)
    fax = await left_by_a_crash(settings, clock, simulator)
    async with opened_runtime(settings, clock) as runtime:
        recording, go_on = held_record(runtime, monkeypatch)
        workers = runtime.accounts[APP].workers
        async with in_background(workers.run()) as (work,):
            await recording.wait()
            async with in_background(workers.drain(WITHIN_S)) as (drained,):
                await asyncio.sleep(0)
                go_on.set()
                await drained
            await work
        assert (await runtime.services.ledger.read(faxes.one, fax.id)).state is State.STORED
    assert not files(settings.storage.directory, f".*{fax.fax_id}*")


async def test_what_a_crash_has_left_is_recorded_and_tidied_by_an_attempt_that_is_cancelled(
    simulator: Simulator,
    make_config: MakeConfig,
    clock: QuickClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = make_config(simulator.base_url)
    fax = await left_by_a_crash(settings, clock, simulator)
    async with opened_runtime(settings, clock) as runtime:
        settle = Held(recovery.settle)
        monkeypatch.setattr(recovery, "settle", settle)
        _, state = parts(runtime)
        fetcher = runtime.accounts[APP].workers._fetcher
        now = await runtime.services.ledger.read(faxes.one, fax.id)
        attempt = asyncio.create_task(fetcher.fetch(now, state.user))
        await settle.reached()
        attempt.cancel()
        await asyncio.sleep(0.02)
        settle.let_go.set()
        with pytest.raises(asyncio.CancelledError):
            await attempt
        assert (await runtime.services.ledger.read(faxes.one, fax.id)).state is State.STORED
    assert not files(settings.storage.directory, f".*{fax.fax_id}*")
