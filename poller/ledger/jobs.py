"""From a pending fax to a stored one: what is due, what became of each attempt, and what fails."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    or_,
    select,
    type_coerce,
    update,
)

from poller.documents import Staged, StoredFile
from poller.errors import ALONE
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
from poller.ledger.rows import FailingCount, FaxRow, Waiting, fax_row, file_in
from poller.ledger.tables import (
    EPOCH,
    MICROSECOND,
    Instant,
    JobKind,
    State,
    accounts,
    attempts,
    faxes,
    jobs,
    streams,
)

DUE_STATES = (State.PENDING, State.QUARANTINED)  # in the order in which they are fetched

# Said in every query of what is due, so that SQLite may use the index of nothing else.
_DUE = and_(jobs.c.kind == JobKind.FETCH, jobs.c.due.is_not(None))

# What every fetch needs is composed once: SQLAlchemy takes longer to put a statement together and
# to find it among those that it has compiled than SQLite to carry it out.
_JOB = and_(jobs.c.subject == bindparam("this"), jobs.c.kind == JobKind.FETCH)
_HELD = select(
    *(faxes.c[name] for name in ("id", "stream", "state", "attempts")),
    *(faxes.c[name] for name in ("file", "format", "bytes", "sha256", "pages", "damaged")),
).where(faxes.c.id.in_(THESE))
_FENCE = (
    select(jobs.c.fence).join_from(jobs, streams).where(_JOB, _DUE, streams.c.removed.is_(False))
)
_SET_STORED = SET_FAX.values(
    state=State.STORED,
    refetch=False,
    damage=None,
    dismissed_at=None,
    dismiss_reason=None,
    staged=None,
)
_SET_JOB = update(jobs).where(_JOB)
_DONE = delete(jobs).where(_JOB)
_AT = bindparam("at", type_=Instant)
_COUNT_STORED = COUNT.values(
    damaged=streams.c.damaged + bindparam("damaged_by"),
    last_stored_at=case((streams.c.last_stored_at > _AT, streams.c.last_stored_at), else_=_AT),
)


@dataclass(frozen=True)
class Stored:
    """A fax that is on the disk now; `problem` names how it came damaged."""

    fax: int
    now: datetime
    file: StoredFile
    problem: str | None = None


@dataclass(frozen=True)
class Failure:
    """A failed attempt and what it leads to.

    `fence` is that of the row which the attempt began with. `problem` names how the document is
    broken. `paused_s` is what `accounts.pause_clock` said.
    """

    fence: int | None
    error: str
    problem: str | None
    next_attempt_at: datetime
    paused_s: float
    quarantine: bool


# -- what is due -----------------------------------------------------------------------------------


def streams_with_due(connection: Connection, app_id: str, now: datetime) -> list[int]:
    """Return the account's streams, but for removed ones, that have a fax to be fetched now."""
    due = select(jobs.c.id).where(jobs.c.stream == streams.c.id, _DUE, jobs.c.due <= now).exists()
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
            FAX.where(jobs.c.stream == stream, _DUE, jobs.c.due <= now, faxes.c.state == state)
            .order_by(jobs.c.due, faxes.c.id)
            .limit(limit - len(found) + len(left_out))
        )
        rows = [fax_row(row) for row in connection.execute(wanted)]
        found += [row for row in rows if row.id not in left_out]
        if len(found) >= limit:
            break
    return found[:limit]


def is_open(connection: Connection, fax: int, fence: int | None) -> bool:
    """Whether nobody has dismissed the fax, made it due or removed its stream since its row was read."""
    return connection.scalar(_FENCE, {"this": fax}) == fence is not None


def quarantined(connection: Connection, limit: int) -> list[FaxRow]:
    """Return some of the faxes that are quarantined, those that are tried next first."""
    wanted = FAX.where(faxes.c.state == State.QUARANTINED, _DUE)
    rows = connection.execute(wanted.order_by(jobs.c.due).limit(limit))
    return [fax_row(row) for row in rows]


def pending_paths(connection: Connection) -> list[str]:
    """Return the paths (relative, without extension) of all faxes that are still to be fetched."""
    return list(
        connection.scalars(select(faxes.c.path).join_from(faxes, jobs, TO_FETCH).where(_DUE))
    )


# -- what became of it -----------------------------------------------------------------------------


def staged(connection: Connection, items: Sequence[tuple[int, Staged | None]]) -> None:
    """Record the tickets of faxes that are published next, or with None that they have none."""
    connection.execute(SET_FAX, [{"this": fax, "staged": one} for fax, one in items])


def stored(connection: Connection, items: Sequence[Stored]) -> None:
    """Record faxes that are on the disk, in few statements however many; the same again changes nothing."""
    first = {item.fax: item for item in reversed(items)}
    held = {
        row.id: row
        for chunk in chunks(list(first))
        for row in connection.execute(_HELD, {"these": chunk})
    }
    new = [(item, held[item.fax]) for item in first.values() if not _is_held(item, held[item.fax])]
    if new:
        connection.execute(_SET_STORED, [_as_stored(item, row.attempts) for item, row in new])
        connection.execute(_DONE, [{"this": item.fax} for item, _ in new])
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

    A fax that was dismissed or made due in the meantime stays so, with the attempt in its history.
    """
    row = one(connection, fax)
    remember(connection, fax, now, failure.problem or "failed", failure.error)
    values: dict[str, Any] = {"attempts": row.attempts + 1}
    # Else it was stored, dismissed or made due meanwhile, and that holds.
    if row.state in DUE_STATES and row.fence == failure.fence:
        connection.execute(_SET_JOB, {"this": fax, **_consequences(row, now, failure)})
        if failure.problem is not None:  # other failures between say nothing about the document
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
    connection: Connection, fax: int, fence: int | None, next_attempt_at: datetime
) -> None:
    """Put a waiting fax off, unless an operator has decided about it since; its failures stay."""
    unless_changed = _SET_JOB.where(_DUE, jobs.c.fence == fence)
    connection.execute(unless_changed, {"this": fax, "due": next_attempt_at})


def dismiss(connection: Connection, fax: int, *, now: datetime, reason: str) -> FaxRow:
    """Stop fetching a fax that cannot be had; a stored one stays so, unless it is damaged."""
    row = one(connection, fax)
    if row.state in DUE_STATES or row.damage is not None:
        set_fax(
            connection,
            fax,
            state=State.DISMISSED,
            refetch=row.refetch or row.damage is not None,  # when undone, the bad file is no fax
            damage=None,
            dismissed_at=now,
            dismiss_reason=reason,
        )
        _decide(connection, row, due=None)
        remember(connection, fax, now, "dismissed", reason)
        count(connection, [row], State.DISMISSED)
    return one(connection, fax)


def make_due(connection: Connection, wanted: Sequence[int] | None, now: datetime) -> int:
    """Fetch these faxes now, quarantined and dismissed ones too, and forget their failures.

    None means all quarantined faxes of streams who are configured. Stored ones are left alone, unless
    they are damaged on the disk. Returns how many were made due.
    """
    held = _all_quarantined(connection) if wanted is None else some(connection, wanted)
    rows = [row for row in held if row.state is not State.STORED or row.damage is not None]
    for row in rows:
        _set_due(connection, row, now, refetch=row.refetch or row.damage is not None)
        remember(connection, row.id, now, "made due", None)
    count(connection, rows, State.PENDING)
    return len(rows)


def _all_quarantined(connection: Connection) -> list[FaxRow]:
    wanted = FAX.where(_DUE, faxes.c.state == State.QUARANTINED, streams.c.removed.is_(False))
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
    """Set what is to be done about a fax; an attempt that is under way does not change it any more."""
    if row.fence is None:
        job = {"kind": JobKind.FETCH, "subject": row.id, "stream": row.stream}
        connection.execute(insert(jobs), {**job, **values, "fence": row.attempts + 1})
    else:
        connection.execute(_SET_JOB, {"this": row.id, **values, "fence": row.fence + 1})


def fetch_again(connection: Connection, wanted: Sequence[int], now: datetime) -> list[int]:
    """Fetch stored faxes once more; whose request was taken.

    Not those of removed streams, and not what was dismissed.
    """
    removed = set(connection.scalars(select(streams.c.id).where(streams.c.removed)))
    rows = [
        row
        for row in some(connection, wanted)
        if row.file is not None and row.stream not in removed and row.state is not State.DISMISSED
    ]
    for row in rows:
        _set_due(connection, row, now, refetch=True)
        remember(connection, row.id, now, "to be fetched again", row.damage)
    count(connection, rows, State.PENDING)
    return [row.id for row in rows]


# -- what fails ------------------------------------------------------------------------------------

# Faxes that fail and that an operator should know of, counted well before they are given up: they
# have failed for long, or for a reason that no further attempt mends.
_SECOND = timedelta(seconds=1) // MICROSECOND
_FAILING = and_(_DUE, jobs.c.first_failed_at.is_not(None))


def _failing_for(now: datetime) -> Any:
    """Microseconds since the first failure in a row, on the clock that quarantines a fax.

    It stands still while the account is suspended or the storage unusable.
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


def failing_counts(
    connection: Connection, now: datetime, alarm_after: timedelta
) -> dict[int, FailingCount]:
    """Count failing faxes of the streams that have some, but for removed ones."""
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
    """Count what waits, of streams that are not removed, by stream, state and reason."""
    alike = (faxes.c.stream, faxes.c.state, jobs.c.last_error)
    wanted = (
        select(*alike, func.count())
        .join_from(faxes, streams)
        .join(jobs, TO_FETCH)
        .where(_DUE, streams.c.removed.is_(False))
        .group_by(*alike)
        .order_by(*alike)
    )
    return [Waiting(*row) for row in connection.execute(wanted)]


def failing(
    connection: Connection, now: datetime, alarm_after: timedelta, limit: int
) -> list[FaxRow]:
    """Return pending faxes that fail for longer or must be mended by hand, the oldest first."""
    age = _failing_for(now)
    wanted = (
        FAX.join(accounts, accounts.c.app_id == streams.c.app_id)
        .where(_FAILING, streams.c.removed.is_(False), _is_alarming(age, alarm_after))
        .order_by(age.desc(), faxes.c.id)
        .limit(limit)
    )
    return [fax_row(row) for row in connection.execute(wanted)]
