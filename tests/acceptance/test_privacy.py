"""Numbers, names, keys and tokens pass through every path, including faults; no output has them."""

import base64
import json
import re
import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.installation import APP, KEY, Installation, populated
from tests.efax import Simulator
from tests.faults.proxy import Harm, Proxy, proxied
from tests.faults.troubled import Scene

NUMBER, DESTINATION, SENDER = "13235551212", "18005550142", "Dr. Jane Roe"
WRITTEN = ("+1 (323) 555-1212", "323-555-1212", "(800) 555 0142")
PAGE_TOKEN = "token-of-the-page-that-nobody-may-see"
PASSWORD = "password-of-a-proxy"
TALK = f"{SENDER} <{NUMBER}> called {WRITTEN[0]} and {WRITTEN[2]}; key {KEY}"
ERRORS = {"errors": [{"error_code": NUMBER, "developer_message": TALK, "user_message": TALK}]}
LIST_OF_B = b"user-id: user-b\r\npagination-offset"


def answer(status: str, body: Any, *headers: str) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(data)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


def talkative() -> Iterator[bytes]:
    """Return answers of all kinds that are full of secrets."""
    html = f"<html><title>{TALK}</title></html>".encode()
    yield answer("200 OK", html)
    yield answer("200 OK", ERRORS)
    yield answer("200 OK", {"faxes": TALK})
    yield answer("200 OK", {"faxes": [{"fax_id": {SENDER: NUMBER}, "originating_fax_tsid": TALK}]})
    yield answer("302 Found", b"", f"Location: http://{KEY}@127.0.0.1/{NUMBER}?token={KEY}")
    yield answer("418 Tea", html, f"Content-Type: text/{SENDER}", f"Date: {TALK}")
    yield answer("429 Slow Down", ERRORS, f"Retry-After: {TALK}")
    yield answer("500 Oops", html)
    yield f"{TALK}\r\n\r\n".encode()  # not HTTP at all
    yield f"HTTP/1.1 200 OK\r\n{TALK}\r\n\r\n".encode()
    yield answer("200 OK", html, f"Content-Encoding: {SENDER}")


# poller asks for a refused user only after a minute, so each answer has its own user
REFUSALS = {
    "user-c": answer(f"403 {TALK}", ERRORS),
    "user-d": answer("404 Not Found", ERRORS, f"X-Sender: {TALK}", f"Set-Cookie: token={KEY}"),
    "user-e": answer("400 Bad", {"errors": [{"error_code": SENDER, "user_message": TALK}]}),
}


def harms() -> list[Harm]:
    """Answer a list call and an image call with each of them; refuse some users for good."""
    image = [Harm(b"/fax-poisoned/image", answer=one) for one in talkative()]
    name = {"fax_id": "fax-poisoned", "file_name": f"{NUMBER}-{SENDER}.pdf"}
    no_document = base64.b64encode(TALK.encode()).decode()
    image.append(Harm(b"/image", answer=answer("200 OK", {**name, "image": no_document})))
    for one in image:
        one.times = 1
    refused = [Harm(f"user-id: {user}\r\n".encode(), answer=REFUSALS[user]) for user in REFUSALS]
    return [*(Harm(LIST_OF_B, times=1, answer=one) for one in talkative()), *image, *refused]


def receive(simulator: Simulator, user_id: str, **fields: Any) -> None:
    simulator.receive(
        APP, user_id, completed=simulator.now() - timedelta(minutes=2), originating=NUMBER,
        destination=DESTINATION, tsid=SENDER, distinct=False, **fields,
    )  # fmt: skip


@pytest.mark.timeout(600)
async def test_what_is_private_is_in_no_output_whatever_goes_wrong(tmp_path: Path) -> None:
    async with Simulator() as simulator, proxied(simulator.port) as proxy:
        populated(simulator)
        for name in REFUSALS:
            simulator.add_user(APP, name)
        receive(simulator, "user-a")
        receive(simulator, "user-a", fax_id="fax-poisoned")
        receive(simulator, "user-a", trouble="cut-document")
        tmp_path.joinpath("token").write_text(PAGE_TOKEN)
        installation = Installation(
            tmp_path,
            proxy.url,
            {
                "accounts": {"main": {"users": {name: {"user_id": name} for name in REFUSALS}}},
                "retry": {"attempts": 1, "max_delay": "50ms", "give_up_after": "1s"},
                "http": {"token": {"file": "token"}},
            },
        )
        scene = Scene(installation, simulator)
        shown: dict[str, str] = {}
        proxy.harms = harms()
        await _work(scene, proxy, shown)
        await _commands(installation, proxy, shown)
        private = [*_private(), *(app.token for app in simulator.apps.values() if app.token)]
    for path in (tmp_path / "state").rglob("*"):
        kept = path.relative_to(tmp_path / "state")
        if path.is_file() and kept.parts[0] != "evidence" and not kept.name.startswith("poller.db"):
            shown[f"state/{kept}"] = path.read_bytes().decode("latin-1")
    found = {where: one for where, text in shown.items() for one in private if one in text}
    assert not found
    assert not [where for where, text in shown.items() if re.search(r"eyJ[\w-]{8}|Traceback", text)]
    # The secrets did pass through: they are where they belong.
    sidecars = "".join(path.read_text() for path in installation.sidecars().values())
    assert NUMBER in sidecars
    assert SENDER in sidecars


def _private() -> list[str]:
    written = (NUMBER, NUMBER[1:], DESTINATION, DESTINATION[1:], *WRITTEN)
    return [*written, SENDER, "Jane", KEY, PAGE_TOKEN, PASSWORD]


async def _work(scene: Scene, proxy: Proxy, shown: dict[str, str]) -> None:
    """The daemon meets everything; keep what it says meanwhile and at its end."""
    installation = scene.installation
    async with installation.daemon() as daemon:
        await daemon.event("fax-stored")
        await daemon.event("fax-retry", fax_id="fax-poisoned")
        await daemon.event("fax-quarantined")
        last = len(list(talkative()))
        await daemon.until(lambda: all(one.met for one in proxy.harms[:last]), "all bad lists")
        await daemon.until(lambda: all(one.met for one in proxy.harms[-3:]), "all refusals")
        await _look(scene, shown)
        for words in ("status", "status --json", "check --online", "verify"):
            done = await installation.poller(*words.split())
            shown[f"{words}, beside"] = done.out + done.err
        good = installation.config.read_text()
        bad = json.loads(good)
        bad["accounts"]["main"] |= {"api_key": KEY, "proxy": f"http://u:{PASSWORD}@127.0.0.1:1/x"}
        bad["http"]["token"] = PAGE_TOKEN
        installation.config.write_text(json.dumps(bad))
        daemon.kill(signal.SIGHUP)
        await daemon.event("config-rejected")
        done = await installation.poller("check")
        assert done.code == 78
        shown["check of a bad configuration"] = done.out + done.err
        installation.config.write_text(good)
        assert await daemon.stop() == 0
    shown["log"] = "\n".join(daemon.lines)


async def _look(scene: Scene, shown: dict[str, str]) -> None:
    shown["page without the token"] = (await scene.get("/"))[1]
    headers = {"Authorization": f"Bearer {PAGE_TOKEN}"}
    for path in ("/", "/status.json", "/metrics?users=1", "/readyz", "/healthz", "/nowhere"):
        text = (await scene.get(path, headers=headers))[1]
        shown[path] = shown.get(path, "") + text


async def _commands(installation: Installation, proxy: Proxy, shown: dict[str, str]) -> None:
    """Let everything that signs in by itself meet all of them again."""
    proxy.harms = harms()
    for words in (
        *("once", "check --online", "status", "verify --repair"),
        *("explain fax-poisoned", "plan", "retry --json"),
    ):
        done = await installation.poller(*words.split())
        shown[words] = shown.get(words, "") + done.out + done.err
    proxy.harms = [Harm(b"/tokens", answer=answer("401 No", ERRORS)), Harm(b"/health", answer=b"")]
    done = await installation.poller("check", "--online")
    shown["check --online, refused"] = done.out + done.err
    assert done.code == 1
