"""When to believe empty lists: the rules, without a list."""

from datetime import UTC, datetime, timedelta

import pytest

from poller.emptiness import (
    MOST_WITNESSES,
    PROBES_WITHIN,
    Credibility,
    Lists,
    WitnessResult,
    credibility,
    is_proof_due,
)

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


@pytest.mark.parametrize(
    ("found", "says"),
    [
        pytest.param([], Credibility.UNPROVED, id="no-fax-is-known"),
        pytest.param([WitnessResult.LISTED], Credibility.PROVED, id="it-is-listed"),
        pytest.param([WitnessResult.ABSENT], Credibility.LOST, id="it-is-not"),
        pytest.param([WitnessResult.BROKEN], Credibility.LOST, id="nor-does-efax-answer-for-it"),
        pytest.param(
            [WitnessResult.ABSENT, WitnessResult.LISTED], Credibility.PROVED, id="another-one-is"
        ),
        pytest.param(
            [WitnessResult.GONE, WitnessResult.GONE], Credibility.UNPROVED, id="all-were-deleted"
        ),
        pytest.param(
            [WitnessResult.GONE, WitnessResult.ABSENT], Credibility.LOST, id="not-all-were-deleted"
        ),
        pytest.param(
            [WitnessResult.REFUSED], Credibility.UNPROVED, id="nobody-lists-so-old-a-window"
        ),
        pytest.param(
            [WitnessResult.REFUSED, WitnessResult.ABSENT],
            Credibility.LOST,
            id="a-younger-one-is-absent",
        ),
    ],
)
def test_one_known_fax_that_is_listed_proves_the_lists_of_an_account(
    found: list[WitnessResult], says: Credibility
) -> None:
    assert credibility(found) is says


@pytest.mark.parametrize(
    ("proved_s", "requests_per_second", "due"),
    [
        pytest.param(None, 5.0, True, id="never-proved"),
        pytest.param(986.0, 5.0, False, id="fourteen-seconds-ago"),
        pytest.param(985.0, 5.0, True, id="fifteen-seconds-ago"),
        pytest.param(801.0, 0.1, False, id="a-low-limit-just-before-twenty-requests"),
        pytest.param(800.0, 0.1, True, id="a-low-limit-after-twenty-requests"),
    ],
)
def test_one_proof_serves_all_lists_of_its_time_and_takes_a_twentieth_of_the_limit_at_most(
    proved_s: float | None, requests_per_second: float, *, due: bool
) -> None:
    assert is_proof_due(1000.0, proved_s, requests_per_second) is due


@pytest.mark.parametrize(
    "lists",
    [
        pytest.param(Lists(), id="nothing-was-asked"),
        pytest.param(Lists(frozenset()), id="it-would-not-say"),
        pytest.param(
            Lists(
                frozenset({"{}", "{faxes: []}"}),
                True,
                NOON,
                NOON - HOUR,
                frozenset({"{}"}),
                NOON + HOUR,
                HOUR,
                ("f1", "f2"),
                NOON,
            ),
            id="all",
        ),
    ],
)
def test_knowledge_of_lists_survives_being_written_down(lists: Lists) -> None:
    assert Lists.read(lists.text()) == lists


@pytest.mark.parametrize(
    "text", [None, "", "[]", "{}", '{"shapes": 1}', '{"doubted_since": "noon"}', "no JSON"]
)
def test_of_what_cannot_be_read_nothing_is_known(text: str | None) -> None:
    assert Lists.read(text) == Lists()


def doubted(lists: Lists, *minutes: float) -> Lists:
    for minute in minutes:
        lists = lists.doubted(NOON + minute * MINUTE)
    return lists


def test_faxes_not_listed_for_an_hour_count_as_deleted() -> None:
    assert not Lists().is_doubted_too_long
    almost = doubted(Lists(), *range(0, 60, 5), 59.9)
    assert (almost.doubted_since, almost.is_doubted_too_long) == (NOON, False)
    assert doubted(almost, 60).is_doubted_too_long
    assert doubted(almost.well(), 60) == Lists().doubted(NOON + HOUR)


@pytest.mark.parametrize(
    "minutes",
    [
        pytest.param((0, 120), id="a-pause"),
        pytest.param((0, 6000, 12000, 18000), id="seldom"),
        pytest.param((0, 60, 0, 60, 0, 60), id="a-clock-that-is-set-to-and-fro"),
    ],
)
def test_time_in_which_nobody_looked_is_no_doubt(minutes: tuple[float, ...]) -> None:
    lists = doubted(Lists(), *minutes)
    assert not lists.is_doubted_too_long
    assert lists.doubted_for <= (len(minutes) - 1) * PROBES_WITHIN
    assert lists.doubted_since == NOON


def test_outage_that_is_known_as_one_is_no_doubt_that_counts() -> None:
    lists = Lists()
    for minute in range(0, 120, 5):
        lists = lists.doubted(NOON + minute * MINUTE, is_outage=True)
    assert lists.doubted_for == timedelta(0)
    assert not doubted(lists, 125).is_doubted_too_long


def test_doubt_is_short_where_faxes_were_taken_for_deleted_and_stayed_away() -> None:
    once = doubted(Lists(), 0).believed(["f1"]).well()
    assert (once.believed_since, once.given_up) == (NOON, ("f1",))
    again = doubted(once, 60, 64.9)
    assert not again.is_doubted_too_long
    again = doubted(again, 65)
    assert again.is_doubted_too_long
    later = again.believed([f"g{number}" for number in range(9)])
    assert later.believed_since == NOON  # nothing was listed in between
    assert len(later.given_up) == 2 * MOST_WITNESSES


def test_faxes_of_windows_up_to_those_that_were_deleted_are_deleted_too() -> None:
    assert not Lists().is_deleted(NOON)
    assert Lists(deleted_until=NOON).is_deleted(NOON)
    assert not Lists(deleted_until=NOON).is_deleted(NOON + HOUR)
