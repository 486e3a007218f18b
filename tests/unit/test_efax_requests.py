"""Requests: exact methods, targets and headers."""

import base64
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poller.efax import requests
from poller.efax.requests import Call
from poller.efax.timestamps import format_timestamp, parse_timestamp
from poller.window import Interval

START = datetime(2024, 5, 21, 4, 27, 56, 999999, tzinfo=UTC)
BOUNDS = Interval(START, START + timedelta(hours=1))


@pytest.mark.parametrize(
    ("instant", "text"),
    [
        pytest.param(START, "2024-05-21T04:27:56.999+0000", id="cut to milliseconds"),
        pytest.param(
            datetime(2024, 5, 21, 0, 0, tzinfo=timezone(timedelta(hours=-8))),
            "2024-05-21T08:00:00.000+0000",
            id="told in UTC",
        ),
        pytest.param(datetime(33, 1, 1, tzinfo=UTC), "0033-01-01T00:00:00.000+0000", id="old"),
    ],
)
def test_a_timestamp_goes_out_in_utc_without_a_colon_in_the_offset(
    instant: datetime, text: str
) -> None:
    assert format_timestamp(instant) == text


@pytest.mark.parametrize(
    "text",
    [
        "2024-05-21T04:27:56.000+0000",
        "2024-05-21T04:27:56.000+00:00",
        "2024-05-21T04:27:56Z",
        "2024-05-21t04:27:56z",
        "2024-05-21T04:27:56",
        " 2024-05-21 04:27:56 ",
        "2024-05-21T04:27:56.000000000Z",
        "2024-05-21T04:27:56,0",
        "2024-05-20T20:27:56.0-0800",
        "2024-05-21T09:57:56+05:30",
        "2024-05-21T05:27:56+01",
    ],
)
def test_every_spelling_of_a_timestamp_that_is_around_is_read(text: str) -> None:
    assert parse_timestamp(text) == datetime(2024, 5, 21, 4, 27, 56, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "2024-02-30T00:00:00Z",
        "2024-05-21T25:00:00Z",
        "2024-05-21T04:27:56+9900",
        "0001-01-01T00:00:00+0100",
        "2024-05-21T04:27:56.1234567890Z",
        "٢٠٢٤-05-21T04:27:56Z",
        "2024-05-21",
        "1716265676000",
    ],
)
def test_text_that_is_not_a_timestamp_gives_none(text: str) -> None:
    assert parse_timestamp(text) is None


@given(st.datetimes(min_value=datetime(2000, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001
def test_a_timestamp_comes_back_but_for_its_microseconds(instant: datetime) -> None:
    back = parse_timestamp(format_timestamp(instant))
    assert back == instant.replace(microsecond=instant.microsecond // 1000 * 1000)


def test_signing_in_sends_basic_credentials_and_a_form() -> None:
    request = requests.token_request("12345", "sécret:x")
    assert (request.method, request.target) == ("POST", "/tokens")
    scheme, credentials = request.headers["Authorization"].split(" ")
    assert scheme == "Basic"
    assert base64.b64decode(credentials).decode() == "12345:sécret:x"
    assert request.headers["Content-Type"] == "application/x-www-form-urlencoded"
    assert request.body == b"grant_type=client_credentials"


def test_a_list_is_asked_for_with_encoded_bounds_and_paging_headers() -> None:
    request = requests.list_request("user-1", "tok", BOUNDS, offset=97, image_downloaded=False)
    assert request.call is Call.LIST
    assert request.method == "GET"
    assert request.target == (
        "/faxes/received?min_completed_timestamp=2024-05-21T04%3A27%3A56.999%2B0000"
        "&max_completed_timestamp=2024-05-21T05%3A27%3A56.999%2B0000&image_downloaded=false"
    )
    assert request.headers == {
        "Accept": "application/json",
        "Authorization": "Bearer tok",
        "user-id": "user-1",
        "pagination-offset": "97",
        "pagination-limit": "100",
    }
    assert request.body is None


def test_a_list_of_all_time_has_no_query() -> None:
    request = requests.list_request("user-1", "tok", None, offset=0)
    assert request.target == "/faxes/received"
    assert request.headers["pagination-limit"] == "100"


def test_a_list_of_downloaded_faxes_can_be_asked_for() -> None:
    request = requests.list_request("user-1", "tok", None, offset=0, image_downloaded=True)
    assert request.target == "/faxes/received?image_downloaded=true"


@pytest.mark.parametrize(
    ("fax_id", "path"),
    [
        pytest.param("0f8a-1", "/faxes/0f8a-1", id="plain"),
        pytest.param("a/b?c#d e+f", "/faxes/a%2Fb%3Fc%23d%20e%2Bf", id="reserved characters"),
        pytest.param("..", "/faxes/%2E%2E", id="would climb"),
        pytest.param("a..b", "/faxes/a..b", id="harmless dots"),
        pytest.param("é\x00", "/faxes/%C3%A9%00", id="not ASCII"),
    ],
)
def test_a_fax_id_is_percent_encoded_in_the_path(fax_id: str, path: str) -> None:
    assert requests.metadata_request("u", "t", fax_id).target == f"{path}/metadata"


def test_the_other_calls_are_as_documented() -> None:
    image = requests.image_request("u", "t", "f", "tiff")
    assert (image.method, image.target) == ("GET", "/faxes/f/image?desired_format=TIFF")
    metadata = requests.metadata_request("u", "t", "f")
    assert (metadata.method, metadata.target) == ("GET", "/faxes/f/metadata")
    health = requests.health_request()
    assert (health.method, health.target) == ("GET", "/health")
    assert "Authorization" not in health.headers


def test_sent_faxes_are_listed_with_encoded_filters() -> None:
    request = requests.sent_list_request(
        "u", "t", BOUNDS, offset=3, transmission_status="IN PROGRESS", transaction_id="a&b"
    )
    assert request.call is Call.SENT_LIST
    assert request.target == (
        "/faxes/sent?min_completed_timestamp=2024-05-21T04%3A27%3A56.999%2B0000"
        "&max_completed_timestamp=2024-05-21T05%3A27%3A56.999%2B0000"
        "&transmission_status=IN%20PROGRESS&transaction_id=a%26b"
    )
    assert request.headers["pagination-offset"] == "3"
    assert requests.sent_list_request("u", "t", None, offset=0).target == "/faxes/sent"


def test_calls_that_change_a_fax_are_as_documented() -> None:
    delete = requests.delete_request("u", "t", "a/b")
    assert (delete.call, delete.method, delete.target) == (Call.DELETE, "DELETE", "/faxes/a%2Fb")
    for downloaded, body in ((True, b'{"image_downloaded": true}'), (False, None)):
        mark = requests.mark_request("u", "t", "f", downloaded=downloaded)
        assert (mark.call, mark.method, mark.target) == (Call.MARK, "PATCH", "/faxes/f/metadata")
        assert mark.headers["Content-Type"] == "application/json"
        assert mark.body == (body or b'{"image_downloaded": false}')


@pytest.mark.parametrize("last", ["details", "detail"])
def test_transmission_details_have_two_names(last: str) -> None:
    request = requests.details_request("u", "t", "f", last=last)
    assert (request.call, request.target) == (Call.DETAILS, f"/faxes/f/transmission-{last}")


def test_a_request_does_not_show_its_secrets() -> None:
    assert "tok-en" not in repr(requests.list_request("u", "tok-en", None, offset=0))
    assert "Basic" not in repr(requests.token_request("1", "key"))
