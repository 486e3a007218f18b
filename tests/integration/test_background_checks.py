"""poller looks at the files of stored faxes, reports and shows damage, and repairs only when asked."""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from poller.daemon.background_checks import BackgroundChecks
from poller.daemon.monitor import Monitor
from poller.daemon.planner import Planner
from poller.errors import StorageUnusable
from poller.ingest.audit import Auditor, Checked
from poller.ingest.fetch import Outcome
from poller.ingest.reading import Read
from poller.ingest.runtime import Runtime
from poller.ingest.stream_state import StreamState
from poller.ledger import State, faxes, fold, jobs
from poller.problems import problems
from poller.simulator import Simulator, Switches
from poller.simulator.state import Fax
from poller.status import Surroundings, status
from poller.store import Condition
from poller.stream import Direction
from poller.window import Interval, Slice, SliceKind
from tests.conftest import Event, QuickClock
from tests.integration.at_work import (
    calls,
    fetch,
    in_background,
    listed,
    mount,
    parts,
    poll,
    row,
    said,
    unmount,
    until,
)


async def stored(runtime: Runtime, simulator: Simulator, user: str = "user-a") -> tuple[Fax, Path]:
    """A fax that is on the disk, and its image."""
    fax, _ = await listed(runtime, simulator, user)
    assert await fetch(runtime, fax) is Outcome.STORED
    file = (await row(runtime, fax)).file
    assert file is not None
    return fax, runtime.config.storage.directory / file


def spoil(image: Path) -> None:
    data = image.read_bytes()
    image.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])


def cut(image: Path) -> None:
    image.write_bytes(image.read_bytes()[:50])


def auditor(runtime: Runtime, **how: Any) -> Auditor:
    return Auditor(runtime.services.ledger, runtime.services.storage, runtime.services.clock, **how)


async def audited(runtime: Runtime, *, thorough: bool = True, **how: int) -> list[Checked]:
    return [one async for page in auditor(runtime, **how).pages(thorough=thorough) for one in page]


async def shown(runtime: Runtime) -> dict[str, Any]:
    seen = Surroundings({"usable": True}, evidence=runtime.services.evidence)
    return await status(runtime.services.ledger, runtime.services.clock.now(), seen)


# -- the audit -----------------------------------------------------------------------------------


async def test_audit_goes_through_all_faxes_page_by_page_newest_first(
    runtime: Runtime, simulator: Simulator
) -> None:
    rows = [await stored(runtime, simulator, user) for user in ("user-a", "user-b") * 4]
    rows[3][1].unlink()
    rows[3][1].with_suffix(".json").unlink()
    spoil(rows[5][1])

    pages = [page async for page in auditor(runtime, page=3, threads=2).pages(thorough=True)]

    assert [len(page) for page in pages] == [3, 3, 2]
    found = {one.row.fax_id: one.finding.condition for page in pages for one in page}
    assert list(found) == [fax.fax_id for fax, _ in reversed(rows)]
    assert found.pop(rows[3][0].fax_id) is Condition.TAKEN
    assert found.pop(rows[5][0].fax_id) is Condition.DAMAGED
    assert set(found.values()) == {Condition.OK}
    assert [fax.fax_id for fax in await runtime.services.ledger.read(faxes.with_damage, 10)] == [
        rows[5][0].fax_id
    ]


async def test_a_fax_that_is_being_taken_away_just_now_is_not_called_damaged(
    runtime: Runtime, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, image = await stored(runtime, simulator)
    image.unlink()
    real = runtime.services.clock.sleep

    async def meanwhile(seconds: float) -> None:
        image.with_suffix(".json").unlink()  # the consumer takes the sidecar last
        await real(seconds)

    monkeypatch.setattr(runtime.services.clock, "sleep", meanwhile)
    (one,) = await audited(runtime)
    assert one.finding.condition is Condition.TAKEN
    assert await runtime.services.ledger.read(faxes.with_damage, 1) == []


async def test_damage_that_was_mended_by_hand_is_taken_back_by_a_thorough_look_alone(
    runtime: Runtime, simulator: Simulator
) -> None:
    _, image = await stored(runtime, simulator)
    good = image.read_bytes()
    spoil(image)
    assert [one.is_damaged for one in await audited(runtime, thorough=False)] == [False]
    assert [one.is_damaged for one in await audited(runtime)] == [True]
    image.write_bytes(good)
    await audited(runtime, thorough=False)
    assert len(await runtime.services.ledger.read(faxes.with_damage, 1)) == 1
    await audited(runtime)
    assert await runtime.services.ledger.read(faxes.with_damage, 1) == []


async def test_nothing_is_called_taken_when_the_disk_goes_away_in_the_middle(
    runtime: Runtime, simulator: Simulator
) -> None:
    for _ in range(4):
        await stored(runtime, simulator)
    pages = auditor(runtime, page=2).pages(thorough=True)
    assert {one.finding.condition for one in await anext(pages)} == {Condition.OK}
    unmount(runtime)
    with pytest.raises(StorageUnusable, match="is its disk mounted"):
        await anext(pages)
    mount(runtime)


async def test_only_files_that_belong_to_no_fax_are_strangers(
    runtime: Runtime, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poller.ingest.audit._AT_ONCE", 2)
    _, image = await stored(runtime, simulator)
    await listed(runtime, simulator)  # pending: nothing of it is on the disk
    root = runtime.config.storage.directory
    strangers = [root / "notes.txt", root / "other/deep/x.pdf", image.with_suffix(".tif")]
    strangers += [image.with_name(f"{number}.json") for number in range(5)]
    for path in [*strangers, root / ".hidden", image.with_name(".damaged-x.pdf")]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    (root / "loop").symlink_to(root)

    found = [file async for file in auditor(runtime).strangers()]

    expected = [str(path.relative_to(root)) for path in strangers]
    assert sorted(found) == sorted([*expected, "loop"])
    assert all(path.exists() for path in strangers)


# -- repair --------------------------------------------------------------------------------------


async def test_repair_takes_what_efax_sends_now_and_renames_nothing(
    runtime: Runtime, simulator: Simulator
) -> None:
    simulator.switches = Switches(pdf_bytes="differ")
    fax, image = await stored(runtime, simulator)
    before = (await row(runtime, fax)).sha256
    spoil(image)
    await audited(runtime)
    await runtime.services.ledger.write(
        jobs.fetch_again, [(await row(runtime, fax)).id], runtime.services.clock.now()
    )
    await poll(runtime)  # lists it again, as known

    account, _ = parts(runtime)
    await account.workers.run_until_idle()

    after = await row(runtime, fax)
    assert (after.state, after.damage, after.refetch) == (State.STORED, None, False)
    assert after.sha256 != before
    assert str(image).endswith(str(after.file))
    assert [one.finding.condition for one in await audited(runtime)] == [Condition.OK]
    assert len(list(image.parent.glob(".damaged-*"))) == 2  # the sidecar described the old image
    assert calls(simulator, "image") == 2


async def test_a_missing_sidecar_is_written_again_without_asking_efax(
    runtime: Runtime, simulator: Simulator
) -> None:
    fax, image = await stored(runtime, simulator)
    sidecar = image.with_suffix(".json")
    content = sidecar.read_text()
    sidecar.unlink()
    await audited(runtime)
    await runtime.services.ledger.write(
        jobs.fetch_again, [(await row(runtime, fax)).id], runtime.services.clock.now()
    )
    account, _ = parts(runtime)
    await account.workers.run_until_idle()

    assert calls(simulator, "image") == 1
    assert [one.finding.condition for one in await audited(runtime)] == [Condition.OK]
    assert sidecar.read_text() == content


# -- the running service's checks -----------------------------------------------------------------


@pytest.fixture
async def damaged(runtime: Runtime, simulator: Simulator) -> dict[str, str]:
    """Three faxes: one is well, one was cut, one has a changed byte."""
    (well, _), (short, cut_image), (changed, changed_image) = [
        await stored(runtime, simulator) for _ in range(3)
    ]
    cut(cut_image)
    spoil(changed_image)
    return {"well": well.fax_id, "cut": short.fax_id, "changed": changed.fax_id}


def told(events: list[Event]) -> list[str]:
    return [event.fields["fax_id"] for event in events if event.action == "fax-damaged"]


async def rounds_done(runtime: Runtime) -> None:
    async with asyncio.timeout(90):
        await BackgroundChecks(runtime)._check_files()


async def test_damage_is_reported_once_per_start_and_nothing_is_fetched(
    runtime: Runtime, simulator: Simulator, events: list[Event], damaged: dict[str, str]
) -> None:
    asked = calls(simulator, "image")
    await rounds_done(runtime)
    assert told(events) == [damaged["cut"], damaged["changed"]]
    assert calls(simulator, "image") == asked
    events.clear()
    await rounds_done(runtime)  # known damage is reported once more: at least the newest
    assert told(events) == [damaged["cut"]]


async def test_the_check_of_the_files_waits_for_the_storage(
    runtime: Runtime, events: list[Event], damaged: dict[str, str]
) -> None:
    unmount(runtime)
    async with in_background(BackgroundChecks(runtime)._check_files()) as (task,):
        await asyncio.sleep(0.05)
        assert not task.done()
        assert told(events) == []
        mount(runtime)
        await until(task.done)
    assert told(events) == [damaged["cut"], damaged["changed"]]


async def test_the_thorough_check_rests_so_that_the_disk_is_free_most_of_the_time(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    for _ in range(3):
        await stored(runtime, simulator)
    rounds = BackgroundChecks(runtime)
    object.__setattr__(rounds._auditor, "page", 1)
    clock.slept.clear()
    async with asyncio.timeout(90):
        await rounds._check_files()
    assert len([pause for pause in clock.slept if pause >= 1.0]) == 3


async def test_damage_is_in_the_status_the_problems_and_the_metrics(
    runtime: Runtime, damaged: dict[str, str]
) -> None:
    await rounds_done(runtime)
    found = await shown(runtime)
    assert {one["fax_id"] for one in found["damaged_faxes"]} == {damaged["cut"], damaged["changed"]}
    (first, _) = found["damaged_faxes"]
    assert (first["account"], first["user"]) == ("main", "user-a")
    assert first["path"].endswith(".pdf")
    assert [one["damaged_files"] for one in found["users"]] == [2, 0]
    assert problems(found, []) == [
        "2 faxes are damaged on the disk (main/user-a): run `poller verify --repair`. "
        "See `poller help fax-damaged`."
    ]
    await Monitor(runtime, Planner(runtime))._gauges()
    text = (await runtime.services.metrics.render()).decode()
    assert 'poller_fax_damaged{account="main",user="user-a"} 2.0' in text
    assert 'poller_fax_damaged{account="main",user="user-b"} 0.0' in text


async def test_an_edit_of_gaps_reaches_the_running_service(
    runtime: Runtime, simulator: Simulator, events: list[Event]
) -> None:
    simulator.switches = Switches(oldest_window_s=2 * 86_400.0)
    _, state = parts(runtime)
    await poll(runtime)
    assert said(events, "gap-opened") == ["gap-opened"]
    failed = list(state.progress.failed_slices)
    asked = calls(simulator, "list", "user-a")
    async with in_background(BackgroundChecks(runtime)._watch_edits()):
        for one in failed:
            await runtime.services.ledger.write(fold.dismiss_gap, state.id, one.interval, "old")
        await until(lambda: all(one.dismissed for one in state.progress.failed_slices))
        await poll(runtime)
        assert said(events, "gap-closed") == ["gap-closed"]
        settled = state.progress.settled_until
        assert state.progress.watermark is not None
        assert settled is not None
        assert state.progress.watermark < failed[-1].interval.end < settled
        assert settled == state.progress.coverage.newest_end
        shown = (await runtime.services.metrics.render()).decode()
        name = 'poller_settled_timestamp_seconds{account="main",user="user-a"} '
        (value,) = (line for line in shown.splitlines() if line.startswith(name))
        assert float(value.removeprefix(name)) == settled.timestamp()
        assert calls(simulator, "list", "user-a") - asked <= 3  # newest and sweeps, no gap
        simulator.switches = Switches()
        await runtime.services.ledger.write(fold.make_gap_due, state.id, failed[0].interval)
        await until(lambda: not all(one.dismissed for one in state.progress.failed_slices))
        await poll(runtime)
        assert state.progress.gaps == ()


async def test_a_gap_dismissed_while_it_was_asked_for_stays_dismissed(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator.switches = Switches(oldest_window_s=2 * 86_400.0)
    account, state = parts(runtime)
    await poll(runtime)
    clock.advance(timedelta(hours=7))
    real = account.lanes[Direction.RECEIVED].poller._lister._reader.read

    async def dismissed_meanwhile(asked: StreamState, piece: Slice, bounds: Interval) -> Read:
        if piece.kind is SliceKind.GAP:
            for one in list(state.progress.failed_slices):
                await runtime.services.ledger.write(fold.dismiss_gap, state.id, one.interval, "old")
            await runtime.read_edits()
        return await real(asked, piece, bounds)

    with monkeypatch.context() as patch:
        patch.setattr(
            account.lanes[Direction.RECEIVED].poller._lister._reader, "read", dismissed_meanwhile
        )
        await poll(runtime)
    assert state.progress.failed_gaps == ()
    assert sum(one.dismissed for one in state.progress.failed_slices) > 0
    clock.advance(timedelta(hours=7))
    asked = calls(simulator, "list", "user-a")
    await poll(runtime)
    assert calls(simulator, "list", "user-a") - asked <= 3  # newest and sweeps, no gap
    await runtime.read_edits()
    assert state.progress.failed_gaps == ()


# -- quarantine and its evidence ---------------------------------------------------------------------


@pytest.fixture
async def quarantined(runtime: Runtime, simulator: Simulator, clock: QuickClock) -> Fax:
    fax, _ = await listed(runtime, simulator)
    fax.trouble = "null-image"
    assert await fetch(runtime, fax) is Outcome.FAILED
    clock.advance(timedelta(days=8))
    assert await fetch(runtime, fax) is Outcome.QUARANTINED
    return fax


async def test_status_says_where_the_evidence_of_a_quarantined_fax_lies(
    runtime: Runtime, quarantined: Fax
) -> None:
    (one,) = (await shown(runtime))["quarantined_faxes"]
    folder = Path(one["evidence"])
    assert one["fax_id"] == quarantined.fax_id
    assert folder.is_relative_to(runtime.config.state_directory / "evidence")
    assert any(quarantined.fax_id in file.read_text() for file in folder.glob("*.json"))


async def test_status_names_no_evidence_where_none_is_kept(
    runtime: Runtime, quarantined: Fax
) -> None:
    (one,) = (await shown(runtime))["quarantined_faxes"]
    folder = Path(one["evidence"])
    for file in folder.iterdir():
        file.unlink()
    (one,) = (await shown(runtime))["quarantined_faxes"]
    assert one["evidence"] is None
