"""The one place that talks HTTP: a session, its deadlines, its errors turned into ours."""

import asyncio
import errno
import os
import ssl
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import aiohttp
from yarl import URL

from poller.client.body import AnswerBody, Timeouts
from poller.client.pacer import Pacer
from poller.client.ports import Observer
from poller.client.resolver import NotLookedUp, Resolver
from poller.clock import Clock, ServerClock
from poller.config.model import Account
from poller.efax import EVIDENCE_LIMIT, Call, Request, evidence, failure, succeeded
from poller.errors import (
    ApiError,
    BadAnswer,
    CannotStart,
    DeadlinePassed,
    Evidence,
    Unreachable,
)
from poller.own_threads import in_own_thread

T = TypeVar("T")
Reader = Callable[[AnswerBody], Awaitable[T]]


class Transport:
    """Sends requests of one account; who may send when is decided before."""

    def __init__(
        self,
        account: Account,
        *,
        pacer: Pacer,
        clock: Clock,
        server_clock: ServerClock,
        observer: Observer,
        timeouts: Timeouts,
    ) -> None:
        self._base = str(URL(account.base_url)).rstrip("/")
        self._account = account
        self._pacer = pacer
        self._clock = clock
        self._server_clock = server_clock
        self._observer = observer
        self.timeouts = timeouts
        self._resolver = Resolver(account.name)
        self._tls: ssl.SSLContext | bool = True
        self._in_flight = 0
        self._sessions: list[aiohttp.ClientSession] = []  # the last one is in use

    async def open(self, in_flight: int) -> None:
        """Open a session; CannotStart when the account's ca_file cannot be used.

        The authorities are read from disk, so in a thread; they stay those of this time.
        """
        self._tls = await in_own_thread("authorities", lambda: tls_context(self._account))
        self.make_room(in_flight)

    def make_room(self, in_flight: int) -> None:
        """Make room for so many connections; requests under way keep theirs."""
        if in_flight <= self._in_flight:
            return
        self._in_flight = in_flight
        connector = aiohttp.TCPConnector(
            limit=in_flight + 2, ssl=self._tls, resolver=self._resolver
        )
        self._sessions.append(
            aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": "poller"},
                proxy=self._account.proxy,
                trust_env=False,
            )
        )

    async def close(self) -> None:
        """Close every connection."""
        sessions, self._sessions, self._in_flight = self._sessions, [], 0
        for session in sessions:
            await session.close()
        await self._resolver.close()

    def server_now(self) -> datetime:
        """Return eFax's time as far as it is known, else ours."""
        our_now = self._our_now()
        return self._server_clock.now(our_now) or our_now

    def _our_now(self) -> datetime:
        return self._server_clock.our_now(self._clock.now(), self._clock.monotonic())

    async def send(self, request: Request, read: Reader[T], *, answered: Callable[[], None]) -> T:
        """Send a request and read its answer; raises the one `ApiError` for what went wrong.

        `answered` is called when an answer begins. `read` gets the answer of a good status; what it
        raises besides aiohttp's errors passes through.
        """
        sends = _Sends(request.call, self._pacer, self._clock, self._observer)
        try:
            async with asyncio.timeout(self.timeouts.total_s) as deadline:
                sends.deadline = deadline
                async with self._request(request, sends) as response:
                    answered()
                    return await self._read(request, sends, response, read)
        except aiohttp.ClientError as error:
            sends.ended(None)
            mapped = _mapped(error, request.call, self._account)
            mapped.evidence = Evidence(sends.status)  # None: not even a status line came
            raise mapped from None
        except TimeoutError:
            sends.ended(None)
            if not deadline.expired():
                raise
            raise self._too_late(request.call) from None
        except ValueError:
            sends.ended(sends.status)
            if sends.status is not None:
                raise
            raise Unreachable(  # UnicodeError, too: a name that has no encoding for the resolver
                "base_url or proxy names no host that can be asked for: check their spelling."
            ) from None
        except BaseException:
            sends.ended(sends.status)
            raise

    async def _read(
        self, request: Request, sends: "_Sends", response: aiohttp.ClientResponse, read: Reader[T]
    ) -> T:
        sends.status = response.status
        self._server_clock.observed(_date(response), self._our_now())
        if not succeeded(request.call, response.status):
            body = await self._error_body(response)
            raise failure(request.call, response.status, response.headers, body, self.server_now())
        silence_s = None
        if request.call is Call.IMAGE:
            sends.deadline.reschedule(None)
            silence_s = self.timeouts.silence_s
        answer = AnswerBody(response, self._clock, self.timeouts, silence_s=silence_s)
        try:
            value = await read(answer)
        except ApiError as error:
            error.evidence = evidence(
                request.call, response.status, response.headers, bytes(answer.head)
            )
            raise
        sends.ended(response.status)
        return value

    def _request(
        self, request: Request, sends: "_Sends"
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        return self._sessions[-1].request(
            request.method,
            # Encoded already: yarl would leave the colons of a timestamp bare.
            URL(self._base + request.target, encoded=True),
            headers=request.headers,
            data=request.body,
            allow_redirects=False,
            middlewares=(sends,),
            timeout=_timeout(self.timeouts, request.call is Call.IMAGE),
        )

    async def _error_body(self, response: aiohttp.ClientResponse) -> bytes:
        """Read what there is of an error's body; the status counts without it, too."""
        body = bytearray()
        try:
            async with asyncio.timeout(self.timeouts.error_body_s):
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) >= EVIDENCE_LIMIT:
                        break
        except (aiohttp.ClientError, TimeoutError):
            pass
        return bytes(body[:EVIDENCE_LIMIT])

    def _too_late(self, call: Call) -> ApiError:
        kind = DeadlinePassed if call is Call.LIST else Unreachable
        return kind(f"The {call} call was not answered within {self.timeouts.total_s:g} seconds.")


class _Sends:
    """A middleware that counts every send of one request.

    aiohttp repeats a GET or DELETE by itself after a reset; that is a request like any other.
    """

    deadline: asyncio.Timeout

    def __init__(self, call: Call, pacer: Pacer, clock: Clock, observer: Observer) -> None:
        self.status: int | None = None
        self._call = call
        self._pacer = pacer
        self._clock = clock
        self._observer = observer
        self._began: float | None = None  # of a send that has not ended yet

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        if self._began is not None:
            self.ended(None)
            wait_s = self._pacer.repeat()
            when = self.deadline.when()
            assert when is not None  # it is lifted only when an image's answer has begun
            self.deadline.reschedule(when + wait_s)  # waiting for pacing does not count
            await self._clock.sleep(wait_s)
        self._began = self._clock.monotonic()
        return await handler(request)

    def ended(self, status: int | None) -> None:
        if self._began is not None:
            self._observer.request(self._call, status, self._clock.monotonic() - self._began)
            self._began = None


def tls_context(account: Account) -> ssl.SSLContext:
    """Trust the system's authorities and the account's own."""
    context = ssl.create_default_context()
    if account.ca_file is not None:
        try:
            context.load_verify_locations(cafile=account.ca_file)
        except OSError as error:  # ssl.SSLError is one
            raise CannotStart(
                f"The tls.ca_file of account {account.name} cannot be used:"
                f" {error.strerror or 'it holds no certificate'}."
            ) from None
    return context


@lru_cache(maxsize=8)
def _timeout(timeouts: Timeouts, is_image: bool) -> aiohttp.ClientTimeout:  # noqa: FBT001
    silence_s = timeouts.silence_s if is_image else None
    return aiohttp.ClientTimeout(total=None, connect=timeouts.connect_s, sock_read=silence_s)


def _date(response: aiohttp.ClientResponse) -> datetime | None:
    return _parsed(response.headers.get("Date", ""))


@lru_cache(maxsize=4)  # many answers bear the same second
def _parsed(date_header: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(date_header)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return date.replace(tzinfo=UTC) if date.tzinfo is None else date.astimezone(UTC)


def _mapped(error: aiohttp.ClientError, call: Call, account: Account) -> ApiError:
    """Say in one sentence what failed and where to look; never aiohttp's own words.

    Those may bear addresses with fax ids, and their arguments the request's headers.
    """
    host = URL(account.base_url).host
    proxy = URL(account.proxy).host if account.proxy else None
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return Unreachable(
            f"The proxy {proxy} did not connect to {host} (HTTP {error.status}): check proxy."
        )
    if isinstance(error, aiohttp.ClientResponseError):
        return BadAnswer(f"What {host} answered to the {call} call is not valid HTTP.")
    if isinstance(error, aiohttp.ClientConnectorError):
        return Unreachable(_not_connected(error, str(host), proxy))
    return Unreachable(_broken(error, call, str(host)))


def _not_connected(error: aiohttp.ClientConnectorError, host: str, proxy: str | None) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return _not_trusted(error, host)
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        return f"No TLS connection to {host}: check base_url and what stands between."
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return f"The proxy {proxy} cannot be reached: check proxy."
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        known = isinstance(error.os_error, NotLookedUp)
        why = str(error.os_error) if known else "check DNS and the spelling"
        return f"The name {proxy or host} cannot be resolved: {why}."
    if error.os_error.errno == errno.ECONNREFUSED:
        return f"{host} refused the connection: check base_url and the firewall."
    why = error.os_error.strerror or "no connection"
    return f"No connection to {host} ({why}): check the network."


def _not_trusted(error: aiohttp.ClientConnectorCertificateError, host: str) -> str:
    if not _has_authorities():
        return (
            f"The certificate of {host} is not trusted: this system has no CA certificates;"
            " install the package ca-certificates."
        )
    why = getattr(error.certificate_error, "verify_message", "") or "it names another host"
    return (
        f"The certificate of {host} is not trusted ({why}): check the clock, and tls.ca_file"
        " if a company's own authority signs for it."
    )


def _has_authorities() -> bool:
    """Whether the system knows anybody to trust: containers often come without."""
    known = ssl.get_default_verify_paths()  # None where there is no such file or directory
    return bool(known.cafile) or any(Path(known.capath or os.devnull).glob("*"))


def _broken(error: aiohttp.ClientError, call: Call, host: str) -> str:
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return f"{host} did not take the connection in time: check the network and the firewall."
    if isinstance(error, aiohttp.ServerTimeoutError):
        return f"{host} fell silent during the {call} call."
    if isinstance(error, aiohttp.ClientPayloadError):
        return f"{host} broke off its answer to the {call} call."
    return f"{host} closed the connection during the {call} call."
