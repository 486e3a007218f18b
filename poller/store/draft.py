"""One fax that is being downloaded."""

from collections.abc import Callable
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Self, TypeVar

from poller.documents import Document, StoredFile
from poller.errors import StorageHung
from poller.store.handover import Handover
from poller.store.threads import Threads

T = TypeVar("T")
_BATCH = 1 << 20


class Draft:
    """A fax on its way into the storage; an async context manager that leaves no rests.

    `reset`, `write`… , `deliver_if` or `check` and `deliver`, and `finish` when the row is stored.
    Raises StorageUnusable, StorageConflict, FaxTooLarge.
    """

    def __init__(
        self,
        threads: Threads,
        path: Path,
        *,
        begin: Callable[[], Handover],
        end: Callable[[], None],
        note: Callable[[StoredFile | None], None] = lambda _: None,
    ) -> None:
        self._threads = threads
        self._path = path
        self._begin = begin
        self._end = end
        self._note = note  # what is visible from now on; None: its row is stored
        self._handover: Handover | None = None
        self._document: Document | None = None
        self._batch = bytearray()
        # Nobody closes a descriptor under a thread that its caller, cancelled twice, has left.
        self._lock = Lock()
        self._left = False  # by everybody but a thread that hangs: it closes when it ends

    @property
    def path(self) -> Path:
        """Where the bytes are while the draft is open and not delivered."""
        return self._path

    @property
    def begun(self) -> bool:
        """Whether an image has begun to arrive."""
        return self._handover is not None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._batch.clear()
        self._left = True
        if isinstance(error, StorageHung) and self._lock.locked():
            return  # the step that hangs closes when it ends
        if self._handover is not None:
            await self._threads.run(self._close)

    async def reset(self) -> None:
        """Begin (again) with no bytes."""
        self._document = None
        self._batch.clear()
        await self._run(self._restart)

    async def write(self, data: bytes) -> None:
        """Append; what is written is batched, so an error may come with a later call."""
        self._document = None
        self._batch += data
        if len(self._batch) >= _BATCH:
            batch, self._batch = self._batch, bytearray()
            await self._run(lambda: self._append(batch))

    async def check(self) -> Document:
        """Prove the document; raises NotADocument when it is neither PDF nor TIFF."""
        if self._document is None:
            batch, self._batch = self._batch, bytearray()
            self._document = await self._run_check(lambda: self._inspect(batch))
        return self._document

    async def deliver_if(
        self, accept: Callable[[Document], bool], sidecar: Callable[[StoredFile], dict[str, Any]]
    ) -> StoredFile | None:
        """Check the fax and, if it is accepted, make it visible: one trip to a thread for both."""
        batch, self._batch = self._batch, bytearray()

        def step() -> StoredFile | None:
            self._document = document = self._inspect(batch)
            return self._deliver(sidecar, damaged=False) if accept(document) else None

        return await self._run_check(step)

    async def deliver(
        self,
        sidecar: Callable[[StoredFile], dict[str, Any]] | dict[str, Any],
        *,
        damaged: bool,
    ) -> StoredFile:
        """Make the checked fax visible, with its sidecar, durably."""
        make = sidecar if callable(sidecar) else lambda _: sidecar
        return await self._run(lambda: self._deliver(make, damaged=damaged))

    async def finish(self) -> None:
        """Unlink the dot-files; only after the row is stored."""
        self._note(None)
        self._left = True  # so that the step closes, too
        await self._run(lambda: self._begun().finish())

    async def _run(self, step: Callable[[], T]) -> T:
        return await self._threads.run(lambda: self._in_turn(step))

    async def _run_check(self, step: Callable[[], T]) -> T:
        return await self._threads.run_check(lambda: self._in_turn(step))

    def _in_turn(self, step: Callable[[], T]) -> T:
        try:
            with self._lock:
                return step()
        finally:
            if self._left:
                self._close()

    def _restart(self) -> None:
        if self._handover is None:
            self._handover = self._begin()
        self._handover.restart()

    def _append(self, batch: bytearray) -> None:
        if batch:
            self._begun().write(batch)

    def _inspect(self, batch: bytearray) -> Document:
        self._append(batch)
        return self._begun().inspect()

    def _deliver(
        self, sidecar: Callable[[StoredFile], dict[str, Any]], *, damaged: bool
    ) -> StoredFile:
        if self._left:
            raise ValueError("nobody waits for this draft any more")
        stored = self._begun().deliver(sidecar, damaged=damaged)
        self._note(stored)
        self._document = None
        return stored

    def _close(self) -> None:
        with self._lock:
            if self._handover is not None:
                handover, self._handover = self._handover, None
                try:
                    handover.close()
                finally:
                    self._end()

    def _begun(self) -> Handover:
        if self._handover is None:
            raise ValueError("a draft begins with a reset and ends with its context")
        return self._handover
