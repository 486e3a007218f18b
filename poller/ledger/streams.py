"""Streams: which are configured, and their counters; their progress is in `fold`."""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from sqlalchemy import (
    BigInteger,
    Connection,
    bindparam,
    func,
    insert,
    or_,
    select,
    type_coerce,
    update,
)

from poller.config.model import Account
from poller.ledger import accounts
from poller.ledger.rows import StreamRow
from poller.ledger.tables import EPOCH, MICROSECOND, faxes, streams
from poller.stream import Direction

Identity = tuple[str, str, str, str]  # app_id, user_id, account, user

_HOUR = timedelta(hours=1) // MICROSECOND
_STREAM = select(
    *(column for column in streams.c if column.name != "name"), streams.c.name.label("user")
)

_HAS_SENT = (
    select(streams.c.id)
    .where(
        streams.c.app_id == bindparam("app_id"),
        streams.c.direction == Direction.SENT,
        streams.c.removed.is_(False),
    )
    .limit(1)
)

_SEEN_AT = (
    select(faxes.c.first_seen_at)
    .where(faxes.c.id >= bindparam("this"))
    .order_by(faxes.c.id)
    .limit(1)
)


def all_streams(connection: Connection, *, include_removed: bool = True) -> list[StreamRow]:
    """Return all streams in the order in which they were added."""
    wanted = _STREAM.order_by(streams.c.id)
    if not include_removed:
        wanted = wanted.where(streams.c.removed.is_(False))
    return [StreamRow(**row) for row in connection.execute(wanted).mappings()]


def waiting_counts(connection: Connection) -> dict[int, tuple[int, int]]:
    """Count pending and quarantined faxes of the streams that have some, except removed ones."""
    wanted = select(streams.c.id, streams.c.pending, streams.c.quarantined).where(
        streams.c.removed.is_(False), or_(streams.c.pending > 0, streams.c.quarantined > 0)
    )
    return {row.id: (row.pending, row.quarantined) for row in connection.execute(wanted)}


def one(connection: Connection, stream: int) -> StreamRow:
    """Return one stream."""
    row = connection.execute(_STREAM.where(streams.c.id == stream)).mappings().one_or_none()
    if row is None:
        raise LookupError(f"the ledger has no stream {stream}")
    return StreamRow(**row)


def sync(
    connection: Connection,
    wanted: Sequence[Identity],
    now: datetime,
    direction: Direction = Direction.RECEIVED,
    *,
    of: str | None = None,
) -> list[StreamRow]:
    """Make exactly these streams of one direction (app_id, user_id, account, user) configured.

    Add new ones as first seen `now`, update labels, and mark all others as removed; with `of`, only
    other streams of this App ID. Returns the rows in the order of `wanted`.
    """
    known = _by_users(connection, direction, of)
    asked = {(app_id, user_id): (account, name) for app_id, user_id, account, name in wanted}
    new = [
        {"app_id": app_id, "user_id": user_id, "account": account, "name": name}
        | {"direction": direction, "our_first_seen": now}
        for (app_id, user_id), (account, name) in asked.items()
        if (app_id, user_id) not in known
    ]
    if new:
        connection.execute(insert(streams), new)
    changed = []
    for identity, row in known.items():
        # A stream that is no longer configured keeps the labels that operators know.
        account, name = asked.get(identity, (row.account, row.user))
        removed = identity not in asked
        if (account, name, removed) != (row.account, row.user, row.removed):
            changed.append({"key": row.id, "account": account, "name": name, "removed": removed})
    if changed:
        connection.execute(update(streams).where(streams.c.id == bindparam("key")), changed)
    for app_id, account in {app_id: account for app_id, _, account, _ in wanted}.items():
        accounts.ensure(connection, app_id, account)
    if new or changed:
        known = _by_users(connection, direction, of)
    return [known[app_id, user_id] for app_id, user_id, _, _ in wanted]


def sync_account(connection: Connection, account: Account, now: datetime) -> list[StreamRow]:
    """Make exactly the streams of `account.streams` its configured ones; return their rows in that order."""
    received, sent = (
        [
            (user.app_id, user.user_id, user.account, user.name)
            for user, direction in account.streams
            if direction is wanted
        ]
        for wanted in Direction
    )
    rows = sync(connection, received, now, of=account.app_id)
    if sent or connection.scalar(_HAS_SENT, {"app_id": account.app_id}):
        rows += sync(connection, sent, now, Direction.SENT, of=account.app_id)
    return rows


def remove_others(connection: Connection, configured: Collection[str]) -> None:
    """Mark all streams as removed whose App ID is not among these."""
    others = streams.c.app_id.not_in(sorted(configured))
    connection.execute(update(streams).where(others).values(removed=True))


def _by_users(
    connection: Connection, direction: Direction, of: str | None
) -> dict[tuple[str, str], StreamRow]:
    wanted = _STREAM.where(streams.c.direction == direction).order_by(streams.c.id)
    if of is not None:
        wanted = wanted.where(streams.c.app_id == of)
    rows = (StreamRow(**row) for row in connection.execute(wanted).mappings())
    return {(row.app_id, row.user_id): row for row in rows}


def streams_with_stored_per_hour(
    connection: Connection, since: datetime
) -> tuple[list[StreamRow], list[tuple[int, int, int]]]:
    """Return all streams, and how many faxes were stored in each hour, both of one moment.

    Each hour with faxes is a tuple of stream, hour (0 begins at `since`) and count.
    """
    hour = (type_coerce(faxes.c.stored_at, BigInteger) - (since - EPOCH) // MICROSECOND) // _HOUR
    wanted = select(faxes.c.stream, hour.label("hour"), func.count())
    per_hour = wanted.where(faxes.c.stored_at >= since).group_by(faxes.c.stream, hour)
    counts = [(row[0], row[1], row[2]) for row in connection.execute(per_hour)]
    return all_streams(connection), counts


def stored_since(connection: Connection, since: datetime) -> dict[int, int]:
    """Count the faxes stored since then, of the streams that have some."""
    wanted = select(faxes.c.stream, func.count()).where(faxes.c.stored_at >= since)
    return {row[0]: row[1] for row in connection.execute(wanted.group_by(faxes.c.stream))}


def discovered_since(connection: Connection, since: datetime) -> dict[int, int]:
    """Count the faxes first seen since then, of the streams that have some.

    Faxes have their ids in the order in which they are seen, so the first one is found by halving:
    an index on the time would cost every new fax a write.
    """
    first, end = 0, (connection.scalar(select(func.max(faxes.c.id))) or 0) + 1
    while first < end:
        middle = (first + end) // 2
        seen_at = connection.scalar(_SEEN_AT, {"this": middle})
        if seen_at is None or seen_at >= since:
            end = middle
        else:
            first = middle + 1
    wanted = select(faxes.c.stream, func.count()).where(faxes.c.id >= first)
    return {row[0]: row[1] for row in connection.execute(wanted.group_by(faxes.c.stream))}
