"""Restore eFax's mark "not downloaded", so that the fax stays new to people who use the portal."""

import asyncio

from poller import events
from poller.client import Client
from poller.errors import NotYet, PollerError, Rejected
from poller.ingest.errand_ends import Ends
from poller.ingest.fetch import Services
from poller.ingest.stream_state import StreamState
from poller.ledger import Errand, errands

_NOT_THERE = (404, 410)


class Marker:
    """Restores the marks of one account's faxes."""

    def __init__(self, services: Services, client: Client, ends: Ends) -> None:
        self._services = services
        self._client = client
        self._ends = ends

    async def run(self, errand: Errand, state: StreamState) -> None:
        """Restore one mark, or record why not; raises LedgerUnavailable."""
        fax, user = errand.fax, state.user
        if fax.deleted_at is None and not user.mark_downloaded:
            try:
                await self._client.mark(user, fax.fax_id, downloaded=False)
            except PollerError as error:
                if not _is_gone(error):
                    await self._failed(errand, error)
                    return
        await asyncio.shield(self._services.ledger.write(errands.end, errand))

    async def _failed(self, errand: Errand, error: PollerError) -> None:
        end = await self._ends.failed(errand, error)
        if end is not None and end.is_left:
            await self._services.ledger.write(errands.end, errand)
            self._services.emit(events.MarkLeft(*errand.fax.names, error))


def _is_gone(error: PollerError) -> bool:
    return isinstance(error, NotYet) or (isinstance(error, Rejected) and error.status in _NOT_THERE)
