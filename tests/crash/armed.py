"""What is done in a fork before a run that is to be broken; the shim is preloaded."""

import asyncio
import ctypes
import importlib
import signal
from datetime import datetime, timedelta
from typing import Any

from poller import clock


def arm(order: dict[str, Any]) -> None:
    """Prepare the run that `tests.crash.runs.Order` describes."""
    signal.alarm(order["hang_timeout_s"])  # a run that hangs is a defect, not a hung explorer
    for planted in order["planted"].split():  # breaks something of poller's
        module, _, name = planted.partition(":")
        getattr(importlib.import_module(module), name)()
    _move_the_clock(timedelta(seconds=order["later_s"]))
    shim = ctypes.CDLL(None)
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
