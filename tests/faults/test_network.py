"""Rows 32 to 40 and 50 to 52 of the fault matrix: the network, through an independent proxy."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from poller.client import Timeouts
from poller.config.model import Limits
from poller.ledger import State
from poller.simulator import Switches
from tests.conftest import APP, Event, QuickClock
from tests.efax import Simulator
from tests.faults.network import ATTEMPTS, IMPATIENT, NAMES, Bench, SteppingClock, bench
from tests.faults.proxy import Arrival, End, Harm, proxied
from tests.integration.at_work import in_background, said, until

A, B, C = NAMES
REQUEST_OF_A = b"user-id: user-a\r\n"
IMAGE_OF_A = b"/image?desired_format=PDF HTTP/1.1\r\n"
CLOSED = "127.0.0.1 closed the connection during the"
BROKE_OFF = "127.0.0.1 broke off its answer to the"


@pytest.fixture
async def at_work(tmp_path: Path, events: list[Event]) -> AsyncIterator[Bench]:
    async with bench(tmp_path) as opened:
        yield opened


@pytest.fixture
async def impatient(tmp_path: Path, events: list[Event]) -> AsyncIterator[Bench]:
    """The same with short deadlines, for answers that never come."""
    async with bench(tmp_path, timeouts=IMPATIENT) as opened:
        yield opened


def image_of(fax_id: str) -> bytes:
    return b"GET /faxes/" + fax_id.encode() + IMAGE_OF_A


async def assert_only_this_image_suffers(work: Bench, harm: Harm, *sentences: str) -> None:
    """An attempt at user-a's fax fails in one of these ways; all others' are stored; then it heals."""
    mine, theirs, others = work.one_each()
    await work.cycle()  # sign-ins and sweeps; there are none below
    again = [work.receive(user) for user in NAMES]
    harm.needle = image_of(again[0].fax_id)
    work.proxy.harms = [harm]
    work.clock.advance(timedelta(minutes=1))
    before_counted, before_asked = await work.counted(call="image"), work.proxy.asked(IMAGE_OF_A)

    await work.cycle()

    broken = await work.row(again[0])
    assert broken.state is State.PENDING
    assert (broken.failures, broken.attempts) == (1, 1)
    assert broken.last_error in sentences
    assert [(await work.row(fax)).state for fax in again[1:]] == [State.STORED] * 2
    assert not [path for path in work.visible(A) if again[0].fax_id in path.name]
    assert work.dot_files() == []
    asked = work.proxy.asked(IMAGE_OF_A) - before_asked
    assert await work.counted(call="image") - before_counted == asked
    assert work.proxy.asked(harm.needle) >= ATTEMPTS
    assert not work.account().is_suspended
    await work.heal()
    assert {(await work.row(fax)).state for fax in (mine, theirs, others)} == {State.STORED}


# -- the connection ---------------------------------------------------------------------------------


@pytest.mark.parametrize("arrival", ["reset", "close"])
async def test_row_32_connections_ended_as_they_are_taken_are_counted_with_hidden_repeats_and_paced(
    tmp_path: Path, events: list[Event], arrival: Arrival
) -> None:
    async with bench(tmp_path, limits=Limits(1, 2, 4)) as work:
        work.one_each()
        work.proxy.arrival = arrival
        began = work.clock.mono

        outcomes = await work.cycle()

        assert outcomes[A].failed
        assert str(outcomes[A].error).startswith(CLOSED)
        assert (await work.last_error(A) or "").startswith(CLOSED)
        assert not outcomes[C].failed
        assert work.visible(C)
        assert work.visible(A) == work.visible(B) == []
        sent = work.proxy.connections
        assert sent > await work.counted(call="token")  # aiohttp repeats a GET by itself
        assert await work.counted() == sent
        assert work.clock.mono - began >= sent - 2  # 1 a second after a burst of 2
        assert "poll-failed" in said(events, "poll-failed")
        await work.heal()


async def test_row_32_refused_connections_suspend_the_account_and_are_met_with_growing_pauses(
    at_work: Bench, events: list[Event]
) -> None:
    at_work.one_each()
    await at_work.proxy.close()

    outcomes = await at_work.cycle()

    refused = "127.0.0.1 refused the connection: check base_url and the firewall."
    assert str(outcomes[A].error) == refused
    for _ in range(4):
        await at_work.poll(A)
        await at_work.poll(B)
    assert said(events, "account-suspended") == ["account-suspended"]
    before = await at_work.counted()
    for _ in range(60):
        at_work.clock.advance(timedelta(minutes=1))
        await at_work.poll(A)
        await at_work.poll(B)
    # an hour of outage: a probe every 5 minutes at most, not 120 polls
    assert 10 <= await at_work.counted() - before <= 30
    assert at_work.visible(C)

    await at_work.proxy.open()
    await at_work.heal()
    assert said(events, "account-resumed") == ["account-resumed"]


async def test_row_33_a_server_that_takes_connections_and_never_answers_is_given_up_in_time(
    impatient: Bench,
) -> None:
    impatient.one_each()
    impatient.proxy.arrival = "black-hole"

    outcomes = await impatient.cycle()

    assert str(outcomes[A].error) == "eFax did not answer the health call within 1.5 seconds."
    assert impatient.visible(C)
    assert await impatient.counted() == impatient.proxy.connections
    await impatient.proxy.drop()
    await impatient.heal()


async def test_row_33_a_list_that_is_swallowed_is_given_up_and_others_are_polled(
    impatient: Bench,
) -> None:
    await impatient.cycle()
    impatient.one_each()
    impatient.proxy.harms = [Harm(REQUEST_OF_A, cut_after=0, end="stall")]
    impatient.clock.advance(timedelta(minutes=1))
    watermark = impatient.state(A).progress.watermark

    outcomes = await impatient.cycle()

    said_of_a = "eFax did not answer the list call within 1.5 seconds."
    assert str(outcomes[A].error) == await impatient.last_error(A) == said_of_a
    assert impatient.state(A).progress.watermark == watermark
    assert impatient.visible(B)
    assert impatient.visible(C)
    await impatient.heal()


async def test_row_33_a_connection_that_is_never_taken_has_a_sentence_of_its_own(
    tmp_path: Path, events: list[Event]
) -> None:
    """The kernel drops what does not fit into a full backlog, as a firewall would."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as kept:
        port = full.getsockname()[1]
        for _ in range(3):
            waiting = kept.enter_context(socket.socket())
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(("127.0.0.1", port))
        async with bench(
            tmp_path, base_url=f"http://127.0.0.1:{port}", timeouts=Timeouts(connect_s=0.3)
        ) as work:
            work.receive(C)
            outcomes = await work.cycle()
            assert str(outcomes[A].error) == (
                "127.0.0.1 did not accept the connection in time: check the network and the firewall."
            )
            assert work.visible(C)


# -- answers that end early -------------------------------------------------------------------------

ENDS: tuple[End, ...] = ("fin", "reset", "half-close")


@pytest.mark.parametrize("after", [20, 3000], ids=["in-the-headers", "in-the-body"])
@pytest.mark.parametrize("end", ENDS)
async def test_row_34_a_cut_body_with_its_length_is_refused_and_had_again(
    at_work: Bench, end: End, after: int
) -> None:
    call = "image call."
    await assert_only_this_image_suffers(
        at_work,
        Harm(cut_after=after, end=end),
        f"{BROKE_OFF} {call}",
        f"{CLOSED} {call}",
        "The answer of 127.0.0.1 to the image call is not valid HTTP.",
    )


@pytest.mark.parametrize("end", ENDS)
async def test_row_35_a_cut_body_without_a_length_is_refused_by_what_it_is(
    at_work: Bench, end: End
) -> None:
    """aiohttp delivers it as a whole 200, even after a reset."""
    at_work.simulator.switches = Switches(framing="close")
    await assert_only_this_image_suffers(
        at_work, Harm(cut_after=3000, end=end), "The image answer is not JSON."
    )


@pytest.mark.parametrize("end", ENDS)
async def test_row_36_a_cut_chunked_body_is_refused(at_work: Bench, end: End) -> None:
    at_work.simulator.switches = Switches(framing="chunked")
    await assert_only_this_image_suffers(
        at_work, Harm(cut_after=3000, end=end), f"{BROKE_OFF} image call.", f"{CLOSED} image call."
    )


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_row_34_to_36_a_list_that_breaks_off_is_no_list_and_covers_nothing(
    at_work: Bench, framing: str
) -> None:
    await at_work.cycle()
    at_work.simulator.switches = Switches(framing=framing)
    at_work.one_each()
    at_work.clock.advance(timedelta(minutes=1))
    watermark = at_work.state(A).progress.watermark
    at_work.proxy.harms = [Harm(REQUEST_OF_A, cut_after=260)]

    outcomes = await at_work.cycle()

    assert outcomes[A].error is not None
    assert at_work.state(A).progress.watermark == watermark
    assert not at_work.visible(A)
    assert at_work.visible(B)
    assert at_work.visible(C)
    await at_work.heal()


async def test_row_37_an_image_that_falls_silent_in_its_middle_is_given_up(
    impatient: Bench,
) -> None:
    await assert_only_this_image_suffers(
        impatient,
        Harm(cut_after=3000, end="stall"),
        "127.0.0.1 stopped sending during the image call.",
    )


async def test_row_37_a_list_that_stalls_in_its_middle_is_given_up(impatient: Bench) -> None:
    await impatient.cycle()
    impatient.one_each()
    impatient.clock.advance(timedelta(minutes=1))
    impatient.proxy.harms = [Harm(REQUEST_OF_A, cut_after=200, end="stall")]

    outcomes = await impatient.cycle()

    assert str(outcomes[A].error) == "eFax did not answer the list call within 1.5 seconds."
    assert impatient.visible(B)
    await impatient.heal()


async def test_row_38_an_image_that_only_drips_is_given_up_and_holds_up_nobody(
    tmp_path: Path, events: list[Event]
) -> None:
    async with bench(tmp_path, clock=SteppingClock(), timeouts=IMPATIENT) as work:
        await work.cycle()
        dripping, theirs, others = work.one_each()
        work.proxy.harms = [Harm(image_of(dripping.fax_id), drip=(200, 0.05))]
        work.clock.advance(timedelta(minutes=1))
        for user in NAMES:
            await work.poll(user)
        async with in_background(work.fetch()) as (fetching,):
            await until(lambda: work.visible(B) and work.visible(C))
            assert not fetching.done()  # the others' faxes came while the slow one still dripped
            await fetching

        row = await work.row(dripping)
        assert (row.state, row.last_error) == (
            State.PENDING,
            "The answer arrived too slowly, so poller gave it up.",
        )
        assert work.visible(A) == work.dot_files() == []
        assert {(await work.row(fax)).state for fax in (theirs, others)} == {State.STORED}
        await work.heal()


async def test_latency_and_a_narrow_line_are_no_failure(at_work: Bench) -> None:
    at_work.one_each()
    at_work.proxy.harms = [Harm(latency_s=0.02, bytes_per_s=500_000)]
    outcomes = await at_work.cycle()
    assert not any(outcome.failed for outcome in outcomes.values())
    await at_work.heal()


# -- answers that get lost ---------------------------------------------------------------------------


async def test_row_50_an_image_that_was_served_and_lost_on_the_way_is_stored_once(
    at_work: Bench,
) -> None:
    """The request marks it downloaded at eFax: from then on, only our pending row keeps it."""
    await at_work.cycle()
    fax = at_work.receive()
    harm = Harm(image_of(fax.fax_id), cut_after=0, end="reset")
    at_work.proxy.harms = [harm]
    at_work.clock.advance(timedelta(minutes=1))
    await at_work.cycle()
    assert fax.image_downloaded
    assert harm.met == 2 * ATTEMPTS  # aiohttp repeats each once more
    assert (await at_work.row(fax)).state is State.PENDING
    assert await at_work.counted(call="image") == harm.met
    await at_work.heal()


async def test_row_50_a_sign_in_that_was_carried_out_and_lost_is_made_again(at_work: Bench) -> None:
    at_work.one_each()
    at_work.proxy.harms = [Harm(b"POST /tokens", times=1, cut_after=0, end="reset")]
    outcomes = await at_work.cycle()
    assert not any(outcome.failed for outcome in outcomes.values())
    assert at_work.simulator.sign_ins[APP] == 2
    await at_work.heal()


# -- no connection ------------------------------------------------------------------------------------


def server_context(
    authority: trustme.CA, *names: str, ends: datetime | None = None
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names, not_after=ends).configure_cert(context)
    return context


@contextlib.asynccontextmanager
async def speaking_tls(context: ssl.SSLContext) -> AsyncIterator[str]:
    """A server that accepts connections and says nothing."""

    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0, ssl=context)
    async with server:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def sentence_of(directory: Path, base_url: str, ca_file: Path | None = None) -> str:
    """Return the error for an eFax at this address; the other account must not suffer."""
    async with bench(directory, base_url=base_url, ca_file=ca_file) as work:
        work.one_each()
        outcomes = await work.cycle()
        sentence = await work.last_error(A)
        assert work.visible(C)
        assert work.visible(A) == work.visible(B) == []
        assert str(outcomes[A].error) == sentence
        for _ in range(3):
            await work.poll(A)
            await work.poll(B)
        assert work.account().is_suspended
        before = await work.counted()
        for _ in range(20):
            work.clock.advance(timedelta(seconds=30))
            await work.poll(A)
        assert await work.counted() - before <= 8  # without the suspension, twenty polls
        assert sentence is not None
        return sentence


async def test_row_51_a_name_that_does_not_resolve_is_said_to_be_one(
    tmp_path: Path, events: list[Event]
) -> None:
    assert await sentence_of(tmp_path, "http://poller-test.invalid:9") == (
        "The name poller-test.invalid cannot be resolved: check DNS and the spelling."
    )


async def test_row_51_tls_to_a_port_that_speaks_none_is_said_to_be_that(
    tmp_path: Path, events: list[Event]
) -> None:
    async with Simulator() as plain:
        assert await sentence_of(tmp_path, f"https://127.0.0.1:{plain.port}") == (
            "No TLS connection to 127.0.0.1: check base_url, firewalls and proxies."
        )


async def test_row_51_certificates_that_are_expired_foreign_or_of_another_host_differ_in_words(
    tmp_path: Path, events: list[Event]
) -> None:
    authority = trustme.CA()
    trusted = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(trusted))
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    contexts = {
        "expired": (server_context(authority, "127.0.0.1", ends=long_ago), trusted),
        "foreign": (server_context(authority, "127.0.0.1"), None),
        "another-host": (server_context(authority, "efax.example"), trusted),
    }
    said_of = {}
    for name, (context, ca_file) in contexts.items():
        async with speaking_tls(context) as url:
            said_of[name] = await sentence_of(tmp_path / name, url, ca_file)

    assert "certificate has expired" in said_of["expired"]
    assert "unable to get local issuer certificate" in said_of["foreign"]
    assert "mismatch" in said_of["another-host"]
    assert all("check the clock, and tls.ca_file" in sentence for sentence in said_of.values())


async def test_row_52_a_redirect_is_refused_and_nobody_else_is_asked(at_work: Bench) -> None:
    await at_work.cycle()
    at_work.one_each()
    async with Simulator() as elsewhere, proxied(elsewhere.port) as trap:
        location = f"Location: {trap.url}/faxes/received\r\n".encode()
        answer = b"HTTP/1.1 307 Temporary Redirect\r\n" + location + b"Content-Length: 0\r\n\r\n"
        at_work.proxy.harms = [Harm(REQUEST_OF_A, answer=answer)]
        at_work.clock.advance(timedelta(minutes=1))
        outcomes = await at_work.cycle()
        assert "answered the list call with a redirect (HTTP 307)" in str(outcomes[A].error)
        assert trap.connections == 0
    assert at_work.visible(B)
    await at_work.heal()


async def test_row_52_a_proxy_of_the_environment_is_not_used(
    tmp_path: Path, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Simulator() as elsewhere, proxied(elsewhere.port) as trap:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, trap.url)
        async with bench(tmp_path) as work:
            work.one_each()
            await work.cycle()
            await work.heal()
        assert trap.connections == 0


async def test_row_52_a_configured_proxy_is_used_for_everything(
    tmp_path: Path, events: list[Event]
) -> None:
    clock = QuickClock()
    async with bench(tmp_path, clock=clock) as plain:
        proxy = plain.proxy.url
        target = plain.simulator.base_url.replace("127.0.0.1", "localhost")
        async with bench(tmp_path / "second", base_url=target, proxy=proxy) as work:
            await work.poll(A)
        assert plain.proxy.requests
        assert all(b" http://localhost:" in request for request in plain.proxy.requests)
