"""The simulator does what each switch and each fault says, over real HTTP."""

import asyncio
import base64
import contextlib
import gzip
import hashlib
import io
import json
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import pikepdf
import pytest
from PIL import Image
from yarl import URL

from poller.simulator import Fault, Faults, Fax, Switches
from poller.simulator.fake_efax import Seen
from poller.simulator.faults import NOTHING
from tests.efax import Simulator

APP, KEY, USER = "12345", "key", "user-1"
NOON = datetime(2024, 5, 21, 12, tzinfo=UTC)
FORM = "application/x-www-form-urlencoded"
BASIC = "Basic " + base64.b64encode(f"{APP}:{KEY}".encode()).decode()


class Clock:
    """The server's time, which the test moves."""

    def __init__(self) -> None:
        self.time = NOON
        self.seconds = 0.0

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return self.seconds

    def move(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)
        self.seconds += seconds


@dataclass(frozen=True)
class Got:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def ids(self) -> list[str]:
        return [fax["fax_id"] for fax in self.json.get("faxes", [])]


class Caller:
    """A plain client that sends exactly what it is told."""

    def __init__(self, sim: Simulator) -> None:
        timeout = aiohttp.ClientTimeout(total=10)
        self._session = aiohttp.ClientSession(timeout=timeout, auto_decompress=False)
        self._sim = sim
        self.token = ""

    async def close(self) -> None:
        await self._session.close()

    async def call(
        self, method: str, target: str, *, data: bytes | None = None, **headers: str
    ) -> Got:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        url = URL(self._sim.base_url + target, encoded=True)
        async with self._session.request(
            method,
            url,
            data=data,
            headers=named,
            allow_redirects=False,
            skip_auto_headers=("Accept-Encoding", "Content-Type"),
        ) as answer:
            return Got(answer.status, dict(answer.headers), await answer.read())

    async def sign_in(self) -> Got:
        got = await self.call(
            "POST",
            "/tokens",
            data=b"grant_type=client_credentials",
            authorization=BASIC,
            content_type=FORM,
        )
        if got.status == 200:
            self.token = got.json["access_token"]
        return got

    async def as_user(self, method: str, target: str, **more: Any) -> Got:
        headers = {"user_id": USER, "authorization": f"Bearer {self.token}"}
        return await self.call(method, target, **(headers | more))

    async def list(self, query: str = "", **headers: str) -> Got:
        return await self.as_user("GET", "/faxes/received" + query, **headers)

    async def image(self, fax: Fax, wanted: str = "PDF", **headers: str) -> Got:
        target = f"/faxes/{fax.fax_id}/image?desired_format={wanted}"
        return await self.as_user("GET", target, **headers)


@dataclass
class Bench:
    """A simulator with one user who has signed in."""

    sim: Simulator
    caller: Caller
    clock: Clock

    def receive(self, **settings: Any) -> Fax:
        return self.sim.receive(APP, USER, **({"distinct": False} | settings))


Start = Callable[..., Any]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    async with contextlib.AsyncExitStack() as stack:

        async def begin(*, signed_in: bool = True, **settings: Any) -> Bench:
            clock = Clock()
            settings = {"now": clock.now, "monotonic": clock.monotonic} | settings
            sim = await stack.enter_async_context(Simulator(**settings))
            caller = Caller(sim)
            stack.push_async_callback(caller.close)
            sim.add_app(APP, KEY)
            sim.add_user(APP, USER)
            if signed_in:
                await caller.sign_in()
            return Bench(sim, caller, clock)

        yield begin


@pytest.fixture
async def bench(start: Start) -> Bench:
    found: Bench = await start()
    return found


def document_in(got: Got) -> bytes:
    text: str = got.json["image"]
    return base64.b64decode("".join(text.split()), validate=True)


def quoted(instant: datetime) -> str:
    return f"{instant:%Y-%m-%dT%H%%3A%M%%3A%S}.{instant.microsecond // 1000:03}%2B0000"


# Signing in, tokens, users


async def test_a_token_lets_its_users_in(bench: Bench) -> None:
    got = await bench.caller.sign_in()
    assert got.json["token_type"] == "bearer"
    assert got.json["expires_in"] == 86_399
    assert len(got.json["access_token"].split(".")) == 3
    assert (await bench.caller.list()).status == 200
    assert bench.sim.sign_ins == {APP: 2}


async def test_a_new_token_ends_the_one_before(bench: Bench) -> None:
    first = bench.caller.token
    await bench.caller.sign_in()
    assert (await bench.caller.list(authorization=f"bearer {first}")).status == 401
    assert (await bench.caller.list()).status == 200


async def test_a_token_ends_by_time(start: Start) -> None:
    bench = await start(switches=Switches(expires_in_s=120))
    bench.clock.move(119)
    assert (await bench.caller.list()).status == 200
    bench.clock.move(1)
    assert (await bench.caller.list()).status == 401


async def test_another_program_that_signs_in_ends_the_token(bench: Bench) -> None:
    bench.sim.end_token(APP)
    assert (await bench.caller.list()).status == 401


@pytest.mark.parametrize(
    ("change", "status"),
    [
        pytest.param({"authorization": "bearer nonsense"}, 401, id="unknown token"),
        pytest.param({"authorization": ""}, 401, id="no token"),
        pytest.param({"user_id": "user-2"}, 403, id="wrong user"),
        pytest.param({"user_id": ""}, 403, id="no user"),
    ],
)
async def test_who_is_not_known_is_refused(
    bench: Bench, change: dict[str, str], status: int
) -> None:
    assert (await bench.caller.list(**change)).status == status


async def test_strict_server_knows_only_bearer_with_a_capital(bench: Bench) -> None:
    lower = f"bearer {bench.caller.token}"
    assert (await bench.caller.list(authorization=lower)).status == 200
    bench.sim.switches = replace(Switches(), scheme="Bearer")
    assert (await bench.caller.list(authorization=lower)).status == 401
    assert (await bench.caller.list()).status == 200


@pytest.mark.parametrize(("effect", "body"), NOTHING.items())
async def test_outage_that_answers_200_with_nothing_lists_no_fax(
    bench: Bench, effect: str, body: str
) -> None:
    bench.receive()
    bench.sim.outage(True, effect)
    got = await bench.caller.list()
    assert (got.status, got.body.decode()) == (200, body)


async def test_the_user_of_another_app_is_refused(bench: Bench) -> None:
    bench.sim.add_app("other", "k")
    bench.sim.add_user("other", "their-user")
    assert (await bench.caller.list(user_id="their-user")).status == 403


@pytest.mark.parametrize(
    ("change", "status"),
    [
        pytest.param({"authorization": "Basic eDp5"}, 401, id="wrong key"),
        pytest.param({"authorization": ""}, 401, id="no credentials"),
        pytest.param({"content_type": "application/json"}, 400, id="wrong type"),
        pytest.param({"data": b"grant_type=password"}, 400, id="wrong grant"),
    ],
)
async def test_a_wrong_sign_in_is_refused(
    bench: Bench, change: dict[str, Any], status: int
) -> None:
    right = {
        "data": b"grant_type=client_credentials",
        "authorization": BASIC,
        "content_type": FORM,
    }
    assert (await bench.caller.call("POST", "/tokens", **(right | change))).status == status
    assert (await bench.caller.list()).status == 200  # the previous token is still good


async def test_health_needs_nothing(start: Start) -> None:
    bench = await start(signed_in=False)
    got = await bench.caller.call("GET", "/health")
    assert (got.status, got.json) == (200, {"status": "UP"})


@pytest.mark.parametrize(
    ("method", "target"),
    [("GET", "/"), ("GET", "/tokens"), ("GET", "/faxes/f"), ("GET", "/faxes/f/x"), ("GET", "/x/f")],
)
async def test_a_path_that_the_api_does_not_have_is_not_found(
    bench: Bench, method: str, target: str
) -> None:
    assert (await bench.caller.as_user(method, target)).status == 404
    assert bench.sim.requests[-1].call is None


async def test_an_error_is_in_the_envelope_with_the_transaction_id(bench: Bench) -> None:
    got = await bench.caller.list("?min_pages=x", transaction_id="t-7")
    assert got.status == 400
    assert got.json["transaction_id"] == "t-7"
    error = got.json["errors"][0]
    assert (error["error_code"], error["element_name"]) == ("BAD_REQUEST", "min_pages")
    assert set(error) == {
        "error_code",
        "element_name",
        "developer_message",
        "user_message",
        "more_info",
    }


# Lists


async def test_a_list_shows_the_window_newest_first(bench: Bench) -> None:
    faxes = [bench.receive(completed=NOON - timedelta(minutes=m)) for m in (3, 1, 2, 10)]
    start, end = quoted(NOON - timedelta(minutes=3)), quoted(NOON)
    got = await bench.caller.list(f"?min_completed_timestamp={start}&max_completed_timestamp={end}")
    assert got.ids == [faxes[i].fax_id for i in (1, 2, 0)]
    assert (got.json["first_record"], got.json["last_record"]) == (1, 3)


async def test_a_listed_fax_has_the_fields_of_the_api(bench: Bench) -> None:
    fax = bench.receive(pages=2, originating="+4912345", fields={"extra": 1, "size": None})
    (listed,) = (await bench.caller.list()).json["faxes"]
    assert listed == {
        "fax_id": fax.fax_id,
        "duration": 82,
        "pages": 2,
        "image_downloaded": False,
        "fax_status": "STORED",
        "completed_timestamp": "2024-05-21T12:00:00.000+0000",
        "originating_fax_number": "+4912345",
        "destination_fax_number": "18005550100",
        "originating_fax_tsid": "Front Desk",
        "resource_url": "https://elsewhere.invalid/faxes/1",
        "extra": 1,
    }


async def test_paging_headers_turn_the_pages(bench: Bench) -> None:
    faxes = [bench.receive(completed=NOON - timedelta(minutes=m)) for m in range(5)]
    got = await bench.caller.list(pagination_offset="2", pagination_limit="2")
    assert got.ids == [fax.fax_id for fax in faxes[2:4]]
    assert (got.json["first_record"], got.json["last_record"]) == (3, 4)
    assert (await bench.caller.list(pagination_offset="5")).json["faxes"] == []


@pytest.mark.parametrize(
    "query",
    [
        pytest.param("?min_completed_timestamp=2024-05-21T12:00:00%2B0000", id="bare colon"),
        pytest.param("?min_completed_timestamp=2024-05-21T12%3A00%3A00+0000", id="bare plus"),
        pytest.param("?min_completed_timestamp=2024-05-21T12%3A00%3A00Z", id="Z"),
        pytest.param("?colour=red", id="unknown parameter"),
    ],
)
async def test_a_malformed_list_call_is_refused(bench: Bench, query: str) -> None:
    assert (await bench.caller.list(query)).status == 400


async def test_a_bare_colon_is_taken_where_the_switch_says_so(start: Start) -> None:
    bench = await start(switches=Switches(refuse_bare_colon=False))
    query = "?min_completed_timestamp=2024-05-21T12:00:00%2B0000"
    assert (await bench.caller.list(query)).status == 200


# Images and the other calls


@pytest.mark.parametrize("distinct", [True, False])
async def test_an_image_opens_as_pdf_and_as_tiff(bench: Bench, distinct: bool) -> None:
    fax = bench.receive(pages=3, distinct=distinct)
    pdf, tiff = [document_in(await bench.caller.image(fax, wanted)) for wanted in ("PDF", "TIFF")]
    assert pdf == bench.sim.image_bytes(fax)
    assert tiff == bench.sim.image_bytes(fax, "tiff")
    with pikepdf.open(io.BytesIO(pdf), attempt_recovery=False) as opened:
        assert len(opened.pages) == 3
    with Image.open(io.BytesIO(tiff)) as image:
        for frame in range(3):
            image.seek(frame)
            image.load()
            assert (image.mode, image.width, image.info["compression"]) == ("1", 1728, "group4")
    assert bench.sim.downloads == {fax: 2}
    assert bench.sim.served[fax] == [hashlib.sha256(each).hexdigest() for each in (pdf, tiff)]


async def test_reading_an_image_marks_it_downloaded_at_once(bench: Bench) -> None:
    fax = bench.receive()
    assert (await bench.caller.list("?image_downloaded=false")).ids == [fax.fax_id]
    bench.sim.faults = Faults(script=("reset", "reset"), script_calls=frozenset({"image"}))
    with pytest.raises(aiohttp.ClientError):
        await bench.caller.image(fax)
    assert (await bench.caller.list("?image_downloaded=false")).ids == []
    assert (await bench.caller.list("?image_downloaded=true")).ids == [fax.fax_id]


async def test_an_image_answer_names_its_fax(bench: Bench) -> None:
    fax = bench.receive()
    assert list((await bench.caller.image(fax)).json) == ["fax_id", "file_name", "image"]


async def test_another_format_is_refused(bench: Bench) -> None:
    assert (await bench.caller.image(bench.receive(), "JPEG")).status == 400


async def test_a_document_of_ones_own_is_served_as_it_is(bench: Bench) -> None:
    fax = bench.receive(document=b"%PDF-1.4 mine")
    assert document_in(await bench.caller.image(fax)) == b"%PDF-1.4 mine"
    assert bench.sim.image_bytes(fax) == b"%PDF-1.4 mine"


async def test_an_odd_fax_id_is_found_when_it_is_encoded(bench: Bench) -> None:
    fax = bench.receive(fax_id="../a b/ü?")
    assert (await bench.caller.list()).ids == [fax.fax_id]
    target = "/faxes/..%2Fa%20b%2F%C3%BC%3F/image?desired_format=PDF"
    assert (await bench.caller.as_user("GET", target)).json["fax_id"] == fax.fax_id


async def test_metadata_can_be_read_and_marked(bench: Bench) -> None:
    fax = bench.receive()
    target = f"/faxes/{fax.fax_id}/metadata"
    got = await bench.caller.as_user("GET", target)
    assert (got.json["direction"], got.json["image_downloaded"]) == ("INBOUND", False)
    for wanted in (True, False):
        data = json.dumps({"image_downloaded": wanted}).encode()
        got = await bench.caller.as_user(
            "PATCH", target, data=data, content_type="application/json"
        )
        assert (got.status, got.json["image_downloaded"]) == (200, wanted)
        assert fax.image_downloaded is wanted


@pytest.mark.parametrize(
    ("data", "content_type"),
    [
        pytest.param(b"{}", "application/json", id="nothing wanted"),
        pytest.param(b"[1]", "application/json", id="no object"),
        pytest.param(b"{", "application/json", id="no JSON"),
        pytest.param(b'{"image_downloaded": "true"}', "application/json", id="text"),
        pytest.param(b'{"image_downloaded": true}', "text/plain", id="wrong type"),
    ],
)
async def test_a_malformed_mark_is_refused(bench: Bench, data: bytes, content_type: str) -> None:
    target = f"/faxes/{bench.receive().fax_id}/metadata"
    got = await bench.caller.as_user("PATCH", target, data=data, content_type=content_type)
    assert got.status == 400


async def test_a_deleted_fax_is_gone(bench: Bench) -> None:
    fax = bench.receive()
    got = await bench.caller.as_user("DELETE", f"/faxes/{fax.fax_id}")
    assert (got.status, got.body) == (204, b"")
    assert fax.deleted
    assert (await bench.caller.as_user("DELETE", f"/faxes/{fax.fax_id}")).status == 404
    assert (await bench.caller.image(fax)).status == 404
    assert bench.sim.faxes() == []


async def test_a_fax_deleted_in_the_portal_is_gone(bench: Bench) -> None:
    bench.sim.delete(bench.receive())
    assert (await bench.caller.list()).ids == []


# Switches


async def test_a_fax_is_visible_late(start: Start) -> None:
    bench = await start(switches=Switches(late_visible_s=120.0))
    fax = bench.receive()
    bench.clock.move(119)
    assert (await bench.caller.list()).ids == []
    assert (await bench.caller.image(fax)).status == 404
    bench.clock.move(1)
    assert (await bench.caller.list()).ids == [fax.fax_id]


async def test_an_image_is_not_there_yet(start: Start) -> None:
    bench = await start(switches=Switches(image_not_yet_s=60.0))
    fax = bench.receive()
    assert (await bench.caller.list()).ids == [fax.fax_id]
    assert (await bench.caller.image(fax)).status == 404
    assert not fax.image_downloaded
    bench.clock.move(60)
    assert (await bench.caller.image(fax)).status == 200


async def test_long_and_old_windows_are_refused_over_http(start: Start) -> None:
    bench = await start(switches=Switches(longest_window_s=86_400.0, oldest_window_s=172_800.0))
    day, three = NOON - timedelta(days=1), NOON - timedelta(days=3)
    query = "?min_completed_timestamp={}&max_completed_timestamp={}"
    assert (await bench.caller.list(query.format(quoted(day), quoted(NOON)))).status == 200
    long = query.format(quoted(day - timedelta(seconds=1)), quoted(NOON))
    assert (await bench.caller.list(long)).status == 400
    old = query.format(quoted(three), quoted(three + timedelta(hours=1)))
    assert (await bench.caller.list(old)).status == 400


async def test_ignored_paging_headers_give_the_first_page_again(start: Start) -> None:
    bench = await start(switches=Switches(paging_headers="ignored", page_cap=3))
    faxes = [bench.receive(completed=NOON - timedelta(minutes=m)) for m in range(5)]
    got = await bench.caller.list(pagination_offset="3")
    assert got.ids == [fax.fax_id for fax in faxes[:3]]


async def test_a_limit_above_100_is_refused_over_http(start: Start) -> None:
    bench = await start(switches=Switches(limit_above_100="refuse"))
    assert (await bench.caller.list(pagination_limit="101")).status == 400
    assert (await bench.caller.list(pagination_limit="100")).status == 200


@pytest.mark.parametrize(
    ("value", "body"),
    [
        ("array", {"first_record": 0, "last_record": 0, "faxes": []}),
        ("missing", {"first_record": 0, "last_record": 0}),
        ("bare", {}),
    ],
)
async def test_an_empty_list_has_the_shape_that_the_switch_says(
    start: Start, value: str, body: dict[str, Any]
) -> None:
    bench = await start(switches=Switches.parse([f"empty_list={value}"]))
    assert (await bench.caller.list()).json == body


@pytest.mark.parametrize(
    ("setting", "missing", "changed"),
    [
        ("numbers=text", set(), {"size": "24000", "duration": "47", "pages": "1"}),
        ("fax_status=missing", {"fax_status"}, {}),
        ("list_fields=no-timestamp", {"completed_timestamp"}, {}),
        ("timestamp=Z", set(), {"completed_timestamp": "2024-05-21T12:00:00.000Z"}),
    ],
)
async def test_a_switch_changes_the_listed_fields(
    start: Start, setting: str, missing: set[str], changed: dict[str, str]
) -> None:
    bench = await start()
    bench.receive()
    (usual,) = (await bench.caller.list()).json["faxes"]
    bench.sim.switches = Switches.parse([setting])
    (listed,) = (await bench.caller.list()).json["faxes"]
    assert listed == {k: v for k, v in usual.items() if k not in missing} | changed


async def test_a_listed_fax_may_have_its_id_only(start: Start) -> None:
    bench = await start(switches=Switches(list_fields="only-id"))
    fax = bench.receive()
    assert (await bench.caller.list()).json["faxes"] == [{"fax_id": fax.fax_id}]


async def test_unknown_fields_are_everywhere(start: Start) -> None:
    bench = await start(switches=Switches(unknown_fields=True))
    fax = bench.receive()
    body = (await bench.caller.list()).json
    image = (await bench.caller.image(fax)).json
    assert {"x_region", "x_labels"} <= set(body) & set(body["faxes"][0]) & set(image)


@pytest.mark.parametrize("call", ["list", "image"])
@pytest.mark.parametrize("how", ["same", "lower", "upper", "mixed"])
async def test_letters_of_a_uuid_are_as_the_switch_says(start: Start, call: str, how: str) -> None:
    bench = await start(switches=Switches.parse([f"{call}_fax_id={how}"]))
    given = "0F8A1B2C-3d4e-4f50-8a6b-7c8d9e0fa1b2"
    fax, other = bench.receive(fax_id=given), bench.receive(fax_id="CaseId")

    async def spelled(fax: Fax) -> set[str]:
        if call == "image":
            return {(await bench.caller.image(fax)).json["fax_id"]}
        return {one["fax_id"] for one in (await bench.caller.list()).json["faxes"]}

    said = set().union(*[await spelled(one) for one in (fax, other) for _ in range(20)])
    lower, upper = given.lower(), given.upper()
    uuids = {"same": {given}, "lower": {lower}, "upper": {upper}, "mixed": {lower, upper}}
    assert said == uuids[how] | {"CaseId"}


async def test_a_pdf_may_differ_at_each_download_and_the_test_knows_how(start: Start) -> None:
    bench = await start(switches=Switches(pdf_bytes="differ"))
    fax = bench.receive()
    documents = [document_in(await bench.caller.image(fax)) for _ in range(2)]
    assert documents[0] != documents[1]
    assert documents == [bench.sim.image_bytes(fax, download=number) for number in (1, 2)]
    assert documents[1] == bench.sim.image_bytes(fax)
    tiffs = [document_in(await bench.caller.image(fax, "TIFF")) for _ in range(2)]
    assert tiffs[0] == tiffs[1]


async def test_asked_for_pdf_the_bytes_may_be_tiff(start: Start) -> None:
    bench = await start(switches=Switches(pdf_answer="tiff"))
    fax = bench.receive()
    document = document_in(await bench.caller.image(fax, "PDF"))
    assert document.startswith(b"II*\0")
    assert document == bench.sim.image_bytes(fax, "pdf")


@pytest.mark.parametrize(
    ("spelling", "mark"),
    [
        pytest.param("plain", b"", id="plain"),
        pytest.param("wrapped", b"\\r\\n", id="wrapped"),
        pytest.param("spaced", b" ", id="spaced"),
        pytest.param("escaped-slashes", b"\\/", id="escaped slashes"),
        pytest.param("unicode-escapes", b"\\u002f", id="unicode escapes"),
    ],
)
async def test_base64_is_spelled_as_the_switch_says(
    start: Start, spelling: str, mark: bytes
) -> None:
    bench = await start(switches=Switches.parse([f"image_text={spelling}"]))
    fax = bench.receive()
    got = await bench.caller.image(fax)
    text = got.body.partition(b'"image": "')[2]
    assert mark in text
    assert (b"\\" in text) is (b"\\" in mark)
    assert document_in(got) == bench.sim.image_bytes(fax)
    if spelling == "wrapped":
        assert max(len(line) for line in got.json["image"].split()) == 76


@pytest.mark.parametrize(
    ("value", "keys"),
    [
        ("image-last", ["fax_id", "file_name", "image"]),
        ("image-first", ["image", "fax_id", "file_name"]),
        ("image-middle", ["fax_id", "image", "file_name"]),
        ("only-image", ["image"]),
    ],
)
async def test_image_keys_stand_as_the_switch_says(
    start: Start, value: str, keys: list[str]
) -> None:
    bench = await start(switches=Switches.parse([f"image_keys={value}"]))
    assert list((await bench.caller.image(bench.receive())).json) == keys


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("json", "application/json"),
        ("json-charset", "application/json;charset=UTF-8"),
        ("text", "text/plain"),
        ("none", None),
    ],
)
async def test_the_content_type_is_as_the_switch_says(
    start: Start, value: str, expected: str | None
) -> None:
    bench = await start(switches=Switches.parse([f"content_type={value}"]))
    assert (await bench.caller.list()).headers.get("Content-Type") == expected


@pytest.mark.parametrize(
    ("value", "headers"),
    [
        ("length", {"Content-Length"}),
        ("chunked", {"Transfer-Encoding"}),
        ("close", {"Connection"}),
    ],
)
async def test_an_answer_ends_as_the_switch_says(
    start: Start, value: str, headers: set[str]
) -> None:
    bench = await start(switches=Switches.parse([f"framing={value}"]))
    fax = bench.receive()
    got = await bench.caller.image(fax)
    framing = {"Content-Length", "Transfer-Encoding", "Connection"}
    assert set(got.headers) & framing == headers
    assert document_in(got) == bench.sim.image_bytes(fax)
    assert (await bench.caller.as_user("DELETE", f"/faxes/{fax.fax_id}")).status == 204


async def test_an_answer_is_packed_for_those_who_accept_it(start: Start) -> None:
    bench = await start(switches=Switches(compression="gzip"))
    packed = await bench.caller.list(accept_encoding="deflate, gzip")
    assert packed.headers["Content-Encoding"] == "gzip"
    assert json.loads(gzip.decompress(packed.body))["faxes"] == []
    assert "Content-Encoding" not in (await bench.caller.list()).headers


async def test_the_date_header_is_the_servers_own_time(bench: Bench) -> None:
    got = await bench.caller.call("GET", "/health")
    assert got.headers["Date"] == "Tue, 21 May 2024 12:00:00 GMT"
    assert "Server" not in got.headers


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_the_date_header_may_be_missing_or_skewed(start: Start, framing: str) -> None:
    switches = Switches.parse([f"framing={framing}", "date_header=missing"])
    bench = await start(switches=switches)
    assert "Date" not in (await bench.caller.call("GET", "/health")).headers
    bench.sim.switches = replace(switches, date_header="present", date_skew_s=3600.0)
    got = await bench.caller.call("GET", "/health")
    assert parsedate_to_datetime(got.headers["Date"]) == NOON + timedelta(hours=1)


@pytest.mark.parametrize(
    ("value", "body"),
    [
        ("bare", {"message": "no such user"}),
        ("partial", {"errors": [{"error_code": "FORBIDDEN"}]}),
        ("empty", None),
    ],
)
async def test_an_error_has_the_shape_that_the_switch_says(
    start: Start, value: str, body: object
) -> None:
    bench = await start(switches=Switches.parse([f"error_body={value}"]))
    got = await bench.caller.list(user_id="x")
    assert got.status == 403
    assert (got.json if got.body else None) == body


@pytest.mark.parametrize("status", [400, 401, 403])
async def test_a_refused_sign_in_has_the_status_that_the_switch_says(
    start: Start, status: int
) -> None:
    bench = await start(switches=Switches.parse([f"sign_in_refusal={status}"]))
    bench.sim.apps[APP].api_key = "changed"
    got = await bench.caller.sign_in()
    assert (got.status, got.json["error"]) == (status, "invalid_client")


async def test_a_wrong_user_may_be_not_found(start: Start) -> None:
    bench = await start(switches=Switches(wrong_user="404"))
    assert (await bench.caller.list(user_id="x")).status == 404


async def test_every_switch_value_serves_a_fax_whole(start: Start) -> None:
    bench = await start(signed_in=False)
    for name, values in Switches.table().items():
        for value in values:
            bench.sim.switches = replace(Switches(), **{name: value})
            fax = bench.receive()
            bench.clock.move(120)
            await bench.caller.sign_in()
            listed = [fax_id.lower() for fax_id in (await bench.caller.list()).ids]
            assert fax.fax_id in listed, (name, value)
            document = document_in(await bench.caller.image(fax))
            assert document == bench.sim.image_bytes(fax), (name, value)


# The rate limit


@pytest.mark.parametrize("spelling", ["seconds", "date", "none"])
async def test_a_rate_limit_answers_429_says_when_to_come_again_and_counts(
    start: Start, spelling: str
) -> None:
    switches = Switches.parse([f"retry_after={spelling}"])
    bench = await start(switches=switches, rate=0.5, burst=3)
    statuses = [(await bench.caller.list()).status for _ in range(3)]
    assert statuses == [200, 200, 429]  # signing in took the first token
    got = await bench.caller.list()
    expected = {"seconds": "3", "date": "Tue, 21 May 2024 12:00:04 GMT", "none": None}
    assert got.headers.get("Retry-After") == expected[spelling]
    assert bench.sim.refused_429 == 2
    bench.clock.move(2)
    assert (await bench.caller.list()).status == 200
    assert (await bench.caller.call("GET", "/health")).status == 200


async def test_each_app_has_its_own_bucket(start: Start) -> None:
    bench = await start(rate=1.0, burst=1)
    bench.sim.add_app("other", "k")
    authorization = "Basic " + base64.b64encode(b"other:k").decode()
    got = await bench.caller.call(
        "POST",
        "/tokens",
        data=b"grant_type=client_credentials",
        authorization=authorization,
        content_type=FORM,
    )
    assert got.status == 200
    assert (await bench.caller.list()).status == 429


# Faults


@pytest.mark.parametrize("status", ["400", "401", "403", "404", "410", "429", "500", "503", "599"])
async def test_a_status_can_be_switched_on(bench: Bench, status: str) -> None:
    fax = bench.receive()
    bench.sim.faults = Faults.of(f"{status}@image=first:1")
    got = await bench.caller.image(fax, transaction_id="t")
    assert (got.status, got.json["transaction_id"]) == (int(status), "t")
    assert not fax.image_downloaded
    assert bench.sim.refused_429 == 0
    assert (await bench.caller.image(fax)).status == 200


async def test_a_status_without_a_name_can_be_closed_by_hand(start: Start) -> None:
    bench = await start(switches=Switches(framing="close"), faults=Faults.of("599@list=always"))
    assert (await bench.caller.list()).status == 599


async def test_a_status_can_have_any_retry_after(bench: Bench) -> None:
    bench.sim.faults = Faults((Fault("503", first=1, retry_after="Wed, 21 Oct 2015 07:28:00 GMT"),))
    got = await bench.caller.list()
    assert (got.status, got.headers["Retry-After"]) == (503, "Wed, 21 Oct 2015 07:28:00 GMT")


async def test_a_proxy_can_answer_html(bench: Bench) -> None:
    bench.sim.faults = Faults(script=("html-502", "html-200"))
    for status in (502, 200):
        got = await bench.caller.list()
        assert (got.status, got.headers["Content-Type"]) == (status, "text/html")
        assert got.body.startswith(b"<html>")


async def test_an_error_can_come_as_200(bench: Bench) -> None:
    bench.sim.faults = Faults.of("errors-200=always")
    got = await bench.caller.list()
    assert (got.status, list(got.json)) == (200, ["errors", "transaction_id"])


async def test_a_call_can_be_redirected(bench: Bench) -> None:
    bench.sim.faults = Faults.of("redirect=always")
    got = await bench.caller.list("?min_pages=1")
    assert got.status == 307
    assert got.headers["Location"] == "http://elsewhere.invalid/faxes/received?min_pages=1"


@pytest.mark.parametrize(
    ("effect", "error"),
    [
        pytest.param("reset", aiohttp.ClientOSError, id="before the answer"),
        pytest.param("reset-mid-body", aiohttp.ClientPayloadError, id="in mid-body"),
        pytest.param("cut", aiohttp.ClientPayloadError, id="cut short of its length"),
        pytest.param("cut-chunked", aiohttp.ClientPayloadError, id="cut between chunks"),
    ],
)
async def test_a_connection_can_break(bench: Bench, effect: str, error: type[Exception]) -> None:
    fax = bench.receive()
    bench.sim.faults = Faults(script=(effect, effect), script_calls=frozenset({"image"}))
    with pytest.raises(error):
        await bench.caller.image(fax)
    assert bench.sim.downloads[fax] >= 1
    assert bench.sim.requests[-1].fault == effect
    bench.sim.faults = Faults()
    assert (await bench.caller.image(fax)).status == 200


async def test_a_cut_body_without_length_looks_like_a_whole_answer(bench: Bench) -> None:
    fax = bench.receive()
    whole = (await bench.caller.image(fax)).body
    bench.sim.faults = Faults.of("cut-no-length=first:1")
    got = await bench.caller.image(fax)
    assert got.status == 200
    assert got.body == whole[: len(whole) // 2]


@pytest.mark.parametrize(("effect", "status"), [("stall", None), ("stall-mid-body", 200)])
async def test_an_answer_can_stall(bench: Bench, effect: str, status: int | None) -> None:
    bench.sim.faults = Faults.of(f"{effect}=always")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(bench.caller.list(), 0.05)
    seen = bench.sim.requests[-1]
    assert (seen.call, seen.status, seen.fault) == ("list", status, effect)


async def test_a_body_can_drip(bench: Bench) -> None:
    drip = Faults.of("drip=always")
    bench.sim.faults = replace(drip, drip_bytes=10, drip_interval_s=0.001)
    got = await bench.caller.list()
    assert got.json["faxes"] == []
    bench.sim.faults = drip
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(bench.caller.list(), 0.05)


async def test_the_simulator_ends_at_once_while_answers_stall(start: Start) -> None:
    bench = await start(faults=Faults.of("stall@list=always"))
    waiting = asyncio.create_task(bench.caller.list())
    while bench.sim.in_flight == 0:
        await asyncio.sleep(0.001)
    await asyncio.wait_for(bench.sim.stop(), 90)
    with pytest.raises(aiohttp.ClientError):
        await waiting


async def test_a_token_can_be_ended_by_another_program(bench: Bench) -> None:
    bench.sim.faults = Faults.of("end-token@list=first:1")
    assert (await bench.caller.list()).status == 401
    assert (await bench.caller.list()).status == 401
    await bench.caller.sign_in()
    assert (await bench.caller.list()).status == 200


async def test_a_fax_can_come_in_between_two_pages(bench: Bench) -> None:
    faxes = [bench.receive(completed=NOON - timedelta(minutes=m)) for m in (3, 2, 1)]
    bench.sim.faults = Faults.of("shift-insert=always")
    query = f"?max_completed_timestamp={quoted(NOON - timedelta(minutes=1))}"
    first = await bench.caller.list(query, pagination_limit="2")
    second = await bench.caller.list(query, pagination_limit="2", pagination_offset="2")
    assert first.ids == [faxes[2].fax_id, faxes[1].fax_id]
    assert second.ids == [faxes[1].fax_id, faxes[0].fax_id]
    assert len(bench.sim.faxes()) == 4


async def test_a_fax_can_be_deleted_between_two_pages(bench: Bench) -> None:
    faxes = [bench.receive(completed=NOON - timedelta(minutes=m)) for m in (4, 3, 2, 1)]
    faxes[2].image_downloaded = True
    bench.sim.faults = Faults.of("shift-delete=always")
    await bench.caller.list(pagination_limit="2")
    second = await bench.caller.list(pagination_limit="2", pagination_offset="2")
    assert second.ids == [faxes[0].fax_id]
    assert [fax.deleted for fax in faxes] == [False, False, True, False]


async def test_a_shift_leaves_a_malformed_call_to_be_refused(bench: Bench) -> None:
    bench.sim.faults = Faults.of("shift-delete=always")
    assert (await bench.caller.list("?x=1", pagination_offset="1")).status == 400


def broken(effect: str, check: Callable[[Got, Fax, bytes], object]) -> Any:
    return pytest.param(effect, check, id=effect)


@pytest.mark.parametrize(
    ("effect", "check"),
    [
        broken("cut-document", lambda g, _, d: document_in(g) == d[: len(d) // 2]),
        broken("no-document", lambda g, _, d: document_in(g).startswith(b"This is not")),
        broken("empty-document", lambda g, _, d: g.json["image"] == ""),
        broken("null-image", lambda g, _, d: g.json["image"] is None),
        broken("no-image", lambda g, _, d: "image" not in g.json),
        broken("wrong-fax-id", lambda g, f, _: g.json["fax_id"] != f.fax_id),
        broken("bad-base64", lambda g, _, d: g.json["image"][100] == "!"),
        broken("bad-padding", lambda g, _, d: len(g.json["image"]) % 4),
        broken("duplicate-image", lambda g, _, d: g.body.count(b'"image": ') == 2),
    ],
)
async def test_a_poison_fax_has_a_broken_answer_each_time_and_others_do_not(
    bench: Bench, effect: str, check: Callable[[Got, Fax, bytes], object]
) -> None:
    poison, healthy = bench.receive(trouble=effect), bench.receive()
    document = bench.sim.image_bytes(poison)
    for _ in range(2):
        got = await bench.caller.image(poison)
        assert got.status == 200
        assert check(got, poison, document)
    assert document_in(await bench.caller.image(healthy)) == bench.sim.image_bytes(healthy)
    assert (await bench.caller.list()).status == 200


async def test_a_cut_document_opens_with_no_reader(bench: Bench) -> None:
    fax = bench.receive(trouble="cut-document")
    pdf, tiff = [document_in(await bench.caller.image(fax, wanted)) for wanted in ("PDF", "TIFF")]
    with pytest.raises(pikepdf.PdfError):
        pikepdf.open(io.BytesIO(pdf), attempt_recovery=False)
    # Pillow warns of the cut directory before it gives up, and warnings are errors here.
    with pytest.raises((OSError, UserWarning)), Image.open(io.BytesIO(tiff)) as image:
        image.load()


async def test_a_fax_can_answer_500_for_ever(bench: Bench) -> None:
    fax = bench.receive(trouble="500")
    assert [(await bench.caller.image(fax)).status for _ in range(3)] == [500] * 3
    assert (await bench.caller.list()).ids == [fax.fax_id]


@pytest.mark.parametrize(
    ("effect", "check"),
    [
        ("bad-json", lambda body: not body.endswith(b"}")),
        ("bom", lambda body: body.startswith(b"\xef\xbb\xbf{")),
        ("trailing-garbage", lambda body: body.endswith(b"}<!-- end -->")),
    ],
)
async def test_json_can_be_spoiled(
    bench: Bench, effect: str, check: Callable[[bytes], bool]
) -> None:
    bench.sim.faults = Faults.of(f"{effect}=always")
    got = await bench.caller.list()
    assert got.status == 200
    assert check(got.body)


async def test_an_outage_begins_and_ends(bench: Bench) -> None:
    bench.sim.outage(True)
    assert (await bench.caller.list()).status == 503
    assert (await bench.caller.call("GET", "/health")).status == 503
    bench.sim.outage(True, "html-502")
    assert (await bench.caller.list()).status == 502
    bench.sim.outage(False)
    assert (await bench.caller.list()).status == 200


async def test_the_machine_can_go_away_and_come_back_at_its_port(bench: Bench) -> None:
    await bench.sim.close_port()
    with pytest.raises(aiohttp.ClientConnectionError):
        await bench.caller.list()
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", bench.sim.port))
    await bench.sim.open_port()
    assert (await bench.caller.list()).status == 200


# Controls for tests


async def test_requests_are_written_down_without_secrets(bench: Bench) -> None:
    fax = bench.receive()
    await bench.caller.image(fax, x_other="seen")
    token, image = bench.sim.requests
    assert isinstance(token, Seen)
    assert (token.call, token.app_id, token.status) == ("token", APP, 200)
    assert (image.call, image.app_id, image.user, image.fax_id, image.status, image.at) == (
        "image",
        APP,
        USER,
        fax.fax_id,
        200,
        NOON,
    )
    assert image.headers["x-other"] == "seen"
    assert image.target.endswith("?desired_format=PDF")
    written = repr([vars(seen) for seen in bench.sim.requests])
    assert bench.caller.token not in written
    assert BASIC not in written


async def test_a_gate_holds_answers_back_until_it_is_opened(bench: Bench) -> None:
    fax = bench.receive()
    with bench.sim.hold("image") as gate:
        waiting = asyncio.create_task(bench.caller.image(fax))
        await asyncio.wait_for(gate.reached(), 90)
        assert fax.image_downloaded
        assert bench.sim.in_flight == 1
        assert (await bench.caller.list()).status == 200
        assert not waiting.done()
        assert bench.sim.most_in_flight == 2
    assert (await waiting).status == 200
    assert (await bench.caller.image(fax)).status == 200
    assert bench.sim.in_flight == 0


async def test_a_gate_can_be_for_one_user(bench: Bench) -> None:
    bench.sim.add_user(APP, "user-2")
    with bench.sim.hold(user="user-2") as gate:
        assert (await bench.caller.list()).status == 200
        waiting = asyncio.create_task(bench.caller.list(user_id="user-2"))
        await asyncio.wait_for(gate.reached(), 90)
    assert (await waiting).status == 200


async def test_a_gate_for_a_call_that_does_not_exist_is_refused(bench: Bench) -> None:
    with pytest.raises(ValueError, match="no call 'fetch'"):
        bench.sim.hold("fetch")


async def test_faxes_arrive_by_themselves(bench: Bench) -> None:
    arrived: asyncio.Queue[Fax] = asyncio.Queue()
    task = asyncio.create_task(bench.sim.arrivals(60_000, arrived.put_nowait))
    fax = await asyncio.wait_for(arrived.get(), 90)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert fax in bench.sim.faxes()


async def test_the_same_seed_makes_the_same_faxes(start: Start) -> None:
    faxes = [(await start(seed=seed)).receive().fax_id for seed in (7, 7, 8)]
    assert faxes[0] == faxes[1] != faxes[2]


async def test_two_thousand_faxes_are_quick_and_all_different(bench: Bench) -> None:
    faxes = [bench.receive(pages=2) for _ in range(2000)]
    began = asyncio.get_running_loop().time()
    assert len({bench.sim.image_bytes(fax) for fax in faxes}) == 2000
    assert asyncio.get_running_loop().time() - began < 10


async def test_a_port_that_is_taken_is_an_error(bench: Bench) -> None:
    with pytest.raises(OSError, match="in use"):
        await Simulator(port=bench.sim.port).start()
