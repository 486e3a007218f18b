"""Look for one fax of ours at eFax: did eFax take it, and what is its transmission status?"""

import uuid
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from poller.client import Client
from poller.config.model import User
from poller.efax.responses import ListedFax, Page
from poller.efax.transmission import Transmission, final_status
from poller.errors import (
    OF_THE_ACCOUNT,
    ApiError,
    BadAnswer,
    NotYet,
    Rejected,
    UserRefused,
    WindowRefused,
)
from poller.ledger import SendRow
from poller.naming import fax_key
from poller.recognition import find_sent, may_be_sent
from poller.stream import Direction
from poller.window import Interval

_BACK = timedelta(hours=1)
_MOST_PAGES = 20  # per look
# A list may show only one status, or only complete faxes if none is given.
_STATUSES = ("INPROGRESS", "NEW", "COMPLETE", "ERROR", "PENDING RETRY")
_NO_SUCH_ANSWER = (Rejected, BadAnswer, NotYet, UserRefused, WindowRefused)


class SentLook:
    """Looks for one fax; does not repeat a kind of question that eFax refuses."""

    def __init__(
        self, client: Client, user: User, row: SendRow, *, waited_for: bool = False
    ) -> None:
        self._client = client
        self._user = user
        self._row = row
        self._waited_for = waited_for
        self._looks = 0
        self._refused: set[tuple[bool, str | None]] = set()
        self._ways = [self._metadata, self._details, self._listed]  # to learn the status

    async def find(self) -> str | None:
        """Return the id of a fax whose answer was lost, if the sent list shows it; raises ApiError.

        Each look asks for our transaction id, for the whole last hour in case eFax ignores that
        filter, and for one status in turn.
        """
        status = _STATUSES[self._looks % len(_STATUSES)]
        self._looks += 1
        for way in ((True, None), (False, None), (True, status), (False, status)):
            if way not in self._refused and (fax_id := await self._find(*way)) is not None:
                return fax_id
        return None

    async def _find(self, is_filtered: bool, status: str | None) -> str | None:  # noqa: FBT001
        ours = self._row.transaction_id
        try:
            if not is_filtered:
                return find_sent(ours, await self._all(status))
            page = await self._page(status, ours)
            if (found := find_sent(ours, page.faxes)) is not None:
                return found
            return await self._told_by_filter(status, page)
        except _NO_SUCH_ANSWER:
            self._refused.add((is_filtered, status))
        return None

    async def _told_by_filter(self, status: str | None, page: Page) -> str | None:
        """Take a record for ours, even without our id in it, if eFax lists it for our id and no other.

        Ask twice in turn: a fax may leave the list between two calls, and an empty list may be
        wrong.
        """
        (sent_at, destination), shown = (self._sent_at, self._row.destination), page.faxes
        if len(page.marks) != 1 or not shown or not may_be_sent(shown[0], destination, sent_at):
            return None
        for wanted in (None, self._row.transaction_id, None):
            again = await self._page(status, wanted or str(uuid.uuid4()))
            if again.marks != (page.marks if wanted else ()):
                return None
        return shown[0].fax_id

    @property
    def _sent_at(self) -> datetime:
        return self._row.sent_at or self._row.asked_at

    async def _all(self, status: str | None = None) -> list[ListedFax]:
        """List everything since an hour before it was sent; a page that shows nothing new is the end."""
        found: list[ListedFax] = []
        seen: set[str] = set()
        offset = 0
        for _ in range(_MOST_PAGES):
            page = await self._page(status, None, offset)
            if seen.issuperset(page.marks):
                break
            seen.update(page.marks)
            found += page.faxes
            offset += len(page.marks)
        return found

    async def _page(self, status: str | None, transaction_id: str | None, offset: int = 0) -> Page:
        """List a page; without bounds if the filter is enough, as a fax under way may have no time."""
        now = self._client.server_now()
        bounds = None if transaction_id else Interval(min(self._sent_at, now) - _BACK, now)
        return await self._client.list_sent(
            self._user,
            bounds,
            offset,
            transmission_status=status,
            transaction_id=transaction_id,
            waited_for=self._waited_for and offset == 0,
        )

    async def transmission(self) -> Transmission:
        """Ask for the status in all ways that work, beginning with the one that worked last."""
        assert self._row.fax_id is not None
        for ask in tuple(self._ways):
            try:
                found = final_status(await ask(self._row.fax_id))
            except OF_THE_ACCOUNT:
                break
            except ApiError:
                continue
            if found.status is not None:
                self._ways.sort(key=lambda way: way != ask)
                return found
        return Transmission()

    async def _metadata(self, fax_id: str) -> dict[str, Any]:
        return await self._client.metadata(
            self._user, fax_id, direction=Direction.SENT, waited_for=self._waited_for
        )

    async def _details(self, fax_id: str) -> dict[str, Any]:
        return await self._client.transmission_details(
            self._user, fax_id, waited_for=self._waited_for
        )

    async def _listed(self, fax_id: str) -> dict[str, Any]:
        filtered = await self._page(None, self._row.transaction_id)
        if (found := _one(fax_id, filtered.faxes) or _one(fax_id, await self._all())) is not None:
            return found.raw
        raise Rejected("The list of sent faxes does not show the fax.")


def _one(fax_id: str, listed: Iterable[ListedFax]) -> ListedFax | None:
    return next((fax for fax in listed if fax_key(fax.fax_id) == fax_key(fax_id)), None)
