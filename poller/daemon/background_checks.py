"""Background work beside polling: operators' requests, and checks of stored files."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from poller import log
from poller.errors import LedgerUnavailable, StorageConflict, StorageUnusable
from poller.ingest.audit import Auditor
from poller.ingest.hang_timeout import cut_off_if_hung
from poller.ingest.runtime import Runtime
from poller.ingest.stream_state import StreamState
from poller.ledger import State, meta

_LOOK_S = 2.0
_RECENT = 1000
_AGAIN_S = 60.0
_REST_S = 1.0
_REST_FACTOR = 4  # rest four times as long as the work took: use at most a fifth of the disk


class BackgroundChecks:
    """Runs the checks of one runtime; `loops` are its background tasks."""

    def __init__(
        self,
        runtime: Runtime,
        poll_soon: Callable[[StreamState], None] = lambda _: None,
        *,
        on_edit: Callable[[], None] = lambda: None,
    ) -> None:
        self._runtime = runtime
        self._poll_soon = poll_soon
        self._on_edit = on_edit
        self._again = asyncio.Event()
        self._ledger = runtime.services.ledger
        self._clock = runtime.services.clock
        self._auditor = Auditor(
            runtime.services.ledger,
            runtime.services.storage,
            runtime.services.clock,
            page=64,
            threads=1,
            ledger_of=None if runtime.keeper is None else runtime.ledger_of,
        )

    def begin_again(self) -> None:
        """Check all files once more: this node works on another account now."""
        self._again.set()

    def loops(self) -> dict[str, Coroutine[Any, Any, None]]:
        """Return the background work by name; each runs until it is cancelled or done."""
        return {"edits": self._watch_edits(), "files": self._check_files()}

    async def _watch_edits(self) -> None:
        """Carry out operators' requests from the ledger; a counter shows that there are new ones."""
        seen: str | None = None
        while True:
            # LedgerUnavailable: the gate reports it; look again later.
            async with cut_off_if_hung("edits"):
                with suppress(LedgerUnavailable):
                    edits = await self._ledger.read(meta.edits)
                    if edits != seen:
                        await self._runtime.read_edits()
                        self._begin_backfills()
                        for account in self._runtime.accounts.values():
                            account.errands.wake()  # `poller purge` may have requested deletions
                        self._on_edit()
                        seen = edits
            await self._clock.sleep(_LOOK_S)

    def _begin_backfills(self) -> None:
        """Start backfills; a poll under way picks them up itself, and another follows if needed."""
        for state in self._runtime.streams:
            if state.progress.backfill_waits and state.poll_began_at is None:
                self._poll_soon(state)

    async def _check_files(self) -> None:
        """Check the files once per start: the sizes of the newest now, then the hashes of all.

        The hashes may take long; they use at most a fifth of the time. Those of a bucket are for
        `poller verify --thorough`, because each start would read every fax and cost money.
        """
        is_free = self._runtime.services.storage.reading_is_free
        while True:
            self._again.clear()
            while not await self._check(thorough=False, limit=_RECENT):
                await self._clock.sleep(_AGAIN_S)
            while is_free and not await self._check(thorough=True, limit=None):
                await self._clock.sleep(_AGAIN_S)
            if self._runtime.keeper is None:
                return
            await self._again.wait()

    async def _check(self, *, thorough: bool, limit: int | None) -> bool:
        """Check files; return False if ledger or storage fail before the end, to start again later."""
        began = self._clock.monotonic()
        try:
            async for page in self._auditor.pages(thorough=thorough, limit=limit):
                for one in page:
                    row = one.row
                    is_news = row.damage is None or not thorough  # repeat known damage at a start
                    if one.event is not None and row.state is State.STORED and is_news:
                        log.say(one.event)
                if thorough:
                    took = self._clock.monotonic() - began
                    await self._clock.sleep(max(_REST_S, took * _REST_FACTOR))
                    began = self._clock.monotonic()
        except (StorageUnusable, StorageConflict, LedgerUnavailable):
            return False  # the gate reports it
        return True
