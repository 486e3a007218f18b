"""One fax on its way into the store, from its first byte to its sidecar."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from threading import Lock
from typing import Any, BinaryIO, TypeVar

from poller.documents import Document, Staged, StoredFile
from poller.errors import StorageHung
from poller.store import recovery, sidecars
from poller.store.recovery import Accept, Fate
from poller.store.sidecars import Identity
from poller.store.spool import Inspect, Spool
from poller.store.store import Store
from poller.store.threads import Threads

T = TypeVar("T")
MakeSidecar = Callable[[StoredFile | None], dict[str, Any]]  # None: the fax has no image
_BATCH = 1 << 20


@dataclass(frozen=True)
class Berth:
    """What a draft needs: `take` reserves the path for it, `release` frees the path."""

    store: Store
    threads: Threads
    inspect: Inspect
    take: Callable[[], None]
    release: Callable[[], None]


class Draft(AbstractAsyncContextManager["Draft"]):  # more than 20 methods: half are a thread's
    """One fax on its way into the store; an async context manager that leaves nothing behind.

    If the row has a ticket, call `settle`; if not, `resume`. For a fax that must be fetched, call
    `reset`, `write`…, then `stage_if`, or `check` and `stage`; for one without an image,
    `stage_alone`. When the ledger has the ticket, call `publish`. Raises StorageUnusable,
    StorageConflict, FaxTooLarge.
    """

    def __init__(
        self, berth: Berth, path: str, identity: Identity, *, replacing: bool = False
    ) -> None:
        """With `replacing`, put other files that have the fax's names aside: they are damaged."""
        self._berth = berth
        self._path = path
        self._identity = identity
        self._replacing = replacing
        self.begun = False  # whether an image has begun to arrive or was found
        self._is_taken = False
        self._spool: Spool | None = None
        self._staged: Staged | None = None
        self._document: Document | None = None
        self._batch = bytearray()
        # If the caller, cancelled twice, has left a thread behind, that thread closes the descriptor.
        self._lock = Lock()
        self._left = False  # only a thread that hangs may still use it, and closes it at its end

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._batch.clear()
        self._left = True
        if isinstance(error, StorageHung) and self._lock.locked():
            return  # the hanging step closes the draft when it ends
        if self._is_taken:
            await self._berth.threads.run(self._close)

    # -- what was there before --------------------------------------------------------------------

    async def settle(self, staged: Staged, sidecar: MakeSidecar) -> StoredFile | Staged | None:
        """Find out what became of the ticket in the row; nobody can use that ticket afterwards.

        Returns the file if it was published, or a new ticket if only the image is there. None means
        that the ticket proves nothing: the row must forget it before anything else happens.
        """

        def step() -> StoredFile | Staged | None:
            fate = recovery.settle(self._berth.store, staged, self._identity)
            if fate is Fate.PUBLISHED:
                return staged.file
            if fate is Fate.PLACED:
                self._spool = recovery.taken_up(self._berth.store, staged.file)
            if self._spool is None:
                return None
            return self._stage(staged.file, sidecar, staged.problem)

        return await self._run(step, taking=True)

    async def resume(
        self, accept: Accept, sidecar: MakeSidecar, *, held: StoredFile | None = None
    ) -> StoredFile | Staged | None:
        """Continue from what is there, if possible: return the visible file, or stage what is placed.

        `held` is what was stored of a fax that is being replaced. None means that the fax must be
        fetched; its directory exists or can be made.
        """

        def step() -> StoredFile | Staged | None:
            store, whose = self._berth.store, (self._path, self._identity)
            if store.admit(self._path):
                return None
            found = (
                recovery.intact(store, *whose, held)
                if self._replacing
                else recovery.adopted(store, *whose)
                or recovery.placed(store, self._path, self._berth.inspect, accept)
            )
            if isinstance(found, StoredFile):
                return found
            if found is None:
                store.admit(self._path, although_taken=True)
                return None
            self._spool, stored = found
            return self._stage(stored, sidecar, None)

        return await self._run_check(step, taking=True)

    # -- what arrives -----------------------------------------------------------------------------

    async def reset(self) -> None:
        """Start, or start again, with no bytes."""
        self._document = None
        self._batch.clear()
        await self._run(self._restart, taking=True)

    async def write(self, data: bytes) -> None:
        """Append data; writes are batched, so an error may come from a later call."""
        self._document = None
        self._batch += data
        if len(self._batch) >= _BATCH:
            batch, self._batch = self._batch, bytearray()
            await self._run(lambda: self._append(batch))

    def reader(self) -> BinaryIO:
        """Open what has been written so far; blocks, raises OSError."""
        if self._spool is None:
            raise FileNotFoundError
        return self._spool.reader()

    async def check(self) -> Document:
        """Check the document; raises NotADocument if it is neither PDF nor TIFF."""
        if self._document is None:
            batch, self._batch = self._batch, bytearray()
            self._document = await self._run_check(lambda: self._inspect(batch))
        return self._document

    async def stage_if(self, accept: Accept, sidecar: MakeSidecar) -> Staged | None:
        """Check the fax and, if `accept` agrees, place and stage it; uses one thread for all steps."""
        batch, self._batch = self._batch, bytearray()

        def step() -> Staged | None:
            self._document = document = self._inspect(batch)
            return self._place(sidecar, None) if accept(document) else None

        return await self._run_check(step)

    async def stage(self, sidecar: MakeSidecar, problem: str | None = None) -> Staged:
        """Place and stage the checked fax; a `problem` marks it as damaged."""
        return await self._run(lambda: self._place(sidecar, problem))

    async def stage_alone(self, sidecar: MakeSidecar) -> Staged:
        """Place and stage the sidecar of a fax without an image; discard what has arrived."""
        self._batch.clear()
        return await self._run(lambda: self._place_alone(sidecar), taking=True)

    async def publish(self, staged: Staged) -> bool:
        """Make the fax visible, durably, once its row has the ticket; return False if it was revoked.

        Raises MovedAway if the ticket in the row is void: then call `take_back`.
        """

        def step() -> bool:
            is_shown = self._berth.store.publish(self._begun(), staged, self._identity)
            self._staged = None
            self._left = True  # so that this step also closes the draft
            return is_shown

        return await self._run(step)

    @property
    def has_placed(self) -> bool:
        """Whether this draft gave the image its name, and did not find it there."""
        return self._spool is not None and self._spool.is_ours

    async def take_back(self, staged: Staged) -> None:
        """Hide the image again, after the row has forgotten its ticket."""
        await self._run(lambda: self._berth.store.take_back(self._begun(), staged.file))

    # -- in a thread ------------------------------------------------------------------------------

    async def _run(self, step: Callable[[], T], *, taking: bool = False) -> T:
        return await self._berth.threads.run(lambda: self._in_turn(step, taking=taking))

    async def _run_check(self, step: Callable[[], T], *, taking: bool = False) -> T:
        return await self._berth.threads.run_check(lambda: self._in_turn(step, taking=taking))

    def _in_turn(self, step: Callable[[], T], *, taking: bool) -> T:
        try:
            with self._lock:
                if taking and not self._is_taken:
                    self._berth.take()
                    self._is_taken = True
                try:
                    found = step()
                finally:
                    if self._spool is None:
                        self._release()
                self.begun = self.begun or self._spool is not None or isinstance(found, StoredFile)
                return found
        finally:
            if self._left:
                self._close()

    def _restart(self) -> None:
        if self._spool is None:
            self._spool = self._berth.store.spool(self._path)
        self._spool.restart()

    def _append(self, batch: bytearray) -> None:
        if batch:
            self._begun().write(batch)

    def _inspect(self, batch: bytearray) -> Document:
        self._append(batch)
        return self._begun().inspect(self._berth.inspect)

    def _place(self, sidecar: MakeSidecar, problem: str | None) -> Staged:
        self._require_waited_for()
        document = self._document
        if document is None:
            raise ValueError("a draft must be checked before it is placed")
        stored = self._begun().seal(document.format, document.pages, damaged=problem is not None)
        self._document = None
        return self._stage_sealed(stored, sidecar, problem)

    def _place_alone(self, sidecar: MakeSidecar) -> Staged:
        self._require_waited_for()
        self._restart()
        self._append(bytearray(sidecars.encode(sidecar(None))))
        return self._stage_sealed(self._begun().seal("json", None, damaged=False), sidecar, None)

    def _require_waited_for(self) -> None:
        """Begin nothing for a draft that was left; a step that hangs still runs to its end."""
        if self._left:
            raise ValueError("this draft was left: its caller has gone")

    def _stage_sealed(
        self, stored: StoredFile, sidecar: MakeSidecar, problem: str | None
    ) -> Staged:
        if self._replacing:
            self._berth.store.put_aside(self._path, stored, self._identity)
        self._berth.store.place(self._begun(), stored, self._identity)
        return self._stage(stored, sidecar, problem)

    def _stage(self, stored: StoredFile, sidecar: MakeSidecar, problem: str | None) -> Staged:
        content = None if stored.format == "json" else sidecars.encode(sidecar(stored))
        ticket = self._berth.store.stage(self._begun(), stored, content)
        self._staged = Staged(stored, ticket, problem)
        return self._staged

    def _close(self) -> None:
        """Close the draft. Keep a staged image: its ticket may be in the row."""
        with self._lock:
            spool, self._spool = self._spool, None
            staged, self._staged = self._staged, None
            try:
                if spool is not None and staged is not None and not spool.is_ticket_used:
                    self._berth.store.revoke(self._path, staged.ticket)
            finally:
                if spool is not None:
                    spool.close()
                self._release()

    def _release(self) -> None:
        if self._is_taken:
            self._is_taken = False
            self._berth.release()

    def _begun(self) -> Spool:
        if self._spool is None:
            raise ValueError("reset a draft first, and use it only in its context")
        return self._spool
