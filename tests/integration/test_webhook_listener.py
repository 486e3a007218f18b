"""The listener for eFax's notices, as strangers see it."""

import asyncio
import hashlib
import hmac
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
import trustme

from poller.config.model import HookTls, SecretRef, WebhookConfig
from poller.errors import CannotStart
from poller.hooks import LONGEST_BODY
from poller.ingest.runtime import Runtime
from poller.webhook import HookListener, server_context
from tests.conftest import APP, pass_time
from tests.efax import Simulator
from tests.integration.at_work import poll, until

PATH, SECRET = "/efax/main", "hook-secret"
GOOD = b'{"user_id": "user-a"}'
_LESS_THAN_ANSWERING_S = 8.0  # four of the 15 s of a request have passed


def signature(body: bytes, secret: str = SECRET) -> str:
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


@dataclass
class Heard:
    """A listener, and what it has reported."""

    listener: HookListener
    bodies: list[bytes]
    refused: list[str]

    async def post(
        self, body: bytes = GOOD, path: str = PATH, sign: str | None = None, **more: object
    ) -> tuple[int, bytes]:
        headers = {} if sign is None else {"X-HMAC-Signature": sign}
        async with aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{self.listener.port}{path}"
            async with session.post(url, data=body, headers=headers, **more) as answer:  # type: ignore[arg-type]
                return answer.status, await answer.read()

    async def raw(self, sent: bytes) -> bytes:
        """Send bytes and read all that comes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.listener.port)
        writer.write(sent)
        answer = await reader.read()
        writer.close()
        return answer


@asynccontextmanager
async def listening(
    tls: ssl.SSLContext | None = None, at: WebhookConfig | None = None
) -> AsyncIterator[Heard]:
    async def find(path: str) -> tuple[str, str] | None:
        return ("app-1", SECRET) if path == PATH else None

    bodies: list[bytes] = []
    refused: list[str] = []
    listener = HookListener(
        at or WebhookConfig("127.0.0.1", 0),
        tls,
        find=find,
        taken=lambda _, body: bodies.append(body),
        refused=refused.append,
    )
    await listener.start()
    try:
        yield Heard(listener, bodies, refused)
    finally:
        await listener.stop()


@pytest.fixture
async def heard() -> AsyncIterator[Heard]:
    async with listening() as found:
        yield found


async def test_a_well_signed_body_is_accepted_unchanged(heard: Heard) -> None:
    assert await heard.post(sign=signature(GOOD)) == (200, b'{"status": "SUCCESS"}')
    large = b"x" * LONGEST_BODY
    assert (await heard.post(large, sign=f"sha256={signature(large).upper()}"))[0] == 200
    assert heard.bodies == [GOOD, large]
    assert heard.refused == []


async def test_the_signature_is_that_of_a_compressed_body_before_it_is_unpacked(
    heard: Heard,
) -> None:
    sent = b"\x1f\x8b no gzip"
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\n"
    head += f"X-HMAC-Signature: {signature(sent)}\r\nContent-Length: {len(sent)}\r\n\r\n"
    assert (await heard.raw(head.encode() + sent)).startswith(b"HTTP/1.1 200 ")
    assert heard.bodies == [sent]


async def test_a_sender_that_waits_for_100_continue_gets_it(heard: Heard) -> None:
    assert (await heard.post(sign=signature(GOOD), expect100=True))[0] == 200
    assert heard.bodies == [GOOD]


@pytest.mark.parametrize("sign", [None, "", "no hex", signature(GOOD, "other")])
async def test_a_wrong_or_missing_signature_is_refused(heard: Heard, sign: str | None) -> None:
    assert (await heard.post(sign=sign))[0] == 401
    assert (heard.bodies, heard.refused) == ([], ["app-1"])


async def test_another_path_or_method_is_nobodys(heard: Heard) -> None:
    assert (await heard.post(path="/other", sign=signature(GOOD)))[0] == 404
    answer = await heard.raw(f"GET {PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert b"\r\nAllow: POST\r\n" in answer
    assert (heard.bodies, heard.refused) == ([], [])


async def test_a_body_over_a_mebibyte_is_not_read(heard: Heard) -> None:
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nX-HMAC-Signature: {'0' * 64}\r\n"
    told = f"{head}Content-Length: {LONGEST_BODY + 1}\r\n\r\n"
    large = b"x" * (LONGEST_BODY + 1)
    assert (await heard.raw(told.encode() + large)).startswith(b"HTTP/1.1 413 ")
    chunked = f"{head}Transfer-Encoding: chunked\r\n\r\n{LONGEST_BODY + 1:x}\r\n".encode()
    assert (await heard.raw(chunked + large + b"\r\n0\r\n\r\n")).startswith(b"HTTP/1.1 413 ")
    assert heard.bodies == []


async def test_one_connection_is_one_request(heard: Heard) -> None:
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nX-HMAC-Signature: {signature(GOOD)}\r\n"
    one = f"{head}Content-Length: {len(GOOD)}\r\n\r\n".encode() + GOOD
    answer = await heard.raw(one + one)
    assert answer.count(b"HTTP/1.1 200 ") == 1
    assert b"\r\nConnection: close\r\n" in answer
    assert heard.bodies == [GOOD]


async def test_bytes_that_are_not_http_are_refused_without_a_log_line(
    heard: Heard, caplog: pytest.LogCaptureFixture
) -> None:
    assert b" 400 Bad Request" in await heard.raw(b"\x16\x03\x01\x00\r\n\r\n")
    bad = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nX-HMAC-Signature: {'0' * 64}\r\n"
    chunks = f"{bad}Transfer-Encoding: chunked\r\n\r\nno number\r\n".encode()
    assert b" 400 Bad Request" in await heard.raw(chunks)
    assert caplog.records == []


async def _sent_slowly(heard: Heard, sent: bytes, seconds: float) -> bytes:
    """Send a beginning, and let time pass once it has arrived."""
    reader, writer = await asyncio.open_connection("127.0.0.1", heard.listener.port)
    writer.write(sent)
    while heard.listener._room._value == 32:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    pass_time(seconds)
    answer = await reader.read()
    writer.close()
    return answer


async def test_a_body_that_does_not_come_to_its_end_is_cut_off(heard: Heard) -> None:
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nX-HMAC-Signature: {'0' * 64}\r\n"
    answer = await _sent_slowly(heard, f"{head}Content-Length: 9\r\n\r\nabc".encode(), 11)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert (await heard.post(sign=signature(GOOD)))[0] == 200


async def test_a_sender_that_never_finishes_its_request_is_cut_off(heard: Heard) -> None:
    async with asyncio.timeout(_LESS_THAN_ANSWERING_S):
        assert await _sent_slowly(heard, b"POST /efax", 4) == b""
    assert (await heard.post(sign=signature(GOOD)))[0] == 200


async def test_those_who_only_hold_a_connection_keep_others_waiting_and_not_out(
    heard: Heard,
) -> None:
    idle = [await asyncio.open_connection("127.0.0.1", heard.listener.port) for _ in range(40)]
    while heard.listener._room._value:
        await asyncio.sleep(0.01)
    late = asyncio.create_task(heard.post(sign=signature(GOOD)))
    for _, writer in idle:
        writer.close()
    assert (await late)[0] == 200


async def test_those_who_say_nothing_make_room_in_a_moment(heard: Heard) -> None:
    idle = [await asyncio.open_connection("127.0.0.1", heard.listener.port) for _ in range(32)]
    while heard.listener._room._value:
        await asyncio.sleep(0.01)
    late = asyncio.create_task(heard.post(sign=signature(GOOD)))
    pass_time(4)
    async with asyncio.timeout(_LESS_THAN_ANSWERING_S):
        assert (await late)[0] == 200
    for _, writer in idle:
        writer.close()


async def test_a_sender_that_breaks_off_leaves_nothing_behind(heard: Heard) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", heard.listener.port)
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nX-HMAC-Signature: {'0' * 64}\r\n"
    writer.write(f"{head}Content-Length: 9\r\n\r\nabc".encode())
    while heard.listener._room._value == 32:
        await asyncio.sleep(0.01)
    writer.transport.abort()
    while heard.listener._room._value < 31 or heard.listener._server._ends:
        await asyncio.sleep(0.01)
    assert (heard.bodies, heard.refused) == ([], [])


async def test_polls_come_to_their_end_while_a_flood_is_still_being_refused(
    heard: Heard, runtime: Runtime, simulator: Simulator
) -> None:
    """The flood is accepted one by one, and polls take turns in between."""
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nX-HMAC-Signature: {'0' * 64}\r\n"
    forged = f"{head}Content-Length: {len(GOOD)}\r\n\r\n".encode() + GOOD
    loop = asyncio.get_running_loop()
    began = loop.time()
    flood = [asyncio.create_task(heard.raw(forged)) for _ in range(500)]
    await until(lambda: len(heard.refused) > 10)
    for _ in range(3):
        simulator.receive(APP, "user-a", completed=simulator.now(), distinct=False)
        assert (await poll(runtime)).error is None
    assert len(heard.refused) < 500
    assert all(answer.startswith(b"HTTP/1.1 401 ") for answer in await asyncio.gather(*flood))
    assert loop.time() - began > 500 / 260, "more than 250 a second were let in"
    assert len(heard.refused) == 500
    assert heard.bodies == []


async def test_a_port_in_use_is_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotStart, match=rf"127\.0\.0\.1:{port} for the web-hook: .*in use"):
            async with listening(at=WebhookConfig("127.0.0.1", port)):
                pass


# -- TLS -------------------------------------------------------------------------------------------


@dataclass
class Certificate:
    authority: trustme.CA
    file: Path
    key: str

    @property
    def tls(self) -> HookTls:
        return HookTls(self.file, SecretRef("credential", "webhook-key"))


def certificate(file: Path) -> Certificate:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    file.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    return Certificate(authority, file, issued.private_key_pem.bytes().decode())


async def test_with_a_certificate_it_speaks_https(tmp_path: Path) -> None:
    made = certificate(tmp_path / "chain.pem")
    async with listening(server_context(made.tls, made.key)) as heard:
        context = ssl.create_default_context()
        made.authority.configure_trust(context)
        trusted = aiohttp.TCPConnector(ssl=context)
        async with (
            aiohttp.ClientSession(connector=trusted) as session,
            session.post(
                f"https://localhost:{heard.listener.port}{PATH}",
                data=GOOD,
                headers={"X-HMAC-Signature": signature(GOOD)},
            ) as answer,
        ):
            assert answer.status == 200
        plain = await heard.raw(b"POST / HTTP/1.1\r\n\r\n")
        assert b"HTTP/1.1 200" not in plain
    assert heard.bodies == [GOOD]


def test_certificate_and_key_that_do_not_fit_are_said(tmp_path: Path) -> None:
    one, other = certificate(tmp_path / "one.pem"), certificate(tmp_path / "other.pem")
    with pytest.raises(CannotStart, match=r"one\.pem .*webhook-key .*another certificate"):
        server_context(one.tls, other.key)
    with pytest.raises(CannotStart, match=r"cannot be used \("):
        server_context(one.tls, "no key")
    one.file.write_text("no certificate")
    with pytest.raises(CannotStart, match=r"both as PEM"):
        server_context(one.tls, one.key)
    one.file.unlink()
    with pytest.raises(CannotStart, match=r"one\.pem of webhook\.tls cannot be read: No such"):
        server_context(one.tls, one.key)
