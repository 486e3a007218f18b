"""Leases: which run of poller works on which account, in a database that several nodes share.

The database's clock says when a lease ends. A lease is a row of the account, and its term grows with
each holder. `fence` makes a transaction of a former holder fail: the database lets either that
transaction or the takeover go first, never both. SQLite has no leases: the lock on the state
directory keeps other runs out.
"""

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError

from poller.ledger.tables import MICROSECOND, leases, now_us, of_us

TTL = timedelta(seconds=15)
TRUSTED_FOR = timedelta(seconds=10)  # how long a holder asks eFax after it sent its last renewal
FOUNDING = " the first start"  # no App ID: its lease is for the node that pairs ledger and storage
_UNTIL = now_us() + bindparam("ttl_us")
_IS_LIVE = leases.c.holder.is_not(None) & (of_us(leases.c.expires_at) >= now_us())


@dataclass(frozen=True)
class Lease:
    """The right to work on an account. A run holds it in one term only; each holder has another term."""

    app_id: str
    run: str
    term: int


@dataclass(frozen=True)
class LeaseRow:
    """Who holds an account; `is_live`: its lease has not ended."""

    app_id: str
    holder: str | None
    term: int
    expires_at: datetime | None
    renewed: int
    is_live: bool


@dataclass(frozen=True)
class Taken:
    """A lease just taken. `idle` is how long nobody has worked on the account; None: nobody ever has.

    `was_working`: the last holder did not give it back. `quiet` is how long nobody has asked eFax for
    it at least; a holder that was not renewed goes on for `TRUSTED_FOR`.
    """

    lease: Lease
    idle: timedelta | None
    was_working: bool

    @property
    def quiet(self) -> timedelta | None:
        if self.idle is None or not self.was_working:
            return self.idle
        return max(self.idle - TRUSTED_FOR, timedelta(0))


_ROW = select(
    leases.c.app_id,
    leases.c.holder,
    leases.c.term,
    leases.c.expires_at,
    leases.c.renewed,
    _IS_LIVE.label("is_live"),
)


def all_leases(connection: Connection) -> dict[str, LeaseRow]:
    """Return the leases of all accounts that a node has ever had, by App ID."""
    rows = connection.execute(_ROW.where(leases.c.app_id != FOUNDING).order_by(leases.c.app_id))
    return {row.app_id: LeaseRow(*row) for row in rows}


def add(connection: Connection, app_ids: Collection[str]) -> None:
    """Make the rows of new accounts; nobody holds them."""
    known = set(connection.scalars(select(leases.c.app_id)))
    for app_id in sorted(set(app_ids) - known):
        with suppress(IntegrityError), connection.begin_nested():  # another node was faster
            connection.execute(insert(leases).values(app_id=app_id))


def take(connection: Connection, app_id: str, run: str, ttl: timedelta = TTL) -> Taken | None:
    """Take an account whose lease is free or has ended; None if another run holds it.

    Also None while its last holder, or a command, has not ended its transaction: do not wait for that.
    """
    wanted = select(leases.c.holder, of_us(leases.c.expires_at).label("ends"), now_us())
    wanted = wanted.where(leases.c.app_id == app_id, ~_IS_LIVE).with_for_update(skip_locked=True)
    row = connection.execute(wanted).one_or_none()
    if row is None:
        return None
    holder, ends, now = row
    taken = (
        update(leases)
        .where(leases.c.app_id == app_id)
        .values(holder=run, term=leases.c.term + 1, renewed=0, expires_at=_UNTIL)
        .returning(leases.c.term)
    )
    term: int = connection.execute(taken, {"ttl_us": ttl // MICROSECOND}).scalar_one()
    idle = None if ends is None else (now - ends) * MICROSECOND
    if idle is not None and holder is not None:
        idle += ttl  # it was renewed that long before its end
    return Taken(Lease(app_id, run, term), idle, holder is not None)


def renew(connection: Connection, run: str, ttl: timedelta = TTL) -> dict[Lease, int]:
    """Renew all leases of a run; return how often each was renewed.

    One that has ended is renewed too if nobody has taken it: nobody else has written in its term.
    """
    mine = select(leases.c.app_id).where(leases.c.holder == run).order_by(leases.c.app_id)
    # In order, so that two transactions never wait for each other.
    held = connection.scalars(mine.with_for_update(key_share=True)).all()
    renewed = (
        update(leases)
        .where(leases.c.holder == run, leases.c.app_id.in_(held))
        .values(renewed=leases.c.renewed + 1, expires_at=_UNTIL)
        .returning(leases.c.app_id, leases.c.term, leases.c.renewed)
    )
    rows = connection.execute(renewed, {"ttl_us": ttl // MICROSECOND})
    return {Lease(app_id, run, term): count for app_id, term, count in rows}


def release(connection: Connection, lease: Lease) -> None:
    """Give a lease back, so that another run may take it at once."""
    mine = leases.c.app_id == lease.app_id, leases.c.holder == lease.run
    free = update(leases).where(*mine, leases.c.term == lease.term)
    connection.execute(free.values(holder=None, expires_at=now_us()))


def fence(connection: Connection, wanted: Collection[Lease]) -> set[Lease]:
    """Return which of these leases still hold; they hold until the transaction ends.

    The first statement of each transaction of a holder.
    """
    app_ids = sorted(lease.app_id for lease in wanted)
    held = (
        select(leases.c.app_id, leases.c.holder, leases.c.term)
        .where(leases.c.app_id.in_(app_ids))
        .order_by(leases.c.app_id)
        .with_for_update(read=True, key_share=True)
    )
    return {Lease(*row) for row in connection.execute(held)} & set(wanted)


def shut_out_holders(connection: Connection) -> None:
    """Wait for the holders' transactions, and let none begin: the first statement of a command's."""
    every = select(leases.c.app_id).order_by(leases.c.app_id).with_for_update()
    connection.execute(every).all()
