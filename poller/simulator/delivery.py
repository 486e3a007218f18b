"""Send an answer, whole or broken by a fault."""

import asyncio
import gzip
import socket
import struct
from http.client import responses

from aiohttp import web

from .faults import Faults
from .replies import Reply
from .switches import Switches

# Broken answers go directly to the socket, because aiohttp rightly refuses to send them.
_FRAMES = {
    "cut": "length",
    "cut-no-length": "close",
    "cut-chunked": "chunked",
    "reset-mid-body": "length",
    "stall-mid-body": "length",
    "drip": "length",
}
# Time for data sent before a reset to leave this side's buffers.
_BEFORE_RESET_S = 0.02
# A header with this value stops aiohttp from adding its own, and is removed before sending.
_UNWANTED = ""


async def deliver(
    request: web.Request, reply: Reply, effect: str | None, switches: Switches, faults: Faults
) -> web.StreamResponse:
    """Send an answer; a stall lasts until the client or the simulator goes away."""
    accepted = request.headers.get("Accept-Encoding", "")
    if switches.compression == "gzip" and "gzip" in accepted and reply.body:
        reply.body = gzip.compress(reply.body, compresslevel=1, mtime=0)
        reply.headers["Content-Encoding"] = "gzip"
    if effect == "reset":
        _reset(request)
    elif effect == "stall":
        await _for_ever()
    elif effect in _FRAMES:
        await _send_broken(request, reply, effect, faults)
    elif switches.framing == "close" and reply.body:
        _write(request, _head(reply, "close") + reply.body)
        _close(request)
    else:
        return await _send_whole(request, reply, chunked=switches.framing == "chunked")
    # The connection is gone; aiohttp notices when it tries to send this.
    return web.Response()


async def drop_unwanted_headers(_request: web.Request, response: web.StreamResponse) -> None:
    """Remove headers that aiohttp adds by itself (signal on_response_prepare)."""
    for name in [name for name, value in response.headers.items() if value == _UNWANTED]:
        del response.headers[name]
    response.headers.popall("Server", None)


async def _send_whole(request: web.Request, reply: Reply, *, chunked: bool) -> web.StreamResponse:
    headers = {name: value or _UNWANTED for name, value in reply.headers.items()}
    if not (chunked and reply.body):
        return web.Response(status=reply.status, body=reply.body or None, headers=headers)
    response = web.StreamResponse(status=reply.status, headers=headers)
    response.enable_chunked_encoding()
    await response.prepare(request)
    middle = len(reply.body) // 2
    for part in (reply.body[:middle], reply.body[middle:]):
        await response.write(part)
    await response.write_eof()
    return response


async def _send_broken(request: web.Request, reply: Reply, effect: str, faults: Faults) -> None:
    frame = _FRAMES[effect]
    _write(request, _head(reply, frame))
    half = reply.body[: len(reply.body) // 2]
    if effect == "drip":
        for at in range(0, len(reply.body), faults.drip_bytes):
            _write(request, reply.body[at : at + faults.drip_bytes])
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


def _head(reply: Reply, frame: str) -> bytes:
    lines = [f"HTTP/1.1 {reply.status} {responses.get(reply.status, '')}"]
    lines += [f"{name}: {value}" for name, value in reply.headers.items() if value is not None]
    framing = {"length": f"Content-Length: {len(reply.body)}", "close": "Connection: close"}
    lines += [framing.get(frame, "Transfer-Encoding: chunked"), "", ""]
    return "\r\n".join(lines).encode("latin-1")


def _write(request: web.Request, data: bytes) -> None:
    transport = request.transport
    if transport is None or transport.is_closing():
        raise ConnectionResetError("the client went away")
    transport.write(data)


def _close(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.close()


def _reset(request: web.Request) -> None:
    """End the connection with a TCP reset instead of closing it."""
    if request.transport is None:
        return
    connection = request.transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.transport.abort()
