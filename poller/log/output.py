"""Write lines to stdout so that no state of stdout can stop or delay the service."""

import os
import select
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TextIO

_PIECE: Final = 4096  # PIPE_BUF: if poll reports room, this much fits without blocking
_HANG_TIMEOUT_S: Final = 0.2
_QUEUE_BYTES: Final = 1 << 20
_IDLE_S: Final = 10.0  # how long a thread waits for the next line before it ends


class LineOutput:
    """The output for lines; it drops and counts lines that it cannot write.

    It writes to the file descriptor and avoids Python's buffers, which keep unwritten text, try
    again at exit, and turn a closed pipe into exit code 120. A reader that stops reading costs 0.2 s
    once and then nothing, because a blocked event loop would end in a restart.

    A pipe or a socket reports that a write would block. A terminal or a file does not, and a write to
    a stopped terminal or a hung share never ends, so a thread writes there. The caller waits for the
    thread as long as for a pipe, so that a crash loses nothing; while the thread hangs, up to 1 MiB
    of lines wait in a queue.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._changed = threading.Condition()
        self._queue: deque[tuple[int, bytes]] = deque()  # the thread writes the first
        self._queued_bytes = 0
        self._thread: threading.Thread | None = None
        self._polled: dict[int, bool] = {}
        self._torn = False
        self._stuck = False
        self._failing = False
        self.lost = 0

    @property
    def stream(self) -> TextIO | None:
        """Return the stream given, else the present stdout; None if the process has none."""
        return self._stream if self._stream is not None else sys.stdout

    def is_terminal(self) -> bool:
        try:
            return self.stream is not None and self.stream.isatty()
        except (OSError, ValueError):
            return False

    def take_lost(self) -> int:
        """Return how many lines were dropped, once, as soon as writing works again; else 0."""
        with self._changed:
            if self._failing or self._queue:
                return 0
            lost, self.lost = self.lost, 0
            return lost

    def write(self, line: str) -> None:
        """Write one line with a newline; never raise."""
        with self._changed:
            try:
                self._write(line.encode("utf-8", "backslashreplace") + b"\n")
            except (OSError, ValueError):
                self._ended(written=False)

    def flush(self, within_s: float) -> None:
        """Wait until the queue is empty, at most this long."""
        with self._changed:
            self._changed.wait_for(lambda: not self._queue, within_s)

    def _write(self, line: bytes) -> None:
        stream = self.stream
        if stream is None:
            self._ended(written=False)
            return
        try:
            descriptor = stream.fileno()
        except (OSError, ValueError, AttributeError):
            stream.write(line.decode("utf-8"))
            stream.flush()
            self._ended(written=True)
            return
        if self._says_when_it_would_block(descriptor):
            self._write_polled(descriptor, line)
        else:
            self._hand_over(descriptor, line)

    def _says_when_it_would_block(self, descriptor: int) -> bool:
        """Return whether it is a pipe or a socket; ask once, as even this can hang on a share."""
        if descriptor not in self._polled:
            mode = os.fstat(descriptor).st_mode
            self._polled[descriptor] = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
        return self._polled[descriptor]

    def _write_polled(self, descriptor: int, line: bytes) -> None:
        deadline = time.monotonic() + (0.0 if self._stuck else _HANG_TIMEOUT_S)
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)

        def may_write() -> bool:
            left_ms = max(0, int((deadline - time.monotonic()) * 1000))
            self._stuck = not poll.poll(left_ms)
            return not self._stuck

        self._ended(written=self._write_all(descriptor, line, may_write))

    def _hand_over(self, descriptor: int, line: bytes) -> None:
        """Let the thread write a line, and wait for it unless it already hangs."""
        if self._queue and self._queued_bytes + len(line) > _QUEUE_BYTES:
            self._ended(written=False)
            return
        if not self._have_thread():
            self._ended(written=self._write_all(descriptor, line, lambda: True))
            return
        self._queue.append((descriptor, line))
        self._queued_bytes += len(line)
        self._changed.notify_all()
        if not self._stuck:
            self._stuck = not self._changed.wait_for(lambda: not self._queue, _HANG_TIMEOUT_S)

    def _have_thread(self) -> bool:
        """Start the thread unless it runs; it ends when idle, and a fork does not copy it."""
        if sys.is_finalizing():  # a thread would never run, and its start never return
            return False
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._write_queued, name="log", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # no thread can start
                self._thread = None
        return self._thread is not None

    def _write_queued(self) -> None:
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: self._queue, _IDLE_S):
                    self._thread = None
                    return
                descriptor, line = self._queue[0]
            written = self._write_all(descriptor, line, lambda: True)
            with self._changed:
                self._queue.popleft()
                self._queued_bytes -= len(line)
                self._stuck = self._stuck and bool(self._queue)
                self._ended(written=written)
                self._changed.notify_all()

    def _write_all(self, descriptor: int, line: bytes, may_write: Callable[[], bool]) -> bool:
        # The rest of a line that was cut off must not spoil the next line.
        data = (b"\n" if self._torn else b"") + line
        at = 0
        with suppress(OSError):
            while at < len(data) and may_write():
                with suppress(InterruptedError):
                    at += os.write(descriptor, data[at : at + _PIECE])
        self._torn = 0 < at < len(data) or (self._torn and not at)
        return at == len(data)

    def _ended(self, *, written: bool) -> None:
        self._failing = not written
        self.lost += not written
