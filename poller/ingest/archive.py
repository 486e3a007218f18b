"""Archive one sent fax when eFax has finished it, as a sidecar with its image or alone."""

from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

from poller.config.model import User
from poller.efax.responses import completed_at
from poller.efax.transmission import final_status
from poller.errors import NotYet, Rejected
from poller.ingest.fetch import Fetcher, NotFinal
from poller.ledger import FaxRow, faxes
from poller.store import Draft
from poller.stream import Direction

_SOONEST, _LATEST = timedelta(minutes=1), timedelta(hours=1)
_UNDER_WAY_LONG = timedelta(days=1)


class Archiver(Fetcher):
    """Archives the sent faxes of one account as each user's `sent.archive` says."""

    async def _download_with_evidence(self, fax: FaxRow, user: User, draft: Draft) -> None:
        fax = await self._final(fax, user)
        if user.sent.archive == "metadata":
            return await self._alone(fax, draft)
        try:
            await super()._download_with_evidence(fax, user, draft)
        except NotYet:
            if final_status(fax.listed).is_complete and not await self._is_given_up(fax):
                raise
            await self._alone(fax, draft)

    async def _alone(self, fax: FaxRow, draft: Draft) -> None:
        """Store only the sidecar of a fax that has no image, or whose image is not wanted."""
        await self._require_claimed(fax)
        staging = draft.stage_alone(self._sidecar_of(fax))
        await self._to_its_end(fax, self._hand_over(fax, draft, staging))

    async def _is_given_up(self, fax: FaxRow) -> bool:
        return self._gives_up(fax, self._services.clock.now(), await self._paused_s())

    # -- has eFax finished it ---------------------------------------------------------------------

    async def _final(self, fax: FaxRow, user: User) -> FaxRow:
        """Return the fax in its final state; raises NotFinal, or NotYet if that takes over a day."""
        if final_status(fax.listed).is_final:
            return fax
        age = self._services.clock.now() - fax.first_seen_at
        if age < _SOONEST:
            raise NotFinal(_SOONEST)
        listed = await self._said_now(fax, user)
        said = final_status(listed)
        if said.is_final:
            return await self._learn(fax, listed)
        if age >= _UNDER_WAY_LONG:
            raise NotYet(
                f"eFax has been sending this fax for over a day; its status is {said.status!r}."
            )
        raise NotFinal(min(max(age / 2, _SOONEST), _LATEST))

    async def _said_now(self, fax: FaxRow, user: User) -> dict[str, Any]:
        """Ask for what a list may never show again; any part may be missing from the answer."""
        listed = fax.listed
        with suppress(Rejected):  # an eFax without this call; the list will say it, sooner or later
            listed = listed | await self._client.metadata(
                user, fax.fax_id, direction=Direction.SENT
            )
        if not final_status(listed).is_final or "transmission_data" not in listed:
            with suppress(Rejected):
                listed = listed | await self._client.transmission_details(user, fax.fax_id)
        return listed | {"fax_id": fax.fax_id}

    async def _learn(self, fax: FaxRow, listed: dict[str, Any]) -> FaxRow:
        at = completed_at(listed) or fax.received_at
        await self._services.ledger.write(faxes.learnt, fax.id, listed, at)
        return replace(fax, listed=listed, received_at=at)
