"""Faxes that fail, counted and shown well before they are given up."""

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, Connection, and_, case, func, or_, select, type_coerce

from poller.errors import ALONE
from poller.ledger.faxes import FAX, TO_FETCH
from poller.ledger.jobs import DUE_TO_FETCH
from poller.ledger.rows import FailingCount, FaxRow, Waiting, fax_row
from poller.ledger.tables import EPOCH, MICROSECOND, State, accounts, faxes, jobs, streams

# Faxes whose failures an operator should see well before they are given up: they have failed for
# long, or for a reason that no further attempt can remove.
_SECOND = timedelta(seconds=1) // MICROSECOND
_FAILING = and_(DUE_TO_FETCH, jobs.c.first_failed_at.is_not(None))


def _failing_for(now: datetime) -> Any:
    """Microseconds since the first failure in a row, on the clock that quarantines a fax.

    The clock stands still while the account is suspended or the storage is unusable.
    """
    now_us = (now - EPOCH) // MICROSECOND
    since = type_coerce(jobs.c.first_failed_at, BigInteger)
    paused_since = type_coerce(accounts.c.paused_since, BigInteger)
    paused = (accounts.c.paused_s - jobs.c.paused_s_at_first_failure) * _SECOND
    return (
        now_us - since - paused - case((paused_since.is_not(None), now_us - paused_since), else_=0)
    )


def _is_alarming(age: Any, alarm_after: timedelta) -> Any:
    late = or_(age > alarm_after // MICROSECOND, jobs.c.last_error.contains(ALONE))
    return and_(faxes.c.state == State.PENDING, late)


def counts(
    connection: Connection, now: datetime, alarm_after: timedelta
) -> dict[int, FailingCount]:
    """Count failing faxes for each stream that has some, except removed ones."""
    age = _failing_for(now)
    late = case((_is_alarming(age, alarm_after), 1), else_=0)
    wanted = (
        select(faxes.c.stream, func.sum(late), func.max(age))
        .join_from(faxes, streams)
        .join(jobs, TO_FETCH)
        .join(accounts, accounts.c.app_id == streams.c.app_id)
        .where(_FAILING, streams.c.removed.is_(False))
        .group_by(faxes.c.stream)
    )
    return {
        stream: FailingCount(int(late), max(0.0, float(oldest) / _SECOND))
        for stream, late, oldest in connection.execute(wanted)
    }


def waiting(connection: Connection) -> list[Waiting]:
    """Count waiting faxes of configured streams by stream, state and reason."""
    alike = (faxes.c.stream, faxes.c.state, jobs.c.last_error)
    wanted = (
        select(*alike, func.count())
        .join_from(faxes, streams)
        .join(jobs, TO_FETCH)
        .where(DUE_TO_FETCH, streams.c.removed.is_(False))
        .group_by(*alike)
        .order_by(*alike)
    )
    return [Waiting(*row) for row in connection.execute(wanted)]


def oldest(
    connection: Connection, now: datetime, alarm_after: timedelta, limit: int
) -> list[FaxRow]:
    """Return pending faxes that have failed for longer or need an operator, oldest first."""
    age = _failing_for(now)
    wanted = (
        FAX.join(accounts, accounts.c.app_id == streams.c.app_id)
        .where(_FAILING, streams.c.removed.is_(False), _is_alarming(age, alarm_after))
        .order_by(age.desc(), faxes.c.id)
        .limit(limit)
    )
    return [fax_row(row) for row in connection.execute(wanted)]
