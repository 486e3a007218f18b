"""Fetch what is due; users take turns."""

import asyncio
import collections
from collections.abc import Callable

from poller import events, log
from poller.config.model import Account
from poller.errors import LedgerUnavailable
from poller.ingest.fetch import Fetcher, Outcome, Services
from poller.ingest.hang_timeout import cut_off_if_hung
from poller.ingest.stream_state import StreamState
from poller.ledger import FaxRow, jobs

_LOOK_AGAIN_S = 2.0  # another process may have made faxes due (`poller retry`)
_CUT_OFF_S = 5.0
_AFTER_BUG_S = 30.0
_AHEAD = 64  # rows read at once per user
# rows read in all, so that memory does not hold the backlog of ten thousand users
_AHEAD_OF_ALL = 1_000


class Ring:
    """The order of users: a ring, in which each has the rows that were read for it."""

    def __init__(self) -> None:
        self._ring: collections.deque[int] = collections.deque()
        self._rows: dict[int, collections.deque[FaxRow]] = {}

    def __contains__(self, user: int) -> bool:
        return user in self._rows

    def add(self, user: int) -> None:
        """Give `user` a place in the ring, if it has none."""
        if user not in self._rows:
            self._rows[user] = collections.deque()
            self._ring.append(user)

    def next(self) -> int | None:
        return self._ring[0] if self._ring else None

    def rows(self, user: int) -> collections.deque[FaxRow]:
        return self._rows[user]

    def ahead(self) -> int:
        """How many rows to read per user, so that all users in the ring have about a thousand."""
        return max(1, min(_AHEAD, _AHEAD_OF_ALL // len(self._ring)))

    def pass_on(self) -> None:
        """Move the first user, whose turn it was, to the end."""
        self._ring.rotate(-1)

    def leave(self) -> None:
        """Remove the first user, who has nothing more."""
        del self._rows[self._ring.popleft()]


class FetchWorkers:
    """Fetches the due faxes of one account, `at_once` at a time, while the gate is open.

    `may_ask` is False while the account is suspended. `drain()` ends it.
    """

    def __init__(
        self,
        account: Account,
        services: Services,
        fetcher: Fetcher,
        *,
        users: dict[int, StreamState],
        may_ask: Callable[[], bool],
        on_outcome: Callable[[FaxRow, Outcome], None] = lambda _fax, _outcome: None,
    ) -> None:
        self.at_once = images_at_once(account.limits.in_flight)
        self._app_id = account.app_id
        self._account = account.name
        self._ledger = services.ledger
        self._fetcher = fetcher
        self._gate = services.gate
        self._clock = services.clock
        self._users = users
        self.may_ask = may_ask
        self._on_outcome = on_outcome
        self._turns = Ring()
        self._running: dict[int, asyncio.Task[None]] = {}
        self._met_bugs: dict[int, float] = {}  # faxes, and until when to leave them (monotonic)
        self._wake = asyncio.Event()
        self._stopping = False
        self._looked_at: float | None = None

    @property
    def in_flight(self) -> int:
        return len(self._running)

    def wake(self, user: int | None = None) -> None:
        """Note that something may be due now; `user` has new faxes."""
        if user is not None:
            self._turns.add(user)
        self._wake.set()

    async def run(self) -> None:
        """Fetch until `drain` is called."""
        while not self._stopping:
            self._wake.clear()
            started = False
            async with cut_off_if_hung("fetching", account=self._account):
                started = await self._start_one()
            if not started:
                await self._wait()

    async def run_until_idle(self) -> None:
        """Fetch all that is due now, for `poller once`; end early if eFax cannot be asked."""
        while True:
            started = await self._start_one(look=True)
            if started:
                continue
            if not self._running:
                return
            await asyncio.wait(self._running.values(), return_when=asyncio.FIRST_COMPLETED)

    async def drain(self, timeout_s: float) -> None:
        """Start nothing more, let arriving images finish for `timeout_s`, then cut them off."""
        self._stopping = True
        self._wake.set()
        for fax, task in self._running.items():
            if not self._fetcher.is_arriving(fax):
                task.cancel()
        tasks = list(self._running.values())
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=timeout_s)
        for task in late:
            task.cancel()
        # A step in a hanging share stops only when it is cancelled the second time.
        for hang_timeout_s in (_CUT_OFF_S, 1.0):
            if late:
                _, late = await asyncio.wait(late, timeout=hang_timeout_s)
            for task in late:
                task.cancel()

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(_LOOK_AGAIN_S):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _start_one(self, *, look: bool = False) -> bool:
        if len(self._running) >= self.at_once or self._stopping or not self.may_ask():
            return False
        fax = await self._next(look=look)
        if fax is None or not await self._gate.check() or self._stopping:
            return False
        if self._gate.half_open and self._running:
            return False
        state = self._users.get(fax.stream)
        if state is None or not state.images.begin():
            return True  # its user was removed or held meanwhile; the fax stays due
        task = asyncio.create_task(self._fetch(fax, state), name=f"fetch {state.key}")
        self._running[fax.id] = task
        task.add_done_callback(lambda _: self._ended(fax.id, state))
        return True

    def _ended(self, fax: int, state: StreamState) -> None:
        del self._running[fax]
        state.images.end()
        self._wake.set()

    async def _fetch(self, fax: FaxRow, state: StreamState) -> None:
        try:
            outcome = await self._fetcher.fetch(fax, state.user)
        except Exception as error:  # noqa: BLE001 - not even its failure could be recorded
            what = "An unexpected error ended an attempt to fetch a fax."
            log.say(events.InternalError(what, error, *fax.names))
            self._met_bugs[fax.id] = self._clock.monotonic() + _AFTER_BUG_S
            outcome = Outcome.FAILED
        self._on_outcome(fax, outcome)

    def _passed_over(self) -> list[int]:
        """Return due faxes that must not start: running ones, and those that recently met a bug."""
        now = self._clock.monotonic()
        self._met_bugs = {fax: until for fax, until in self._met_bugs.items() if until > now}
        return [*self._running, *self._met_bugs]

    async def _next(self, *, look: bool) -> FaxRow | None:
        """Return the next due row, or None; skip a user whose list is being read."""
        try:
            await self._look(force=look)
            return await self._take_turn()
        except LedgerUnavailable as error:
            self._gate.blame(error)
            return None

    async def _look(self, *, force: bool) -> None:
        """Find users with due faxes, even while others have some: a retry must not wait for a backlog."""
        now = self._clock.monotonic()
        if not self._users:
            return
        recently = self._looked_at is not None and now - self._looked_at < _LOOK_AGAIN_S
        if recently and (self._turns.next() is not None or not force):
            return
        self._looked_at = now
        for user in await self._ledger.read(jobs.streams_with_due, self._app_id, self._clock.now()):
            if user in self._users:
                self._turns.add(user)

    async def _take_turn(self) -> FaxRow | None:
        held = 0
        while (user := self._turns.next()) is not None:
            state = self._users.get(user)
            if state is not None and state.images.held:
                held += 1
                self._turns.pass_on()
                if held > len(self._users):
                    return None
                continue
            rows = self._turns.rows(user)
            if not rows and state is not None:
                rows.extend(
                    await self._ledger.read(
                        jobs.due,
                        user,
                        self._clock.now(),
                        self._turns.ahead(),
                        exclude=self._passed_over(),
                    )
                )
            if state is None or not rows:
                self._turns.leave()
                continue
            self._turns.pass_on()
            return rows.popleft()
        return None


def images_at_once(in_flight: int) -> int:
    """Leave a quarter of the slots free of images; as many again may be checked and written meanwhile."""
    return max(1, in_flight - -(-in_flight // 4)) * 2
