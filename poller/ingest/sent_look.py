"""Look at eFax for one fax of ours: was it taken at all, and how does its transmission stand?"""

import uuid
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from poller.client import Client
from poller.config.model import User
from poller.efax.responses import Page
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
from poller.recognition import find_sent
from poller.stream import Direction
from poller.window import Interval

_BACK = timedelta(hours=1)
# A list may show only one status, and complete ones where none is named.
_STATUSES = ("INPROGRESS", "NEW", "COMPLETE", "ERROR", "PENDING RETRY")
_NO_SUCH_ANSWER = (Rejected, BadAnswer, NotYet, UserRefused, WindowRefused)


class SentLook:
    """Looks for one fax; what eFax refuses to list in a way is not asked for in that way again."""

    def __init__(self, client: Client, user: User, row: SendRow) -> None:
        self._client = client
        self._user = user
        self._row = row
        self._looks = 0
        self._refused: set[tuple[bool, str | None]] = set()

    async def find(self) -> str | None:
        """Give the id of the fax whose answer was lost, where the sent list shows it; raises ApiError.

        Each look asks for our transaction id, for all of the last hour in case eFax does not know that
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
            page = await self._page(status, ours if is_filtered else None)
            if (found := find_sent(ours, page.faxes)) is not None or not is_filtered:
                return found
            # The record does not tell. It is ours if eFax shows nothing for an id that nobody has.
            if len(page.faxes) == len(page.marks) == 1:
                other = await self._page(status, str(uuid.uuid4()))
                return None if other.marks else page.faxes[0].fax_id
        except _NO_SUCH_ANSWER:
            self._refused.add((is_filtered, status))
        return None

    async def _page(self, status: str | None, transaction_id: str | None) -> Page:
        """List the newest; without bounds where the filter says enough: a fax under way may lack a time."""
        now = self._client.server_now()
        sent_at = self._row.sent_at or self._row.asked_at
        bounds = None if transaction_id else Interval(min(sent_at, now) - _BACK, now)
        return await self._client.list_sent(
            self._user,
            bounds,
            0,
            transmission_status=status,
            transaction_id=transaction_id,
            waited_for=True,
        )

    async def transmission(self) -> Transmission:
        """Ask how it stands, in the ways that there are, until one tells a status."""
        ways: tuple[Callable[[str], Awaitable[dict[str, Any]]], ...] = (
            lambda fax_id: self._client.metadata(
                self._user, fax_id, direction=Direction.SENT, waited_for=True
            ),
            lambda fax_id: self._client.transmission_details(self._user, fax_id, waited_for=True),
            self._listed,
        )
        assert self._row.fax_id is not None
        for ask in ways:
            try:
                found = final_status(await ask(self._row.fax_id))
            except OF_THE_ACCOUNT:
                break
            except ApiError:
                continue
            if found.status is not None:
                return found
        return Transmission()

    async def _listed(self, fax_id: str) -> dict[str, Any]:
        for transaction_id in (self._row.transaction_id, None):
            page = await self._page(None, transaction_id)
            for fax in page.faxes:
                if fax_key(fax.fax_id) == fax_key(fax_id):
                    return fax.raw
        raise Rejected("The list of sent faxes does not show it.")
