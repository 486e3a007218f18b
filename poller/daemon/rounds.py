"""What is looked after beside polling: gaps that operators edit, and the files of stored faxes."""

from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from poller import log
from poller.errors import LedgerUnavailable, StorageConflict, StorageUnusable
from poller.ingest.audit import Auditor, Checked
from poller.ingest.patience import cut_off_if_hung
from poller.ingest.site import Site
from poller.ledger import State

_LOOK_S = 2.0
_RECENT = 1000
_AGAIN_S = 60.0
_REST_S = 1.0
_REST_FACTOR = 4  # at least as many times as long as it took: a fifth of one disk at most


class Rounds:
    """Looks after one site; `loops` are its background tasks."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._ledger = site.shop.ledger
        self._clock = site.shop.clock
        self._auditor = Auditor(
            site.shop.ledger, site.shop.storage, site.shop.clock, page=64, threads=1
        )

    def loops(self) -> dict[str, Coroutine[Any, Any, None]]:
        """The background work by name; each runs until it is cancelled or done."""
        return {"gap edits": self._watch_gap_edits(), "files": self._check_files()}

    async def _watch_gap_edits(self) -> None:
        """Take over gaps that were dismissed or made due; a counter says that there is something."""
        seen: str | None = None
        while True:
            # LedgerUnavailable: the gate says so; it is looked at again.
            async with cut_off_if_hung("gap edits"):
                with suppress(LedgerUnavailable):
                    edits = await self._ledger.gap_edits()
                    if edits != seen:
                        await self._site.read_failed_slices()
                        seen = edits
            await self._clock.sleep(_LOOK_S)

    async def _check_files(self) -> None:
        """Once per start: the newest files by their size at once, then all of them by their hash.

        The second takes as long as it takes, and a fifth of the time at most.
        """
        while not await self._check(thorough=False, limit=_RECENT):
            await self._clock.sleep(_AGAIN_S)
        while not await self._check(thorough=True, limit=None):
            await self._clock.sleep(_AGAIN_S)

    async def _check(self, *, thorough: bool, limit: int | None) -> bool:
        """False when ledger or storage went away before the end; then it begins again later."""
        began = self._clock.monotonic()
        try:
            async for page in self._auditor.pages(thorough=thorough, limit=limit):
                for one in page:
                    if one.is_damaged and one.row.state is State.STORED:
                        self._report(one, again=not thorough)
                if thorough:
                    took = self._clock.monotonic() - began
                    await self._clock.sleep(max(_REST_S, took * _REST_FACTOR))
                    began = self._clock.monotonic()
        except (StorageUnusable, StorageConflict, LedgerUnavailable):
            return False  # the gate says so
        return True

    @staticmethod
    def _report(one: Checked, *, again: bool) -> None:
        """What is known is said once more at a start."""
        row = one.row
        if row.harm is not None and not again:
            return
        log.event(
            "fax-damaged",
            "The files of a stored fax are not what was stored; `poller verify --repair` fetches "
            "it again.",
            account=row.account,
            user=row.user_name,
            fax_id=row.fax_id,
            file=row.file,
            problem=one.finding.why,
        )
