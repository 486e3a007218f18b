"""Answers of /notifications, in any shape that may come."""

from datetime import UTC, datetime

import pytest

from poller.efax import notices, requests
from poller.efax.requests import Call
from poller.errors import BadAnswer
from poller.stream import Direction

WHEN = datetime(2024, 5, 21, 4, 27, 56, tzinfo=UTC)


def test_a_notice_names_a_fax_its_user_its_direction_and_its_time() -> None:
    page = notices.parse_notices(
        b'[{"app_id": "1", "user_id": "u", "fax_id": "a", "fax_direction": "INBOUND",'
        b' "fax_completed_timestamp": "2024-05-21T04:27:56.000+0000", "new": [1]}]'
    )
    (notice,) = page.notices
    assert (notice.fax_id, notice.user_id) == ("a", "u")
    assert (notice.direction, notice.completed_at) == (Direction.RECEIVED, WHEN)
    assert notice.raw["new"] == [1]


@pytest.mark.parametrize(
    ("text", "direction"),
    [
        ('"inbound"', Direction.RECEIVED),
        ('"RECEIVED"', Direction.RECEIVED),
        ('" Outbound "', Direction.SENT),
        ('"SENT"', Direction.SENT),
        ('"sideways"', None),
        ("7", None),
    ],
)
def test_a_direction_is_read_or_unknown(text: str, direction: Direction | None) -> None:
    page = notices.parse_notices(f'[{{"fax_id": "a", "fax_direction": {text}}}]'.encode())
    assert page.notices[0].direction is direction


def test_missing_or_odd_fields_are_unknown_and_stop_nothing() -> None:
    page = notices.parse_notices(
        b'[null, {}, {"fax_id": ""}, {"fax_id": 7},'
        b' {"fax_id": "b", "user_id": 5, "fax_completed_timestamp": 1},'
        b' {"fax_id": "c", "user_id": "", "fax_completed_timestamp": "soon"}]'
    )
    assert [notice.fax_id for notice in page.notices] == ["7", "b", "c"]
    known = {(one.user_id, one.direction, one.completed_at) for one in page.notices}
    assert known == {(None, None, None)}
    assert (page.unusable, len(page)) == (3, 6)


@pytest.mark.parametrize(
    ("body", "count"),
    [
        (b"", 0),
        (b" \n", 0),
        (b"[]", 0),
        (b"{}", 0),
        (b'{"notifications": null}', 0),
        (b'{"total": 1, "notifications": [{"fax_id": "a"}]}', 1),
    ],
)
def test_an_empty_answer_and_an_object_around_the_list_are_taken(body: bytes, count: int) -> None:
    assert len(notices.parse_notices(body)) == count


@pytest.mark.parametrize("body", [b"<html>", b'"a"', b"7", b"null", b'{"errors": [{}]}'])
def test_an_answer_without_a_list_is_bad(body: bytes) -> None:
    with pytest.raises(BadAnswer):
        notices.parse_notices(body)


def test_notices_are_asked_for_since_a_time_page_by_page() -> None:
    request = requests.notifications_request("u", "t", WHEN, offset=100)
    assert (request.call, request.method) == (Call.NOTIFICATIONS, "GET")
    assert request.target == (
        "/notifications?min_completed_timestamp=2024-05-21T04%3A27%3A56.000%2B0000"
    )
    assert request.headers["pagination-offset"] == "100"
    assert requests.notifications_request("u", "t", None, offset=0).target == "/notifications"


@pytest.mark.parametrize(
    ("fields", "direction"),
    [
        ({}, None),
        ({"direction": 3, "transmission_data": None}, None),
        ({"direction": "Inbound", "transmission_data": {}}, Direction.RECEIVED),
        ({"direction": "OUTBOUND"}, Direction.SENT),
        ({"transmission_data": [{}]}, Direction.SENT),
        ({"direction": "?", "client_tracking_data": {}}, Direction.SENT),
        ({"routing_data": {}}, Direction.SENT),
    ],
)
def test_metadata_tell_the_direction_or_what_only_a_sent_fax_has_does(
    fields: dict[str, object], direction: Direction | None
) -> None:
    assert notices.direction_of(fields) is direction
