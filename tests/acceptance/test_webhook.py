"""The web-hook through the command: a notice brings a fax at once, whatever the schedule says."""

import asyncio
import hashlib
import hmac
import socket
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme

from poller.simulator import Simulator
from tests.acceptance.installation import (
    APP,
    KEY,
    KEY_VARIABLE,
    Installation,
    assert_stored,
    own_port,
    populated,
)

HOOK: dict[str, Any] = {
    "accounts": {"main": {"webhook": {"path": "/efax/main", "secret": {"env": KEY_VARIABLE}}}}
}


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with populated(Simulator(seed=5)) as running:
        yield running


async def post(url: str, body: bytes, secret: str) -> int:
    signature = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    headers = {"X-HMAC-Signature": signature}
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, data=body, headers=headers) as answer,
    ):
        return answer.status


async def test_a_notice_brings_a_fax_at_once_and_a_forged_one_brings_nothing(
    simulator: Simulator, tmp_path: Path
) -> None:
    port = own_port()
    changes = HOOK | {"webhook": {"listen": f"127.0.0.1:{port}"}, "poll": {"every": "6h"}}
    installation = Installation(tmp_path, simulator.base_url, changes)
    url = f"http://127.0.0.1:{port}/efax/main"
    async with installation.daemon() as daemon:
        await daemon.event("poll-completed", count=2)
        assert await post(url, b'{"user_id": "user-a"}', "another secret") == 401
        await daemon.event("webhook-refused", account="main")
        simulator.hook(APP, url, KEY)
        completed = simulator.now() - timedelta(minutes=1)
        fax = simulator.receive(APP, "user-a", completed=completed, distinct=False)
        assert await simulator.notifier.post_due() == 1
        assert [one.status for one in simulator.notifier.posted] == [200]
        await daemon.event("fax-stored", fax_id=fax.fax_id)
        assert len(daemon.said("poll-completed", user="billing")) == 1
        received = await daemon.event("webhook-received")
        assert received["log.level"] == "info"
        assert await daemon.stop() == 0
    assert_stored(installation, simulator)
    shown = (await installation.status())["accounts"][0]["webhook"]
    assert (shown["accepted"], shown["refused"]) == (1, 1)
    assert KEY not in "".join(daemon.lines)


async def test_a_listener_that_cannot_work_is_said_in_one_sentence(
    simulator: Simulator, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        at = f"127.0.0.1:{taken.getsockname()[1]}"
        installation = Installation(
            tmp_path, simulator.base_url, HOOK | {"webhook": {"listen": at}}
        )
        done = await installation.poller("run")
    assert done.code == 73
    assert done.said_in_one_sentence()
    assert f"cannot listen on {at} for the web-hook" in done.err

    one, other = (trustme.CA().issue_cert("localhost") for _ in range(2))
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    one.cert_chain_pems[0].write_to_path(chain)
    other.private_key_pem.write_to_path(key)
    tls = {"cert": str(chain), "key": {"file": str(key)}}
    installation.write({"webhook": {"listen": "127.0.0.1:0", "tls": tls}})
    done = await installation.poller("run")
    assert done.code == 73
    assert done.said_in_one_sentence()
    assert "the key belongs to another certificate" in done.err


async def test_a_body_that_stays_away_holds_up_nothing_and_ends(
    simulator: Simulator, tmp_path: Path
) -> None:
    """The service stops at once, even while somebody is still sending."""
    port = own_port()
    changes = HOOK | {"webhook": {"listen": f"127.0.0.1:{port}"}}
    installation = Installation(tmp_path, simulator.base_url, changes)
    async with installation.daemon() as daemon:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST /efax/main HTTP/1.1\r\nHost: x\r\nX-HMAC-Signature: {'0' * 64}\r\n"
        writer.write(f"{head}Content-Length: 100\r\n\r\nabc".encode())
        await daemon.event("poll-completed", count=3)
        assert await daemon.stop() == 0
        assert await reader.read() == b""
        writer.close()
