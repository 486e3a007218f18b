"""Decide whether to request images: eFax marks a requested fax, so the storage must take it."""

import asyncio
from collections.abc import Callable
from datetime import timedelta

from poller import events, retry
from poller.clock import Clock
from poller.errors import LeaseLost, LedgerUnavailable
from poller.events import Emit
from poller.ledger import Ledger
from poller.store import Storage
from poller.topic import see

_TRUSTED_FOR_S = 1.0
_HANG_TIMEOUT_S = 30.0
_DOUBTED_FOR_S = 120.0  # if no attempt happens meanwhile, believe a look again
_SHUT_FIRST, _SHUT_CAP = timedelta(seconds=2), timedelta(minutes=1)


class Gate:
    """Open while the storage is usable and the ledger takes writes; emits changes."""

    def __init__(
        self,
        storage: Storage,
        ledger: Ledger,
        clock: Clock,
        *,
        storage_id: str,
        emit: Emit,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._storage = storage
        self._ledger = ledger
        self._emit = emit
        self._clock = clock
        self._storage_id = storage_id
        self.on_change = on_change
        self.reason: str | None = None
        self.free_bytes: int | None = None
        self._looking: asyncio.Task[tuple[str | None, int | None]] | None = None
        self._checked_at: float | None = None
        self._shut_until = 0.0
        self._doubted_until = 0.0
        self._closed_in_a_row = 0

    @property
    def usable(self) -> bool:
        return self.reason is None

    @property
    def half_open(self) -> bool:
        """An attempt met trouble that a look does not see: let one more try, not many at once."""
        return self.reason is not None

    async def check(self) -> bool:
        """Look at storage and ledger, at most once a second; return whether an image may be requested."""
        now = self._clock.monotonic()
        if now < self._shut_until:
            return False
        if self._checked_at is not None and now - self._checked_at < _TRUSTED_FOR_S:
            return self.usable
        reason = await self._look()
        self._checked_at = self._clock.monotonic()
        if reason is None and self._checked_at < self._doubted_until:
            return True  # let an attempt try; only its success undoes what an attempt found
        self._settle(reason)
        return self.usable

    async def look_again(self) -> bool:
        """Look now, thoroughly, because an attempt met trouble; keep what other attempts found."""
        self._storage.doubt()
        self._checked_at = None
        return await self.check()

    async def _look(self) -> str | None:
        reason = await self._look_at_storage()
        if reason is not None:
            return reason
        try:
            await self._ledger.check_writable(self._clock.now())
        except LedgerUnavailable as error:
            return error.told
        return None

    async def _look_at_storage(self) -> str | None:
        """Look, without hanging with a share that hangs and without a second look before it answers."""
        looking = self._looking or asyncio.create_task(self._ask_storage(), name="storage check")
        self._looking = looking
        await asyncio.wait({looking}, timeout=_HANG_TIMEOUT_S)
        if not looking.done():
            hung = f"the storage did not answer for {_HANG_TIMEOUT_S:.0f} seconds"
            return see(hung, "disk-hangs")
        if self._looking is looking:  # another waiter may have started the next one
            self._looking = None
        reason, self.free_bytes = looking.result()
        return reason

    async def _ask_storage(self) -> tuple[str | None, int | None]:
        reason = await self._storage.check(self._storage_id)
        reason = reason or await self._storage.check_documents()
        return reason, await self._storage.free_bytes()

    def close(self, reason: str) -> None:
        """Stop image requests until a check passes, because an attempt met an unusable storage or ledger.

        A check may not see the trouble (a quota, a limit) and would open the gate at once. So it
        stays shut for a while, longer each time until an attempt succeeds.
        """
        self._storage.doubt()
        self._settle(reason)
        if self._clock.monotonic() < self._shut_until:
            return  # another attempt at the same time
        self._closed_in_a_row += 1
        pause = retry.growing(self._closed_in_a_row, first=_SHUT_FIRST, cap=_SHUT_CAP, u=0.5)
        self._shut_until = self._clock.monotonic() + pause.total_seconds()
        self._doubted_until = self._shut_until + _DOUBTED_FOR_S

    def blame(self, error: LedgerUnavailable) -> None:
        """Close because the ledger failed, unless only one account is lost."""
        if not isinstance(error, LeaseLost):
            self.close(error.told)

    def passed(self) -> None:
        """Note that an attempt succeeded."""
        if self._closed_in_a_row:
            self._closed_in_a_row = 0
            self._doubted_until = 0.0
            self._settle(None)

    def _settle(self, reason: str | None) -> None:
        was = self.reason
        self.reason = reason
        if (was is None) == (reason is None):
            return
        self._emit(events.StorageUsable() if reason is None else events.StorageLost(reason))
        self.on_change()
