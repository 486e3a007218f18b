"""What an operator decides about stretches of time that could not be listed."""

from typing import Any

from sqlalchemy import Connection, and_, delete, insert, select, update

from poller.ledger import listing, users
from poller.ledger.tables import EPOCH, failed_slices
from poller.window import Interval, open_gaps


def dismiss(connection: Connection, user: int, bounds: Interval, reason: str | None) -> int:
    """Only what is a gap now is dismissed, never time that is still to come."""
    row = users.one_user(connection, user)
    if row.pinned_start is None:
        return 0
    held = listing.failed(connection, user)
    gaps = open_gaps(listing.covered(connection, user), row.pinned_start, held)
    parts = [part for gap in gaps if (part := gap.within(bounds.start, bounds.end))]
    for part in parts:
        _dismiss(connection, user, part, reason)
    if parts:  # slices overlap: what failed there is listed or dismissed now, whole
        connection.execute(
            delete(failed_slices).where(_inside(user, bounds), failed_slices.c.dismissed.is_(False))
        )
    already = [one for one in held if one.dismissed and _meet(one.interval, bounds)]
    return len(parts) + len(already)


def _meet(one: Interval, other: Interval) -> bool:
    return one.within(other.start, other.end) is not None


def _inside(user: int, bounds: Interval) -> Any:
    return and_(
        failed_slices.c.user == user,
        failed_slices.c.start >= bounds.start,
        failed_slices.c.end <= bounds.end,
    )


def _dismiss(connection: Connection, user: int, part: Interval, reason: str | None) -> None:
    mine = _inside(user, part)
    said = connection.scalar(select(failed_slices.c.reason).where(mine).limit(1))
    connection.execute(delete(failed_slices).where(mine))
    connection.execute(
        insert(failed_slices).values(
            user=user,
            start=part.start,
            end=part.end,
            next_attempt_at=EPOCH,
            reason=said or "",
            dismissed=True,
            dismiss_reason=reason,
        )
    )


def make_due(connection: Connection, user: int, bounds: Interval) -> int:
    values: dict[str, Any] = {"dismissed": False, "dismiss_reason": None}
    values |= {"failures": 0, "next_attempt_at": EPOCH}
    meets = and_(failed_slices.c.start < bounds.end, failed_slices.c.end > bounds.start)
    mine = and_(failed_slices.c.user == user, meets)
    return connection.execute(update(failed_slices).where(mine).values(**values)).rowcount
