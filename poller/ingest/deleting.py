"""Delete at eFax what is proved stored: intention, proof, rules again, call, outcome."""

import asyncio
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial

from poller import deletion, events
from poller.client import Client
from poller.config.model import Delete
from poller.errors import (
    ApiError,
    PollerError,
    Rejected,
    StorageConflict,
    StorageUnusable,
    Unreachable,
)
from poller.ingest.agreed_time import AgreedTime
from poller.ingest.audit import Auditor
from poller.ingest.errand_ends import Ends
from poller.ingest.fetch import Services
from poller.ingest.list_memory import ListMemory
from poller.ingest.stream_state import StreamState
from poller.ledger import Errand, OnDisk, deletions, errands, faxes, jobs
from poller.ledger.deletions import Passed, Place
from poller.ledger.tables import JobKind
from poller.store import Condition
from poller.window import Interval

PROVED_FOR_S = 60.0  # a request may wait for hours until it is sent
DELETED_WITHIN_S = 20.0  # the user's polls wait for it
_WALKED_AT_ONCE = 2_000
_LOOKED_AT_ONCE = 200
# Untried intentions per user, so that nothing is written down years ahead.
_OPEN_AT_MOST = 200
_ANEW_S = 86_400.0
_LISTED_BACK = timedelta(hours=1)


class _NotNow(PollerError):
    """A condition does not hold at the moment of the call, so eFax was not asked."""


class _Kept(PollerError):
    """The fax must not be deleted any longer."""


@dataclass
class _Attempt:
    """One attempt: what was proved and when (monotonic), and whether it holds the user's list."""

    errand: Errand
    state: StreamState
    proof: str
    proved_at: float
    deadline: asyncio.Timeout
    begun: bool = False


@dataclass
class _WalkUnderWay:
    """A walk along the stored faxes; from `again` on, it left out those of the streams in `full`."""

    place: Place = field(default_factory=Place)
    again: Place | None = None
    full: set[int] = field(default_factory=set)


class Deleter:
    """Deletes faxes of one account. `memory` forgets a witness before eFax deletes it."""

    def __init__(
        self,
        services: Services,
        client: Client,
        memory: ListMemory,
        states: Mapping[int, StreamState],
        ends: Ends,
    ) -> None:
        self._services = services
        self._ledger = services.ledger
        self._clock = services.clock
        self._client = client
        self._memory = memory
        self._states = states
        self._ends = ends
        self._time = AgreedTime(client, services.clock)
        self._auditor = Auditor(services.ledger, services.storage, services.clock, threads=1)
        self._walks: dict[timedelta, _WalkUnderWay] = {}
        self._begun_s = -math.inf
        self._rules: dict[int, Delete] = {}
        self._asking: set[int] = set()

    @property
    def is_configured(self) -> bool:
        return any(state.user.delete.after is not None for state in self._states.values())

    def is_asking(self, fax: int) -> bool:
        """Whether the request to delete this fax is under way; before that, an end loses nothing."""
        return fax in self._asking

    def now(self) -> datetime:
        """Return the earlier of two clocks, so that a clock ahead does not make a fax old."""
        return min(self._clock.now(), self._client.server_now())

    # -- what to delete ---------------------------------------------------------------------------

    async def plan(self) -> bool:
        """Write down some faxes that have become old enough; return whether there may be more."""
        rules = {id_: state.user.delete for id_, state in self._states.items()}
        now_s = self._clock.monotonic()
        # A fax that was left out may meanwhile have another rule, or be well again.
        if rules != self._rules or now_s - self._begun_s >= _ANEW_S:
            self._rules, self._walks, self._begun_s = rules, {}, now_s
        if not self._client.server_clock.agreed:
            return False
        more = False
        for after in {rule.after for rule in rules.values()} - {None}:
            assert after is not None
            more |= await self._plan(after)
        return more

    async def _plan(self, after: timedelta) -> bool:
        walk = self._walks.setdefault(after, _WalkUnderWay())
        begin = walk.place
        until = self.now() - after
        passed = await self._ledger.read(deletions.walk, begin, until, _WALKED_AT_ONCE)
        mine = [
            one
            for one in passed
            if one.promising
            and one.stream in self._rules
            and self._rules[one.stream].after == after
        ]
        app_id = self._client.account.app_id
        waiting = Counter(await self._ledger.read(errands.untried, app_id, JobKind.DELETE))
        for first in range(0, len(mine), _LOOKED_AT_ONCE):
            some = mine[first : first + _LOOKED_AT_ONCE]
            full = {one.stream for one in some if waiting[one.stream] >= _OPEN_AT_MOST}
            if full:
                walk.full |= full
                walk.again = walk.again or begin
            waiting.update(await self._intend([one for one in some if one.stream not in full]))
        is_through = len(passed) < _WALKED_AT_ONCE
        if not is_through:
            walk.place = passed[-1].place
        elif until > begin.stored_at:  # do not walk over deleted faxes again
            walk.place = Place(until)
        if is_through and any(waiting[stream] < _OPEN_AT_MOST / 2 for stream in walk.full):
            assert walk.again is not None
            self._walks[after] = _WalkUnderWay(walk.again)
            return True
        return not is_through

    async def _intend(self, some: Sequence[Passed]) -> list[int]:
        """Write down those whose files, by their sizes, look well; return their streams."""
        ids = [one.fax for one in some]
        asked = await self._ledger.read(errands.of_faxes, ids, JobKind.DELETE)
        new = set(ids) - {errand.fax.id for errand in asked}
        held = {
            row.id: row
            for row in await self._ledger.read(faxes.some, list(new))
            if deletion.why_kept(row, self._rules[row.stream], self.now()) is None
        }
        on_disk = await self._ledger.read(faxes.on_disk_of, list(held))
        wanted = [
            held[one.row.id]
            for one in await self._auditor.look(on_disk, thorough=False)
            if deletion.why_unproved(self._rules[held[one.row.id].stream], one.finding) is None
        ]
        if wanted:
            await self._ledger.write(errands.ask, wanted, JobKind.DELETE, self._clock.now())
        return [row.stream for row in wanted]

    # -- one deletion -----------------------------------------------------------------------------

    async def run(self, errand: Errand, state: StreamState) -> None:
        """Delete the fax, or record why not; raises LedgerUnavailable if nothing could be recorded."""
        try:
            await self._time.now(state.user)  # from now on, `now` knows eFax's time
        except ApiError as error:
            await self._ends.failed(errand, error)
            return
        if self._why_kept(errand, state) is not None:
            await self._ledger.write(errands.end, errand)
            return
        try:
            proof = await self._prove(errand, state)
        except (StorageUnusable, StorageConflict):  # an unmounted disk proves nothing
            await self._ends.put_off(errand)
            return
        if proof is None:
            await self._ledger.write(errands.end, errand)
            return
        await self._delete(errand, state, proof)

    async def _delete(self, errand: Errand, state: StreamState, proof: str) -> None:
        deadline = asyncio.timeout(None)
        attempt = _Attempt(errand, state, proof, self._clock.monotonic(), deadline)
        claim = partial(self._claim, attempt)
        try:
            async with deadline:
                is_done = await self._client.delete(state.user, errand.fax.fax_id, before=claim)
            if not is_done:
                self._end(attempt)
                await self._see_it_gone(errand, state)
        except _NotNow:
            await self._ends.put_off(errand, shortly=True)
        except TimeoutError:
            await self._failed(errand, Unreachable("eFax did not answer in time"))
        except _Kept:
            await self._ledger.write(errands.end, errand)
        except PollerError as error:
            await self._failed(errand, error)
        else:
            await asyncio.shield(self._record(attempt))
        finally:
            self._end(attempt)
            self._asking.discard(errand.fax.id)
        await self._memory.refill()

    @staticmethod
    def _end(attempt: _Attempt) -> None:
        """Release the user's list: this deletion no longer shifts it."""
        if attempt.begun:
            attempt.begun = False
            attempt.state.deletions.end()

    async def _see_it_gone(self, errand: Errand, state: StreamState) -> None:
        """Confirm that a 404 means this fax and not the user or a proxy; raises ApiError."""
        if await self._client.has_fax(state.user, errand.fax.fax_id):
            raise Rejected("eFax says that there is no such fax to delete, but shows its metadata")
        now = await self._time.now(state.user)
        await self._client.list_received(state.user, Interval(now - _LISTED_BACK, now), 0)

    async def _record(self, attempt: _Attempt) -> None:
        errand = attempt.errand
        await self._ledger.write(deletions.deleted, errand, self._clock.now())
        self._services.emit(events.FaxDeleted(*errand.fax.names, attempt.proof))

    async def _failed(self, errand: Errand, error: PollerError) -> None:
        end = await self._ends.failed(errand, error)
        if end is None or (not end.is_left and str(error) == errand.last_error):
            return  # nothing new
        await self._ledger.write(deletions.refused, errand, str(error), self._clock.now())
        self._services.emit(
            events.DeleteRefused(*errand.fax.names, error, errand.failures + 1, end.is_left)
        )

    def _why_kept(self, errand: Errand, state: StreamState | None) -> str | None:
        rule = None if state is None else state.user.delete
        return deletion.why_kept(errand.fax, rule, self.now(), errand.stored_before)

    async def _prove(self, errand: Errand, state: StreamState) -> str | None:
        """Read the files now; return how they prove the fax, or None if they do not."""
        rows: list[OnDisk] = await self._ledger.read(faxes.on_disk_of, [errand.fax.id])
        for one in await self._auditor.check(rows, thorough=True):
            if deletion.why_unproved(state.user.delete, one.finding) is None:
                return "taken" if one.finding.condition is Condition.TAKEN else "file"
            if one.event is not None:
                self._services.emit(one.event)
        return None

    async def _claim(self, attempt: _Attempt) -> None:
        """Check again that everything holds, as the request may go out long after the proof.

        After the last look at the ledger, nothing else runs until the request is sent.
        """
        errand, state = attempt.errand, attempt.state
        if self._clock.monotonic() - attempt.proved_at > PROVED_FOR_S:
            raise _NotNow("the fax must be proved again first")
        await self._ledger.confirm()  # it cannot be undone: another node may have the account
        job = (errand.fax.id, errand.fence, JobKind.DELETE)
        is_open = await self._ledger.read(jobs.is_open, *job)
        (row,) = await self._ledger.read(faxes.some, [errand.fax.id])
        rule = state.user.delete if self._states.get(state.id) is state else None
        why = deletion.why_kept(row, rule, self.now(), errand.stored_before)
        if not is_open or why is not None or row.sha256 != errand.fax.sha256:
            raise _Kept(why or "somebody has decided otherwise meanwhile")
        if not self._services.gate.usable:
            raise _NotNow("the storage is unusable")
        if state.is_refused:
            raise _NotNow("eFax refuses the user")
        if state.deletions.held:
            raise _NotNow("poller is reading the user's list")
        if not attempt.begun:
            if not self._memory.give_up(row.stream, row.fax_id):
                raise _NotNow("the fax is the proof of an empty list right now")
            attempt.begun = state.deletions.begin()
            self._asking.add(row.id)
        attempt.deadline.reschedule(asyncio.get_running_loop().time() + DELETED_WITHIN_S)
