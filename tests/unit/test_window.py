"""Coverage, slices, watermark: what has been listed, and what to list next."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poller.window import (
    EARLIEST,
    PLANNED_AT_ONCE,
    Coverage,
    FailedSlice,
    Interval,
    Slice,
    SliceKind,
    WindowRules,
    backfill_slice,
    first_seen_at_server,
    gap_slices,
    is_late,
    newest_slice,
    pinned_start,
    slices_in,
    sweep_slices,
)
from tests.exhaustive import often

NOON = datetime(2024, 5, 21, 12, tzinfo=UTC)
SECOND, MINUTE, HOUR, DAY = (timedelta(**{u: 1}) for u in ("seconds", "minutes", "hours", "days"))
RULES = WindowRules(overlap=15 * MINUTE, max_window=DAY)


def hours(start: float, end: float) -> Interval:
    """An interval in hours from noon."""
    return Interval(NOON + start * HOUR, NOON + end * HOUR)


def covering(*pairs: tuple[float, float]) -> Coverage:
    return Coverage(tuple(hours(*pair) for pair in pairs))


def failed(interval: Interval, *, due_in: timedelta = HOUR, dismissed: bool = False) -> FailedSlice:
    return FailedSlice(interval, 1, NOON + due_in, "refused", dismissed)


def spans(slices: list[Slice]) -> list[Interval]:
    return [one.interval for one in slices]


# -- intervals and coverage ---------------------------------------------------------------------


@pytest.mark.parametrize("length", [timedelta(0), -SECOND])
def test_an_interval_that_holds_nothing_is_refused(length: timedelta) -> None:
    with pytest.raises(ValueError, match="cannot end"):
        Interval(NOON, NOON + length)


def test_an_interval_knows_its_length_and_what_of_it_lies_inside() -> None:
    assert hours(0, 2).length == 2 * HOUR
    assert hours(0, 2).within(NOON + HOUR, NOON + 3 * HOUR) == hours(1, 2)
    assert hours(0, 2).within(NOON + 2 * HOUR, NOON + 3 * HOUR) is None


@pytest.mark.parametrize(
    ("pairs", "merged"),
    [
        pytest.param([(3, 4), (0, 1)], [(0, 1), (3, 4)], id="apart-are-sorted"),
        pytest.param([(0, 1), (1, 2)], [(0, 2)], id="touching-are-one"),
        pytest.param([(0, 3), (1, 2)], [(0, 3)], id="inside"),
        pytest.param([(0, 2), (1, 3), (3, 4)], [(0, 4)], id="chain"),
    ],
)
def test_coverage_is_merged_however_it_is_made(
    pairs: list[tuple[float, float]], merged: list[tuple[float, float]]
) -> None:
    added = Coverage()
    for pair in pairs:
        added = added.add(hours(*pair))
    assert added == covering(*pairs)
    assert added.intervals == tuple(hours(*pair) for pair in merged)


@pytest.mark.parametrize(
    ("frame", "gaps"),
    [
        pytest.param((0, 10), [(0, 1), (2, 4), (6, 10)], id="between-and-around"),
        pytest.param((1, 6), [(2, 4)], id="only-between"),
        pytest.param((4, 6), [], id="covered"),
        pytest.param((2.5, 3), [(2.5, 3)], id="inside-a-gap"),
        pytest.param((8, 9), [(8, 9)], id="after-everything"),
        pytest.param((5, 1), [], id="wrong-way-round"),
    ],
)
def test_gaps_are_what_is_not_covered(
    frame: tuple[float, float], gaps: list[tuple[float, float]]
) -> None:
    start, end = (NOON + edge * HOUR for edge in frame)
    assert covering((1, 2), (4, 6)).gaps(start, end) == tuple(hours(*gap) for gap in gaps)


@pytest.mark.parametrize(
    ("start", "watermark"),
    [
        pytest.param(-1, -1, id="nothing-covers-the-start"),
        pytest.param(0, 2, id="from-the-beginning-of-a-stretch"),
        pytest.param(1, 2, id="from-inside-a-stretch"),
        pytest.param(2, 2, id="at-the-end-of-a-stretch"),
        pytest.param(6, 6, id="beyond-everything"),
    ],
)
def test_the_watermark_is_the_end_of_the_unbroken_stretch_from_the_start(
    start: float, watermark: float
) -> None:
    coverage = covering((0, 2), (3, 5))
    assert coverage.watermark(NOON + start * HOUR) == NOON + watermark * HOUR


def test_the_newest_end_is_the_last_one_whatever_the_gaps() -> None:
    assert covering((0, 2), (3, 5)).newest_end == NOON + 5 * HOUR
    assert Coverage().newest_end is None


def test_an_instant_is_covered_from_the_start_of_an_interval_to_before_its_end() -> None:
    coverage = covering((0, 1))
    assert [coverage.covers(NOON + n * HOUR) for n in (-0.1, 0, 0.9, 1)] == [
        False,
        True,
        True,
        False,
    ]


SMALL = st.tuples(st.integers(0, 40), st.integers(1, 12)).map(lambda p: (p[0], p[0] + p[1]))


def seconds(start: int, end: int) -> Interval:
    return Interval(NOON + start * SECOND, NOON + end * SECOND)


def as_set(intervals: tuple[Interval, ...]) -> set[int]:
    return {
        second
        for one in intervals
        for second in range(round((one.start - NOON) / SECOND), round((one.end - NOON) / SECOND))
    }


@settings(max_examples=often(50))
@given(
    added=st.lists(SMALL, max_size=12),
    frame=SMALL,
    start=st.integers(0, 60),
)
def test_coverage_behaves_like_a_set_of_seconds(
    added: list[tuple[int, int]], frame: tuple[int, int], start: int
) -> None:
    coverage, model = Coverage(), set[int]()
    for pair in added:
        coverage, model = coverage.add(seconds(*pair)), model | set(range(*pair))
    assert as_set(coverage.intervals) == model
    assert all(a.end < b.start for a, b in pairwise(coverage.intervals))
    gaps = coverage.gaps(NOON + frame[0] * SECOND, NOON + frame[1] * SECOND)
    assert as_set(gaps) == set(range(*frame)) - model
    end = next(second for second in range(start, 1000) if second not in model)
    assert coverage.watermark(NOON + start * SECOND) == NOON + end * SECOND
    assert coverage.covers(NOON + start * SECOND) == (start in model)
    newest = NOON + (max(model) + 1) * SECOND if model else None
    assert coverage.newest_end == newest


@settings(max_examples=often(40))
@given(pairs=st.lists(SMALL, max_size=12), start=st.integers(0, 60))
def test_the_watermark_never_moves_back_when_something_is_added(
    pairs: list[tuple[int, int]], start: int
) -> None:
    coverage, before = Coverage(), NOON + start * SECOND
    for pair in pairs:
        coverage = coverage.add(seconds(*pair))
        after = coverage.watermark(NOON + start * SECOND)
        assert after >= before
        before = after


# -- slices -------------------------------------------------------------------------------------


def test_bounds_are_a_second_wider_at_both_ends() -> None:
    bounds = Slice(SliceKind.GAP, hours(0, 1)).bounds(NOON + 2 * HOUR)
    assert bounds == Interval(NOON - SECOND, NOON + HOUR + SECOND)


@pytest.mark.parametrize("now", [hours(-3, 0.5).end, hours(0, 1).end, hours(-9, -1).end])
@pytest.mark.parametrize("ahead", [0 * SECOND, SECOND])
def test_bounds_reach_no_further_ahead_of_now_than_allowed(now: datetime, ahead: timedelta) -> None:
    bounds = Slice(SliceKind.NEWEST, hours(0, 1)).bounds(now, ahead=ahead)
    assert bounds.end == now + ahead
    assert bounds.start < NOON


def test_bounds_reach_to_the_end_of_the_second_that_the_server_said() -> None:
    in_that_second = NOON + HOUR + SECOND - timedelta(milliseconds=1)
    assert Slice(SliceKind.NEWEST, hours(0, 1)).bounds(NOON + HOUR).end > in_that_second


@pytest.mark.parametrize(
    ("length", "halves"),
    [
        pytest.param(24, [(12, 24), (0, 12)], id="a-day"),
        pytest.param(2, [(1, 2), (0, 1)], id="two-hours"),
        pytest.param(1.5, [(0.75, 1.5), (0, 0.75)], id="below-two-hours"),
        pytest.param(1, None, id="an-hour"),
        pytest.param(0.5, None, id="less"),
    ],
)
def test_a_slice_is_halved_newer_half_first_down_to_an_hour(
    length: float, halves: list[tuple[float, float]] | None
) -> None:
    got = Slice(SliceKind.SWEEP, hours(0, length)).halves()
    if halves is None:
        assert got is None
    else:
        assert got == tuple(Slice(SliceKind.SWEEP, hours(*half)) for half in halves)


@settings(max_examples=often(50))
@given(length=st.timedeltas(min_value=timedelta(microseconds=1), max_value=4 * DAY))
def test_halves_tile_the_slice(length: timedelta) -> None:
    whole = Slice(SliceKind.GAP, Interval(NOON, NOON + length))
    leaves, open_ = list[Slice](), [whole]
    while open_:
        one = open_.pop()
        halves = one.halves()
        if halves:
            newer, older = halves
            assert older.interval.end == newer.interval.start
            smaller = min(older.interval.length, newer.interval.length)
            assert smaller >= HOUR or one.interval.length < 2 * HOUR
            open_ += [newer, older]
        else:
            leaves.append(one)
    assert all(one.kind is SliceKind.GAP for one in leaves)
    assert leaves[0].interval.start == NOON
    assert leaves[-1].interval.end == NOON + length
    assert all(a.interval.end == b.interval.start for a, b in pairwise(leaves))
    assert all(one.interval.length <= HOUR for one in leaves)


@pytest.mark.parametrize(
    ("overlap", "max_window"),
    [
        pytest.param(-SECOND, DAY, id="negative-overlap"),
        pytest.param(SECOND, timedelta(0), id="no-window"),
    ],
)
def test_rules_that_allow_no_slice_are_refused(overlap: timedelta, max_window: timedelta) -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        WindowRules(overlap, max_window)


# -- where it all begins ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "pinned"),
    [
        pytest.param(7 * DAY, NOON - 7 * DAY, id="look-back"),
        pytest.param(NOON - DAY, NOON - DAY, id="instant"),
        pytest.param(100_000 * DAY, EARLIEST, id="absurdly-long"),
        pytest.param(timedelta.max, EARLIEST, id="longest-that-there-is"),
        pytest.param(datetime(1, 1, 1, tzinfo=UTC), EARLIEST, id="before-there-was-fax"),
    ],
)
def test_the_look_back_becomes_an_instant(start: timedelta | datetime, pinned: datetime) -> None:
    assert pinned_start(start, NOON) == pinned


def test_the_first_success_ten_days_after_the_installation_reaches_back_from_there() -> None:
    ours = NOON + 3 * HOUR  # our clock is wrong, and only the time that passed on it counts
    seen = first_seen_at_server(ours - 10 * DAY, ours, NOON)
    assert seen == NOON - 10 * DAY
    assert pinned_start(7 * DAY, seen) == NOON - 17 * DAY


@pytest.mark.parametrize(
    ("elapsed", "taken"),
    [
        pytest.param(-5 * DAY, timedelta(0), id="our-clock-was-set-back"),
        pytest.param(20_000 * DAY, 366 * DAY, id="our-clock-was-set-forward"),
    ],
)
def test_time_passed_since_the_first_look_is_believed_within_reason(
    elapsed: timedelta, taken: timedelta
) -> None:
    assert first_seen_at_server(NOON - elapsed, NOON, NOON) == NOON - taken


# -- the newest slice ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("coverage", "start", "expected"),
    [
        pytest.param(covering(), -10, (-10, 0), id="first-poll"),
        pytest.param(covering(), -100, (-24, 0), id="first-poll-at-most-a-window"),
        pytest.param(covering((-9, -2)), -9, (-2.25, 0), id="overlaps-what-was-listed"),
        pytest.param(covering((-9, -2)), -2.1, (-2.1, 0), id="not-before-the-start"),
        pytest.param(covering((-99, -50)), -99, (-24, 0), id="long-downtime"),
        pytest.param(covering((-9, -8), (-3, -2)), -9, (-2.25, 0), id="an-old-gap-is-no-brake"),
        pytest.param(covering((-9, 5)), -9, (-0.25, 0), id="covered-beyond-now"),
    ],
)
def test_the_newest_slice_runs_from_the_newest_covered_end_to_now(
    coverage: Coverage, start: float, expected: tuple[float, float]
) -> None:
    piece = newest_slice(coverage, NOON + start * HOUR, NOON, RULES)
    assert piece == Slice(SliceKind.NEWEST, hours(*expected))


@pytest.mark.parametrize("start", [NOON, NOON + DAY])
def test_nothing_is_listed_before_the_start_has_come(start: datetime) -> None:
    assert newest_slice(Coverage(), start, NOON, RULES) is None


def test_nothing_is_listed_twice_in_one_instant_without_overlap() -> None:
    rules = WindowRules(overlap=timedelta(0), max_window=DAY)
    assert newest_slice(covering((-1, 0)), NOON - HOUR, NOON, rules) is None


@pytest.mark.parametrize(
    "rules",
    [
        pytest.param(WindowRules(timedelta.max, timedelta.max), id="longest-that-there-is"),
        pytest.param(WindowRules(3 * HOUR, HOUR), id="overlap-beyond-the-window"),
    ],
)
def test_odd_rules_still_give_a_newest_slice(rules: WindowRules) -> None:
    start = NOON - 5 * HOUR
    piece = newest_slice(covering((-5, -1)), start, NOON, rules)
    assert piece is not None
    assert piece.interval.end == NOON
    assert start <= piece.interval.start < NOON


# -- gaps ---------------------------------------------------------------------------------------


def gaps_at_noon(
    coverage: Coverage, start: float, *failures: FailedSlice, rules: WindowRules = RULES
) -> list[Interval]:
    slices = gap_slices(coverage, NOON + start * HOUR, NOON, rules, failures)
    assert all(one.kind is SliceKind.GAP for one in slices)
    return spans(slices)


def test_gaps_are_planned_oldest_first_each_looking_back_into_what_was_listed() -> None:
    coverage = covering((-20, -15), (-10, -5), (-3, 0))
    assert gaps_at_noon(coverage, -22) == [hours(-22, -20), hours(-15.25, -10), hours(-5.25, -3)]


def test_a_long_gap_is_cut_into_windows_that_overlap() -> None:
    coverage = covering((-60, -50), (-1, 0))
    assert gaps_at_noon(coverage, -60) == [
        hours(-50.25, -26.25),
        hours(-26.5, -2.5),
        hours(-2.75, -1),
    ]


def test_there_are_no_gaps_before_anything_is_covered() -> None:
    assert gaps_at_noon(Coverage(), -60) == []


def test_gaps_are_not_planned_beyond_now() -> None:
    assert gaps_at_noon(covering((-3, -1), (1, 2)), -3) == [hours(-1.25, 0)]


def test_a_failed_gap_is_left_alone_until_it_is_due() -> None:
    coverage = covering((-20, -10), (-1, 0))
    waiting = failed(hours(-6, -5), due_in=SECOND)
    assert gaps_at_noon(coverage, -20, waiting) == [hours(-10.25, -6), hours(-5, -1)]


def test_a_failed_gap_that_is_due_is_asked_for_again_with_its_own_bounds() -> None:
    coverage = covering((-20, -10), (-1, 0))
    due = failed(hours(-10.25, -9), due_in=timedelta(0))
    neighbour = failed(hours(-9, -8), due_in=-SECOND)
    assert gaps_at_noon(coverage, -20, neighbour, due) == [
        hours(-10.25, -9),
        hours(-9, -8),
        hours(-8, -1),
    ]


def test_a_dismissed_gap_is_never_planned() -> None:
    coverage = covering((-20, -10), (-1, 0))
    dismissed = failed(hours(-10, -1), due_in=-DAY, dismissed=True)
    assert gaps_at_noon(coverage, -20, dismissed) == []


def test_a_slice_does_not_look_back_into_a_gap_that_is_refused() -> None:
    coverage = covering((-9.9, -9.8), (-1, 0))
    refused = failed(hours(-20, -9.9))
    assert gaps_at_noon(coverage, -20, refused) == [hours(-9.9, -1)]


def test_a_failed_slice_that_was_listed_since_changes_nothing() -> None:
    coverage = covering((-20, -10), (-1, 0))
    listed = failed(hours(-11, -10.1))
    beyond = failed(hours(-30, -21))
    assert gaps_at_noon(coverage, -20, listed, beyond) == [hours(-10.25, -1)]


def test_overlapping_failed_slices_are_asked_for_once() -> None:
    coverage = covering((-20, -10), (-1, 0))
    due = [failed(hours(*pair), due_in=-SECOND) for pair in [(-10, -6), (-9, -8), (-7, -1)]]
    assert gaps_at_noon(coverage, -20, *due) == [hours(-10, -6), hours(-6, -1)]


def test_slices_that_are_not_due_are_left_out_of_those_that_are() -> None:
    coverage = covering((-20, -10), (-1, 0))
    due, waiting = failed(hours(-10, -1), due_in=-SECOND), failed(hours(-8, -7))
    assert gaps_at_noon(coverage, -20, due, waiting) == [hours(-10, -8), hours(-7, -1)]


def test_a_failed_slice_longer_than_a_window_is_cut() -> None:
    due = failed(hours(-6, -1), due_in=-SECOND)
    rules = WindowRules(overlap=timedelta(0), max_window=3 * HOUR)
    assert gaps_at_noon(covering((-1, 0)), -6, due, rules=rules) == [hours(-6, -3), hours(-3, -1)]
    listed = covering((-6, -3), (-1, 0))
    assert gaps_at_noon(listed, -6, due, rules=rules) == [hours(-3, -1)]


def test_a_plan_has_an_end_however_long_the_gap_is() -> None:
    rules = WindowRules(overlap=SECOND, max_window=MINUTE)
    assert len(gaps_at_noon(covering((-1, 0)), -24 * 365, rules=rules)) == PLANNED_AT_ONCE


def test_a_refused_old_slice_does_not_delay_the_newest_slice() -> None:
    """The server refuses what is older than six hours; today's faxes are listed nevertheless."""
    start, coverage = NOON - DAY, covering((-6, -0.5))
    refusals = [failed(hours(n, n + 1)) for n in range(-24, -6)]
    newest = newest_slice(coverage, start, NOON, RULES)
    assert newest == Slice(SliceKind.NEWEST, hours(-0.75, 0))
    coverage = coverage.add(newest.interval)
    assert gap_slices(coverage, start, NOON, RULES, refusals) == []
    assert coverage.watermark(start) == start
    again = gap_slices(coverage, start, NOON + HOUR, RULES, refusals)
    assert spans(again) == [one.interval for one in refusals]


def test_a_late_fax_after_a_long_downtime_is_within_the_first_slices() -> None:
    """Completed before the downtime, visible only after it: the first gap looks back for it."""
    start, coverage = NOON - 10 * DAY, covering((-240, -72))
    completed = NOON - 72 * HOUR - 10 * MINUTE
    newest = newest_slice(coverage, start, NOON, RULES)
    assert newest is not None
    coverage = coverage.add(newest.interval)
    first_gap = gap_slices(coverage, start, NOON, RULES)[0]
    bounds = first_gap.bounds(NOON)
    assert bounds.start <= completed < bounds.end
    sweeps = sweep_slices(SliceKind.SWEEP, NOON - 72 * HOUR, DAY, start, NOON, RULES)
    assert sweeps[-1].interval.start == NOON - 96 * HOUR


def test_an_earlier_start_adds_a_gap() -> None:
    coverage = covering((-10, 0))
    assert gaps_at_noon(coverage, -10) == []
    assert gaps_at_noon(coverage, -12) == [hours(-12, -10)]


@settings(max_examples=often(40))
@given(
    pairs=st.lists(st.tuples(st.integers(0, 200), st.integers(1, 40)), max_size=6),
    marks=st.lists(st.tuples(st.integers(0, 230), st.integers(1, 30)), max_size=5),
    overlap=st.integers(1, 40),  # a configuration has at least a second
    window=st.integers(1, 40),
    start=st.integers(0, 220),
)
def test_listing_the_planned_slices_leaves_no_gap_and_ends(
    pairs: list[tuple[int, int]],
    marks: list[tuple[int, int]],
    overlap: int,
    window: int,
    start: int,
) -> None:
    rules = WindowRules(overlap * MINUTE, window * MINUTE)
    begin, now = NOON + start * MINUTE, NOON + 240 * MINUTE

    def minutes(pair: tuple[int, int]) -> Interval:
        return Interval(NOON + pair[0] * MINUTE, NOON + sum(pair) * MINUTE)

    coverage = Coverage(tuple(minutes(pair) for pair in pairs))
    due = [FailedSlice(minutes(pair), 1, NOON, "") for pair in marks]
    newest = newest_slice(coverage, begin, now, rules)
    assert newest is not None
    coverage = coverage.add(newest.interval)
    planned = [newest, *gap_slices(coverage, begin, now, rules, due)]
    assert planned[1:] == sorted(planned[1:], key=lambda one: one.interval.start)
    assert all(coverage.gaps(one.interval.start, one.interval.end) for one in planned[1:])
    coverage = Coverage(coverage.intervals + tuple(spans(planned)))
    assert coverage.gaps(begin, now) == ()
    assert coverage.watermark(begin) == now
    assert gap_slices(coverage, begin, now, rules, due) == []
    assert all(one.interval.length <= rules.max_window for one in planned)
    assert all(one.interval.end <= now for one in planned)
    assert newest.interval.start >= begin


# -- sweeps and backfill ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("last_end", "expected"),
    [
        pytest.param(None, [(-30.25, -10), (-50, -26)], id="never-swept"),
        pytest.param(-1, [(-25, -1)], id="regular"),
        pytest.param(-1000, [(-30.25, -10), (-50, -26)], id="not-before-the-start"),
        pytest.param(99, [(-24, 0)], id="last-one-beyond-now"),
    ],
)
def test_a_sweep_looks_back_from_the_end_of_the_last_one(
    last_end: float | None, expected: list[tuple[float, float]]
) -> None:
    end = None if last_end is None else NOON + last_end * HOUR
    slices = sweep_slices(SliceKind.SWEEP, end, DAY, NOON - 50 * HOUR, NOON, RULES)
    assert [one.kind for one in slices] == [SliceKind.SWEEP] * len(slices)
    assert slices[0].interval.end == NOON
    assert Coverage(tuple(spans(slices))).gaps(hours(*expected[-1]).start, NOON) == ()
    assert slices[-1].interval.start == hours(*expected[-1]).start
    assert spans(slices) == sorted(spans(slices), reverse=True)
    assert all(one.interval.length <= DAY for one in slices)


def test_nothing_is_swept_before_the_start_has_come() -> None:
    assert sweep_slices(SliceKind.SWEEP, None, DAY, NOON, NOON, RULES) == []


def backfilled(rest: Interval, now: datetime, rules: WindowRules) -> list[Slice]:
    """Return all slices of a backfill, in the order of planning."""
    slices = []
    left: Interval | None = rest
    while left is not None and (planned := backfill_slice(left, now, rules)) is not None:
        piece, left = planned
        slices.append(piece)
    return slices


def test_a_backfill_is_cut_newest_first_and_never_reaches_beyond_now() -> None:
    slices = backfilled(hours(-30, 5), NOON, RULES)
    assert spans(slices) == [hours(-6.25, 0), hours(-30, -6)]
    assert {one.kind for one in slices} == {SliceKind.BACKFILL}
    assert backfill_slice(hours(1, 2), NOON, RULES) is None


@given(
    length=st.timedeltas(min_value=SECOND, max_value=60 * DAY),
    overlap=st.timedeltas(min_value=timedelta(0), max_value=2 * DAY),
    longest=st.timedeltas(min_value=2 * HOUR, max_value=3 * DAY),
)
def test_a_backfill_lists_the_whole_window_in_the_planned_number_of_slices(
    length: timedelta, overlap: timedelta, longest: timedelta
) -> None:
    rules = WindowRules(overlap=overlap, max_window=longest)
    whole = Interval(NOON - length, NOON)
    slices = backfilled(whole, NOON, rules)
    assert len(slices) == slices_in(length, rules)
    assert Coverage(tuple(spans(slices))).intervals == (whole,)
    assert all(one.interval.length <= longest for one in slices)
    assert spans(slices) == sorted(spans(slices), reverse=True)


@pytest.mark.parametrize(
    ("lateness", "late"),
    [(7 * MINUTE, False), (7.5 * MINUTE, False), (7.5 * MINUTE + SECOND, True)],
)
def test_a_fax_is_late_when_half_the_overlap_was_used_up(lateness: timedelta, late: bool) -> None:
    assert is_late(lateness, RULES.overlap) is late
