"""Answers of a hostile, broken or mad server, as a table with the result that each must have.

One account (`main`, behind the proxy) gets the answer, to one call for one user. In the same round,
the other users' faxes are stored; afterwards the server is good again, and nothing is lost.
"""

import base64
import gzip
import io
import json
import re
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pikepdf
import pytest
import structlog

from poller import log
from poller.ingest.poll_run import PollOutcome
from poller.ledger import State, faxes, jobs
from poller.simulator.state import Fax
from tests.conftest import APP, KEY
from tests.exhaustive import EXHAUSTIVE
from tests.faults.network import ATTEMPTS, NAMES, OTHER_KEY, Bench, bench, trying
from tests.faults.proxy import Harm

A, B, C = NAMES
MEBIBYTE = 1 << 20
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
FAX = "fax-of-a"
NUMBER = "13235551212"
SENDER = "Dr. Jane Roe"
PATIENT = {"originating_fax_number": NUMBER, "originating_fax_tsid": SENDER}
FIRST_LIST_OF_A = b"user-id: user-a\r\npagination-offset: 0\r\n"
LIST_OF_A = b"user-id: user-a\r\npagination-offset"
IMAGE_OF_A = b"GET /faxes/fax-of-a/image"
# Reading a page of 20,000 records may take this much; a bomb of a gigabyte must not.
MOST_MEMORY = 256 * MEBIBYTE
LONGEST_LINE = 40 * 1024  # journald cuts at 48 KiB


def http(body: bytes, *headers: str, status: str = "200 OK", length: bool = True) -> bytes:
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", *headers]
    if length:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def json_of(value: Any, *headers: str, status: str = "200 OK") -> bytes:
    return http(json.dumps(value).encode(), *headers, status=status)


def packed(beginning: bytes, filling: bytes, size: int, end: bytes) -> bytes:
    """A gzip of at least `size` bytes; it has about a thousandth of that."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    block = filling * (MEBIBYTE // len(filling))
    parts = [packer.compress(beginning)]
    parts += [packer.compress(block) for _ in range(size // MEBIBYTE)]
    return b"".join([*parts, packer.compress(end), packer.flush()])


@dataclass(frozen=True)
class Case:
    """An answer, and the sentence (or its beginning) to which it must lead."""

    name: str
    says: str
    answer: bytes
    is_big: bool = False


NOT_JSON = "The list answer is not JSON."
NO_LIST = "The list answer contains no list of faxes."
NO_HTTP = "The answer of 127.0.0.1 to the list call is not valid HTTP."
BROKEN_OFF = "127.0.0.1 broke off its answer to the list call."
BOMB_SIZE = (1024 if EXHAUSTIVE else 36) * MEBIBYTE
ONE = {"fax_id": FAX, **PATIENT}
GOOD_LIST = json.dumps({"first_record": 1, "last_record": 1, "faxes": [ONE]}).encode()

# -- lists that must not count as lists ---------------------------------------------------------------

LISTS = [
    Case("html", NOT_JSON, http(b"<html>call 13235551212</html>")),
    Case("nothing", NOT_JSON, http(b"")),
    Case("null", "The list answer is not a JSON object.", http(b"null")),
    Case("array", "The list answer is not a JSON object.", json_of([ONE])),
    Case("text", "The list answer is not a JSON object.", json_of("UP")),
    Case("faxes-null", NO_LIST, json_of({"faxes": None})),
    Case("faxes-object", NO_LIST, json_of({"faxes": ONE})),
    Case("faxes-text", NO_LIST, json_of({"faxes": NUMBER})),
    Case("faxes-number", NO_LIST, json_of({"faxes": 1})),
    Case("faxes-false", NO_LIST, json_of({"faxes": False})),
    Case(
        "counts-and-holds-none",
        "The list answer counts faxes and contains none.",
        json_of({"first_record": 1, "last_record": 7}),
    ),
    Case(
        "error-envelope-with-200",
        "The list answer is an error message.",
        json_of({"errors": [{"user_message": f"{SENDER}, {NUMBER}"}], "faxes": []}),
    ),
    Case("two-documents", NOT_JSON, http(GOOD_LIST + GOOD_LIST)),
    Case("byte-order-mark", NOT_JSON, http(b"\xef\xbb\xbf" + GOOD_LIST)),
    Case("utf-16", NOT_JSON, http(GOOD_LIST.decode().encode("utf-16"))),
    Case("invalid-utf-8", NOT_JSON, http(GOOD_LIST.replace(b"Jane", b"J\xff\xfe"))),
    Case("key-twice", NOT_JSON, http(GOOD_LIST.replace(b'{"fax', b'{"fax_id": "x", "fax', 1))),
    Case("nan", NOT_JSON, http(GOOD_LIST.replace(b'_record": 1', b'_record": NaN'))),
    Case("infinity", NOT_JSON, http(GOOD_LIST.replace(b'_record": 1', b'_record": -Infinity'))),
    Case("nested-10k-deep", NOT_JSON, http(b'{"faxes": ' + b"[" * 10_000 + b"]" * 10_000 + b"}")),
    Case(
        "objects-nested-100k-deep",
        NOT_JSON,
        http(b'{"faxes": [' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"]}"),
    ),
    Case("number-of-5000-digits", NOT_JSON, http(b'{"last_record": ' + b"9" * 5000 + b"}")),
    Case("cut-json", NOT_JSON, http(GOOD_LIST[:-2])),
    Case("204", NOT_JSON, http(b"", status="204 No Content", length=False)),
    Case(
        "206",
        "eFax answered the list call with HTTP 206.",
        http(b'{"faxes": []}', "Content-Range: bytes 0-12/99999", status="206 Partial Content"),
    ),
    Case(
        "304",
        "eFax answered the list call with a redirect (HTTP 304)",
        http(b"", status="304 Not Modified", length=False),
    ),
    Case(
        "302-to-itself",
        "eFax answered the list call with a redirect (HTTP 302)",
        http(b"", "Location: /faxes/received", status="302 Found"),
    ),
    Case("418", "eFax answered the list call with HTTP 418.", http(b"teapot", status="418 Tea")),
    Case("status-999", "eFax answered the list call with HTTP 999.", http(b"", status="999 ?")),
    Case("100-and-nothing", "127.0.0.1", b"HTTP/1.1 100 Continue\r\n\r\n"),
    Case("101", "", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n" + GOOD_LIST),
    Case("no-http", NO_HTTP, b"SSH-2.0-OpenSSH_9.2\r\n"),
    Case("status-is-text", NO_HTTP, b"HTTP/1.1 OK 200\r\n\r\n"),
    Case("header-too-long", NO_HTTP, http(GOOD_LIST, "X: " + "x" * 100_000)),
    Case("headers-without-end", NO_HTTP, b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200_000),
    Case("header-with-nul", NO_HTTP, http(GOOD_LIST, "X: a\0b")),
    Case("header-with-bare-cr", NO_HTTP, http(GOOD_LIST, "X: a\rContent-Length: 5")),
    Case("header-without-colon", NO_HTTP, http(GOOD_LIST, "no colon")),
    Case("length-too-long", BROKEN_OFF, http(GOOD_LIST, "Content-Length: 9999", length=False)),
    Case("length-too-short", NO_HTTP, http(GOOD_LIST, "Content-Length: 20", length=False)),
    Case("length-negative", NO_HTTP, http(GOOD_LIST, "Content-Length: -1", length=False)),
    Case("length-2^200", NO_HTTP, http(GOOD_LIST, f"Content-Length: {1 << 200}", length=False)),
    Case("two-lengths", NO_HTTP, http(GOOD_LIST, "Content-Length: 20")),
    Case(
        "length-and-chunked",
        NO_HTTP,
        http(GOOD_LIST, "Transfer-Encoding: chunked"),
    ),
    Case(
        "chunks-of-garbage",
        NO_HTTP,
        http(b"zz\r\nnonsense\r\n", "Transfer-Encoding: chunked", length=False),
    ),
    Case(
        "chunk-of-2^64",
        "127.0.0.1",
        http(b"ffffffffffffffff\r\n{}", "Transfer-Encoding: chunked", length=False),
    ),
    Case("gzip-of-garbage", "", http(GOOD_LIST, "Content-Encoding: gzip")),
    Case("deflate-of-garbage", "", http(GOOD_LIST, "Content-Encoding: deflate")),
    Case("brotli", "", http(b"\x0b\x02\x80abc\x03", "Content-Encoding: br")),
    Case("unknown-encoding", NOT_JSON, http(b"\x00\x01", "Content-Encoding: x-secret")),
    Case("gzip-cut", "", http(gzip.compress(GOOD_LIST)[:-12], "Content-Encoding: gzip")),
    Case(
        "gzip-bomb",
        "The answer is too large to be a list.",
        http(packed(b'{"faxes": [', b" ", BOMB_SIZE, b"]}"), "Content-Encoding: gzip"),
        is_big=True,
    ),
    Case(
        "40-MB-of-list",
        "The answer is too large to be a list.",
        http(b'{"faxes": [' + b" " * (40 * MEBIBYTE) + b"]}"),
        is_big=True,
    ),
]

# -- strange records beside a good one ----------------------------------------------------------------


UNUSABLE_IDS: dict[str, Any] = {
    "empty": "",
    "null": None,
    "true": True,
    "array": [FAX],
    "object": {"id": FAX},
    "float": 1.5,
    "half-a-surrogate-pair": "\ud800",
    "1025-characters": "x" * 1025,
    "a-megabyte": "x" * MEBIBYTE,
}
USABLE_IDS: dict[str, Any] = {
    "path-up": "../../etc/passwd",
    "path-absolute": "/etc/passwd",
    "path-windows": "C:\\Windows\\system.ini",
    "dot": ".",
    "dots": "..",
    "many-dots": "." * 300,
    "hidden": ".poller-storage",
    "nul": "a\0b",
    "newline": "a\r\nX-Evil: 1",
    "white-space": " \t ",
    "percent": "%2e%2e%2f",
    "query": "a?image_downloaded=false#x",
    "right-to-left": "\u202egpj.exe",
    "composed": "\u00e9",
    "decomposed": "e\u0301",
    "other-case": FAX.upper(),
    "device": "CON",
    "option": "-rf",
    "1024-characters": "x" * 1024,
    "500-telephones": "\U0001f4e0" * 500,
    "2^63": 1 << 63,
    "2^200": 1 << 200,
    "negative": -1,
    "fax-number": "18005550199",  # an id is shown as it is, because operators ask for it
    "script": "<script>alert(1)</script>",
    "format": "{account}%(x)s$HOME",
}


ODD_FIELDS: dict[str, dict[str, Any]] = {
    "sizes-of-2^63": {"size": 1 << 63, "pages": 1 << 63, "duration": 1 << 200},
    "negative-pages": {"pages": -1},
    "pages-float": {"pages": 1.5},
    "pages-object": {"pages": {"n": 1}},
    "year-0": {"completed_timestamp": "0000-01-01T00:00:00.000+0000"},
    "year-1": {"completed_timestamp": "0001-01-01T00:00:00.000+2359"},
    "year-9999": {"completed_timestamp": "9999-12-31T23:59:59.999-2359"},
    "30-february": {"completed_timestamp": "2024-02-30T25:61:61.000+0000"},
    "timestamp-nonsense": {"completed_timestamp": "yesterday \U0001f4e0"},
    "timestamp-number": {"completed_timestamp": 1716265676},
    "timestamp-array": {"completed_timestamp": ["2024-05-21T04:27:56.000+0000"]},
    "nested-500-deep": {"routing_data": json.loads("[" * 500 + "]" * 500)},
    # The parser shares its limit of a thousand with its callers, including the test runner.
    "nested-700-deep": {"routing_data": json.loads('{"a":' * 700 + "1" + "}" * 700)},
    "names-of-a-megabyte": {"x" * MEBIBYTE: "y" * MEBIBYTE},
    "lone-surrogates": {"\ud800": "\udfff"},
    "prototype": {"__class__": "x", "__proto__": {"fax_id": "y"}},
    "names-of-ours": {"account": "other", "user": "root", "image": "QUJD"},
    "resource-url": {"resource_url": "file:///etc/passwd"},
}


def list_of(*records: Any) -> bytes:
    whole = {"first_record": 1, "last_record": len(records), "faxes": list(records)}
    return json_of(whole)


# -- images -------------------------------------------------------------------------------------------


def image_of(**fields: Any) -> bytes:
    return json_of({"fax_id": FAX, "file_name": f"{NUMBER}.pdf"} | fields)


def pdf_of(pages: int) -> bytes:
    pdf = pikepdf.new()
    for _ in range(pages):
        pdf.add_blank_page(page_size=(612, 792))
    out = io.BytesIO()
    pdf.save(out)
    return out.getvalue()


PDF = base64.b64encode(pdf_of(1)).decode()
NOT_STRICT = "The image is not strict base64."
NO_IMAGE = "The image answer contains no image."
IMAGE_NOT_JSON = "The image answer is not JSON."
NO_DOCUMENT = "the image is neither a PDF nor a TIFF"

IMAGES = [
    Case("html", IMAGE_NOT_JSON, http(b"<html>busy</html>")),
    Case("nothing", IMAGE_NOT_JSON, http(b"")),
    Case("204", IMAGE_NOT_JSON, http(b"", status="204 No Content", length=False)),
    Case(
        "206",
        "eFax answered the image call with HTTP 206.",
        json_of({"fax_id": FAX, "image": PDF}, status="206 Partial Content"),
    ),
    Case("image-null", NO_IMAGE, image_of(image=None)),
    Case("image-number", NO_IMAGE, image_of(image=7)),
    Case("image-empty", NO_IMAGE, image_of(image="")),
    Case("image-array", NO_IMAGE, image_of(image=[PDF])),
    Case("image-missing", NO_IMAGE, image_of()),
    Case("image-white-space", NO_IMAGE, image_of(image=" \n ")),
    Case("not-base64", NOT_STRICT, image_of(image="(not base64)")),
    Case("base64-of-urls", NOT_STRICT, image_of(image="QUJ-_w==")),
    Case("data-url", NOT_STRICT, image_of(image=f"data:application/pdf;base64,{PDF}")),
    Case("padding-in-the-middle", NOT_STRICT, image_of(image="QQ==" + PDF)),
    Case("padding-missing", "The image's base64 is cut off.", image_of(image="QUI")),
    Case(
        "image-twice", IMAGE_NOT_JSON, http(b'{"image": "QUJD", "image": "' + PDF.encode() + b'"}')
    ),
    Case("two-documents", IMAGE_NOT_JSON, http(json.dumps({"image": PDF}).encode() * 2)),
    Case("other-fax", "The image answer is about another fax.", image_of(fax_id="b", image=PDF)),
    Case("fax-id-object", "The image answer is about another fax.", image_of(fax_id={}, image=PDF)),
    Case(
        "error-envelope",
        "The image answer is an error message.",
        image_of(errors=[{"user_message": SENDER}], image=PDF),
    ),
    Case(
        "byte-order-mark",
        IMAGE_NOT_JSON,
        http(b"\xef\xbb\xbf" + json.dumps({"image": PDF}).encode()),
    ),
    Case("nan", IMAGE_NOT_JSON, http(b'{"size": NaN, "image": "' + PDF.encode() + b'"}')),
    Case("nested", IMAGE_NOT_JSON, http(b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")),
    Case(
        "two-megabytes-besides",
        "The image answer contains too much besides the image.",
        image_of(image=PDF, more="x" * (2 * MEBIBYTE)),
    ),
    Case(
        "jpeg", NO_DOCUMENT, image_of(image=base64.b64encode(b"\xff\xd8\xff\xe0JFIF" * 9).decode())
    ),
    Case("zip", NO_DOCUMENT, image_of(image=base64.b64encode(b"PK\3\4" * 99).decode())),
    Case(
        "bomb-of-white-space",
        "The image answer contains too much besides the image.",
        http(packed(b"{", b" ", BOMB_SIZE, b"}"), "Content-Encoding: gzip"),
        is_big=True,
    ),
    Case(
        "bomb-of-base64",
        NO_DOCUMENT,
        http(packed(b'{"image": "', b"AAAA", BOMB_SIZE // 4, b'"}'), "Content-Encoding: gzip"),
        is_big=True,
    ),
    Case("gzip-of-garbage", "", http(b"garbage", "Content-Encoding: gzip")),
    Case("410", "eFax answered the image call with HTTP 410.", http(b"", status="410 Gone")),
    Case(
        "redirect-to-a-file",
        "eFax answered the image call with a redirect (HTTP 302)",
        http(b"", "Location: file:///etc/passwd", status="302 Found"),
    ),
    Case(
        "header-injection-in-error",
        "eFax answered the image call with HTTP 400, BAD_REQUEST.",
        json_of({"error_code": "BAD_REQUEST", "user_message": NUMBER}, status="400 Bad\x1b[31m"),
    ),
]

# What is stored nevertheless: the pages of the document, and whether it is marked damaged.
STORED_IMAGES: dict[str, tuple[bytes, int | None, bool]] = {
    "thousand-pages": (pdf_of(1000), 1000, True),
    "pdf-without-pages": (pdf_of(0), None, True),
    "pdf-cut": (pdf_of(3)[:-8], None, True),
    "pdf-of-its-magic": (b"%PDF-1.4\n%%EOF", None, True),
    "tiff-of-its-magic": (b"II*\0", None, True),
    "tiff-loop": (b"II*\0\x08\0\0\0\0\0\x08\0\0\0", None, True),
    "tiff-countless-tags": (b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0" + b"\xff" * 64, None, True),
}

# -- sign-ins and health ------------------------------------------------------------------------------

NO_TOKEN = "The sign-in answer contains no token."
SIGN_INS = [
    Case("html", "The sign-in answer is not JSON.", http(b"<html>")),
    Case("empty-object", NO_TOKEN, json_of({})),
    Case("token-null", NO_TOKEN, json_of({"access_token": None})),
    Case("token-empty", NO_TOKEN, json_of({"access_token": "", "expires_in": 60})),
    Case("token-object", NO_TOKEN, json_of({"access_token": {"jwt": "x"}})),
    Case("token-with-line-break", NO_TOKEN, json_of({"access_token": "a\r\nX-Evil: 1"})),
    Case("token-with-space", NO_TOKEN, json_of({"access_token": "a b"})),
    Case("token-beyond-ascii", NO_TOKEN, json_of({"access_token": "t\u00f6ken"})),
    Case("token-of-a-megabyte", NO_TOKEN, json_of({"access_token": "x" * MEBIBYTE})),
    Case(
        "token-twice",
        "The sign-in answer is not JSON.",
        http(b'{"access_token":"a","access_token":"b"}'),
    ),
    Case(
        "204", "The sign-in answer is not JSON.", http(b"", status="204 No Content", length=False)
    ),
    Case(
        "redirect",
        "eFax answered the token call with a redirect (HTTP 307)",
        http(b"", "Location: http://evil.invalid/", status="307 x"),
    ),
]
LIVES: dict[str, Any] = {
    "negative": -5,
    "zero": 0,
    "2^200": 1 << 200,
    "text": "soon",
    "null": None,
    "object": {},
    "nan-as-text": "nan",
    "a-blink": 1e-9,
}
DATES = {
    "garbage": "soon",
    "empty": "",
    "year-1": "Mon, 01 Jan 0001 00:00:00 GMT",
    "year-9999": "Fri, 31 Dec 9999 23:59:59 GMT",
    "year-10000": "Sat, 01 Jan 10000 00:00:00 GMT",
    "1970": "Thu, 01 Jan 1970 00:00:00 GMT",
    "zone-nonsense": "Mon, 02 Mar 2026 12:00:00 +9999",
    "two-days-ahead": "Wed, 04 Mar 2026 12:00:00 GMT",
}


# -- how it is tried ----------------------------------------------------------------------------------


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    """Return all that is logged, as the service would write it."""
    stream = io.StringIO()
    log.configure("debug", "json", stream=stream)
    yield stream
    structlog.reset_defaults()


@pytest.fixture
async def work(tmp_path: Path, out: io.StringIO) -> AsyncIterator[Bench]:
    async with bench(tmp_path) as opened:
        await opened.cycle()
        yield opened


def assert_nothing_private_and_no_bug(out: io.StringIO, *more: str | None) -> None:
    """Look in what was logged since the last look, and in what else an operator sees."""
    text = out.getvalue()
    out.seek(0)
    out.truncate()
    for line in text.splitlines():
        assert len(line.encode()) < LONGEST_LINE
        event = json.loads(line)
        assert "stack_trace" not in event.get("error", {}), event
        assert event["event"]["action"] != "internal-error", event
    for shown in (text, *(one or "" for one in more)):
        for private in ("Traceback", NUMBER, NUMBER[1:], SENDER, "Jane", KEY, OTHER_KEY):
            assert private not in shown


@contextmanager
def memory_bounded(*, look: bool) -> Iterator[None]:
    if not look:
        yield
        return
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
    finally:
        tracemalloc.stop()


def receive(work: Bench, user: str, **fields: Any) -> Fax:
    return work.receive(user, originating=NUMBER, tsid=SENDER, **fields)


async def assert_stored_rows(work: Bench, *faxes: Fax) -> None:
    for fax in faxes:
        row = await work.row(fax)
        assert row.state is State.STORED, (fax, row.last_error)


async def round_with(work: Bench, *harms: Harm, is_big: bool = False) -> PollOutcome:
    """A minute later, user-a gets hostile answers for a round, and the others' new faxes are stored."""
    work.clock.advance(MINUTE)
    theirs = [receive(work, user) for user in (B, C)]
    work.proxy.harms = list(harms)
    with memory_bounded(look=is_big):
        outcomes = await work.cycle()
    assert harms[0].met
    await assert_stored_rows(work, *theirs)
    assert work.dot_files() == []
    work.proxy.harms = []
    return outcomes[A]


def test_the_tables_are_long_enough() -> None:
    tables = (LISTS, UNUSABLE_IDS, USABLE_IDS, ODD_FIELDS, IMAGES, STORED_IMAGES, SIGN_INS, DATES)
    assert sum(len(table) for table in tables) >= 150


@pytest.mark.parametrize("part", range(3))
async def test_what_is_no_list_is_said_covers_nothing_and_stops_nobody_else(
    work: Bench, out: io.StringIO, part: int
) -> None:
    for case in LISTS[part::3]:
        with trying(case.name):
            fax = receive(work, A)
            watermark = work.state(A).progress.watermark

            outcome = await round_with(
                work, Harm(LIST_OF_A, answer=case.answer), is_big=case.is_big
            )

            error = await work.last_error(A)
            assert error is not None
            assert str(outcome.error) == error
            assert error.startswith(case.says), error
            assert work.state(A).progress.watermark == watermark
            assert not await work.runtime.services.ledger.read(faxes.find, fax.fax_id)
            assert_nothing_private_and_no_bug(out, error)
            work.clock.advance(MINUTE)
            assert [row.fax_id for row in (await work.poll(A)).discovered] == [fax.fax_id]
    await work.heal()


async def test_a_record_without_an_id_leaves_the_window_open_and_takes_no_other_with_it(
    work: Bench, out: io.StringIO
) -> None:
    for name, fax_id in UNUSABLE_IDS.items():
        with trying(name):
            fax = receive(work, A)
            watermark = work.state(A).progress.watermark
            listed = {"fax_id": fax.fax_id, "pages": 1, **PATIENT}
            hostile = {"fax_id": fax_id, **PATIENT}
            first, second = list_of(hostile, listed), list_of(listed)

            outcome = await round_with(
                work, Harm(FIRST_LIST_OF_A, answer=first), Harm(LIST_OF_A, answer=second)
            )

            error = "1 entries of the list have no usable fax_id"
            assert str(outcome.error) == await work.last_error(A) == error
            await assert_stored_rows(work, fax)
            assert work.state(A).progress.watermark == watermark
            assert_nothing_private_and_no_bug(out)
            work.clock.advance(MINUTE)
            assert not (await work.poll(A)).failed


async def test_hostile_ids_and_fields_are_stored_once_each_under_names_that_are_safe(
    tmp_path: Path, work: Bench, out: io.StringIO
) -> None:
    ids = {name: one for name, one in USABLE_IDS.items() if isinstance(one, str)}
    faxes = {name: receive(work, A, fax_id=one) for name, one in ids.items()}
    for name, fields in ODD_FIELDS.items():
        faxes[name] = receive(work, A, fields=fields)
    numbers = [one for one in USABLE_IDS.values() if isinstance(one, int)]
    for number in numbers:
        receive(work, A, fax_id=str(number), fields={"fax_id": number})
    theirs = [receive(work, user) for user in (B, C)]
    before = everything_below(tmp_path)

    outcome = (await work.cycle())[A]

    assert outcome.error is None, outcome.error
    for name, fax in faxes.items():
        with trying(name):
            await assert_stored_rows(work, fax)
    await assert_stored_rows(work, *theirs)
    stored = {
        path for path in everything_below(tmp_path) - before if path.is_relative_to(work.storage)
    }
    assert len(stored) == 2 * (len(faxes) + len(numbers) + len(theirs))
    assert len({str(path).casefold() for path in stored}) >= len(stored) - 2  # but for other-case
    for path in stored:
        assert path.is_relative_to(work.storage)
        assert re.fullmatch(r"[A-Za-z0-9_%~-][A-Za-z0-9._%~-]*", path.name), path.name
        if path.suffix == ".json":
            assert_strict_json(path)
    assert_nothing_private_and_no_bug(out)
    again = (await work.cycle())[A]
    assert again.discovered == []
    assert not again.failed


async def test_a_number_that_no_float_can_be_stays_readable_json_wherever_it_is_kept(
    work: Bench, out: io.StringIO
) -> None:
    fax = receive(work, A)
    listed = json.dumps({"fax_id": fax.fax_id, "size": "NUMBER"}).replace('"NUMBER"', "-1e400")
    first = http(f'{{"faxes": [{listed}]}}'.encode())
    await round_with(
        work,
        Harm(FIRST_LIST_OF_A, answer=first),
        Harm(LIST_OF_A, answer=json_of({"faxes": []})),
    )
    await assert_stored_rows(work, fax)
    (sidecar,) = (path for path in work.visible(A) if path.suffix == ".json")
    assert_strict_json(sidecar)
    assert json.loads(sidecar.read_text())["metadata"]["size"] == "-1e400"
    assert_nothing_private_and_no_bug(out)


def everything_below(root: Path) -> set[Path]:
    return {path for path in root.rglob("*") if path.is_file()}


def assert_strict_json(path: Path) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    json.loads(path.read_bytes(), parse_constant=refuse)


async def test_a_page_of_thousands_of_records_is_listed_beside_the_other_users(
    work: Bench, out: io.StringIO
) -> None:
    count = 20_000 if EXHAUSTIVE else 2_000
    records = [{"fax_id": f"f{n}", "completed_timestamp": None} for n in range(count)]
    whole, last = list_of(*records), list_of(*records[-3:])
    theirs = [receive(work, user) for user in (B, C)]
    work.proxy.harms = [Harm(FIRST_LIST_OF_A, answer=whole), Harm(LIST_OF_A, answer=last)]
    with memory_bounded(look=True):
        outcomes = {user: await work.poll(user) for user in NAMES}
    assert not outcomes[A].failed
    assert len(outcomes[A].discovered) == count
    assert len(outcomes[B].discovered) == len(outcomes[C].discovered) == 1
    assert {row.fax_id for user in (B, C) for row in outcomes[user].discovered} == {
        fax.fax_id for fax in theirs
    }
    assert_nothing_private_and_no_bug(out)


async def test_what_is_no_image_is_said_kept_pending_and_stops_nobody_else(
    work: Bench, out: io.StringIO
) -> None:
    fax = receive(work, A, fax_id=FAX)
    for case in IMAGES:
        with trying(case.name):
            await round_with(work, Harm(IMAGE_OF_A, answer=case.answer), is_big=case.is_big)

            row = await work.row(fax)
            assert row.state is State.PENDING
            assert row.failures
            assert row.last_error is not None
            assert case.says in row.last_error, row.last_error
            assert not work.visible(A)
            assert_nothing_private_and_no_bug(out, row.last_error)
            work.clock.advance(MINUTE)
            await work.runtime.services.ledger.write(jobs.make_due, [row.id], work.clock.now())
    await work.heal()


async def test_documents_that_are_strange_are_stored_as_they_came_and_said_to_be_damaged(
    work: Bench, out: io.StringIO
) -> None:
    faxes = {
        name: receive(work, A, document=document)
        for name, (document, _, _) in STORED_IMAGES.items()
    }
    theirs = [receive(work, user) for user in (B, C)]

    await work.cycle()

    await assert_stored_rows(work, *theirs)
    for name, (document, pages, damaged) in STORED_IMAGES.items():
        with trying(name):
            row = await work.row(faxes[name])
            assert (row.state, row.pages, row.damaged) == (State.STORED, pages, damaged)
            assert row.file is not None
            assert (work.storage / row.file).read_bytes() == document
    assert out.getvalue().count("fax-damaged") == len(STORED_IMAGES)
    assert_nothing_private_and_no_bug(out)


async def test_a_sign_in_that_gives_no_token_is_said_and_stays_the_accounts_own_trouble(
    work: Bench, out: io.StringIO
) -> None:
    for case in SIGN_INS:
        with trying(case.name):
            work.clock.advance(HOUR + MINUTE)  # the last time is forgotten: no token war
            work.simulator.end_token(APP)
            mine, other = receive(work, A), receive(work, C)
            sign_ins = work.simulator.sign_ins[APP]
            work.proxy.harms = [Harm(b"POST /tokens", answer=case.answer)]

            outcome = (await work.cycle())[A]

            assert str(outcome.error) == await work.last_error(A)
            assert str(outcome.error).startswith(case.says), outcome.error
            await assert_stored_rows(work, other)
            assert_nothing_private_and_no_bug(out, str(outcome.error))
            assert work.proxy.harms[0].met <= 2 * ATTEMPTS  # both users' polls
            work.proxy.harms = []
            work.clock.advance(6 * MINUTE)
            await work.cycle()
            await assert_stored_rows(work, mine)
            assert work.simulator.sign_ins[APP] == sign_ins + 1
    await work.heal()


@pytest.mark.parametrize("life", LIVES.values(), ids=LIVES)
async def test_a_token_with_a_strange_life_is_used_all_the_same(
    work: Bench, out: io.StringIO, life: Any
) -> None:
    work.simulator.end_token(APP)
    token = work.simulator.apps[APP].token
    answer = json_of({"access_token": token, "expires_in": life})
    work.proxy.harms = [Harm(b"POST /tokens", times=1, answer=answer)]
    mine = [receive(work, user) for user in NAMES]

    outcomes = await work.cycle()

    assert not any(outcome.failed for outcome in outcomes.values())
    await assert_stored_rows(work, *mine)
    assert work.proxy.asked(b"POST /tokens") < 12
    assert_nothing_private_and_no_bug(out)


async def test_a_strange_date_never_brings_the_watermark_past_the_servers_now(
    work: Bench, out: io.StringIO
) -> None:
    for name, date in DATES.items():
        with trying(name):
            answer = json_of({"faxes": []}, f"Date: {date}")
            await round_with(work, Harm(LIST_OF_A, answer=answer))
            for state in work.runtime.states:
                assert state.progress.watermark is not None
                assert state.progress.watermark <= work.simulator.now()
            assert_nothing_private_and_no_bug(out)
            work.clock.advance(MINUTE)
    await work.heal()
