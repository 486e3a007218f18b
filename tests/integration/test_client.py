"""The client against a real HTTP server on loopback that does what each test scripts."""

import asyncio
import base64
import errno
import gzip
import json
import re
import socket
import ssl
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import StreamReader, web

from poller import errors
from poller.client import Client, Observer, Ports, Timeouts, resolver
from poller.config.model import Account, Limits, RetryConfig, SecretRef, User
from poller.efax.image import ImageAnswer
from poller.efax.requests import Call
from poller.efax.responses import BODY_LIMIT
from poller.sealing import SealedToken
from poller.window import Interval
from tests.conftest import pass_time
from tests.integration.at_work import WITHIN_S

KEY = "the-api-key"
START = datetime(2024, 5, 21, 4, 0, tzinfo=UTC)
BOUNDS = Interval(START, START + timedelta(hours=1))
IMAGE = bytes(range(256)) * 2000
TIMEOUTS = Timeouts()
NO_LIMITS = Limits(requests_per_second=1000, burst=1000, in_flight=8)

Step = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Clock:
    """A clock whose sleeps cost no time."""

    def __init__(self) -> None:
        self.wall = datetime.now(UTC)
        self.seconds = 1000.0
        self.slept: list[float] = []

    def now(self) -> datetime:
        return self.wall

    def monotonic(self) -> float:
        return self.seconds

    def advance(self, seconds: float) -> None:
        self.wall += timedelta(seconds=seconds)
        self.seconds += seconds

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.advance(seconds)
        await asyncio.sleep(0)


class SignIns:
    """A sign-in store in memory."""

    def __init__(self) -> None:
        self.budgets: dict[str, tuple[float, datetime]] = {}
        self.kept: dict[str, SealedToken] = {}
        self.error: Exception | None = None

    async def load(self, app_id: str) -> tuple[float, datetime] | None:
        if self.error is not None:
            raise self.error
        return self.budgets.get(app_id)

    async def save(self, app_id: str, level: float, at: datetime) -> None:
        self.budgets[app_id] = (level, at)

    async def token(self, app_id: str) -> SealedToken | None:
        return self.kept.get(app_id)

    async def save_token(self, app_id: str, kept: SealedToken) -> None:
        self.kept[app_id] = kept


class Watcher(Observer):
    """An observer that remembers."""

    def __init__(self) -> None:
        self.requests: list[tuple[Call, int | None]] = []
        self.events: list[tuple[Any, ...]] = []
        self.waits: list[float] = []
        self.pauses: list[float] = []

    def request(self, call: Call, status: int | None, seconds: float) -> None:
        assert seconds >= 0
        self.requests.append((call, status))

    def waited(self, seconds: float) -> None:
        self.waits.append(seconds)

    def pausing(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def sign_in_waits(self, seconds: float) -> None:
        self.events.append(("sign_in_waits", seconds))

    def rate_limited(self, pause_s: float, rate: float) -> None:
        self.events.append(("rate_limited", pause_s, rate))

    def signed_in(self, reason: str, token: str) -> None:
        self.events.append(("signed_in", reason))

    def token_war(self, count: int) -> None:
        self.events.append(("token_war", count))

    def token_war_over(self, count: int) -> None:
        self.events.append(("token_war_over", count))

    def suspended(self, until: datetime, reason: str) -> None:
        self.events.append(("suspended", reason))

    def resumed(self, failures: int, _: str) -> None:
        self.events.append(("resumed", failures))

    def said(self, event: str) -> list[tuple[Any, ...]]:
        return [one for one in self.events if one[0] == event]


class Sink:
    def __init__(self) -> None:
        self.data = b""
        self.resets = 0
        self.error: Exception | None = None

    async def reset(self) -> None:
        self.data = b""
        self.resets += 1

    async def write(self, data: bytes) -> None:
        if self.error is not None:
            raise self.error
        self.data += data


class Server:
    """Answers as eFax does; a script's steps come before that, one per request."""

    def __init__(self) -> None:
        self.scripts: dict[str, list[Step]] = defaultdict(list)
        self.calls: list[str] = []
        self.seen: list[web.BaseRequest] = []
        self.token = ""
        self.tokens = 0

    def count(self, call: str) -> int:
        return self.calls.count(call)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        call = self.call(request)
        self.calls.append(call)
        self.seen.append(request)
        if self.scripts[call]:
            return await self.scripts[call].pop(0)(request)  # type: ignore[arg-type]
        return self.answer(call, request)

    @staticmethod
    def call(request: web.BaseRequest) -> str:
        last = request.path.rsplit("/", 1)[-1]
        named = {"tokens": "token", "health": "health", "received": "list", "image": "image"}
        return named.get(last, request.method.lower())

    def answer(self, call: str, request: web.BaseRequest) -> web.StreamResponse:
        if call == "token":
            self.tokens += 1
            self.token = f"token-{self.tokens}"
            return web.json_response({"access_token": self.token, "expires_in": 86399})
        if call == "health":
            return web.json_response({"status": "UP"})
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.json_response({"errors": [{"error_code": "UNAUTHORIZED"}]}, status=401)
        if call == "list":
            return web.json_response({"first_record": 1, "faxes": [{"fax_id": "a"}]})
        if call == "image":
            return web.Response(body=image_body())
        return web.json_response({"fax_id": "a"})


def image_body(image: bytes = IMAGE) -> bytes:
    text = base64.b64encode(image).decode()
    return json.dumps({"fax_id": "a", "file_name": "a.pdf", "image": text}).encode()


def status(code: int, body: str = "", **headers: str) -> Step:
    async def step(_: web.Request) -> web.StreamResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=code, text=body, headers=named)

    return step


async def reset(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


class Bench:
    """One client, its server and everything that it gets."""

    def __init__(self, server: Server, url: str) -> None:
        self.server = server
        self.clock = Clock()
        self.sign_ins = SignIns()
        self.watcher = Watcher()
        self.users = tuple(User("main", name, "12345", f"id-{name}") for name in ("ann", "bob"))
        self.account = Account(
            "main", "12345", SecretRef("env", "X"), self.users, base_url=url, limits=NO_LIMITS
        )
        self.retry = RetryConfig(attempts=3)
        self.timeouts = TIMEOUTS

    @property
    def ann(self) -> User:
        return self.users[0]

    @property
    def bob(self) -> User:
        return self.users[1]

    def client(self) -> Client:
        return Client(
            self.account,
            Ports(self.clock, lambda: 0.5, self.sign_ins, self.watcher, self.timeouts),
            api_key=lambda: KEY,
            retry=self.retry,
        )


@asynccontextmanager
async def serving(server: Server, context: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    runner = web.ServerRunner(web.Server(server.handle), shutdown_timeout=0.01)
    await runner.setup()
    runtime = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await runtime.start()
    port = runner.addresses[0][1]
    yield f"{'https' if context else 'http'}://127.0.0.1:{port}"
    await runner.cleanup()


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    server = Server()
    async with serving(server) as url:
        yield Bench(server, url)


@pytest.fixture
async def client(bench: Bench) -> AsyncIterator[Client]:
    async with bench.client() as client:
        yield client
    assert client.pacing.slots.under_way == 0
    assert client.pacing.slots.waiting == 0


# -- requests and answers -------------------------------------------------------------------------


async def test_a_list_signs_in_once_and_sends_exactly_what_the_guide_says(
    bench: Bench, client: Client
) -> None:
    page = await client.list_received(bench.ann, BOUNDS, 7)
    await client.list_received(bench.bob, BOUNDS, 0)
    assert [fax.fax_id for fax in page.faxes] == ["a"]
    assert bench.server.calls == ["token", "list", "list"]
    sent = bench.server.seen[1]
    assert sent.raw_path == (
        "/faxes/received?min_completed_timestamp=2024-05-21T04%3A00%3A00.000%2B0000"
        "&max_completed_timestamp=2024-05-21T05%3A00%3A00.000%2B0000"
    )
    assert sent.headers["user-id"] == "id-ann"
    assert sent.headers["pagination-offset"] == "7"
    assert sent.headers["pagination-limit"] == "100"
    assert sent.headers["Authorization"] == "Bearer token-1"
    assert bench.watcher.requests == [(Call.TOKEN, 200), (Call.LIST, 200), (Call.LIST, 200)]
    assert bench.watcher.events == [("signed_in", "start")]


async def test_every_answers_date_is_observed(bench: Bench, client: Client) -> None:
    assert not client.server_clock.agreed
    await client.health()
    assert client.server_clock.agreed


async def test_an_answer_without_a_sane_date_is_no_date(bench: Bench, client: Client) -> None:
    bench.server.scripts["health"] = [
        status(200, '{"status": "UP"}', Date=date) for date in ("soon", "Tue, 99 May", "")
    ]
    for _ in range(3):
        await client.health()
    assert client.server_clock.now(bench.clock.now()) == bench.clock.now() - timedelta(minutes=5)


async def test_an_image_streams_into_the_sink(bench: Bench, client: Client) -> None:
    sink = Sink()
    answer = await client.fetch_image(bench.ann, "a", sink)
    assert answer == ImageAnswer("a", "a.pdf")
    assert sink.data == IMAGE
    assert bench.server.seen[1].raw_path == "/faxes/a/image?desired_format=PDF"


async def test_an_image_may_come_compressed(bench: Bench, client: Client) -> None:
    async def step(_: web.Request) -> web.StreamResponse:
        body = gzip.compress(image_body())
        return web.Response(body=body, headers={"Content-Encoding": "gzip"})

    bench.server.scripts["image"] = [step]
    sink = Sink()
    await client.fetch_image(bench.ann, "a", sink)
    assert sink.data == IMAGE


async def test_a_base_url_may_have_a_path(bench: Bench) -> None:
    bench.account = replace(bench.account, base_url=bench.account.base_url + "/efax/")
    async with bench.client() as client:
        await client.health()
    assert bench.server.seen[0].raw_path == "/efax/health"


async def test_a_redirect_is_not_followed(bench: Bench, client: Client) -> None:
    other = Server()
    async with serving(other) as url:
        bench.server.scripts["list"] = [status(307, Location=url + "/faxes/received")]
        with pytest.raises(errors.Rejected, match="redirect"):
            await client.list_received(bench.ann, BOUNDS, 0)
    assert other.calls == []
    assert bench.server.count("list") == 1


async def test_the_environments_proxy_is_not_used(
    bench: Bench, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    await client.health()


async def test_the_accounts_proxy_is_used(bench: Bench) -> None:
    bench.account = replace(
        bench.account, proxy=bench.account.base_url, base_url="http://localhost:9"
    )
    async with bench.client() as client:
        await client.health()
    assert bench.server.seen[0].headers["Host"] == "localhost:9"


async def test_cookies_are_not_kept(bench: Bench) -> None:
    bench.server.scripts["health"] = [status(200, '{"status": "UP"}', Set_Cookie="a=b")]
    bench.account = replace(
        bench.account, base_url=bench.account.base_url.replace("127.0.0.1", "localhost")
    )
    async with bench.client() as client:  # aiohttp keeps cookies of named hosts only
        await client.health()
        await client.health()
    assert "Cookie" not in bench.server.seen[1].headers


# -- repeating ------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [500, 503])
async def test_a_server_error_is_tried_again(bench: Bench, client: Client, code: int) -> None:
    bench.server.scripts["list"] = [status(code), status(code)]
    await client.list_received(bench.ann, BOUNDS, 0)
    assert bench.clock.slept == bench.watcher.pauses == [0.5, 1.0]  # half of 1 s and 2 s


async def test_attempts_include_the_first(bench: Bench, client: Client) -> None:
    bench.server.scripts["list"] = [status(500)] * 9
    with pytest.raises(errors.Unreachable):
        await client.list_received(bench.ann, BOUNDS, 0)
    assert bench.server.count("list") == 3


@pytest.mark.parametrize(("asked", "slept"), [("7", 7.0), ("600", 60.0)])
async def test_retry_after_is_honoured_up_to_max_delay(
    bench: Bench, client: Client, asked: str, slept: float
) -> None:
    bench.server.scripts["list"] = [status(503, Retry_After=asked)]
    await client.list_received(bench.ann, BOUNDS, 0)
    assert bench.clock.slept == [slept]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (400, errors.WindowRefused),
        (403, errors.UserRefused),
        (404, errors.UserRefused),
        (422, errors.Rejected),
    ],
)
async def test_a_refused_list_is_not_tried_again(
    bench: Bench, client: Client, code: int, kind: type[errors.ApiError]
) -> None:
    bench.server.scripts["list"] = [status(code, "why")]
    with pytest.raises(kind) as raised:
        await client.list_received(bench.ann, BOUNDS, 0)
    assert raised.value.evidence.body == b"why"
    assert bench.server.count("list") == 1


async def test_a_missing_image_is_not_tried_again(bench: Bench, client: Client) -> None:
    bench.server.scripts["image"] = [status(404)]
    with pytest.raises(errors.NotYet):
        await client.fetch_image(bench.ann, "a", Sink())
    assert bench.server.count("image") == 1


async def test_a_bad_answer_is_tried_again_and_kept_as_evidence(
    bench: Bench, client: Client
) -> None:
    bench.server.scripts["list"] = [status(200, "<html>busy</html>", X_Why="x")] * 3
    with pytest.raises(errors.BadAnswer) as raised:
        await client.list_received(bench.ann, BOUNDS, 0)
    assert bench.server.count("list") == 3
    assert raised.value.status == 200
    assert raised.value.evidence.body == b"<html>busy</html>"
    assert raised.value.evidence.headers["X-Why"] == "x"


async def test_a_bad_image_is_fetched_again_from_its_beginning(
    bench: Bench, client: Client
) -> None:
    bench.server.scripts["image"] = [status(200, image_body().decode()[:-2])]
    sink = Sink()
    await client.fetch_image(bench.ann, "a", sink)
    assert sink.data == IMAGE
    assert sink.resets == 2


@pytest.mark.parametrize(
    "error", [errors.StorageUnusable("no disk"), errors.FaxTooLarge("x"), TimeoutError(), OSError()]
)
async def test_what_the_sink_raises_passes_through_unrepeated(
    bench: Bench, client: Client, error: Exception
) -> None:
    sink = Sink()
    sink.error = error
    with pytest.raises(type(error)) as raised:
        await client.fetch_image(bench.ann, "a", sink)
    assert raised.value is error
    assert bench.server.count("image") == 1
    assert client.pacing.slots.under_way == 0


# -- 429 ------------------------------------------------------------------------------------------


async def test_a_429_pauses_the_account_and_is_tried_again(bench: Bench, client: Client) -> None:
    bench.server.scripts["list"] = [status(429, Retry_After="20")]
    await client.list_received(bench.ann, BOUNDS, 0)
    assert bench.server.count("list") == 2
    assert bench.clock.slept == [0, pytest.approx(20)]  # pacing does the waiting
    assert bench.watcher.events[1:] == [("rate_limited", 20.0, 500.0)]


async def test_429s_without_end_are_given_up(bench: Bench, client: Client) -> None:
    bench.server.scripts["list"] = [status(429)] * 9
    with pytest.raises(errors.RateLimited):
        await client.list_received(bench.ann, BOUNDS, 0)
    assert bench.server.count("list") == 3


async def test_429s_to_requests_sent_together_pause_once(bench: Bench, client: Client) -> None:
    await client.sign_in()
    arrived = asyncio.Barrier(4)

    async def step(_: web.Request) -> web.StreamResponse:
        await arrived.wait()
        return web.Response(status=429)

    bench.server.scripts["list"] = [step] * 4
    await asyncio.gather(*(client.list_received(bench.ann, BOUNDS, 0) for _ in range(4)))
    assert len(bench.watcher.said("rate_limited")) == 1


# -- aiohttp's own repeats ------------------------------------------------------------------------


async def test_a_request_that_aiohttp_repeats_is_charged_and_counted(
    bench: Bench, client: Client
) -> None:
    await client.sign_in()
    client.set_limits(Limits(requests_per_second=1, burst=2, in_flight=2))
    bench.server.scripts["list"] = [reset]
    bench.watcher.requests.clear()
    bench.clock.slept.clear()
    await client.list_received(bench.ann, BOUNDS, 0)
    assert bench.watcher.requests == [(Call.LIST, None), (Call.LIST, 200)]
    assert bench.clock.slept == [pytest.approx(1, abs=0.01)]
    assert bench.server.count("list") == 2


async def test_a_sign_in_is_not_repeated_by_aiohttp(bench: Bench, client: Client) -> None:
    bench.server.scripts["token"] = [reset] * 3
    with pytest.raises(errors.Unreachable, match="closed the connection"):
        await client.sign_in()
    assert bench.server.count("token") == 3


# -- deadlines and broken answers -----------------------------------------------------------------


def hanging(seconds: float = 0.0, *, after: bytes | None = None, status: int = 200) -> Step:
    """Never answer, or not to the end, for `seconds` by the waiting loop's clock."""

    async def step(request: web.Request) -> web.StreamResponse:
        if after is not None:
            response = web.StreamResponse(status=status)
            await response.prepare(request)
            await response.write(after)
        await asyncio.sleep(0.01)
        pass_time(seconds)
        await asyncio.Event().wait()
        raise AssertionError

    return step


def dripping(bench: Bench, drips_s: float, *pieces: bytes, seconds: float = 0.0) -> Step:
    """Answer in pieces: `drips_s` pass between two by our clock, `seconds` by the loop's."""

    async def step(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
            await asyncio.sleep(0.01)
            pass_time(seconds)
            bench.clock.advance(drips_s)
        await response.write_eof()
        return response

    return step


async def test_a_list_that_is_not_answered_in_time_passes_its_deadline(bench: Bench) -> None:
    bench.server.scripts["list"] = [hanging(TIMEOUTS.total_s)]
    async with bench.client() as client:
        with pytest.raises(errors.DeadlinePassed, match="did not answer the"):
            await client.list_received(bench.ann, BOUNDS, 0)
    assert bench.server.count("list") == 1
    assert bench.watcher.requests[-1] == (Call.LIST, None)


async def test_another_call_that_is_not_answered_in_time_is_tried_again(bench: Bench) -> None:
    bench.server.scripts["image"] = [hanging(TIMEOUTS.total_s)]
    async with bench.client() as client:
        await client.fetch_image(bench.ann, "a", Sink())
    assert bench.server.count("image") == 2


async def test_an_image_that_falls_silent_is_tried_again(bench: Bench) -> None:
    silent = hanging(TIMEOUTS.silence_s, after=b'{"image": "')
    bench.server.scripts["image"] = [silent] * 3
    async with bench.client() as client:
        with pytest.raises(errors.Unreachable, match="stopped sending"):
            await client.fetch_image(bench.ann, "a", Sink())
    assert bench.server.count("image") == 3


async def test_an_image_of_which_aiohttp_lost_track_is_tried_again(
    bench: Bench, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if there were no memory for the answer: aiohttp drops its own time-out, and waits forever."""
    real, lost = StreamReader.readany, False

    async def readany(self: StreamReader) -> bytes:
        nonlocal lost
        if not lost and bench.server.count("image"):
            lost = True
            pass_time(TIMEOUTS.silence_s)
            await asyncio.Event().wait()
        return await real(self)

    monkeypatch.setattr(StreamReader, "readany", readany)
    async with asyncio.timeout(WITHIN_S + TIMEOUTS.silence_s):
        await client.fetch_image(bench.ann, "a", Sink())
    assert bench.server.count("image") == 2


async def test_an_image_that_only_drips_is_given_up(bench: Bench, client: Client) -> None:
    bench.server.scripts["image"] = [dripping(bench, 25, *[b" "] * 9)] * 3
    with pytest.raises(errors.Unreachable, match="too slowly"):
        await client.fetch_image(bench.ann, "a", Sink())


async def test_an_image_that_begins_well_and_then_drips_is_given_up(
    bench: Bench, client: Client
) -> None:
    pieces = [b'{"image": "' + b"QUJD" * 50_000, *[b" "] * 9]
    bench.server.scripts["image"] = [dripping(bench, 25, *pieces)] * 3
    with pytest.raises(errors.Unreachable, match="too slowly"):
        await client.fetch_image(bench.ann, "a", Sink())


async def test_an_image_may_take_longer_than_other_calls(bench: Bench) -> None:
    body = image_body()
    pieces = [body[at : at + (70 << 10)] for at in range(0, len(body), 70 << 10)]
    assert len(pieces) * 10 > TIMEOUTS.total_s
    bench.server.scripts["image"] = [dripping(bench, 0, *pieces, seconds=10)]
    async with bench.client() as client:
        await client.fetch_image(bench.ann, "a", Sink())
    assert bench.server.count("image") == 1


async def test_a_slow_image_that_keeps_coming_is_not_given_up(bench: Bench, client: Client) -> None:
    body = image_body()
    pieces = [body[at : at + (70 << 10)] for at in range(0, len(body), 70 << 10)]
    bench.server.scripts["image"] = [dripping(bench, 50, *pieces)]
    sink = Sink()
    await client.fetch_image(bench.ann, "a", sink)
    assert sink.data == IMAGE
    assert bench.server.count("image") == 1


async def test_a_body_cut_short_is_tried_again(bench: Bench, client: Client) -> None:
    async def step(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "500"})
        await response.prepare(request)
        await response.write(b'{"faxes": ')
        return await reset(request)

    bench.server.scripts["list"] = [step] * 3
    with pytest.raises(errors.Unreachable, match="broke off"):
        await client.list_received(bench.ann, BOUNDS, 0)
    assert bench.server.count("list") == 3


async def test_an_errors_body_that_never_ends_does_not_hide_its_status(
    bench: Bench, client: Client
) -> None:
    endless = hanging(TIMEOUTS.error_body_s, after=b"why", status=400)
    bench.server.scripts["list"] = [endless]
    with pytest.raises(errors.WindowRefused) as raised:
        await client.list_received(bench.ann, BOUNDS, 0)
    assert raised.value.evidence.body == b"why"


async def test_only_the_beginning_of_an_errors_body_is_kept(bench: Bench, client: Client) -> None:
    bench.server.scripts["list"] = [status(400, "x" * 500_000)]
    with pytest.raises(errors.WindowRefused) as raised:
        await client.list_received(bench.ann, BOUNDS, 0)
    assert len(raised.value.evidence.body) == 64 << 10


async def test_a_bomb_is_a_bad_answer(bench: Bench, client: Client) -> None:
    async def step(_: web.Request) -> web.StreamResponse:
        body = gzip.compress(b" " * (BODY_LIMIT + (1 << 20)), 1)
        return web.Response(body=body, headers={"Content-Encoding": "gzip"})

    bench.retry = RetryConfig(attempts=1)
    bench.server.scripts["list"] = [step]
    async with bench.client() as once:
        with pytest.raises(errors.BadAnswer, match="too large"):
            await once.list_received(bench.ann, BOUNDS, 0)


# -- no connection --------------------------------------------------------------------------------


async def no_connection(bench: Bench, **changes: Any) -> errors.Unreachable:
    bench.retry = RetryConfig(attempts=1)
    bench.account = replace(bench.account, **changes)
    async with bench.client() as client:
        with pytest.raises(errors.Unreachable) as raised:
            await client.sign_in()
    assert raised.value.__suppress_context__
    assert raised.value.__cause__ is None
    assert KEY not in str(raised.value)
    return raised.value


async def test_a_request_that_never_left_is_not_counted(bench: Bench) -> None:
    await no_connection(bench, base_url="ftp://127.0.0.1")
    assert bench.watcher.requests == []


async def test_a_refused_connection_names_the_host(bench: Bench) -> None:
    error = await no_connection(bench, base_url="http://127.0.0.1:9")
    assert str(error) == "127.0.0.1 refused the connection: check base_url and the firewall."
    assert bench.watcher.requests == [(Call.TOKEN, None)]


async def test_another_failure_to_connect_says_why(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unreachable(*_: object) -> None:
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", unreachable)
    error = await no_connection(bench)
    assert str(error).startswith("No connection to 127.0.0.1 (")


async def test_an_unknown_name_is_reported_as_unknown(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    error = await no_connection(bench, base_url="http://nowhere.invalid")
    assert str(error) == (
        "The name nowhere.invalid cannot be resolved: check DNS and the spelling."
    )


@pytest.mark.parametrize("which", ["base_url", "proxy"])
async def test_name_servers_that_do_not_answer_are_said_not_to(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: over.wait(60))
    monkeypatch.setattr(resolver, "WITHIN_S", 0.01)
    error = await no_connection(bench, **{which: "http://silent.invalid"})
    over.set()
    assert re.fullmatch(
        "The name silent.invalid cannot be resolved: the name servers have not answered for"
        r" \d+ seconds; check DNS.",
        str(error),
    )


@pytest.mark.parametrize("host", ["efax..invalid", "e" * 64 + ".invalid"])
@pytest.mark.parametrize("which", ["base_url", "proxy"])
async def test_a_name_that_nobody_can_look_up_is_a_failed_connection(
    bench: Bench, which: str, host: str
) -> None:
    error = await no_connection(bench, **{which: f"http://{host}"})
    assert str(error) == ("base_url or proxy contains an invalid host name: check their spelling.")


async def test_a_proxy_out_of_reach_is_named_without_its_password(bench: Bench) -> None:
    error = await no_connection(bench, proxy="http://me:secret@127.0.0.1:9")
    assert str(error) == "The proxy 127.0.0.1 cannot be reached: check proxy."


async def test_a_proxy_that_refuses_is_reported(bench: Bench) -> None:
    proxy = bench.account.base_url

    async def refuse(_: web.Request) -> web.StreamResponse:
        return web.Response(status=407)

    bench.server.scripts["connect"] = [refuse]
    error = await no_connection(bench, proxy=proxy, base_url="https://efax.example")
    assert str(error) == (
        "The proxy 127.0.0.1 did not connect to efax.example (HTTP 407): check proxy."
    )


async def test_an_untrusted_certificate_points_to_ca_file(bench: Bench, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    async with serving(bench.server, context) as url:
        error = await no_connection(bench, base_url=url)
        assert "not trusted (unable to get local issuer certificate)" in str(error)
        assert "tls.ca_file" in str(error)
        bench.account = replace(bench.account, ca_file=tmp_path / "ca.crt")
        async with bench.client() as client:
            await client.health()


@pytest.mark.parametrize("directory", [None, "empty"])
async def test_a_system_without_authorities_is_told_the_package(
    directory: str | None, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    none = ssl.get_default_verify_paths()._replace(
        cafile="", capath=str(tmp_path / directory) if directory else ""
    )
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: none)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    async with serving(bench.server, context) as url:
        said = str(await no_connection(bench, base_url=url))
        assert said.endswith("has no CA certificates; install the package ca-certificates.")


async def test_a_server_without_tls_is_reported_as_such(bench: Bench) -> None:
    url = bench.account.base_url.replace("http:", "https:")
    assert "No TLS connection to 127.0.0.1" in str(await no_connection(bench, base_url=url))


@pytest.mark.parametrize("content", [None, "no certificate"])
async def test_a_ca_file_that_cannot_be_used_stops_the_start(
    bench: Bench, tmp_path: Path, content: str | None
) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    bench.account = replace(bench.account, ca_file=file)
    with pytest.raises(errors.CannotStart, match="of account main cannot be used"):
        await bench.client().__aenter__()


async def test_what_is_not_http_is_a_bad_answer(bench: Bench) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"220 smtp.example ESMTP\r\n\r\n")
        writer.close()

    listener = await asyncio.start_server(talk, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    bench.account = replace(bench.account, base_url=f"http://127.0.0.1:{port}")
    async with listener, bench.client() as client:
        with pytest.raises(errors.BadAnswer, match="not valid HTTP"):
            await client.health()


async def test_a_connection_that_times_out_is_reported_as_such(bench: Bench) -> None:
    async def sit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # and never completes the handshake
        writer.close()

    listener = await asyncio.start_server(sit, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    bench.timeouts = replace(bench.timeouts, connect_s=0.05)
    async with listener:
        error = await no_connection(bench, base_url=f"https://127.0.0.1:{port}")
    assert "did not accept the connection in time" in str(error)


# -- suspension -----------------------------------------------------------------------------------


async def fail(client: Client, user: User) -> None:
    with pytest.raises(errors.ApiError):
        await client.list_received(user, BOUNDS, 0)


async def test_an_outage_suspends_the_account_until_a_probe_succeeds(
    bench: Bench, client: Client
) -> None:
    bench.server.scripts["list"] = [status(500)] * 6
    await fail(client, bench.ann)
    await fail(client, bench.bob)
    assert bench.watcher.said("suspended") == [
        ("suspended", "eFax answered the list call with HTTP 500.")
    ]
    sent = len(bench.server.calls)
    with pytest.raises(errors.AccountSuspended, match="main is suspended") as raised:
        await client.list_received(bench.ann, BOUNDS, 0)
    assert raised.value.until == client.suspension.until
    with pytest.raises(errors.AccountSuspended):
        await client.fetch_image(bench.ann, "a", Sink())
    with pytest.raises(errors.AccountSuspended):
        await client.sign_in()
    assert len(bench.server.calls) == sent
    await client.health()

    bench.clock.advance(5)
    with pytest.raises(errors.AccountSuspended):
        await client.fetch_image(bench.ann, "a", Sink())
    await fail(client, bench.ann)  # the probe: one try
    assert len(bench.server.calls) == sent + 2
    with pytest.raises(errors.AccountSuspended):
        await client.list_received(bench.ann, BOUNDS, 0)

    bench.clock.advance(12)
    await client.list_received(bench.ann, BOUNDS, 0)
    await client.fetch_image(bench.ann, "a", Sink())
    assert bench.watcher.said("resumed") == [("resumed", 6)]
    assert len(bench.watcher.said("suspended")) == 1


async def test_a_suspension_ends_the_retries_of_others(bench: Bench, client: Client) -> None:
    bench.retry = RetryConfig(attempts=50)
    bench.server.scripts["list"] = [status(500)] * 100
    async with bench.client() as patient:
        results = await asyncio.gather(
            *(patient.list_received(user, BOUNDS, 0) for user in bench.users * 10),
            return_exceptions=True,
        )
    assert {type(result) for result in results} == {errors.AccountSuspended}
    assert bench.server.count("list") < 25


async def test_a_suspension_sends_away_those_who_wait_at_once(bench: Bench, client: Client) -> None:
    await client.sign_in()
    client.set_limits(Limits(requests_per_second=1000, burst=1000, in_flight=1))

    async def step(_: web.Request) -> web.StreamResponse:
        for user in ("ann", "bob", "ann", "bob"):
            client.suspension.failed(user, bench.clock.now(), 0.5)
        return web.Response(status=500)

    bench.server.scripts["list"] = [step]
    turns = len(bench.watcher.waits)
    results = await asyncio.gather(
        *(client.list_received(bench.ann, BOUNDS, 0) for _ in range(9)), return_exceptions=True
    )
    assert {type(result) for result in results} == {errors.AccountSuspended}
    assert len(bench.watcher.waits) == turns + 1
    assert bench.server.count("list") == 1


async def test_a_dead_token_and_a_refused_sign_in_keep_the_account_suspended(
    bench: Bench, client: Client
) -> None:
    await client.sign_in()
    client.suspension.sign_in_refused(bench.clock.now(), 0.5, "refused")
    bench.server.token = "somebody else's"
    bench.server.scripts["token"] = [status(400)]
    bench.clock.advance(6)
    with pytest.raises(errors.SignInRefused):
        await client.list_received(bench.ann, BOUNDS, 0)
    assert bench.watcher.said("resumed") == []


async def test_a_refused_user_shows_that_the_account_is_well(bench: Bench, client: Client) -> None:
    bench.server.scripts["list"] = [status(500)] * 4 + [status(403), status(500), status(500)]
    await fail(client, bench.ann)
    await fail(client, bench.bob)
    await client.list_received(bench.ann, BOUNDS, 0)
    assert client.suspension.until is None


@pytest.mark.parametrize("code", [400, 401, 403])
async def test_a_refused_sign_in_suspends_the_account(
    bench: Bench, client: Client, code: int
) -> None:
    bench.server.scripts["token"] = [status(code)] * 2
    with pytest.raises(errors.SignInRefused):
        await client.list_received(bench.ann, BOUNDS, 0)
    assert len(bench.watcher.said("suspended")) == 1
    with pytest.raises(errors.AccountSuspended):
        await client.list_received(bench.ann, BOUNDS, 0)
    bench.clock.advance(6)
    with pytest.raises(errors.SignInRefused):
        await client.list_received(bench.ann, BOUNDS, 0)
    assert bench.server.count("token") == 2
    assert len(bench.watcher.said("suspended")) == 1
    bench.clock.advance(15)
    await client.list_received(bench.ann, BOUNDS, 0)
    assert len(bench.watcher.said("resumed")) == 1


async def test_unreachable_sign_ins_suspend_the_account_for_all_users(
    bench: Bench, client: Client
) -> None:
    bench.server.scripts["token"] = [status(503)] * 6
    await fail(client, bench.ann)
    await fail(client, bench.ann)
    assert bench.server.count("token") == 5
    assert len(bench.watcher.said("suspended")) == 1


async def test_a_probe_with_a_bad_answer_has_failed(bench: Bench, client: Client) -> None:
    bench.server.scripts["token"] = [status(400)]
    await fail(client, bench.ann)
    bench.clock.advance(6)
    bench.server.scripts["list"] = [status(200, "<html>captive</html>")]
    await fail(client, bench.ann)
    until = client.suspension.until
    assert until is not None
    assert timedelta(0) < until - bench.clock.now() < timedelta(seconds=15)  # the next interval
    assert bench.server.count("list") == 1


async def test_a_probe_refused_with_a_fresh_token_shows_that_the_account_is_well(
    bench: Bench, client: Client
) -> None:
    client.suspension.sign_in_refused(bench.clock.now(), 0.5, "refused")
    bench.clock.advance(6)
    bench.server.scripts["list"] = [status(401)] * 2
    with pytest.raises(errors.TokenRefused):
        await client.list_received(bench.ann, BOUNDS, 0)
    assert len(bench.watcher.said("resumed")) == 1


async def test_one_fax_that_always_fails_does_not_suspend_the_account(
    bench: Bench, client: Client
) -> None:
    bench.server.scripts["image"] = [status(500)] * 12
    for user in (bench.ann, bench.bob, bench.ann, bench.bob):
        with pytest.raises(errors.Unreachable):
            await client.fetch_image(user, "a", Sink())
    assert client.suspension.until is None
    assert client.suspension.failures == 4


async def test_an_image_under_way_does_not_end_a_suspension(bench: Bench, client: Client) -> None:
    await client.sign_in()

    async def step(request: web.Request) -> web.StreamResponse:
        client.suspension.sign_in_refused(bench.clock.now(), 0.5, "refused")
        return bench.server.answer("image", request)

    bench.server.scripts["image"] = [step]
    await client.fetch_image(bench.ann, "a", Sink())
    assert client.suspension.until is not None


async def test_health_says_when_efax_is_not_up(bench: Bench, client: Client) -> None:
    bench.server.scripts["health"] = [status(200, '{"status": "DOWN"}'), status(500)]
    for _ in range(2):
        with pytest.raises(errors.Unreachable):
            await client.health()
    assert client.suspension.failures == 0


async def test_health_on_behalf_of_a_user_counts_and_probes(bench: Bench, client: Client) -> None:
    bench.server.scripts["health"] = [status(500)] * 5 + [status(200, "<html>"), status(404)]
    for user in (bench.ann, bench.bob, bench.ann, bench.bob, bench.ann):
        with pytest.raises(errors.Unreachable):
            await client.health(user)
    assert len(bench.watcher.said("suspended")) == 1
    with pytest.raises(errors.AccountSuspended):
        await client.health(bench.bob)
    bench.clock.advance(6)
    with pytest.raises(errors.BadAnswer):
        await client.health(bench.bob)
    with pytest.raises(errors.AccountSuspended):
        await client.health(bench.bob)
    bench.clock.advance(12)
    with pytest.raises(errors.Rejected):  # an answer nevertheless
        await client.health(bench.bob)
    assert len(bench.watcher.said("resumed")) == 1
    bench.server.scripts["health"] = [status(200, "<html>")]
    with pytest.raises(errors.BadAnswer):
        await client.health(bench.bob)
    assert client.suspension.failures == 0


# -- tokens over the wire -------------------------------------------------------------------------


async def test_a_dead_token_is_renewed_once_for_all(bench: Bench, client: Client) -> None:
    await client.sign_in()
    bench.server.token = "somebody else's"
    await asyncio.gather(*(client.list_received(bench.ann, BOUNDS, 0) for _ in range(20)))
    assert bench.server.count("token") == 2
    assert bench.watcher.said("signed_in") == [("signed_in", "start"), ("signed_in", "refused")]


async def test_a_401_with_a_fresh_token_is_not_tried_again(bench: Bench, client: Client) -> None:
    bench.server.scripts["list"] = [status(401)] * 9
    with pytest.raises(errors.TokenRefused):
        await client.list_received(bench.ann, BOUNDS, 0)
    assert bench.server.calls == ["token", "list", "token", "list"]


async def test_a_user_refused_with_a_good_token_costs_no_more_sign_ins(
    bench: Bench, client: Client
) -> None:
    bench.server.scripts["list"] = [status(401)] * 2
    await fail(client, bench.ann)
    for _ in range(3):
        await client.list_received(bench.bob, BOUNDS, 0)
        bench.server.scripts["list"] = [status(401)]
        await fail(client, bench.ann)
    assert bench.server.count("token") == 2
    await client.list_received(bench.ann, BOUNDS, 0)


async def test_a_call_that_waited_for_its_turn_uses_the_newest_token(
    bench: Bench, client: Client
) -> None:
    """All wait with the old token; the first one finds out, and the others never send it."""
    await client.sign_in()
    bench.server.token = "somebody else's"
    client.set_limits(Limits(requests_per_second=1000, burst=1000, in_flight=1))
    await asyncio.gather(*(client.list_received(bench.ann, BOUNDS, 0) for _ in range(5)))
    assert bench.server.calls == ["token", "list", "token"] + ["list"] * 5


async def test_a_suspension_reaches_calls_that_wait_for_their_turn(
    bench: Bench, client: Client
) -> None:
    await client.sign_in()
    client.set_limits(Limits(requests_per_second=1000, burst=1000, in_flight=1))

    async def step(_: web.Request) -> web.StreamResponse:
        client.suspension.sign_in_refused(bench.clock.now(), 0.5, "refused")
        return web.Response(status=400)

    bench.server.scripts["list"] = [step]
    results = await asyncio.gather(
        *(client.list_received(bench.ann, BOUNDS, 0) for _ in range(3)), return_exceptions=True
    )
    assert [type(one) for one in results] == [errors.WindowRefused] + [errors.AccountSuspended] * 2
    assert bench.server.count("list") == 1


# -- limits ---------------------------------------------------------------------------------------


async def test_no_more_requests_are_in_flight_than_allowed(bench: Bench, client: Client) -> None:
    client.set_limits(Limits(requests_per_second=1000, burst=1000, in_flight=3))
    under_way = most = 0

    async def step(_: web.Request) -> web.StreamResponse:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.005)
        under_way -= 1
        return web.json_response({})

    bench.server.scripts["list"] = [step] * 12
    await asyncio.gather(*(client.list_received(bench.ann, BOUNDS, 0) for _ in range(12)))
    assert most == 3


async def test_more_may_be_in_flight_after_the_limit_was_raised(
    bench: Bench, client: Client
) -> None:
    await client.sign_in()
    client.set_limits(Limits(requests_per_second=1000, burst=1000, in_flight=20))
    arrived = asyncio.Barrier(20)

    async def step(_: web.Request) -> web.StreamResponse:
        await arrived.wait()
        return web.json_response({})

    bench.server.scripts["list"] = [step] * 20
    async with asyncio.timeout(90):
        await asyncio.gather(*(client.list_received(bench.ann, BOUNDS, 0) for _ in range(20)))


async def test_a_cancelled_download_gives_back_its_slot(bench: Bench, client: Client) -> None:
    began = asyncio.Event()

    async def step(request: web.Request) -> web.StreamResponse:
        began.set()
        return await hanging()(request)

    bench.server.scripts["image"] = [step]
    task = asyncio.create_task(client.fetch_image(bench.ann, "a", Sink()))
    async with asyncio.timeout(90):
        await began.wait()
    assert client.pacing.slots.under_way == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert client.pacing.slots.under_way == 0
    await client.fetch_image(bench.ann, "a", Sink())
