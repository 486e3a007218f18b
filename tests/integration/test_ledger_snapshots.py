"""Copies of the ledger: checked, durable, made while it works, and never at its cost."""

import asyncio
import contextlib
import errno
import os
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poller import state_directory
from poller.daemon.ledger_check import LedgerCheck
from poller.errors import CannotStart, LedgerUnavailable
from poller.ledger import Ledger, NewFax, backend_at, faxes, streams
from poller.ledger.sqlite import snapshots
from tests.conftest import Event, QuickClock
from tests.integration.at_work import HELD_S

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
ONE_USER = [("app", "u1", "main", "front-desk")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "poller.db"


@pytest.fixture
async def ledger(path: Path) -> AsyncIterator[Ledger]:
    async with await Ledger.open(f"sqlite:///{path}") as opened:
        await opened.write(streams.sync, ONE_USER, NOW)
        yield opened


async def grow(ledger: Ledger, count: int, begin: int = 0, size: int = 500) -> None:
    (user,) = await ledger.read(streams.all_streams)
    rows = [
        NewFax(f"fax-{number}", f"main/{number}", {"pages": 1, "filler": "x" * size}, NOW)
        for number in range(begin, begin + count)
    ]
    await ledger.write(
        faxes.record_page, user.id, faxes.ListedPage(rows, window=None, found_by="newest", now=NOW)
    )


def pauses(monkeypatch: pytest.MonkeyPatch, pause: Callable[[], object]) -> None:
    """Set what a copy does when it lets others in between two of its steps."""
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: pause())
    monkeypatch.setattr(snapshots, "time", clock)


def faxes_in(copy: Path) -> int:
    with contextlib.closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        (count,) = connection.execute("SELECT count(*) FROM faxes").fetchone()
    return int(count)


def others(path: Path) -> set[str]:
    """Return what lies beside the ledger and its journal."""
    return {one.name for one in path.parent.iterdir()} - {path.name, f"{path.name}-journal"}


def break_index(path: Path) -> None:
    """Make a row that an index does not have; a quick check does not see that."""
    index = "name = 'ix_attempts_fax'"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA writable_schema=ON")
        row = other.execute(f"SELECT * FROM sqlite_master WHERE {index}").fetchone()
        other.execute(f"DELETE FROM sqlite_master WHERE {index}")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("INSERT INTO attempts (fax, at, outcome) VALUES (1, 1, 'failed')")
        other.execute("PRAGMA writable_schema=ON")
        other.execute("INSERT INTO sqlite_master VALUES (?, ?, ?, ?, ?)", row)


# -- the daily snapshot ----------------------------------------------------------------------------


async def test_a_snapshot_is_private_whole_and_two_are_kept(ledger: Ledger, path: Path) -> None:
    for day in range(4):
        await grow(ledger, 1, begin=day)
        health = await ledger.look_after(NOW + timedelta(days=day))
        assert health.problem is None
        assert health.snapshot_at == NOW + timedelta(days=day)
    newest, older = snapshots.names(path)
    assert others(path) == {newest.name, older.name}
    assert (faxes_in(newest), faxes_in(older)) == (4, 3)
    assert newest.stat().st_mode & 0o777 == 0o600


async def test_snapshots_of_a_ledger_elsewhere_are_in_the_state_directory_and_come_back_from_there(
    tmp_path: Path,
) -> None:
    path, directory = tmp_path / "disk" / "ledger.db", tmp_path / "state"
    directory.mkdir()
    url = f"sqlite:///{path}"
    async with await Ledger.open(backend_at(url, directory)) as ledger:
        await ledger.write(streams.sync, ONE_USER, NOW)
        await ledger.look_after(NOW)
        assert (await ledger.health()).snapshot_at == NOW
    (snapshot,) = directory.iterdir()
    assert snapshot.name == "ledger.db.snapshot-1"
    assert others(path) == set()
    path.unlink()
    new = backend_at(url, directory).replace()
    assert new.base.source == str(snapshot)
    new.abandon()
    async with await Ledger.open(backend_at(url, directory)) as ledger:
        assert ledger.restored_from == NOW
        assert len(await ledger.read(streams.all_streams)) == 1


async def test_a_look_within_the_day_checks_and_keeps_the_snapshot(
    ledger: Ledger, path: Path
) -> None:
    await ledger.look_after(NOW)
    await grow(ledger, 1)
    later = NOW + timedelta(hours=23)
    health = await ledger.look_after(later)
    assert (health.checked_at, health.snapshot_at) == (later, NOW)
    assert others(path) == {snapshots.names(path)[0].name}
    assert faxes_in(snapshots.names(path)[0]) == 0


async def test_a_snapshot_from_the_future_does_not_keep_the_next_from_being_made(
    ledger: Ledger, path: Path
) -> None:
    await ledger.look_after(NOW + timedelta(days=3650))
    assert await ledger.snapshot_is_due(NOW)
    health = await ledger.look_after(NOW)
    assert health.snapshot_at == NOW


async def test_a_copy_that_a_killed_run_left_is_no_snapshot_and_goes(
    ledger: Ledger, path: Path
) -> None:
    path.with_name("poller.db.snapshot-part").write_bytes(b"half")
    assert snapshots.newest_at(path) is None
    await ledger.look_after(NOW)
    assert others(path) == {"poller.db.snapshot-1"}


async def test_the_order_on_disk_is_sync_rename_sync(
    ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    sync, rename = state_directory.sync, Path.rename

    def synced(what: Path) -> None:
        steps.append(f"sync {what.name}")
        sync(what)

    def renamed(self: Path, target: Path) -> Any:
        steps.append(f"{self.name} -> {target.name}")
        return rename(self, target)

    await ledger.look_after(NOW)
    monkeypatch.setattr(snapshots, "sync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    await ledger.look_after(NOW + timedelta(days=1))
    assert steps == [
        "sync poller.db.snapshot-part",
        "poller.db.snapshot-1 -> poller.db.snapshot-2",
        "poller.db.snapshot-part -> poller.db.snapshot-1",
        "sync state",
    ]


async def test_a_damaged_ledger_is_found_and_does_not_push_a_good_snapshot_out(
    ledger: Ledger, path: Path
) -> None:
    await grow(ledger, 3)
    await ledger.look_after(NOW)
    break_index(path)
    health = await ledger.look_after(NOW + timedelta(days=1))
    assert health.problem is not None
    assert "index" in health.problem
    assert (await ledger.health()).problem == health.problem
    assert others(path) == {"poller.db.snapshot-1"}
    assert faxes_in(path.with_name("poller.db.snapshot-1")) == 3


async def test_a_copy_continues_while_the_writer_works_and_has_its_writes(
    ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commits meet it all the time: it must neither start over forever, nor make them wait for the end."""
    monkeypatch.setattr(snapshots, "_RESTARTS", 0)
    monkeypatch.setattr(os, "truncate", None)  # starting over would call it
    monkeypatch.setattr(snapshots, "_PAGES_AT_ONCE", 100)
    committed = threading.Semaphore(0)
    pauses(monkeypatch, lambda: committed.acquire(timeout=HELD_S))  # each step meets a commit
    for begin in range(0, 1500, 500):
        await grow(ledger, 500, begin, size=12_000)
    commits = ledger.commits
    copying = asyncio.create_task(ledger.look_after(NOW))
    written = 1500
    while not copying.done():
        await grow(ledger, 1, begin=written)
        committed.release()
        written += 1
    assert (await copying).problem is None
    assert ledger.commits - commits > 20
    assert faxes_in(snapshots.names(path)[0]) > 1520


async def test_a_copy_ends_although_another_program_writes_steadily(
    ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step of the copy meets a commit, so SQLite starts over each time.

    The copy is larger than SQLite's cache, so half of an abandoned copy is on the disk.
    """
    monkeypatch.setattr(snapshots, "_PAGES_AT_ONCE", 3000)
    monkeypatch.setattr(snapshots, "_LET_OTHERS_S", 0.02)
    for begin in range(0, 1500, 500):
        await grow(ledger, 500, begin, size=12_000)
    copying = asyncio.create_task(ledger.look_after(NOW))
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        while not copying.done():
            await asyncio.to_thread(lambda: None)
            # a step holds it: try the next time
            with contextlib.suppress(sqlite3.OperationalError):
                other.execute("UPDATE streams SET refusals = refusals + 1")
    assert (await copying).problem is None
    assert faxes_in(snapshots.names(path)[0]) == 1500


async def test_a_copy_of_a_ledger_that_another_program_locks_is_given_up(
    ledger: Ledger, path: Path
) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(LedgerUnavailable, match="locked"):
            await ledger.look_after(NOW)
        other.execute("ROLLBACK")
    assert others(path) == set()
    await ledger.look_after(NOW)


async def test_a_full_disk_gets_no_copy_and_the_ledger_continues(
    ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Any) -> Any:
        return SimpleNamespace(f_bavail=1000, f_frsize=4096)

    monkeypatch.setattr(os, "statvfs", full)
    with pytest.raises(LedgerUnavailable, match="too little space"):
        await ledger.look_after(NOW)
    assert others(path) == set()
    await ledger.check_writable()


async def test_the_end_of_the_service_does_not_wait_for_a_copy(
    ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "_PAGES_AT_ONCE", 1)
    let_go = threading.Event()
    pauses(monkeypatch, lambda: let_go.wait(HELD_S))
    await grow(ledger, 500)
    copying = asyncio.create_task(ledger.look_after(NOW))
    while "poller.db.snapshot-part" not in others(path):
        await asyncio.sleep(0.001)
    copying.cancel()
    while not ledger._backend._stop_copying.is_set():  # type: ignore[attr-defined]
        await asyncio.sleep(0)
    let_go.set()
    with pytest.raises(asyncio.CancelledError):
        await copying
    assert others(path) == set()  # at its end it would have left a snapshot


# -- what the daemon makes of it ---------------------------------------------------------------------


async def test_ledger_check_makes_one_snapshot_a_day_and_the_first_at_once(
    ledger: Ledger, clock: QuickClock, events: list[Event]
) -> None:
    check = LedgerCheck(ledger, clock)
    made_at = []
    for hour in range(50):
        before = len(events)
        await check.look()
        made_at += [hour] * (len(events) - before)
        clock.advance(timedelta(hours=1))
    assert made_at == [0, 24, 48]
    assert {event.action for event in events} == {"snapshot-made"}


async def test_ledger_check_comes_at_every_start_even_when_there_is_a_snapshot_of_today(
    ledger: Ledger, path: Path, clock: QuickClock, events: list[Event]
) -> None:
    await LedgerCheck(ledger, clock).look()
    clock.advance(timedelta(hours=1))
    await LedgerCheck(ledger, clock).look()
    assert (await ledger.health()).checked_at == clock.now()
    assert [event.action for event in events] == ["snapshot-made"]


async def test_ledger_check_says_a_failure_once_and_tries_again_every_hour(
    ledger: Ledger, path: Path, clock: QuickClock, events: list[Event]
) -> None:
    blocked = path.with_name("poller.db.snapshot-part")
    blocked.mkdir()
    check = LedgerCheck(ledger, clock)
    for _ in range(3):
        await check.look()
        clock.advance(timedelta(hours=1))
    assert [event.action for event in events] == ["snapshot-failed"]
    blocked.rmdir()
    await check.look()
    assert [event.action for event in events] == ["snapshot-failed", "snapshot-made"]
    assert events[-1].fields["failures"] == 3


async def test_ledger_check_names_a_hanging_copy_and_continues(
    ledger: Ledger, clock: QuickClock, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poller.ledger.sqlite.sqlite_backend._LOOK_S", 0.02)
    monkeypatch.setattr("poller.ledger.sqlite.sqlite_backend._COPY_ON_WITHIN_S", 0.1)
    check = LedgerCheck(ledger, clock)
    disk = threading.Event()
    with monkeypatch.context() as hanging:
        hanging.setattr("poller.ledger.sqlite.snapshots.sync", lambda _: disk.wait(HELD_S))
        await check.look()
        await check.look()  # nobody starts another beside it
        disk.set()
    stalled = [event.fields for event in events]
    assert [event.action for event in events] == ["stalled", "stalled"]
    assert [one["what"] for one in stalled] == ["ledger copy", "ledger copy"]
    assert "makes no progress" in stalled[0]["reason"]
    assert "still hangs" in stalled[1]["reason"]
    async with asyncio.timeout(90):
        while "snapshot-made" not in {event.action for event in events}:
            clock.advance(timedelta(days=1))
            await check.look()


async def test_ledger_check_says_that_the_ledger_is_damaged_once_and_until_it_is_well(
    ledger: Ledger, path: Path, clock: QuickClock, events: list[Event]
) -> None:
    whole = path.read_bytes()
    break_index(path)
    check = LedgerCheck(ledger, clock)
    for _ in range(2):
        await check.look()
        clock.advance(timedelta(days=1))
    assert [event.action for event in events] == ["ledger-damaged"]
    assert check.trouble is not None
    assert "poller rebuild" in check.trouble
    path.write_bytes(whole)
    await check.look()
    assert check.trouble is None


# -- backup ------------------------------------------------------------------------------------------


async def test_a_backup_is_made_while_the_writer_works(
    ledger: Ledger, path: Path, tmp_path: Path
) -> None:
    await grow(ledger, 5)
    target = tmp_path / "copy.db"
    assert await backend_at(f"sqlite:///{path}").backup(target) == target.stat().st_size
    assert faxes_in(target) == 5
    assert target.stat().st_mode & 0o777 == 0o600
    assert sorted(one.name for one in tmp_path.iterdir()) == ["copy.db", "state"]


async def test_a_backup_overwrites_nothing(ledger: Ledger, path: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy.db"
    target.write_text("mine")
    with pytest.raises(CannotStart, match="exists already"):
        await backend_at(f"sqlite:///{path}").backup(target)
    (tmp_path / "dangling.db").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CannotStart, match="exists already"):
        await backend_at(f"sqlite:///{path}").backup(tmp_path / "dangling.db")
    assert target.read_text() == "mine"


async def test_a_backup_overwrites_nothing_that_appears_while_it_is_made(
    ledger: Ledger, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "copy.db"
    monkeypatch.setattr(snapshots, "sync", lambda _: target.write_text("mine"))
    with pytest.raises(CannotStart, match="exists already"):
        await backend_at(f"sqlite:///{path}").backup(target)
    assert target.read_text() == "mine"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["copy.db", "state"]


async def test_a_backup_that_failed_leaves_nothing(
    ledger: Ledger, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(at: Path) -> None:
        if at.is_dir():
            raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "copies").mkdir()
    monkeypatch.setattr(snapshots, "sync", refuse)
    with pytest.raises(LedgerUnavailable):
        await backend_at(f"sqlite:///{path}").backup(tmp_path / "copies" / "copy.db")
    assert not list((tmp_path / "copies").iterdir())


async def test_a_backup_that_is_interrupted_leaves_nothing(
    ledger: Ledger, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def held(*_: object) -> None:
        begun.set()
        go_on.wait(60)

    (tmp_path / "copies").mkdir()
    monkeypatch.setattr(snapshots, "_copy", held)
    copying = asyncio.create_task(
        backend_at(f"sqlite:///{path}").backup(tmp_path / "copies" / "copy.db")
    )
    await asyncio.to_thread(begun.wait, 60)
    assert list((tmp_path / "copies").iterdir())
    copying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await copying
    assert not list((tmp_path / "copies").iterdir())
    go_on.set()


async def test_a_backup_goes_to_a_file_system_without_links(
    ledger: Ledger, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    await backend_at(f"sqlite:///{path}").backup(tmp_path / "copy.db")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["copy.db", "state"]


async def test_a_backup_of_nothing_or_of_a_damaged_ledger_is_refused(
    ledger: Ledger, path: Path, tmp_path: Path
) -> None:
    target = tmp_path / "copy.db"
    with pytest.raises(CannotStart, match="there is no ledger"):
        await backend_at(f"sqlite:///{tmp_path}/none.db").backup(target)
    with pytest.raises(LedgerUnavailable, match="No such file or directory"):
        await backend_at(f"sqlite:///{path}").backup(tmp_path / "none" / "copy.db")
    break_index(path)
    with pytest.raises(CannotStart, match="is damaged"):
        await backend_at(f"sqlite:///{path}").backup(target)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["state"]


async def test_a_connection_that_threads_may_not_share_is_not_copied_over(
    ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared: list[object] = []
    real = snapshots.look_after

    def look_after(path: Path, stem: Path, now: datetime, terms: snapshots.Terms) -> str | None:
        shared.append(terms.writer)
        return real(path, stem, now, terms)

    monkeypatch.setattr(snapshots, "look_after", look_after)
    await grow(ledger, 10)
    for mode in (3, 1):
        monkeypatch.setattr(sqlite3, "threadsafety", mode)
        await ledger.look_after(NOW + timedelta(days=mode))
    assert [one is None for one in shared] == [False, True]
    assert faxes_in(snapshots.names(path)[0]) == 10
