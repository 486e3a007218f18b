"""Make once per test process what is slow to make and the same for every installation.

That is: SQLAlchemy's compiled statements, the tables of a new ledger, and the system's certificates.
Making them takes longer than most tests.
"""

import ssl
from collections.abc import Callable
from functools import cache
from typing import Any

import sqlalchemy
from sqlalchemy import Connection, Dialect, Engine
from sqlalchemy.util import LRUCache

from poller.client import transport
from poller.config.model import Account
from poller.ledger import schema
from poller.ledger.sqlite import engine as ledger_engine

make_tables = schema.migrate
_tls_context = transport.tls_context
_compiled: LRUCache[Any, Any] = LRUCache(4000)


def put_postgresql_in_place() -> None:
    """Share its compiled statements, too; nothing else loads its driver."""
    from poller.ledger.postgres import transactions  # noqa: PLC0415

    vars(transactions)["create_engine"] = _engine


def put_in_place(set_attribute: Callable[[Any, str, Any], None]) -> None:
    set_attribute(ledger_engine, "create_engine", _engine)
    set_attribute(schema, "migrate", _migrate)
    set_attribute(transport, "tls_context", _tls)


def _engine(*args: Any, **settings: Any) -> Engine:
    """Share the dialect and the cache: the dialect is part of the key of a compiled statement."""
    engine = sqlalchemy.create_engine(*args, **settings)
    engine._compiled_cache = _compiled
    if engine.dialect.name in _dialects:
        engine.dialect = _dialects[engine.dialect.name]
    else:  # its first connection asks the database what it can do
        _dialects[engine.dialect.name] = engine.dialect
    return engine


_dialects: dict[str, Dialect] = {}


def _migrate(connection: Connection) -> bool:
    if connection.dialect.name != "sqlite":
        return make_tables(connection)
    is_new = connection.exec_driver_sql("SELECT 1 FROM sqlite_master").first() is None
    if not is_new:
        return make_tables(connection)
    for statement in _statements():
        connection.exec_driver_sql(statement)
    return True


@cache
def _statements() -> tuple[str, ...]:
    """Return the statements that make an empty database what `schema.migrate` makes of it."""
    said: list[str] = []
    engine = sqlalchemy.create_engine("sqlite://")
    with engine.begin() as connection:
        make_tables(connection)
        driver = connection.connection.driver_connection
        assert driver is not None
        said += driver.iterdump()
    return tuple(one for one in said if not one.startswith(("BEGIN", "COMMIT")))


def _tls(account: Account) -> ssl.SSLContext:
    return _system_tls() if account.ca_file is None else _tls_context(account)


@cache
def _system_tls() -> ssl.SSLContext:
    return ssl.create_default_context()
