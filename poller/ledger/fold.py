"""The progress of a stream in rows: read it, apply events, and write what has changed.

Only `poller.progress` decides what an event does, here as in memory.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from sqlalchemy import BindParameter, Connection, and_, bindparam, delete, insert, select, update

from poller.ledger import meta
from poller.ledger.tables import backfills, coverage, failed_slices, streams
from poller.progress import GapDismissed, GapRetried, Progress, StreamEvent
from poller.window import EARLIEST, Coverage, FailedSlice, Interval

_AT_ONCE = 500  # values in one IN (...)
_BLANK = Progress(our_first_seen=EARLIEST)

# Compose these once: composing takes longer than running them.
THESE: BindParameter[Any] = bindparam("these", expanding=True)
_COLUMNS = [one.name for one in fields(Progress) if one.name in streams.c]
_WAITING = select(backfills.c.stream).where(backfills.c.done_at.is_(None))
_SCALARS = select(
    streams.c.id, streams.c.id.in_(_WAITING), *(streams.c[name] for name in _COLUMNS)
).where(streams.c.id.in_(THESE))
_COVERED = select(coverage).where(coverage.c.stream.in_(THESE))
_FAILED = (
    select(failed_slices)
    .where(failed_slices.c.stream.in_(THESE))
    .order_by(failed_slices.c.stream, failed_slices.c.start, failed_slices.c.end)
)
_SET = update(streams).where(streams.c.id == bindparam("key"))
_HELD = and_(coverage.c.stream == bindparam("key"), coverage.c.start == bindparam("held_start"))
_GROW = update(coverage).where(_HELD)
_UNCOVER = delete(coverage).where(_HELD)
_COVER = insert(coverage)
_FORGET = delete(failed_slices).where(
    failed_slices.c.stream == bindparam("key"),
    failed_slices.c.start == bindparam("held_start"),
    failed_slices.c.end == bindparam("held_end"),
)
_FAIL = insert(failed_slices)


def chunks(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for begin in range(0, len(values), _AT_ONCE):
        yield values[begin : begin + _AT_ONCE]


def progress(connection: Connection, stream: int) -> Progress:
    """Return this stream's progress."""
    return some(connection, [stream])[stream]


def all_progress(connection: Connection) -> dict[int, Progress]:
    """Return the progress of all streams."""
    return some(connection, list(connection.scalars(select(streams.c.id))))


def some(connection: Connection, wanted: Collection[int]) -> dict[int, Progress]:
    """Return the progress of these streams; raises LookupError."""
    held: dict[int, Progress] = {}
    for chunk in chunks(list(wanted)):
        these = {"these": chunk}
        covered: dict[int, list[Interval]] = defaultdict(list)
        for stream, start, end in connection.execute(_COVERED, these):
            covered[stream].append(Interval(start, end))
        failed: dict[int, list[FailedSlice]] = defaultdict(list)
        for stream, start, end, *rest in connection.execute(_FAILED, these):
            failed[stream].append(FailedSlice(Interval(start, end), *rest))
        for stream, waits, *scalars in connection.execute(_SCALARS, these):
            held[stream] = _BLANK.but(
                coverage=Coverage(tuple(covered[stream])),
                failed_slices=tuple(failed[stream]),
                backfill_waits=waits,
                **dict(zip(_COLUMNS, scalars, strict=True)),
            )
    if missing := set(wanted) - held.keys():
        raise LookupError(f"the ledger has no stream {min(missing)}")
    return held


def record(connection: Connection, stream: int, *events: StreamEvent) -> Progress:
    """Record events of a stream; return its new progress."""
    return record_all(connection, {stream: events})[stream]


def record_all(
    connection: Connection, happened: Mapping[int, Sequence[StreamEvent]]
) -> dict[int, Progress]:
    """Record events of several streams, in as few statements as for one."""
    before = some(connection, happened.keys())
    after = {stream: before[stream].apply(*events) for stream, events in happened.items()}
    _write_scalars(connection, before, after)
    _write_coverage(connection, before, after)
    _write_failed(connection, before, after)
    return after


def record_for_account(connection: Connection, app_id: str, *events: StreamEvent) -> None:
    """Record events of all streams of an account, including those that are not configured."""
    mine = connection.scalars(select(streams.c.id).where(streams.c.app_id == app_id))
    record_all(connection, dict.fromkeys(mine, events))


# -- what operators decide -------------------------------------------------------------------------


def dismiss_gap(connection: Connection, stream: int, bounds: Interval, reason: str | None) -> int:
    """Stop the alarm for the open gaps inside `bounds`; return how many, earlier dismissals included."""
    held = progress(connection, stream)
    already = [one for one in held.failed_touching(bounds) if one.dismissed]
    record(connection, stream, GapDismissed(bounds, reason))
    return meta.edited(connection, len(held.gaps_within(bounds)) + len(already))


def make_gap_due(connection: Connection, stream: int, bounds: Interval) -> int:
    """Make the failed and dismissed slices that touch `bounds` due now; return how many."""
    after = record(connection, stream, GapRetried(bounds))
    return meta.edited(connection, len(after.failed_touching(bounds)))


# -- writing what has changed ----------------------------------------------------------------------


def _write_scalars(
    connection: Connection, before: Mapping[int, Progress], after: Mapping[int, Progress]
) -> None:
    changed: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for stream, progress_now in after.items():
        was, now = vars(before[stream]), vars(progress_now)
        names = tuple(name for name in _COLUMNS if now[name] is not was[name] != now[name])
        if names:
            changed[names].append({"key": stream} | {name: now[name] for name in names})
    for rows in changed.values():
        connection.execute(_SET, rows)


def _write_coverage(
    connection: Connection, before: Mapping[int, Progress], after: Mapping[int, Progress]
) -> None:
    """Write the intervals that have changed; usually a stream has one, and it grows."""
    grown, gone, new = [], [], []
    for stream, progress_now in after.items():
        was, now = before[stream].coverage.intervals, progress_now.coverage.intervals
        if was == now:
            continue
        lost = [one for one in was if one not in now]
        won = [one for one in now if one not in was]
        if len(lost) == len(won) == 1:
            key = {"key": stream, "held_start": lost[0].start}
            grown.append(key | {"start": won[0].start, "end": won[0].end})
            continue
        gone += [{"key": stream, "held_start": one.start} for one in lost]
        new += [{"stream": stream, "start": one.start, "end": one.end} for one in won]
    _execute(connection, _GROW, grown)
    _execute(connection, _UNCOVER, gone)
    _execute(connection, _COVER, new)


def _write_failed(
    connection: Connection, before: Mapping[int, Progress], after: Mapping[int, Progress]
) -> None:
    gone, new = [], []
    for stream, progress_now in after.items():
        was, now = before[stream].failed_slices, progress_now.failed_slices
        if was == now:
            continue
        lost = [one.interval for one in set(was) - set(now)]
        gone += [{"key": stream, "held_start": one.start, "held_end": one.end} for one in lost]
        new += [_row(stream, one) for one in set(now) - set(was)]
    _execute(connection, _FORGET, gone)
    _execute(connection, _FAIL, new)


def _row(stream: int, failed: FailedSlice) -> dict[str, Any]:
    row = {"stream": stream, **vars(failed)}
    interval = row.pop("interval")
    return row | {"start": interval.start, "end": interval.end}


def _execute(connection: Connection, statement: Any, rows: list[dict[str, Any]]) -> None:
    if rows:
        connection.execute(statement, rows)
