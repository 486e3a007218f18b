"""Runs the blocking steps off the event loop, and turns what the system says into our errors."""

import asyncio
import errno
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from poller.errors import FaxTooLarge, StorageConflict, StorageHung, StorageUnusable
from poller.own_threads import carry_out, looked_at
from poller.store.marker import unusable

T = TypeVar("T")
HUNG_S = 120.0  # a slow disk may take half a minute for an fsync
_NO_CHECKS = 2  # threads in which no document is checked


class Threads:
    """Threads of the storage's own: when a share hangs, nothing but the storage waits for it."""

    def __init__(self, where: str, count: int) -> None:
        self._where = where
        self._pool = ThreadPoolExecutor(
            count, thread_name_prefix="storage", initializer=self._note_start
        )
        self._checks = asyncio.Semaphore(max(1, count - _NO_CHECKS))
        self._closed = False
        self._have_thread = False

    async def run(self, step: Callable[[], T]) -> T:
        """Run one step to its end; OSError becomes StorageUnusable, FaxTooLarge or StorageConflict.

        A thread cannot be stopped, so a cancelled caller waits for it (once): no one may unlink
        what is being linked. Cancelled again, it leaves the thread alone. After two minutes
        nobody waits any longer (StorageHung), cancelled or not.
        """
        future = self.start(step)
        try:
            await self._ended(future)
            if not future.done():
                raise StorageHung("a step in the storage has not ended within two minutes")
            return future.result()
        except asyncio.CancelledError:
            await self._ended(future)
            raise
        except OSError as error:
            raise self._mapped(error) from error

    async def _ended(self, future: "asyncio.Future[T]") -> None:
        """Wait for the step, but not too long; as `asyncio.wait`, at a fraction of its cost."""
        if future.done():
            return
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()

        def wake(*_: object) -> None:
            if not waiter.done():
                waiter.set_result(None)

        timer = loop.call_later(HUNG_S, wake)
        future.add_done_callback(wake)
        try:
            await waiter
        finally:
            timer.cancel()
            future.remove_done_callback(wake)

    async def run_check(self, step: Callable[[], T]) -> T:
        """Run a step that checks a document, which may wait long for a process that does it.

        Some threads are always left for the others: looks at the storage, and faxes handed over.
        """
        async with self._checks:
            return await self.run(step)

    def start(self, step: Callable[[], T]) -> "asyncio.Future[T]":
        """Begin a step that nobody need wait for; StorageUnusable when no thread can be had.

        Where no further thread can be started, one that is there will take it. The pool queues
        first and then fails to start a thread: a step that its caller took for refused would be
        run all the same, whenever it suits.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        future.add_done_callback(looked_at)
        try:
            self._pool.submit(carry_out, loop, future, step)
        except RuntimeError as error:
            if self._closed or not self._have_thread:
                future.cancel()
                raise StorageUnusable("no thread can be started for the storage") from error
        return future

    def _note_start(self) -> None:
        self._have_thread = True

    def _mapped(self, error: OSError) -> Exception:
        if error.errno == errno.EFBIG:
            return FaxTooLarge("the file system takes no file as large as this fax")
        if error.errno == errno.ENAMETOOLONG:
            return StorageConflict("the fax's path is too long for the file system")
        if error.errno in {errno.ENOENT, errno.ESTALE}:
            return StorageConflict("the fax's files vanished while it was stored")
        return unusable(self._where, error)

    def close(self) -> None:
        self._closed = True
        self._pool.shutdown(wait=False)
