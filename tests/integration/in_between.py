"""Do something at each point where one of our tasks waits between reading a fact and acting on it."""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from poller.ingest.runtime import Runtime
from poller.ledger import Ledger, jobs
from poller.store import Storage
from tests.conftest import APP

Act = Callable[[], Awaitable[object]]

# The last look at a fax: what comes after it comes after its image was requested.
_LAST_LOOK = jobs.is_open


class Between:
    """Acts once, at the n-th of these points.

    They are just before and just after each question to ledger or storage, and when a request's
    turn has come.
    """

    def __init__(self, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
        self._runtime = runtime
        self._monkeypatch = monkeypatch
        self._left = 0
        self._act: Act | None = None

    @asynccontextmanager
    async def each(self) -> AsyncIterator[None]:
        with self._monkeypatch.context() as patched:
            for kind, one in (
                (Ledger, self._runtime.services.ledger),
                (Storage, self._runtime.services.storage),
            ):
                for name in _coroutines(kind):
                    patched.setattr(one, name, self._after(getattr(one, name)))
            pacer = self._runtime.accounts[APP].client._pacer
            patched.setattr(pacer, "turn", self._in_turn(pacer.turn))
            yield

    def at(self, number: int, act: Act) -> None:
        self._left, self._act = number, act

    @property
    def is_done(self) -> bool:
        return self._act is None

    async def _step(self) -> None:
        self._left -= 1
        if self._left == 0 and self._act is not None:
            act, self._act = self._act, None
            await act()

    def _after(self, real: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def then(*values: Any, **named: Any) -> Any:
            if values[:1] == (_LAST_LOOK,):
                return await real(*values, **named)
            await self._step()
            answer = await real(*values, **named)
            await self._step()
            return answer

        return then

    def _in_turn(self, real: Callable[..., Any]) -> Callable[..., Any]:
        @asynccontextmanager
        async def turn(*values: Any) -> AsyncIterator[Any]:
            async with real(*values) as ticket:
                await self._step()
                yield ticket

        return turn


Asked = Callable[[], Awaitable[Any]]


def around(
    monkeypatch: pytest.MonkeyPatch,
    ledger: Ledger,
    function: Callable[..., Any],
    instead: Callable[[Asked], Awaitable[Any]],
) -> None:
    """Call `instead` when the ledger is asked to run `function`; it gets the way to do so."""
    for name in ("read", "write", "write_together"):
        monkeypatch.setattr(ledger, name, _around(getattr(ledger, name), function, instead))


def _around(
    real: Callable[..., Awaitable[Any]],
    function: Callable[..., Any],
    instead: Callable[[Asked], Awaitable[Any]],
) -> Callable[..., Awaitable[Any]]:
    async def run(asked: Callable[..., Any], *values: Any, **named: Any) -> Any:
        go_on = partial(real, asked, *values, **named)
        return await (instead(go_on) if asked is function else go_on())

    return run


def _coroutines(kind: type) -> Iterator[str]:
    for name, value in vars(kind).items():
        if inspect.iscoroutinefunction(value) and name[0] != "_":
            yield name
