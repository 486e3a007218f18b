"""A server that sends back its requests: nothing that poller keeps or shows has the key or a token."""

import base64
import io
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from aiohttp import web

from poller import log
from poller.errors import Evidence
from poller.evidence import EvidenceStore
from poller.ledger import faxes, streams
from tests.conftest import APP, KEY, NOON, Event, MakeConfig, QuickClock, opened_runtime
from tests.integration.at_work import poll

TOKEN = "eyJhbGciOiJub25lIn0.e30.token-that-nobody-may-see"
BASIC = base64.b64encode(f"{APP}:{KEY}".encode()).decode()
SECRETS = (KEY, TOKEN, BASIC)
PATIENT = "Dr. Jane Roe 13235551212"
STATUSES = (200, 302, 400, 401, 403, 404, 418, 429, 500)


class Echo:
    """Answers every call after the sign-in with its own request, everywhere, with one status."""

    def __init__(self, clock: QuickClock) -> None:
        self.clock = clock
        self.status = 200
        self.answers = 0
        self.faxes = ["fax-1", f"fax-{TOKEN}"]

    async def answer(self, request: web.Request) -> web.Response:
        if request.path == "/tokens":
            self.authorization = request.headers["Authorization"]
            return web.json_response({"access_token": TOKEN, "expires_in": 3600})
        if request.path == "/health":
            return web.json_response({"status": "UP"}, headers=self._headers(request, dated=True))
        if request.path == "/faxes/received" and request.headers["user-id"] == "user-a":
            return web.json_response(self._listed(), headers=self._headers(request, dated=True))
        said = f"{PATIENT} {request.headers['Authorization']} {KEY} {BASIC} {self.authorization}"
        self.answers += 1
        # A fax that meets 429 alone may be asked for until a week of the quick clock has passed.
        status = self.status if self.answers < 50 else 418
        body = {"image": None, "errors": [{"error_code": TOKEN, "user_message": said}], said: said}
        return web.json_response(body, status=status, reason=said, headers=self._headers(request))

    def _listed(self) -> object:
        at = (self.clock.now() - timedelta(minutes=2)).strftime("%Y-%m-%dT%H:%M:%S.000+0000")
        return {"faxes": [{"fax_id": one, "completed_timestamp": at} for one in self.faxes]}

    def _headers(self, request: web.Request, *, dated: bool = False) -> dict[str, str]:
        sent = request.headers.get("Authorization", "")
        echoed = {"Location": f"https://{KEY}@elsewhere/?access_token={TOKEN}", "X-Was": sent}
        return (
            echoed
            | {"X-Key": KEY, "X-Basic": BASIC, "X-Patient": PATIENT}
            | ({"Date": self.clock.now().strftime("%a, %d %b %Y %H:%M:%S GMT")} if dated else {})
        )


@pytest.fixture
async def echo(clock: QuickClock) -> AsyncIterator[tuple[Echo, str]]:
    server = Echo(clock)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    runtime = web.TCPSite(runner, "127.0.0.1", 0)
    await runtime.start()
    yield server, f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.mark.parametrize("status", STATUSES)
async def test_secrets_that_a_server_sends_back_are_kept_nowhere(
    status: int,
    echo: tuple[Echo, str],
    clock: QuickClock,
    make_config: MakeConfig,
    events: list[Event],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    server, url = echo
    server.status = status
    monkeypatch.setenv("KEY", KEY)
    async with opened_runtime(make_config(url), clock) as runtime:
        await poll(runtime, "user-a")
        await poll(runtime, "user-b")
        await runtime.accounts[APP].workers.run_until_idle()
        rows = [(await runtime.services.ledger.read(faxes.find, one))[0] for one in server.faxes]
        users = await runtime.services.ledger.read(streams.all_streams)
        kept = [await runtime.services.evidence.find(f.app_id, f.user_id, f.fax_id) for f in rows]
    said = [str(f.last_error) for f in rows] + [str(user.last_error) for user in users]
    evidence = tmp_path / "state" / "evidence"
    names = [str(path.relative_to(tmp_path)) for path in evidence.rglob("*")]
    contents = [path.read_text("latin-1") for path in evidence.rglob("*") if path.is_file()]
    for secret in SECRETS:
        assert not [text for text in (*said, *names, *contents) if secret in text]
    assert events
    # for these nothing is kept, or they concern the account
    if status not in (302, 401, 403, 404, 429):
        assert all(kept)
        answers = [json.loads(path.read_text()) for path in evidence.rglob("*.json")]
        assert all(answer["headers"]["X-Patient"] == PATIENT for answer in answers)


async def test_evidence_of_an_id_that_was_a_secret_is_found_by_who_does_not_know_it(
    tmp_path: Path,
) -> None:
    log.register_secret(TOKEN)
    store = EvidenceStore(tmp_path, 1 << 20, clean=log.for_evidence)
    fax_id = f"fax-{TOKEN}"
    sent = Evidence(status=200, headers={TOKEN: TOKEN}, body=b"\xff" + TOKEN.encode())
    image = b"%PDF-" + 600_000 * b"\0" + TOKEN.encode() + 700_000 * b"\0" + BASIC.encode()[:-3]
    log.register_secret(KEY)
    assert await store.keep(
        ("app", "user", fax_id),
        at=NOON,
        error=f"no {TOKEN}",
        evidence=sent,
        image=lambda: io.BytesIO(image),
    )
    (kept, answer) = await EvidenceStore(tmp_path, 1 << 20).find("app", "user", fax_id)
    assert TOKEN not in str(kept)
    content = json.loads(answer.read_text())
    assert (content["error"], content["headers"]) == ("no [secret]", {"[secret]": "[secret]"})
    assert base64.b64decode(content["body_base64"]) == b"\xff[secret]"
    assert content["image"]["bytes"] == len(image)
    assert content["image"]["kept"] == kept.stat().st_size
    assert all(secret.encode() not in kept.read_bytes() for secret in SECRETS)
