"""Sending an answer, whole or broken on the way as a fault says."""

import gzip
import socket
import struct
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from aiohttp import web

from .answers import Answer
from .faults import Faults
from .switches import Switches

# Broken answers are written to the socket by hand, because aiohttp rightly refuses to send them.
_FRAMES = {
    "cut": "length",
    "cut-no-length": "close",
    "cut-chunked": "chunked",
    "reset-mid-body": "length",
    "stall-mid-body": "length",
    "drip": "length",
}
# So that what was sent before a reset has left this side's buffers.
_BEFORE_RESET_S = 0.02
# A header of this value keeps aiohttp from adding its own, and is taken away before it is sent.
_UNWANTED = ""

Pause = Callable[[float | None], Awaitable[None]]


async def deliver(
    request: web.Request,
    answer: Answer,
    effect: str | None,
    settings: tuple[Switches, Faults],
    pause: Pause,
) -> web.StreamResponse:
    """Send an answer; `pause(seconds)` waits, `pause(None)` until the simulator ends."""
    switches, faults = settings
    _pack(request, answer, switches)
    if effect == "reset":
        _reset(request)
    elif effect == "stall":
        await pause(None)
        _reset(request)
    elif effect in _FRAMES:
        await _send_broken(request, answer, effect, faults, pause)
    elif switches.framing == "close" and answer.body:
        _write(request, _head(answer, "close") + answer.body)
        _close(request)
    else:
        return await _send_whole(request, answer, switches)
    # The connection is gone; aiohttp finds that out when it tries to send this.
    return web.Response()


async def drop_unwanted_headers(_request: web.Request, response: web.StreamResponse) -> None:
    """Take away headers that aiohttp would add by itself (signal on_response_prepare)."""
    for name in [name for name, value in response.headers.items() if value == _UNWANTED]:
        del response.headers[name]
    response.headers.popall("Server", None)


def _pack(request: web.Request, answer: Answer, switches: Switches) -> None:
    accepted = request.headers.get("Accept-Encoding", "")
    if switches.compression == "gzip" and "gzip" in accepted and answer.body:
        answer.body = gzip.compress(answer.body, compresslevel=1, mtime=0)
        answer.headers["Content-Encoding"] = "gzip"


async def _send_whole(
    request: web.Request, answer: Answer, switches: Switches
) -> web.StreamResponse:
    headers = {name: value or _UNWANTED for name, value in answer.headers.items()}
    if switches.framing == "chunked" and answer.body:
        response = web.StreamResponse(status=answer.status, headers=headers)
        response.enable_chunked_encoding()
        await response.prepare(request)
        middle = len(answer.body) // 2
        for part in (answer.body[:middle], answer.body[middle:]):
            await response.write(part)
        await response.write_eof()
        return response
    return web.Response(status=answer.status, body=answer.body or None, headers=headers)


async def _send_broken(
    request: web.Request, answer: Answer, effect: str, faults: Faults, pause: Pause
) -> None:
    frame = _FRAMES[effect]
    _write(request, _head(answer, frame))
    half = answer.body[: len(answer.body) // 2]
    if effect == "drip":
        for at in range(0, len(answer.body), faults.drip_bytes):
            _write(request, answer.body[at : at + faults.drip_bytes])
            await pause(faults.drip_interval_s)
    else:
        _write(request, b"%x\r\n%b\r\n" % (len(half), half) if frame == "chunked" else half)
    if effect == "stall-mid-body":
        await pause(None)
    if effect == "reset-mid-body":
        await pause(_BEFORE_RESET_S)
        _reset(request)
    else:
        _close(request)


def _head(answer: Answer, frame: str) -> bytes:
    lines = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in answer.headers.items() if value is not None]
    if frame == "length":
        lines.append(f"Content-Length: {len(answer.body)}")
    elif frame == "chunked":
        lines.append("Transfer-Encoding: chunked")
    else:
        lines.append("Connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _write(request: web.Request, data: bytes) -> None:
    transport = request.transport
    if transport is None or transport.is_closing():
        raise ConnectionResetError("the client went away")
    transport.write(data)


def _close(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.close()


def _reset(request: web.Request) -> None:
    """End the connection with a TCP reset instead of an orderly end."""
    if request.transport is None:
        return
    connection = request.transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.transport.abort()
