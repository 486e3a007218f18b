import base64
import gzip
import hashlib
import io
import json
import logging
import re
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest
import structlog

from poller import log
from poller.config.model import HttpConfig
from poller.errors import CannotStart, LedgerUnavailable
from poller.metrics import Metrics
from poller.problems import problems
from poller.web import Answers, StatusServer

NOW = datetime(2024, 5, 21, 4, 27, 56, tzinfo=UTC)
TOKEN = "a-token-för-the-page"
NUMBER = "13235551212"


def user(name: str, **changes: Any) -> dict[str, Any]:
    row = {
        "account": "main",
        "user": name,
        "user_id": "0f8a-secret-looking-id",
        "watermark": "2024-05-21T04:27:00.000Z",
        "lag_s": 56.0,
        "gaps": [],
        "failed_gaps": [],
        "last_poll_at": "2024-05-21T04:27:30.000Z",
        "last_error": None,
        "refused": False,
        "removed": False,
        "stored": 12,
        "pending": 0,
        "quarantined": 0,
    }
    return row | changes


def a_status(*users: dict[str, Any], **account: Any) -> dict[str, Any]:
    row = {"account": "main", "suspended_until": None, "reason": None} | account
    return {
        "running": True,
        "version": "1.2.3",
        "storage": {"usable": True},
        "accounts": [row],
        "users": list(users),
    }


class StoppedClock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.at = 0.0

    def now(self) -> datetime:
        return NOW

    def monotonic(self) -> float:
        return self.at

    async def sleep(self, seconds: float) -> None:
        self.at += seconds


class Service:
    """What the daemon would say about itself."""

    def __init__(self) -> None:
        self.metrics = Metrics("1.2.3")
        self.clock = StoppedClock()
        self.says: dict[str, Any] | Exception = a_status(user("desk"))
        self.reasons: list[str] = []
        self.is_alive = True
        self.asked = 0

    async def status(self) -> dict[str, Any]:
        self.asked += 1
        if isinstance(self.says, Exception):
            raise self.says
        return self.says

    @asynccontextmanager
    async def served(self, token: str | None = None) -> AsyncIterator[aiohttp.ClientSession]:
        answers = Answers(self.metrics, self.status, lambda: self.reasons, lambda: self.is_alive)
        self.server = server = StatusServer(HttpConfig(port=0), token, answers, self.clock)
        await server.start()
        try:
            async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as client:
                yield client
        finally:
            await server.stop()
            await server.stop()


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def said() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers = list(root.handlers)
    stream = io.StringIO()
    log.configure("info", "json", b"k" * 32, stream)
    yield stream
    structlog.reset_defaults()
    logging.captureWarnings(capture=False)
    for handler in set(root.handlers) - set(handlers):
        root.removeHandler(handler)


async def get(client: aiohttp.ClientSession, path: str, **options: Any) -> tuple[int, str]:
    async with client.get(path, **options) as response:
        return response.status, await response.text()


# -- the endpoints ---------------------------------------------------------------------------------


async def test_healthz_says_whether_the_process_works(service: Service) -> None:
    async with service.served() as client:
        assert await get(client, "/healthz") == (200, "ok\n")
        service.is_alive = False
        assert (await get(client, "/healthz"))[0] == 503


async def test_readyz_says_why_the_service_is_not_ready(service: Service) -> None:
    async with service.served() as client:
        assert await get(client, "/readyz") == (200, "ready\n")
        service.reasons = ["storage: no marker file", f"account main: {NUMBER} refused"]
        status, text = await get(client, "/readyz")
        assert status == 503
        assert text.splitlines()[0] == "storage: no marker file"
        assert NUMBER not in text
        assert text.splitlines()[1] == f"account main: {log.number(NUMBER)} refused"


async def test_status_json_is_the_status_with_the_time_and_the_problems(service: Service) -> None:
    service.says = a_status(user("desk", refused=True))
    async with service.served() as client:
        status, text = await get(client, "/status.json")
    shown = json.loads(text)
    assert status == 200
    assert shown | service.says == shown
    assert shown["at"] == "2024-05-21T04:27:56.000Z"
    assert shown["problems"] == [
        "eFax refuses main/desk: check the User ID, and whether a proxy drops or changes headers. "
        "See `poller help user-refused`."
    ]


async def test_problems_that_the_service_names_itself_are_kept(service: Service) -> None:
    service.says = a_status() | {"problems": [f"No fax of {NUMBER}."], "at": "2024"}
    async with service.served() as client:
        shown = json.loads((await get(client, "/status.json"))[1])
    assert shown["problems"] == [f"No fax of {log.number(NUMBER)}."]
    assert shown["at"] == "2024"


async def test_what_an_error_says_is_redacted_in_the_status(service: Service) -> None:
    service.says = a_status(user("desk", last_error=f"bearer abc for {NUMBER}"), reason="token=abc")
    async with service.served() as client:
        text = (await get(client, "/status.json"))[1]
    assert NUMBER not in text
    assert "abc" not in text
    assert "0f8a-secret-looking-id" in text, "the contract has it"


async def test_many_open_pages_cost_one_status_a_second(service: Service) -> None:
    async with service.served() as client:
        for _ in range(3):
            await get(client, "/status.json")
        assert service.asked == 1
        service.clock.at += 1.1
        await get(client, "/status.json")
        assert service.asked == 2


async def test_an_unreadable_ledger_is_reported(service: Service) -> None:
    service.says = LedgerUnavailable(f"the ledger is locked by {NUMBER}")
    async with service.served() as client:
        status, text = await get(client, "/status.json")
    assert status == 503
    assert json.loads(text) == {"error": f"the ledger is locked by {log.number(NUMBER)}"}


async def test_a_bug_in_the_page_is_logged_and_ends_nothing(
    service: Service, said: io.StringIO
) -> None:
    service.says = KeyError("patient")
    async with service.served() as client:
        status, text = await get(client, "/status.json")
        assert (status, "patient" in text) == (500, False)
        assert (await get(client, "/healthz"))[0] == 200
    line = json.loads(said.getvalue())
    assert line["event"]["action"] == "internal-error"
    assert line["error"]["type"] == "KeyError"


async def test_metrics_are_what_prometheus_reads(service: Service) -> None:
    service.metrics.poll("main", "desk", "ok")
    async with service.served() as client, client.get("/metrics") as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=")
        assert 'poller_polls_total{account="main",outcome="ok",user="desk"} 1.0' in (
            await response.text()
        )


@pytest.mark.parametrize(
    ("query", "per_user"),
    [
        pytest.param("", False, id="not-asked-for"),
        pytest.param("?users=0", False, id="asked-not-to"),
        pytest.param("?users=1", True, id="asked-for"),
    ],
)
async def test_users_above_two_thousand_are_shown_on_request(
    service: Service, query: str, per_user: bool
) -> None:
    for number in range(2001):
        service.metrics.poll("main", f"u{number}", "ok")
    async with service.served() as client:
        text = (await get(client, f"/metrics{query}"))[1]
    assert ('user="u7"' in text) is per_user


# -- the page --------------------------------------------------------------------------------------


async def test_the_page_may_run_what_it_has_inside_and_load_nothing_else(service: Service) -> None:
    async with service.served() as client, client.get("/") as response:
        page = await response.text()
        policy = response.headers["Content-Security-Policy"]
        assert response.content_type == "text/html"
    assert policy.startswith("default-src 'none'; connect-src 'self';")
    for tag in ("script", "style"):
        (inline,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy


async def test_the_page_has_no_outside_resource_and_adds_no_facts(service: Service) -> None:
    async with service.served() as client:
        page = (await get(client, "/"))[1]
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(", page)
    assert not re.search(
        r"innerHTML|insertAdjacentHTML|document\.write|eval\(| on\w+=|style=", page
    )
    assert "user_id" not in page
    assert 'name="viewport"' in page
    assert "prefers-color-scheme: dark" in page
    assert len(gzip.compress(page.encode())) < 10_000


# -- who may read ----------------------------------------------------------------------------------


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"anyone:{password}".encode()).decode()


@pytest.mark.parametrize(
    ("header", "status"),
    [
        pytest.param(None, 401, id="nothing"),
        pytest.param(f"Bearer {TOKEN}", 200, id="bearer"),
        pytest.param(f"bearer  {TOKEN}", 200, id="bearer-spelled-loosely"),
        pytest.param(basic(TOKEN), 200, id="password"),
        pytest.param("Bearer wrong", 401, id="wrong"),
        pytest.param(f"Bearer {TOKEN}x", 401, id="longer"),
        pytest.param("Bearer", 401, id="empty"),
        pytest.param(basic("wrong"), 401, id="wrong-password"),
        pytest.param("Basic !!", 401, id="no-base64"),
        pytest.param(f"Digest {TOKEN}", 401, id="another-scheme"),
    ],
)
async def test_a_token_is_wanted_where_one_is_set(
    service: Service, header: str | None, status: int
) -> None:
    headers = {} if header is None else {"Authorization": header}
    async with service.served(TOKEN) as client:
        for path in ("/", "/status.json", "/metrics", "/readyz", "/nowhere"):
            expected = 404 if (path, status) == ("/nowhere", 200) else status
            assert (await get(client, path, headers=headers))[0] == expected
        assert (await get(client, "/healthz", headers=headers))[0] == 200


async def test_a_token_that_was_changed_is_wanted_and_the_old_one_is_not(service: Service) -> None:
    async with service.served(TOKEN) as client:
        service.server.take_token("another-token")
        for token, status in ((TOKEN, 401), ("another-token", 200)):
            headers = {"Authorization": f"Bearer {token}"}
            assert (await get(client, "/status.json", headers=headers))[0] == status
    assert log.redact("token another-token") == "token [secret]"


async def test_a_browser_is_asked_for_the_token(service: Service) -> None:
    async with service.served(TOKEN) as client, client.get("/") as response:
        assert response.headers["WWW-Authenticate"].startswith("Basic realm=")
        assert TOKEN not in await response.text()
    assert log.redact(f"token {TOKEN}") == "token [secret]"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        pytest.param("localhost:9410", 200, id="localhost"),
        pytest.param("localhost.", 200, id="localhost-with-a-dot"),
        pytest.param("127.0.0.1", 200, id="address"),
        pytest.param("[::1]:9410", 200, id="address-6"),
        pytest.param("evil.example:9410", 421, id="rebound-name"),
        pytest.param("localhost.evil.example", 421, id="looks-like-localhost"),
        pytest.param("[::1", 421, id="malformed"),
        pytest.param("", 421, id="empty"),
    ],
)
async def test_without_a_token_only_local_names_are_answered(
    service: Service, host: str, status: int
) -> None:
    async with service.served() as client:
        assert (await get(client, "/status.json", headers={"Host": host}))[0] == status
    async with service.served(TOKEN) as client:
        headers = {"Host": "status.example", "Authorization": f"Bearer {TOKEN}"}
        assert (await get(client, "/status.json", headers=headers))[0] == 200


async def test_an_old_client_without_a_host_is_answered(service: Service) -> None:
    async with service.served() as client:
        address = (client._base_url.host, client._base_url.port)  # type: ignore[union-attr]
        with socket.create_connection(address) as plain:
            plain.setblocking(False)
            plain.send(b"GET /healthz HTTP/1.0\r\n\r\n")
            assert (await get(client, "/healthz"))[0] == 200
            assert plain.recv(4096).startswith(b"HTTP/1.0 200")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_nothing_can_be_changed_from_here(service: Service, method: str) -> None:
    async with service.served() as client, client.request(method, "/status.json") as response:
        assert response.status == 405
        assert response.headers["Allow"] == "GET,HEAD"


async def test_head_answers_like_get_without_a_body(service: Service) -> None:
    async with service.served() as client, client.head("/status.json") as response:
        assert (response.status, await response.read()) == (200, b"")


@pytest.mark.parametrize("path", ["/", "/healthz", "/status.json", "/metrics", "/nowhere"])
async def test_every_answer_has_the_headers_that_keep_browsers_out(
    service: Service, path: str
) -> None:
    async with service.served() as client, client.get(path) as response:
        headers = response.headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Server"] == "poller"
    assert "default-src 'none'" in headers["Content-Security-Policy"]


# -- starting and stopping -------------------------------------------------------------------------


def _server(service: Service, http: HttpConfig) -> StatusServer:
    answers = Answers(service.metrics, service.status, list, lambda: True)
    return StatusServer(http, None, answers)


async def test_a_taken_port_is_reported(service: Service) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = _server(service, HttpConfig(port=port))
        with pytest.raises(CannotStart, match=rf"127\.0\.0\.1:{port}.*in use"):
            await server.start()
        assert server.port == port
        await server.stop()


async def test_without_a_host_nothing_is_listened_on(service: Service) -> None:
    server = _server(service, HttpConfig(host=None))
    await server.start()
    await server.stop()


# -- the sentences ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "reasons", "sentences"),
    [
        pytest.param(a_status(user("a")), [], [], id="all-is-well"),
        pytest.param(a_status(), ["no space.", "no space."], ["No space."], id="not-ready"),
        pytest.param(
            a_status(
                user("a", refused=True, last_error="403"),
                suspended_until="2024-05-21T04:30:00.000Z",
                reason="the API key is refused.",
            ),
            [],
            [
                "Account main is suspended, and poller asks again at 04:30:00 UTC: "
                "the API key is refused. See `poller help account-suspended`."
            ],
            id="a-suspended-account-explains-its-users",
        ),
        pytest.param(
            a_status(token_war=True),
            [],
            [
                "Another program signs in with the App ID of account main, so faxes come later. "
                "See `poller help token-war`."
            ],
            id="token-war",
        ),
        pytest.param(
            a_status() | {"config_rejected": "a.yaml:1: poll: mistake."},
            [],
            [
                "The last reload was rejected, and the service still uses the old configuration. "
                "Fix this and reload: a.yaml:1: poll: mistake. "
                "See `poller help configuration-rejected`."
            ],
            id="rejected-reload",
        ),
        pytest.param(
            a_status()
            | {"storage": {"usable": True, "free_bytes": 3 << 29, "min_free_bytes": 1 << 30}},
            [],
            [
                "Only 1.5 GiB are free for faxes, and poller stops fetching below 1.0 GiB "
                "(storage.min_free): make room. See `poller help disk-full`."
            ],
            id="disk-low",
        ),
        pytest.param(
            a_status()
            | {"storage": {"usable": True, "free_bytes": 1 << 31, "min_free_bytes": 1 << 30}},
            [],
            [],
            id="disk-not-low",
        ),
        pytest.param(
            a_status(limit=5.0, rate=1.25),
            [],
            [
                "eFax limits account main: 1.2 of 5 requests per second are allowed now. "
                "See `poller help rate-limited`."
            ],
            id="slowed-by-429",
        ),
        pytest.param(a_status(limit=5.0, rate=4.0), [], [], id="hardly-slowed"),
        pytest.param(a_status(limit=5.0, rate=None), [], [], id="rate-not-known"),
        pytest.param(
            a_status(suspended_until="2024-05-21T04:30:00Z"),
            [],
            [
                "Account main is suspended, and poller asks again at 04:30:00 UTC: "
                "eFax cannot be reached. See `poller help account-suspended`."
            ],
            id="suspended-for-no-known-reason",
        ),
        pytest.param(
            a_status(*(user(f"u{n}", refused=True, last_error="403") for n in range(10))),
            [],
            [
                "eFax refuses main/u0, main/u1, main/u2 and 7 more: check the User IDs. "
                "See `poller help user-refused`."
            ],
            id="many-refused-users-in-one-sentence",
        ),
        pytest.param(
            a_status(
                user("a", last_error="x"), user("b", last_error="y"), user("c", last_error="x")
            ),
            [],
            [
                "The last poll of main/a and main/c failed: x. See `poller help poll-fails`.",
                "The last poll of main/b failed: y. See `poller help poll-fails`.",
            ],
            id="failing",
        ),
        pytest.param(
            a_status(user("a", quarantined=1)),
            [],
            [
                "1 fax is quarantined (main/a): remove the cause, then run `poller retry`. "
                "See `poller help fax-quarantined`."
            ],
            id="one-quarantined",
        ),
        pytest.param(
            a_status(user("a", quarantined=2, removed=True), user("b", quarantined=1)),
            [],
            [
                "1 fax is quarantined (main/b): remove the cause, then run `poller retry`. "
                "See `poller help fax-quarantined`.",
                "Faxes of removed users are not fetched any more (main/a; quarantined: 2, pending: 0): "
                "put the users back and reload, or `poller dismiss` the faxes. "
                "See `poller help removed-users`.",
            ],
            id="quarantined-of-a-removed-user-apart",
        ),
        pytest.param(
            a_status(
                user("a", silent_since="2024-05-01T00:00:00Z"),
                user("b", silent_since=None),
                user("c", silent_since="2024-05-01T00:00:00Z"),
            ),
            [],
            [
                "main/a and main/c received nothing for longer than expected. Send a test fax, "
                "and check that the numbers are still theirs. See `poller help nothing-arrives`."
            ],
            id="silent",
        ),
        pytest.param(
            a_status(user("a", failed_gaps=[["2024-05-01T00:00:00Z", "2024-05-02T00:00:00Z"]])),
            [],
            [
                "Some time could not be listed for main/a, so faxes may be missing. "
                "See `poller help gap`."
            ],
            id="gap",
        ),
        pytest.param(
            a_status(
                user("a", removed=True, refused=True, last_error="x", failed_gaps=[["a", "b"]]),
                user("b", removed=True, silent_since="2024-05-01T00:00:00Z"),
            ),
            [],
            [],
            id="a-removed-user-is-no-problem",
        ),
    ],
)
def test_troubles_are_shown_as_sentences(
    status: dict[str, Any], reasons: list[str], sentences: list[str]
) -> None:
    assert problems(status, reasons) == sentences
