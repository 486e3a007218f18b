"""The simulator is as strict as the API's description."""

import random
from datetime import UTC, datetime, timedelta

import pytest

from poller.simulator import Switches, query, replies, selection
from poller.simulator.query import MalformedError, Paging, Window
from poller.simulator.state import Fax, Mailbox, RateLimit

NOON = datetime(2024, 5, 21, 12, tzinfo=UTC)
EVERY = query.parse_filters({})


def read(text: str, *, refuse_bare_colon: bool = True) -> dict[str, str]:
    return query.parse_query(
        text, allowed=query.LIST_PARAMETERS, refuse_bare_colon=refuse_bare_colon
    )


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        pytest.param("2021-06-09T09:17:32-0800", "2021-06-09T17:17:32Z", id="west"),
        pytest.param("2021-06-09T09:17:32+0530", "2021-06-09T03:47:32Z", id="east"),
        pytest.param("2024-05-21T04:27:56.123+0000", "2024-05-21T04:27:56.123Z", id="fraction"),
    ],
)
def test_a_timestamp_in_the_format_is_read(text: str, instant: str) -> None:
    assert query.parse_timestamp("t", text) == datetime.fromisoformat(instant)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("2021-06-09T09:17:32Z", id="Z"),
        pytest.param("2021-06-09T09:17:32+00:00", id="colon in the offset"),
        pytest.param("2021-06-09T09:17:32 0000", id="plus that became a blank"),
        pytest.param("2021-06-09T09:17:32", id="no offset"),
        pytest.param("2021-06-09T09:17:32.1+0000", id="one digit of fraction"),
        pytest.param("2021-06-09T09:17:32.123456+0000", id="six digits of fraction"),
        pytest.param("2021-06-09 09:17:32+0000", id="blank for T"),
        pytest.param("2021-13-09T09:17:32+0000", id="month 13"),
        pytest.param("2021-06-09T24:17:32+0000", id="hour 24"),
        pytest.param("2021-06-09T09:17:32+2400", id="offset of a day"),
        pytest.param("0001-01-01T00:00:00+0100", id="before the first year"),
        pytest.param("２021-06-09T09:17:32+0000", id="a wide digit"),
        pytest.param("", id="empty"),
    ],
)
def test_a_timestamp_in_any_other_format_is_malformed(text: str) -> None:
    with pytest.raises(MalformedError):
        query.parse_timestamp("t", text)


def test_a_well_encoded_query_is_read() -> None:
    assert read(
        "min_completed_timestamp=2021-06-09T09%3A17%3A32%2B0000&image_downloaded=false"
    ) == {"min_completed_timestamp": "2021-06-09T09:17:32+0000", "image_downloaded": "false"}
    assert read("") == {}


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("min_pages=1:2", id="bare colon"),
        pytest.param("min_pages=1/2", id="bare slash"),
        pytest.param("min_pages=1=2", id="second equals sign"),
        pytest.param("min_pages=%2", id="broken percent"),
        pytest.param("min_pages=é", id="not ASCII"),
        pytest.param("min_pages", id="no value"),
        pytest.param("min_pages=1&min_pages=2", id="given twice"),
        pytest.param("min_pages=1&", id="empty part"),
        pytest.param("pages=1", id="unknown"),
    ],
)
def test_a_query_that_is_not_well_encoded_is_malformed(text: str) -> None:
    with pytest.raises(MalformedError):
        read(text)


def test_a_bare_colon_passes_when_it_is_not_refused() -> None:
    assert read("search_text=a:b", refuse_bare_colon=False) == {"search_text": "a:b"}


def test_a_bare_plus_is_a_blank() -> None:
    assert read("search_text=a+b") == {"search_text": "a b"}


def test_a_window_whose_minimum_is_after_its_maximum_is_malformed() -> None:
    bounds = {
        "min_completed_timestamp": "2024-05-21T04:27:56+0000",
        "max_completed_timestamp": "2024-05-21T04:27:55+0000",
    }
    with pytest.raises(MalformedError):
        query.parse_window(bounds)


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"pagination-offset": "-1"}, id="negative offset"),
        pytest.param({"pagination-limit": "0"}, id="no limit at all"),
        pytest.param({"pagination-limit": "ten"}, id="no number"),
    ],
)
def test_wrong_paging_headers_are_malformed(headers: dict[str, str]) -> None:
    with pytest.raises(MalformedError):
        query.parse_paging(headers, refuse_above_100=False)


def test_a_limit_above_100_is_cut_or_refused() -> None:
    headers = {"pagination-limit": "101", "pagination-offset": "7"}
    assert query.parse_paging(headers, refuse_above_100=False) == Paging(7, 100)
    with pytest.raises(MalformedError):
        query.parse_paging(headers, refuse_above_100=True)


@pytest.mark.parametrize(
    "values", [{"image_downloaded": "yes"}, {"min_pages": "x"}, {"max_pages": "-1"}]
)
def test_wrong_filters_are_malformed(values: dict[str, str]) -> None:
    with pytest.raises(MalformedError):
        query.parse_filters(values)


@pytest.mark.parametrize(
    ("header", "credentials"),
    [
        pytest.param("Basic YTpiOmM=", ("a", "b:c"), id="colon in the key"),
        pytest.param("basic YTpi", ("a", "b"), id="small letters"),
        pytest.param("Basic YTpi!", None, id="no base64"),
        pytest.param("Basic YWI=", None, id="no colon"),
        pytest.param("Basic /////w==", None, id="no UTF-8"),
        pytest.param("Bearer YTpi", None, id="another scheme"),
        pytest.param("", None, id="none"),
    ],
)
def test_basic_authorization_is_read(header: str, credentials: tuple[str, str] | None) -> None:
    assert query.parse_basic(header) == credentials


def test_bearer_authorization_is_read() -> None:
    assert query.parse_bearer("bearer abc") == "abc"
    assert query.parse_bearer("bearer ") is None
    assert query.parse_bearer("Basic abc") is None
    assert query.parse_bearer("Bearer abc", strict=True) == "abc"
    assert query.parse_bearer("bearer abc", strict=True) is None


def mailbox(*minutes: float, pages: int = 1, late: timedelta = timedelta(0)) -> Mailbox:
    box = Mailbox("app", "user")
    for number, minute in enumerate(minutes, start=1):
        completed = NOON - timedelta(minutes=minute)
        box.add(Fax("a", "u", f"f{number}", completed, completed + late, number, pages=pages))
    return box


def ids(faxes: list[Fax]) -> list[str]:
    return [fax.fax_id for fax in faxes]


WIDE = Window(NOON - timedelta(minutes=30), NOON - timedelta(minutes=10))


@pytest.mark.parametrize(
    ("switches", "expected"),
    [
        pytest.param(Switches(), ["f1", "f2", "f3"], id="both inclusive"),
        pytest.param(Switches(lower_bound="exclusive"), ["f1", "f2"], id="lower exclusive"),
        pytest.param(Switches(upper_bound="exclusive"), ["f2", "f3"], id="upper exclusive"),
    ],
)
def test_bounds_are_inclusive_or_exclusive(switches: Switches, expected: list[str]) -> None:
    box = mailbox(10, 20, 30, 9, 31)
    assert ids(selection.matching(switches, box, WIDE, EVERY, NOON)) == expected


def test_a_fax_is_listed_from_when_it_is_visible() -> None:
    box = mailbox(10, late=timedelta(minutes=10, seconds=1))
    assert not selection.matching(Switches(), box, Window(), EVERY, NOON)
    assert selection.matching(Switches(), box, Window(), EVERY, NOON + timedelta(seconds=1))


def test_a_list_without_minimum_reaches_back_as_far_as_the_switch_says() -> None:
    switches = Switches(default_window_s=3600.0)
    found = selection.matching(switches, mailbox(59, 61), Window(), EVERY, NOON)
    assert ids(found) == ["f1"]


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        pytest.param({"image_downloaded": "false"}, True, id="not downloaded"),
        pytest.param({"image_downloaded": "true"}, False, id="downloaded"),
        pytest.param({"originating_fax_number": "13235551212"}, True, id="from"),
        pytest.param({"destination_fax_number": "1"}, False, id="to another number"),
        pytest.param({"search_text": "FRONT"}, True, id="search text"),
        pytest.param({"search_text": "back"}, False, id="other search text"),
        pytest.param({"min_pages": "3"}, False, id="too few pages"),
        pytest.param({"max_pages": "1"}, False, id="too many pages"),
        pytest.param({"min_pages": "2", "max_pages": "2"}, True, id="just the pages"),
    ],
)
def test_filters_narrow_a_list(filters: dict[str, str], found: bool) -> None:
    box = mailbox(1, pages=2)
    assert (
        bool(selection.matching(Switches(), box, Window(), query.parse_filters(filters), NOON))
        is found
    )


@pytest.mark.parametrize(
    ("switches", "start_s", "refused"),
    [
        pytest.param(Switches(longest_window_s=60.0), 60, False, id="just short enough"),
        pytest.param(Switches(longest_window_s=60.0), 61, True, id="too long"),
        pytest.param(Switches(oldest_window_s=60.0), 60, False, id="just young enough"),
        pytest.param(Switches(oldest_window_s=60.0), 61, True, id="too old"),
        pytest.param(Switches(), 10**8, False, id="any by default"),
    ],
)
def test_long_and_old_windows_are_refused(switches: Switches, start_s: int, refused: bool) -> None:
    window = Window(NOON - timedelta(seconds=start_s), None)
    if not refused:
        selection.check_window(switches, window, NOON)
        return
    with pytest.raises(MalformedError):
        selection.check_window(switches, window, NOON)


@pytest.mark.parametrize("start", [None, NOON - timedelta(hours=1)])
def test_a_window_that_ends_in_the_future_is_refused_where_the_switch_says_so(
    start: datetime | None,
) -> None:
    refusing, ahead = Switches(future_window="refused"), NOON + timedelta(milliseconds=1)
    selection.check_window(refusing, Window(start, NOON), NOON)
    selection.check_window(Switches(), Window(start, ahead), NOON)
    with pytest.raises(MalformedError):
        selection.check_window(refusing, Window(start, ahead), NOON)


def test_a_window_without_minimum_is_never_too_long() -> None:
    selection.check_window(Switches(longest_window_s=1.0), Window(None, NOON), NOON)


def test_order_oldest_is_the_reverse() -> None:
    faxes = mailbox(1, 2).faxes
    assert selection.ordered(Switches(order="oldest"), faxes, random.Random(1)) == faxes[::-1]


def test_unstable_order_moves_only_faxes_of_the_same_second() -> None:
    newest_first = mailbox(*[9] * 20, *[5] * 20).faxes[::-1]
    rng = random.Random(1)
    orders = [selection.ordered(Switches(order="unstable"), newest_first, rng) for _ in range(2)]
    assert orders[0] != orders[1]
    for order in orders:
        assert sorted(ids(order)) == sorted(ids(newest_first))
        completed = [fax.completed for fax in order]
        assert completed == sorted(completed, reverse=True)


@pytest.mark.parametrize(
    ("switches", "paging", "expected"),
    [
        pytest.param(Switches(), Paging(0, 2), (2, 0), id="as asked"),
        pytest.param(Switches(page_cap=3), Paging(2, 100), (3, 2), id="capped"),
        pytest.param(Switches(default_page=4), Paging(), (4, 0), id="no limit asked"),
        pytest.param(Switches(), Paging(5, 100), (0, 5), id="past the end"),
        pytest.param(
            Switches(paging_headers="ignored", page_cap=3), Paging(2, 2), (3, 0), id="ignored"
        ),
    ],
)
def test_a_page_is_cut_out(switches: Switches, paging: Paging, expected: tuple[int, int]) -> None:
    page, offset = selection.page_of(switches, mailbox(1, 2, 3, 4, 5).faxes, paging)
    assert (len(page), offset) == expected


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        ("+0000", "2024-05-21T04:27:56.789+0000"),
        ("Z", "2024-05-21T04:27:56.789Z"),
        ("+00:00", "2024-05-21T04:27:56.789+00:00"),
        ("none", "2024-05-21T04:27:56.789"),
        ("no-fraction", "2024-05-21T04:27:56+0000"),
        ("-0800", "2024-05-20T20:27:56.789-0800"),
        ("nanoseconds", "2024-05-21T04:27:56.789000000+0000"),
    ],
)
def test_timestamps_are_spelled_as_the_switch_says(spelling: str, expected: str) -> None:
    instant = datetime(2024, 5, 21, 4, 27, 56, 789_000, tzinfo=UTC)
    switches = Switches.parse([f"timestamp={spelling}"])
    assert replies.timestamp(switches, instant) == expected


def test_the_bucket_lets_a_burst_through_and_then_the_rate() -> None:
    bucket = RateLimit(rate=2.0, burst=3.0, level=3.0, at=0.0)
    assert [bucket.take(0.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert bucket.take(0.49) == pytest.approx(0.01)
    assert bucket.take(0.5) == 0.0
    assert [bucket.take(100.0) for _ in range(4)][2:] == [0.0, 0.5]


def test_two_faxes_of_one_id_are_refused() -> None:
    box = mailbox(1)
    with pytest.raises(ValueError, match="exists already"):
        box.add(Fax("a", "u", "f1", NOON, NOON, 2))
