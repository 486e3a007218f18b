"""Write lines to stdout such that no state of stdout can stop or stall the service."""

import errno
import os
import select
import sys
import threading
import time
from typing import Final, TextIO

_PIECE: Final = 4096  # PIPE_BUF: what poll promises to take without blocking
_PATIENCE_S: Final = 0.2


class LineOutput:
    """A place for lines; a line that cannot be written is dropped and counted.

    Writes go to the file descriptor, past Python's buffers: those keep what could not be written,
    try again at exit, and turn a closed pipe into exit code 120. A reader that no longer reads
    costs 0.2 s once and nothing from then on: a blocked event loop would end in a restart.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._torn = False
        self._stuck = False
        self._failing = False
        self.lost = 0

    @property
    def stream(self) -> TextIO | None:
        """The stream given, else whatever stdout is now; None where the process has none."""
        return self._stream if self._stream is not None else sys.stdout

    def is_terminal(self) -> bool:
        try:
            return self.stream is not None and self.stream.isatty()
        except (OSError, ValueError):
            return False

    def take_lost(self) -> int:
        """Return how many lines were dropped, once, when lines come through again; else 0."""
        with self._lock:
            if self._failing:
                return 0
            lost, self.lost = self.lost, 0
            return lost

    def write(self, line: str) -> None:
        """Write one line and its end; never raises."""
        with self._lock:
            try:
                written = self._write(line.encode("utf-8", "backslashreplace"))
            except (OSError, ValueError):
                written = False
            self._failing = not written
            self.lost += not written

    def _write(self, line: bytes) -> bool:
        stream = self.stream
        if stream is None:
            return False
        try:
            descriptor = stream.fileno()
        except (OSError, ValueError, AttributeError):
            stream.write(line.decode("utf-8") + "\n")
            stream.flush()
            return True
        # What was cut off in the middle of a line must not spoil the next one.
        return self._write_all(descriptor, (b"\n" if self._torn else b"") + line + b"\n")

    def _write_all(self, descriptor: int, data: bytes) -> bool:
        deadline = time.monotonic() + (0.0 if self._stuck else _PATIENCE_S)
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        at = 0
        while at < len(data):
            left_ms = max(0, int((deadline - time.monotonic()) * 1000))
            if not poll.poll(left_ms):
                return self._gave_up(at, stuck=True)
            try:
                at += os.write(descriptor, data[at : at + _PIECE])
            except OSError as error:
                if error.errno != errno.EINTR:
                    return self._gave_up(at, stuck=error.errno == errno.EAGAIN)
        self._torn = self._stuck = False
        return True

    def _gave_up(self, written: int, *, stuck: bool) -> bool:
        self._torn = self._torn or written > 0
        self._stuck = stuck
        return False
