"""A PostgreSQL database as the ledger; its copies and their checks are the server's."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import psycopg
from psycopg import sql
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from poller.errors import CannotStart, LedgerUnavailable, UsageError
from poller.ledger import schema, tables
from poller.ledger.backend import Write
from poller.ledger.database import Database
from poller.ledger.postgres import transactions
from poller.ledger.postgres.postgres_server import PostgresServer
from poller.ledger.postgres.schema_replacement import SUFFIX, SchemaReplacement

_MIGRATION = 0x706F6C6C6572  # "poller"
_MIGRATE_S = 3600
_STANDBYS = """
SELECT current_setting('synchronous_standby_names') = ''
       OR current_setting('synchronous_commit') = 'local',
       (SELECT count(*) FROM pg_stat_replication WHERE coalesce(state, 'streaming') = 'streaming')
"""
_CONTINUE = """
SELECT setval(pg_get_serial_sequence('{0}', 'id'), (SELECT coalesce(max(id), 0) + 1 FROM {0}), false)
"""


class PostgresBackend:
    """The tables in one schema of the database."""

    is_shared = True
    group_size = 60  # a transaction with more than 64 savepoints costs other sessions much

    def __init__(self, server: PostgresServer) -> None:
        self._server = server

    @classmethod
    def at(cls, url: str, password: str | None) -> Self:
        return cls(PostgresServer.at(url, password))

    @property
    def where(self) -> str:
        return self._server.where

    # -- opening, replacing ------------------------------------------------------------------------

    def look(self, *, thorough: bool) -> str | None:  # noqa: ARG002  (the server checks its own)
        with self._opening() as connection:
            names = _tables(connection, self._server.schema)
            if not names:
                return None
            if "alembic_version" not in names:
                raise CannotStart(
                    f"the schema {self._server.schema} in {self.where} belongs to another program"
                )
            table = sql.Identifier(self._server.schema, "alembic_version")
            row = connection.execute(sql.SQL("SELECT version_num FROM {}").format(table)).fetchone()
            if not row:
                return "unknown"
            meta = sql.Identifier(self._server.schema, "meta")
            reads = connection.execute(
                sql.SQL("SELECT value FROM {} WHERE name = 'reads'").format(meta)
            ).fetchone()
            return schema.as_seen(str(row[0]), str(reads[0]) if reads else None)

    def restore(self) -> datetime | None:
        return None

    def prepare(self) -> None:
        """Make the schema, and tell PostgreSQL which rows its indexes contain."""
        for table in tables.metadata.sorted_tables:
            for index in table.indexes:
                rows = index.dialect_options["sqlite"]["where"]
                index.dialect_options["postgresql"]["where"] = rows
        with self._opening() as connection:
            make_schema(connection, self._server.schema)

    def begin_migration(self, connection: Connection) -> None:
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = '{_MIGRATE_S}s'")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION})")

    def continue_ids(self, connection: Connection) -> None:
        for table in tables.metadata.sorted_tables:
            if "id" in table.columns:
                connection.exec_driver_sql(_CONTINUE.format(table.name))

    def writer(self) -> Database:
        return transactions.writer(self._server)

    def readers(self) -> Database:
        return transactions.readers(self._server)

    def replace(self) -> SchemaReplacement:
        schema = self._server.schema + SUFFIX
        new = PostgresBackend(replace(self._server, schema=schema))
        return SchemaReplacement.begin(self._server, self, new)

    async def backup(self, target: Path) -> int:
        options = f"--format=custom --schema={self._server.schema}"
        file, url = shlex.quote(str(target)), shlex.quote(self._server.url)
        raise UsageError(f"PostgreSQL makes its own copies: pg_dump {options} --file={file} {url}")

    # -- health ------------------------------------------------------------------------------------

    async def require_room(self) -> None:
        """Do nothing: a write says so if the server has no room."""

    async def look_after(self, now: datetime, write: Write) -> str | None:  # noqa: ARG002
        return None

    def history(self, connection: Connection) -> str:
        with suppress(DBAPIError), connection.begin_nested():  # not every provider has it
            return str(connection.exec_driver_sql(f"SELECT {transactions.TIMELINE}").scalar_one())
        return ""

    def risk(self, connection: Connection) -> str | None:
        is_asynchronous, standbys = connection.exec_driver_sql(_STANDBYS).one()
        if not (is_asynchronous and standbys):
            return None
        return (
            f"the ledger {self.where} has a standby for which the server does not wait "
            "(synchronous_standby_names): after a failover, poller may deliver faxes twice"
        )

    async def snapshot_at(self) -> datetime | None:
        return None

    async def snapshot_is_due(self, now: datetime) -> bool:  # noqa: ARG002
        return False

    async def close(self) -> None:
        """Do nothing: no copy is running."""

    @contextmanager
    def _opening(self) -> "Iterator[psycopg.Connection[Any]]":
        try:
            with self._server.connected() as connection:
                yield connection
        except LedgerUnavailable as error:
            raise CannotStart(error.told) from error


def make_schema(connection: "psycopg.Connection[Any]", schema: str) -> None:
    """Make the schema if it is missing; only then must the user be allowed to."""
    found = connection.execute("SELECT to_regnamespace(%s)", (schema,)).fetchone()
    if found == (None,):
        create = sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema))
        with suppress(psycopg.errors.UniqueViolation):  # another node has just made it
            connection.execute(create)


def _tables(connection: "psycopg.Connection[Any]", schema: str) -> set[str]:
    found = connection.execute(
        "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = "
        "to_regnamespace(%s)",
        (schema,),
    )
    return {name for (name,) in found}
