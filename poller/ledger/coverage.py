"""What has been listed to its end, and the slices that could not be."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, bindparam, delete, func, insert, select, update

from poller.ledger import meta
from poller.ledger.tables import EPOCH, coverage, failed_slices, streams
from poller.window import Coverage, FailedSlice, Interval, open_gaps

_COVERED = (
    select(coverage.c.start, coverage.c.end)
    .where(coverage.c.stream == bindparam("whose"))
    .order_by(coverage.c.start)
)
_TOUCHING = and_(
    coverage.c.stream == bindparam("whose"),
    coverage.c.start <= bindparam("before"),
    coverage.c.end >= bindparam("after"),
)
_HELD = select(coverage.c.start, coverage.c.end).where(_TOUCHING)
_MERGE = (
    update(coverage).where(_TOUCHING).values(start=bindparam("to_start"), end=bindparam("to_end"))
)
_UNCOVER = delete(coverage).where(_TOUCHING)
_COVER = insert(coverage)
_FORGET_FAILED = delete(failed_slices).where(
    failed_slices.c.stream == bindparam("whose"),
    failed_slices.c.start >= bindparam("after"),
    failed_slices.c.end <= bindparam("before"),
)


def covered(connection: Connection, stream: int) -> Coverage:
    """Return what has been listed to its end for this stream."""
    rows = connection.execute(_COVERED, {"whose": stream})
    return Coverage(tuple(Interval(start, end) for start, end in rows))


def all_covered(connection: Connection) -> dict[int, Coverage]:
    """Return the coverage of all streams that have some."""
    wanted = select(coverage).order_by(coverage.c.stream, coverage.c.start)
    found: dict[int, list[Interval]] = {}
    for stream, start, end in connection.execute(wanted):
        found.setdefault(stream, []).append(Interval(start, end))
    return {stream: Coverage(tuple(intervals)) for stream, intervals in found.items()}


def cover(connection: Connection, stream: int, covers: Interval) -> None:
    """Merge `covers` into what is covered; only the intervals that it touches are rewritten."""
    here = {"whose": stream, "after": covers.start, "before": covers.end}
    held = [Interval(start, end) for start, end in connection.execute(_HELD, here)]
    merged = Interval(
        min([covers.start, *(interval.start for interval in held)]),
        max([covers.end, *(interval.end for interval in held)]),
    )
    if len(held) == 1 and held != [merged]:
        connection.execute(_MERGE, here | {"to_start": merged.start, "to_end": merged.end})
    elif held != [merged]:
        connection.execute(_UNCOVER, here)
        connection.execute(_COVER, {"stream": stream, "start": merged.start, "end": merged.end})
    connection.execute(_FORGET_FAILED, here)


# -- slices that could not be listed -----------------------------------------------------------


def failed(connection: Connection, stream: int) -> list[FailedSlice]:
    """Return the slices that could not be listed, oldest first, dismissed ones included."""
    return all_failed(connection, failed_slices.c.stream == stream).get(stream, [])


def all_failed(connection: Connection, *where: Any) -> dict[int, list[FailedSlice]]:
    """Return the failed slices of all streams that have some."""
    found: dict[int, list[FailedSlice]] = {}
    wanted = select(failed_slices).where(*where)
    for row in connection.execute(
        wanted.order_by(failed_slices.c.stream, failed_slices.c.start, failed_slices.c.end)
    ):
        found.setdefault(row.stream, []).append(
            FailedSlice(
                interval=Interval(row.start, row.end),
                failures=row.failures,
                next_attempt_at=row.next_attempt_at,
                reason=row.reason,
                dismissed=row.dismissed,
                dismiss_reason=row.dismiss_reason,
            )
        )
    return found


def _is(stream: int, interval: Interval) -> Any:
    return and_(
        failed_slices.c.stream == stream,
        failed_slices.c.start == interval.start,
        failed_slices.c.end == interval.end,
    )


def slice_failed(
    connection: Connection, stream: int, interval: Interval, next_attempt_at: datetime, reason: str
) -> int:
    """Record that a slice could not be listed; returns how often that has been so."""
    failures = connection.scalar(select(failed_slices.c.failures).where(_is(stream, interval)))
    values = {
        "failures": (failures or 0) + 1,
        "next_attempt_at": next_attempt_at,
        "reason": reason,
    }
    if failures is None:
        _add_slice(connection, stream, interval, **values)
    else:
        connection.execute(update(failed_slices).where(_is(stream, interval)).values(**values))
    return (failures or 0) + 1


def slice_split(
    connection: Connection, stream: int, whole: Interval, halves: Iterable[Interval]
) -> None:
    """Put `halves`, which are due at once, in the place of the failed slice `whole`."""
    held = connection.execute(
        select(failed_slices.c.reason, failed_slices.c.dismissed).where(_is(stream, whole))
    ).one_or_none()
    connection.execute(delete(failed_slices).where(_is(stream, whole)))
    for half in halves:
        known = connection.scalar(select(func.count()).where(_is(stream, half)))
        if not known:
            _add_slice(
                connection,
                stream,
                half,
                failures=0,
                next_attempt_at=EPOCH,
                reason=held.reason if held else "",
                dismissed=held.dismissed if held else False,
            )


def _add_slice(connection: Connection, stream: int, interval: Interval, **values: Any) -> None:
    connection.execute(
        insert(failed_slices).values(
            stream=stream, start=interval.start, end=interval.end, **values
        )
    )


# -- what operators decide --


def dismiss_gap(connection: Connection, stream: int, bounds: Interval, reason: str | None) -> int:
    """Stop the alarm for the open gaps inside `bounds`; how many it concerns, dismissed before too.

    Only what is a gap now is dismissed, never time that is still to come.
    """
    start = connection.scalar(select(streams.c.pinned_start).where(streams.c.id == stream))
    if start is None:
        return 0
    held = failed(connection, stream)
    gaps = open_gaps(covered(connection, stream), start, held)
    parts = [part for gap in gaps if (part := gap.within(bounds.start, bounds.end))]
    for part in parts:
        _dismiss(connection, stream, part, reason)
    if parts:  # slices overlap: what failed there is listed or dismissed now, whole
        connection.execute(
            delete(failed_slices).where(
                _inside(stream, bounds), failed_slices.c.dismissed.is_(False)
            )
        )
    already = [one for one in held if one.dismissed and _meet(one.interval, bounds)]
    return meta.edited(connection, len(parts) + len(already))


def _meet(one: Interval, other: Interval) -> bool:
    return one.within(other.start, other.end) is not None


def _inside(stream: int, bounds: Interval) -> Any:
    return and_(
        failed_slices.c.stream == stream,
        failed_slices.c.start >= bounds.start,
        failed_slices.c.end <= bounds.end,
    )


def _dismiss(connection: Connection, stream: int, part: Interval, reason: str | None) -> None:
    mine = _inside(stream, part)
    said = connection.scalar(select(failed_slices.c.reason).where(mine).limit(1))
    connection.execute(delete(failed_slices).where(mine))
    connection.execute(
        insert(failed_slices).values(
            stream=stream,
            start=part.start,
            end=part.end,
            next_attempt_at=EPOCH,
            reason=said or "",
            dismissed=True,
            dismiss_reason=reason,
        )
    )


def make_gap_due(connection: Connection, stream: int, bounds: Interval) -> int:
    """List the failed and dismissed slices that touch `bounds` again, at once; how many."""
    values: dict[str, Any] = {"dismissed": False, "dismiss_reason": None}
    values |= {"failures": 0, "next_attempt_at": EPOCH}
    meets = and_(failed_slices.c.start < bounds.end, failed_slices.c.end > bounds.start)
    mine = and_(failed_slices.c.stream == stream, meets)
    made_due = connection.execute(update(failed_slices).where(mine).values(**values)).rowcount
    return meta.edited(connection, made_due)
