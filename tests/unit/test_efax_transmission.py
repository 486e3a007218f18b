"""The transmission of a sent fax, in every spelling that occurs."""

from typing import Any

import pytest

from poller.efax.transmission import Transmission, final_status


def record(status: object, **more: Any) -> dict[str, Any]:
    return {"fax_id": "a", "transmission_data": {"transmission_status": status, **more}}


@pytest.mark.parametrize("status", ["COMPLETE", "COMPLETED", "complete", " Com plete "])
def test_complete_is_final(status: str) -> None:
    found = final_status(record(status))
    assert (found.is_final, found.is_complete, found.status) == (True, True, status)


@pytest.mark.parametrize("status", ["ERROR", "Error", "CANCELED", "CANCELLED", "cancelled"])
def test_what_failed_is_final_and_not_complete(status: str) -> None:
    found = final_status(record(status))
    assert (found.is_final, found.is_complete) == (True, False)


@pytest.mark.parametrize(
    "status",
    [
        *("NEW", "INPROGRESS", "IN PROGRESS", "INPROGESS", "PENDING RETRY"),
        *("COMPLETE\n", "COMPLETE\ud800", "COMPLETE" + " " * 64),
        *("SOMETHING NEW", "NOT COMPLETE", "", "  ", None, True, [], {}, 7),
    ],
    ids=repr,
)
def test_everything_else_is_under_way(status: object) -> None:
    assert not final_status(record(status)).is_final


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        pytest.param(
            record("ERROR", error_code="E42"), Transmission("ERROR", "E42"), id="an object"
        ),
        pytest.param(
            {"transmission_data": [{"transmission_status": "ERROR", "error_code": 42}]},
            Transmission("ERROR", "42"),
            id="an array, and a code that is a number",
        ),
        pytest.param(
            {"transmission_status": "COMPLETE", "error_code": "SFAX"},
            Transmission("COMPLETE", "SFAX"),
            id="flat",
        ),
        pytest.param(
            {"transmission_data": {"error_code": "E1"}, "transmission_status": "COMPLETE"},
            Transmission("COMPLETE"),
            id="flat, beside data that say nothing",
        ),
        pytest.param(
            {"transmission_data": {"transmission_status": "ERROR"}, "transmission_status": "NEW"},
            Transmission("ERROR"),
            id="the data decide",
        ),
        pytest.param({"fax_status": "COMPLETE"}, Transmission(), id="fax_status says nothing"),
        pytest.param({"transmission_data": "COMPLETE"}, Transmission(), id="text"),
        pytest.param({"transmission_data": [None, "x"]}, Transmission(), id="nothing usable"),
        pytest.param({"transmission_data": []}, Transmission(), id="empty array"),
        pytest.param({}, Transmission(), id="nothing"),
    ],
)
def test_a_status_is_found_where_it_stands(listed: dict[str, Any], expected: Transmission) -> None:
    assert final_status(listed) == expected


def test_of_several_one_under_way_counts_otherwise_the_last() -> None:
    several = [{"transmission_status": one} for one in ("ERROR", "NEW", "COMPLETE")]
    assert final_status({"transmission_data": several}).status == "NEW"
    del several[1]
    assert final_status({"transmission_data": several}).status == "COMPLETE"
