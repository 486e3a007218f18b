"""The lists of sent faxes, whose filters, spelling and completeness eFax has not published."""

from collections.abc import Sequence
from contextlib import suppress

from poller.client import Client
from poller.config.model import User
from poller.efax.responses import Page
from poller.efax.transmission import final_status
from poller.emptiness import NEVER
from poller.errors import BadAnswer, Rejected, WindowRefused
from poller.ingest.list_memory import ListMemory
from poller.ingest.reading import ListReader, Read
from poller.ingest.stream_state import StreamState
from poller.ledger import Ledger, faxes, sent
from poller.progress import Covered
from poller.window import Interval, SliceKind

# For lists that require a transmission_status: both spellings of a complete fax, since the answer
# to an unknown word may be an empty list.
_FINAL = ("COMPLETE", "COMPLETED", "ERROR", "CANCELED")
# What a list without a status may leave out. Of these too, only final ones are archived.
_BESIDE = ("ERROR", "CANCELED")
_UNDER_WAY = ("NEW", "INPROGRESS", "PENDING RETRY")


class SentReader(ListReader):
    """Reads the lists of sent faxes; sweeps also ask for what a list without a status may leave out."""

    _record_page = staticmethod(sent.record_page)
    _is_status_demanded = False
    _shows_others = False  # whether a list without a status has shown an incomplete fax

    async def _read(
        self, state: StreamState, bounds: Interval | None, covers: Interval | None, found_by: str
    ) -> Read:
        if covers is None:
            return Read()  # nobody downloads a sent fax, so that mark can reveal nothing
        read = await self._read_main(state, bounds, found_by)
        if read.halve is None:
            await self._add(read, state, bounds, found_by, self._not_shown(found_by))
        if read.halve is None and read.seen:
            await state.record_soon(Covered(covers))
        elif read.halve is None:
            await self._empties.cover(state, covers)
        return read

    def _not_shown(self, found_by: str) -> tuple[str, ...]:
        """Return the statuses that a sweep asks for, because the main list may leave them out."""
        if self._shows_others or found_by not in (SliceKind.SWEEP, SliceKind.DEEP_SWEEP):
            return ()
        under_way = _UNDER_WAY if found_by == SliceKind.DEEP_SWEEP else ()
        return under_way if self._is_status_demanded else (*_BESIDE, *under_way)

    async def _read_main(self, state: StreamState, bounds: Interval | None, found_by: str) -> Read:
        """List without a status; if the server refuses that, list once for each status.

        A deep sweep tries without again: the server may have refused a window for another reason.
        """
        if not self._is_status_demanded or found_by == SliceKind.DEEP_SWEEP:
            with suppress(WindowRefused):
                read = await self._with(state, bounds, found_by, None)
                self._is_status_demanded = False
                return read
        read = Read()
        refusal = await self._add(read, state, bounds, found_by, _FINAL)
        if refusal is not None:
            raise refusal
        self._is_status_demanded = True
        return read

    async def _add(
        self,
        read: Read,
        state: StreamState,
        bounds: Interval | None,
        found_by: str,
        words: Sequence[str],
    ) -> WindowRefused | None:
        """List with each of these; return the refusal if the server took none."""
        refusals: list[WindowRefused] = []
        for word in words:
            try:
                one = await self._with(state, bounds, found_by, word)
            except WindowRefused as error:
                refusals.append(error)
                continue
            read.discovered += one.discovered
            read.seen += one.seen
            read.halve = read.halve or one.halve
        return refusals[-1] if len(refusals) == len(words) and words else None

    async def _with(
        self, state: StreamState, bounds: Interval | None, found_by: str, word: str | None
    ) -> Read:
        async def ask(offset: int) -> Page:
            page = await self._client.list_sent(
                state.user, bounds, offset, transmission_status=word
            )
            said = [final_status(fax.raw) for fax in page.faxes] if word is None else []
            self._shows_others |= any(one.status and not one.is_complete for one in said)
            return page

        return await self._read_pages(state, ask, bounds, None, found_by)


async def look(client: Client, user: User, bounds: Interval) -> None:
    """List sent faxes once, to see whether eFax allows it; raises the ApiError if it does not."""
    refusal: WindowRefused | None = None
    for word in (None, *_FINAL):
        try:
            await client.list_sent(user, bounds, 0, transmission_status=word)
        except WindowRefused as error:
            refusal = refusal or error
        else:
            return
    assert refusal is not None
    raise refusal


class EmptySentLists:
    """Believes an empty list of sent faxes, unless eFax still has a fax that should be in it.

    A wrong list must not suspend the account, whose received faxes may be well.
    """

    def __init__(self, client: Client, ledger: Ledger, memory: ListMemory) -> None:
        self._client = client
        self._ledger = ledger
        self._memory = memory
        self._spelled: set[str] = (
            set()
        )  # how this server writes an empty list, if received faxes have not shown it

    async def listed(self, user: User, page: Page) -> None:
        """Do nothing: a list that contains faxes needs no proof."""

    async def believe(self, shape: str, *, is_end: bool) -> None:
        """Raise BadAnswer unless this is how the server writes an empty list.

        Lists of received faxes have shown it, or a list of a time that can contain no fax shows it.
        """
        known = (await self._memory.known()).shapes
        if not known or shape in known | self._spelled or "faxes: []" in shape or is_end:
            return
        user = self._memory.well or next(iter(self._memory.states.values())).user
        page = await self._client.list_sent(user, NEVER, 0)
        if page.marks or page.shape != shape:
            raise BadAnswer(
                f"eFax answered a list of sent faxes with {shape}, which is not a list."
            )
        self._spelled.add(shape)

    async def cover(self, state: StreamState, covers: Interval) -> None:
        """Cover what an empty list covers; raises BadAnswer if a fax is missing from it."""
        last = state.progress.last_received_at
        if last is not None and covers.start <= last:
            await self._require_deleted(state, covers)
        await state.record_soon(Covered(covers))

    async def _require_deleted(self, state: StreamState, covers: Interval) -> None:
        """Ask for a fax that the list should have shown; raises BadAnswer if eFax still has it.

        Choose a fax that was both completed and first listed within this time, since eFax may use
        either, and a complete one, since lists may leave out others.
        """
        found = await self._ledger.read(faxes.listed_within, state.id, covers)
        fax_id = next((one for one, listed in found if final_status(listed).is_complete), None)
        if fax_id is None:
            return
        try:
            await self._client.metadata(state.user, fax_id, direction=state.direction)
        except Rejected:
            return
        raise BadAnswer("eFax lists none of the sent faxes that it listed before and still has.")

    async def settle(self) -> None:
        """Do nothing: nothing waits for a proof here."""

    async def learn(self) -> None:
        """Do nothing: received faxes show how an empty list is spelled."""
