"""The image answer, decoded as it streams."""

import base64
import json
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poller.efax.image import ImageAnswer, ImageDecoder
from poller.errors import BadAnswer
from tests.exhaustive import often

FAX = "0f8a/ü"
IMAGE = b"%PDF-1.4 \xff\xfe\xfd\xfb\xff?>?>" * 5


def decode(chunks: Iterable[bytes], **limits: int) -> tuple[bytes, ImageAnswer]:
    decoder = ImageDecoder(FAX, **limits)
    image = b"".join([decoder.feed(chunk) for chunk in chunks])
    return image, decoder.close()


def in_pieces(body: bytes, cuts: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
    return [body[start:end] for start, end in pairwise(edges)]


def answer(image: str, **more: Any) -> bytes:
    return json.dumps({"fax_id": FAX, "file_name": "f.pdf", "image": image} | more).encode()


GOOD = base64.b64encode(IMAGE).decode()


def test_an_answer_gives_the_image_and_its_name() -> None:
    assert decode([answer(GOOD)]) == (IMAGE, ImageAnswer(FAX, "f.pdf"))


def test_the_image_comes_out_while_it_streams() -> None:
    decoder = ImageDecoder(FAX)
    body = answer("QUJD" * 1000)
    assert len(decoder.feed(body[:2000])) > 1000


# -- any valid encoding ---------------------------------------------------------------------------


@st.composite
def json_strings(draw: st.DrawFn, characters: str) -> str:
    """Write a base64 text as a JSON string, as a perverse server might."""
    spelled = []
    for character in characters:
        if draw(st.integers(0, 19)) == 0:
            spelled.append(
                draw(st.sampled_from([" ", "\\n", "\\r\\n", "\\t", "\\u0020", "\\u000A"]))
            )
        way = draw(st.sampled_from("pppppue"))
        if way == "u":
            spelled.append(f"\\u{ord(character):04x}")
        elif way == "e" and character == "/":
            spelled.append("\\/")
        else:
            spelled.append(character)
    return '"' + "".join(spelled) + '"'


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just("image"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["image", "fax_id", "a", '"', "\\"]), inner, max_size=3)
    ),
    max_leaves=8,
)
SPACE = st.sampled_from(["", " ", "\n\t", "\r\n  "])


@st.composite
def answers(draw: st.DrawFn) -> tuple[bytes, bytes]:
    image = draw(st.binary(min_size=1, max_size=60))
    ascii_only = draw(st.booleans())
    members = [
        (
            draw(st.sampled_from(['"image"', '"\\u0069mage"', '"im\\u0061ge"'])),
            draw(json_strings(base64.b64encode(image).decode())),
        ),
        ('"file_name"', json.dumps(draw(st.text(max_size=10)), ensure_ascii=True)),
    ]
    if draw(st.booleans()):
        members.append(('"fax_id"', json.dumps(FAX, ensure_ascii=ascii_only)))
    unknown = draw(st.dictionaries(st.text(max_size=6), JSON_VALUES, max_size=3))
    members += [
        (json.dumps(key), json.dumps(value))
        for key, value in unknown.items()
        if key not in {"image", "fax_id", "file_name", "errors"}
    ]
    members = draw(st.permutations(members))
    space = draw(SPACE)
    inside = f"{space},{space}".join(f"{key}{space}:{space}{value}" for key, value in members)
    return f"{space}{{{space}{inside}{space}}}".encode(), image


@settings(max_examples=often(75))
@given(answers(), st.lists(st.integers(0, 10_000), max_size=6))
def test_any_chunking_of_any_valid_encoding_gives_the_bytes(
    made: tuple[bytes, bytes], cuts: list[int]
) -> None:
    body, image = made
    assert decode(in_pieces(body, cuts))[0] == image


@settings(max_examples=often(15))
@given(answers())
def test_an_answer_byte_by_byte_gives_the_same(made: tuple[bytes, bytes]) -> None:
    body, image = made
    assert decode(body[at : at + 1] for at in range(len(body)))[0] == image


@settings(max_examples=often(75))
@given(answers(), st.integers(0, 10_000), st.lists(st.integers(0, 10_000), max_size=3))
def test_any_truncation_is_a_bad_answer(
    made: tuple[bytes, bytes], end: int, cuts: list[int]
) -> None:
    body, _ = made
    cut = body[: end % len(body)]
    with pytest.raises(BadAnswer):
        decode(in_pieces(cut, cuts))


def test_a_long_answer_cut_anywhere_is_a_bad_answer() -> None:
    body = answer(GOOD.replace("/", "\\/"), x={"image": "QUJD", "y": ["\\", '"']})
    for end in range(len(body)):
        with pytest.raises(BadAnswer):
            decode([body[:end]])


NOISE = st.lists(
    st.sampled_from(
        [
            b"{",
            b"}",
            b"[",
            b"]",
            b":",
            b",",
            b'"',
            b"\\",
            b"image",
            b'"image"',
            b'"image":"QUJD"',
            b"QUJD",
            b"=",
            b"\\u00",
            b"\\u002b",
            b" ",
            b"null",
            b"1",
            b'"fax_id"',
            b"\xff",
            b"\x00",
        ]
    ),
    max_size=25,
).map(b"".join)


@settings(max_examples=often(150))
@given(NOISE | st.binary(max_size=60), st.lists(st.integers(0, 100), max_size=3))
def test_no_bytes_raise_anything_but_bad_answer(body: bytes, cuts: list[int]) -> None:
    try:
        image, _ = decode(in_pieces(body, cuts))
    except BadAnswer:
        return
    # It accepts what a full JSON parser and a full base64 decoder accept.
    assert image == base64.b64decode("".join(json.loads(body)["image"].split()), validate=True)


# -- one flaw each --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"<html>busy</html>", id="a proxy's page"),
        pytest.param(b"null", id="null"),
        pytest.param(b'["image", "QUJD"]', id="list"),
        pytest.param(b'["image": "QUJD"]', id="list with a colon"),
        pytest.param(b'"image": "QUJD"', id="no object around it"),
        pytest.param(b'{"image": "QUJD"} x', id="more after the end"),
        pytest.param(b'{"image": "QUJD"}{"image": "QUJD"}', id="two answers"),
        pytest.param(b'\xef\xbb\xbf{"image": "QUJD"}', id="byte order mark"),
        pytest.param('{"image": "QUJD"}'.encode("utf-16"), id="UTF-16"),
        pytest.param(b'{"image": "QUJD", "image": "QUJD"}', id="two images"),
        pytest.param(b'{"image": null, "image": "QUJD"}', id="two images, one null"),
        pytest.param(b'{"image": "QUJD", "a": 1, "a": 1}', id="another key twice"),
        pytest.param(b"{}", id="no image"),
        pytest.param(b'{"image": null}', id="image is null"),
        pytest.param(b'{"image": ""}', id="image is empty"),
        pytest.param(b'{"image": " \\n "}', id="image is white space"),
        pytest.param(b'{"image": 5}', id="image is a number"),
        pytest.param(b'{"image": 5 "QUJD"}', id="image is a number and text"),
        pytest.param(b'{"image": ["QUJD"]}', id="image is a list"),
        pytest.param(b'{"x": {"image": "QUJD"}}', id="image is elsewhere"),
        pytest.param(b'{"image": "QUJD", "x": NaN}', id="NaN"),
        pytest.param(b'{"image": "QUJD", "fax_id": "other"}', id="another fax"),
        pytest.param(b'{"image": "QUJD", "errors": [{}]}', id="error"),
        pytest.param(b'{"image": "QUJD" "x": 1}', id="no comma"),
        pytest.param(b'{"i\\mage": "QUJD"}', id="key with a wrong escape"),
        pytest.param(b'{"\xff": "QUJD"}', id="key that is not UTF-8"),
        pytest.param(b'{"image": "QUJD", "x": "\xff"}', id="value that is not UTF-8"),
        pytest.param(b'{"image": "QUJ"}', id="base64 cut in a group"),
        pytest.param(b'{"image": "QUI"}', id="padding left out"),
        pytest.param(b'{"image": "QQ="}', id="padding short"),
        pytest.param(b'{"image": "QQ==="}', id="padding long"),
        pytest.param(b'{"image": "===="}', id="nothing but padding"),
        pytest.param(b'{"image": "QQ==QUJD"}', id="more after the padding"),
        pytest.param(b'{"image": "QQ==", "image": "QQ=="}', id="two padded images"),
        pytest.param(b'{"image": "QU!D"}', id="not in the alphabet"),
        pytest.param(b'{"image": "QU-_"}', id="the URL alphabet"),
        pytest.param(b'{"image": "QUJD\\\\/QUJ"}', id="escaped backslash"),
        pytest.param(b'{"image": "QUJD\\\\nr"}', id="escaped backslash before letters"),
        pytest.param(b'{"image": "QUJ\\"QUJD"}', id="escaped quote"),
        pytest.param(b'{"image": "QUJ\\x"}', id="no JSON escape"),
        pytest.param(b'{"image": "QUJ\\u0"}', id="short escape"),
        pytest.param(b'{"image": "QUJ\\u0141"}', id="escape beyond ASCII"),
        pytest.param(b'{"image": "QUJ\\u005c"}', id="backslash by escape"),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_flawed_answer_is_a_bad_answer(body: bytes, size: int) -> None:
    with pytest.raises(BadAnswer):
        decode(body[at : at + size] for at in range(0, len(body), size))


def test_padding_followed_by_more_in_a_later_chunk_is_a_bad_answer() -> None:
    with pytest.raises(BadAnswer):
        decode([b'{"image": "QQ==', b'QUJD"}'])


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"image": "QUJD"}', id="no fax id"),
        pytest.param(b'{"image": "QUJD", "fax_id": null}', id="null fax id"),
        pytest.param(b'{"image": "QUJD", "file_name": 5}', id="odd file name"),
        pytest.param(b'{"image": "QUJD", "errors": []}', id="no errors"),
        pytest.param(b'{"image": "QU\nJD"}', id="a raw line break"),
        pytest.param(b'\n{"image"\n:\n"QUJD"}\n ', id="white space around"),
    ],
)
def test_harmless_oddities_are_accepted(body: bytes) -> None:
    assert decode([body]) == (b"ABC", ImageAnswer(FAX, None))


UUID = "0f8a1b2c-3d4e-4f50-8a6b-7c8d9e0fa1b2"


@pytest.mark.parametrize(
    ("ours", "theirs", "is_ours"),
    [
        pytest.param(UUID, UUID.upper(), True, id="a UUID in capitals"),
        pytest.param(UUID.upper(), UUID, True, id="a UUID in small letters"),
        pytest.param("CaseId", "caseid", False, id="no UUID"),
        pytest.param(UUID, UUID.replace("-", "").upper(), False, id="a UUID without dashes"),
    ],
)
def test_an_answer_may_spell_our_uuid_in_other_letters(
    ours: str, theirs: str, is_ours: bool
) -> None:
    decoder = ImageDecoder(ours)
    decoder.feed(b'{"fax_id": "%s", "image": "QUJD"}' % theirs.encode())
    if is_ours:
        assert decoder.close().fax_id == ours
    else:
        with pytest.raises(BadAnswer, match="another fax"):
            decoder.close()


def test_a_numeric_fax_id_may_come_as_a_number() -> None:
    decoder = ImageDecoder("77")
    decoder.feed(b'{"fax_id": 77, "image": "QUJD"}')
    assert decoder.close().fax_id == "77"


def feed_spaces(decoder: ImageDecoder) -> None:
    for _ in range(40):
        decoder.feed(b" " * (64 << 10))


# -- bounds ---------------------------------------------------------------------------------------


def test_an_image_beyond_the_limit_is_a_bad_answer() -> None:
    assert decode([answer("QUJD" * 2)], limit=6)[0] == b"ABCABC"
    with pytest.raises(BadAnswer, match="larger"):
        decode([answer("QUJD" * 3)], limit=6)


def test_white_space_without_end_is_a_bad_answer() -> None:
    decoder = ImageDecoder(FAX, limit=6)
    decoder.feed(b'{"image": "')
    with pytest.raises(BadAnswer, match="larger"):
        feed_spaces(decoder)


@pytest.mark.parametrize("beginning", [b'{"x": "', b'{"image": "QUJD"} ', b"", b'{"x": "\\'])
def test_everything_but_the_image_takes_at_most_a_mebibyte(beginning: bytes) -> None:
    decoder = ImageDecoder(FAX)
    decoder.feed(beginning)
    with pytest.raises(BadAnswer, match="besides"):
        feed_spaces(decoder)
