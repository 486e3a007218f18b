"""Read one slice of a user's list to its end, and record each page at once."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from poller import naming
from poller.client import Client
from poller.clock import Clock
from poller.config.model import User
from poller.efax.responses import ListedFax, Page
from poller.errors import BadAnswer
from poller.ingest.stream_state import StreamState
from poller.ledger import FaxRow, Ledger, NewFax, faxes
from poller.listing import Listing, Step
from poller.progress import Covered
from poller.window import Interval, Slice

_HALVE = {
    Step.HALVE_SHIFTING: "the list kept changing during the read",
    Step.HALVE_OFFSET_IGNORED: "the server ignores the paging headers and may have more",
}


@dataclass
class Read:
    """`halve` is why the slice could not be listed whole, None if it was; `seen` counts records."""

    discovered: list[FaxRow] = field(default_factory=list)
    halve: str | None = None
    seen: int = 0


class Emptiness(Protocol):
    """What to do with empty lists and with others; raises if an empty list is not believable."""

    async def listed(self, user: User, page: Page) -> None: ...
    async def believe(self, shape: str, *, is_end: bool) -> None: ...
    async def cover(self, state: StreamState, covers: Interval) -> None: ...
    async def settle(self) -> None: ...
    async def learn(self) -> None: ...


class ListReader:
    """Reads the lists of one account's users; whatever it returns is already in the ledger."""

    _record_page = staticmethod(faxes.record_page)

    def __init__(
        self,
        client: Client,
        ledger: Ledger,
        clock: Clock,
        empties: Emptiness,
        *,
        path_template: Callable[[User], str],
        on_discovered: Callable[[StreamState, Sequence[FaxRow]], None],
    ) -> None:
        self._client = client
        self._ledger = ledger
        self._clock = clock
        self._empties = empties
        self._path_template = path_template
        self._on_discovered = on_discovered
        self._largest_page = 0

    async def read(self, state: StreamState, piece: Slice, bounds: Interval) -> Read:
        """List `piece` within `bounds` to its end; its coverage is recorded with the last page.

        Raises the ApiError of the failed call, LedgerUnavailable, and BadAnswer if an entry has no
        usable id: then the usable entries are recorded, and the coverage is not.
        """
        return await self._read(state, bounds, piece.interval, str(piece.kind))

    async def read_not_downloaded(self, state: StreamState, bounds: Interval | None) -> Read:
        """List what eFax considers not downloaded; this proves nothing about coverage."""
        return await self._read(state, bounds, None, "not-downloaded")

    async def record(self, state: StreamState, page: Page, window: Interval) -> None:
        """Record a page of a window that was listed for another reason; it covers nothing."""
        await self._record(state, page, window, "witness", None)

    async def record_noticed(self, state: StreamState, fax: ListedFax) -> bool:
        """Record a fax that no list has shown, if it is in our time; return whether it was new."""
        return bool(await self._record(state, Page((fax,)), None, "notifications", None))

    async def _read(
        self, state: StreamState, bounds: Interval | None, covers: Interval | None, found_by: str
    ) -> Read:
        def ask(offset: int) -> Awaitable[Page]:
            mark = False if covers is None else None
            return self._client.list_received(state.user, bounds, offset, image_downloaded=mark)

        return await self._read_pages(state, ask, bounds, covers, found_by)

    async def _read_pages(
        self,
        state: StreamState,
        ask: Callable[[int], Awaitable[Page]],
        bounds: Interval | None,
        covers: Interval | None,
        found_by: str,
    ) -> Read:
        """Ask for one page after another, each by the number of its first record."""
        listing = Listing(largest_page=self._largest_page)
        read = Read()
        unusable = 0
        while True:
            page = await ask(listing.offset)
            if page.marks:
                await self._empties.listed(state.user, page)
            else:
                await self._empties.believe(page.shape, is_end=bool(listing.seen))
            read.seen += len(page.marks)
            step = listing.page(page.marks)
            self._largest_page = max(self._largest_page, listing.largest_page)
            unusable += page.unusable
            done = step is Step.DONE and not unusable
            if done and covers is not None and not listing.seen:
                await self._empties.cover(state, covers)
            else:
                read.discovered += await self._record(
                    state, page, bounds, found_by, covers if done else None
                )
            if step is Step.DONE:
                if unusable:
                    raise BadAnswer(f"{unusable} entries of the list have no usable fax_id")
                return read
            if step in _HALVE:
                read.halve = _HALVE[step]
                return read

    async def _record(
        self,
        state: StreamState,
        page: Page,
        bounds: Interval | None,
        found_by: str,
        covers: Interval | None,
    ) -> list[FaxRow]:
        wanted = [fax for fax in page.faxes if _is_ours(state, fax, bounds)]
        if not wanted:
            if covers is not None:
                await state.record_soon(Covered(covers))
            return []
        now = self._clock.now()
        new = [self._new_fax(state, fax, now) for fax in wanted]
        listed = faxes.ListedPage(new, bounds, found_by, now, covers)
        recorded = await state.hear(self._ledger.write(self._record_page, state.id, listed))
        if recorded.discovered:
            self._on_discovered(state, recorded.discovered)
        return recorded.discovered

    def _new_fax(self, state: StreamState, fax: ListedFax, now: datetime) -> NewFax:
        path = naming.fax_path(
            self._path_template(state.user),
            account=state.user.account,
            user=state.user.name,
            fax_id=fax.fax_id,
            at=fax.received_at or now,
        )
        return NewFax(fax_id=fax.fax_id, path=path, listed=fax.raw, received_at=fax.received_at)


def _is_ours(state: StreamState, fax: ListedFax, bounds: Interval | None) -> bool:
    """Tell whether to take a fax: a list without bounds goes further back than the operator wants."""
    start = state.progress.pinned_start
    if bounds is not None or fax.received_at is None or start is None:
        return True
    return fax.received_at >= start
