"""Sending an answer, whole or broken on the way as a fault says."""

import asyncio
import gzip
import socket
import struct
from http.client import responses

from aiohttp import web

from .faults import Faults
from .replies import Reply
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


async def deliver(
    request: web.Request, answer: Reply, effect: str | None, switches: Switches, faults: Faults
) -> web.StreamResponse:
    """Send an answer; what stalls does so until the client or the simulator goes away."""
    _pack(request, answer, switches)
    if effect == "reset":
        _reset(request)
    elif effect == "stall":
        await _for_ever()
    elif effect in _FRAMES:
        await _send_broken(request, answer, effect, faults)
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


def _pack(request: web.Request, answer: Reply, switches: Switches) -> None:
    accepted = request.headers.get("Accept-Encoding", "")
    if switches.compression == "gzip" and "gzip" in accepted and answer.body:
        answer.body = gzip.compress(answer.body, compresslevel=1, mtime=0)
        answer.headers["Content-Encoding"] = "gzip"


async def _send_whole(
    request: web.Request, answer: Reply, switches: Switches
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


async def _send_broken(request: web.Request, answer: Reply, effect: str, faults: Faults) -> None:
    frame = _FRAMES[effect]
    _write(request, _head(answer, frame))
    half = answer.body[: len(answer.body) // 2]
    if effect == "drip":
        for at in range(0, len(answer.body), faults.drip_bytes):
            _write(request, answer.body[at : at + faults.drip_bytes])
            await asyncio.sleep(faults.drip_interval_s)
    else:
        _write(request, b"%x\r\n%b\r\n" % (len(half), half) if frame == "chunked" else half)
    if effect == "stall-mid-body":
        await _for_ever()
    if effect == "reset-mid-body":
        await asyncio.sleep(_BEFORE_RESET_S)
        _reset(request)
    else:
        _close(request)


async def _for_ever() -> None:
    await asyncio.Event().wait()


def _head(answer: Reply, frame: str) -> bytes:
    lines = [f"HTTP/1.1 {answer.status} {responses.get(answer.status, '')}"]
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
