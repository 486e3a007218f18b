"""A new ledger in a schema of its own, which takes the old one's name in one transaction."""

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

import psycopg
from psycopg import sql

from poller.errors import LedgerBroken, LedgerDamaged, LedgerUnavailable, LockHeld
from poller.ledger import schema
from poller.ledger.backend import Backend, Base
from poller.ledger.nodes import LIVE_FOR
from poller.ledger.postgres.postgres_server import PostgresServer, state_of
from poller.ledger.tables import MICROSECOND, metadata

SUFFIX = "_rebuilding"
_DAMAGE = ("XX001", "XX002", "42703", "42P01")


@dataclass(frozen=True)
class SchemaReplacement:
    server: PostgresServer
    base: Base
    backend: Backend

    @classmethod
    def begin(cls, server: PostgresServer, old: Backend, new: Backend) -> Self:
        """Begin with the old ledger if it is whole after all, otherwise with an empty one.

        A backup is for the server's operator to restore, before a rebuild. Raises LockHeld if a node
        is at work.
        """
        made = cls(server, Base(None, None, ()), new)
        made._drop()
        revision = old.look(thorough=True)
        if revision is None:
            return made
        with server.connected() as connection:
            _require_nobody(connection, server)
        try:
            schema.require_known(old.where, revision, may_migrate=False)
            new.prepare()
            made._copy()
        except (LedgerDamaged, LedgerBroken) as error:
            made._drop()
            return cls(server, Base(None, None, (str(error),)), new)
        except BaseException:
            made.abandon()
            raise
        return cls(server, Base(old.where, None, ()), new)

    def abandon(self) -> None:
        with suppress(LedgerUnavailable):
            self._drop()

    def install(self, now: datetime) -> str | None:
        """Rename both schemas at once; return the name under which the old one is kept.

        A node that starts meanwhile waits until they have their names.
        """
        present, new = self.server.schema, self.server.schema + SUFFIX
        aside = f"broken_{now.astimezone(UTC):%Y%m%dt%H%M%Sz}"
        with self.server.connected() as connection, connection.transaction():
            has_old = connection.execute("SELECT to_regnamespace(%s)", (present,)).fetchone()
            if has_old != (None,):
                _require_nobody(connection, self.server, lock=True)
                _run(connection, "ALTER SCHEMA {} RENAME TO {}", present, aside)
            _run(connection, "ALTER SCHEMA {} RENAME TO {}", new, present)
        return None if has_old == (None,) else aside

    def _drop(self) -> None:
        with self.server.connected() as connection:
            _run(connection, "DROP SCHEMA IF EXISTS {} CASCADE", self.server.schema + SUFFIX)

    def _copy(self) -> None:
        """Copy all rows; raises LedgerBroken if the server cannot read one."""
        engine = self.backend.writer().engine
        with engine.begin() as connection:
            schema.migrate(connection)
        engine.dispose()
        old, new = self.server.schema, self.server.schema + SUFFIX
        with self.server.connected() as connection:
            try:
                _copy_rows(connection, old, new)
            except psycopg.Error as error:
                if state_of(error) not in _DAMAGE:
                    raise
                raise LedgerBroken(
                    f"the ledger {self.server.where} cannot be read to its end ({state_of(error)})"
                ) from error


def _require_nobody(
    connection: "psycopg.Connection[Any]", server: PostgresServer, *, lock: bool = False
) -> None:
    """Raise LockHeld if a node works on this ledger; `lock` out others until the transaction ends."""
    nodes = sql.Identifier(server.schema, "nodes")
    if connection.execute("SELECT to_regclass(%s)", (f"{server.schema}.nodes",)).fetchone() == (
        None,
    ):
        return  # a damaged ledger may lack it
    if lock:
        connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(nodes))
    oldest = LIVE_FOR // MICROSECOND
    found = connection.execute(sql.SQL(_LIVE).format(nodes), (oldest,)).fetchall()
    if found:
        names = ", ".join(sorted(name for (name,) in found))
        raise LockHeld(
            f"nodes are at work with the ledger {server.where} ({names}): stop poller on all of them"
        )


_LIVE = """
SELECT name FROM {} WHERE ended_at IS NULL
AND EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 - seen_at <= %s
"""


def _copy_rows(connection: "psycopg.Connection[Any]", old: str, new: str) -> None:
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        for table in metadata.sorted_tables:
            columns = sql.SQL(", ").join(sql.Identifier(column.name) for column in table.columns)
            copy = sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {}").format(
                sql.Identifier(new, table.name), columns, columns, sql.Identifier(old, table.name)
            )
            connection.execute(copy)
        counted = "SELECT sequencename FROM pg_sequences WHERE schemaname = %s"
        for (name,) in connection.execute(counted, (new,)).fetchall():
            go_on = sql.SQL("SELECT setval({}, last_value, is_called) FROM {}").format(
                sql.Literal(f"{new}.{name}"), sql.Identifier(old, name)
            )
            connection.execute(go_on)


def _run(connection: "psycopg.Connection[Any]", statement: str, *names: str) -> None:
    connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))
