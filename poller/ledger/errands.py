"""Errands: things to do at eFax with a stored fax: delete it, or restore its mark."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, func, insert, select

from poller.ledger.faxes import some
from poller.ledger.fold import chunks
from poller.ledger.jobs import DONE, SET_JOB
from poller.ledger.rows import Errand, FaxRow
from poller.ledger.tables import IS_ERRAND, JobKind, jobs, streams

_COLUMNS = ("kind", "subject", "due", "fence", "failures", "first_failed_at", "last_error")
_ERRAND = select(*(jobs.c[name] for name in _COLUMNS), jobs.c.stored_before).where(IS_ERRAND)
_WAITS = (
    select(func.count())
    .select_from(jobs)
    .join(streams, streams.c.id == jobs.c.stream)
    .where(IS_ERRAND, jobs.c.due.is_not(None), streams.c.removed.is_(False))
)


def ask(
    connection: Connection,
    wanted: Sequence[FaxRow],
    kind: JobKind,
    now: datetime,
    *,
    stored_before: datetime | None = None,
    anew: bool = False,
) -> None:
    """Ask for this errand unless somebody has already asked for it.

    With `anew`, by hand, also ask for one that was left after long refusals, and forget its
    failures.
    """
    held = {one.fax.id: one for one in of_faxes(connection, [fax.id for fax in wanted], kind)}
    for fax in wanted:
        values: dict[str, Any] = {"due": now, "stored_before": stored_before}
        if fax.id not in held:
            job = {"kind": kind, "subject": fax.id, "stream": fax.stream}
            connection.execute(insert(jobs), {**job, **values})
        elif anew:
            values |= {"failures": 0, "first_failed_at": None, "last_error": None}
            values["fence"] = held[fax.id].fence + 1
            connection.execute(SET_JOB, {"this": fax.id, "of_kind": kind, **values})


def due(
    connection: Connection,
    app_id: str,
    kind: JobKind,
    now: datetime,
    limit: int,
    not_of: Collection[int] = (),
) -> list[Errand]:
    """Return an account's due errands, longest due first, except those of the streams `not_of`."""
    wanted = (
        _ERRAND.join(streams, streams.c.id == jobs.c.stream)
        .where(jobs.c.kind == kind, jobs.c.due <= now)
        .where(streams.c.app_id == app_id, streams.c.removed.is_(False))
        .where(jobs.c.stream.not_in(not_of))
        .order_by(jobs.c.due, jobs.c.id)
        .limit(limit)
    )
    return _errands(connection, connection.execute(wanted).all())


def waiting(connection: Connection, app_id: str, kind: JobKind | None = None) -> int:
    """Count an account's errands, due or not, except those that were left."""
    wanted = _WAITS.where(streams.c.app_id == app_id)
    return connection.scalar(wanted if kind is None else wanted.where(jobs.c.kind == kind)) or 0


def untried(connection: Connection, app_id: str, kind: JobKind) -> dict[int, int]:
    """Count the errands that have not failed yet, for each stream that has some."""
    wanted = _WAITS.where(streams.c.app_id == app_id, jobs.c.kind == kind, jobs.c.failures == 0)
    rows = connection.execute(wanted.add_columns(jobs.c.stream).group_by(jobs.c.stream))
    return {stream: count for count, stream in rows}


def of_faxes(connection: Connection, wanted: Sequence[int], kind: JobKind) -> list[Errand]:
    """Return the errands of these faxes, including those that were left."""
    rows = [
        row
        for chunk in chunks(sorted(set(wanted)))
        for row in connection.execute(_ERRAND.where(jobs.c.kind == kind, jobs.c.subject.in_(chunk)))
    ]
    return _errands(connection, rows)


def _errands(connection: Connection, rows: Sequence[Any]) -> list[Errand]:
    held = {fax.id: fax for fax in some(connection, [row.subject for row in rows])}
    return [
        Errand(
            held[row.subject],
            row.kind,
            row.due,
            row.fence,
            row.failures,
            row.first_failed_at,
            row.last_error,
            row.stored_before,
        )
        for row in rows
    ]


def left(connection: Connection, kind: JobKind) -> dict[int, int]:
    """Count the errands that were left, for each stream that has some."""
    wanted = select(jobs.c.stream, func.count()).where(
        IS_ERRAND, jobs.c.kind == kind, jobs.c.due.is_(None)
    )
    return {row[0]: row[1] for row in connection.execute(wanted.group_by(jobs.c.stream))}


def failed(
    connection: Connection,
    errand: Errand,
    error: str,
    due: datetime | None,
    *,
    refused_at: datetime | None = None,
) -> None:
    """Record a failure and when to try again; None means to leave the errand.

    `refused_at`: when eFax refused it; this starts the clock after which it is left.
    """
    values: dict[str, Any] = {"due": due, "last_error": error, "failures": errand.failures + 1}
    if refused_at is not None:
        values["first_failed_at"] = errand.first_failed_at or refused_at
    mine = SET_JOB.where(jobs.c.fence == errand.fence)
    connection.execute(mine, {"this": errand.fax.id, "of_kind": errand.kind, **values})


def end(connection: Connection, errand: Errand) -> None:
    """End an errand that is done or not needed, unless somebody asked for it again."""
    mine = DONE.where(jobs.c.fence == errand.fence)
    connection.execute(mine, {"this": errand.fax.id, "of_kind": errand.kind})
