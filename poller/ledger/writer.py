"""One task makes all writes; it commits those that wait together in one transaction."""

import asyncio
import collections
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from poller.errors import LeaseLost, LedgerUnavailable
from poller.ledger import leases
from poller.ledger.database import Database, history_of
from poller.ledger.leases import Lease

T = TypeVar("T")
Item = TypeVar("Item")
_TURN_WITHIN_S = 1.0
_KEPT_BACK_S = 0.1  # how long a read may delay a commit; the commit then runs beside it


@dataclass(frozen=True)
class _Job:
    """Work that is done for all items at once; each gets its own answer."""

    work: Callable[[Connection, list[Any]], Any]
    items: list[Any]
    answers: "list[asyncio.Future[Any]]"
    asked_at: float
    lease: Lease | None  # under which it is done; None: it is about no account


class Writer:
    """Runs jobs in order; answers each after its commit.

    A job is a plain function of a connection. A job that raises takes back only its own changes. If
    the transaction fails, all its jobs fail with LedgerUnavailable and none is recorded. `most` is
    how many jobs one transaction may have. `on_commit` gets the seconds that each one took.
    """

    def __init__(
        self,
        database: Database,
        where: str,
        *,
        most: int = 200,
        is_command: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
        on_commit: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._on_commit = on_commit
        self._database = database
        self._where = where
        self._most = most
        self._is_command = is_command
        self._monotonic = monotonic
        self._waiting: collections.deque[_Job] = collections.deque()
        self._running: list[_Job] = []
        self._wake = asyncio.Event()
        self._closing = False
        self._task = asyncio.create_task(self._work(), name="ledger writer")
        self.commits = 0
        self.fenced: Counter[str] = Counter()  # jobs whose lease was lost, by App ID
        self._histories: dict[Lease, str] = {}  # of the server, when each lease was first used
        self._turn = asyncio.Lock()  # held during a commit; its holder blocks the next one

    @property
    def waiting_since(self) -> float | None:
        """When the oldest unanswered write was requested (monotonic seconds)."""
        oldest = self._running or self._waiting
        return oldest[0].asked_at if oldest else None

    @property
    def ended(self) -> bool:
        return self._closing or self._task.done()

    def ask(
        self, work: Callable[[Connection], T], lease: Lease | None = None
    ) -> "asyncio.Future[T]":
        """Have `work` run in a transaction, after all earlier requests.

        With a lease that no longer holds, fail with LeaseLost. Cancelling the caller does not cancel
        the write.
        """
        return self._add(self._new(lambda connection, _: work(connection), lease), None)

    def ask_together(
        self,
        work: Callable[[Connection, list[Item]], None],
        item: Item,
        lease: Lease | None = None,
    ) -> "asyncio.Future[None]":
        """Have `work` run once for this and all other items that wait for it, in order.

        If it raises, run it again for each item alone, so that an item fails only by its own fault.
        """
        last = self._waiting[-1] if self._waiting and not self.ended else None
        is_same = last is not None and last.work is work and last.lease == lease
        return self._add(last if last and is_same else self._new(work, lease), item)

    async def between_commits(self, read: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Begin a read when no commit is running, and delay the next commit for a moment."""
        try:
            async with asyncio.timeout(_TURN_WITHIN_S):
                await self._turn.acquire()
        except TimeoutError:  # a commit hangs; the read will say so
            return await read()
        reading = asyncio.create_task(read(), name="ledger read in turn")
        try:
            await asyncio.wait({reading}, timeout=_KEPT_BACK_S)
        except asyncio.CancelledError:
            reading.cancel()
            raise
        finally:
            self._turn.release()
        return await reading

    def _new(self, work: Callable[[Connection, list[Any]], Any], lease: Lease | None) -> _Job:
        if self.ended:
            raise LedgerUnavailable(f"the ledger {self._where} is closed")
        job = _Job(work, [], [], self._monotonic(), lease)
        self._waiting.append(job)
        self._wake.set()
        return job

    def _add(self, job: _Job, item: Any) -> "asyncio.Future[Any]":
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        job.items.append(item)
        job.answers.append(answer)
        return answer

    async def close(self) -> None:
        """Finish the requested writes, then let the connection go."""
        self._closing = True
        self._wake.set()
        await asyncio.wait([self._task])
        await self._database.close()
        if not self._task.cancelled():
            self._task.result()

    async def _work(self) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._waiting:
                    async with self._turn:
                        await self._commit_group()
                if self._closing:
                    return
        finally:
            self._closing = True
            self._answer_the_rest()

    async def _commit_group(self) -> None:
        count = min(len(self._waiting), self._most)
        self._running = [self._waiting.popleft() for _ in range(count)]
        began = self._monotonic()
        try:
            outcomes = await self._transaction(self._running)
        except (LedgerUnavailable, DBAPIError) as error:
            # What the connection has in memory may be part of the trouble.
            await self._database.let_go()
            raised = _Raised(self._unavailable(error))
            outcomes = [[raised] * len(job.items) for job in self._running]
        else:
            self.commits += 1
            self._on_commit(self._monotonic() - began)
        jobs, self._running = self._running, []
        for job, each in zip(jobs, outcomes, strict=True):
            for answer, outcome in zip(job.answers, each, strict=True):
                if isinstance(outcome, _Raised) and isinstance(outcome.error, LeaseLost):
                    self.fenced[outcome.error.app_id] += 1
                _settle(answer, outcome)

    def _unavailable(self, error: Exception) -> LedgerUnavailable:
        if isinstance(error, LedgerUnavailable):
            return type(error)(str(error))
        return LedgerUnavailable(
            f"the ledger {self._where} does not answer ({type(error).__name__})"
        )

    async def _transaction(self, jobs: list[_Job]) -> list[list[Any]]:
        def group(connection: Connection) -> list[list[Any]]:
            if self._is_command:
                leases.shut_out_holders(connection)
            wanted = {job.lease for job in jobs if job.lease is not None}
            lost = self._lost(connection, wanted) if wanted else wanted
            return [
                [_Raised(LeaseLost(job.lease.app_id)) for _ in job.items]
                if job.lease is not None and job.lease in lost
                else self._run(connection, job.work, job.items)
                for job in jobs
            ]

        return await self._database.run(group)

    def is_from_before(self, lease: Lease, connection: Connection) -> bool:
        """Whether a lease began before a failover of the server that this transaction sees.

        What the run of such a lease has in memory may be about rows that the database has lost.
        """
        now = history_of(connection)
        return self._histories.setdefault(lease, now) != now

    def _lost(self, connection: Connection, wanted: set[Lease]) -> set[Lease]:
        """Return which of these leases no longer hold."""
        before = {lease for lease in wanted if self.is_from_before(lease, connection)}
        return before | (wanted - leases.fence(connection, wanted))

    def _run(
        self, connection: Connection, work: Callable[[Connection, list[Any]], Any], items: list[Any]
    ) -> list[Any]:
        """Run `work` in a savepoint, so that it fails alone; return the outcome for each item."""
        connection.exec_driver_sql("SAVEPOINT job")
        try:
            outcome = work(connection, items)
        except Exception as error:
            if self._database.trouble(error) is not None:
                raise
            connection.exec_driver_sql("ROLLBACK TO job")
            outcome = _Raised(error)
        connection.exec_driver_sql("RELEASE job")
        if isinstance(outcome, _Raised) and len(items) > 1:
            return [self._run(connection, work, [item])[0] for item in items]
        return [outcome] * len(items)

    def _answer_the_rest(self) -> None:
        closed = _Raised(LedgerUnavailable(f"the ledger {self._where} is closed"))
        for job in [*self._running, *self._waiting]:
            for answer in job.answers:
                _settle(answer, closed)
        self._running = []
        self._waiting.clear()


@dataclass(frozen=True)
class _Raised:
    error: BaseException


def _settle(answer: "asyncio.Future[Any]", outcome: Any) -> None:
    if answer.done():  # its caller was cancelled and no longer waits
        return
    if isinstance(outcome, _Raised):
        answer.set_exception(outcome.error)
    else:
        answer.set_result(outcome)
