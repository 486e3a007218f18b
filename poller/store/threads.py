"""Run blocking steps outside the event loop, and turn the system's errors into ours."""

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
_NO_CHECKS = 2  # threads that check no documents


class Threads:
    """Threads only for the storage: when a share hangs, only the storage waits for it."""

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

        A thread cannot be stopped, so a cancelled caller waits for it: nobody may unlink what it is
        linking. A caller cancelled a second time leaves the thread. After two minutes, even a
        cancelled caller stops waiting (StorageHung).
        """
        future = self.start(step)
        try:
            await self._ended(future)
            if not future.done():
                raise StorageHung("a step in the storage did not end within two minutes")
            return future.result()
        except asyncio.CancelledError:
            await self._ended(future)
            raise
        except OSError as error:
            raise self._mapped(error) from error

    async def _ended(self, future: "asyncio.Future[T]") -> None:
        """Wait for the step, within the limit; like `asyncio.wait`, but much cheaper."""
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
        """Run a step that checks a document and may wait long for a free process.

        Some threads always remain for other steps: looks at the storage, and handed over faxes.
        """
        async with self._checks:
            return await self.run(step)

    def start(self, step: Callable[[], T]) -> "asyncio.Future[T]":
        """Start a step without waiting for it; raises StorageUnusable if there is no thread.

        If no more threads can be started, an existing one takes the step. The pool queues a step
        before it fails to start a thread: it would still run a step that the caller believes
        refused.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        future.add_done_callback(looked_at)
        try:
            self._pool.submit(carry_out, loop, future, step)
        except RuntimeError as error:
            if self._closed or not self._have_thread:
                future.cancel()
                raise StorageUnusable("cannot start a thread for the storage") from error
        return future

    def _note_start(self) -> None:
        self._have_thread = True

    def _mapped(self, error: OSError) -> Exception:
        if error.errno == errno.EFBIG:
            return FaxTooLarge("this fax is larger than the file system's largest file")
        if error.errno == errno.ENAMETOOLONG:
            return StorageConflict("the fax's path is too long for the file system")
        if error.errno in {errno.ENOENT, errno.ESTALE}:
            return StorageConflict("the fax's files vanished while poller stored it")
        return unusable(self._where, error)

    def close(self) -> None:
        self._closed = True
        self._pool.shutdown(wait=False)
