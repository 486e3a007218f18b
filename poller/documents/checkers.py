"""Check documents in separate processes, so that foreign bytes meet no parser in this one."""

import os
import signal
import time
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from threading import Condition

from poller.documents import HEAD, Document, format_of
from poller.documents.checker import NOT_READY, Checker, Ended, Killed, cannot_be_started
from poller.documents.protocol import FREE_S, START_S
from poller.errors import NotChecked, StorageUnusable

MOST = 3
_MOMENT_S = 1.0  # many times what a document takes, and longer than a process needs to start
_UNUSED_S = 60.0
_TRIES = 5


class Checkers:
    """The processes that check documents, shared by the storage's threads.

    One process usually does all the work: a fax of 150 KB takes it half a millisecond. But a
    malicious document can keep it busy for seconds. A thread that has waited for a moment starts
    another process, so that no other fax waits. There are at most three, as each may use 512 MiB.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._idle: list[Checker] = []  # the last one used is at the end
        self._busy: set[Checker] = set()
        self._count = 0  # idle, busy or starting
        self._closed = False
        self._starter = _new_starter()
        weakref.finalize(self, _end_all, self._idle)

    def inspect(self, fd: int) -> Document:
        """Prove that the document behind `fd` is whole, and count its pages; blocks.

        Raises NotADocument if it is neither PDF nor TIFF, OSError if it cannot be read,
        StorageUnusable if no process can be started, and NotChecked if all are busy or something
        killed one.
        """
        kind = format_of(os.pread(fd, HEAD, 0))
        begun_by = time.monotonic() + FREE_S + START_S
        for _ in range(_TRIES):
            checker = self._taken(begun_by)
            try:
                document = checker.check(fd, kind)
            except Ended:
                continue
            except Killed:
                self._require_open()  # `close` may be what ended it
                raise
            finally:
                self._give_back(checker)
            self._require_open()
            return document
        raise cannot_be_started("it ends as soon as it is ready")

    def look(self) -> None:
        """Make sure that documents can be checked, and keep a process for the next one.

        Raises StorageUnusable. A process that is still starting proves nothing yet.
        """
        by = time.monotonic() + START_S
        with self._changed:
            self._end_unneeded()
            self._changed.wait_for(
                lambda: self._idle or self._busy or not self._count or self._closed, START_S
            )
            self._require_open()
            if self._idle or self._busy:
                return
            if self._count:
                raise cannot_be_started(NOT_READY)
            self._count += 1
        self._give_back(self._started(by))

    def close(self) -> None:
        """End all processes; a check that is running raises StorageUnusable."""
        with self._changed:
            self._closed = True
            _end_all(self._idle)
            for checker in self._busy:
                checker.kill()
            self._changed.notify_all()
        self._starter.shutdown(wait=False, cancel_futures=True)

    def _taken(self, begun_by: float) -> Checker:
        started_by = begun_by - START_S
        with self._changed:
            self._changed.wait_for(lambda: self._idle or not self._count or self._closed, _MOMENT_S)
            self._changed.wait_for(
                lambda: self._idle or self._count < MOST or self._closed, _left_s(started_by)
            )
            if _left_s(begun_by) and (checker := self._free()) is not None:
                return checker
            if self._count >= MOST or not _left_s(started_by):
                raise NotChecked("all processes that check documents are busy")
            self._count += 1
        return self._started(begun_by)

    def _require_open(self) -> None:
        if self._closed:
            raise StorageUnusable("poller is stopping and checks no more documents")

    def _free(self) -> Checker | None:
        self._require_open()
        if not self._idle:
            return None
        checker = self._idle.pop()
        self._busy.add(checker)
        return checker

    def _started(self, by: float) -> Checker:
        try:
            try:
                checker = self._ready(by)
            except StorageUnusable:
                if self._closed or not _left_s(by):
                    raise
                checker = self._ready(by)  # again: something may have killed it while it started
        except BaseException as error:
            with self._changed:
                self._count -= 1
                self._changed.notify_all()
                if not isinstance(error, StorageUnusable):
                    raise
                # An additional process was only to save time; wait for one of the others instead.
                self._changed.wait_for(lambda: self._idle or not self._count, _left_s(by))
                if (free := self._free()) is None:
                    raise
                return free
        with self._changed:
            self._busy.add(checker)
        return checker

    def _ready(self, by: float) -> Checker:
        """Start one from a thread that stays: the kernel ends the process when its thread ends."""
        try:
            starting = self._starter.submit(Checker)
        except RuntimeError as error:
            self._starter.shutdown(wait=False, cancel_futures=True)
            self._starter = _new_starter()  # the old one would start its queued process later
            raise cannot_be_started(str(error)) from None
        try:
            checker = starting.result(_left_s(by))
        except TimeoutError:
            if not starting.cancel():
                starting.add_done_callback(_close_late)
            raise cannot_be_started(NOT_READY) from None
        except (OSError, MemoryError) as error:
            raise cannot_be_started(str(error) or "no memory") from None
        try:
            checker.get_ready(_left_s(by))
        except BaseException:
            checker.close()
            raise
        return checker

    def _give_back(self, checker: Checker) -> None:
        with self._changed:
            self._busy.discard(checker)
            if self._closed or not checker.usable or checker.ended:
                self._count -= 1
                checker.close()
            else:
                self._idle.append(checker)
            self._changed.notify_all()  # not all threads wait for the same thing

    def _end_unneeded(self) -> None:
        """End processes that a busy hour needed, and forget those that ended while idle."""
        unused = time.monotonic() - _UNUSED_S
        for checker in self._idle[:]:
            if checker.ended or (len(self._idle) > 1 and checker.used_at < unused):
                self._idle.remove(checker)
                self._count -= 1
                checker.close()


def _left_s(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


def _close_late(started: Future[Checker]) -> None:
    """Close a process that started after its caller had given up."""
    if started.exception() is None:
        started.result().close()


def _new_starter() -> ThreadPoolExecutor:
    # A signal to the whole group (from a terminal or systemd) must not end what this thread starts.
    signals = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    block = partial(signal.pthread_sigmask, signal.SIG_BLOCK, signals)
    return ThreadPoolExecutor(1, "checkers", initializer=block)


def _end_all(checkers: list[Checker]) -> None:
    while checkers:
        checkers.pop().close()
