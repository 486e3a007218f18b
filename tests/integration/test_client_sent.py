"""The client's calls for sent faxes, sending, deleting and notices, against a scripted server."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from aiohttp import web

from poller import errors
from poller.client import Client
from poller.config.model import Limits, RetryConfig
from poller.efax.outgoing import AcceptedFax, OutgoingDocument, OutgoingFax
from poller.efax.requests import Call
from poller.stream import Direction
from tests.conftest import pass_time
from tests.integration.at_work import WITHIN_S
from tests.integration.test_client import BOUNDS, IMAGE, START, Bench, Server, Sink, reset, status
from tests.integration.test_client import serving as served

FAX = OutgoingFax("our-id", "13235551212", (OutgoingDocument("PDF", b"%PDF-"),))
ACCEPTED = [{"fax_id": "new", "destination_fax_number": "3235551212"}]


class WholeServer(Server):
    """Observes the calls that are not only about receiving."""

    @staticmethod
    def call(request: web.BaseRequest) -> str:
        last = request.path.rsplit("/", 1)[-1]
        named = {"sent": "sent-list", "notifications": "notifications", "faxes": "send"}
        if request.method in ("DELETE", "PATCH"):
            return request.method.lower()
        return named.get(last) or Server.call(request)

    def answer(self, call: str, request: web.BaseRequest) -> web.StreamResponse:
        given = super().answer(call, request)
        if given.status != 200:
            return given
        if call == "send":
            return web.json_response(ACCEPTED, status=201)
        if call == "sent-list":
            return web.json_response({"faxes": [{"fax_id": "s"}]})
        if call == "delete":
            return web.Response(status=204)
        if call == "notifications":
            return web.json_response([{"fax_id": "n"}])
        return given


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    server = WholeServer()
    async with served(server) as url:
        yield Bench(server, url)


@pytest.fixture
async def client(bench: Bench) -> AsyncIterator[Client]:
    async with bench.client() as client:
        yield client
    assert client.pacing.slots.under_way == 0
    assert client.pacing.slots.waiting == 0


# -- sending --------------------------------------------------------------------------------------


async def test_a_fax_is_sent_once_over_its_own_connection(bench: Bench, client: Client) -> None:
    bodies: list[Any] = []

    async def step(request: web.Request) -> web.StreamResponse:
        bodies.append(await request.json())
        return web.json_response(ACCEPTED, status=201)

    bench.server.scripts["send"] = [step]
    accepted = await client.send(bench.ann, FAX)
    assert accepted == (AcceptedFax("new", "3235551212"),)
    sent = bench.server.seen[-1]
    assert (sent.method, sent.raw_path) == ("POST", "/faxes")
    assert sent.headers["transaction-id"] == "our-id"
    assert sent.headers["Content-Type"] == "application/json"
    assert sent.transport is not bench.server.seen[0].transport
    (body,) = bodies
    assert base64.b64decode(body["documents"][0]["document_content"]) == b"%PDF-"
    assert bench.watcher.requests[-1] == (Call.SEND, 201)


async def test_a_large_fax_goes_out_whole_with_its_length(bench: Bench, client: Client) -> None:
    received: list[bytes] = []

    async def step(request: web.Request) -> web.StreamResponse:
        received.append(await request.content.read())
        assert int(request.headers["Content-Length"]) == len(received[0])
        return web.json_response(ACCEPTED)

    bench.server.scripts["send"] = [step]
    content = bytes(range(256)) * 20_000
    await client.send(bench.ann, replace(FAX, documents=(OutgoingDocument("TIFF", content),)))
    document = json.loads(received[0])["documents"][0]
    assert base64.b64decode(document["document_content"]) == content


@pytest.mark.parametrize(
    "body", ["<html>", "[]", "{}", '[{"fax_id": ""}]', '{"errors": [{}]}'], ids=str
)
async def test_a_good_status_without_a_fax_id_leaves_in_doubt(
    bench: Bench, client: Client, body: str
) -> None:
    bench.server.scripts["send"] = [status(201, body)]
    with pytest.raises(errors.SendInDoubt) as raised:
        await client.send(bench.ann, FAX)
    assert isinstance(raised.value.__cause__, errors.BadAnswer)
    assert raised.value.evidence.body == body.encode()
    assert bench.server.count("send") == 1


@pytest.mark.parametrize("code", [206, 500, 502, 503])
async def test_an_error_of_the_server_leaves_in_doubt(
    bench: Bench, client: Client, code: int
) -> None:
    bench.server.scripts["send"] = [status(code)]
    with pytest.raises(errors.SendInDoubt) as raised:
        await client.send(bench.ann, FAX)
    assert raised.value.status == code
    assert bench.server.count("send") == 1
    assert client.suspension.failures == 0


async def test_a_connection_that_is_reset_leaves_in_doubt(bench: Bench, client: Client) -> None:
    bench.server.scripts["send"] = [reset]
    with pytest.raises(errors.SendInDoubt, match="closed the connection"):
        await client.send(bench.ann, FAX)
    assert bench.server.count("send") == 1


async def test_no_http_client_that_repeats_posts_sends_a_fax_twice(
    bench: Bench, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiohttp.client.IDEMPOTENT_METHODS", {"POST"})
    bench.server.scripts["send"] = [reset]
    with pytest.raises(errors.SendInDoubt):
        await client.send(bench.ann, FAX)
    assert bench.server.count("send") == 1


async def test_an_answer_that_does_not_come_leaves_in_doubt(bench: Bench, client: Client) -> None:
    async def step(_: web.Request) -> web.StreamResponse:
        pass_time(bench.timeouts.total_s + 1)  # more time than other calls have
        await asyncio.sleep(0.05)
        pass_time(bench.timeouts.send_s)
        await asyncio.sleep(WITHIN_S)
        return web.Response()

    bench.server.scripts["send"] = [step]
    with pytest.raises(errors.SendInDoubt, match="did not answer the send call within 120 seconds"):
        await client.send(bench.ann, FAX)
    assert bench.server.count("send") == 1


async def test_what_efax_refuses_is_rejected_and_not_repeated(bench: Bench, client: Client) -> None:
    bench.server.scripts["send"] = [status(422)]
    with pytest.raises(errors.Rejected):
        await client.send(bench.ann, FAX)
    assert bench.server.count("send") == 1


async def test_a_fax_goes_again_where_it_surely_was_not_taken(bench: Bench, client: Client) -> None:
    turns: list[int] = []

    async def before() -> None:
        turns.append(bench.server.count("send"))

    bench.server.scripts["send"] = [status(401), status(429, Retry_After="1")]
    assert await client.send(bench.ann, FAX, before=before) == (AcceptedFax("new", "3235551212"),)
    assert turns == [0, 1, 2]
    assert bench.server.count("token") == 2


async def test_without_a_connection_a_fax_is_tried_again_and_then_surely_not_sent(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench.client() as client:
        await client.sign_in()
        await client.list_received(bench.ann, BOUNDS, 0)

        async def refused(*_: object) -> None:
            raise ConnectionRefusedError(111, "Connection refused")

        monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", refused)
        with pytest.raises(errors.Unreachable, match="refused the connection") as raised:
            await client.send(bench.ann, FAX)
    assert not raised.value.was_sent
    assert bench.watcher.requests.count((Call.SEND, None)) == 3
    assert bench.server.count("send") == 0


async def test_a_fax_that_is_withdrawn_at_its_turn_is_not_sent(
    bench: Bench, client: Client
) -> None:
    async def before() -> None:
        raise LookupError("withdrawn")

    with pytest.raises(LookupError):
        await client.send(bench.ann, FAX, before=before)
    assert bench.server.count("send") == 0


async def test_what_efax_would_not_take_is_refused_before_it_is_sent(
    bench: Bench, client: Client
) -> None:
    with pytest.raises(errors.Rejected, match="CSID"):
        await client.send(bench.ann, replace(FAX, csid="x" * 21))
    assert bench.server.calls == []


# -- sent faxes -----------------------------------------------------------------------------------


async def test_sent_faxes_are_listed_with_their_filters(bench: Bench, client: Client) -> None:
    page = await client.list_sent(
        bench.ann, BOUNDS, 7, transmission_status="IN PROGRESS", transaction_id="a/b"
    )
    assert [fax.fax_id for fax in page.faxes] == ["s"]
    sent = bench.server.seen[-1]
    assert sent.raw_path == (
        "/faxes/sent?min_completed_timestamp=2024-05-21T04%3A00%3A00.000%2B0000"
        "&max_completed_timestamp=2024-05-21T05%3A00%3A00.000%2B0000"
        "&transmission_status=IN%20PROGRESS&transaction_id=a%2Fb"
    )
    assert (sent.headers["pagination-offset"], sent.headers["user-id"]) == ("7", "id-ann")
    await client.list_sent(bench.ann, None, 0)
    assert bench.server.seen[-1].raw_path == "/faxes/sent"


@pytest.mark.parametrize(
    ("code", "kind"),
    [(400, errors.WindowRefused), (403, errors.UserRefused), (404, errors.UserRefused)],
)
async def test_a_refused_sent_list_says_nothing_of_the_account(
    bench: Bench, client: Client, code: int, kind: type[errors.ApiError]
) -> None:
    bench.server.scripts["sent-list"] = [status(code)] * 9
    for user in (bench.ann, bench.bob) * 4:
        with pytest.raises(kind):
            await client.list_sent(user, BOUNDS, 0)
    assert client.suspension.until is None
    await client.list_received(bench.ann, BOUNDS, 0)


async def test_a_server_that_lists_no_sent_faxes_does_not_suspend_the_account(
    bench: Bench, client: Client
) -> None:
    bench.server.scripts["sent-list"] = [status(500)] * 99
    bench.server.scripts["image"] = [status(500)] * 99
    bench.server.scripts["delete"] = [status(500)] * 99
    for user in (bench.ann, bench.bob) * 3:
        with pytest.raises(errors.Unreachable):
            await client.list_sent(user, BOUNDS, 0)
        with pytest.raises(errors.Unreachable):
            await client.fetch_image(user, "s", Sink(), direction=Direction.SENT)
        with pytest.raises(errors.Unreachable):
            await client.delete(user, "a")
    assert client.suspension.failures == 0


@pytest.mark.parametrize("connects", [True, False])
async def test_calls_that_do_not_receive_never_suspend_the_account(
    bench: Bench, client: Client, monkeypatch: pytest.MonkeyPatch, connects: bool
) -> None:
    await client.sign_in()
    if not connects:

        async def refused(*_: object) -> None:
            raise ConnectionRefusedError(111, "Connection refused")

        monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", refused)
    every = ("sent-list", "image", "get", "delete", "patch", "send", "notifications")
    bench.server.scripts |= {call: [reset] * 99 for call in every}
    for user in (bench.ann, bench.bob) * 2:
        for asked in (
            client.list_sent(user, BOUNDS, 0),
            client.fetch_image(user, "s", Sink(), direction=Direction.SENT),
            client.metadata(user, "s", direction=Direction.SENT, waited_for=True),
            client.transmission_details(user, "s"),
            client.send(user, FAX),
            client.delete(user, "a"),
            client.mark(user, "a", downloaded=False),
            client.notifications(user, None),
        ):
            with pytest.raises((errors.Unreachable, errors.SendInDoubt)):
                await asked
    assert client.suspension.failures == 0
    with pytest.raises(errors.Unreachable):  # a received one does
        await client.fetch_image(bench.ann, "r", Sink())
    assert client.suspension.failures > 0


async def test_a_suspended_account_lists_no_sent_faxes_and_probes_with_none(
    bench: Bench, client: Client
) -> None:
    client.suspension.sign_in_refused(bench.clock.now(), 0.5, "refused")
    bench.clock.advance(600)
    with pytest.raises(errors.AccountSuspended):
        await client.list_sent(bench.ann, BOUNDS, 0)
    await client.list_received(bench.ann, BOUNDS, 0)


async def test_a_sent_image_waits_behind_received_ones(bench: Bench, client: Client) -> None:
    await client.sign_in()
    client.set_limits(Limits(requests_per_second=1, burst=1, in_flight=4))
    order: list[str] = []

    async def fetch(name: str, direction: Direction) -> None:
        async def before() -> None:
            order.append(name)

        await client.fetch_image(bench.ann, name, Sink(), before=before, direction=direction)

    bench.server.scripts["image"] = [image] * 4
    first = (("sent 1", Direction.SENT), ("sent 2", Direction.SENT))
    later = (("received 1", Direction.RECEIVED), ("received 2", Direction.RECEIVED))
    async with asyncio.TaskGroup() as group:
        for name, direction in (*first, *later):
            group.create_task(fetch(name, direction))
    assert order[0] == "sent 1"  # nobody else was waiting yet
    assert order[1:] == ["received 1", "received 2", "sent 2"]


async def image(request: web.Request) -> web.StreamResponse:
    fax_id = request.path.split("/")[2]
    text = base64.b64encode(IMAGE).decode()
    return web.json_response({"fax_id": fax_id, "file_name": "a.pdf", "image": text})


async def test_calls_about_a_sent_fax_wait_behind_received_ones_unless_somebody_waits(
    bench: Bench, client: Client
) -> None:
    await client.sign_in()
    client.set_limits(Limits(requests_per_second=1, burst=1, in_flight=1))
    ann, bob = bench.ann, bench.bob
    async with asyncio.TaskGroup() as group:
        group.create_task(client.list_received(bob, BOUNDS, 0))
        for waited_for in (False, True):
            group.create_task(client.list_sent(ann, None, 0, waited_for=waited_for))
            group.create_task(client.transmission_details(ann, "b", waited_for=waited_for))
            group.create_task(
                client.metadata(ann, "a", direction=Direction.SENT, waited_for=waited_for)
            )
        group.create_task(client.list_received(ann, BOUNDS, 0))
    paths = [seen.path.rsplit("/", 1)[-1] for seen in bench.server.seen[1:]]
    about_sent = ["sent", "transmission-details", "metadata"]
    assert paths == ["received", *about_sent, "received", *about_sent]


async def test_metadata_are_those_of_the_fax_that_was_asked_for(
    bench: Bench, client: Client
) -> None:
    assert await client.metadata(bench.ann, "a") == {"fax_id": "a"}
    assert bench.server.seen[-1].raw_path == "/faxes/a/metadata"
    bench.server.scripts["get"] = [status(200, '{"pages": 2}')]
    assert await client.metadata(bench.ann, "b", direction=Direction.SENT) == {"pages": 2}
    bench.server.scripts["get"] = [status(200, '{"fax_id": "b"}')] * 3
    with pytest.raises(errors.BadAnswer, match="another fax"):
        await client.metadata(bench.ann, "a")


async def test_details_are_found_under_either_name(bench: Bench, client: Client) -> None:
    await client.transmission_details(bench.ann, "a")
    assert bench.server.seen[-1].raw_path == "/faxes/a/transmission-details"
    bench.server.scripts["get"] = [status(404), status(200, '{"attempts": []}')]
    assert await client.transmission_details(bench.ann, "a") == {"attempts": []}
    assert bench.server.seen[-1].raw_path == "/faxes/a/transmission-detail"
    bench.server.scripts["get"] = [status(403)]
    with pytest.raises(errors.Rejected):
        await client.transmission_details(bench.ann, "a")


# -- deleting, marking, notices -------------------------------------------------------------------


@pytest.mark.parametrize("code", [200, 204, 404, 410])
async def test_a_fax_that_is_gone_is_deleted(bench: Bench, client: Client, code: int) -> None:
    bench.server.scripts["delete"] = [status(code)]
    await client.delete(bench.ann, "a/b")
    sent = bench.server.seen[-1]
    assert (sent.method, sent.raw_path) == ("DELETE", "/faxes/a%2Fb")
    assert bench.server.count("delete") == 1


@pytest.mark.parametrize("body", ["<html>", '"done"', "[]", '{"errors": [{}]}'])
async def test_a_web_page_instead_of_an_answer_neither_deletes_nor_marks(
    bench: Bench, client: Client, body: str
) -> None:
    bench.server.scripts |= {call: [status(200, body)] * 3 for call in ("delete", "patch")}
    with pytest.raises(errors.BadAnswer) as raised:
        await client.delete(bench.ann, "a")
    assert raised.value.evidence.body == body.encode()
    with pytest.raises(errors.BadAnswer):
        await client.mark(bench.ann, "a", downloaded=False)
    await client.delete(bench.ann, "a")
    bench.server.scripts["delete"] = [status(200, '{"fax_id": "a"}')]
    await client.delete(bench.ann, "a")


@pytest.mark.parametrize("code", [403, 409])
async def test_a_deletion_can_be_refused(bench: Bench, client: Client, code: int) -> None:
    bench.server.scripts["delete"] = [status(code)]
    with pytest.raises(errors.Rejected) as raised:
        await client.delete(bench.ann, "a")
    assert raised.value.status == code
    assert bench.server.count("delete") == 1


async def test_a_deletion_or_mark_can_be_withdrawn_before_each_try(
    bench: Bench, client: Client
) -> None:
    tries: list[str] = []

    async def before() -> None:
        tries.append("try")
        if len(tries) % 2 == 0:
            raise LookupError("withdrawn")

    bench.server.scripts |= {"delete": [status(503)], "patch": [status(503)]}
    with pytest.raises(LookupError):
        await client.delete(bench.ann, "a", before=before)
    with pytest.raises(LookupError):
        await client.mark(bench.ann, "a", downloaded=False, before=before)
    assert (bench.server.count("delete"), bench.server.count("patch")) == (1, 1)


async def test_a_deletion_that_was_cut_off_goes_again_only_after_another_look(
    bench: Bench, client: Client
) -> None:
    tries: list[int] = []

    async def before() -> None:
        tries.append(bench.server.count("delete"))

    bench.server.scripts["delete"] = [reset]
    await client.delete(bench.ann, "a", before=before)
    assert tries == [0, 1]


@pytest.mark.parametrize("downloaded", [True, False])
async def test_the_mark_is_set(bench: Bench, client: Client, downloaded: bool) -> None:
    bodies: list[Any] = []

    async def step(request: web.Request) -> web.StreamResponse:
        bodies.append(await request.json())
        return web.json_response({"fax_id": "a"})

    bench.server.scripts["patch"] = [step]
    await client.mark(bench.ann, "a", downloaded=downloaded)
    assert bodies == [{"image_downloaded": downloaded}]
    assert bench.server.seen[-1].raw_path == "/faxes/a/metadata"


def notices(*ids: int) -> str:
    return json.dumps([{"fax_id": f"n{one}"} for one in ids])


async def test_notices_are_read_page_by_page(bench: Bench, client: Client) -> None:
    pages = [notices(*range(100)), notices(*range(99, 199)), notices(5, 200)]
    bench.server.scripts["notifications"] = [status(200, page) for page in pages]
    found = await client.notifications(bench.ann, START)
    assert {notice.fax_id for notice in found} == {f"n{one}" for one in (*range(199), 200)}
    asked = [seen.headers["pagination-offset"] for seen in bench.server.seen[1:]]
    assert asked == ["0", "100", "200"]


async def test_notices_that_know_no_paging_end_for_all_that(bench: Bench, client: Client) -> None:
    bench.server.scripts["notifications"] = [status(200, notices(*range(300)))] * 9
    assert len(await client.notifications(bench.ann, None)) == 300
    assert bench.server.count("notifications") == 2


async def test_a_filter_that_notices_do_not_know_is_left_out(bench: Bench, client: Client) -> None:
    bench.server.scripts["notifications"] = [status(400)]
    (notice,) = await client.notifications(bench.ann, START - timedelta(hours=1))
    assert notice.fax_id == "n"
    first, second = (seen.raw_path for seen in bench.server.seen[1:])
    assert first.startswith("/notifications?min_completed_timestamp=2024-05-21T03")
    assert second == "/notifications"
    for code in (400, 404):
        bench.server.scripts["notifications"] = [status(code)]
        with pytest.raises(errors.Rejected):
            await client.notifications(bench.ann, None)


async def test_attempts_are_counted_for_the_new_calls_too(bench: Bench) -> None:
    bench.retry = RetryConfig(attempts=2)
    bench.server.scripts["sent-list"] = [status(500)] * 9
    async with bench.client() as client:
        with pytest.raises(errors.Unreachable):
            await client.list_sent(bench.ann, BOUNDS, 0)
    assert bench.server.count("sent-list") == 2
