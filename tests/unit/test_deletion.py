"""Which faxes may be deleted at eFax: every reason to keep one, each alone."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poller.config.model import Delete
from poller.deletion import GIVEN_UP_AFTER, is_given_up, left_today, why_kept, why_unproved
from poller.stream import Direction

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)
RULE = Delete(after=DAY)


@dataclass(frozen=True)
class Row:
    """A fax of which nothing forbids the deletion."""

    direction: Direction = Direction.RECEIVED
    state: str = "stored"
    stored_at: datetime | None = NOW - 2 * DAY
    deleted_at: datetime | None = None
    damaged: bool = False
    damage: str | None = None
    refetch: bool = False


KEPT = {
    "sent": (Row(direction=Direction.SENT), "it was sent"),
    "deleted": (Row(deleted_at=NOW - DAY), "it was deleted at eFax at 2026-03-01 12:00:00 UTC"),
    "pending": (Row(state="pending"), "it is pending"),
    "quarantined": (Row(state="quarantined"), "it is quarantined"),
    "dismissed": (Row(state="dismissed"), "it is dismissed"),
    "of no known time": (Row(stored_at=None), "nobody knows when"),
    "served broken": (Row(damaged=True), "eFax served it broken"),
    "damaged": (Row(damage="no image"), "its files are not what was stored: no image"),
    "to be fetched": (Row(refetch=True), "it is to be fetched again"),
    "too young": (Row(stored_at=NOW - DAY + SECOND), "delete.after has not passed"),
}


def test_a_stored_fax_may_go_once_its_time_has_passed() -> None:
    assert why_kept(Row(), RULE, NOW) is None
    assert why_kept(Row(stored_at=NOW - DAY), RULE, NOW) is None


@pytest.mark.parametrize("name", KEPT)
def test_one_reason_is_enough_to_keep_a_fax(name: str) -> None:
    row, said = KEPT[name]
    assert said in (why_kept(row, RULE, NOW) or "")


@pytest.mark.parametrize("name", [name for name in KEPT if name != "too young"])
def test_what_is_asked_for_by_hand_goes_by_the_same_rules_but_for_the_time(name: str) -> None:
    row, said = KEPT[name]
    assert said in (why_kept(row, Delete(), NOW, NOW) or "")


def test_without_a_time_nothing_goes_but_by_hand() -> None:
    assert why_kept(Row(), Delete(), NOW) == "its user has no delete.after"
    assert why_kept(Row(), Delete(), NOW, NOW) is None
    assert why_kept(Row(stored_at=NOW - SECOND), RULE, NOW, NOW) is None


def test_by_hand_only_what_was_stored_before_that_time_goes() -> None:
    said = why_kept(Row(), RULE, NOW, NOW - 2 * DAY)
    assert said == "it was stored at 2026-02-28 12:00:00 UTC, not before that time"


def test_the_fax_of_a_removed_user_stays() -> None:
    assert why_kept(Row(), None, NOW, NOW) == "its user is not configured any more"


@given(
    st.builds(
        Row,
        direction=st.sampled_from(Direction),
        state=st.sampled_from(["pending", "stored", "quarantined", "dismissed"]),
        stored_at=st.none() | st.integers(0, 72).map(lambda hours: NOW - hours * SECOND * 3600),
        deleted_at=st.none() | st.just(NOW),
        damaged=st.booleans(),
        damage=st.none() | st.just("no image"),
        refetch=st.booleans(),
    ),
    st.none() | st.just(RULE) | st.just(Delete()),
    st.none() | st.just(NOW - DAY),
)
def test_whatever_may_go_is_a_good_stored_one_that_is_old_enough(
    row: Row, rule: Delete | None, before: datetime | None
) -> None:
    if why_kept(row, rule, NOW, before) is None:
        assert replace(row, stored_at=None) == Row(stored_at=None)
        assert row.stored_at is not None
        assert row.stored_at <= NOW - DAY
        assert rule is not None


@pytest.mark.parametrize(
    ("taken", "is_well", "is_gone", "said"),
    [
        ("keep", True, False, None),
        ("delete", True, False, None),
        ("keep", False, True, "its files were taken away, and delete.taken is keep"),
        ("delete", False, True, None),
        ("delete", False, False, "its files are not what was stored: no image"),
        ("keep", False, False, "its files are not what was stored: no image"),
    ],
)
def test_the_files_prove_it_or_that_a_consumer_took_them(
    taken: str, is_well: bool, is_gone: bool, said: str | None
) -> None:
    rule = Delete(after=DAY, taken="delete" if taken == "delete" else "keep")
    assert why_unproved(rule, is_well=is_well, is_gone=is_gone, harm="no image") == said


def test_files_of_which_nothing_is_known_prove_nothing() -> None:
    said = why_unproved(RULE, is_well=False, is_gone=False, harm=None)
    assert said == "its files are not what was stored: nobody knows why"


def test_a_day_has_its_limit() -> None:
    rule = Delete(after=DAY, max_per_day=3)
    assert [left_today(rule, count) for count in (0, 2, 3, 4)] == [3, 1, 0, 0]


def test_after_a_week_of_refusals_nobody_is_asked_no_more() -> None:
    assert not is_given_up(NOW, None)
    assert not is_given_up(NOW, NOW - GIVEN_UP_AFTER + SECOND)
    assert is_given_up(NOW, NOW - GIVEN_UP_AFTER)
