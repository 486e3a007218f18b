"""Compare the ledger's stored faxes with the disk."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from poller import events
from poller.clock import Clock
from poller.documents import StoredFile
from poller.ledger import Ledger, OnDisk, State, faxes
from poller.store import Condition, Finding, Identity, Storage, Store

_LOOK_AGAIN_S = 1.0
_STEP = 8  # faxes per step
_AT_ONCE = 500  # paths per query


@dataclass(frozen=True)
class Checked:
    """One fax, and what the look at its files found."""

    row: OnDisk
    finding: Finding
    is_shared: bool  # whether several nodes write in the store

    @property
    def is_left_over(self) -> bool:
        """Whether the fax was taken, and its image came after that, from a node that was stopped.

        One process alone does not do that: there, somebody has removed the sidecar.
        """
        is_stored = self.row.state is State.STORED
        return self.is_shared and is_stored and self.finding.is_image_alone

    @property
    def condition(self) -> Condition:
        return Condition.TAKEN if self.is_left_over else self.finding.condition

    @property
    def damage(self) -> str | None:
        """Return how its files are damaged, or what cannot be read."""
        return None if self.is_left_over else self.finding.why

    @property
    def is_damaged(self) -> bool:
        return self.condition is Condition.DAMAGED

    @property
    def is_unreadable(self) -> bool:
        return self.finding.is_unreadable

    @property
    def event(self) -> events.FilesDamaged | events.FilesUnreadable | None:
        """Return how its files are damaged or unreadable."""
        row, why = self.row, self.finding.why
        if self.is_damaged:
            return events.FilesDamaged(row.account, row.user, row.fax_id, row.file, why)
        if self.is_unreadable:
            return events.FilesUnreadable(row.account, row.user, row.fax_id, row.file, why)
        return None


@dataclass(frozen=True)
class Auditor:
    """Reads page by page, so that neither memory nor any transaction grows with the ledger.

    StorageUnusable, StorageConflict and LedgerUnavailable end the audit: nothing can be said about
    a storage that is not there.
    """

    ledger: Ledger
    storage: Storage
    clock: Clock
    page: int = 256
    threads: int = 4
    ledger_of: Callable[[str], Ledger | None] | None = None  # by App ID; None: pass it over

    async def pages(
        self, *, thorough: bool, limit: int | None = None
    ) -> AsyncIterator[list[Checked]]:
        """Check the faxes whose files should be on the disk, newest first, at most `limit`.

        Notes in the ledger which are damaged or unreadable, and which are well again.
        """
        below, left = None, limit
        while left is None or left > 0:
            count = self.page if left is None else min(self.page, left)
            rows = await self.ledger.read(faxes.on_disk, below, count)
            if not rows:
                return
            ours = [row for row in rows if self._ledger_of(row) is not None]
            yield await self.check(ours, thorough=thorough)
            below = rows[-1].id
            left = None if left is None else left - len(rows)

    async def check(self, rows: Sequence[OnDisk], *, thorough: bool) -> list[Checked]:
        """Check the files of these faxes, and note which are damaged, unreadable or well again."""
        checked = await self._checked(rows, thorough=thorough)
        await self._note(checked, thorough=thorough)
        return checked

    async def _checked(self, rows: Sequence[OnDisk], *, thorough: bool) -> list[Checked]:
        found = await self.look(rows, thorough=thorough)
        again = [one.row for one in found if one.finding.in_transit]
        if again:  # a consumer takes the image first and the sidecar last, perhaps just now
            await self.clock.sleep(_LOOK_AGAIN_S)
            later = {one.row.id: one for one in await self.look(again, thorough=thorough)}
            found = [later.get(one.row.id, one) for one in found]
        return found

    async def look(self, rows: Sequence[OnDisk], *, thorough: bool) -> list[Checked]:
        """Look in small steps: a thread cannot be stopped, and the end of the service waits for it."""
        turns = asyncio.Semaphore(self.threads)

        async def look(some: Sequence[OnDisk]) -> list[Checked]:
            async with turns:
                found = await self.storage.look([_wanted(row) for row in some], thorough=thorough)
            shared = self.ledger.is_shared
            return [Checked(row, one, shared) for row, one in zip(some, found, strict=True)]

        steps = [rows[begin : begin + _STEP] for begin in range(0, len(rows), _STEP)]
        answers = await asyncio.gather(*(look(some) for some in steps))
        return [one for answer in answers for one in answer]

    async def _note(self, checked: Sequence[Checked], *, thorough: bool) -> None:
        """Note the results; a quick look does not undo what a thorough one found."""
        found: defaultdict[str, dict[int, tuple[str, str | None]]] = defaultdict(dict)
        ledgers: dict[str, Ledger] = {}
        for one in checked:
            is_news = one.row.state is State.STORED and one.row.damage != one.damage
            ledger = self._ledger_of(one.row)
            if is_news and ledger and (thorough or one.condition is not Condition.OK):
                whose = one.row.app_id if self.ledger_of else ""
                found[whose][one.row.id] = (one.row.sha256, one.damage)
                ledgers[whose] = ledger
        unreadable = {one.row.id for one in checked if one.is_unreadable}
        for whose, ledger in ledgers.items():
            now = self.clock.now()
            await ledger.write(faxes.note_damage, found[whose], now, unreadable)

    def _ledger_of(self, row: OnDisk) -> Ledger | None:
        return self.ledger if self.ledger_of is None else self.ledger_of(row.app_id)

    async def strangers(self) -> AsyncIterator[str]:
        """Yield the visible files that belong to no fax, directory by directory."""
        waiting = [""]
        while waiting:
            directory = waiting.pop()
            files, below = await self.storage.ask(_listing(directory))
            waiting += [f"{directory}/{name}" if directory else name for name in reversed(below)]
            for begin in range(0, len(files), _AT_ONCE):
                some = files[begin : begin + _AT_ONCE]
                known = await self.ledger.read(faxes.files_of, [path for _, path in some])
                for file, path in some:
                    if not _belongs(file, path, known):
                        yield file


def _listing(directory: str) -> Callable[[Store], tuple[list[tuple[str, str]], list[str]]]:
    return lambda store: store.visible_files(directory)


def _belongs(file: str, path: str, known: dict[str, str | None]) -> bool:
    if path not in known:
        return False
    stored = known[path]
    return stored is None or file in (stored, f"{path}.json")


def _wanted(row: OnDisk) -> tuple[StoredFile, Identity]:
    return row.stored_file, Identity(row.app_id, row.user_id, row.fax_id)
