"""Faxes that we send: the requests, and how far each has come."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, and_, bindparam, exists, func, insert, select, update

from poller.efax.responses import ListedFax, listed_pages
from poller.ledger import meta
from poller.ledger.fold import chunks
from poller.ledger.rows import FaxRow, SendRow
from poller.ledger.tables import IS_IN_DOUBT, SendState, faxes, sends, streams
from poller.recognition import Expected, find_arrived

EXPECTED_FOR = timedelta(days=7)  # a page that has not arrived by then is lost

_SEND = (
    select(
        *(column for column in sends.c if column is not sends.c.arrived),
        *(streams.c.app_id, streams.c.user_id, streams.c.account, streams.c.name.label("user")),
        faxes.c.fax_id.label("arrived_fax_id"),
        faxes.c.first_seen_at.label("arrived_at"),
        *(faxes.c.stored_at, faxes.c.file, faxes.c.pages, faxes.c.damaged),
    )
    .join_from(sends, streams)
    .outerjoin(faxes, sends.c.arrived == faxes.c.id)
)
# Whether a fax is a page of ours, also of a self-test: such a page belongs to nobody else.
IS_CANARY = exists().where(sends.c.arrived == faxes.c.id)
_MINE = sends.c.id == bindparam("this")
_OPEN = sends.c.finished_at.is_(None)
_IS_EXPECTED = and_(
    *(_OPEN, sends.c.code.is_not(None), sends.c.arrived.is_(None)),
    sends.c.state != SendState.FAILED,
)
# Whether a stream expects a page of ours; read with the stream, as most never do.
EXPECTS_PAGE = exists().where(sends.c.stream == streams.c.id, _IS_EXPECTED)
_EXPECTED = select(
    *(sends.c.id, sends.c.code, sends.c.destination, sends.c.sent_at, sends.c.late_at)
).where(sends.c.stream == bindparam("whose"), sends.c.sent_at.is_not(None), _IS_EXPECTED)


@dataclass(frozen=True)
class NewSend:
    """A fax to send; its documents are in the outbox. Only our own pages have `code` and `late_at`."""

    stream: int
    transaction_id: str
    purpose: str
    destination: str
    code: str | None = None
    late_at: datetime | None = None


def ask(connection: Connection, new: NewSend, now: datetime) -> SendRow:
    """Ask for a fax to be sent."""
    meta.edited(connection, 1)  # a running service watches for this
    wanted = insert(sends).values(**vars(new), state=SendState.WAITING, asked_at=now)
    return one(connection, connection.execute(wanted.returning(sends.c.id)).scalar_one())


def one(connection: Connection, send: int) -> SendRow:
    """Return one request as it is now."""
    row = connection.execute(_SEND.where(_MINE), {"this": send}).one_or_none()
    if row is None:
        raise LookupError(f"the ledger has no send {send}")
    return _row(row)


def unfinished(connection: Connection) -> list[SendRow]:
    """Return the unfinished requests of configured users, oldest first."""
    rows = connection.execute(_SEND.where(_OPEN, streams.c.removed.is_(False)).order_by(sends.c.id))
    return [_row(row) for row in rows]


def in_doubt_since(connection: Connection, since: datetime) -> list[SendRow]:
    """Return the requests of configured users that are in doubt, made since then."""
    wanted = _SEND.where(IS_IN_DOUBT, sends.c.asked_at >= since, streams.c.removed.is_(False))
    return [_row(row) for row in connection.execute(wanted.order_by(sends.c.id))]


def begin(connection: Connection, send: int, began: datetime | None, now: datetime) -> bool:
    """Note that the request goes out now; False forbids it, because it is not ours to send.

    It is ours if it waits, or if `began` is when the previous try went out and eFax surely did not
    take it.
    """
    before = sends.c.state == SendState.WAITING
    if began is not None:
        before = and_(sends.c.state == SendState.SENDING, sends.c.sent_at == began)
    values = {"state": SendState.SENDING, "sent_at": now}
    done = connection.execute(update(sends).where(sends.c.id == send, before).values(values))
    return done.rowcount == 1


def accepted(connection: Connection, send: int, fax_id: str, now: datetime) -> SendRow:
    """Record the id that eFax gave the fax, even one in doubt; from now on we follow it."""
    values = {"fax_id": fax_id, "accepted_at": now, "error": None, "finished_at": None}
    return _set(connection, send, state=SendState.ACCEPTED, **values)


def under_way(connection: Connection, send: int, status: str) -> SendRow:
    """Record the state of the transmission."""
    return _set(connection, send, status=status)


def transmitted(connection: Connection, send: int, status: str | None, now: datetime) -> SendRow:
    """Record that the fax has reached its number."""
    values = {"state": SendState.TRANSMITTED, "status": status, "transmitted_at": now}
    return _end(connection, send, now, **values)


def failed(
    connection: Connection, send: int, error: str, now: datetime, status: str | None = None
) -> SendRow:
    """Record that the fax was not sent, or did not reach its number."""
    return _end(connection, send, now, state=SendState.FAILED, error=error, status=status)


def in_doubt(connection: Connection, send: int, error: str, now: datetime) -> SendRow:
    """Record that nobody knows whether the fax was sent; it is never sent again."""
    return _end(connection, send, now, state=SendState.IN_DOUBT, error=error)


def left(connection: Connection, send: int, error: str, now: datetime) -> SendRow:
    """Record that eFax accepted the fax and that nobody follows it any longer."""
    return _end(connection, send, now, state=SendState.ACCEPTED, error=error)


def withdraw(connection: Connection, send: int, now: datetime, why: str) -> SendRow:
    """Make sure that a request that still waits is not sent."""
    held = one(connection, send)
    return failed(connection, send, why, now) if held.state is SendState.WAITING else held


def _end(connection: Connection, send: int, now: datetime, **values: Any) -> SendRow:
    """End a request; one of our own pages ends only when it has arrived or was reported late."""
    if one(connection, send).code is None:
        values["finished_at"] = now
    return _set(connection, send, **values)


def _set(connection: Connection, send: int, **values: Any) -> SendRow:
    connection.execute(update(sends).where(_MINE).values(values), {"this": send})
    return one(connection, send)


# -- our own pages on their way ---------------------------------------------------------------------


def note_arrivals(connection: Connection, stream: int, new: Sequence[FaxRow]) -> None:
    """Note which of these faxes, just discovered, are pages that we sent to our own number."""
    rows = connection.execute(_EXPECTED, {"whose": stream})
    expected = [Expected(*row) for row in rows]
    for fax in new if expected else ():
        pages = listed_pages(fax.listed)
        listed = ListedFax(fax.fax_id, fax.received_at, pages, fax.listed)
        found = find_arrived(expected, listed)
        if found is not None:
            expected.remove(found)
            _set(connection, found.send, arrived=fax.id)


def note_late(connection: Connection, send: int) -> SendRow:
    """Record that it was reported late."""
    return _set(connection, send, late_said=True)


def finish(connection: Connection, send: int, now: datetime) -> SendRow:
    """Record that nothing more can be found out about a page of ours."""
    return _set(connection, send, finished_at=now)


def last_canaries(connection: Connection, app_id: str) -> dict[int, SendRow]:
    """Return the last canary of each of the account's streams that has arrived and is stored."""
    last = (
        select(sends.c.stream, func.max(sends.c.asked_at).label("asked_at"))
        .join_from(sends, faxes, sends.c.arrived == faxes.c.id)
        .where(sends.c.purpose == "canary", faxes.c.stored_at.is_not(None))
        .group_by(sends.c.stream)
        .subquery()
    )
    wanted = _SEND.join(
        last, and_(last.c.stream == sends.c.stream, last.c.asked_at == sends.c.asked_at)
    )
    rows = connection.execute(wanted.where(streams.c.app_id == app_id))
    return {row.stream: _row(row) for row in rows}


def late_canaries(connection: Connection) -> list[SendRow]:
    """Return the late canaries, except those after which another has arrived."""
    later = sends.alias()
    newer = (
        exists()
        .where(later.c.stream == sends.c.stream, later.c.asked_at > sends.c.asked_at)
        .where(later.c.purpose == "canary", later.c.arrived.is_not(None))
    )
    wanted = _SEND.where(_OPEN, sends.c.purpose == "canary", sends.c.late_said.is_(True), ~newer)
    rows = connection.execute(wanted.where(streams.c.removed.is_(False)).order_by(sends.c.id))
    return [_row(row) for row in rows]


def last_asked(connection: Connection, stream: int) -> datetime | None:
    """Return when this stream's last canary was requested."""
    wanted = select(sends.c.asked_at).where(sends.c.stream == stream, sends.c.purpose == "canary")
    last: datetime | None = connection.scalar(wanted.order_by(sends.c.asked_at.desc()).limit(1))
    return last


def to_be_sent(
    connection: Connection, transaction_ids: Sequence[str], since: datetime
) -> dict[str, bool]:
    """Return which of these ids are known, and whether their documents may still be needed.

    They are needed if the fax waits and was requested since then, also for removed users.
    """
    is_needed = and_(sends.c.state == SendState.WAITING, sends.c.asked_at >= since)
    wanted = select(sends.c.transaction_id, is_needed)
    return {
        transaction_id: bool(needed)
        for chunk in chunks(transaction_ids)
        for transaction_id, needed in connection.execute(
            wanted.where(sends.c.transaction_id.in_(chunk))
        )
    }


def _row(row: Any) -> SendRow:
    return SendRow(**dict(zip(row._fields, row, strict=True)))
