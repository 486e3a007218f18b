"""A ledger of today put back into the tables of an earlier version, for what migrations do to it."""

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
    _make_empty(older, revision)
    with closing(sqlite3.connect(older, isolation_level=None)) as connection:
        connection.execute("ATTACH ? AS today", (str(path),))
        tables = (*TABLES, *(table for table, since in _SINCE.items() if since <= revision))
        for table in tables:
            _copy(connection, table)
        connection.execute("DETACH today")
    older.replace(path)


def _make_empty(path: Path, revision: str) -> None:
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
    source = {"users": "streams"}.get(table, table)
    columns = [name for _, name, *_ in connection.execute(f"PRAGMA main.table_info({table})")]
    of_today = ["stream" if name == "user" else name for name in columns]
    connection.execute(
        f"INSERT INTO main.{table} ({_quoted(columns)}) SELECT {_quoted(of_today)} FROM today.{source}"
    )


def _quoted(columns: list[str]) -> str:
    return ", ".join(f'"{column}"' for column in columns)
