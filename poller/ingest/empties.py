"""The empty lists of one account: its spelling is learnt, and known faxes are asked for as proof."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from poller import events, log
from poller.client import Client
from poller.clock import Clock
from poller.config.model import User
from poller.efax.responses import Page
from poller.emptiness import (
    CANARIES,
    NEVER,
    CanaryResult,
    Credibility,
    Lists,
    credibility,
    is_proof_due,
)
from poller.errors import ApiError, BadAnswer, UserRefused, WindowRefused
from poller.events import Emit
from poller.ingest.user import UserState
from poller.ledger import FaxRow, Ledger, accounts, streams
from poller.naming import fax_key
from poller.suspension import EndsBy
from poller.window import Coverage, Interval

LOST = (
    "eFax lists nothing that it listed before: faxes that are stored here are missing from the "
    "lists that held them"
)


@dataclass(frozen=True)
class Canary:
    """A fax that eFax has listed in this window; `user` is `UserState.id`."""

    user: int
    fax_id: str
    window: Interval


Record = Callable[[UserState, Page, Interval], Awaitable[None]]


async def _unrecorded(_state: UserState, _page: Page, _window: Interval) -> None: ...


class EmptyLists:
    """Believes the empty lists of one account, or does not.

    What an empty list covers waits in `UserState.unproved` for a proof that comes after it: a list
    that holds a fax, or a canary.
    """

    def __init__(
        self,
        client: Client,
        ledger: Ledger,
        clock: Clock,
        states: Mapping[int, UserState],
        *,
        emit: Emit = log.say,
    ) -> None:
        self._emit = emit
        self._client = client
        self._ledger = ledger
        self._clock = clock
        self._states = states
        self.record: Record = _unrecorded  # what a canary's window lists may be new
        self.is_a_look = False  # nothing of it is kept: the polls judge
        self._lists: Lists | None = None  # None: not read from the ledger yet
        self._canaries: list[Canary] = []  # the newest first
        self._waiting: dict[int, UserState] = {}
        self._proved_s: float | None = None
        self._proofs = 0
        self._well: User | None = None  # by the last proof
        self._refuted_s: dict[str, float] = {}
        self._said_deleted = False
        self._tried_to_learn = False
        self._lock = asyncio.Lock()

    # -- what lists hold ----------------------------------------------------------------------

    def discovered(self, faxes: Sequence[FaxRow]) -> None:
        """Take a fax of a page as a canary."""
        if (window := faxes[0].first_window) is not None:
            self._add_canaries([Canary(faxes[0].stream, faxes[0].fax_id, window)])

    async def listed(self, user: User, page: Page) -> None:
        """Take a list of this user that holds faxes for the proof that it is."""
        self._well = user
        lists = await self._known()
        if not set(page.marks).isdisjoint(lists.given_up):  # it was an outage
            await self._keep(replace(lists, given_up=(), deleted_until=None))
        await self._proved()

    async def believe(self, shape: str, *, is_end: bool) -> None:
        """Return where an answer is an empty list of this server; raises BadAnswer where it is not.

        `is_end`: pages with faxes came before it.
        """
        lists = await self._known()
        if shape in (lists.shapes or ()) or (is_end and not lists.shapes):
            return
        if not self._canaries and not lists.shapes:
            if shape not in lists.unproved:  # nothing was ever listed here
                await self._keep(replace(lists, unproved=lists.unproved | {shape}))
            return
        async with self._lock:
            await self._learn_again(shape)

    async def cover(self, state: UserState, covers: Interval) -> None:
        """Cover what an empty list says, once that is proved; raises AccountSuspended if it is not."""
        state.unproved = state.unproved.add(covers)
        self._waiting[state.id] = state
        last = state.last_received_at
        is_missed = last is not None and last != state.missed and _holds(covers, last)
        if not self._canaries or is_missed or self._is_due(self._proved_s):
            await self.settle()
            state.missed = last

    @property
    def is_proof_due(self) -> bool:
        """Whether something waits for a proof, and the last one is old enough."""
        return bool(self._waiting) and self._is_due(self._proved_s)

    def _is_due(self, asked_s: float | None) -> bool:
        limits = self._client.account.limits
        return is_proof_due(self._clock.monotonic(), asked_s, limits.requests_per_second)

    async def settle(self) -> None:
        """Prove what waits for it, with one canary for all; raises AccountSuspended."""
        if not self._waiting:
            return
        async with self._lock:
            if not self._waiting:
                return  # somebody's proof has come in the meantime
            try:
                await self._judge()
            except BaseException:
                self.disbelieve()
                raise

    def disbelieve(self) -> None:
        """List again what waits for a proof: one that comes much later would prove nothing of it."""
        for state in self._waiting.values():
            state.unproved = Coverage()
        self._waiting.clear()

    async def prove(self) -> None:
        """Ask for a known fax now; raises AccountSuspended where none is listed any more."""
        await self._known()
        async with self._lock:
            await self._judge()

    async def learn(self) -> None:
        """Ask once, beside a list that held faxes, how an empty one is spelled here."""
        lists = await self._known()
        if (lists.shapes is not None and lists.tells_gone) or not self._canaries:
            return
        if self._tried_to_learn or self._is_due(self._proved_s):
            return
        async with self._lock:
            try:
                await self._learn()
            except ApiError:
                return  # at the next occasion

    # -- how an empty list is spelled ---------------------------------------------------------

    async def _learn(self) -> None:
        if not self._canaries:
            return  # they were found to be deleted meanwhile
        if (await self._known()).shapes is None:
            asked = await self._ask_for_nothing()
            await self._take_shapes([] if asked is None else [asked])
        lists = await self._known()
        if not lists.tells_gone and (state := self._states.get(self._canaries[0].user)):
            tells = await self._client.has_fax(state.user, self._canaries[0].fax_id)
            await self._keep(replace(lists, tells_gone=tells is True))
        self._tried_to_learn = True

    async def _learn_again(self, shape: str) -> None:
        """Take an answer that is spelled otherwise for an empty list where that can be proved."""
        if shape in ((await self._known()).shapes or ()):
            return
        now_s = self._clock.monotonic()
        if not self._is_due(self._refuted_s.get(shape)):
            raise self._no_list(shape)
        is_proved = await self._judge() is Credibility.PROVED
        if not is_proved and not (await self._known()).shapes:
            return
        asked = await self._ask_for_nothing()
        if not is_proved and (await self._doubt()).is_doubted_too_long:
            is_proved = True
            await self._keep((await self._known()).believed(()).well())
        if is_proved:
            await self._take_shapes([asked or shape])
        if is_proved and asked in (None, shape):
            return
        self._refuted_s[shape] = now_s
        raise self._no_list(shape)

    async def _ask_for_nothing(self) -> str | None:
        """Ask for what must be empty; None where the server does not list such a time.

        For the user whose lists are known to be well, if there is one.
        """
        user = self._well or next(iter(self._states.values())).user
        try:
            page = await self._client.list_received(user, NEVER, 0)
        except (WindowRefused, UserRefused):
            return None
        return None if page.marks else page.shape

    async def _take_shapes(self, shapes: Sequence[str]) -> None:
        lists = await self._known()
        known = (lists.shapes or frozenset()) | frozenset(shapes)
        if known and lists.unproved - known:
            await self._list_again()
        await self._keep(replace(lists, shapes=known, unproved=frozenset()))

    async def _list_again(self, since: datetime | None = None) -> None:
        """What was taken for an empty list since then, or since the start, may have been none."""
        if not self.is_a_look:
            await self._ledger.write(streams.forget_sweeps, self._client.account.app_id, since)
        for state in self._states.values():
            for kind, end in state.sweep_ends.items():
                state.sweep_ends[kind] = since and end and min(since, end)
            state.sweeps.clear()  # one under way is not through with that
            state.sweep_now = True

    def _no_list(self, shape: str) -> BadAnswer:
        known = " or ".join(sorted((self._lists and self._lists.shapes) or ["otherwise"]))
        return BadAnswer(
            f"eFax answered a list with {shape}, and that is no list: it spells an empty one {known}."
        )

    # -- canaries -----------------------------------------------------------------------------

    async def _judge(self) -> Credibility:
        """Ask for known faxes until one is listed; raises AccountSuspended where none is."""
        is_probe = self._client.suspension.until is not None
        proofs = self._proofs
        found: dict[Canary, CanaryResult] = {}
        for canary in tuple(self._canaries):
            found[canary] = finding = await self._look(canary, is_probe=is_probe)
            if finding is CanaryResult.LISTED or (
                is_probe and credibility([finding]) is Credibility.LOST
            ):
                break
        outcome = credibility(found.values())
        if outcome is Credibility.LOST and self._proofs > proofs:
            return Credibility.PROVED  # by a list that came in the meantime
        if outcome is Credibility.PROVED:
            await self._proved()
            return outcome
        if outcome is Credibility.LOST:
            await self._require_long_doubt(is_outage=CanaryResult.BROKEN in found.values())
        deleted = [one for one, what in found.items() if what is not CanaryResult.REFUSED]
        if outcome is Credibility.LOST:
            lists = await self._known()
            await self._keep(lists.believed([fax_key(one.fax_id) for one in deleted]))
        await self._forget(deleted, is_sure=outcome is Credibility.UNPROVED)
        await self._release()
        return outcome

    async def _look(self, canary: Canary, *, is_probe: bool) -> CanaryResult:
        state = self._states.get(canary.user)
        if state is None or state.refusals:
            return CanaryResult.REFUSED
        try:
            page = await self._client.list_received(state.user, canary.window, 0, is_probe=is_probe)
        except WindowRefused:  # too old by now, and it gets no younger
            self._canaries = [one for one in self._canaries if one != canary]
            return CanaryResult.REFUSED
        except UserRefused:
            return CanaryResult.REFUSED
        if page.marks:
            self._well = state.user
            await self.record(state, page, canary.window)
            return CanaryResult.LISTED
        has = await self._client.has_fax(state.user, canary.fax_id, is_probe=is_probe)
        if not (await self._known()).tells_gone:
            return CanaryResult.ABSENT  # an eFax without metadata never answers for a fax
        return {True: CanaryResult.ABSENT, False: CanaryResult.GONE, None: CanaryResult.BROKEN}[has]

    async def _require_long_doubt(self, *, is_outage: bool) -> None:
        """Suspend the account, unless it has listed nothing for so long that this must be true."""
        lists = await self._doubt(is_outage=is_outage)
        if not is_outage and lists.is_doubted_too_long:
            return
        self._proved_s = None
        self.disbelieve()
        self._canaries = self._canaries[1:] + self._canaries[:1]  # a probe asks for another one
        raise self._client.breaker.distrust(LOST, EndsBy.JUDGEMENT)

    async def _doubt(self, *, is_outage: bool = False) -> Lists:
        lists = await self._known()
        await self._keep(doubted := lists.doubted(self._client.server_now(), is_outage=is_outage))
        return doubted

    async def _forget(self, deleted: Sequence[Canary], *, is_sure: bool) -> None:
        """Ask for these no more; say so once no other one is left to be asked for."""
        self._canaries = [one for one in self._canaries if one not in deleted]
        if self._canaries or not deleted:
            return
        until = max(one.window.end for one in deleted)
        lists = await self._known()
        await self._keep(replace(lists.well(), deleted_until=until))
        if is_sure and self._said_deleted:
            return
        self._said_deleted = True
        minutes = round(lists.doubted_for / timedelta(minutes=1))
        self._emit(events.CanariesDeleted(self._client.account.name, is_sure, minutes))

    # -- what is known, and what waits --------------------------------------------------------

    async def _proved(self) -> None:
        """The lists are well: cover what waits for that."""
        self._proofs += 1
        lists = await self._known()
        if lists.believed_since is not None:
            await self._list_again(lists.believed_since)
        if lists.doubted_since is not None or lists.believed_since is not None:
            await self._keep(replace((await self._known()).well(), believed_since=None))
        await self._release()

    async def _release(self) -> None:
        self._proved_s = self._clock.monotonic()
        if self._client.suspension.ends_by is EndsBy.JUDGEMENT:
            self._client.breaker.trust()
        for id_ in list(self._waiting):  # what a ledger that fails leaves there goes on waiting
            if (state := self._waiting.pop(id_, None)) is None:
                continue  # released by another proof
            unproved, state.unproved = state.unproved, Coverage()
            for interval in unproved.intervals:
                await self._ledger.cover(state.id, interval)
                state.covered(interval)

    async def _known(self) -> Lists:
        """Read once what earlier runs have learnt, and which faxes they had listed."""
        if self._lists is None:
            text, faxes = await self._ledger.read(accounts.lists, self._client.account.app_id)
            if self._lists is None:  # nobody else has read it meanwhile
                self._lists = lists = Lists.read(text)
                self._add_canaries(
                    [Canary(*fax) for fax in faxes if not lists.is_deleted(fax[2].end)]
                )
        return self._lists

    async def _keep(self, lists: Lists) -> None:
        self._lists = lists
        if not self.is_a_look:
            await self._ledger.write(accounts.keep_lists, self._client.account.app_id, lists.text())

    def _add_canaries(self, new: Sequence[Canary]) -> None:
        """Keep the few of the newest windows, each once."""
        of_windows = {(one.user, one.window): one for one in (*self._canaries, *new)}
        newest_first = sorted(of_windows.values(), key=lambda one: one.window.end, reverse=True)
        self._canaries = newest_first[:CANARIES]


def _holds(interval: Interval, instant: datetime) -> bool:
    return interval.start <= instant < interval.end
