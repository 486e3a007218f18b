"""Recognize our own faxes: numbers, sent faxes, arrived faxes."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from poller.efax.responses import ListedFax, listed_pages
from poller.recognition import (
    Expected,
    csid_of,
    find_arrived,
    find_sent,
    is_same_number,
    may_be_sent,
    to_dial,
)

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
OURS = "3e1c3a52-7a10-4c5e-9d0c-0d1f53a8b0aa"
NUMBER = "13235551212"


@pytest.mark.parametrize(
    ("typed", "dialled"),
    [
        pytest.param("13235551212", NUMBER, id="as-efax-writes-it"),
        pytest.param("3235551212", NUMBER, id="ten-digits"),
        pytest.param("+1 (323) 555-1212", NUMBER, id="as-people-write-it"),
        pytest.param("+44 20 7946 0018", "+442079460018", id="abroad"),
    ],
)
def test_a_number_is_dialled_as_efax_wants_it(typed: str, dialled: str) -> None:
    assert to_dial(typed) == dialled


@pytest.mark.parametrize(
    ("typed", "why"),
    [
        pytest.param("", "may contain only digits", id="empty"),
        pytest.param("front desk", "may contain only digits", id="words"),
        pytest.param("555-1212", "North America", id="without-its-area"),
        pytest.param("442079460018", "North America", id="abroad-without-plus"),
        pytest.param("0323555121", "North America", id="no-such-area"),
        pytest.param("+1 323 555 121", "North America", id="a-digit-short"),
        pytest.param("+44", "7 to 15 digits", id="only-a-country"),
        pytest.param("+4420794600181234", "7 to 15 digits", id="too-long"),
    ],
)
def test_text_that_is_not_a_number_is_refused_with_a_reason(typed: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        to_dial(typed)


@pytest.mark.parametrize(
    ("other", "is_same"),
    [("3235551212", True), ("+1 323 555 1212", True), ("13235551213", False), ("", False)],
)
def test_numbers_are_compared_by_their_digits(other: str, is_same: bool) -> None:
    assert is_same_number(NUMBER, other) is is_same


def test_two_texts_without_a_digit_are_no_number() -> None:
    assert not is_same_number("unavailable", "anonymous")


# -- what was sent --------------------------------------------------------------------------------


def sent(fax_id: str, **raw: Any) -> ListedFax:
    return ListedFax(fax_id, NOON, 1, {"destination_fax_number": NUMBER, **raw})


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param({"client_tracking_data": {"client_reference_id": OURS}}, id="object"),
        pytest.param({"client_tracking_data": [{"client_reference_id": OURS}]}, id="array"),
        pytest.param({"transaction_id": OURS.upper()}, id="flat"),
    ],
)
def test_the_fax_that_bears_our_transaction_id_is_ours(raw: dict[str, Any]) -> None:
    assert find_sent(OURS, [sent("f-0"), sent("f-1", **raw), sent("f-2")]) == "f-1"


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param({}, id="the-same-number-and-time"),
        pytest.param({"client_tracking_data": {"client_reference_id": "x"}}, id="anothers"),
        pytest.param({"transaction_id": f"{OURS}-2"}, id="a-part-of-it"),
        pytest.param({"deep": [[[[[[[OURS]]]]]]]}, id="deeper-than-anybody-writes"),
    ],
)
def test_no_other_fax_is_ours(raw: dict[str, Any]) -> None:
    assert find_sent(OURS, [sent("f-1", **raw)]) is None


@pytest.mark.parametrize(
    ("raw", "at", "may_be"),
    [
        ({}, None, True),
        ({"destination_fax_number": "3235551212"}, NOON, True),
        ({"destination_fax_number": ""}, NOON - MINUTE, True),
        ({"destination_fax_number": 7}, NOON, True),
        ({"destination_fax_number": "13235550000"}, NOON, False),
        ({}, NOON - 5 * MINUTE, False),
    ],
)
def test_a_record_of_another_number_or_time_cannot_be_of_our_fax(
    raw: dict[str, Any], at: datetime | None, may_be: bool
) -> None:
    assert may_be_sent(ListedFax("f-1", at, None, raw), NUMBER, NOON) is may_be


# -- what has arrived -----------------------------------------------------------------------------

CANARY = Expected(1, "7K3Q9X2M", NUMBER, NOON, NOON + 30 * MINUTE)
LATER = Expected(2, "A4B5C6D7", NUMBER, NOON + 10 * MINUTE, NOON + 40 * MINUTE)


def came(
    tsid: Any = "Carrier", at: datetime | None = NOON + MINUTE, pages: Any = 1, number: Any = NUMBER
) -> ListedFax:
    raw = {"originating_fax_tsid": tsid, "originating_fax_number": number, "pages": pages}
    return ListedFax("f-1", at, listed_pages(raw), raw)


def test_efax_accepts_the_senders_id_that_we_give() -> None:
    assert csid_of(CANARY.code) == "POLLER 7K3Q9X2M"
    assert len(csid_of(CANARY.code)) <= 20


@pytest.mark.parametrize("tsid", ["POLLER A4B5C6D7", " poller-a4b5c6d7 ", "A4B5C6D7"])
def test_a_page_is_known_by_its_code_however_it_is_spelled(tsid: str) -> None:
    assert find_arrived([CANARY, LATER], came(tsid, at=None, pages=None)) == LATER


def test_a_page_whose_senders_id_was_changed_is_known_by_number_and_time() -> None:
    assert find_arrived([LATER, CANARY], came()) == CANARY
    assert find_arrived([LATER, CANARY], came(None, pages="1", number="+1 323-555-1212")) == CANARY


def test_of_several_that_it_may_be_it_is_the_one_sent_last() -> None:
    assert find_arrived([LATER, CANARY], came(at=NOON + 20 * MINUTE)) == LATER
    assert find_arrived([CANARY, LATER], came(at=NOON + 20 * MINUTE)) == LATER


@pytest.mark.parametrize(
    "fax",
    [
        pytest.param(came("POLLER ZZZZZZZZ"), id="another-code"),
        pytest.param(came(pages=2), id="two-pages"),
        pytest.param(came(pages=None), id="pages-unknown"),
        pytest.param(came(number="13235550000"), id="another-number"),
        pytest.param(came(number=None), id="no-number"),
        pytest.param(came(at=NOON - 5 * MINUTE), id="before-it-was-sent"),
        pytest.param(came(at=NOON + 33 * MINUTE), id="when-it-was-late"),
        pytest.param(came(at=None), id="without-a-time"),
    ],
)
def test_somebody_elses_fax_is_not_taken_for_ours(fax: ListedFax) -> None:
    assert find_arrived([CANARY], fax) is None
