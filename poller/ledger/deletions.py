"""Deletions at eFax: faxes that may be old enough, faxes that were deleted, and how many recently."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, and_, func, or_, select

from poller.ledger import meta
from poller.ledger.errands import ask, end
from poller.ledger.faxes import FAX, remember, set_fax
from poller.ledger.rows import Errand, FaxRow, fax_row
from poller.ledger.tables import EPOCH, JobKind, State, faxes, streams

_PROMISING = and_(
    faxes.c.state == State.STORED,
    faxes.c.damage.is_(None),
    faxes.c.damaged.is_(False),
    faxes.c.refetch.is_(False),
)
_STORED_IN_ORDER = select(
    faxes.c.id, faxes.c.stream, faxes.c.stored_at, _PROMISING.label("promising")
).order_by(faxes.c.stored_at, faxes.c.id)


@dataclass(frozen=True)
class Place:
    """How far a walk along the stored faxes has come, by the time when they were stored."""

    stored_at: datetime = EPOCH
    fax: int = 0


@dataclass(frozen=True)
class Passed:
    """A stored fax that the walk has passed; `promising` if its row alone forbids nothing."""

    fax: int
    stream: int
    place: Place
    promising: bool


def walk(connection: Connection, place: Place, until: datetime, limit: int) -> list[Passed]:
    """Continue from `place` to `until`: return at most `limit` stored faxes that eFax may still have.

    The order comes from an index that every ledger has, so a fax costs nothing until its turn.
    """
    wanted = _STORED_IN_ORDER.where(
        faxes.c.deleted_at.is_(None),
        faxes.c.stored_at >= place.stored_at,
        faxes.c.stored_at <= until,
        or_(faxes.c.stored_at > place.stored_at, faxes.c.id > place.fax),
    )
    return [
        Passed(row.id, row.stream, Place(row.stored_at, row.id), bool(row.promising))
        for row in connection.execute(wanted.limit(limit))
    ]


def page(
    connection: Connection, stream_ids: Collection[int], above: int, limit: int
) -> list[FaxRow]:
    """Return faxes of these streams that eFax may still have, oldest first; `above` is the last id seen."""
    wanted = FAX.where(faxes.c.id > above, faxes.c.deleted_at.is_(None))
    if len(stream_ids) == 1:
        wanted = wanted.where(faxes.c.stream == next(iter(stream_ids)))
    rows = connection.execute(wanted.order_by(faxes.c.id).limit(limit))
    return [fax_row(row) for row in rows]


def deleted_since(connection: Connection, app_id: str, since: datetime) -> int:
    """Count the account's faxes that were deleted after that time."""
    wanted = (
        select(func.count())
        .select_from(faxes)
        .join(streams, streams.c.id == faxes.c.stream)
        .where(faxes.c.deleted_at > since, streams.c.app_id == app_id)
    )
    return connection.scalar(wanted) or 0


def ask_by_hand(
    connection: Connection, wanted: Sequence[FaxRow], now: datetime, stored_before: datetime | None
) -> None:
    """Have these faxes deleted for an operator; a running service does it."""
    ask(connection, wanted, JobKind.DELETE, now, stored_before=stored_before, anew=True)
    meta.edited(connection, len(wanted))


def deleted(connection: Connection, errand: Errand, now: datetime) -> None:
    """Record that eFax no longer has a fax; this is a fact, whatever else was decided meanwhile."""
    set_fax(connection, errand.fax.id, deleted_at=now)
    remember(connection, errand.fax.id, now, "deleted at eFax", None)
    end(connection, errand)


def refused(connection: Connection, errand: Errand, error: str, now: datetime) -> None:
    """Keep a refusal in the fax's history."""
    remember(connection, errand.fax.id, now, "not deleted at eFax", error)
