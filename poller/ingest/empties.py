"""The empty lists of one account: asking for known faxes proves that nothing has arrived."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta

from poller import events, log
from poller.client import Client
from poller.clock import Clock
from poller.config.model import User
from poller.efax.responses import Page
from poller.emptiness import Credibility, WitnessResult, credibility
from poller.errors import UserRefused, WindowRefused
from poller.events import Emit
from poller.ingest.list_memory import ListMemory, Witness
from poller.ingest.spelling import Spelling
from poller.ingest.stream_state import StreamState
from poller.ledger import Ledger
from poller.naming import fax_key
from poller.progress import Covered
from poller.suspension import EndsBy
from poller.topic import see
from poller.window import Coverage, Interval

LOST = see(
    "eFax lists nothing that it listed before: faxes that are stored here are missing from the "
    "lists that contained them",
    "empty-lists",
)

Record = Callable[[StreamState, Page, Interval], Awaitable[None]]


async def _unrecorded(_state: StreamState, _page: Page, _window: Interval) -> None: ...


class EmptyLists:
    """Decides whether to believe the empty lists of one account.

    The coverage of an empty list waits in `StreamState.unproved` for a later proof: a list that
    contains a fax, or a witness.
    """

    def __init__(
        self,
        client: Client,
        ledger: Ledger,
        clock: Clock,
        states: Mapping[int, StreamState],
        *,
        emit: Emit = log.say,
    ) -> None:
        self._emit = emit
        self._client = client
        self._clock = clock
        self.memory = ListMemory(client, ledger, clock, states)
        self.spelling = Spelling(client, clock, self.memory, self._judge)
        self.believe, self.learn = self.spelling.believe, self.spelling.learn
        self.record: Record = _unrecorded  # the list of a witness's window may contain new faxes
        self._waiting: dict[int, StreamState] = {}
        self._proofs = 0
        self._said_deleted = False

    # -- coverage that waits for a proof ------------------------------------------------------

    async def listed(self, user: User, page: Page) -> None:
        """Take a list of this user that contains faxes as the proof."""
        self.memory.well = user
        lists = await self.memory.known()
        # the missing faxes are back, so it was an outage
        if not set(page.marks).isdisjoint(lists.given_up):
            await self.memory.keep(replace(lists, given_up=(), deleted_until=None))
        await self._proved()

    async def cover(self, state: StreamState, covers: Interval) -> None:
        """Cover what an empty list covers, once proved; raises AccountSuspended if it is not."""
        state.unproved = state.unproved.add(covers)
        self._waiting[state.id] = state
        last = state.progress.last_received_at
        is_missed = last is not None and last != state.missed and covers.start <= last < covers.end
        if not self.memory.witnesses or is_missed or self.memory.is_due(self.memory.proved_s):
            await self.settle()
            state.missed = last

    @property
    def is_proof_due(self) -> bool:
        """Whether something waits for a proof, and the last one is old enough."""
        return bool(self._waiting) and self.memory.is_due(self.memory.proved_s)

    async def settle(self) -> None:
        """Prove everything that waits, with one witness for all; raises AccountSuspended."""
        if not self._waiting:
            return
        async with self.memory.lock:
            if not self._waiting:
                return  # another caller's proof has arrived meanwhile
            try:
                await self._judge()
            except BaseException:
                self.disbelieve()
                raise

    def disbelieve(self) -> None:
        """Have everything listed again that waits for a proof: a much later one would prove nothing."""
        for state in self._waiting.values():
            state.unproved = Coverage()
        self._waiting.clear()

    async def prove(self) -> None:
        """Ask for a known fax now; raises AccountSuspended if eFax no longer lists any."""
        await self.memory.known()
        async with self.memory.lock:
            await self._judge()

    # -- witnesses -----------------------------------------------------------------------------

    async def _judge(self) -> Credibility:
        """Ask for known faxes until eFax lists one; raises AccountSuspended if it lists none."""
        is_probe = self._client.suspension.until is not None
        proofs = self._proofs
        found: dict[Witness, WitnessResult] = {}
        for witness in tuple(self.memory.witnesses):
            found[witness] = finding = await self._look(witness, is_probe=is_probe)
            if finding is WitnessResult.LISTED or (
                is_probe and credibility([finding]) is Credibility.LOST
            ):
                break
        outcome = credibility(found.values())
        if outcome is Credibility.LOST and self._proofs > proofs:
            return Credibility.PROVED  # by a list that arrived meanwhile
        if outcome is Credibility.PROVED:
            await self._proved()
            return outcome
        deleted = [one for one, what in found.items() if what is not WitnessResult.REFUSED]
        if outcome is Credibility.LOST:
            await self._require_long_doubt(is_outage=WitnessResult.BROKEN in found.values())
            lists = await self.memory.known()
            await self.memory.keep(lists.believed([fax_key(one.fax_id) for one in deleted]))
        await self._forget(deleted, is_sure=outcome is Credibility.UNPROVED)
        await self._release()
        return outcome

    async def _look(self, witness: Witness, *, is_probe: bool) -> WitnessResult:
        state = self.memory.states.get(witness.stream)
        if state is None or state.is_refused:
            return WitnessResult.REFUSED
        try:
            page = await self._client.list_received(
                state.user, witness.window, 0, is_probe=is_probe
            )
        except WindowRefused:  # too old by now, and it will not get younger
            self._drop([witness])
            return WitnessResult.REFUSED
        except UserRefused:
            return WitnessResult.REFUSED
        if page.marks:
            self.memory.well = state.user
            await self.record(state, page, witness.window)
            return WitnessResult.LISTED
        has = await self._client.has_fax(state.user, witness.fax_id, is_probe=is_probe)
        if not (await self.memory.known()).tells_gone:
            return WitnessResult.ABSENT  # an eFax without metadata never answers for a fax
        return {True: WitnessResult.ABSENT, False: WitnessResult.GONE, None: WitnessResult.BROKEN}[
            has
        ]

    async def _require_long_doubt(self, *, is_outage: bool) -> None:
        """Suspend the account, unless it has listed nothing for so long that this must be true."""
        lists = await self.memory.doubt(is_outage=is_outage)
        if not is_outage and lists.is_doubted_too_long:
            return
        self.memory.proved_s = None
        self.disbelieve()
        witnesses = self.memory.witnesses
        self.memory.witnesses = witnesses[1:] + witnesses[:1]  # the next probe asks for another fax
        raise self._client.breaker.distrust(LOST, EndsBy.JUDGEMENT)

    async def _forget(self, deleted: Sequence[Witness], *, is_sure: bool) -> None:
        """Stop asking for these faxes; emit an event if there is no other left to ask for."""
        self._drop(deleted)
        if self.memory.witnesses or not deleted:
            return
        until = max(one.window.end for one in deleted)
        lists = await self.memory.known()
        await self.memory.keep(replace(lists.well(), deleted_until=until))
        if is_sure and self._said_deleted:
            return
        self._said_deleted = True
        minutes = round(lists.doubted_for / timedelta(minutes=1))
        self._emit(events.WitnessesDeleted(self._client.account.name, is_sure, minutes))

    def _drop(self, gone: Sequence[Witness]) -> None:
        self.memory.witnesses = [one for one in self.memory.witnesses if one not in gone]

    async def _proved(self) -> None:
        """Believe the lists: record the coverage that waited for this."""
        self._proofs += 1
        lists = await self.memory.known()
        if lists.believed_since is not None:
            await self.memory.list_again(lists.believed_since)
        if lists.doubted_since is not None or lists.believed_since is not None:
            await self.memory.keep(replace((await self.memory.known()).well(), believed_since=None))
        await self._release()

    async def _release(self) -> None:
        self.memory.proved_s = self._clock.monotonic()
        if self._client.suspension.ends_by is EndsBy.JUDGEMENT:
            self._client.breaker.trust()
        for id_ in list(self._waiting):  # what remains after a failure of the ledger keeps waiting
            if (state := self._waiting.pop(id_, None)) is None:
                continue  # another proof released it
            unproved, state.unproved = state.unproved, Coverage()
            await state.record_soon(*map(Covered, unproved.intervals))
