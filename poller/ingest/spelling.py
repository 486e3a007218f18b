"""Learn how the server writes an empty list for one account, as nobody has published it."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from poller.client import Client
from poller.clock import Clock
from poller.emptiness import NEVER, Credibility, Lists
from poller.errors import ApiError, BadAnswer, UserRefused, WindowRefused
from poller.ingest.list_memory import ListMemory


class Spelling:
    """`judge` asks for known faxes, and returns whether one is listed."""

    def __init__(
        self,
        client: Client,
        clock: Clock,
        memory: ListMemory,
        judge: Callable[[], Awaitable[Credibility]],
    ) -> None:
        self._client = client
        self._clock = clock
        self._memory = memory
        self._judge = judge
        self._refuted_s: dict[str, float] = {}
        self._tried_to_learn = False

    async def believe(self, shape: str, *, is_end: bool) -> None:
        """Return if the answer is an empty list of this server; raise BadAnswer if it is not.

        `is_end`: pages with faxes came before it.
        """
        lists = await self._memory.known()
        if shape in (lists.shapes or ()) or (is_end and not lists.shapes):
            return
        if not self._memory.witnesses and not lists.shapes:
            if shape not in lists.unproved:  # nothing was ever listed here
                await self._memory.keep(replace(lists, unproved=lists.unproved | {shape}))
            return
        async with self._memory.lock:
            await self._learn_again(shape)

    async def learn(self) -> None:
        """Ask once, after a list that contained faxes, how the server writes an empty one."""
        lists = await self._memory.known()
        if (lists.shapes is not None and lists.tells_gone) or not self._memory.witnesses:
            return
        if self._tried_to_learn or self._memory.is_due(self._memory.proved_s):
            return
        async with self._memory.lock:
            try:
                await self._learn()
            except ApiError:
                return  # at the next occasion

    async def _learn(self) -> None:
        if not self._memory.witnesses:
            return  # they turned out to be deleted
        if (await self._memory.known()).shapes is None:
            asked = await self._ask_for_nothing()
            await self._take([] if asked is None else [asked])
        lists, witness = await self._memory.known(), self._memory.witnesses[0]
        if not lists.tells_gone and (state := self._memory.states.get(witness.stream)):
            tells = await self._client.has_fax(state.user, witness.fax_id)
            await self._memory.keep(replace(lists, tells_gone=tells is True))
        self._tried_to_learn = True

    async def _learn_again(self, shape: str) -> None:
        """Accept another spelling of an empty list if it can be proved."""
        lists = await self._memory.known()
        if shape in (lists.shapes or ()):
            return
        now_s = self._clock.monotonic()
        if not self._memory.is_due(self._refuted_s.get(shape)):
            raise _no_list(shape, lists)
        is_proved = await self._judge() is Credibility.PROVED
        if not is_proved and not (await self._memory.known()).shapes:
            return
        asked = await self._ask_for_nothing()
        if not is_proved and (await self._memory.doubt()).is_doubted_too_long:
            is_proved = True
            await self._memory.keep((await self._memory.known()).believed(()).well())
        if is_proved:
            await self._take([asked or shape])
        if is_proved and asked in (None, shape):
            return
        self._refuted_s[shape] = now_s
        raise _no_list(shape, await self._memory.known())

    async def _ask_for_nothing(self) -> str | None:
        """Ask for a time that must be empty; return None if the server does not list such a time.

        If one user's lists are known to be well, ask for that user.
        """
        user = self._memory.well or next(iter(self._memory.states.values())).user
        try:
            page = await self._client.list_received(user, NEVER, 0)
        except (WindowRefused, UserRefused):
            return None
        return None if page.marks else page.shape

    async def _take(self, shapes: Sequence[str]) -> None:
        lists = await self._memory.known()
        known = (lists.shapes or frozenset()) | frozenset(shapes)
        if known and lists.unproved - known:
            await self._memory.list_again()
        await self._memory.keep(replace(lists, shapes=known, unproved=frozenset()))


def _no_list(shape: str, lists: Lists) -> BadAnswer:
    known = " or ".join(sorted(lists.shapes or ["otherwise"]))
    return BadAnswer(
        f"eFax answered a list with {shape}, which is not a list: it writes an empty one as {known}."
    )
