"""Ask once, just before the fetch, for what a list leaves out of a received fax."""

from dataclasses import replace
from datetime import timedelta

from poller.client import Client
from poller.clock import Clock
from poller.config.model import User
from poller.efax.responses import completed, completed_at, lacks_something
from poller.errors import ApiError, DeadlinePassed, RateLimited, Rejected, TokenRefused
from poller.ledger import FaxRow, Ledger, faxes
from poller.stream import Direction

# A refused token costs a sign-in, which polls may need; a call without an answer costs a minute.
_PAUSE_S = timedelta(minutes=10).total_seconds()


class Completer:
    """Completes the records of one account's faxes with `GET /faxes/{id}/metadata`.

    It runs before the image request, which marks the fax at eFax, so that nothing after that must
    wait.
    """

    def __init__(self, client: Client, ledger: Ledger, clock: Clock) -> None:
        self._client = client
        self._ledger = ledger
        self._clock = clock
        self._answered: set[int] = set()
        self._not_before = 0.0  # monotonic

    async def completed(self, fax: FaxRow, user: User) -> FaxRow:
        """Return the fax with what eFax adds to its record; as listed, if eFax adds nothing.

        Raises LedgerUnavailable. No answer of eFax can delay a fax.
        """
        if fax.direction is not Direction.RECEIVED or not lacks_something(fax.listed):
            return fax
        if fax.id in self._answered or self._clock.monotonic() < self._not_before:
            return fax
        said = await self._asked(fax, user)
        if not said:
            return fax
        listed = completed(fax.listed, said)
        at = fax.received_at or completed_at(listed)
        await self._ledger.write(faxes.learnt, fax.id, listed, at)
        return replace(fax, listed=listed, received_at=at)

    def forget(self, fax: FaxRow) -> None:
        """Forget what is known about a stored fax."""
        self._answered.discard(fax.id)

    async def _asked(self, fax: FaxRow, user: User) -> dict[str, object] | None:
        for _ in range(2):
            try:
                said = await self._client.metadata_once(user, fax.fax_id)
            except RateLimited:  # wait until eFax allows requests again
                continue
            except Rejected:
                said = {}
            except ApiError as error:
                if isinstance(error, TokenRefused | DeadlinePassed):
                    self._not_before = self._clock.monotonic() + _PAUSE_S
                return None
            self._answered.add(fax.id)
            return said
        return None
