"""Do the errands of one account, few at a time, after all work that brings faxes here."""

import asyncio
from collections.abc import Callable, Collection

from poller import deletion, events, log
from poller.client import Client
from poller.errors import LedgerUnavailable, StorageConflict, StorageUnusable
from poller.ingest.deleting import Deleter
from poller.ingest.errand_ends import Ends
from poller.ingest.fetch import Services
from poller.ingest.hang_timeout import cut_off_if_hung
from poller.ingest.list_memory import ListMemory
from poller.ingest.marking import Marker
from poller.ingest.stream_state import StreamState
from poller.ledger import Errand, deletions, errands
from poller.ledger.tables import JobKind

LOOK_S = 10.0
_READ_AT_ONCE = 200
_MORE_S = 1.0
_AT_ONCE = 2
_CUT_OFF_S = 5.0


class ErrandRunner:
    """Looks regularly while deletions are configured or errands remain; otherwise when woken.

    `may_ask` is False while the account is suspended. `drain()` ends it.
    """

    def __init__(
        self,
        services: Services,
        client: Client,
        memory: ListMemory,
        states: dict[int, StreamState],
        *,
        may_ask: Callable[[], bool],
    ) -> None:
        self.at_once = _AT_ONCE
        self._app_id = client.account.app_id
        self._name = client.account.name
        self._may_ask = may_ask
        self._ends = Ends(services)
        self._deleter = Deleter(services, client, memory, states, self._ends)
        self._marker = Marker(services, client, self._ends)
        self._services = services
        self._ledger = services.ledger
        self._states = states
        self._running: dict[tuple[JobKind, int], asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self._stopping = False

    def wake(self) -> None:
        """Note that there may be a new errand."""
        self._wake.set()

    async def run(self) -> None:
        """Do what is due until `drain` is called."""
        pause_s: float | None = 0.0  # a run that was killed may have left something
        while not self._stopping:
            self._wake.clear()
            async with cut_off_if_hung("errands", account=self._name):
                pause_s = await self.look()
            await self._wait(pause_s)

    async def run_until_idle(self) -> None:
        """Do the errands that are due now, if no service does."""
        while await self._begin_due() or self._running:
            if self._running:  # a task may have ended while the ledger was read
                await asyncio.wait(self._running.values(), return_when=asyncio.FIRST_COMPLETED)

    async def look(self) -> float | None:
        """Start what is due; return when to look again, None if nothing remains."""
        is_on = self._deleter.is_configured
        try:
            may_ask = not self._stopping and self._may_ask()
            more = may_ask and is_on and await self._deleter.plan()
            await self._begin_due()
            if more:
                return _MORE_S
            waits = is_on or await self._ledger.read(errands.waiting, self._app_id) > 0
        except (LedgerUnavailable, StorageUnusable, StorageConflict):
            return LOOK_S  # the gate reports it
        return LOOK_S if waits else None

    async def drain(self, timeout_s: float) -> None:
        """Start nothing more, let requested deletions finish, then cut them off."""
        self._stopping = True
        self._wake.set()
        for (_, fax), task in self._running.items():
            if not self._deleter.is_asking(fax):
                task.cancel()
        left = set(self._running.values())
        for patience_s in (timeout_s, _CUT_OFF_S):
            if left:
                _, left = await asyncio.wait(left, timeout=patience_s)
            for task in left:
                task.cancel()

    async def _wait(self, pause_s: float | None) -> None:
        try:
            async with asyncio.timeout(pause_s):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _begin_due(self) -> int:
        """Start as many errands as may run at once; return how many."""
        if self._stopping or not self._may_ask():
            return 0
        begun = 0
        for kind in (JobKind.MARK, JobKind.DELETE):
            if len(self._running) < self.at_once:
                for errand in await self._due(kind):
                    begun += self._begin(errand)
        return begun

    async def _due(self, kind: JobKind) -> list[Errand]:
        under_way = [fax for of, fax in self._running if of is kind]  # one may end during the read
        due = await self._read(kind)
        if kind is JobKind.MARK or not due:
            free = [one for one in due if one.fax.id not in under_way]
            return free[: self.at_once - len(self._running)]
        if not await self._services.gate.check():
            return []
        since = self._services.clock.now() - deletion.A_DAY
        lately = await self._ledger.read(deletions.deleted_since, self._app_id, since)
        passed_by: set[int] = set()
        wanted = self._within_the_day(due, lately, under_way)
        while not wanted and len(due) == _READ_AT_ONCE:  # users who must wait block no others
            passed_by |= {one.fax.stream for one in due}
            due = await self._read(kind, passed_by)
            wanted = self._within_the_day(due, lately, under_way)
        return wanted

    async def _read(self, kind: JobKind, not_of: Collection[int] = ()) -> list[Errand]:
        now = self._services.clock.now()
        return await self._ledger.read(errands.due, self._app_id, kind, now, _READ_AT_ONCE, not_of)

    def _within_the_day(self, due: list[Errand], lately: int, under_way: list[int]) -> list[Errand]:
        """Keep the errands that limits and holds allow now, of users whom eFax accepts."""
        wanted: list[Errand] = []
        for errand in due:
            state = self._states.get(errand.fax.stream)
            if len(self._running) + len(wanted) >= self.at_once:
                break
            if state is None or state.is_refused or state.deletions.held:
                continue
            if errand.fax.id in under_way:
                continue
            spent = lately + len(under_way) + len(wanted)
            if deletion.left_today(state.user.delete, spent):
                wanted.append(errand)
        return wanted

    def _begin(self, errand: Errand) -> bool:
        """Start an errand; return False if the user has gone or the end has come meanwhile."""
        state, key = self._states.get(errand.fax.stream), (errand.kind, errand.fax.id)
        if state is None or self._stopping or key in self._running:
            return False
        task = asyncio.create_task(self._run(errand, state), name=f"{errand.kind} {state.key}")
        self._running[key] = task
        task.add_done_callback(lambda _: self._ended(key))
        return True

    def _ended(self, key: tuple[JobKind, int]) -> None:
        del self._running[key]
        self._wake.set()

    async def _run(self, errand: Errand, state: StreamState) -> None:
        doer = self._deleter if errand.kind is JobKind.DELETE else self._marker
        try:
            try:
                await doer.run(errand, state)
            except LedgerUnavailable:
                raise
            except Exception as error:  # noqa: BLE001 - a bug met by one fax must not stop the others
                what = f"An unexpected error ended an attempt to {errand.kind} a fax at eFax."
                log.say(events.InternalError(what, error, *errand.fax.names))
                await self._ends.put_off(errand)
        except LedgerUnavailable as error:
            self._services.gate.blame(error)
