"""A world in memory for the state machine: its time, eFax, the wire between, and how a process dies.

All of poller runs as it is, down to the request that leaves the transport and the single step on
the file system; only aiohttp's connection, the clock and the moment of death are replaced.
"""

import asyncio
import base64
import binascii
import json
import os
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest
from multidict import CIMultiDict

from poller.client import transport
from poller.efax.requests import Call, Request
from poller.errors import LedgerUnavailable, PollerError
from poller.ledger.writer import Writer
from poller.simulator.fake_efax import FakeEfax, Seen
from poller.simulator.faults import Stage
from poller.simulator.query import Arrival
from poller.simulator.replies import Reply
from poller.simulator.state import App, Fax, SentFax
from poller.store import syscalls
from tests import once_made
from tests.conftest import NOON

Key = tuple[str, str, str]  # App ID, User ID or stream, fax id: what a fax is
_MOST_WRONG_DATES = 2  # a third one that agrees would rightly be believed
_CHANGES_THE_DISK = (
    "make_directory",
    "set_mode",
    "create",
    "write",
    "sync_file",
    "sync_directory",
    "close_written",
    "move",
    "unlink",
)


def stream_of(user_id: str, direction: str) -> str:
    """Name the sent faxes of a user as if they were another user's."""
    return f"{user_id}/sent" if direction == "sent" else user_id


class Crash(BaseException):
    """The process is dead; none of its error handlers may continue."""


@dataclass
class Clocks:
    """eFax's time, our monotonic clock, and how far our wall clock is ahead. Sleep moves both on."""

    true: datetime = NOON
    mono: float = 1000.0
    ahead: timedelta = timedelta(0)

    def now(self) -> datetime:
        return self.true + self.ahead

    def server_now(self) -> datetime:
        return self.true

    def monotonic(self) -> float:
        return self.mono

    async def sleep(self, seconds: float) -> None:
        self.true += timedelta(seconds=max(0.0, seconds))
        self.mono += max(0.0, seconds)  # exactly: a sleeper until then must be there
        await asyncio.sleep(0)

    def pass_time(self, by: timedelta) -> None:
        self.true += by
        self.mono += by.total_seconds()


@dataclass
class Death:
    """When the process dies: before the `countdown`-th step that changes disk or ledger."""

    countdown: int | None = None
    dead: bool = False
    steps: int = 0
    loop: asyncio.AbstractEventLoop | None = None
    noticed: asyncio.Event = field(default_factory=asyncio.Event)

    def step(self) -> None:
        """Continue, or die here; once dead, nothing changes any more."""
        if self.dead:
            raise Crash
        self.steps += 1
        if self.countdown is None:
            return
        self.countdown -= 1
        if self.countdown <= 0:
            self.dead = True
            assert self.loop is not None
            self.loop.call_soon_threadsafe(self.noticed.set)
            raise Crash

    def revive(self) -> None:
        self.countdown, self.dead, self.noticed = None, False, asyncio.Event()


class Efax(FakeEfax):
    """The simulator's own answers, and a memory of every fax that there ever was."""

    def __init__(self, clocks: Clocks) -> None:
        super().__init__(now=clocks.server_now, monotonic=clocks.monotonic, seed=1)
        self.ever: list[Fax] = []
        self.ever_sent: list[SentFax] = []

    def receive(self, app_id: str, user_id: str, **fields: Any) -> Fax:
        fax = super().receive(app_id, user_id, **{"distinct": False, **fields})
        self.ever.append(fax)
        return fax

    def sent(self, app_id: str, user_id: str, **fields: Any) -> SentFax:
        fax = super().sent(app_id, user_id, distinct=False, **fields)
        self.ever_sent.append(fax)
        return fax

    def stream_of(self, user_id: str, fax_id: str) -> str:
        is_sent = any(fax.fax_id == fax_id for fax in self.ever_sent)
        return stream_of(user_id, "sent" if is_sent else "received")

    def users(self) -> list[tuple[str, str]]:
        return [(app.app_id, user) for app in self.apps.values() for user in app.users]

    def app(self, app_id: str) -> App:
        return self.apps[app_id]


@dataclass
class World:
    """What the machine moves and looks at. Times of eFax are `clocks.true`."""

    clocks: Clocks = field(default_factory=Clocks)
    death: Death = field(default_factory=Death)
    dates: list[str | None] = field(default_factory=list)  # what is wrong with the next Dates
    refusing_transactions: int = 0
    served: dict[Key, set[str]] = field(default_factory=lambda: defaultdict(set))
    listed: set[Key] = field(default_factory=set)
    image_requests: list[Key] = field(default_factory=list)
    on_delete: Callable[[Key], None] = lambda _: None
    unexpected: list[str] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)
    requests: int = 0
    _wrong_dates: int = 0

    def __post_init__(self) -> None:
        self.efax = Efax(self.clocks)

    # -- what the answers say ---------------------------------------------------------------------

    def answer(self, request: Request) -> tuple[Reply, str | None]:
        """Let eFax answer; also return what breaks on the way."""
        if self.death.dead:
            raise Crash
        self.requests += 1
        arrival = Arrival(
            request.method,
            request.target,
            {name.lower(): value for name, value in request.headers.items()},
            request.body or b"",
        )
        seen = self.efax.see(arrival)
        if request.call is Call.IMAGE:
            self.image_requests.append((self._app_of(seen), *self._fax_of(seen)))
        if request.call is Call.DELETE:
            self.on_delete((self._app_of(seen), str(seen.user), str(seen.fax_id)))
        answer, fault = self.efax.answer(seen, arrival)
        self._spoil_date(answer)
        effect = fault.effect if fault is not None and fault.stage is Stage.DELIVERY else None
        if answer.status == 200:
            self._remember(request, seen, answer, whole=effect is None)
        return answer, effect

    def _app_of(self, seen: Seen) -> str:
        owners = [app for app, user in self.efax.users() if user == seen.user]
        return seen.app_id or (owners[0] if owners else "")

    def _fax_of(self, seen: Seen) -> tuple[str, str]:
        return self.efax.stream_of(str(seen.user), str(seen.fax_id)), str(seen.fax_id)

    def _remember(self, request: Request, seen: Seen, answer: Reply, *, whole: bool) -> None:
        try:
            body = json.loads(answer.body.decode())  # a byte order mark is not JSON
        except ValueError:
            return
        if request.call is Call.IMAGE and isinstance(body.get("image"), str):
            try:
                document = base64.b64decode(body["image"], validate=True)
            except binascii.Error:
                return
            key = (str(seen.app_id), *self._fax_of(seen))
            self.served[key].add(sha256(document).hexdigest())
        if request.call in (Call.LIST, Call.SENT_LIST) and whole:
            self._remember_listed(seen, body)

    def _remember_listed(self, seen: Seen, body: Any) -> None:
        """A list without bounds may go further back than requested, and does not count."""
        if "min_completed_timestamp" not in parse_qs(urlsplit(seen.target).query):
            return
        for listed in body.get("faxes") or ():
            if isinstance(listed.get("fax_id"), str) and listed["fax_id"]:
                fax_id = listed["fax_id"]
                whose = self.efax.stream_of(str(seen.user), fax_id)
                self.listed.add((str(seen.app_id), whose, fax_id))

    def _spoil_date(self, answer: Reply) -> None:
        wrong = self.dates.pop(0) if self.dates else None
        if wrong is None or self._wrong_dates == _MOST_WRONG_DATES:
            self._wrong_dates = 0
            return
        self._wrong_dates += 1
        answer.headers["Date"] = None if wrong == "missing" else wrong

    # -- the ledger and what is said -----------------------------------------------------------------

    def transaction(self) -> None:
        """A transaction is about to begin."""
        self.death.step()
        if self.refusing_transactions:
            self.refusing_transactions -= 1
            raise LedgerUnavailable("the ledger is locked by another program")

    def event(self, action: str, message: str, **fields: Any) -> None:
        """Take a log event; only errors of our own kinds are expected."""
        self.actions.append(action)
        error = fields.get("error")
        if action == "internal-error" or not isinstance(error, PollerError | str | None):
            self.unexpected.append(f"{action}: {message} {error!r}")


# -- the wire --------------------------------------------------------------------------------------


class _Content:
    """The body of an answer in two pieces, and how it ends."""

    def __init__(self, body: bytes, ending: Callable[[], Awaitable[None]]) -> None:
        middle = (len(body) + 1) // 2
        self._pieces = [piece for piece in (body[:middle], body[middle:]) if piece]
        self._ending = ending

    async def readany(self) -> bytes:
        if self._pieces:
            return self._pieces.pop(0)
        await self._ending()
        return b""

    async def iter_any(self) -> Any:
        while piece := await self.readany():
            yield piece


class _Response:
    def __init__(self, answer: Reply, effect: str | None, hang: Callable[[], Awaitable[None]]):
        self.status = answer.status
        headers = {name: value for name, value in answer.headers.items() if value is not None}
        self.headers = CIMultiDict(headers)
        body = answer.body if effect is None else answer.body[: len(answer.body) // 2]

        async def end() -> None:
            if effect in ("cut", "cut-chunked"):
                raise aiohttp.ClientPayloadError("cut")
            if effect == "reset-mid-body":
                raise aiohttp.ClientOSError("reset")
            if effect in ("stall-mid-body", "drip"):
                await hang()

        self.content = _Content(body, end)


class _Exchange:
    """One request and its answer, as in aiohttp's session.

    A GET is repeated once by itself after a reset, through the middleware that counts it.
    """

    def __init__(self, world: World, request: Request, sends: Any) -> None:
        self._world = world
        self._request = request
        self._sends = sends

    async def __aenter__(self) -> _Response:
        repeats = 1 if self._request.method == "GET" else 0
        while True:
            try:
                response: _Response = await self._sends(None, self._handle)
            except aiohttp.ServerDisconnectedError:
                if not repeats:
                    raise
                repeats -= 1
            else:
                return response

    async def __aexit__(self, *_: object) -> None:
        return None

    async def _handle(self, _: Any) -> _Response:
        await asyncio.sleep(0)
        answer, effect = self._world.answer(self._request)
        if effect == "reset":
            raise aiohttp.ServerDisconnectedError
        if effect == "stall":
            await self._hang()
        return _Response(answer, effect, self._silence)

    async def _hang(self) -> None:
        """Nothing comes until the deadline, which is now."""
        self._world.clocks.pass_time(timedelta(seconds=60))
        self._sends.deadline.reschedule(asyncio.get_running_loop().time())
        await asyncio.Event().wait()

    async def _silence(self) -> None:
        if self._request.call is not Call.IMAGE:
            await self._hang()
        self._world.clocks.pass_time(timedelta(seconds=30))
        raise aiohttp.SocketTimeoutError


# -- putting it in place ---------------------------------------------------------------------------


@contextmanager
def in_place(world: World) -> Iterator[None]:
    """Let poller live in `world`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            transport.Transport,
            "_request",
            lambda _, request, sends: _Exchange(world, request, sends),
        )
        once_made.put_in_place(patch.setattr)
        patch.setattr("poller.log.event", world.event)
        _mortal_steps(patch, world.death)
        _mortal_ledger(patch, world)
        yield


def _mortal_steps(patch: pytest.MonkeyPatch, death: Death) -> None:
    for name in _CHANGES_THE_DISK:
        real = getattr(syscalls, name)

        def mortal(*args: Any, _real: Any = real, **kwargs: Any) -> Any:
            death.step()
            return _real(*args, **kwargs)

        patch.setattr(syscalls, name, mortal)
    write, close_written = syscalls.write, syscalls.close_written

    def half_written(fd: int, data: bytes | bytearray) -> None:
        was_dead = death.dead
        try:
            write(fd, data)
        except Crash:
            if not was_dead:
                os.write(fd, data[: len(data) // 2])
            raise

    def closed_by_death(fd: int) -> None:
        try:
            close_written(fd)
        except Crash:
            os.close(fd)
            raise

    patch.setattr(syscalls, "write", half_written)
    patch.setattr(syscalls, "close_written", closed_by_death)


def _mortal_ledger(patch: pytest.MonkeyPatch, world: World) -> None:
    real = Writer._transaction

    async def mortal(self: Writer, works: list[Any]) -> list[Any]:
        world.transaction()
        outcomes = await real(self, works)
        world.death.step()  # committed, but nobody heard of it
        return outcomes

    patch.setattr(Writer, "_transaction", mortal)
