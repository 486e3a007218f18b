"""Delete at eFax what is proved to be stored here: intention, proof, rules once more, call, outcome."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from poller import deletion, events
from poller.client import Client
from poller.config.model import Delete
from poller.errors import ApiError, PollerError, StorageConflict, StorageUnusable, Unreachable
from poller.ingest.agreed_time import AgreedTime
from poller.ingest.audit import Auditor, Checked
from poller.ingest.errand_ends import Ends
from poller.ingest.fetch import Services
from poller.ingest.list_memory import ListMemory
from poller.ingest.stream_state import StreamState
from poller.ledger import Errand, OnDisk, deletions, errands, faxes, jobs
from poller.ledger.deletions import Passed, Place
from poller.ledger.tables import JobKind
from poller.store import Condition

PROVED_FOR_S = 60.0  # a request may wait for its turn for hours
DELETED_WITHIN_S = 20.0  # the polls of the user wait for it
_WALKED_AT_ONCE = 2_000
_LOOKED_AT_ONCE = 200
_OPEN_AT_MOST = (
    200  # intentions of an account: so that what is to go is not written down years ahead
)


class _NotNow(PollerError):
    """What must hold at the moment of the call does not; nothing was asked of eFax."""


class _Kept(PollerError):
    """The fax is not to be deleted any more."""


@dataclass
class _Attempt:
    """One attempt: what was proved and when (monotonic), and whether the user's list is held back."""

    errand: Errand
    state: StreamState
    proof: str
    proved_at: float
    deadline: asyncio.Timeout
    begun: bool = False


class Deleter:
    """Deletes faxes of one account. `memory` forgets a witness before it goes."""

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
        self._places: dict[timedelta, Place] = {}
        self._rules: dict[int, Delete] = {}
        self._asking: set[int] = set()

    @property
    def is_configured(self) -> bool:
        return any(state.user.delete.after is not None for state in self._states.values())

    def is_asking(self, fax: int) -> bool:
        """Whether eFax is being asked to delete this one now; before that, nothing is lost by ending it."""
        return fax in self._asking

    def now(self) -> datetime:
        """Return the earlier of two clocks: one that is ahead must not make a fax old."""
        return min(self._clock.now(), self._client.server_now())

    # -- what is to go ----------------------------------------------------------------------------

    async def plan(self) -> bool:
        """Write down what has become old enough, some at a time; True where there may be more."""
        rules = {id_: state.user.delete for id_, state in self._states.items()}
        if rules != self._rules:  # whoever was passed by may have another rule now
            self._rules, self._places = rules, {}
        if not self._client.server_clock.agreed:
            return False
        more = False
        for after in {rule.after for rule in rules.values()} - {None}:
            assert after is not None
            more |= await self._plan(after)
        return more

    async def _plan(self, after: timedelta) -> bool:
        place = self._places.get(after, Place())
        passed = await self._ledger.read(deletions.walk, place, self.now() - after, _WALKED_AT_ONCE)
        mine = [
            one
            for one in passed
            if one.promising
            and one.stream in self._rules
            and self._rules[one.stream].after == after
        ]
        waiting = await self._ledger.read(
            errands.waiting, self._client.account.app_id, JobKind.DELETE
        )
        room = _OPEN_AT_MOST - waiting
        for begin in range(0, len(mine), _LOOKED_AT_ONCE):
            some = mine[begin : begin + _LOOKED_AT_ONCE]
            if room <= 0:
                self._places[after] = mine[begin - 1].place if begin else place
                return False
            room -= await self._intend(some)
        if passed:
            self._places[after] = passed[-1].place
        return len(passed) == _WALKED_AT_ONCE

    async def _intend(self, some: Sequence[Passed]) -> int:
        """Write down those whose files look well, by their sizes; how many."""
        rows = {
            row.id: row
            for row in await self._ledger.read(faxes.on_disk_of, [one.fax for one in some])
        }
        found = await self._auditor.look(list(rows.values()), thorough=False)
        wanted = [one.row.id for one in found if why_unproved(one, self._rule(one)) is None]
        if wanted:
            held = await self._ledger.read(faxes.some, wanted)
            await self._ledger.write(errands.ask, held, JobKind.DELETE, self._clock.now())
        return len(wanted)

    def _rule(self, one: Checked) -> Delete:
        (rule,) = (
            state.user.delete
            for state in self._states.values()
            if (state.user.app_id, state.user.user_id) == (one.row.app_id, one.row.user_id)
        )
        return rule

    # -- one deletion -----------------------------------------------------------------------------

    async def run(self, errand: Errand, state: StreamState) -> None:
        """Delete it, or record why not; raises LedgerUnavailable, where nothing could be recorded."""
        try:
            await self._time.now(state.user)  # from here on `now` knows eFax's
        except ApiError as error:
            await self._ends.failed(errand, error)
            return
        if self._why_kept(errand, state) is not None:
            await self._ledger.write(errands.end, errand)
            return
        try:
            proof = await self._prove(errand, state)
        except (StorageUnusable, StorageConflict):  # what is not mounted proves nothing
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
                await self._client.delete(state.user, errand.fax.fax_id, before=claim)
        except _NotNow:
            await self._ends.put_off(errand, shortly=True)
        except TimeoutError:
            await self._failed(errand, Unreachable("eFax has not answered in time"))
        except _Kept:
            await self._ledger.write(errands.end, errand)
        except PollerError as error:
            await self._failed(errand, error)
        else:
            await asyncio.shield(self._record(attempt))
        finally:
            if attempt.begun:
                state.deletions.end()
                self._asking.discard(errand.fax.id)
        await self._memory.refill()

    async def _record(self, attempt: _Attempt) -> None:
        errand = attempt.errand
        await self._ledger.write(deletions.deleted, errand, self._clock.now())
        self._services.emit(events.FaxDeleted(*errand.fax.names, attempt.proof))

    async def _failed(self, errand: Errand, error: PollerError) -> None:
        end = await self._ends.failed(errand, error)
        if end is None or (not end.is_left and str(error) == errand.last_error):
            return  # it says nothing new
        await self._ledger.write(deletions.refused, errand, str(error), self._clock.now())
        self._services.emit(
            events.DeleteRefused(*errand.fax.names, error, errand.failures + 1, end.is_left)
        )

    def _why_kept(self, errand: Errand, state: StreamState | None) -> str | None:
        rule = None if state is None else state.user.delete
        return deletion.why_kept(errand.fax, rule, self.now(), errand.stored_before)

    async def _prove(self, errand: Errand, state: StreamState) -> str | None:
        """Read the files now; how they prove it, or None where they do not."""
        rows: list[OnDisk] = await self._ledger.read(faxes.on_disk_of, [errand.fax.id])
        for one in await self._auditor.check(rows, thorough=True):
            if why_unproved(one, state.user.delete) is None:
                return "taken" if one.finding.condition is Condition.TAKEN else "file"
            if one.is_damaged:
                file, why = one.row.file, one.finding.why
                self._services.emit(events.FilesDamaged(*errand.fax.names, file, why))
        return None

    async def _claim(self, attempt: _Attempt) -> None:
        """It is the request's turn, perhaps long after the proof: see that all of it still holds.

        From the last look at the ledger on nothing else runs before the request is sent.
        """
        errand, state = attempt.errand, attempt.state
        if self._clock.monotonic() - attempt.proved_at > PROVED_FOR_S:
            raise _NotNow("it is proved anew first")
        job = (errand.fax.id, errand.fence, JobKind.DELETE)
        is_open = await self._ledger.read(jobs.is_open, *job)
        (row,) = await self._ledger.read(faxes.some, [errand.fax.id])
        rule = state.user.delete if self._states.get(state.id) is state else None
        why = deletion.why_kept(row, rule, self.now(), errand.stored_before)
        if not is_open or why is not None or row.sha256 != errand.fax.sha256:
            raise _Kept(why or "it was decided otherwise meanwhile")
        if not self._services.gate.usable:
            raise _NotNow("the storage cannot be used")
        if not attempt.begun:
            if state.deletions.held:
                raise _NotNow("the user's list is being read")
            if not self._memory.give_up(row.stream, row.fax_id):
                raise _NotNow("it proves just now that an empty list is one")
            attempt.begun = state.deletions.begin()
            self._asking.add(row.id)
        attempt.deadline.reschedule(asyncio.get_running_loop().time() + DELETED_WITHIN_S)


def why_unproved(one: Checked, rule: Delete) -> str | None:
    """Say why what was found of a fax's files does not prove that it may go; None: it does."""
    found = one.finding
    return deletion.why_unproved(
        rule,
        is_well=found.condition is Condition.OK,
        is_gone=found.condition is Condition.TAKEN,
        harm=found.why,
    )
