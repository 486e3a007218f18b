"""Reading a list to its end while it shifts, with any page size of the server."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from poller.listing import MOST_RESTARTS, Listing, Step
from tests.exhaustive import often


@dataclass
class Server:
    """A model of the list call; `before` changes the list when its page number is requested."""

    ids: list[str]
    cap: int = 100
    ignores_offset: bool = False
    before: Callable[[int, list[str]], None] = lambda number, ids: None
    asked: int = 0
    delivered: set[str] = field(default_factory=set)

    def page(self, offset: int) -> list[str]:
        self.before(self.asked, self.ids)
        self.asked += 1
        begin = 0 if self.ignores_offset else offset
        page = self.ids[begin : begin + self.cap]
        self.delivered |= set(page)
        return page


def read(server: Server, listing: Listing | None = None, most: int = 2000) -> Step:
    """Read to the step that ends the listing."""
    listing = listing or Listing()
    for _ in range(most):
        step = listing.page(server.page(listing.offset))
        if step not in (Step.MORE, Step.RESTART):
            return step
    raise AssertionError("the listing does not end")


def steps(*pages: str, listing: Listing | None = None) -> list[Step]:
    """Feed pages whose ids are single letters."""
    listing = listing or Listing()
    return [listing.page(list(page)) for page in pages]


def at(number: int, change: Callable[[list[str]], None]) -> Callable[[int, list[str]], None]:
    return lambda asked, ids: change(ids) if asked == number else None


def fax_ids(count: int) -> list[str]:
    return [f"fax-{n}" for n in range(count)]


MORE, DONE, RESTART = Step.MORE, Step.DONE, Step.RESTART


@pytest.mark.parametrize(
    ("pages", "expected"),
    [
        pytest.param([""], [DONE], id="empty"),
        pytest.param(["A", ""], [MORE, DONE], id="single-record"),
        pytest.param(["AB", "B"], [MORE, DONE], id="one-page"),
        pytest.param(["ABCDEFG", "EFGHIJK", "IJKL", "KL"], [MORE] * 3 + [DONE], id="three-pages"),
        pytest.param(["ABCD", "CDE", "E"], [MORE, MORE, DONE], id="a-short-page-is-not-the-end"),
    ],
)
def test_a_list_that_stands_still_is_read_to_its_end(
    pages: list[str], expected: list[Step]
) -> None:
    assert steps(*pages) == expected


def test_the_next_page_begins_a_few_records_before_the_end_of_what_was_read() -> None:
    listing = Listing()
    listing.page(fax_ids(100))
    assert listing.offset == 97
    listing.page(fax_ids(101)[97:])
    assert listing.offset == 99
    assert listing.seen == set(fax_ids(101))


def test_records_inserted_between_two_pages_are_seen_in_a_second_reading() -> None:
    server = Server(fax_ids(20), cap=6, before=at(2, lambda ids: ids.insert(0, "late")))
    listing = Listing()
    assert read(server, listing) is DONE
    assert listing.restarts == 1
    assert server.delivered == {*fax_ids(20), "late"}


def test_a_page_of_nothing_but_what_was_seen_is_not_the_end_when_it_shifted() -> None:
    assert steps("ABCD", "BCD", "DE", "E") == [MORE, MORE, MORE, RESTART]


def test_after_three_readings_a_list_that_only_grows_is_taken_as_read() -> None:
    listing = Listing()
    for _ in range(MOST_RESTARTS):
        assert steps("ABCD", "BCDE", "DE", listing=listing) == [MORE, MORE, RESTART]
    assert steps("ABCD", "BCDE", "DE", listing=listing) == [MORE, MORE, DONE]


@pytest.mark.parametrize(
    "second",
    [
        pytest.param("DE", id="of-a-record-in-the-overlap"),
        pytest.param("EF", id="of-the-whole-overlap"),
        pytest.param("", id="of-the-rest"),
        pytest.param("C", id="of-the-end"),
        pytest.param("CXD", id="and-insertion-in-the-overlap"),
    ],
)
def test_a_deletion_between_pages_begins_the_list_again(second: str) -> None:
    listing = Listing()
    assert steps("ABCD", second, listing=listing) == [MORE, RESTART]
    assert listing.offset == 0
    assert listing.seen == set()


def test_a_list_that_keeps_losing_records_is_halved_after_three_new_beginnings() -> None:
    listing = Listing()
    assert steps(*["ABCD", "E"] * 4, listing=listing) == [
        *[MORE, RESTART] * MOST_RESTARTS,
        MORE,
        Step.HALVE_SHIFTING,
    ]


def test_pages_that_show_nothing_new_do_not_go_on_for_ever() -> None:
    assert steps("ABCDEF", "BDEF", "CDEF", "ADEF") == [MORE, MORE, MORE, RESTART]


def test_news_in_between_lets_reading_continue_after_pages_without_news() -> None:
    pages = ["ABCDEF", "BDEF", "CEF", "FG", "DG", "EG", "GG"]
    assert steps(*pages) == [MORE] * 6 + [RESTART]


def test_an_ignored_offset_halves_the_slice() -> None:
    listing = Listing()
    assert steps("ABCD", "ABCD", "ABCD", listing=listing) == [
        MORE,
        MORE,
        Step.HALVE_OFFSET_IGNORED,
    ]
    assert listing.largest_page == 4


def test_a_page_shorter_than_the_largest_is_the_whole_list_while_the_offset_is_ignored() -> None:
    listing = Listing(largest_page=4)
    assert steps("ABC", "ABC", "ABC", listing=listing) == [MORE, MORE, DONE]
    assert listing.largest_page == 4
    assert steps("ABCD", "ABCD", "ABCD", listing=Listing(largest_page=4))[-1] is (
        Step.HALVE_OFFSET_IGNORED
    )


def test_a_single_record_is_the_whole_list_while_the_offset_is_ignored() -> None:
    assert steps("A", "A", "A") == [MORE, MORE, DONE]


def test_as_many_insertions_as_lie_between_two_pages_are_no_ignored_offset() -> None:
    server = Server(fax_ids(5), cap=2, before=at(1, lambda ids: ids.insert(0, "late")))
    assert read(server) is DONE
    assert server.delivered == {*fax_ids(5), "late"}


def test_an_ignored_offset_is_found_although_a_fax_arrives() -> None:
    arrival = at(1, lambda ids: ids.insert(0, "late"))
    server = Server(fax_ids(9), ignores_offset=True, before=arrival)
    assert read(server, most=10) is Step.HALVE_OFFSET_IGNORED


def test_an_ignored_offset_ends_although_a_fax_arrives_with_every_page() -> None:
    server = Server(
        fax_ids(9), cap=12, ignores_offset=True, before=lambda n, ids: ids.insert(0, f"late-{n}")
    )
    assert read(server, most=40) is Step.HALVE_SHIFTING


def test_pages_of_one_record_are_read_until_two_readings_agree() -> None:
    server = Server(fax_ids(3), cap=1, before=at(1, lambda ids: ids.remove("fax-0")))
    listing = Listing()
    assert read(server, listing) is DONE
    assert server.delivered == set(fax_ids(3))
    assert listing.restarts == 2


def test_pages_of_one_record_that_never_agree_are_halved() -> None:
    def replace(number: int, ids: list[str]) -> None:
        ids[-1] = f"new-{number}"

    assert read(Server(fax_ids(3), cap=1, before=replace)) is Step.HALVE_SHIFTING


def test_insertions_here_and_there_are_no_ignored_offset() -> None:
    assert steps("AB", "AB", "BC", "BC", "CD") == [MORE] * 5


def test_an_insertion_is_noticed_without_an_overlap_too() -> None:
    server = Server(fax_ids(3), cap=1, before=at(2, lambda ids: ids.insert(0, "late")))
    assert read(server) is DONE
    assert server.delivered == {*fax_ids(3), "late"}


@pytest.mark.parametrize(
    "pages",
    [
        pytest.param(["AABB", "BB"], id="a-record-twice-in-a-page"),
        pytest.param(["ABCDEF", "DEFA", "FA"], id="a-record-twice-in-the-list"),
        pytest.param(["AAAA", "AA"], id="always-the-same"),
    ],
)
def test_records_that_come_twice_do_not_confuse_the_end(pages: list[str]) -> None:
    assert steps(*pages)[-1] is DONE


def test_a_page_longer_than_asked_for_is_read_like_any_other() -> None:
    server = Server(fax_ids(1234), cap=500)
    assert read(server) is DONE
    assert server.delivered == set(fax_ids(1234))
    assert server.asked == 4


# -- properties against the model ---------------------------------------------------------------

LENGTHS, CAPS = st.integers(0, 40), st.integers(1, 12)


@settings(max_examples=often(50))
@given(length=LENGTHS, cap=CAPS)
def test_a_stable_list_is_read_whole_in_bounded_requests(length: int, cap: int) -> None:
    server, listing = Server(fax_ids(length), cap), Listing()
    assert read(server, listing) is DONE
    assert listing.seen == server.delivered == set(fax_ids(length))
    readings = 2 if cap == 1 and length > 1 else 1
    assert server.asked <= readings * (2 * length / cap + 3 if cap > 3 else length + 1)


@settings(max_examples=often(100))
@given(
    length=LENGTHS,
    cap=CAPS,
    number=st.integers(0, 20),
    place=st.integers(0, 40),
    inserts=st.booleans(),
)
def test_one_insertion_or_deletion_hides_no_record_that_stays(
    length: int, cap: int, number: int, place: int, inserts: bool
) -> None:
    # One page of one record, then nothing: we assume a page size of at least two.
    assume(cap > 1 or length > 2)

    def change(ids: list[str]) -> None:
        if inserts:
            ids.insert(min(place, len(ids)), "late")
        elif ids:
            del ids[place % len(ids)]

    server = Server(fax_ids(length), cap, before=at(number, change))
    assert read(server) is DONE
    assert set(server.ids) & set(fax_ids(length)) <= server.delivered


Changes = st.lists(
    st.tuples(st.integers(0, 60), st.booleans(), st.integers(0, 40), st.integers(1, 5)), max_size=8
)


@settings(max_examples=often(60))
@given(length=LENGTHS, cap=CAPS, changes=Changes, ignores=st.booleans(), largest=st.integers(0, 12))
def test_reading_any_list_ends(
    length: int,
    cap: int,
    changes: Sequence[tuple[int, bool, int, int]],
    ignores: bool,
    largest: int,
) -> None:
    def change(asked: int, ids: list[str]) -> None:
        for n, (number, inserts, place, count) in enumerate(changes):
            if number == asked and inserts:
                ids[place:place] = [f"late-{n}-{m}" for m in range(count)]
            elif number == asked:
                del ids[place : place + count]

    server = Server(fax_ids(length), cap, ignores, change)
    read(server, Listing(largest_page=largest), most=1000)


@settings(max_examples=often(40))
@given(length=LENGTHS, cap=st.integers(2, 12), known=st.booleans())
def test_a_list_with_ignored_offsets_is_only_done_when_it_was_seen_whole(
    length: int, cap: int, known: bool
) -> None:
    server = Server(fax_ids(length), cap, ignores_offset=True)
    step = read(server, Listing(largest_page=cap if known else 0))
    assert step is DONE or length >= 2
    if step is DONE:
        assert server.delivered == set(fax_ids(length))
    if known:
        assert (step is DONE) == (length < cap)
