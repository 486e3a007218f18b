"""eFax's notices that reach a node that does not hold the account: its holder reads them here."""

import json
from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select

from poller.ledger.tables import notices


@dataclass(frozen=True)
class ForwardedNotice:
    """Which users a notice names; none: it may be about any."""

    app_id: str
    user_ids: tuple[str, ...]
    of_sent: bool


def announce(connection: Connection, notice: ForwardedNotice) -> None:
    """Keep a notice for the holder of its account."""
    named = json.dumps({"user_ids": notice.user_ids, "of_sent": notice.of_sent})
    connection.execute(insert(notices).values(app_id=notice.app_id, named=named))


def waiting(connection: Connection, app_ids: Collection[str]) -> list[str]:
    """Return for which of these accounts a notice has arrived at another node."""
    mine = select(notices.c.app_id).where(notices.c.app_id.in_(sorted(app_ids)))
    return list(connection.scalars(mine.distinct().order_by(notices.c.app_id)))


def take(connection: Connection, app_id: str) -> list[ForwardedNotice]:
    """Return what arrived for an account, in order, and forget it."""
    mine = select(notices).where(notices.c.app_id == app_id).order_by(notices.c.id)
    rows = connection.execute(mine).all()
    if rows:
        connection.execute(delete(notices).where(notices.c.id.in_([row.id for row in rows])))
    named = [json.loads(row.named) for row in rows]
    return [
        ForwardedNotice(row.app_id, tuple(one["user_ids"]), one["of_sent"])
        for row, one in zip(rows, named, strict=True)
    ]
