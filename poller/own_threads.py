"""Threads for steps that may hang: each part has its own, and nothing waits for their end.

asyncio's default executor is one pool for everything and is joined at the end: a few hanging steps
in it stop all others, and the exit too. So nothing in poller uses it, and a test makes sure of
that.
"""

import asyncio
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

from poller.errors import NoThread

T = TypeVar("T")
_Steps = SimpleQueue[Callable[[], None] | None]


class OwnThreads:
    """At most `most` daemon threads, started when needed and kept.

    A hanging step occupies one of them; further steps wait for another. The threads end after
    `close`, or with this object. The process ends without waiting for them.
    """

    def __init__(self, name: str, most: int = 1) -> None:
        self._name = name
        self._most = most
        self._started = 0
        self._under_way = 0
        self._closed = False
        self._steps: _Steps = SimpleQueue()
        weakref.finalize(self, self._steps.put, None).atexit = False

    @property
    def all_busy(self) -> bool:
        """Whether a further step would have to wait for another to end."""
        return self._under_way >= self._most

    async def run(self, step: Callable[[], T]) -> T:
        """Run one step; raises NoThread if there is no thread for it.

        A thread cannot be stopped: if the caller is cancelled, the step continues without it. A
        step that has not begun by then never does.
        """
        loop = asyncio.get_running_loop()
        self._see_to_thread()
        self._under_way += 1
        future: asyncio.Future[T] = loop.create_future()
        future.add_done_callback(self._settled)

        def take() -> None:
            carry_out(loop, future, step)
            with suppress(RuntimeError):  # the loop has ended, and nobody counts
                loop.call_soon_threadsafe(self._left, future)

        self._steps.put(take)
        return await future

    def close(self) -> None:
        """Let the threads end after their steps; accept no more."""
        self._closed = True
        self._steps.put(None)

    def _settled(self, future: "asyncio.Future[Any]") -> None:
        looked_at(future)
        self._under_way -= not future.cancelled()

    def _left(self, future: "asyncio.Future[Any]") -> None:
        """Count a finished step now if its caller has left."""
        self._under_way -= future.cancelled()

    def _see_to_thread(self) -> None:
        """Start a thread unless one is free; if that fails, an existing thread takes the step."""
        if self._closed:
            raise NoThread(f"the threads for {self._name} have ended")
        if self._started > self._under_way or self._started == self._most:
            return
        thread = threading.Thread(
            target=_work, args=(self._steps,), name=f"{self._name}-{self._started}", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:
            if not self._started:
                raise NoThread(f"cannot start a thread for {self._name}") from error
        else:
            self._started += 1


async def in_own_thread(name: str, step: Callable[[], T]) -> T:
    """Run one step in a thread that ends with it; raises what `OwnThreads.run` raises."""
    threads = OwnThreads(name)
    try:
        return await threads.run(step)
    finally:
        threads.close()


def _work(steps: _Steps) -> None:
    while (take := steps.get()) is not None:
        take()
        del take  # it refers to the OwnThreads, whose end ends this thread
    steps.put(None)  # for the next thread


def carry_out(
    loop: asyncio.AbstractEventLoop, future: "asyncio.Future[T]", step: Callable[[], T]
) -> None:
    """Run a step in this thread and settle its future; do nothing for a cancelled one."""
    if future.cancelled():
        return
    outcome: T | None = None
    problem: BaseException | None = None
    try:
        outcome = step()
    except BaseException as error:  # noqa: BLE001 - it belongs to the caller that waits for the step
        problem = error
    with suppress(RuntimeError):  # the loop has ended, and nobody waits
        loop.call_soon_threadsafe(_settle, future, outcome, problem)


def _settle(future: "asyncio.Future[Any]", outcome: Any, problem: BaseException | None) -> None:
    if future.done():
        return
    if problem is None:
        future.set_result(outcome)
    else:
        future.set_exception(problem)


def looked_at(future: "asyncio.Future[T]") -> None:
    """Keep asyncio from reporting a failure for which a cancelled caller did not wait."""
    if not future.cancelled():
        future.exception()
