"""Which faxes may be deleted at eFax: every reason to keep one, tested alone."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

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
    """A fax that may be deleted."""

    direction: Direction = Direction.RECEIVED
    state: str = "stored"
    received_at: datetime | None = NOW - 3 * DAY
    stored_at: datetime | None = NOW - 2 * DAY
    deleted_at: datetime | None = None
    damaged: bool = False
    damage: str | None = None
    unreadable: bool = False
    refetch: bool = False


KEPT = {
    "sent": (Row(direction=Direction.SENT), "it was sent"),
    "deleted": (Row(deleted_at=NOW - DAY), "it was deleted at eFax at 2026-03-01 12:00:00 UTC"),
    "pending": (Row(state="pending"), "it is pending"),
    "quarantined": (Row(state="quarantined"), "it is quarantined"),
    "dismissed": (Row(state="dismissed"), "it is dismissed"),
    "of no known time": (Row(stored_at=None), "nobody knows when"),
    "served broken": (Row(damaged=True), "eFax delivered it broken"),
    "damaged": (Row(damage="no image"), "its files are not what was stored: no image"),
    "unreadable": (Row(damage="no", unreadable=True), "its files cannot be read, so they prove"),
    "to be fetched": (Row(refetch=True), "poller must fetch it again"),
    "too young": (Row(stored_at=NOW - DAY + SECOND), "delete.after has not passed"),
    "stored by a clock that was behind": (
        Row(stored_at=NOW - 365 * DAY, received_at=NOW - DAY + SECOND),
        "it was stored at 2026-03-01 12:00:01 UTC, and delete.after has not passed",
    ),
}


def test_a_stored_fax_may_go_once_its_time_has_passed() -> None:
    assert why_kept(Row(), RULE, NOW) is None
    assert why_kept(Row(stored_at=NOW - DAY), RULE, NOW) is None
    assert why_kept(Row(received_at=None), RULE, NOW) is None


@pytest.mark.parametrize("name", KEPT)
def test_one_reason_is_enough_to_keep_a_fax(name: str) -> None:
    row, said = KEPT[name]
    assert said in (why_kept(row, RULE, NOW) or "")


@pytest.mark.parametrize(
    "name", [name for name in KEPT if name != "too young" and "clock" not in name]
)
def test_deletions_by_hand_follow_the_same_rules_except_the_time(name: str) -> None:
    row, said = KEPT[name]
    assert said in (why_kept(row, Delete(), NOW, NOW) or "")


def test_without_a_time_nothing_goes_but_by_hand() -> None:
    assert why_kept(Row(), Delete(), NOW) == "its user has no delete.after"
    assert why_kept(Row(), Delete(), NOW, NOW) is None
    assert why_kept(Row(stored_at=NOW - SECOND), RULE, NOW, NOW) is None


def test_by_hand_only_what_was_stored_before_that_time_goes() -> None:
    said = "it was stored at 2026-02-28 12:00:00 UTC, not before that time"
    assert why_kept(Row(), RULE, NOW, NOW - 2 * DAY) == said
    behind = Row(stored_at=NOW - 365 * DAY, received_at=NOW - 2 * DAY)
    assert why_kept(behind, RULE, NOW, NOW - 2 * DAY) == said


def test_the_fax_of_a_removed_user_stays() -> None:
    assert why_kept(Row(), None, NOW, NOW) == "its user is no longer configured"


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


@dataclass(frozen=True)
class Look:
    """What the look at a fax's files found."""

    is_well: bool = False
    is_gone: bool = False
    has_directory: bool = True
    is_unreadable: bool = False
    why: str | None = None


WELL, GONE, SPOILED = Look(is_well=True), Look(is_gone=True), Look(why="no image")
LOST = Look(is_gone=True, has_directory=False)


@pytest.mark.parametrize(
    ("taken", "found", "said"),
    [
        ("keep", WELL, None),
        ("delete", WELL, None),
        ("keep", GONE, "somebody has taken its files, and delete.taken is keep"),
        ("delete", GONE, None),
        ("keep", LOST, "somebody has taken its files, and delete.taken is keep"),
        (
            "delete",
            LOST,
            "its files and their directory are gone, so perhaps nobody has taken them",
        ),
        ("delete", SPOILED, "its files are not what was stored: no image"),
        ("keep", SPOILED, "its files are not what was stored: no image"),
        (
            "delete",
            Look(is_unreadable=True, why="EIO"),
            "its files cannot be read, so they prove nothing: EIO",
        ),
        ("keep", Look(), "its files are not what was stored: nobody knows why"),
    ],
)
def test_the_files_prove_it_or_that_a_consumer_took_them(
    taken: Literal["keep", "delete"], found: Look, said: str | None
) -> None:
    assert why_unproved(Delete(after=DAY, taken=taken), found) == said


def test_a_day_has_its_limit() -> None:
    rule = Delete(after=DAY, max_per_day=3)
    assert [left_today(rule, count) for count in (0, 2, 3, 4)] == [3, 1, 0, 0]


def test_after_a_week_of_refusals_poller_stops_asking() -> None:
    assert not is_given_up(NOW, None)
    assert not is_given_up(NOW, NOW - GIVEN_UP_AFTER + SECOND)
    assert is_given_up(NOW, NOW - GIVEN_UP_AFTER)
