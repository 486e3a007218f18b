"""The listener for eFax's notices: few connections at a time, each for a short time.

Anybody who knows its address can send anything. So it takes one request per connection, and limits
the open connections and the new ones per second. Others wait in the kernel, and do not delay polls.
"""

import asyncio
import json
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web

from poller import events, log
from poller.config.model import WebhookConfig
from poller.errors import CannotStart
from poller.hooks import LONGEST_BODY, SIGNATURE, is_signed
from poller.web import addresses_of

_AT_ONCE: Final = 32
_BETWEEN_S: Final = 0.004  # between two connections: at most 250 a second
_WAITING: Final = 128  # connections waiting in the kernel
_BODY_S: Final = 10.0
_HEAD_S: Final = 3.0  # from the connection to the end of the request's headers
_CONNECTION_S: Final = 15.0  # from then to the end of the answer
_LINGER_S: Final = 2.0  # for a sender to read the refusal while it still sends
_AGAIN_S: Final = 1.0

# Returns App ID and secret of the account with a path.
FindHook = Callable[[str], Awaitable[tuple[str, str] | None]]


class HookListener:
    """Listens on `webhook.listen`; calls `taken` for each correctly signed body, else `refused`.

    `find` returns the account of a path. `taken` and `refused` get the App ID and must not block.
    """

    def __init__(
        self,
        at: WebhookConfig,
        tls: ssl.SSLContext | None,
        *,
        find: FindHook,
        taken: Callable[[str, bytes], None],
        refused: Callable[[str], None],
    ) -> None:
        self._at = at
        self._tls = tls
        self._find = find
        self._taken = taken
        self._refused = refused
        self._server = _Connections(self._handle)
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._sockets: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """Return the port that it listens on; the configured one unless that is 0."""
        return int(self._sockets[0].getsockname()[1]) if self._sockets else self._at.port

    async def start(self) -> None:
        """Start listening. Raises CannotStart if the address is not available."""
        try:
            for address in await addresses_of(self._at.host, self._at.port, "webhook.listen"):
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                listening = socket.create_server(
                    (address, self._at.port), family=family, backlog=_WAITING
                )
                listening.settimeout(0)
                self._sockets.append(listening)
        except OSError as error:
            await self.stop()
            raise CannotStart(
                f"cannot listen on {self._at.host}:{self._at.port} for the web-hook: "
                f"{error.strerror or error}; set webhook.listen to a free address"
            ) from error
        for listening in self._sockets:
            self._spawn(self._accept(listening))

    async def stop(self) -> None:
        """Stop listening and close all connections; do nothing if it does not listen."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for listening in self._sockets:
            listening.close()
        self._sockets.clear()

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work, name="web-hook")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._room.acquire()
            try:
                accepted, _ = await loop.sock_accept(listening)
            except OSError:  # the client has gone, or no descriptor is free
                self._room.release()
                await asyncio.sleep(_AGAIN_S)
                continue
            except BaseException:
                self._room.release()
                raise
            self._spawn(self._serve(accepted))
            await asyncio.sleep(_BETWEEN_S)

    async def _serve(self, accepted: socket.socket) -> None:
        """Serve one request of a connection, within its time limits.

        A client that sends nothing keeps its place only for a moment, because others wait for it.
        """
        loop = asyncio.get_running_loop()
        handler, ended = self._server.handler()
        transport: Any = None
        try:
            with suppress(TimeoutError, OSError):  # an SSLError is an OSError
                async with asyncio.timeout(_HEAD_S) as deadline:
                    self._server.deadlines[handler] = deadline
                    transport, _ = await loop.connect_accepted_socket(
                        lambda: handler, accepted, ssl=self._tls
                    )
                    await ended.wait()
        finally:
            self._server.forget(handler)
            if transport is not None:
                transport.abort()
            else:
                accepted.close()
            self._room.release()

    # -- one request ----------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self._server.prolong(request.protocol)
        try:
            response = await self._answer(request)
        except TimeoutError:
            response = _said(HTTPStatus.REQUEST_TIMEOUT)
        except Exception as error:  # noqa: BLE001 - a bug here must not end the service
            log.say(events.InternalError("The web-hook's listener failed.", error))
            response = _said(HTTPStatus.INTERNAL_SERVER_ERROR)
        response.force_close()
        return response

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        hook = await self._find(request.path)
        if hook is None:
            return _said(HTTPStatus.NOT_FOUND)
        if request.method != "POST":
            return _said(HTTPStatus.METHOD_NOT_ALLOWED, {"Allow": "POST"})
        if (request.content_length or 0) > LONGEST_BODY:
            return _said(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        return await self._check(request, *hook)

    async def _check(self, request: web.BaseRequest, app_id: str, secret: str) -> web.Response:
        signature = request.headers.get("X-HMAC-Signature", "")
        # Do not wait for the body of a request without a signature.
        if SIGNATURE.fullmatch(signature.strip()):
            async with asyncio.timeout(_BODY_S):
                body = await _body(request)
            if body is None:
                return _said(HTTPStatus.BAD_REQUEST)
            if len(body) > LONGEST_BODY:
                return _said(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            if is_signed(body, secret, signature):
                self._taken(app_id, body)
                return _said(HTTPStatus.OK)
        self._refused(app_id)
        return _said(HTTPStatus.UNAUTHORIZED)


class _Connections(web.Server):
    """Makes aiohttp's protocol for each connection, and an event for its end."""

    def __init__(self, handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]) -> None:
        super().__init__(
            handle,
            access_log=None,
            auto_decompress=False,  # the signature covers the bytes as sent
            lingering_time=_LINGER_S,
            # It would log every client that does not speak HTTP.
            logger=logging.Logger("web-hook", logging.CRITICAL + 1),
        )
        self._ends: dict[asyncio.BaseProtocol, asyncio.Event] = {}
        self.deadlines: dict[asyncio.BaseProtocol, asyncio.Timeout] = {}

    def handler(self) -> tuple[asyncio.BaseProtocol, asyncio.Event]:
        """Return the protocol for one connection, and the event that is set when it ends."""
        made, ended = self(), asyncio.Event()
        self._ends[made] = ended
        return made, ended

    def forget(self, handler: asyncio.BaseProtocol) -> None:
        self._ends.pop(handler)
        self.deadlines.pop(handler, None)

    def prolong(self, handler: asyncio.BaseProtocol) -> None:
        """Extend the time limit: the request's headers have arrived."""
        if (deadline := self.deadlines.pop(handler, None)) is not None:
            deadline.reschedule(asyncio.get_running_loop().time() + _CONNECTION_S)

    def connection_lost(self, handler: Any, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        if (ended := self._ends.get(handler)) is not None:
            ended.set()


async def _body(request: web.BaseRequest) -> bytes | None:
    """Read the body as sent; stop once it is too long.

    Return None if it breaks off, or its chunked encoding is invalid.
    """
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    body = bytearray()
    try:
        async for piece in request.content.iter_any():
            body += piece
            if len(body) > LONGEST_BODY:
                break
    except Exception:  # noqa: BLE001 - whatever a sender can cause
        return None
    return bytes(body)


def _said(status: HTTPStatus, headers: dict[str, str] | None = None) -> web.Response:
    text = {"status": "SUCCESS" if status is HTTPStatus.OK else status.phrase}
    return web.Response(
        status=status,
        body=json.dumps(text).encode(),
        content_type="application/json",
        headers={"Server": "poller", **(headers or {})},
    )
