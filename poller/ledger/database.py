"""A database and its threads, so that no statement ever runs on the event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from poller.errors import LedgerUnavailable

T = TypeVar("T")
_HISTORY = "history of the server"


def history_of(connection: Connection) -> str:
    """Return a word for this transaction's server; another word says that it may have lost commits."""
    return str(connection.info.get(_HISTORY, ""))


def set_history(connection: Connection, history: str) -> None:
    connection.info[_HISTORY] = history


class Database:
    """An engine with one thread per connection.

    A whole transaction is one trip to a thread. With SQLAlchemy's asyncio each statement is one
    trip, which costs more than the statement. `trouble` returns what is wrong with the whole
    database, in a sentence without the statement and its values; None for a bug of ours.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        connections: int,
        trouble: Callable[[BaseException], LedgerUnavailable | None],
    ) -> None:
        self.engine = engine
        self.trouble = trouble
        self._threads = ThreadPoolExecutor(connections, thread_name_prefix="ledger")
        self._closed = False

    async def run(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction; its thread continues if the caller is cancelled.

        Raises LedgerUnavailable if something is wrong with the whole database.
        """
        try:
            return await self._in_thread(lambda: self._transaction(work))
        except DBAPIError as error:
            unavailable = self.trouble(error)
            if unavailable is None:
                raise
            raise unavailable from error

    async def let_go(self) -> None:
        """Close the connections; the next transaction opens new ones."""
        await self._in_thread(self.engine.dispose)

    async def close(self) -> None:
        """Close the connections and end the threads; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        await self.let_go()
        self._threads.shutdown(wait=False)

    def _transaction(self, work: Callable[[Connection], T]) -> T:
        with self.engine.begin() as connection:
            return work(connection)

    async def _in_thread(self, step: Callable[[], T]) -> T:
        try:
            running = asyncio.get_running_loop().run_in_executor(self._threads, step)
        except RuntimeError as error:
            raise LedgerUnavailable("cannot start a thread for the ledger") from error
        return await running
