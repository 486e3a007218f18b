"""Opening a ledger: what it creates, refuses and leaves unchanged."""

import asyncio
import contextlib
import gc
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from poller.errors import CannotStart, LedgerUnavailable
from poller.ledger import Ledger, fold, meta, schema, streams
from poller.ledger.sqlite import engine, file
from poller.ledger.tables import REVISION, metadata
from poller.progress import NotPolled
from tests.earlier_tables import make_empty
from tests.integration.at_work import WITHIN_S

NOW = datetime(2024, 5, 21, 4, 27, 56, 123456, tzinfo=UTC)
ONE_USER = [("app", "u1", "main", "front-desk")]


def url(path: Path) -> str:
    return f"sqlite:///{path}"


async def make(path: Path) -> None:
    async with await Ledger.open(url(path)) as ledger:
        await ledger.write(streams.sync, ONE_USER, NOW)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "poller.db"


@pytest.fixture
def made(path: Path) -> Path:
    asyncio.run(make(path))
    return path


def assert_no_thread_is_left() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("ledger"):
            thread.join(timeout=WITHIN_S)
            assert not thread.is_alive()


@contextlib.contextmanager
def locked(path: Path, how: str) -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute(f"BEGIN {how}")
        yield
        other.execute("ROLLBACK")


async def test_a_new_ledger_is_made_once_with_its_directory(path: Path) -> None:
    async with await Ledger.open(url(path)) as ledger:
        assert ledger.created
        assert await ledger.read(streams.all_streams) == []
    async with await Ledger.open(url(path)) as ledger:
        assert not ledger.created


async def test_file_journal_and_directory_are_private(path: Path) -> None:
    async with await Ledger.open(url(path)):
        modes = {entry.name: entry.stat().st_mode & 0o777 for entry in path.parent.iterdir()}
    assert modes == {"poller.db": 0o600, "poller.db-journal": 0o600}
    assert path.parent.stat().st_mode & 0o777 == 0o700


async def test_a_ledger_that_others_may_read_is_made_private(made: Path) -> None:
    made.chmod(0o644)
    async with await Ledger.open(url(made)):
        assert made.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["with space", "per%cent", "quest?ion#hash", "ümlaut"])
async def test_a_path_may_hold_any_character(tmp_path: Path, name: str) -> None:
    await make(tmp_path / name / "poller.db")
    assert (tmp_path / name / "poller.db").stat().st_size > 0


async def test_each_connection_is_set_so_that_no_commit_is_lost(path: Path) -> None:
    async with await Ledger.open(url(path)) as ledger:
        wanted = ["journal_mode", "synchronous", "foreign_keys", "busy_timeout"]

        def settings(connection):  # type: ignore[no-untyped-def]
            return [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in wanted]

        assert await ledger.write(settings) == ["truncate", 3, 1, 5000]
        assert await ledger._read(settings) == ["truncate", 3, 1, 5000]


async def test_a_reader_keeps_little_of_a_ledger_that_grows_for_years(path: Path) -> None:
    async with await Ledger.open(url(path)) as ledger:

        def kept_kib(connection):  # type: ignore[no-untyped-def]
            return -connection.exec_driver_sql("PRAGMA cache_size").scalar()

        assert await ledger._read(kept_kib) == 512


async def test_a_setting_that_does_not_hold_refuses_the_start(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(engine._PRAGMAS, "journal_mode", "nonsense")
    with pytest.raises(CannotStart, match="journal_mode is delete, not nonsense"):
        await Ledger.open(url(path))
    assert_no_thread_is_left()
    gc.collect()  # a connection left open would warn


async def test_readers_cannot_write(path: Path) -> None:
    async with await Ledger.open(url(path)) as ledger:
        with pytest.raises(LedgerUnavailable, match="cannot be written"):
            await ledger._read(lambda connection: connection.exec_driver_sql("DELETE FROM streams"))


@pytest.mark.parametrize(
    "address",
    [
        pytest.param("mysql://host/db", id="another database"),
        pytest.param("sqlite://", id="no path"),
        pytest.param("sqlite:///", id="empty path"),
        pytest.param("sqlite:///:memory:", id="memory"),
    ],
)
async def test_an_address_that_names_no_file_is_refused(address: str) -> None:
    with pytest.raises(CannotStart, match=r"state\.url"):
        await Ledger.open(address)


# -- refused, and left as it was -------------------------------------------------------------


def scribble(path: Path, offset: int, what: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(what)


def foreign(path: Path) -> None:
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE songs (name TEXT)")


def newer(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as other, other:
        other.execute("UPDATE alembic_version SET version_num = '9999'")


def without_version(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as other, other:
        other.execute("DELETE FROM alembic_version")


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def page_lost(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as other:
        (page,) = other.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'ix_attempts_fax'"
        ).fetchone()
    scribble(path, 4096 * (page - 1), b"\xff" * 4096)


BAD = [
    pytest.param(lambda path: path.write_bytes(b"no database " * 1000), "damaged", id="text"),
    pytest.param(lambda path: path.write_bytes(b"x"), "damaged", id="one byte"),
    pytest.param(lambda path: scribble(path, 0, b"\0" * 16), "damaged", id="header lost"),
    pytest.param(truncated, "damaged.*poller rebuild", id="truncated"),
    pytest.param(page_lost, "damaged.*poller rebuild", id="one page lost"),
    pytest.param(newer, "newer poller .revision 9999.*poller rebuild", id="newer"),
    pytest.param(without_version, "newer poller", id="version lost"),
    pytest.param(foreign, "another program", id="foreign"),
]


@pytest.mark.parametrize(("spoil", "message"), BAD)
async def test_a_bad_ledger_is_refused_and_left_unchanged(path: Path, spoil, message) -> None:  # type: ignore[no-untyped-def]
    await make(path)
    spoil(path)
    before = path.read_bytes()
    with pytest.raises(CannotStart, match=message) as refused:
        await Ledger.open(url(path))
    assert str(path) in str(refused.value)
    assert path.read_bytes() == before
    assert_no_thread_is_left()


@pytest.mark.parametrize("readonly", [False, True])
async def test_a_directory_in_its_place_is_refused(path: Path, readonly: bool) -> None:
    path.mkdir(parents=True)
    with pytest.raises(CannotStart, match="not a file"):
        await Ledger.open(url(path), readonly=readonly)


async def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotStart, match="Not a directory"):
        await Ledger.open(url(tmp_path / "file" / "poller.db"))
    with pytest.raises(CannotStart, match="cannot be created"):
        await Ledger.open("sqlite:////proc/none/poller.db")


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Root may do everything; become nobody for a while."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_ledger_that_may_not_be_read_is_refused() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "poller.db"
        asyncio.run(make(path))
        path.chmod(0)
        path.parent.chmod(0o755)
        with unprivileged(), pytest.raises(CannotStart, match="cannot be read: permission denied"):
            file.look(path, thorough=True)
        path.parent.chmod(0o600)
        with (
            unprivileged(),
            pytest.raises(CannotStart, match="cannot be opened: Permission denied"),
        ):
            file.look(path, thorough=True)
        path.parent.chmod(0o700)


async def test_a_missing_ledger_is_not_made_unless_asked(path: Path) -> None:
    with pytest.raises(CannotStart, match="there is no ledger"):
        await Ledger.open(url(path), create=False)
    with pytest.raises(CannotStart, match="there is no ledger"):
        await Ledger.open(url(path), readonly=True)
    assert not path.parent.exists()


async def test_a_locked_ledger_refuses_the_start_after_the_timeout(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make(path)
    monkeypatch.setattr(engine, "BUSY_TIMEOUT_S", 0.01)
    with locked(path, "EXCLUSIVE"), pytest.raises(CannotStart, match="locked"):
        await Ledger.open(url(path))
    with locked(path, "IMMEDIATE"), pytest.raises(CannotStart, match="locked"):
        await Ledger.open(url(path))
    await make(path)


# -- read only -----------------------------------------------------------------------------------


async def test_a_reader_sees_what_a_writer_commits_and_changes_nothing(path: Path) -> None:
    async with await Ledger.open(url(path)) as writer:
        await writer.write(streams.sync, ONE_USER, NOW)
        async with await Ledger.open(url(path), readonly=True) as reader:
            with locked(path, "IMMEDIATE"):
                (user,) = await reader.read(streams.all_streams)
            await writer.write(fold.record, user.id, NotPolled(NOW, "no answer"))
            assert (await reader.read(streams.one, user.id)).last_poll_at == NOW
            with pytest.raises(LedgerUnavailable, match="for reading only"):
                await reader.check_writable()
            assert (reader.waiting_since, reader.commits) == (None, 0)
            assert not reader.created


async def test_a_reader_does_not_open_a_newer_ledger(made: Path) -> None:
    newer(made)
    with pytest.raises(CannotStart, match="newer"):
        await Ledger.open(url(made), readonly=True)


async def test_a_reader_does_not_migrate_an_older_ledger(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "REVISION", "one that is to come")
    with pytest.raises(CannotStart, match="older poller"):
        await Ledger.open(url(made), readonly=True)


# -- migrations ----------------------------------------------------------------------------------


def test_the_newest_migration_is_the_one_that_the_program_expects() -> None:
    assert ScriptDirectory.from_config(schema._config()).get_heads() == [REVISION]


@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index")
@pytest.mark.filterwarnings("ignore:autogenerate skipping metadata-specified expression-based")
def test_the_migrations_make_exactly_the_tables(tmp_path: Path) -> None:
    migrated_at = tmp_path / "migrated.db"
    make_empty(migrated_at, "head")
    database = create_engine(f"sqlite:///{migrated_at}")
    try:
        with database.connect() as connection:
            options = {"compare_type": False, "include_object": _can_be_read_back}
            context = MigrationContext.configure(connection, opts=options)
            assert compare_metadata(context, metadata) == []
            names = (
                "SELECT CASE WHEN name = 'ix_faxes_folded_path' THEN sql ELSE name END"
                " FROM sqlite_master WHERE name NOT LIKE 'sqlite%' ORDER BY name"
            )
            migrated = connection.exec_driver_sql(names).scalars().all()
    finally:
        database.dispose()
    direct = create_engine("sqlite://")
    try:
        metadata.create_all(direct)
        with direct.connect() as connection:
            created = connection.exec_driver_sql(names).scalars().all()
    finally:
        direct.dispose()
    assert [name for name in migrated if name != "alembic_version"] == created


def _can_be_read_back(_: Any, name: str | None, *__: Any) -> bool:
    """SQLAlchemy reads no index of an expression from SQLite: compare that one by its text."""
    return name != "ix_faxes_folded_path"


KILLED_WHILE_MIGRATING = """
import asyncio, os, signal, sys
from sqlalchemy import event
from sqlalchemy.engine import Engine
from poller.ledger import Ledger

left = int(sys.argv[2])

@event.listens_for(Engine, "connect")
def spill(connection, record):
    cursor = connection.cursor()
    cursor.execute("PRAGMA cache_size=1")   # what is not committed reaches the file
    cursor.execute("PRAGMA cache_spill=1")
    cursor.close()

@event.listens_for(Engine, "after_cursor_execute")
def count(connection, cursor, statement, *rest):
    global left
    if statement.lstrip().startswith(("CREATE", "INSERT", "UPDATE")):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(Ledger.open(sys.argv[1]))
"""


@pytest.mark.parametrize("statements", [1, 4, 8, 11, 12])
def test_a_migration_that_was_killed_is_made_again(path: Path, statements: int) -> None:
    child = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_MIGRATING, url(path), str(statements)],
        capture_output=True,
        check=False,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()

    async def look() -> bool:
        async with await Ledger.open(url(path)) as ledger:
            await ledger.write(streams.sync, ONE_USER, NOW)
            return ledger.created

    assert asyncio.run(look())


async def test_an_empty_file_becomes_a_ledger(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"")
    async with await Ledger.open(url(path)) as ledger:
        assert ledger.created


async def test_two_that_open_at_once_make_one_ledger(path: Path) -> None:
    one, two = await asyncio.gather(Ledger.open(url(path)), Ledger.open(url(path)))
    try:
        assert [one.created, two.created].count(True) == 1
    finally:
        await one.close()
        await two.close()


async def test_a_journal_that_a_crash_left_is_replayed(made: Path, tmp_path: Path) -> None:
    """The copy is made during a commit: new pages in the file, old ones in the journal."""
    crashed = tmp_path / "crashed.db"
    with contextlib.closing(sqlite3.connect(made, isolation_level=None)) as other:
        other.execute("PRAGMA cache_size=1")
        other.execute("BEGIN IMMEDIATE")
        other.execute("UPDATE streams SET name = 'not committed'")
        for number in range(200):
            other.execute("INSERT INTO meta VALUES (?, ?)", (str(number), "x" * 1000))
        shutil.copy(made, crashed)
        shutil.copy(f"{made}-journal", f"{crashed}-journal")
    for readonly in (True, False):
        async with await Ledger.open(url(crashed), readonly=readonly) as ledger:
            assert [row.user for row in await ledger.read(streams.all_streams)] == ["front-desk"]


# -- closing -------------------------------------------------------------------------------------


async def test_closing_ends_every_thread_and_may_be_repeated(path: Path) -> None:
    ledger = await Ledger.open(url(path))
    await asyncio.gather(*(ledger.read(streams.all_streams) for _ in range(10)))
    await ledger.close()
    await ledger.close()
    assert_no_thread_is_left()
    gc.collect()  # a connection left open would warn, and warnings are errors


async def test_closing_finishes_the_writes_that_were_asked_for(path: Path) -> None:
    ledger = await Ledger.open(url(path))
    asked = [
        asyncio.create_task(ledger.write(meta.keep, meta.STORAGE_ID, str(number)))
        for number in range(5)
    ]
    await asyncio.sleep(0)
    await ledger.close()
    await asyncio.gather(*asked)
    async with await Ledger.open(url(path)) as again:
        assert await again.read(meta.value, meta.STORAGE_ID) == "4"


async def test_a_closed_ledger_takes_no_writes(path: Path) -> None:
    ledger = await Ledger.open(url(path))
    await ledger.close()
    with pytest.raises(LedgerUnavailable, match="closed"):
        await ledger.check_writable()
