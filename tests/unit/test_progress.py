"""Progress is a value: events of a stream lead from one to the next, and affect no other stream."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poller.config.model import Expect
from poller.progress import (
    Covered,
    Discovered,
    GapDismissed,
    GapRetried,
    NotPolled,
    OurClockSet,
    Pinned,
    Polled,
    Progress,
    RefusalLifted,
    SliceFailed,
    SliceSplit,
    StreamEvent,
    SweepsForgotten,
    Swept,
)
from poller.window import EARLIEST, Coverage, FailedSlice, Interval, SliceKind
from tests.stream_events import HAPPENED, INSTANTS, INTERVALS, NOON, hours

MINUTE, HOUR, DAY = (timedelta(**{unit: 1}) for unit in ("minutes", "hours", "days"))
NEW = Progress(our_first_seen=NOON)


def covering(*pairs: tuple[float, float]) -> Coverage:
    return Coverage(tuple(hours(*pair) for pair in pairs))


def refused(start: float, end: float, *, reason: str = "refused") -> SliceFailed:
    return SliceFailed(hours(start, end), NOON + HOUR, reason)


def spans(progress: Progress) -> list[Interval]:
    return [one.interval for one in progress.failed_slices]


PINNED = NEW.apply(Pinned(NOON - 9 * HOUR, "9h"))
GAPPED = PINNED.apply(Covered(hours(-9, -8)), Covered(hours(-2, 0)), refused(-8, -5))


def test_the_failed_part_of_a_gap_no_longer_waits_for_its_first_turn() -> None:
    assert GAPPED.gaps == (hours(-8, -2),)
    assert (GAPPED.failed_gaps, GAPPED.untried_gaps) == ((hours(-8, -5),), (hours(-5, -2),))
    assert PINNED.apply(Covered(hours(-2, 0))).untried_gaps == (hours(-9, -2),)


# -- what is listed ------------------------------------------------------------------------------


def test_of_a_stream_that_was_never_polled_nothing_is_known() -> None:
    assert (NEW.watermark, NEW.settled_until) == (None, None)
    assert (NEW.gaps, NEW.failed_gaps) == ((), ())
    assert NEW.apply(GapDismissed(hours(-9, 0), None)) == NEW


def test_pinned_start_only_moves_to_earlier_times() -> None:
    later = PINNED.apply(Pinned(NOON - HOUR, "1h"))
    assert (later.pinned_start, later.configured_start) == (NOON - 9 * HOUR, "1h")
    assert later.apply(Pinned(NOON - DAY, "1d")).pinned_start == NOON - DAY


@pytest.mark.parametrize(
    ("added", "merged"),
    [
        pytest.param([(-9, -6), (-3, 0)], [(-9, -6), (-3, 0)], id="apart"),
        pytest.param([(-9, -6), (-6, -3)], [(-9, -3)], id="touching"),
        pytest.param([(-9, -7), (-5, -4), (-2, 0), (-7, -2)], [(-9, 0)], id="closing a gap"),
        pytest.param([(-3, 0), (-9, -6), (-4, -2)], [(-9, -6), (-4, 0)], id="in any order"),
    ],
)
def test_what_is_covered_is_merged(
    added: Sequence[tuple[float, float]], merged: Sequence[tuple[float, float]]
) -> None:
    progress = NEW.apply(*(Covered(hours(*ends)) for ends in added))
    assert progress.coverage == covering(*merged)


def test_watermark_gaps_and_lag_are_read_from_it() -> None:
    assert GAPPED.watermark == GAPPED.settled_until == NOON - 8 * HOUR
    assert GAPPED.gaps == (hours(-8, -2),)
    assert GAPPED.failed_gaps == (hours(-8, -5),)
    assert GAPPED.gaps_within(hours(-3, 5)) == (hours(-3, -2),)
    assert [one.interval for one in GAPPED.failed_touching(hours(-6, 0))] == [hours(-8, -5)]
    assert GAPPED.failed_touching(hours(-5, 0)) == ()


def failed(interval: Interval, *, dismissed: bool = False) -> FailedSlice:
    return FailedSlice(interval, 1, NOON + HOUR, "refused", dismissed)


def test_gaps_shown_are_those_not_dismissed_and_gaps_that_alarm_those_that_failed() -> None:
    marks = (
        failed(hours(-8.25, -7)),
        failed(hours(-7, -6), dismissed=True),
        failed(hours(-5, -4)),
    )
    listed = covering((-10, -8), (-1, 0))
    start = NOON - 12 * HOUR
    progress = replace(NEW, pinned_start=start, coverage=listed, failed_slices=marks)
    assert progress.gaps == (hours(-12, -10), hours(-8, -7), hours(-6, -1))
    assert progress.failed_gaps == (hours(-8, -7), hours(-5, -4))
    assert replace(progress, failed_slices=()).failed_gaps == ()
    assert replace(progress, coverage=Coverage()).gaps == ()
    refusals = tuple(failed(hours(n, n + 1)) for n in range(-24, -6))
    refused = replace(progress, pinned_start=NOON - DAY, failed_slices=refusals)
    assert replace(refused, coverage=covering((-6, 0))).gaps == (hours(-24, -6),)


def test_a_dismissed_gap_holds_up_the_watermark_and_not_what_lag_counts_from() -> None:
    listed, start = covering((-12, -8), (-6, -3), (-1, 0)), NOON - 12 * HOUR
    marks = (failed(hours(-8.25, -6), dismissed=True), failed(hours(-3, -1)))
    progress = replace(NEW, pinned_start=start, coverage=listed, failed_slices=marks)
    assert progress.watermark == NOON - 8 * HOUR
    assert replace(progress, failed_slices=marks[1:]).settled_until == NOON - 8 * HOUR
    assert progress.settled_until == NOON - 3 * HOUR


def test_silence_counts_from_the_last_fax_or_from_the_first_day() -> None:
    expect = Expect(within=DAY)
    listed = NEW.apply(Covered(hours(-48, 48)))
    assert listed.silent_since(expect) == NOON
    received = listed.apply(Discovered(NOON + DAY, (NOON + HOUR,)))
    assert received.silent_since(expect) == NOON + HOUR
    assert received.apply(Discovered(NOON + DAY, (NOON + DAY,))).silent_since(expect) is None
    assert received.silent_since(None) is None


# -- slices that could not be listed -------------------------------------------------------------


def test_failed_slice_is_counted_and_forgotten_when_it_is_covered() -> None:
    twice = GAPPED.apply(refused(-8, -5, reason="again"), refused(-5, -4))
    assert twice.failures(hours(-8, -5)) == 2
    assert twice.failures(hours(-8, -6)) == 0
    assert [one.reason for one in twice.failed_slices] == ["again", "refused"]
    partly = twice.apply(Covered(hours(-7, -4)))
    assert spans(partly) == [hours(-8, -5)]
    # listed, but not all of it
    assert spans(partly.apply(Covered(hours(-8, -7)))) == [hours(-8, -5)]
    assert spans(partly.apply(Covered(hours(-8, -5)))) == []


def test_halves_that_are_due_at_once_take_the_place_of_a_slice() -> None:
    known = GAPPED.apply(refused(-6.5, -5, reason="known before"))
    split = known.apply(SliceSplit(hours(-8, -5), (hours(-8, -6.5), hours(-6.5, -5))))
    older, newer = split.failed_slices
    assert older == FailedSlice(hours(-8, -6.5), 0, EARLIEST, "refused")
    assert (newer.failures, newer.reason) == (1, "known before")


def test_a_forgotten_slice_is_still_split() -> None:
    split = PINNED.apply(SliceSplit(hours(-4, -2), (hours(-4, -3), hours(-3, -2))))
    assert spans(split) == [hours(-4, -3), hours(-3, -2)]


def test_slice_that_was_dismissed_while_it_was_asked_for_stays_so() -> None:
    dismissed = GAPPED.apply(GapDismissed(hours(-8, -5), "in the portal"))
    (held,) = dismissed.apply(refused(-8, -5)).failed_slices
    assert (held.dismissed, held.dismiss_reason, held.failures) == (True, "in the portal", 1)
    halves = dismissed.apply(SliceSplit(hours(-8, -5), (hours(-8, -6), hours(-6, -5))))
    assert [one.dismiss_reason for one in halves.failed_slices] == ["in the portal"] * 2


# -- what operators decide -----------------------------------------------------------------------


def test_dismissed_gap_keeps_its_reasons_and_no_longer_alarms() -> None:
    dismissed = GAPPED.apply(GapDismissed(hours(-8, -5), "in the portal"))
    (held,) = dismissed.failed_slices
    assert (held.reason, held.dismiss_reason) == ("refused", "in the portal")
    assert dismissed.gaps == (hours(-5, -2),)
    assert dismissed.failed_gaps == ()
    assert (dismissed.settled_until, dismissed.watermark) == (NOON - 5 * HOUR, NOON - 8 * HOUR)


def test_only_what_is_a_gap_now_is_dismissed_with_all_that_failed_in_it() -> None:
    overlapping = GAPPED.apply(refused(-9, -7), refused(-6, -1))
    dismissed = overlapping.apply(GapDismissed(hours(-99, 99), None))
    assert spans(dismissed) == [hours(-8, -2)]
    assert dismissed.gaps == ()
    assert dismissed.apply(GapDismissed(hours(-99, 99), "again")) == dismissed


def test_retried_gap_is_due_and_alarms_again() -> None:
    dismissed = GAPPED.apply(GapDismissed(hours(-8, -5), "in the portal"))
    retried = dismissed.apply(GapRetried(hours(-6, -5.5)))
    assert retried.failed_slices == (FailedSlice(hours(-8, -5), 0, EARLIEST, "refused"),)
    assert retried.failed_gaps == (hours(-8, -5),)
    assert dismissed.apply(GapRetried(hours(-2, 0))) == dismissed


# -- results of polls and sweeps ------------------------------------------------------------------


def test_polls_are_counted_until_one_succeeds() -> None:
    failed = NEW.apply(
        NotPolled(NOON, "no answer"),
        NotPolled(NOON + MINUTE, "refused", NOON + HOUR),
        NotPolled(NOON + 2 * MINUTE, "no answer"),
    )
    assert (failed.failed_polls, failed.refusals, failed.refused_until) == (3, 1, NOON + HOUR)
    assert (failed.last_poll_at, failed.last_error) == (NOON + 2 * MINUTE, "no answer")
    assert failed.last_success_at is None
    well = failed.apply(Polled(NOON + HOUR))
    assert (well.failed_polls, well.refusals, well.refused_until) == (0, 0, None)
    assert well.last_poll_at == well.last_success_at == NOON + HOUR
    assert well.last_error is None


def test_lifted_refusal_leaves_the_failures() -> None:
    lifted = NEW.apply(NotPolled(NOON, "refused", NOON + HOUR), RefusalLifted())
    assert (lifted.failed_polls, lifted.refusals, lifted.refused_until) == (1, 0, None)


def test_clock_that_was_set_moves_what_was_read_from_it() -> None:
    polled = NEW.apply(Polled(NOON), NotPolled(NOON, "refused", NOON + HOUR))
    assert polled.apply(OurClockSet(DAY)).last_success_at == NOON + DAY
    assert polled.apply(OurClockSet(DAY)).refused_until is None
    assert NEW.apply(OurClockSet(DAY)) == NEW


def test_each_sweep_has_its_own_end_and_count() -> None:
    swept = NEW.apply(
        Swept(SliceKind.SWEEP, NOON, 2),
        Swept(SliceKind.SWEEP, NOON + HOUR, 1),
        Swept(SliceKind.DEEP_SWEEP, NOON, 5),
    )
    assert swept.swept_to(SliceKind.SWEEP) == NOON + HOUR
    assert swept.swept_to(SliceKind.DEEP_SWEEP) == NOON
    assert (swept.found_by_sweep, swept.found_by_deep_sweep) == (3, 5)
    back = swept.apply(SweepsForgotten(NOON - HOUR))
    assert (back.sweep_end, back.deep_sweep_end) == (NOON - HOUR, NOON - HOUR)
    assert swept.apply(SweepsForgotten(NOON)).sweep_end == NOON
    assert swept.apply(SweepsForgotten()).deep_sweep_end is None
    assert NEW.apply(SweepsForgotten(NOON)) == NEW


def test_fax_is_late_whose_time_had_been_listed() -> None:
    listed = NEW.apply(Covered(hours(-2, -1)))
    late = listed.apply(Discovered(NOON, (NOON - 1.5 * HOUR, NOON - HOUR / 2)))
    assert (late.late_max_s, late.last_received_at) == (5400, NOON - HOUR / 2)
    assert late.apply(Discovered(NOON, (NOON - 1.1 * HOUR,))).late_max_s == 5400
    by_backfill = listed.apply(Discovered(NOON, (NOON - 1.5 * HOUR,), by_window=False))
    assert (by_backfill.late_max_s, by_backfill.last_received_at) == (0, NOON - 1.5 * HOUR)


def test_fax_from_the_future_hides_no_silence() -> None:
    assert NEW.apply(Discovered(NOON, (NOON + DAY,))).last_received_at == NOON
    assert NEW.apply(Discovered(NOON, ())).last_received_at is None


# -- properties ----------------------------------------------------------------------------------


@given(st.lists(HAPPENED))
def test_watermark_never_moves_back_but_for_an_earlier_start(happened: list[StreamEvent]) -> None:
    progress = NEW
    for event in happened:
        after = progress.apply(event)
        if progress.watermark is not None and after.pinned_start == progress.pinned_start:
            assert after.watermark is not None
            assert after.watermark >= progress.watermark
        progress = after


@given(st.lists(HAPPENED))
def test_events_one_by_one_lead_where_they_lead_together(happened: list[StreamEvent]) -> None:
    progress = NEW
    for event in happened:
        progress = progress.apply(event)
    assert progress == NEW.apply(*happened)


@given(st.lists(HAPPENED))
def test_failed_slices_are_sorted_and_each_is_there_once(happened: list[StreamEvent]) -> None:
    intervals = spans(NEW.apply(*happened))
    assert intervals == sorted(set(intervals))


@given(st.lists(HAPPENED), INTERVALS, INSTANTS)
def test_events_written_behind_may_be_applied_twice(
    happened: list[StreamEvent], interval: Interval, now: datetime
) -> None:
    once = NEW.apply(*happened, Covered(interval), Swept(SliceKind.SWEEP, now), Polled(now))
    assert once.apply(Covered(interval), Swept(SliceKind.SWEEP, now), Polled(now)) == once


@given(st.lists(HAPPENED), INTERVALS)
def test_what_is_dismissed_and_retried_is_a_gap_again(
    happened: list[StreamEvent], bounds: Interval
) -> None:
    before = NEW.apply(*happened)
    again = before.apply(GapDismissed(bounds, "by mistake"), GapRetried(bounds))
    assert set(before.gaps_within(bounds)) <= set(again.gaps_within(bounds)) | set(before.gaps)
    assert again.coverage == before.coverage
    assert again.watermark == before.watermark
