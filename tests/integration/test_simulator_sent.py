"""The simulator's sent faxes, sending, notices and web-hook, over real HTTP."""

import base64
import contextlib
import hashlib
import hmac
import io
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pikepdf
import pytest
from aiohttp import web

from poller.efax.transmission import final_status
from poller.simulator import Faults, Fax, SentFax, Switches
from poller.simulator.drawing import template
from tests.efax import Simulator
from tests.integration.test_simulator import APP, KEY, NOON, Caller, Clock, Got, document_in, quoted

USER, OTHER = "user-1", "user-2"
NUMBER, OTHERS_NUMBER = "18005550101", "18005550102"
COURSE = ((0.0, "NEW"), (5.0, "INPROGRESS"), (60.0, "ERROR"))
JSON = "application/json"


@dataclass
class Bench:
    sim: Simulator
    caller: Caller
    clock: Clock

    def switch(self, **changes: Any) -> None:
        self.sim.switches = replace(self.sim.switches, **changes)

    def sent(self, **fields: Any) -> SentFax:
        return self.sim.sent(APP, USER, **({"distinct": False} | fields))

    async def get(self, target: str, **headers: str) -> Got:
        return await self.caller.as_user("GET", target, **headers)

    async def listed(self, query: str = "") -> list[str]:
        return (await self.get("/faxes/sent" + query)).ids

    async def record(self) -> dict[str, Any]:
        (record,) = (await self.get("/faxes/sent")).json["faxes"]
        return dict(record)

    async def send(self, to: str = OTHERS_NUMBER, *documents: bytes, **changes: Any) -> Got:
        given = documents or (template(2)["pdf"],)
        body = {
            "destinations": [{"fax_number": to}],
            "documents": [
                {
                    "document_type": "PDF" if one.startswith(b"%PDF") else "TIFF",
                    "document_content": base64.b64encode(one).decode(),
                }
                for one in given
            ],
            "fax_options": {"include_cover_page": False, "custom_CSID": "POLLER 1"},
            "client_data": {"client_reference_id": "our-id"},
        }
        data = json.dumps(body | changes).encode()
        return await self.caller.as_user(
            "POST", "/faxes", data=data, content_type=JSON, transaction_id="our-id"
        )


Start = Callable[..., Any]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    async with contextlib.AsyncExitStack() as stack:

        async def begin(**settings: Any) -> Bench:
            clock = Clock()
            sim = Simulator(now=clock.now, monotonic=clock.monotonic, **settings)
            await stack.enter_async_context(sim)
            caller = Caller(sim)
            stack.push_async_callback(caller.close)
            sim.add_app(APP, KEY)
            sim.add_user(APP, USER, number=NUMBER)
            sim.add_user(APP, OTHER, number=OTHERS_NUMBER)
            await caller.sign_in()
            return Bench(sim, caller, clock)

        yield begin


@pytest.fixture
async def bench(start: Start) -> Bench:
    begun: Bench = await start()
    return begun


# The list of sent faxes


async def test_a_sent_fax_is_listed_with_its_transmission_and_apart_from_received_ones(
    bench: Bench,
) -> None:
    received = bench.sim.receive(APP, USER, distinct=False)
    fax = bench.sent(transaction_id="t", reference="r", course=((0.0, "ERROR"),))
    assert (await bench.caller.list()).ids == [received.fax_id]
    record = await bench.record()
    assert record["fax_id"] == fax.fax_id
    assert record["originating_fax_number"] == NUMBER
    assert record["transmission_data"] == {
        "transmission_status": "ERROR",
        "error_code": "E42",
        "error_message": "",
        "billable_retries": None,
    }
    assert record["client_tracking_data"]["client_reference_id"] == "r"
    assert record["transaction_id"] == "t"


async def test_a_sent_fax_goes_its_course(bench: Bench) -> None:
    bench.sent(course=COURSE)
    states = []
    for seconds in (0, 4, 1, 54, 1):
        bench.clock.move(seconds)
        states.append(final_status(await bench.record()).status)
    assert states == ["NEW", "NEW", "INPROGRESS", "INPROGRESS", "ERROR"]


async def test_a_test_may_end_the_course_at_any_time(bench: Bench) -> None:
    fax = bench.sent(course=COURSE)
    bench.clock.move(3)
    fax.ends(bench.clock.now(), "CANCELED")
    bench.clock.move(100)
    record = await bench.record()
    assert final_status(record).status == "CANCELED"
    assert record["completed_timestamp"] == "2024-05-21T12:00:03.000+0000"


async def test_under_way_there_may_be_a_completed_timestamp_or_none(bench: Bench) -> None:
    bench.sent(course=COURSE)
    bench.clock.move(10)
    assert "completed_timestamp" not in await bench.record()
    bench.switch(sent_completed_while_under_way="created")
    assert (await bench.record())["completed_timestamp"] == "2024-05-21T12:00:00.000+0000"
    bench.clock.move(50)
    assert (await bench.record())["completed_timestamp"] == "2024-05-21T12:01:00.000+0000"


async def test_faxes_under_way_may_be_left_out_of_lists(bench: Bench) -> None:
    fax = bench.sent(course=COURSE)
    bench.switch(sent_under_way_listed="no")
    assert await bench.listed() == []
    bench.clock.move(60)
    assert await bench.listed() == [fax.fax_id]


@pytest.mark.parametrize(("by", "at"), [("completed", 60), ("created", 0)])
async def test_the_window_goes_by_completion_or_by_creation(bench: Bench, by: str, at: int) -> None:
    fax = bench.sent(course=COURSE)
    bench.switch(sent_filter_by=by)
    bench.clock.move(100)
    for seconds in (0, 60):
        around = NOON + timedelta(seconds=seconds - 1), NOON + timedelta(seconds=seconds + 1)
        found = await bench.listed(
            f"?min_completed_timestamp={quoted(around[0])}"
            f"&max_completed_timestamp={quoted(around[1])}"
        )
        assert found == ([fax.fax_id] if seconds == at else [])


async def test_a_status_may_be_demanded_or_be_complete_by_default(bench: Bench) -> None:
    failed = bench.sent(course=((0.0, "ERROR"),))
    whole = bench.sent()
    bench.switch(sent_status_demanded="yes")
    assert (await bench.get("/faxes/sent")).status == 400
    assert await bench.listed("?transmission_status=ERROR") == [failed.fax_id]
    bench.switch(sent_status_demanded="defaults-to-complete")
    assert await bench.listed() == [whole.fax_id]
    assert await bench.listed("?transmission_status=ERROR") == [failed.fax_id]
    bench.switch(sent_status_demanded="no")
    assert await bench.listed() == [whole.fax_id, failed.fax_id]


async def test_states_have_two_spellings_and_either_may_be_asked_for(bench: Bench) -> None:
    whole = bench.sent()
    bench.switch(sent_status_words="COMPLETED")
    assert final_status(await bench.record()).status == "COMPLETED"
    for word in ("COMPLETE", "COMPLETED"):
        assert await bench.listed(f"?transmission_status={word}") == [whole.fax_id]
    bench.sent(course=((0.0, "INPROGRESS"),))
    (_, under_way) = sorted(
        final_status(one).status or "" for one in (await bench.get("/faxes/sent")).json["faxes"]
    )
    assert under_way == "IN PROGRESS"


@pytest.mark.parametrize("name", ["transmission_data", "client_tracking_data"])
async def test_nested_fields_may_be_arrays_or_missing(bench: Bench, name: str) -> None:
    fax = bench.sent(reference="r")
    (_, _, missing) = Switches.table()[name]
    assert isinstance((await bench.record())[name], dict)
    bench.switch(**{name: "array"})
    assert isinstance((await bench.record())[name], list)
    bench.switch(**{name: missing})
    assert name not in await bench.record()
    metadata = (await bench.get(f"/faxes/{fax.fax_id}/metadata")).json
    assert (name in metadata) is (name == "transmission_data")


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("error_code=E42", 1),
        ("error_code=SFAX", 1),
        ("fax_status=STORED", 1),
        ("fax_status=NOT_STORED", 1),
        ("transaction_id=t", 1),
        ("transaction_id=u", 0),
        ("destination_fax_number=13235551212", 2),
        ("min_pages=2", 0),
    ],
)
async def test_filters_narrow_a_sent_list(bench: Bench, query: str, count: int) -> None:
    bench.sent(transaction_id="t")
    bench.sent(course=((0.0, "ERROR"),), has_image=False)
    assert len(await bench.listed("?" + query)) == count


async def test_the_filter_by_transaction_may_find_nothing_or_be_ignored(bench: Bench) -> None:
    fax = bench.sent(transaction_id="t")
    bench.switch(send_transaction_id_in_list="no")
    assert await bench.listed("?transaction_id=t") == []
    bench.switch(send_transaction_id_in_list="ignored")
    assert await bench.listed("?transaction_id=other") == [fax.fax_id]
    assert "transaction_id" not in await bench.record()


@pytest.mark.parametrize(("bound", "count"), [("inclusive", 1), ("exclusive", 0)])
async def test_bounds_and_order_of_a_sent_list_are_those_of_a_received_one(
    bench: Bench, bound: str, count: int
) -> None:
    bench.switch(lower_bound=bound, order="oldest")
    faxes = [bench.sent(created=NOON - timedelta(seconds=one)) for one in range(2)]
    assert await bench.listed() == [fax.fax_id for fax in reversed(faxes)]
    assert len(await bench.listed(f"?min_completed_timestamp={quoted(NOON)}")) == count


async def test_a_sent_list_has_pages_and_the_newest_first(bench: Bench) -> None:
    faxes = [bench.sent(created=NOON - timedelta(seconds=one)) for one in range(5)]
    bench.switch(page_cap=3)
    got = await bench.get("/faxes/sent", pagination_offset="1", pagination_limit="100")
    assert got.ids == [fax.fax_id for fax in faxes[1:4]]
    assert (got.json["first_record"], got.json["last_record"]) == (2, 4)


async def test_a_sent_fax_has_metadata_an_image_or_none_and_can_be_deleted(bench: Bench) -> None:
    fax = bench.sent()
    metadata = (await bench.get(f"/faxes/{fax.fax_id}/metadata")).json
    assert (metadata["direction"], metadata["fax_id"]) == ("OUTBOUND", fax.fax_id)
    assert document_in(await bench.caller.image(fax)).startswith(b"%PDF")
    fax.has_image = False
    assert (await bench.caller.image(fax)).status == 404
    assert (await bench.caller.as_user("DELETE", f"/faxes/{fax.fax_id}")).status == 204
    assert await bench.listed() == []


@pytest.mark.parametrize(
    ("switch", "good", "bad"), [("s", "details", "detail"), ("no-s", "detail", "details")]
)
async def test_the_details_have_one_of_two_names(
    bench: Bench, switch: str, good: str, bad: str
) -> None:
    fax, received = bench.sent(), bench.sim.receive(APP, USER, distinct=False)
    bench.switch(details_path=switch)
    found = (await bench.get(f"/faxes/{fax.fax_id}/transmission-{good}")).json
    assert final_status(found).is_complete
    assert [one["attempt_number"] for one in found["attempts"]] == [1]
    assert (await bench.get(f"/faxes/{fax.fax_id}/transmission-{bad}")).status == 404
    assert (await bench.get(f"/faxes/{received.fax_id}/transmission-{good}")).status == 404


@pytest.mark.parametrize("status", [200, 204])
async def test_a_deletion_has_one_of_two_statuses(bench: Bench, status: int) -> None:
    fax = bench.sim.receive(APP, USER, distinct=False)
    bench.switch(delete_status=str(status))
    assert (await bench.caller.as_user("DELETE", f"/faxes/{fax.fax_id}")).status == status
    assert fax.deleted


# Sending


async def test_a_fax_to_a_users_number_arrives_there_when_it_is_transmitted(
    bench: Bench,
) -> None:
    got = await bench.send()
    (accepted,) = got.json
    assert (got.status, accepted["destination_fax_number"]) == (201, OTHERS_NUMBER)
    assert final_status(await bench.record()).status == "NEW"
    assert (await bench.caller.list(user_id=OTHER)).ids == []
    bench.clock.move(2)
    record = await bench.record()
    assert record["fax_id"] == accepted["fax_id"]
    assert final_status(record).is_complete
    (arrived,) = (await bench.caller.list(user_id=OTHER)).json["faxes"]
    assert arrived["originating_fax_number"] == NUMBER
    assert arrived["originating_fax_tsid"] == "POLLER 1"
    assert arrived["pages"] == 2
    target = f"/faxes/{arrived['fax_id']}/image?desired_format=PDF"
    document = document_in(await bench.caller.as_user("GET", target, user_id=OTHER))
    with pikepdf.open(io.BytesIO(document)) as pdf:
        assert len(pdf.pages) == 2


async def test_several_documents_of_both_kinds_are_one_fax(bench: Bench) -> None:
    await bench.send(NUMBER, template(1)["tiff"], template(2)["pdf"])
    bench.clock.move(2)
    (arrived,) = (await bench.caller.list()).json["faxes"]
    assert arrived["pages"] == 3


async def test_a_tiff_that_is_sent_arrives_in_either_format(bench: Bench) -> None:
    await bench.send(NUMBER, template(2)["tiff"])
    bench.clock.move(2)
    (fax,) = bench.sim.faxes()
    assert fax.pages == 2
    assert document_in(await bench.caller.image(fax, "TIFF")).startswith(b"II")
    assert document_in(await bench.caller.image(fax)).startswith(b"%PDF")


async def test_the_carrier_may_put_its_own_text_in_place_of_ours(bench: Bench) -> None:
    bench.switch(send_csid="carrier")
    await bench.send(NUMBER)
    (fax,) = bench.sim.faxes()
    assert "POLLER" not in fax.tsid


@pytest.mark.parametrize("ends", ["ERROR", "CANCELED"])
async def test_what_fails_arrives_nowhere(bench: Bench, ends: str) -> None:
    bench.switch(send_ends=ends, send_takes_s=60.0)
    await bench.send()
    bench.clock.move(60)
    assert final_status(await bench.record()).status == ends
    assert bench.sim.faxes() == []


async def test_the_answer_may_spell_the_number_otherwise_or_be_a_lone_object(bench: Bench) -> None:
    bench.switch(send_number="without-1", send_answer="object")
    assert (await bench.send("13235551212")).json["destination_fax_number"] == "3235551212"


async def test_a_fax_goes_to_fifty_numbers_at_most(bench: Bench) -> None:
    numbers = [{"fax_number": f"1{3_235_550_000 + one}"} for one in range(51)]
    assert len((await bench.send(destinations=numbers)).json) == 50
    assert len(await bench.listed()) == 50


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"destinations": []}, id="no number"),
        pytest.param({"destinations": [{"fax_number": "3235551212"}]}, id="without a 1"),
        pytest.param({"destinations": ["13235551212"]}, id="no object"),
        pytest.param({"documents": []}, id="no document"),
        pytest.param({"documents": [{"document_type": "DOC"}]}, id="unknown type"),
        pytest.param(
            {"documents": [{"document_type": "PDF", "document_content": "?"}]}, id="no base64"
        ),
        pytest.param(
            {"documents": [{"document_type": "PDF", "document_content": "AAAA"}]}, id="no PDF"
        ),
        pytest.param({"fax_options": {"custom_CSID": "x" * 21}}, id="long CSID"),
    ],
)
async def test_malformed_requests_send_nothing(bench: Bench, changes: dict[str, Any]) -> None:
    assert (await bench.send(**changes)).status == 400
    assert await bench.listed() == []


@pytest.mark.parametrize(("data", "kind"), [(b"[]", JSON), (b"{", JSON), (b"{}", "text/plain")])
async def test_only_a_json_object_is_sent(bench: Bench, data: bytes, kind: str) -> None:
    got = await bench.caller.as_user("POST", "/faxes", data=data, content_type=kind)
    assert got.status == 400


@pytest.mark.parametrize(
    ("fault", "taken"), [("done-500", 1), ("503", 0), ("429+1", 0), ("bad-json", 1)]
)
async def test_an_answer_can_be_lost_before_or_after_a_fax_was_taken(
    bench: Bench, fault: str, taken: int
) -> None:
    bench.sim.faults = Faults(script=(fault,), script_calls=frozenset({"send"}))
    await bench.send()
    assert len(await bench.listed()) == taken


async def test_the_connection_can_be_cut_after_a_fax_was_taken(bench: Bench) -> None:
    bench.sim.faults = Faults.of("reset@send=first:1")
    with pytest.raises(Exception, match=r"(?i)disconnect|reset"):
        await bench.send()
    assert len(await bench.listed()) == 1


# Notices


async def test_notices_are_of_what_was_received_and_of_what_was_sent_and_has_ended(
    bench: Bench,
) -> None:
    received = bench.sim.receive(APP, USER, distinct=False)
    bench.sim.receive(APP, OTHER, distinct=False)
    sent = bench.sent(course=COURSE)
    (notice,) = (await bench.get("/notifications")).json
    assert notice["fax_id"] == received.fax_id
    assert (notice["user_id"], notice["fax_direction"]) == (USER, "INBOUND")
    bench.clock.move(60)
    found = (await bench.get("/notifications?fax_direction=outbound")).json
    assert [one["fax_id"] for one in found] == [sent.fax_id]
    after = quoted(NOON + timedelta(seconds=1))
    found = (await bench.get(f"/notifications?min_completed_timestamp={after}")).json
    assert [one["fax_id"] for one in found] == [sent.fax_id]
    bench.switch(notifications_of="account")
    assert len((await bench.get("/notifications")).json) == 3


@pytest.mark.parametrize(
    ("how", "status", "count"),
    [("paging-free", 200, 5), ("paged", 200, 2), ("empty", 200, 0), ("404", 404, None)],
)
async def test_notices_come_as_the_switch_says(
    bench: Bench, how: str, status: int, count: int | None
) -> None:
    for _ in range(5):
        bench.sim.receive(APP, USER, distinct=False)
    bench.switch(notifications=how)
    got = await bench.get("/notifications", pagination_limit="4", pagination_offset="3")
    assert got.status == status
    assert count is None or len(got.json) == count


async def test_notices_may_know_no_filter(bench: Bench) -> None:
    bench.switch(notifications="no-filter")
    assert (await bench.get("/notifications?sent_status=success")).status == 400
    assert (await bench.get("/notifications")).status == 200


# The web-hook


class Listener:
    """A customer's server: it writes down what is posted."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.bodies.append(await request.content.read())
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        return web.json_response({"status": "SUCCESS"})

    @property
    def notices(self) -> list[Any]:
        return [json.loads(body) for body in self.bodies]


@pytest.fixture
async def listener(bench: Bench) -> AsyncIterator[Listener]:
    listener = Listener()
    runner = web.ServerRunner(web.Server(listener.handle), shutdown_timeout=0.01)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    bench.sim.hook(APP, f"http://127.0.0.1:{runner.addresses[0][1]}/efax", "secret")
    yield listener
    await runner.cleanup()


def received(bench: Bench) -> Fax:
    return bench.sim.receive(APP, USER, distinct=False)


async def test_a_notice_is_posted_and_signed(bench: Bench, listener: Listener) -> None:
    fax = received(bench)
    assert await bench.sim.notifier.post_due() == 1
    assert await bench.sim.notifier.post_due() == 0
    (notice,), (body,) = listener.notices, listener.bodies
    assert (notice["user_id"], notice["fax_id"]) == (USER, fax.fax_id)
    assert notice["destination_fax_number"] == NUMBER
    signed = hmac.new(b"secret", body, hashlib.sha256).hexdigest()
    assert listener.headers[0]["x-hmac-signature"] == signed
    assert [(one.fax, one.status) for one in bench.sim.notifier.posted] == [(fax, 200)]


async def test_each_state_of_a_sent_fax_is_told(bench: Bench, listener: Listener) -> None:
    bench.sent(course=COURSE)
    for seconds in (0, 5, 55):
        bench.clock.move(seconds)
        await bench.sim.notifier.post_due()
    states = [notice["transmission_status"] for notice in listener.notices]
    assert states == ["NEW", "INPROGRESS", "ERROR"]


@pytest.mark.parametrize("how", ["missing", "wrong", "prefixed"])
async def test_a_signature_may_be_missing_wrong_or_prefixed(
    bench: Bench, listener: Listener, how: str
) -> None:
    bench.switch(hook_signature=how)
    received(bench)
    await bench.sim.notifier.post_due()
    given = listener.headers[0].get("x-hmac-signature")
    right = hmac.new(b"secret", listener.bodies[0], hashlib.sha256).hexdigest()
    assert (given is None) is (how == "missing")
    assert given != right
    assert (given == f"sha256={right}") is (how == "prefixed")


@pytest.mark.parametrize("spelling", ["snake", "camel", "nested", "form"])
@pytest.mark.parametrize(
    ("names", "told"),
    [
        ("all", (True, True, True)),
        ("user", (True, False, False)),
        ("fax", (False, True, False)),
        ("number", (False, False, True)),
        ("nothing", (False, False, False)),
    ],
)
async def test_a_notice_names_a_fax_by_what_the_switches_say(
    bench: Bench, listener: Listener, spelling: str, names: str, told: tuple[bool, ...]
) -> None:
    bench.switch(hook_fields=spelling, hook_names=names)
    fax = received(bench)
    await bench.sim.notifier.post_due()
    text = listener.bodies[0].decode()
    assert tuple(one in text for one in (USER, fax.fax_id, NUMBER)) == told
    assert listener.headers[0]["content-type"].startswith("application/")


async def test_notices_may_be_late_repeated_or_lost(bench: Bench, listener: Listener) -> None:
    bench.switch(hook_delay_s=60.0, hook_repeats=2, hook_lost=2)
    first, second = received(bench), received(bench)
    assert await bench.sim.notifier.post_due() == 0
    bench.clock.move(60)
    assert await bench.sim.notifier.post_due() == 3
    assert {notice["fax_id"] for notice in listener.notices} == {first.fax_id}
    assert bench.sim.notifier.lost == [second]


async def test_a_listener_that_is_gone_disturbs_nobody(bench: Bench) -> None:
    bench.sim.hook(APP, "http://127.0.0.1:9/", "secret")
    received(bench)
    await bench.sim.notifier.post_due()
    assert [one.status for one in bench.sim.notifier.posted] == [None]


async def test_without_a_web_hook_nothing_is_kept_for_it(bench: Bench) -> None:
    received(bench)
    assert bench.sim.notices == []


@pytest.mark.parametrize("url", ["https://example.com/x", "ftp://127.0.0.1/", "nonsense"])
async def test_notices_go_to_this_machine_only(bench: Bench, url: str) -> None:
    with pytest.raises(ValueError, match="not an http address on this machine"):
        bench.sim.hook(APP, url, "secret")
