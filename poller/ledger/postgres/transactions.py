"""Transactions on the server: one that was lost before its end is run again on a new connection."""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import psycopg
from sqlalchemy import Connection, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool

from poller.errors import LedgerUnavailable
from poller.ledger.database import Database, history_of, set_history
from poller.ledger.postgres.postgres_server import CONNECT_WITHIN_S, PostgresServer, has_ended

T = TypeVar("T")
_READERS = 3
_LOCK_S = 8  # a stopped holder of a lock loses it after `_IDLE_S`
_IDLE_S = 5
_WRITE_S = 30
_ASK_S = 0.2
_NUMBER = "number of the transaction"
# A server that was promoted, or restored from a backup, is on another timeline.
TIMELINE = "left(pg_walfile_name(pg_current_wal_lsn()), 8)"
_NO_TIMELINE = (  # at some providers
    psycopg.errors.InsufficientPrivilege,
    psycopg.errors.UndefinedFunction,
    psycopg.errors.FeatureNotSupported,
)
_READ_S = 90  # below `ledger.READ_WITHIN_S`


class Transactions(Database):
    """Begins each transaction with its settings, as a pooler may give it any connection.

    A transaction that the server took back is run again: nothing was recorded. If the answer to its
    COMMIT is lost, the server is asked what became of it.
    """

    def __init__(self, server: PostgresServer, begin: str, *, connections: int) -> None:
        engine = create_engine(
            "postgresql+psycopg://",
            creator=server.connect,
            poolclass=QueuePool,
            pool_size=connections,
            max_overflow=0,
            hide_parameters=True,
            use_native_hstore=False,  # it would look for that type at every start
        )
        event.listen(engine, "begin", self._begin)
        super().__init__(engine, connections=connections, trouble=server.trouble)
        self._server = server
        self._begin_with = begin
        self._timeline = TIMELINE

    def _transaction(self, work: Callable[[Connection], T]) -> T:
        deadline = time.monotonic() + CONNECT_WITHIN_S
        while True:
            with self.engine.connect() as connection:
                try:
                    transaction = connection.begin()
                    outcome = work(connection)
                except (DBAPIError, psycopg.Error) as error:
                    if not has_ended(error):
                        raise
                    connection.invalidate()
                    if time.monotonic() > deadline:
                        raise LedgerUnavailable(self._server.sentence(error)) from error
                    continue
                number, history = connection.info.get(_NUMBER), history_of(connection)
                try:
                    transaction.commit()
                except (DBAPIError, psycopg.Error) as error:
                    if number is None or not has_ended(error):
                        raise
                    connection.invalidate()
                    if self._is_committed(number, history, deadline, error):
                        return outcome
                    continue
                return outcome

    def _is_committed(self, number: int, history: str, deadline: float, lost: Exception) -> bool:
        """Ask what became of a transaction; raises LedgerUnavailable if the server does not say.

        A server that took over may have given its number to another one.
        """
        while time.monotonic() < deadline:
            with suppress(DBAPIError, psycopg.Error), self.engine.connect() as connection:
                found = connection.exec_driver_sql("SELECT txid_status(%s)", (number,)).scalar()
                if history_of(connection) != history:
                    break
                if found in ("committed", "aborted"):
                    return bool(found == "committed")
            time.sleep(_ASK_S)
        raise LedgerUnavailable(self._server.sentence(lost)) from lost

    def _begin(self, connection: Connection) -> None:
        driver = connection.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        try:
            answers = driver.execute(f"{self._begin_with}, {self._timeline}")
        except _NO_TIMELINE:
            driver.execute("ROLLBACK")
            answers = driver.execute(f"{self._begin_with}, ''")
            self._timeline = "''"
        while answers.nextset():
            pass
        connection.info[_NUMBER], history = answers.fetchone() or (None, "")
        set_history(connection, history)


def writer(server: PostgresServer) -> Transactions:
    begin = _begin(server, "READ COMMITTED READ WRITE", _WRITE_S, _IDLE_S)
    return Transactions(server, f"{begin}; SELECT txid_current()", connections=1)


def readers(server: PostgresServer) -> Transactions:
    begin = _begin(server, "REPEATABLE READ READ ONLY", _READ_S, _READ_S)
    return Transactions(server, f"{begin}; SELECT NULL", connections=_READERS)


def _begin(server: PostgresServer, mode: str, statement_s: int, idle_s: int) -> str:
    return (
        f"BEGIN ISOLATION LEVEL {mode}; SET LOCAL search_path = {server.schema}; "
        f"SET LOCAL statement_timeout = '{statement_s}s'; SET LOCAL lock_timeout = '{_LOCK_S}s'; "
        f"SET LOCAL idle_in_transaction_session_timeout = '{idle_s}s'"
    )
