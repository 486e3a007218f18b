"""Exit even if a thread hangs: a thread on a dead disk cannot be ended, only left behind."""

import os
import sys
import threading
import time
from contextlib import ExitStack, suppress

from poller import events, log

_HANG_TIMEOUT_S = 1.0


def leave(code: int) -> int:
    """Return `code`; but if threads hang, end the process with it, as Python would wait for them.

    Close everything that can be closed first.
    """
    deadline = time.monotonic() + _HANG_TIMEOUT_S
    for thread in _others():
        thread.join(max(0.0, deadline - time.monotonic()))
    if left := _others():
        _end(code, "poller stopped; some threads still hang.", left)
    log.flush(_HANG_TIMEOUT_S)
    return code


class StopDeadline(ExitStack):
    """Ends the process if it has not stopped a given time after `start`."""

    _timer: threading.Timer | None = None

    def start(self, seconds: float) -> None:
        if self._timer is not None:
            return
        timer = threading.Timer(seconds, _too_late)
        timer.daemon = True
        with suppress(RuntimeError):  # no thread can start: stop without a deadline
            timer.start()
            self._timer = timer
            self.callback(timer.cancel)


def _too_late() -> None:
    _end(1, "Stopping took too long, so poller ends now; no fax is lost.", _others())


def _others() -> list[threading.Thread]:
    """Return the threads that the interpreter would wait for at exit."""
    mine = (threading.main_thread(), threading.current_thread())
    return [one for one in threading.enumerate() if one not in mine and not one.daemon]


def _end(code: int, sentence: str, left: list[threading.Thread]) -> None:
    threads = sorted({one.name for one in left})
    log.say(events.Stalled("stop", threads=threads, told=sentence))
    log.flush(_HANG_TIMEOUT_S)
    if sys.stdout is not None:
        sys.stdout.flush()
    os._exit(code)
