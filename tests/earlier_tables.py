"""Turn today's ledger back into the tables of an earlier version, to test the migrations."""

import sqlite3
from contextlib import closing
from pathlib import Path

from alembic import command
from sqlalchemy import create_engine

from poller.ledger import schema

TABLES = ("meta", "accounts", "users", "coverage", "failed_slices", "faxes", "attempts")
_SINCE = {"backfills": "0003", "backfill_failures": "0003"}


def put_back(path: Path, revision: str) -> None:
    """Turn the closed ledger at `path` into one of `revision`, with the rows that it can hold."""
    older = path.with_name(f"{path.name}.older")
    make_empty(older, revision)
    with closing(sqlite3.connect(older, isolation_level=None)) as connection:
        connection.execute("ATTACH ? AS today", (str(path),))
        tables = (*TABLES, *(table for table, since in _SINCE.items() if since <= revision))
        for table in tables:
            _copy(connection, table)
        connection.execute("DETACH today")
    older.replace(path)


def make_empty(path: Path, revision: str) -> None:
    """Make a ledger by the migrations up to this one."""
    path.unlink(missing_ok=True)
    engine = create_engine(f"sqlite:///{path}")
    try:
        with engine.begin() as connection:
            config = schema._config()
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
    finally:
        engine.dispose()


def _copy(connection: sqlite3.Connection, table: str) -> None:
    columns = [name for _, name, *_ in connection.execute(f"PRAGMA main.table_info({table})")]
    of = _OF_TODAY | (_OF_JOBS if table == "faxes" else {})
    of_today = ", ".join(of.get(name, f't."{name}"') for name in columns)
    connection.execute(
        f"INSERT INTO main.{table} ({', '.join(map(repr, columns))}) "
        f"SELECT {of_today} FROM today.{_SOURCES.get(table, table)} t {_JOBS * (table == 'faxes')}"
    )


_SOURCES = {"users": "streams"}
_JOBS = "LEFT JOIN today.jobs j ON j.subject = t.id AND j.kind = 'fetch'"
_OF_TODAY = {"user": "t.stream", "force": "t.refetch", "harm": "t.damage"}
_OF_JOBS = {
    "next_attempt_at": "j.due",
    "failures": "coalesce(j.failures, 0)",
    "first_failed_at": "j.first_failed_at",
    "paused_s_at_first_failure": "coalesce(j.paused_s_at_first_failure, 0)",
    "last_error": "j.last_error",
}
