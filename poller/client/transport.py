"""The only module that sends HTTP requests: sessions, deadlines, and errors mapped to ours."""

import asyncio
import io
import ssl
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any, TypeVar

import aiohttp
from yarl import URL

from poller.client.body import AnswerBody, Reader
from poller.client.failures import as_api_error
from poller.client.pacer import Pacer
from poller.client.ports import Observer, Ports, Timeouts
from poller.client.resolver import Resolver
from poller.clock import Clock, ServerClock
from poller.config.model import Account
from poller.efax.requests import Call, Request
from poller.efax.responses import EVIDENCE_LIMIT, evidence, failure, succeeded
from poller.errors import (
    ApiError,
    CannotStart,
    DeadlinePassed,
    Evidence,
    LeaseLost,
    RateLimited,
    Unreachable,
)
from poller.own_threads import in_own_thread
from poller.pacing import Ticket

T = TypeVar("T")
# Do not retry these calls at once after a time-out.
_NOT_AGAIN = (Call.LIST, Call.SENT_LIST, Call.METADATA)
_LARGE_BODY = 1 << 20  # aiohttp writes larger bodies in pieces only if they are files


class Transport:
    """Sends requests of one account, each with the ticket that had its turn."""

    def __init__(self, account: Account, pacer: Pacer, ports: Ports) -> None:
        self.server_clock = ServerClock()
        self._base = str(URL(account.base_url)).rstrip("/")
        self._account = account
        self._pacer = pacer
        self._clock = ports.clock
        self._observer = ports.observer
        self._timeouts = ports.timeouts
        self._resolver = Resolver(account.name)
        self._tls: ssl.SSLContext | bool = True
        self._in_flight = 0
        self._sessions: list[aiohttp.ClientSession] = []  # the last is in use
        self._sender: aiohttp.ClientSession | None = None
        self._under_way: set[asyncio.Timeout] = set()  # all but a fax that is being sent
        self._cut_off: set[asyncio.Timeout] = set()

    async def open(self, in_flight: int) -> None:
        """Open a session. Raises CannotStart if the account's ca_file cannot be used.

        Reads the CAs from disk, in a thread, and once only.
        """
        self._tls = await in_own_thread("authorities", lambda: tls_context(self._account))
        self.make_room(in_flight)

    def make_room(self, in_flight: int) -> None:
        """Allow this many connections; requests under way keep theirs."""
        if in_flight <= self._in_flight:
            return
        self._in_flight = in_flight
        self._sessions.append(self._session(limit=in_flight + 2))

    def _session(self, **settings: Any) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(ssl=self._tls, resolver=self._resolver, **settings)
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "poller"},
            proxy=self._account.proxy,
            trust_env=False,
        )

    def _session_for(self, call: Call) -> aiohttp.ClientSession:
        """Return the session for a call: a new connection for sending a fax, else the shared one.

        The server may close a kept connection at that moment, and then nobody knows whether it has
        accepted the fax.
        """
        if call is not Call.SEND:
            return self._sessions[-1]
        if self._sender is None:
            self._sender = self._session(force_close=True)
        return self._sender

    async def close(self) -> None:
        """Close every connection."""
        sessions, self._sessions, self._in_flight = self._sessions, [], 0
        if self._sender is not None:
            sessions.append(self._sender)
            self._sender = None
        for session in sessions:
            await session.close()
        await self._resolver.close()

    def cut_off(self) -> None:
        """End the requests under way with LeaseLost; let one that sends a fax get its answer."""
        now = asyncio.get_running_loop().time()
        for deadline in self._under_way:
            if not deadline.expired():
                deadline.reschedule(now)
                self._cut_off.add(deadline)

    def server_now(self) -> datetime:
        """Return eFax's time if it is known, else ours."""
        our_now = self._our_now()
        return self.server_clock.now(our_now) or our_now

    def _our_now(self) -> datetime:
        return self.server_clock.our_now(self._clock.now(), self._clock.monotonic())

    async def send(self, ticket: Ticket, request: Request, read: Reader[T]) -> T:
        """Send a request and read its answer. Raises the `ApiError` for the failure.

        `read` gets an answer with a good status; its errors pass through, except aiohttp's. Pacing
        learns the outcome.
        """
        sent_at = self._clock.monotonic()
        try:
            value = await self._send(ticket, request, read)
        except RateLimited as error:
            self._pacer.rate_limited(error, sent_at)
            raise
        self._pacer.succeeded(sent_at)
        return value

    async def _send(self, ticket: Ticket, request: Request, read: Reader[T]) -> T:
        deadline = asyncio.timeout(self._total_s(request.call))
        sends = _Sends(request.call, self._pacer, self._clock, self._observer, deadline)
        if request.call is not Call.SEND:
            self._under_way.add(deadline)
        try:
            async with deadline, self._request(request, sends) as response:
                self._pacer.answered(ticket)
                return await self._read(request, sends, response, read)
        except aiohttp.ClientError as error:
            sends.ended(None)
            mapped = as_api_error(error, request.call, self._account)
            mapped.evidence = Evidence(sends.status)  # None: no status line arrived
            raise mapped from None
        except TimeoutError:
            sends.ended(None)
            if not deadline.expired():
                raise
            if deadline in self._cut_off:
                raise LeaseLost(self._account.app_id) from None
            raise self._too_late(request.call) from None
        except ValueError:
            if sends.status is not None:
                raise
            unknown = Unreachable(  # also UnicodeError: the resolver cannot encode the name
                "base_url or proxy contains an invalid host name: check their spelling."
            )
            unknown.was_sent = False
            raise unknown from None
        finally:
            sends.ended(sends.status)
            self._under_way.discard(deadline)
            self._cut_off.discard(deadline)

    async def _read(
        self, request: Request, sends: "_Sends", response: aiohttp.ClientResponse, read: Reader[T]
    ) -> T:
        sends.status = response.status
        date = _parsed(response.headers.get("Date", ""))
        self.server_clock.observed(date, self._our_now())
        if not succeeded(response.status):
            body = await self._error_body(response)
            raise failure(request.call, response.status, response.headers, body, self.server_now())
        silence_s = None
        if request.call is Call.IMAGE:
            sends.deadline.reschedule(None)
            silence_s = self._timeouts.silence_s
        answer = AnswerBody(response, self._clock, self._timeouts, silence_s)
        try:
            return await read(answer)
        except ApiError as error:
            error.evidence = evidence(
                request.call, response.status, response.headers, bytes(answer.head)
            )
            raise

    def _request(
        self, request: Request, sends: "_Sends"
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        large = request.body is not None and len(request.body) > _LARGE_BODY
        return self._session_for(request.call).request(
            request.method,
            # Already encoded: yarl would leave the colons of a timestamp as they are.
            URL(self._base + request.target, encoded=True),
            headers=request.headers,
            data=io.BytesIO(request.body or b"") if large else request.body,
            allow_redirects=False,
            middlewares=(sends,),
            timeout=_timeout(self._timeouts, request.call is Call.IMAGE),
        )

    async def _error_body(self, response: aiohttp.ClientResponse) -> bytes:
        """Read an error's body as far as it arrives; the status counts without it too."""
        body = bytearray()
        try:
            async with asyncio.timeout(self._timeouts.error_body_s):
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) >= EVIDENCE_LIMIT:
                        break
        except (aiohttp.ClientError, TimeoutError):
            pass
        return bytes(body[:EVIDENCE_LIMIT])

    def _too_late(self, call: Call) -> ApiError:
        kind = DeadlinePassed if call in _NOT_AGAIN else Unreachable
        return kind(f"eFax did not answer the {call} call within {self._total_s(call):g} seconds.")

    def _total_s(self, call: Call) -> float:
        return self._timeouts.send_s if call is Call.SEND else self._timeouts.total_s


@dataclass
class _Sends:
    """A middleware that counts every send of one request.

    aiohttp repeats a GET or DELETE by itself after a reset, and that counts as a request. What
    cannot be undone must not be repeated: poller checks whether a deletion is still wanted and
    requests it again, and it never sends a fax twice, even if a later aiohttp repeats POST.
    """

    call: Call
    pacer: Pacer
    clock: Clock
    observer: Observer
    deadline: asyncio.Timeout
    status: int | None = None
    began: float | None = None  # start of a send that has not ended yet

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        if self.began is not None:
            self.ended(None)
            if self.call in (Call.SEND, Call.DELETE):
                raise aiohttp.ServerDisconnectedError
            wait_s = self.pacer.repeat()
            when = self.deadline.when()
            assert when is not None  # only the start of an image's answer removes the deadline
            self.deadline.reschedule(when + wait_s)  # waiting for pacing does not count
            await self.clock.sleep(wait_s)
        self.began = self.clock.monotonic()
        return await handler(request)

    def ended(self, status: int | None) -> None:
        if self.began is not None:
            self.observer.request(self.call, status, self.clock.monotonic() - self.began)
            self.began = None


def tls_context(account: Account) -> ssl.SSLContext:
    """Return a context that trusts the system's CAs and the account's own."""
    context = ssl.create_default_context()
    if account.ca_file is not None:
        try:
            context.load_verify_locations(cafile=account.ca_file)
        except OSError as error:  # ssl.SSLError is one
            raise CannotStart(
                f"The tls.ca_file of account {account.name} cannot be used:"
                f" {error.strerror or 'it contains no certificate'}."
            ) from None
    return context


@lru_cache(maxsize=8)
def _timeout(timeouts: Timeouts, is_image: bool) -> aiohttp.ClientTimeout:  # noqa: FBT001
    silence_s = timeouts.silence_s if is_image else None
    return aiohttp.ClientTimeout(total=None, connect=timeouts.connect_s, sock_read=silence_s)


@lru_cache(maxsize=4)  # many answers have the same second
def _parsed(date_header: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(date_header)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return date.replace(tzinfo=UTC) if date.tzinfo is None else date.astimezone(UTC)
