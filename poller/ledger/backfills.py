"""Old windows that an operator asked for: kept until they are listed, even across a kill."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, and_, case, func, insert, select, update

from poller.ledger import meta
from poller.ledger.rows import Backfill, BackfillFound
from poller.ledger.tables import (
    FOUND_BY_BACKFILL,
    State,
    backfill_failures,
    backfills,
    faxes,
)
from poller.window import WIDENED_BY, Interval


def ask(connection: Connection, stream: int, window: Interval, now: datetime) -> Backfill:
    """Ask for an old window to be listed; if the same request is unfinished, continue it."""
    meta.edited(connection, 1)
    same = and_(
        backfills.c.stream == stream,
        backfills.c.start == window.start,
        backfills.c.end == window.end,
        backfills.c.done_at.is_(None),
    )
    held = connection.scalar(select(backfills.c.id).where(same))
    if held is None:
        newest = connection.scalar(select(func.max(faxes.c.id))) or 0
        held = connection.execute(
            insert(backfills)
            .values(stream=stream, start=window.start, end=window.end, rest_end=window.end)
            .values(asked_at=now, after_fax=newest)
            .returning(backfills.c.id)
        ).scalar_one()
    return one(connection, held)


def one(connection: Connection, backfill: int) -> Backfill:
    """Return one backfill as it is now."""
    row = connection.execute(select(backfills).where(backfills.c.id == backfill)).one_or_none()
    if row is None:
        raise LookupError(f"the ledger has no backfill {backfill}")
    mine = backfill_failures.c.backfill == backfill
    failures = connection.execute(
        select(backfill_failures.c.start, backfill_failures.c.end, backfill_failures.c.reason)
        .where(mine)
        .order_by(backfill_failures.c.start)
    )
    return Backfill(
        id=row.id,
        stream=row.stream,
        window=Interval(row.start, row.end),
        rest=Interval(row.start, row.rest_end) if row.rest_end > row.start else None,
        asked_at=row.asked_at,
        done_at=row.done_at,
        last_error=row.last_error,
        not_listed=tuple((Interval(start, end), reason) for start, end, reason in failures),
    )


def waiting(connection: Connection, stream: int) -> list[Backfill]:
    """Return this stream's unfinished backfills, in the order of their requests."""
    wanted = select(backfills.c.id).where(
        backfills.c.stream == stream, backfills.c.done_at.is_(None)
    )
    return [one(connection, id_) for id_ in connection.scalars(wanted.order_by(backfills.c.id))]


def all_waiting(connection: Connection) -> dict[int, list[Backfill]]:
    """Return the unfinished backfills of all streams that have some."""
    theirs = select(backfills.c.stream).where(backfills.c.done_at.is_(None)).distinct()
    return {stream: waiting(connection, stream) for stream in connection.scalars(theirs).all()}


def withdraw(connection: Connection, stream: int, now: datetime) -> list[Backfill]:
    """End this stream's unfinished backfills, and return them.

    They keep a rest that was never listed, which tells them from finished ones.
    """
    held = waiting(connection, stream)
    for asked in held:
        _set(connection, asked.id, done_at=now)
    return held


def listed(
    connection: Connection,
    backfill: int,
    rest: Interval | None,
    not_listed: Sequence[tuple[Interval, str]],
    now: datetime,
) -> Backfill:
    """Record the progress of a backfill, finished if it has no rest; return it as it is now."""
    held = one(connection, backfill)
    if held.done_at is not None:  # withdrawn while this part was being listed
        return held
    for interval, reason in not_listed:
        connection.execute(
            insert(backfill_failures).values(
                backfill=backfill, start=interval.start, end=interval.end, reason=reason
            )
        )
    rest_end = held.window.start if rest is None else rest.end
    done_at = now if rest is None else None
    _set(connection, backfill, rest_end=rest_end, done_at=done_at, last_error=None)
    return one(connection, backfill)


def failed(connection: Connection, backfill: int, error: str) -> None:
    """Record why a backfill makes no progress; its rest still has to be listed."""
    _set(connection, backfill, last_error=error)


def _set(connection: Connection, backfill: int, **values: object) -> None:
    connection.execute(update(backfills).where(backfills.c.id == backfill).values(**values))


def found(connection: Connection, backfill: int) -> BackfillFound:
    """Count what it discovered; two backfills of the same time and stream share the count."""
    row = connection.execute(select(backfills).where(backfills.c.id == backfill)).one()
    mine = and_(
        faxes.c.stream == row.stream,
        FOUND_BY_BACKFILL,
        faxes.c.id > row.after_fax,
        faxes.c.first_window_start >= row.start - WIDENED_BY,
        faxes.c.first_window_end <= row.end + WIDENED_BY,
    )
    fate = case(
        (faxes.c.state == State.STORED, "stored"),
        (and_(faxes.c.state == State.PENDING, faxes.c.attempts == 0), "pending"),
        (faxes.c.state != State.DISMISSED, "failed"),
        else_="dismissed",
    )
    wanted = select(fate.label("fate"), func.count()).where(mine).group_by("fate")
    counts: dict[str, int] = {row.fate: row[1] for row in connection.execute(wanted)}
    return BackfillFound(
        discovered=sum(counts.values()),
        stored=counts.get("stored", 0),
        pending=counts.get("pending", 0),
        failed=counts.get("failed", 0),
    )
