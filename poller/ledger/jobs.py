"""From a pending fax to a stored one: what is due, and the outcome of each attempt."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Connection,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    select,
    update,
)

from poller.documents import Staged, StoredFile
from poller.ledger.faxes import (
    COUNT,
    FAX,
    FORGET_OLD,
    SET_FAX,
    TO_FETCH,
    count,
    moved,
    one,
    out_of,
    remember,
    set_fax,
    some,
)
from poller.ledger.fold import THESE, chunks
from poller.ledger.rows import FaxRow, Untried, fax_row, file_in
from poller.ledger.tables import (
    Instant,
    JobKind,
    State,
    Word,
    attempts,
    faxes,
    jobs,
    streams,
)

DUE_STATES = (State.PENDING, State.QUARANTINED)  # in the order in which they are fetched

# Every query of due jobs says this; SQLite needs it to use the index.
DUE_TO_FETCH = and_(jobs.c.kind == JobKind.FETCH, jobs.c.due.is_not(None))

# Compose once what every fetch needs: SQLAlchemy takes longer to compose a statement, and to find
# it among its compiled ones, than SQLite takes to run it. These are for fetches unless they say
# otherwise.
_KIND = bindparam("of_kind", JobKind.FETCH, type_=Word(JobKind))
_JOB = and_(jobs.c.subject == bindparam("this"), jobs.c.kind == _KIND)
_HELD = select(
    *(faxes.c[name] for name in ("id", "stream", "state", "attempts")),
    *(faxes.c[name] for name in ("file", "format", "bytes", "sha256", "pages", "damaged")),
).where(faxes.c.id.in_(THESE))
_FENCE = (
    select(jobs.c.fence)
    .join_from(jobs, streams)
    .where(_JOB, jobs.c.due.is_not(None), streams.c.removed.is_(False))
)
_SET_STORED = SET_FAX.values(
    state=State.STORED,
    refetch=False,
    damage=None,
    unreadable=False,
    dismissed_at=None,
    dismiss_reason=None,
    staged=None,
)
SET_JOB = update(jobs).where(_JOB)
DONE = delete(jobs).where(_JOB)
AT_ONCE = 200  # faxes in one transaction of an operator's command
_AT = bindparam("at", type_=Instant)
_COUNT_STORED = COUNT.values(
    damaged=streams.c.damaged + bindparam("damaged_by"),
    last_stored_at=case((streams.c.last_stored_at > _AT, streams.c.last_stored_at), else_=_AT),
)


@dataclass(frozen=True)
class Stored:
    """A fax that is now on the disk; `problem` names how it is damaged.

    `mark`: whether to put eFax's mark back to "not downloaded".
    """

    fax: int
    now: datetime
    file: StoredFile
    problem: str | None = None
    mark: bool = False


@dataclass(frozen=True)
class Failure:
    """A failed attempt and its consequences.

    `fence` is that of the row with which the attempt began. `problem` names how the document is
    broken. `paused_s` comes from `accounts.pause_clock`.
    """

    fence: int | None
    error: str
    problem: str | None
    next_attempt_at: datetime
    paused_s: float
    quarantine: bool


# -- what is due -----------------------------------------------------------------------------------


def streams_with_due(connection: Connection, app_id: str, now: datetime) -> list[int]:
    """Return the account's configured streams that have a fax to fetch now."""
    due = (
        select(jobs.c.id)
        .where(jobs.c.stream == streams.c.id, DUE_TO_FETCH, jobs.c.due <= now)
        .exists()
    )
    wanted = (
        select(streams.c.id)
        .where(streams.c.app_id == app_id, streams.c.removed.is_(False), due)
        .where(streams.c.pending + streams.c.quarantined > 0)
        .order_by(streams.c.id)
    )
    return list(connection.scalars(wanted))


def due(
    connection: Connection, stream: int, now: datetime, limit: int, exclude: Collection[int] = ()
) -> list[FaxRow]:
    """Return what to fetch now: pending faxes, longest due first, then quarantined ones."""
    left_out = set(exclude)
    found: list[FaxRow] = []
    for state in DUE_STATES:
        wanted = (
            FAX.where(
                jobs.c.stream == stream, DUE_TO_FETCH, jobs.c.due <= now, faxes.c.state == state
            )
            .order_by(jobs.c.due, faxes.c.id)
            .limit(limit - len(found) + len(left_out))
        )
        rows = [fax_row(row) for row in connection.execute(wanted)]
        found += [row for row in rows if row.id not in left_out]
        if len(found) >= limit:
            break
    return found[:limit]


def is_open(
    connection: Connection, fax: int, fence: int | None, kind: JobKind = JobKind.FETCH
) -> bool:
    """Whether the fax's job is unchanged since it was read, and its stream still configured."""
    return connection.scalar(_FENCE, {"this": fax, "of_kind": kind}) == fence is not None


def untried(connection: Connection) -> dict[int, Untried]:
    """Count the faxes that were never tried, for each stream that has some."""
    wanted = (
        select(jobs.c.stream, func.count(), func.min(jobs.c.due))
        .where(DUE_TO_FETCH, jobs.c.failures == 0)
        .group_by(jobs.c.stream)
    )
    return {stream: Untried(count, due) for stream, count, due in connection.execute(wanted)}


def quarantined(connection: Connection, limit: int) -> list[FaxRow]:
    """Return some of the quarantined faxes, those with the earliest next attempt first."""
    wanted = FAX.where(faxes.c.state == State.QUARANTINED, DUE_TO_FETCH)
    rows = connection.execute(wanted.order_by(jobs.c.due).limit(limit))
    return [fax_row(row) for row in rows]


def pending_paths(connection: Connection, app_id: str) -> list[str]:
    """Return the paths (relative, without extension) of an account's faxes that are still to be fetched."""
    theirs = select(streams.c.id).where(streams.c.app_id == app_id)
    waiting = select(faxes.c.path).join_from(faxes, jobs, TO_FETCH).where(DUE_TO_FETCH)
    return list(connection.scalars(waiting.where(jobs.c.stream.in_(theirs))))


# -- what came of it --------------------------------------------------------------------------------


def staged(connection: Connection, items: Sequence[tuple[int, Staged | None]]) -> None:
    """Record the tickets of faxes that will be published next; None means that they have none."""
    connection.execute(SET_FAX, [{"this": fax, "staged": one} for fax, one in items])


def stored(connection: Connection, items: Sequence[Stored]) -> None:
    """Record stored faxes in few statements; recording one again changes nothing."""
    first = {item.fax: item for item in reversed(items)}
    held = {
        row.id: row
        for chunk in chunks(list(first))
        for row in connection.execute(_HELD, {"these": chunk})
    }
    new = [(item, held[item.fax]) for item in first.values() if not _is_held(item, held[item.fax])]
    if new:
        connection.execute(_SET_STORED, [_as_stored(item, row.attempts) for item, row in new])
        connection.execute(DONE, [{"this": item.fax} for item, _ in new])
        if marks := [_mark(item, row) for item, row in new if item.mark]:
            connection.execute(insert(jobs), marks)
        connection.execute(
            insert(attempts),
            [
                {"fax": item.fax, "at": item.now, "outcome": "stored", "error": item.problem}
                for item, _ in new
            ],
        )
        for item, row in new:
            if row.attempts:
                connection.execute(FORGET_OLD, {"this": item.fax})
        _count_stored(connection, new)
    again = [item for item in items if item is not first[item.fax]]
    if again:
        stored(connection, again)


def _is_held(item: Stored, row: Any) -> bool:
    return row.state is State.STORED and file_in(row) == item.file


def _mark(item: Stored, row: Any) -> dict[str, Any]:
    return {
        "kind": JobKind.MARK,
        "subject": item.fax,
        "stream": row.stream,
        "due": item.now,
    }


def _as_stored(item: Stored, attempts_before: int) -> dict[str, Any]:
    counted = {"stored_at": item.now, "attempts": attempts_before + 1}
    return {"this": item.fax, **counted, **vars(item.file)}


def _count_stored(connection: Connection, new: Sequence[tuple[Stored, Any]]) -> None:
    for stream, left in out_of(row for _, row in new).items():
        some = [(item, row) for item, row in new if row.stream == stream]
        by = {
            "damaged_by": sum(int(item.file.damaged) - int(row.damaged) for item, row in some),
            "at": max(item.now for item, _ in some),
        }
        connection.execute(_COUNT_STORED, moved(stream, left, State.STORED) | by)


def attempt_failed(connection: Connection, fax: int, now: datetime, failure: Failure) -> FaxRow:
    """Record a failed attempt; the first one starts the give-up clock.

    A fax that was meanwhile dismissed or made due stays so; the attempt goes into its history.
    """
    row = one(connection, fax)
    remember(connection, fax, now, failure.problem or "failed", failure.error)
    values: dict[str, Any] = {"attempts": row.attempts + 1}
    # Otherwise it was meanwhile stored, dismissed or made due; leave it so.
    if row.state in DUE_STATES and row.fence == failure.fence:
        connection.execute(SET_JOB, {"this": fax, **_consequences(row, now, failure)})
        if failure.problem is not None:  # other failures in between say nothing about the document
            values["last_problem"] = failure.problem
        if failure.quarantine and row.state is State.PENDING:
            values |= {"state": State.QUARANTINED, "quarantined_at": now}
            count(connection, [row], State.QUARANTINED)
    set_fax(connection, fax, **values)
    return one(connection, fax)


def _consequences(row: FaxRow, now: datetime, failure: Failure) -> dict[str, Any]:
    values: dict[str, Any] = {
        "failures": row.failures + 1,
        "due": failure.next_attempt_at,
        "last_error": failure.error,
    }
    if row.first_failed_at is None:
        values |= {"first_failed_at": now, "paused_s_at_first_failure": failure.paused_s}
    return values


def postpone(
    connection: Connection,
    fax: int,
    fence: int | None,
    next_attempt_at: datetime,
    kind: JobKind = JobKind.FETCH,
) -> None:
    """Postpone a waiting fax, unless an operator has decided about it since; keep its failures."""
    unless_changed = SET_JOB.where(jobs.c.due.is_not(None), jobs.c.fence == fence)
    connection.execute(unless_changed, {"this": fax, "of_kind": kind, "due": next_attempt_at})


def dismiss(connection: Connection, fax: int, *, now: datetime, reason: str) -> FaxRow:
    """Stop fetching a fax that nobody can get; a stored one stays stored if its files are well."""
    row = one(connection, fax)
    if row.state in DUE_STATES or row.damage is not None:
        set_fax(
            connection,
            fax,
            state=State.DISMISSED,
            # if this is undone, the bad file must not count as the fax
            refetch=row.refetch or row.damage is not None,
            damage=None,
            unreadable=False,
            dismissed_at=now,
            dismiss_reason=reason,
        )
        _decide(connection, row, due=None)
        remember(connection, fax, now, "dismissed", reason)
        count(connection, [row], State.DISMISSED)
    return one(connection, fax)


def make_due(connection: Connection, wanted: Sequence[int] | None, now: datetime) -> int:
    """Make these faxes due now, also quarantined and dismissed ones, and forget their failures.

    None means quarantined faxes of configured streams, AT_ONCE at most: a long transaction would delay
    the service, so ask again until none is left. Leaves alone what eFax no longer has,
    and stored faxes unless they are damaged on the disk; an unreadable one may be whole. Returns how
    many were made due.
    """
    held = _some_quarantined(connection) if wanted is None else some(connection, wanted)
    rows = [
        row
        for row in held
        if (row.state is not State.STORED or row.is_damaged) and row.deleted_at is None
    ]
    for row in rows:
        _set_due(connection, row, now, refetch=row.refetch or row.damage is not None)
        remember(connection, row.id, now, "made due", None)
    count(connection, rows, State.PENDING)
    return len(rows)


def _some_quarantined(connection: Connection) -> list[FaxRow]:
    wanted = FAX.where(
        DUE_TO_FETCH, faxes.c.state == State.QUARANTINED, streams.c.removed.is_(False)
    ).limit(AT_ONCE)
    return [fax_row(row) for row in connection.execute(wanted)]


def _set_due(connection: Connection, row: FaxRow, now: datetime, *, refetch: bool) -> None:
    set_fax(
        connection,
        row.id,
        state=State.PENDING,
        quarantined_at=None,
        dismissed_at=None,
        dismiss_reason=None,
        refetch=refetch,
    )
    _decide(connection, row, due=now, failures=0, first_failed_at=None)


def _decide(connection: Connection, row: FaxRow, **values: Any) -> None:
    """Decide what to do with a fax; a running attempt can no longer change it."""
    if row.fence is None:
        job = {"kind": JobKind.FETCH, "subject": row.id, "stream": row.stream}
        connection.execute(insert(jobs), {**job, **values, "fence": row.attempts + 1})
    else:
        connection.execute(SET_JOB, {"this": row.id, **values, "fence": row.fence + 1})


def fetch_again(connection: Connection, wanted: Sequence[int], now: datetime) -> list[int]:
    """Fetch stored faxes again; return those for which this was possible.

    Leaves out faxes of removed streams, and those that were dismissed or deleted at eFax.
    """
    removed = set(connection.scalars(select(streams.c.id).where(streams.c.removed)))
    rows = [
        row
        for row in some(connection, wanted)
        if row.file is not None and row.stream not in removed and row.state is not State.DISMISSED
        if row.deleted_at is None
    ]
    for row in rows:
        _set_due(connection, row, now, refetch=True)
        remember(connection, row.id, now, "to be fetched again", row.damage)
    count(connection, rows, State.PENDING)
    return [row.id for row in rows]
