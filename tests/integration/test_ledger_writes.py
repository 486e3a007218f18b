"""Writing: one transaction for all that wait, and what happens if the database fails."""

import asyncio
import contextlib
import gc
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import Connection, event, text
from sqlalchemy.exc import IntegrityError

from poller.documents import StoredFile
from poller.errors import LedgerUnavailable
from poller.ledger import Ledger, NewFax, StreamRow, faxes, fold, jobs, meta, streams
from poller.ledger.sqlite import engine
from poller.progress import Covered, NotPolled, SliceFailed
from poller.window import Interval
from tests.conftest import in_a_file
from tests.integration.at_work import HELD_S, WITHIN_S

NOW = datetime(2024, 5, 21, 4, 27, 56, tzinfo=UTC)
HOUR = Interval(NOW - timedelta(hours=1), NOW)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "poller.db"


@pytest.fixture
async def ledger(ledger_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Ledger]:
    monkeypatch.setattr(engine, "BUSY_TIMEOUT_S", 0.01)
    async with await Ledger.open(ledger_url) as ledger:
        yield ledger


@pytest.fixture
async def user(ledger: Ledger) -> StreamRow:
    (user,) = await ledger.write(streams.sync, [("app", "u1", "main", "front-desk")], NOW)
    return user


def new_fax(fax_id: str) -> NewFax:
    return NewFax(fax_id, f"main/front-desk/{fax_id}", {"fax_id": fax_id}, NOW)


async def record(ledger: Ledger, user: StreamRow, *fax_ids: str, now: datetime = NOW) -> list[str]:
    rows = [new_fax(fax_id) for fax_id in fax_ids]
    found = await ledger.write(
        faxes.record_page, user.id, faxes.ListedPage(rows, window=HOUR, found_by="newest", now=now)
    )
    return [fax.fax_id for fax in found.discovered]


@contextlib.contextmanager
def locked(path: Path, how: str = "IMMEDIATE") -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute(f"BEGIN {how}")
        yield
        other.execute("ROLLBACK")


def boom(_: Connection) -> None:
    raise ZeroDivisionError("a job of its own")


async def test_writes_that_wait_are_committed_together(ledger: Ledger, user: StreamRow) -> None:
    before = ledger.commits
    found = await asyncio.gather(*(record(ledger, user, f"fax-{number}") for number in range(150)))
    assert found == [[f"fax-{number}"] for number in range(150)]
    assert ledger.commits - before <= 1 + -(-150 // ledger._backend.group_size)
    assert (await ledger.read(streams.one, user.id)).pending == 150


async def test_a_long_queue_is_cut(ledger: Ledger) -> None:
    before = ledger.commits
    most = ledger._backend.group_size
    await asyncio.gather(*(ledger.check_writable() for _ in range(2 * most + 1)))
    assert ledger.commits - before in (3, 4)


async def test_items_of_one_work_are_joined_but_not_past_what_was_asked_between(
    ledger: Ledger,
) -> None:
    assert ledger._writer is not None
    done: list[list[str]] = []

    def work(_: Connection, items: list[str]) -> None:
        done.append(list(items))

    await asyncio.gather(
        ledger._writer.ask_together(work, "a"),
        ledger._writer.ask_together(work, "b"),
        ledger._writer.ask(lambda _: done.append(["between"])),
        ledger._writer.ask_together(work, "c"),
    )
    assert done == [["a", "b"], ["between"], ["c"]]


@in_a_file
async def test_a_read_between_commits_holds_up_no_write_while_all_readers_are_busy(
    ledger: Ledger, user: StreamRow
) -> None:
    let_go = threading.Event()
    busy = [asyncio.create_task(ledger._read(lambda _: let_go.wait(HELD_S))) for _ in range(3)]
    due = asyncio.create_task(ledger.read(jobs.due, user.id, NOW, 1))
    await asyncio.sleep(0.05)
    try:
        async with asyncio.timeout(WITHIN_S):
            await record(ledger, user, "one")
        assert not due.done()
    finally:
        let_go.set()
    await asyncio.gather(due, *busy)


@in_a_file
async def test_a_read_whose_turn_does_not_come_is_still_made(
    ledger: Ledger, user: StreamRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poller.ledger.writer._TURN_WITHIN_S", 0.01)
    assert ledger._writer is not None
    async with ledger._writer._turn:  # while a commit hangs
        assert await ledger.read(jobs.due, user.id, NOW, 1) == []


async def test_a_write_that_fails_takes_back_its_own_changes_only(
    ledger: Ledger, user: StreamRow
) -> None:
    def half(connection: Connection) -> None:
        connection.execute(text("UPDATE streams SET name = 'half done'"))
        boom(connection)

    def broken_rule(connection: Connection) -> None:
        connection.execute(text("INSERT INTO coverage VALUES (:user, 2, 1)"), {"user": user.id})

    outcomes = await asyncio.gather(
        record(ledger, user, "one"),
        ledger.write(half),
        ledger.write(broken_rule),
        record(ledger, user, "two"),
        return_exceptions=True,
    )
    assert [outcomes[0], outcomes[3]] == [["one"], ["two"]]
    assert [type(outcomes[1]), type(outcomes[2])] == [ZeroDivisionError, IntegrityError]
    after = await ledger.read(streams.one, user.id)
    assert (after.user, after.pending) == ("front-desk", 2)


@in_a_file
async def test_a_disk_that_is_full_fails_the_whole_group_and_records_nothing(
    ledger: Ledger, user: StreamRow
) -> None:
    def fill(connection: Connection) -> None:
        (pages,) = connection.exec_driver_sql("PRAGMA page_count").one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages + 4}")
        connection.exec_driver_sql("PRAGMA cache_size=1")
        connection.execute(text("INSERT INTO meta VALUES ('big', :much)"), {"much": "x" * 10**6})

    outcomes = await asyncio.gather(
        record(ledger, user, "one"),
        ledger.write(fill),
        record(ledger, user, "two"),
        return_exceptions=True,
    )
    assert {str(outcome) for outcome in outcomes} == {
        f"the ledger {ledger._backend.where} cannot grow: the disk is full"
    }
    assert all(isinstance(outcome, LedgerUnavailable) for outcome in outcomes)
    assert (await ledger.read(streams.one, user.id)).discovered == 0
    assert await record(ledger, user, "one", "two") == ["one", "two"]
    with_defaults = await ledger.write(
        lambda connection: connection.exec_driver_sql("PRAGMA cache_size").scalar()
    )
    assert with_defaults != 1  # a fresh connection


@in_a_file
@pytest.mark.parametrize("how", ["IMMEDIATE", "EXCLUSIVE"])
async def test_a_lock_of_another_program_is_told_and_got_over(
    ledger: Ledger, user: StreamRow, path: Path, how: str
) -> None:
    with locked(path, how), pytest.raises(LedgerUnavailable, match="locked by another program"):
        await ledger.check_writable()
    assert await record(ledger, user, "one") == ["one"]


@in_a_file
async def test_a_reader_of_another_program_that_lingers_fails_the_commit_only(
    ledger: Ledger, user: StreamRow, path: Path
) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN")
        other.execute("SELECT * FROM streams").fetchall()
        with pytest.raises(LedgerUnavailable, match="locked"):
            await record(ledger, user, "one")
        other.execute("COMMIT")
    assert (await ledger.read(streams.one, user.id)).discovered == 0
    assert await record(ledger, user, "one") == ["one"]


@in_a_file
async def test_reading_while_another_program_commits_says_locked(
    ledger: Ledger, user: StreamRow, path: Path
) -> None:
    with locked(path, "EXCLUSIVE"), pytest.raises(LedgerUnavailable, match="locked"):
        await ledger.read(streams.one, user.id)
    assert (await ledger.read(streams.one, user.id)).id == user.id


@in_a_file
async def test_a_ledger_that_was_moved_away_takes_no_writes_until_it_is_back(
    ledger: Ledger, path: Path
) -> None:
    away = path.with_name("away.db")
    path.rename(away)
    for _ in range(2):
        with pytest.raises(LedgerUnavailable, match=r"cannot be (written|opened)"):
            await ledger.check_writable()
    assert not path.exists()
    away.rename(path)
    await ledger.check_writable()


@in_a_file
async def test_a_disk_with_too_little_room_to_grow_is_not_called_writable(
    ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small write would fit, and the next page of new faxes would not."""
    with monkeypatch.context() as nearly_full:
        space = SimpleNamespace(f_bavail=63, f_frsize=4096)
        nearly_full.setattr("poller.ledger.sqlite.file.os.statvfs", lambda _: space)
        with pytest.raises(LedgerUnavailable, match="cannot grow: the disk is full"):
            await ledger.check_writable()
    await ledger.check_writable()


@in_a_file
async def test_a_disk_that_hangs_holds_one_thread_however_often_room_is_looked_for(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, looks = threading.Event(), []

    def hang(_: Path) -> None:
        looks.append(threading.current_thread())
        disk.wait(HELD_S)

    monkeypatch.setattr("poller.ledger.sqlite.sqlite_backend._LOOK_S", 0.05)
    monkeypatch.setattr("poller.ledger.sqlite.file.require_room", hang)
    for _ in range(3):
        with pytest.raises(LedgerUnavailable, match="has not answered for"):
            await ledger.check_writable()
    assert len(looks) == 1
    assert looks[0] is not threading.main_thread()
    disk.set()
    monkeypatch.setattr("poller.ledger.sqlite.sqlite_backend._LOOK_S", WITHIN_S)
    await ledger.check_writable()


@in_a_file
async def test_an_error_bears_no_statement_and_no_value(
    ledger: Ledger, user: StreamRow, path: Path
) -> None:
    with locked(path), pytest.raises(LedgerUnavailable) as refused:
        await record(ledger, user, "a-patient's-fax")
    assert str(refused.value) == f"the ledger {path} is locked by another program"


async def test_an_error_of_our_own_bears_no_value_either(ledger: Ledger) -> None:
    def twice(connection: Connection) -> None:
        for _ in range(2):
            connection.execute(text("INSERT INTO meta VALUES (:a, '')"), {"a": "patient"})

    with pytest.raises(IntegrityError) as broken:
        await ledger.write(twice)
    assert "patient" not in str(broken.value)


async def test_a_caller_that_is_cancelled_does_not_cancel_the_write(
    ledger: Ledger, user: StreamRow
) -> None:
    task = asyncio.create_task(record(ledger, user, "one"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await ledger.check_writable()
    assert (await ledger.read(streams.one, user.id)).pending == 1


async def test_a_failure_that_nobody_waits_for_is_no_complaint(
    ledger: Ledger, user: StreamRow
) -> None:
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    task = asyncio.create_task(ledger.write(boom))
    await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await ledger.check_writable()
    gc.collect()
    assert complaints == []


async def test_a_read_that_is_cancelled_leaves_nothing_behind(
    ledger: Ledger, user: StreamRow
) -> None:
    for turns in range(20):
        task = asyncio.create_task(ledger.read(streams.one, user.id))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert (await asyncio.gather(*(ledger.read(streams.one, user.id) for _ in range(10))))[
        0
    ].id == user.id
    gc.collect()


async def test_progress_can_be_watched(path: Path) -> None:
    times = iter(range(100))
    url = f"sqlite:///{path}"
    async with await Ledger.open(url, monotonic=lambda: float(next(times))) as ledger:
        opened = next(times)
        assert ledger.waiting_since is None
        task = asyncio.create_task(ledger.write(meta.keep, meta.STORAGE_ID, "one"))
        await asyncio.sleep(0)
        waiting: float | None = ledger.waiting_since
        assert waiting == opened + 1
        await task
        assert ledger.waiting_since is None


async def test_a_writer_that_dies_fails_all_that_wait(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = await Ledger.open(f"sqlite:///{path}")

    async def die(_: object) -> None:
        raise ZeroDivisionError

    assert ledger._writer is not None
    monkeypatch.setattr(ledger._writer, "_transaction", die)
    outcomes = await asyncio.gather(
        *(ledger.check_writable() for _ in range(3)), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes] == [LedgerUnavailable] * 3
    with pytest.raises(LedgerUnavailable, match="closed"):
        await ledger.check_writable()
    with pytest.raises(ZeroDivisionError):
        await ledger.close()


@in_a_file
async def test_a_page_that_brings_nothing_new_writes_no_byte(
    ledger: Ledger, user: StreamRow, path: Path
) -> None:
    await record(ledger, user, "one", "two")
    before = path.read_bytes()  # with SQLite's change counter
    assert await record(ledger, user, "one", "two", now=NOW + timedelta(seconds=30)) == []
    assert path.read_bytes() == before


@in_a_file
async def test_no_query_reads_a_table_from_end_to_end(ledger: Ledger, user: StreamRow) -> None:
    """With five million faxes, a scan would take seconds."""
    asked: list[tuple[str, Any]] = []

    def remember(_: Any, __: Any, statement: str, values: Any, *rest: Any) -> None:
        if statement.startswith(("SELECT", "UPDATE", "DELETE")):
            asked.append((statement, values[0] if isinstance(values, list) else values))

    assert ledger._writer is not None
    engines = [ledger._readers.engine, ledger._writer._database.engine]
    for one in engines:
        event.listen(one, "before_cursor_execute", remember)
    await use_everything(ledger, user)
    for one in engines:
        event.remove(one, "before_cursor_execute", remember)
    assert len(asked) > 40

    def plans(connection: Connection) -> list[str]:
        return [
            f"{step} IN {statement}"
            for statement, values in asked
            for *_, step in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)
        ]

    scans = [
        plan
        for plan in await ledger._read(plans)
        if plan.startswith(("SCAN faxes", "SCAN attempts")) and "ix_jobs_due" not in plan
        if "ix_faxes_stored_at" not in plan
    ]
    assert scans == []


async def use_everything(ledger: Ledger, user: StreamRow) -> None:
    page = await ledger.write(
        faxes.record_page,
        user.id,
        faxes.ListedPage([new_fax("one")], window=HOUR, found_by="newest", now=NOW, covers=HOUR),
    )
    (fax,) = page.discovered
    later = NOW + timedelta(hours=1)
    await ledger.write(
        faxes.record_page,
        user.id,
        faxes.ListedPage([new_fax("one")], window=HOUR, found_by="newest", now=later, covers=HOUR),
    )
    await ledger.read(jobs.streams_with_due, "app", NOW)
    await ledger.read(jobs.due, user.id, NOW, 10)
    await ledger.read(faxes.find, "one")
    await ledger.read(jobs.is_open, fax.id, fax.fence)
    await ledger.progress(user.id)
    await ledger.write(fold.all_progress)
    await ledger.write(
        jobs.attempt_failed,
        fax.id,
        NOW,
        jobs.Failure(
            fence=fax.fence,
            error="no",
            problem=None,
            next_attempt_at=NOW,
            paused_s=0,
            quarantine=True,
        ),
    )
    await ledger.write(jobs.make_due, None, NOW)
    await ledger.write(jobs.make_due, [fax.id], NOW)
    await ledger.write(jobs.postpone, fax.id, fax.fence, NOW)
    await ledger.write(jobs.dismiss, fax.id, now=NOW, reason="x")
    file = StoredFile("a.pdf", "pdf", 1, "0", 1, damaged=False)
    await ledger.write_together(jobs.stored, jobs.Stored(fax.id, NOW, file))
    await ledger.read(faxes.find, "one", "main", "front-desk")
    await ledger.read(faxes.history, fax.id)
    await ledger.write(streams.sync, [], NOW)
    await ledger.write(fold.record, user.id, SliceFailed(HOUR, NOW, "refused"))
    await ledger.write(fold.record, user.id, Covered(HOUR), NotPolled(NOW, "no answer"))
