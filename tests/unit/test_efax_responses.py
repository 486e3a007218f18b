"""Answers: good ones as values, each bad one as one error."""

import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from poller import errors
from poller.efax import responses
from poller.efax.requests import Call
from poller.efax.responses import Page

NOW = datetime(2024, 5, 21, 12, 0, tzinfo=UTC)


def test_a_page_keeps_every_field_of_every_fax() -> None:
    page = responses.parse_page(
        b'{"first_record": 1, "last_record": 2, "faxes": ['
        b'{"fax_id": "a", "pages": "3", "completed_timestamp": "2024-05-21T04:27:56.000+0000",'
        b' "new_field": {"x": [1]}}, {"fax_id": 77, "pages": 2}]}'
    )
    first, second = page.faxes
    assert (first.fax_id, first.pages) == ("a", 3)
    assert first.received_at == datetime(2024, 5, 21, 4, 27, 56, tzinfo=UTC)
    assert first.raw["new_field"] == {"x": [1]}
    assert (second.fax_id, second.pages, second.received_at) == ("77", 2, None)
    assert page.unusable == 0


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(b'"a"', id="text"),
        pytest.param(b"null", id="null"),
        pytest.param(b"{}", id="no id"),
        pytest.param(b'{"fax_id": ""}', id="empty id"),
        pytest.param(b'{"fax_id": null}', id="null id"),
        pytest.param(b'{"fax_id": true}', id="boolean id"),
        pytest.param(b'{"fax_id": ["a"]}', id="list as id"),
        pytest.param(b'{"fax_id": "\\ud800"}', id="half a surrogate pair"),
        pytest.param(b'{"fax_id": "' + b"x" * 1025 + b'"}', id="endless id"),
    ],
)
def test_a_record_without_a_usable_id_is_counted_and_stops_no_other(record: bytes) -> None:
    page = responses.parse_page(b'{"faxes": [' + record + b', {"fax_id": "ok"}]}')
    assert [fax.fax_id for fax in page.faxes] == ["ok"]
    assert page.unusable == 1


@pytest.mark.parametrize(
    "pages",
    ['"two"', "-1", "1.5", "true", "null", '"-3"', "[]", "1" + "0" * 30, '"٣"'],
)
def test_a_page_count_that_is_not_a_number_is_unknown(pages: str) -> None:
    page = responses.parse_page(f'{{"faxes": [{{"fax_id": "a", "pages": {pages}}}]}}'.encode())
    assert page.faxes[0].pages is None


@pytest.mark.parametrize(
    ("raw", "pages"),
    [
        ({"pages": 3}, 3),
        ({"pages": "3"}, 3),
        ({"pages": 0}, None),
        ({}, None),
        ({"pages": []}, None),
    ],
)
def test_a_record_lists_a_page_count_or_none(raw: dict[str, Any], pages: int | None) -> None:
    assert responses.listed_pages(raw) == pages


def test_a_number_beyond_all_floats_can_be_written_again() -> None:
    (fax,) = responses.parse_page(b'{"faxes": [{"fax_id": "a", "size": -1e400, "x": 1.5}]}').faxes
    assert fax.raw == {"fax_id": "a", "size": "-1e400", "x": 1.5}
    assert json.loads(json.dumps(fax.raw, allow_nan=False)) == fax.raw


def test_two_spellings_of_a_uuid_are_one_record_of_a_list() -> None:
    ids = ["ABCDEF01-2345-6789-abcd-ef0123456789", "abcdef01-2345-6789-ABCD-EF0123456789"]
    page = responses.parse_page(json.dumps({"faxes": [{"fax_id": one} for one in ids]}).encode())
    assert [fax.fax_id for fax in page.faxes] == ids
    assert len(set(page.marks)) == 1


@pytest.mark.parametrize("depth", [70, 500, 900])
@pytest.mark.parametrize("usable", [True, False])
def test_values_nested_too_deeply_to_write_are_kept_as_text(depth: int, usable: bool) -> None:
    nested = '{"a":' * depth + "1" + "}" * depth
    record = '{"fax_id": "a", "x": %s}' if usable else '{"x": %s}'
    page = responses.parse_page((f'{{"faxes": [{record % nested}, {{"fax_id": "b"}}]}}').encode())
    assert page.faxes[-1].fax_id == "b"
    assert page.unusable == (not usable)
    assert len(page.marks) == 2
    value = page.faxes[0].raw.get("x")
    for _ in range(responses.DEEPEST_FIELD - 1 if usable else 0):
        assert value is not None
        value = value["a"]
    assert isinstance(value, str) is usable


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        pytest.param(b"{}", "{}", id="bare object"),
        pytest.param(b'{"faxes": []}', "{faxes: []}", id="empty list"),
        pytest.param(b'{"faxes": [], "x": 1}', "{faxes: []}", id="what nobody has described"),
        pytest.param(b'{"faxes": [], "errors": []}', "{faxes: []}", id="empty list and no errors"),
        pytest.param(
            b'{"first_record": 0, "last_record": 0}',
            "{first_record, last_record}",
            id="no list, zeros",
        ),
        pytest.param(
            b'{"last_record": 100, "first_record": 101}',
            "{first_record, last_record}",
            id="no list, a later page",
        ),
        pytest.param(
            b'{"first_record": 1, "last_record": 0, "faxes": null}',
            "{first_record, last_record, faxes: null}",
            id="null",
        ),
        pytest.param(b'{"last_record": 0}', "{last_record}", id="one count"),
    ],
)
def test_an_empty_list_comes_in_several_shapes(body: bytes, shape: str) -> None:
    page = responses.parse_page(body)
    assert (page, page.shape) == (Page(()), shape)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"<html>busy</html>", id="a proxy's page"),
        pytest.param(b"[]", id="list"),
        pytest.param(b"null", id="null"),
        pytest.param(b'{"faxes": {}}', id="faxes is an object"),
        pytest.param(b'{"faxes": "none"}', id="faxes is text"),
        pytest.param(b'{"faxes": null}', id="faxes is null and nothing else"),
        pytest.param(b'{"errors": [{"error_code": "X"}]}', id="error with 200"),
        pytest.param(b'{"errors": [{}], "faxes": []}', id="error and an empty list"),
        pytest.param(b'{"status": "failed"}', id="something else"),
        pytest.param(b'{"first_record": 1, "last_record": 5}', id="counts faxes, holds none"),
        pytest.param(b'{"faxes": []', id="cut"),
        pytest.param(b'{"faxes": []}x', id="more after the end"),
        pytest.param(b'\xef\xbb\xbf{"faxes": []}', id="byte order mark"),
        pytest.param('{"faxes": []}'.encode("utf-16"), id="UTF-16"),
        pytest.param(b'{"faxes": [], "faxes": []}', id="key twice"),
        pytest.param(b'{"faxes": [{"fax_id": "a", "fax_id": "b"}]}', id="key twice in a fax"),
        pytest.param(b'{"faxes": [], "x": NaN}', id="NaN"),
        pytest.param(b'{"faxes": [], "x": ' + b"9" * 5000 + b"}", id="number without end"),
        pytest.param(b'{"faxes": ' + b"[" * 200_000, id="nested without end"),
        pytest.param(b'{"faxes": ["\xff"]}', id="not UTF-8"),
    ],
)
def test_an_answer_without_a_list_never_counts_as_an_empty_one(body: bytes) -> None:
    with pytest.raises(errors.BadAnswer):
        responses.parse_page(body)


@given(st.binary(max_size=200))
@example(b'{"faxes": [[]]}')
def test_no_bytes_upset_the_parsers(body: bytes) -> None:
    for parse in (
        responses.parse_page,
        responses.parse_token,
        responses.parse_fields,
        responses.parse_health,
        responses.parse_done,
    ):
        with suppress(errors.BadAnswer, errors.Unreachable):
            parse(body)


def test_a_token_is_read_with_its_life() -> None:
    token = responses.parse_token(
        b'{"access_token": "abc.def", "token_type": "bearer", "expires_in": "86399"}'
    )
    assert (token.value, token.expires_in_s) == ("abc.def", 86399.0)
    assert "abc.def" not in repr(token)


@pytest.mark.parametrize(
    ("expires_in", "seconds"),
    [
        pytest.param('"soon"', 3600.0, id="text"),
        pytest.param("null", 3600.0, id="null"),
        pytest.param("0", 3600.0, id="zero"),
        pytest.param("-5", 3600.0, id="negative"),
        pytest.param('"nan"', 3600.0, id="nan"),
        pytest.param("1e400", 7 * 86400.0, id="infinite"),
        pytest.param("9" * 400, 3600.0, id="beyond floats"),
        pytest.param("1.5", 1.5, id="fraction"),
    ],
)
def test_a_strange_life_of_a_token_becomes_a_sane_one(expires_in: str, seconds: float) -> None:
    token = responses.parse_token(f'{{"access_token": "t", "expires_in": {expires_in}}}'.encode())
    assert token.expires_in_s == seconds


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"access_token": null}',
        b'{"access_token": ""}',
        b'{"access_token": "a b"}',
        b'{"access_token": "a\\r\\nX-Evil: 1"}',
        b'{"access_token": "\\u00e9"}',
        b'{"access_token": "' + b"x" * (16 * 1024 + 1) + b'"}',
        b"UP",
    ],
)
def test_an_answer_without_a_usable_token_is_bad(body: bytes) -> None:
    with pytest.raises(errors.BadAnswer):
        responses.parse_token(body)


def test_health_is_up_or_not() -> None:
    responses.parse_health(b'{"status": "UP", "more": 1}')
    with pytest.raises(errors.Unreachable):
        responses.parse_health(b'{"status": "DOWN"}')


def test_metadata_is_an_object_that_is_no_error() -> None:
    assert (
        responses.parse_fields(b'{"fax_id": "a", "direction": "INBOUND"}')["direction"] == "INBOUND"
    )
    with pytest.raises(errors.BadAnswer):
        responses.parse_fields(b'{"errors": [{}]}')


@pytest.mark.parametrize("body", [b"", b" \n", b"{}", b'{"fax_id": "a"}'])
def test_a_deletion_or_mark_is_done_by_nothing_or_an_object(body: bytes) -> None:
    responses.parse_done(body)


@pytest.mark.parametrize("body", [b"<html>", b"true", b"[]", b'{"errors": [{}]}'])
def test_a_page_does_not_say_that_anything_is_done(body: bytes) -> None:
    with pytest.raises(errors.BadAnswer):
        responses.parse_done(body)


@pytest.mark.parametrize(
    ("call", "status", "kind"),
    [
        *((Call.TOKEN, status, errors.SignInRefused) for status in (400, 401, 403)),
        (Call.TOKEN, 404, errors.Rejected),
        (Call.LIST, 400, errors.WindowRefused),
        (Call.LIST, 401, errors.TokenRefused),
        (Call.LIST, 403, errors.UserRefused),
        (Call.LIST, 404, errors.UserRefused),
        (Call.LIST, 422, errors.Rejected),
        (Call.SENT_LIST, 400, errors.WindowRefused),
        (Call.SENT_LIST, 403, errors.UserRefused),
        (Call.SENT_LIST, 404, errors.UserRefused),
        (Call.SEND, 400, errors.Rejected),
        (Call.SEND, 401, errors.TokenRefused),
        (Call.SEND, 500, errors.Unreachable),
        (Call.DELETE, 404, errors.Rejected),
        (Call.NOTIFICATIONS, 404, errors.Rejected),
        (Call.IMAGE, 400, errors.Rejected),
        (Call.IMAGE, 401, errors.TokenRefused),
        (Call.IMAGE, 404, errors.NotYet),
        (Call.IMAGE, 410, errors.NotYet),
        (Call.METADATA, 404, errors.Rejected),
        *((call, 429, errors.RateLimited) for call in Call),
        *((call, status, errors.Unreachable) for call in Call for status in (500, 503, 599)),
        *((call, 302, errors.Rejected) for call in Call),
        *((call, 206, errors.BadAnswer) for call in Call),
        (Call.LIST, 101, errors.BadAnswer),
    ],
)
def test_each_status_is_one_error(call: Call, status: int, kind: type[errors.ApiError]) -> None:
    error = responses.failure(call, status, {}, b"", NOW)
    assert type(error) is kind
    assert error.status == status
    assert str(error).endswith(".")


def test_success_is_2xx() -> None:
    assert responses.succeeded(200)
    assert responses.succeeded(204)
    assert not responses.succeeded(404)
    assert not responses.succeeded(302)


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_read_whatever_its_case(status: int) -> None:
    error: Any = responses.failure(Call.LIST, status, {"RETRY-after": "17"}, b"", NOW)
    assert error.retry_after_s == 17
    error = responses.failure(Call.LIST, status, {"x": "y"}, b"", NOW)
    assert error.retry_after_s is None


def test_the_sentence_names_the_code_and_none_of_the_servers_own_words() -> None:
    body = (
        b'{"errors": [{"error_code": "FORBIDDEN", "developer_message": "no 13235551212"}],'
        b' "transaction_id": "t"}'
    )
    error = responses.failure(Call.LIST, 403, {}, body, NOW)
    assert str(error) == "eFax answered the list call with HTTP 403, FORBIDDEN."


def test_a_redirect_says_where_to_look() -> None:
    error = responses.failure(Call.LIST, 307, {"Location": "https://evil.example"}, b"", NOW)
    assert "base_url" in str(error)
    assert "evil" not in str(error)


def test_evidence_has_the_beginning_of_the_body_and_no_secrets() -> None:
    headers = {"Content-Type": "text/html", "Set-Cookie": "a=b", "AUTHORIZATION": "bearer x"}
    seen = responses.evidence(Call.LIST, 500, headers, b"x" * 100_000)
    assert seen.headers == {"Content-Type": "text/html"}
    assert seen.body == b"x" * (64 << 10)


def test_evidence_never_holds_a_token() -> None:
    assert responses.evidence(Call.TOKEN, 200, {}, b'{"access_token": "t"}').body == b""
    assert responses.evidence(Call.TOKEN, 401, {}, b"refused").body == b"refused"


FULL = {
    "fax_id": "a",
    "completed_timestamp": "2024-05-21T04:27:56.000+0000",
    "pages": 0,
    "originating_fax_number": "",
    "destination_fax_number": "unavailable",
}


def test_record_that_tells_when_how_long_from_whom_and_to_whom_lacks_nothing() -> None:
    assert not responses.lacks_something(FULL)


@pytest.mark.parametrize("name", sorted(FULL.keys() - {"fax_id"}))
def test_record_lacks_missing_fields_and_nulls(name: str) -> None:
    assert responses.lacks_something({key: FULL[key] for key in FULL.keys() - {name}})
    assert responses.lacks_something(FULL | {name: None})


def test_what_was_listed_holds_and_the_rest_is_added() -> None:
    listed = {"fax_id": "A", "pages": None, "originating_fax_tsid": "", "region": None}
    said = {"fax_id": "a", "pages": 2, "originating_fax_tsid": "x", "new": {"y": [1]}}
    assert responses.completed(listed, said | {"image_downloaded": True}) == {
        "fax_id": "A",
        "pages": 2,
        "originating_fax_tsid": "",
        "region": None,
        "new": {"y": [1]},
    }


@pytest.mark.parametrize(
    ("mark", "is_new"),
    [(False, True), ("false", True), (True, False), ("true", False), (None, False)],
)
def test_a_fax_is_listed_as_new_only_where_the_list_says_so(mark: object, is_new: bool) -> None:
    assert responses.listed_as_new({"image_downloaded": mark}) is is_new
    assert not responses.listed_as_new({})
