"""Any bytes give a value or the one error, in bounded time; more of them with POLLER_EXHAUSTIVE=1.

tests/unit has good answers and single flaws for each parser; here are the properties that must hold
for everything in between.
"""

import base64
import binascii
import io
import json
import re
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poller import errors
from poller.documents import NotADocument
from poller.documents.proof import inspect
from poller.efax import requests, responses
from poller.efax.image import ImageDecoder
from poller.efax.notices import parse_notices
from poller.efax.outgoing import parse_accepted
from poller.efax.requests import Call
from poller.efax.responses import Page
from poller.efax.strict_json import strict_object
from poller.efax.timestamps import format_timestamp, parse_timestamp
from poller.efax.transmission import final_status
from poller.errors import ApiError, BadAnswer
from poller.log.redaction import Redactor
from poller.naming import fax_path, safe_id
from poller.retry import RETRY_AFTER_MAX_S, parse_retry_after
from poller.simulator.drawing import template
from tests.exhaustive import EXHAUSTIVE
from tests.integration.produced import by_pikepdf, by_pillow

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
LONGEST_S = 10.0  # of the processor's time, for one input of a few kilobytes


def examples(some: int) -> settings:
    """Others in each run; five hundred times as many where all is tried."""
    return settings(
        max_examples=some * 500 if EXHAUSTIVE else some,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


# -- inputs -------------------------------------------------------------------------------------------

ANY_TEXT = st.text(st.characters(), max_size=12)  # lone surrogates included
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats(allow_nan=True, allow_infinity=True)
    | ANY_TEXT
)
NAMES = st.sampled_from(
    [
        "fax_id",
        "faxes",
        "errors",
        "first_record",
        "last_record",
        "pages",
        "image",
        "access_token",
        "completed_timestamp",
        "expires_in",
        "status",
        "transmission_data",
        "transmission_status",
        "error_code",
        "user_id",
        "fax_direction",
        "destination_fax_number",
    ]
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(NAMES | ANY_TEXT, inner, max_size=5)
    ),
    max_leaves=20,
)
PLAUSIBLE_PAGE = st.fixed_dictionaries(
    {"faxes": st.lists(st.dictionaries(NAMES, SCALARS, max_size=6) | JSON, max_size=6)},
    optional={"first_record": SCALARS, "last_record": SCALARS, "errors": JSON},
)
PLAUSIBLE_TOKEN = st.fixed_dictionaries({"access_token": SCALARS, "expires_in": SCALARS})


@st.composite
def harmed(draw: st.DrawFn, good: st.SearchStrategy[bytes]) -> bytes:
    """Return a good answer with a few bytes changed, left out, doubled or inserted."""
    body = bytearray(draw(good))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(body)))
        match draw(st.integers(0, 4)):
            case 0:
                body[at : at + 1] = bytes((draw(st.integers(0, 255)),))
            case 1:
                del body[at : at + draw(st.integers(1, 20))]
            case 2:
                body[at:at] = body[at : at + draw(st.integers(1, 20))]
            case 3:
                body[at:at] = draw(
                    st.sampled_from([b"\xef\xbb\xbf", b"\0", b'"', b"}", b"[", b"1e999"])
                )
            case _:
                del body[at:]
    return bytes(body)


def as_json(values: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    return values.map(lambda value: json.dumps(value).encode())


ANSWERS = st.binary(max_size=300) | harmed(as_json(PLAUSIBLE_PAGE | PLAUSIBLE_TOKEN | JSON))


# -- answers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parse",
    [
        responses.parse_page,
        responses.parse_token,
        responses.parse_fields,
        responses.parse_health,
        parse_accepted,
        parse_notices,
    ],
)
@examples(30)
@given(body=ANSWERS)
def test_any_answer_is_a_value_or_the_one_error(parse: Callable[[bytes], Any], body: bytes) -> None:
    allowed = (BadAnswer, errors.Unreachable) if parse is responses.parse_health else (BadAnswer,)
    try:
        value = parse(body)
    except allowed as error:
        assert_plain_sentence(error)
        return
    if isinstance(value, Page):
        assert_page_is_sound(value, body)
    if isinstance(value, responses.Token):
        assert value.value.isascii()
        assert value.value.isprintable()
        assert 0 < value.expires_in_s <= 7 * 86400


SENT = st.fixed_dictionaries({}, optional={"transmission_data": JSON, "transmission_status": JSON})


@examples(30)
@given(listed=SENT | st.dictionaries(NAMES, JSON))
def test_any_sent_record_is_under_way_or_final_in_words_that_can_be_written_down(
    listed: dict[str, Any],
) -> None:
    found = final_status(listed)
    assert found.is_final or not found.is_complete
    for text in (found.status, found.error_code):
        assert text is None or (text.encode() and text.isprintable())


def assert_plain_sentence(error: ApiError) -> None:
    """The message contains no words of the server, because they could be anything."""
    sentence = str(error)
    assert sentence.endswith(".")
    assert sentence.isascii()
    assert len(sentence) < 140
    assert error.__cause__ is None


def assert_page_is_sound(page: Page, body: bytes) -> None:
    """Every record is listed or counted as unusable; all can be written down again."""
    said = strict_object(body, "list")
    assert len(page.faxes) + page.unusable == len(said.get("faxes") or [])
    assert len(page.marks) == len(page.faxes) + page.unusable
    for fax in page.faxes:
        assert 0 < len(fax.fax_id) <= 1024
        fax.fax_id.encode()
        assert fax.pages is None or 0 <= fax.pages < 10**9
        assert fax.received_at is None or fax.received_at.tzinfo is UTC
        assert json.loads(json.dumps(fax.raw, allow_nan=False)) == fax.raw
        requests.image_request("user", "token", fax.fax_id, "pdf").target.encode("ascii")


@examples(30)
@given(body=ANSWERS)
def test_strict_json_accepts_nothing_that_json_does_not(body: bytes) -> None:
    try:
        strict = strict_object(body, "list")
    except BadAnswer:
        return
    text = body.decode()
    assert not text.startswith("\ufeff")
    plain = json.loads(text, parse_float=str, parse_int=str)
    assert strict.keys() == plain.keys()
    json.dumps(strict, allow_nan=False)


@examples(30)
@given(
    call=st.sampled_from(Call),
    status=st.integers(100, 999),
    headers=st.dictionaries(st.sampled_from(["Retry-After", "Set-Cookie", "X"]), ANY_TEXT),
    body=ANSWERS,
)
def test_any_status_without_success_is_one_error_that_holds_no_secret(
    call: Call, status: int, headers: dict[str, str], body: bytes
) -> None:
    if responses.succeeded(status):
        return
    error = responses.failure(call, status, headers, body, NOW)
    assert_plain_sentence(error)
    assert error.status == status
    assert "Set-Cookie" not in error.evidence.headers
    wait_s = getattr(error, "retry_after_s", None)
    assert wait_s is None or 0 <= wait_s <= RETRY_AFTER_MAX_S


# -- timestamps and Retry-After -----------------------------------------------------------------------

NEARLY_TIMESTAMPS = st.from_regex(
    r"\d{3,5}-\d\d-\d\d[T ]\d\d:\d\d:\d\d([.,]\d{0,10})?( ?(Z|[+-]\d\d:?(\d\d)?))?", fullmatch=True
)


@examples(60)
@given(text=ANY_TEXT | NEARLY_TIMESTAMPS | st.text("0123456789-:TZ+. ", max_size=40))
def test_any_text_is_an_instant_in_utc_or_none(text: str) -> None:
    instant = parse_timestamp(text)
    if instant is not None:
        assert instant.tzinfo is UTC
        cut = instant.replace(microsecond=instant.microsecond // 1000 * 1000)
        assert parse_timestamp(format_timestamp(instant)) == cut


@examples(60)
@given(
    instant=st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)),  # noqa: DTZ001
    hours=st.integers(-23, 23),
    spelling=st.sampled_from(["%s%s%02d%02d", "%s%s%02d:%02d"]),
)
def test_an_instant_is_the_same_in_every_zone(instant: datetime, hours: int, spelling: str) -> None:
    utc = instant.replace(tzinfo=UTC, microsecond=0)
    local = (utc + timedelta(hours=hours)).replace(tzinfo=None).isoformat()
    sign = "-" if hours < 0 else "+"
    assert parse_timestamp(spelling % (local, sign, abs(hours), 0)) == utc


@examples(60)
@given(
    text=ANY_TEXT
    | st.integers(-(1 << 200), 1 << 200).map(str)
    | st.floats().map(str)
    | st.from_regex(r"[A-Z][a-z]{2}, \d{1,2} [A-Z][a-z]{2} \d{1,5} \d\d:\d\d:\d\d (GMT|[+-]\d{4})")
)
def test_any_retry_after_is_a_wait_of_an_hour_at_most_or_none(text: str) -> None:
    wait_s = parse_retry_after(text, NOW)
    assert wait_s is None or 0 <= wait_s <= RETRY_AFTER_MAX_S


# -- the streaming decoder ----------------------------------------------------------------------------


def naive(body: bytes) -> bytes:
    """Return what a full parser and a full decoder make of it; raises ValueError or RecursionError."""
    fields = strict_object(body, "image")
    image, fax_id = fields["image"], fields.get("fax_id")
    if fields.get("errors") or not isinstance(image, str) or fax_id not in (None, "a"):
        raise ValueError
    packed = re.sub("[ \t\r\n]", "", image)
    decoded = binascii.a2b_base64(packed, strict_mode=True)
    if not decoded or len(packed) % 4:
        raise ValueError
    return decoded


IMAGE_ANSWERS = st.builds(
    lambda image, more: {"fax_id": "a", "file_name": "x.pdf"} | more | {"image": image},
    st.binary(max_size=200).map(lambda data: base64.b64encode(data).decode()),
    st.dictionaries(NAMES.filter(lambda name: name not in ("errors", "image")), SCALARS, max_size=3)
    | st.dictionaries(ANY_TEXT, JSON, max_size=2),
)


@examples(80)
@given(
    body=harmed(as_json(IMAGE_ANSWERS)) | ANSWERS,
    size=st.sampled_from([1, 2, 3, 5, 7, 64, 10_000]),
)
def test_the_streaming_decoder_gives_what_a_whole_one_gives_or_refuses(
    body: bytes, size: int
) -> None:
    decoder = ImageDecoder("a")
    try:
        streamed = b"".join(
            [decoder.feed(body[at : at + size]) for at in range(0, len(body), size)]
        )
        decoder.close()
    except BadAnswer as error:
        assert_plain_sentence(error)
        return
    assert streamed == naive(body)


@examples(30)
@given(body=as_json(IMAGE_ANSWERS), sizes=st.lists(st.integers(1, 50), min_size=1, max_size=9))
def test_what_a_whole_decoder_accepts_the_streaming_one_accepts_in_any_pieces(
    body: bytes, sizes: list[int]
) -> None:
    try:
        expected = naive(body)
    except (BadAnswer, ValueError):
        return
    decoder = ImageDecoder("a")
    streamed, at, turn = b"", 0, 0
    while at < len(body):
        streamed += decoder.feed(body[at : at + sizes[turn % len(sizes)]])
        at += sizes[turn % len(sizes)]
        turn += 1
    decoder.close()
    assert streamed == expected


# -- documents ----------------------------------------------------------------------------------------

OURS = ("pdf", "tiff")
OTHERS = (
    *("pdf object streams", "pdf linearized", "pdf linearized object streams", "pdf updated"),
    *("pdf encrypted R3", "pdf encrypted R4", "pdf encrypted R6", "tiff jpeg", "tiff big"),
)


@cache
def documents() -> dict[str, bytes]:
    ours = {str(kind): data for kind, data in template(2).items()}
    made = dict([*by_pikepdf(2), *by_pillow(2)])
    return ours | {kind: made[kind] for kind in OTHERS}


@st.composite
def harmed_documents(draw: st.DrawFn, kind: str) -> bytes:
    """A real fax with changes in its structure: at both ends, and some in between."""
    document = bytearray(documents()[kind])
    near = st.integers(0, 600)
    for _ in range(draw(st.integers(1, 6))):
        distance = draw(near)
        at = draw(st.sampled_from([distance, len(document) - 1 - distance]))
        at = max(0, min(at, len(document) - 1))
        match draw(st.integers(0, 3)):
            case 0:
                document[at] = draw(st.integers(0, 255))
            case 1:
                document[at : at + 4] = draw(st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\1\0\0\0"]))
            case 2:
                del document[at : at + draw(st.integers(1, 40))]
            case _:
                there = draw(near)
                document[at:at] = document[there : there + draw(st.integers(1, 60))]
    return bytes(document)


@pytest.mark.parametrize("kind", OURS + OTHERS)
@examples(50)
@given(data=st.data())
def test_any_document_is_judged_in_bounded_time_and_the_same_way_twice(
    kind: str, data: st.DataObject
) -> None:
    document = data.draw(harmed_documents(kind))
    began = time.thread_time()
    with suppress(NotADocument):
        first = inspect(io.BytesIO(document))
        assert inspect(io.BytesIO(document)) == first
        assert first.pages is None or first.pages >= 0
        assert first.problem is None or first.problem.partition(":")[0].startswith(first.format)
    assert time.thread_time() - began < LONGEST_S


# -- names --------------------------------------------------------------------------------------------

IDS = st.text(st.characters(), min_size=1, max_size=60) | st.text(
    st.sampled_from("./\\%~\0 aA\u00e9e\u0301\u202e"), min_size=1, max_size=200
)


@examples(40)
@given(fax_id=IDS, template=st.sampled_from(["{account}/{user}/{fax_id}", "{fax_id}/{fax_id}"]))
def test_no_id_leaves_its_directory(fax_id: str, template: str) -> None:
    path = fax_path(template, account="main", user="desk", fax_id=fax_id, at=NOW)
    parts = PurePosixPath(path).parts
    assert len(parts) == template.count("/") + 1
    assert not PurePosixPath(path).is_absolute()
    for part in parts:
        assert re.fullmatch(r"[A-Za-z0-9_%~-][A-Za-z0-9._%~-]*", part)
        assert len(part) <= 200


@examples(40)
@given(ids=st.lists(IDS, min_size=2, max_size=8, unique=True))
def test_different_ids_have_different_names(ids: list[str]) -> None:
    assert len({safe_id(one) for one in ids}) == len(ids)


# -- the log ------------------------------------------------------------------------------------------

NUMBERS = st.from_regex(r"1[2-9]\d{9}", fullmatch=True)
AROUND = st.text(st.sampled_from("abc .,:;=\"'()[]{}<>/\\\n#?&%_|\u2026\u00e9"), max_size=12)


@examples(50)
@given(number=NUMBERS, before=AROUND, behind=AROUND, way=st.integers(0, 4))
def test_a_number_that_is_known_to_be_one_never_comes_out(
    number: str, before: str, behind: str, way: int
) -> None:
    written = (
        number,
        f"+{number}",
        f"{number[0]} ({number[1:4]}) {number[4:7]}-{number[7:]}",
        f"{number[0]}-{number[1:4]}-{number[4:7]}-{number[7:]}",
        f"%2B{number}",
    )[way]
    shown = Redactor(b"k" * 32).text(f"{before} {written} {behind}")
    assert written not in shown
    assert number not in re.sub(r"\D", "", re.sub(r"…\d{0,4}#[0-9a-f]{8}", "", shown))


@examples(50)
@given(
    secret=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=40),
    before=AROUND,
    behind=AROUND,
    nested=st.booleans(),
)
def test_a_registered_secret_never_comes_out_of_whatever_it_is_in(
    secret: str, before: str, behind: str, nested: bool
) -> None:
    redactor = Redactor(b"k" * 32)
    redactor.register(secret)
    basic = base64.b64encode(f"app:{secret}".encode()).decode()
    text = f"{before}{secret}{behind} {basic} {json.dumps(secret)}"
    value: Any = {"a": [text, {"b": text}], secret: text} if nested else text
    shown = json.dumps(redactor.value(value), ensure_ascii=False)
    assert secret not in shown
    assert json.dumps(secret)[1:-1] not in shown
    assert basic not in shown
