"""What tests of a running installation share: its parts, and the history of one fax."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from poller.ingest.account import AccountRunner
from poller.ingest.fetch import Fetcher, Outcome
from poller.ingest.poll_run import PollOutcome
from poller.ingest.runtime import Runtime
from poller.ingest.stream_state import StreamState
from poller.ledger import FaxRow, faxes
from poller.simulator import Fault, Faults, Simulator, Switches, selection
from poller.simulator.query import RefusedError, Window
from poller.simulator.state import Fax
from poller.store.marker import MARKER
from tests.conftest import APP, Event, QuickClock

WITHIN_S = 60.0  # real time that a test waits for what must happen soon, on a loaded machine
HELD_S = 240.0  # holds a thread for longer than a test waits for anything else


def parts(runtime: Runtime, user: str = "user-a") -> tuple[AccountRunner, StreamState]:
    account = runtime.accounts[APP]
    return account, next(s for s in account.states.values() if s.user.name == user)


async def poll(runtime: Runtime, user: str = "user-a") -> PollOutcome:
    account, state = parts(runtime, user)
    return await account.poll(state)


async def listed(
    runtime: Runtime, simulator: Simulator, user: str = "user-a", **fields: Any
) -> tuple[Fax, FaxRow]:
    """Let a fax arrive, a minute ago or as `fields` say, and return its row once discovered."""
    completed = fields.pop("completed", simulator.now() - timedelta(minutes=1))
    fax = simulator.receive(APP, user, completed=completed, **fields)
    await poll(runtime, user)
    return fax, await row(runtime, fax)


async def row(runtime: Runtime, fax: Fax) -> FaxRow:
    (found,) = await runtime.services.ledger.read(faxes.find, fax.fax_id)
    return found


async def fetch(runtime: Runtime, fax: Fax) -> Outcome:
    """One attempt at a fax, as a worker makes it."""
    account, state = parts(runtime, fax.user_id)
    fetcher = Fetcher(runtime.services, account.client, paused_s=account.paused_s)
    return await fetcher.fetch(await row(runtime, fax), state.user)


def faults(*rules: str, script: tuple[str | None, ...] = ()) -> Faults:
    """Faults: rules, and a script for one image request after the other."""
    return Faults(
        rules=tuple(Fault.parse(rule) for rule in rules),
        script=script,
        script_calls=frozenset({"image"}),
    )


def refuse_windows(monkeypatch: pytest.MonkeyPatch, status: int, older_than: timedelta) -> None:
    """Let eFax answer windows that begin longer ago with `status`, and all others as usual."""

    def check(_: Switches, window: Window, now: datetime) -> None:
        if window.start is not None and now - window.start > older_than:
            raise RefusedError(status, "no such resource")

    monkeypatch.setattr(selection, "check_window", check)


def calls(simulator: Simulator, call: str, user: str | None = None) -> int:
    return sum(one.call == call and user in (None, one.user) for one in simulator.requests)


def said(events: list[Event], *actions: str) -> list[str]:
    """Return the events of these names, in order."""
    return [event.action for event in events if event.action in actions]


def unmount(runtime: Runtime) -> None:
    """Leave an empty mount point in place of the storage directory."""
    marker = runtime.config.storage.directory / MARKER
    marker.rename(marker.with_suffix(".elsewhere"))


def mount(runtime: Runtime) -> None:
    marker = runtime.config.storage.directory / MARKER
    marker.with_suffix(".elsewhere").rename(marker)


async def suspend(runtime: Runtime, simulator: Simulator) -> None:
    """Let an outage begin and suspend the account."""
    account = runtime.accounts[APP]
    simulator.outage(True)
    while not account.is_suspended:
        for state in list(account.states.values()):
            await account.poll(state)
    await settled(account)


async def end_outage(runtime: Runtime, simulator: Simulator, clock: QuickClock) -> None:
    """Let the outage end, and a poll find that out."""
    account = runtime.accounts[APP]
    simulator.outage(False)
    clock.advance(timedelta(minutes=6))
    for state in list(account.states.values()):
        await account.poll(state)
    assert not account.is_suspended
    await settled(account)


async def settled(account: AccountRunner) -> None:
    """Wait until everything that the account notes in the background is in the ledger."""
    await until(lambda: not account._notes)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not condition():
            await asyncio.sleep(0.002)


@asynccontextmanager
async def in_background(*works: Any) -> AsyncIterator[list[asyncio.Task[Any]]]:
    """Run coroutines beside the test; if one dies, the test fails."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result


class Held:
    """The first call that `when` picks waits in its thread until the test lets it go."""

    def __init__(
        self, real: Callable[..., Any], when: Callable[..., bool] = lambda *_: True
    ) -> None:
        self._real, self._when = real, when
        self._reached, self.let_go = threading.Event(), threading.Event()

    def __call__(self, *args: Any, **how: Any) -> Any:
        if not self._reached.is_set() and self._when(*args):
            self._reached.set()
            assert self.let_go.wait(HELD_S)
        return self._real(*args, **how)

    async def reached(self) -> None:
        await until(self._reached.is_set)


def files(directory: Path, pattern: str) -> list[Path]:
    return sorted(directory.rglob(pattern))
