"""The status server: a page for people, endpoints for probes and Prometheus."""

import asyncio
import base64
import binascii
import gzip
import hashlib
import hmac
import ipaddress
import json
import re
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from importlib import resources
from typing import Any, Final
from urllib.parse import urlsplit

from aiohttp import web

from poller import events, log
from poller.client import Resolver
from poller.clock import Clock, SystemClock
from poller.config.model import HttpConfig
from poller.errors import CannotStart, PollerError
from poller.metrics import CONTENT_TYPE, Metrics
from poller.own_threads import OwnThreads
from poller.problems import problems
from poller.status import instant

__all__ = ["Answers", "StatusServer", "addresses_of"]

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Server": "poller",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_STATUS_GOOD_FOR_S: Final = 1.0
_FREE_TEXT: Final = frozenset({"last_error", "reason", "problems", "error", "config_rejected"})


@dataclass(frozen=True)
class Answers:
    """What the server asks the service.

    `status` returns the object of `poller status --json`, `ready` the reasons why the service is not
    ready (none: it is), `alive` whether the process works, `notes` what else `/readyz` says.
    """

    metrics: Metrics
    status: Callable[[], Awaitable[dict[str, Any]]]
    ready: Callable[[], list[str]]
    alive: Callable[[], bool]
    notes: Callable[[], list[str]] = list


class StatusServer:
    """The HTTP server on `http.host` and `http.port`; off if the host is None.

    With a `token`, everything except `/healthz` requires it, as a bearer token or as the password of
    Basic authentication, for which browsers ask the user.
    """

    def __init__(
        self, http: HttpConfig, token: str | None, answers: Answers, clock: Clock | None = None
    ) -> None:
        self._http = http
        self._token: str | None = None
        if token is not None:
            self.take_token(token)
        self._answers = answers
        self._clock = clock or SystemClock()
        self._page, self._page_policy = _load_page()
        self._runner: web.AppRunner | None = None
        self._status_lock = asyncio.Lock()
        self._status_body = self._status_gzipped = b""
        self._threads = OwnThreads("status server")
        self._status_until = float("-inf")

    def take_token(self, token: str) -> None:
        """Require this token from now on instead of the old one."""
        log.register_secret(token)
        self._token = token

    @property
    def port(self) -> int:
        """Return the port that the server listens on; the configured one unless that is 0."""
        addresses = self._runner.addresses if self._runner else []
        return int(addresses[0][1]) if addresses else self._http.port

    async def start(self) -> None:
        """Start listening. Raises CannotStart if the address is not available."""
        if self._http.host is None:
            return
        runner = web.AppRunner(
            self._application(), access_log=None, handle_signals=False, shutdown_timeout=1.0
        )
        await runner.setup()
        try:
            for address in await addresses_of(self._http.host, self._http.port, "http.listen"):
                await web.TCPSite(runner, address, self._http.port).start()
        except OSError as error:
            await runner.cleanup()
            raise CannotStart(
                f"cannot listen on {self._http.host}:{self._http.port} for the status page: "
                f"{error.strerror or error}; set http.listen to a free address, or to null"
            ) from error
        self._runner = runner

    async def stop(self) -> None:
        """Stop listening; do nothing if it does not listen."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    def _application(self) -> web.Application:
        application = web.Application(middlewares=[self._guard])
        handlers: dict[str, _Handler] = {
            "/": self._get_page,
            "/healthz": self._get_health,
            "/readyz": self._get_readiness,
            "/status.json": self._get_status,
            "/metrics": self._get_metrics,
        }
        application.add_routes([web.get(path, handler) for path, handler in handlers.items()])
        return application

    @web.middleware
    async def _guard(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        response = self._refusal(request) or await self._answer(request, handler)
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    def _refusal(self, request: web.Request) -> web.Response | None:
        if self._token is not None:
            if request.path == "/healthz" or _bears(
                request.headers.get("Authorization"), self._token
            ):
                return None
            return _text(
                HTTPStatus.UNAUTHORIZED,
                ["This page needs the token of `http.token`."],
                {"WWW-Authenticate": 'Basic realm="poller", charset="UTF-8"'},
            )
        # Without a token we listen only on loopback. A hostile web page could make its own name
        # resolve to 127.0.0.1 and read our pages through the browser (DNS rebinding). But it
        # cannot make the browser send a Host header other than its own name.
        if not _is_local(request.headers.get("Host")):
            return _text(HTTPStatus.MISDIRECTED_REQUEST, ["Use localhost or an IP address."])
        return None

    async def _answer(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPException as error:  # not found, method not allowed
            allow = {name: error.headers[name] for name in ("Allow",) if name in error.headers}
            return _text(HTTPStatus(error.status), [error.reason], allow)
        except PollerError as error:
            return _json(HTTPStatus.SERVICE_UNAVAILABLE, {"error": log.redact(str(error))})
        except Exception as error:  # noqa: BLE001 - a bug in the page must not end the service
            what = f"The status server failed at {request.path}."
            log.say(events.InternalError(what, error))
            return _json(
                HTTPStatus.INTERNAL_SERVER_ERROR, {"error": "Internal error: see the log."}
            )

    async def _get_page(self, _request: web.Request) -> web.Response:
        return web.Response(
            body=self._page,
            content_type="text/html",
            charset="utf-8",
            headers={"Content-Security-Policy": self._page_policy},
        )

    async def _get_health(self, _request: web.Request) -> web.Response:
        if self._answers.alive():
            return _text(HTTPStatus.OK, ["ok"])
        return _text(HTTPStatus.SERVICE_UNAVAILABLE, ["The service makes no progress."])

    async def _get_readiness(self, _request: web.Request) -> web.Response:
        reasons = [log.redact(reason) for reason in self._answers.ready()]
        if reasons:
            return _text(HTTPStatus.SERVICE_UNAVAILABLE, reasons)
        notes = [log.redact(note) for note in self._answers.notes()]
        return _text(HTTPStatus.OK, ["ready", *notes])

    async def _get_status(self, request: web.Request) -> web.Response:
        # Many open pages share one answer.
        async with self._status_lock:
            if self._clock.monotonic() >= self._status_until:
                self._status_body, self._status_gzipped = await self._fresh_status()
                self._status_until = self._clock.monotonic() + _STATUS_GOOD_FOR_S
        gzipped = "gzip" in request.headers.get("Accept-Encoding", "")
        return web.Response(
            body=self._status_gzipped if gzipped else self._status_body,
            content_type="application/json",
            headers={"Content-Encoding": "gzip"} if gzipped else None,
        )

    async def _fresh_status(self) -> tuple[bytes, bytes]:
        """Return the status, plain and gzipped: for a thousand users it is nearly a megabyte."""
        status = dict(await self._answers.status())
        status.setdefault("at", instant(self._clock.now()))
        status.setdefault("problems", problems(status, self._answers.ready()))

        def encoded() -> tuple[bytes, bytes]:
            body = _encode(_without_secrets(status))
            # Compressed here: aiohttp would do it in asyncio's default executor.
            return body, gzip.compress(body, 6)

        return await self._threads.run(encoded)

    async def _get_metrics(self, request: web.Request) -> web.Response:
        full = request.query.get("users", "0") not in {"0", ""}
        body = await self._answers.metrics.render(full=full)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})


async def addresses_of(host: str, port: int, key: str) -> list[str]:
    """Return the addresses of a host name; asyncio would look it up in its default executor."""
    resolver = Resolver(key)
    try:
        found = await resolver.look_up(host, port, socket.AF_UNSPEC, socket.AI_PASSIVE)
    finally:
        await resolver.close()
    return list(dict.fromkeys(one["host"] for one in found))


def _load_page() -> tuple[bytes, str]:
    """Return the page and a policy that allows only its own style and script."""
    text = resources.files(__package__).joinpath("page.html").read_text("utf-8")
    policy = (
        "default-src 'none'; connect-src 'self'; img-src data:; "
        f"style-src {_digest(text, 'style')}; script-src {_digest(text, 'script')}; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text.encode("utf-8"), policy


def _digest(page: str, tag: str) -> str:
    inline = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    digests = (hashlib.sha256(text.encode("utf-8")).digest() for text in inline)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)


def _bears(header: str | None, token: str) -> bool:
    """Return whether an Authorization header carries `token`; compare in constant time."""
    scheme, _, value = (header or "").partition(" ")
    given = value.strip().encode("utf-8", "surrogateescape")
    if scheme.lower() == "basic":
        try:
            given = base64.b64decode(given, validate=True).partition(b":")[2]
        except binascii.Error:
            return False
    elif scheme.lower() != "bearer":
        return False
    return hmac.compare_digest(given, token.encode("utf-8"))


def _is_local(host: str | None) -> bool:
    """Return whether a Host header is localhost or an IP address: DNS rebinding can use neither."""
    if host is None:
        return True
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if name.removesuffix(".") == "localhost":
            return True
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _text(
    status: HTTPStatus, lines: list[str], headers: dict[str, str] | None = None
) -> web.Response:
    text = "".join(f"{line}\n" for line in lines)
    return web.Response(status=status, text=text, headers=headers or {})


def _json(status: HTTPStatus, body: dict[str, Any]) -> web.Response:
    return web.Response(status=status, body=_encode(body), content_type="application/json")


def _encode(body: Any) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _without_secrets(value: Any, *, free_text: bool = False) -> Any:
    """Return `value` with redacted sentences, but unchanged names, ids and times."""
    if isinstance(value, dict):
        return {k: _without_secrets(v, free_text=k in _FREE_TEXT) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_secrets(item, free_text=free_text) for item in value]
    return log.redact(value) if free_text and isinstance(value, str) else value
