"""Streams: which are configured, and what their polls came to."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, bindparam, case, insert, or_, select, true, update

from poller.ledger import accounts, backfills, coverage, faxes
from poller.ledger.rows import Progress, StreamRow
from poller.ledger.tables import Instant, streams
from poller.stream import Direction
from poller.window import Coverage, SliceKind

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


# -- what polls came to ------------------------------------------------------------------------


def _set_stream(connection: Connection, stream: int, **values: Any) -> None:
    connection.execute(update(streams).where(streams.c.id == stream).values(**values))


def pin_start(connection: Connection, stream: int, start: datetime, configured: str) -> None:
    """Fix where the stream's look-back begins; once set it only moves to earlier times."""
    values = {"key": stream, "to_start": start, "to_configured": configured}
    if not connection.execute(_PIN, values).rowcount:
        raise LookupError(f"the ledger knows no stream {stream}")


_TO_START = bindparam("to_start", type_=Instant)
_PIN = (
    update(streams)
    .where(streams.c.id == bindparam("key"))
    .values(
        pinned_start=case(
            (streams.c.pinned_start < _TO_START, streams.c.pinned_start), else_=_TO_START
        ),
        configured_start=bindparam("to_configured"),
    )
)


def poll_failed(
    connection: Connection,
    stream: int,
    now: datetime,
    *,
    error: str,
    refused_until: datetime | None = None,
) -> None:
    """Record a poll that failed.

    A `refused_until` other than the one held is one more refusal in a row; None leaves it.
    """
    values: dict[str, Any] = {
        "last_poll_at": now,
        "last_error": error,
        "failed_polls": streams.c.failed_polls + 1,
    }
    if refused_until is not None and refused_until != one(connection, stream).refused_until:
        values |= {"refused_until": refused_until, "refusals": streams.c.refusals + 1}
    _set_stream(connection, stream, **values)


def sweep_done(
    connection: Connection, stream: int, kind: SliceKind, end: datetime, found: int
) -> None:
    if kind is SliceKind.DEEP_SWEEP:
        total = streams.c.found_by_deep_sweep + found
        _set_stream(connection, stream, deep_sweep_end=end, found_by_deep_sweep=total)
    else:
        _set_stream(
            connection, stream, sweep_end=end, found_by_sweep=streams.c.found_by_sweep + found
        )


def forget_sweeps(connection: Connection, app_id: str, since: datetime | None = None) -> None:
    """Have the account's next sweeps reach back as one at `since` would, or to the starts."""
    for end in (streams.c.sweep_end, streams.c.deep_sweep_end):
        later = true() if since is None else end > since
        mine = and_(streams.c.app_id == app_id, later)
        connection.execute(update(streams).where(mine).values({end: since}))


# -- what polls go by ------------------------------------------------------------------------------


def progress(connection: Connection, stream: int) -> Progress:
    """Return what polls of this stream go by."""
    return Progress(
        one(connection, stream),
        coverage.covered(connection, stream),
        coverage.failed(connection, stream),
        stream in backfills.streams_waiting(connection),
    )


def all_progress(connection: Connection) -> dict[int, Progress]:
    """Return what polls of all streams go by."""
    covered, failed = coverage.all_covered(connection), coverage.all_failed(connection)
    to_backfill = backfills.streams_waiting(connection)
    return {
        row.id: Progress(
            row, covered.get(row.id, Coverage()), failed.get(row.id, []), row.id in to_backfill
        )
        for row in all_streams(connection)
    }


def streams_with_stored_per_hour(
    connection: Connection, since: datetime
) -> tuple[list[StreamRow], list[tuple[int, int, int]]]:
    """Return all streams, and how many faxes were stored in each hour, both of one moment.

    The hours are stream, hour (0 begins at `since`) and count, where there are any.
    """
    return all_streams(connection), faxes.stored_per_hour(connection, since)
