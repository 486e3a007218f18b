"""The process under test: it has poller imported, forks for each run, and arms the shim in the child.

Started with two pipes, and with the shim preloaded unless no run is to be broken; reads one order a
line (JSON), answers one line each.
It forks before any thread or event loop exists, so a child is as good as a process of its own.
"""

import asyncio
import ctypes
import importlib
import json
import os
import signal
import sys
import threading
import traceback
from datetime import datetime, timedelta
from typing import Any

from poller import clock, log  # noqa: F401  (what a run would import, once for all)
from poller.cli import bootstrap, main, once_command, run_command  # noqa: F401
from poller.ledger import schema  # noqa: F401


def _serve() -> None:
    shim = ctypes.CDLL(None)
    for line in sys.stdin:
        order = json.loads(line)
        assert threading.active_count() == 1  # a lock that another thread held would stay held
        child = os.fork()
        if not child:
            _run(shim, order)
        _, status = os.waitpid(child, 0)
        print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)


def _run(shim: Any, order: dict[str, Any]) -> None:
    code = 70
    try:
        signal.alarm(order["hang_timeout_s"])  # a run that hangs is a defect, not a hung explorer
        for number, name in ((1, "out"), (2, "err")):
            fd = os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(fd, number)
        os.environ.update(order["environ"])
        os.chdir(order["directory"])
        for planted in order["planted"].split():  # breaks something of poller's
            module, _, name = planted.partition(":")
            getattr(importlib.import_module(module), name)()
        if order["prefix"]:
            _move_the_clock(timedelta(seconds=order["later_s"]))
            _arm(shim, order)
        code = main(order["words"])
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _arm(shim: Any, order: dict[str, Any]) -> None:
    if order["names"]:
        shim.shim_names(order["names"].encode())
    if after := order["after"]:
        shim.shim_strike_after(
            after["call"].encode(), after["part"].encode(), after["nth"], after["more"]
        )
    shim.shim_arm(order["prefix"].encode(), order["at"], order["act"].encode())


def _move_the_clock(later: timedelta) -> None:
    """Faxes become due again, and are given up, only after a time."""
    real = clock.SystemClock.now

    def now(self: clock.SystemClock) -> datetime:
        return real(self) + later

    async def sleep(self: clock.SystemClock, seconds: float) -> None:
        await asyncio.sleep(seconds / 100)  # pauses between tries are not what is explored

    clock.SystemClock.now = now  # type: ignore[method-assign]
    clock.SystemClock.sleep = sleep  # type: ignore[method-assign]


if __name__ == "__main__":
    _serve()
