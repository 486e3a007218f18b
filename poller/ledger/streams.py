"""Streams: which are configured, and what is counted of them; how far they have come is in `fold`."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, insert, or_, select, update

from poller.ledger import accounts, faxes
from poller.ledger.rows import StreamRow
from poller.ledger.tables import streams
from poller.stream import Direction

Identity = tuple[str, str, str, str]  # app_id, user_id, account, user

_STREAM = select(
    *(column for column in streams.c if column.name != "name"), streams.c.name.label("user")
)


def all_streams(connection: Connection, *, include_removed: bool = True) -> list[StreamRow]:
    """Return all streams in the order in which they were added."""
    wanted = _STREAM.order_by(streams.c.id)
    if not include_removed:
        wanted = wanted.where(streams.c.removed.is_(False))
    return [StreamRow(**row) for row in connection.execute(wanted).mappings()]


def waiting_counts(connection: Connection) -> dict[int, tuple[int, int]]:
    """Count pending and quarantined faxes of the streams that have some, but for removed ones."""
    wanted = select(streams.c.id, streams.c.pending, streams.c.quarantined).where(
        streams.c.removed.is_(False), or_(streams.c.pending > 0, streams.c.quarantined > 0)
    )
    return {row.id: (row.pending, row.quarantined) for row in connection.execute(wanted)}


def one(connection: Connection, stream: int) -> StreamRow:
    """Return one stream."""
    row = connection.execute(_STREAM.where(streams.c.id == stream)).mappings().one_or_none()
    if row is None:
        raise LookupError(f"the ledger knows no stream {stream}")
    return StreamRow(**row)


def sync(
    connection: Connection,
    wanted: Sequence[Identity],
    now: datetime,
    direction: Direction = Direction.RECEIVED,
) -> list[StreamRow]:
    """Make the ledger know exactly these streams of one direction (app_id, user_id, account, user).

    New ones are added as first seen `now`, labels are brought up to date, all others are marked
    removed. Returns the rows in the order asked for.
    """
    known = _by_users(connection, direction)
    asked = {(app_id, user_id): (account, name) for app_id, user_id, account, name in wanted}
    new = [identity for identity in asked if identity not in known]
    if new:
        connection.execute(
            insert(streams), [_new_stream(key, asked[key], direction, now) for key in new]
        )
    changed = [
        {"key": row.id, **_labels(row, asked.get(identity))}
        for identity, row in known.items()
        if _differs(row, asked.get(identity))
    ]
    if changed:
        connection.execute(_RELABEL, changed)
    accounts.sync(connection, {app_id: account for app_id, _, account, _ in wanted})
    if new or changed:
        known = _by_users(connection, direction)
    return [known[app_id, user_id] for app_id, user_id, _, _ in wanted]


def _by_users(connection: Connection, direction: Direction) -> dict[tuple[str, str], StreamRow]:
    rows = (row for row in all_streams(connection) if row.direction is direction)
    return {(row.app_id, row.user_id): row for row in rows}


_RELABEL = (
    update(streams)
    .where(streams.c.id == bindparam("key"))
    .values(
        account=bindparam("to_account"), name=bindparam("to_name"), removed=bindparam("to_removed")
    )
)


def _new_stream(
    user: tuple[str, str], labels: tuple[str, str], direction: Direction, now: datetime
) -> dict[str, Any]:
    named = dict(zip(("app_id", "user_id", "account", "name"), (*user, *labels), strict=True))
    return {**named, "direction": direction, "our_first_seen": now}


def _labels(row: StreamRow, labels: tuple[str, str] | None) -> dict[str, Any]:
    """A stream that is no longer configured keeps the labels under which operators knew them."""
    account, name = labels or (row.account, row.user)
    return {"to_account": account, "to_name": name, "to_removed": labels is None}


def _differs(row: StreamRow, labels: tuple[str, str] | None) -> bool:
    if labels is None:
        return not row.removed
    return row.removed or (row.account, row.user) != labels


def streams_with_stored_per_hour(
    connection: Connection, since: datetime
) -> tuple[list[StreamRow], list[tuple[int, int, int]]]:
    """Return all streams, and how many faxes were stored in each hour, both of one moment.

    The hours are stream, hour (0 begins at `since`) and count, where there are any.
    """
    return all_streams(connection), faxes.stored_per_hour(connection, since)
