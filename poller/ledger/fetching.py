"""From a pending fax to a stored one: what is due, and what became of each attempt."""

import collections
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
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
    select,
    type_coerce,
    update,
)

from poller import naming
from poller.documents import StoredFile
from poller.ledger.listing import FAX, chunks
from poller.ledger.rows import Attempt, Claim, FaxRow, OnDisk, fax_row, file_in
from poller.ledger.tables import (
    EPOCH,
    MICROSECOND,
    Instant,
    State,
    attempts,
    faxes,
    has_key,
    users,
)

KEPT_ATTEMPTS = 50
_HOUR = timedelta(hours=1) // MICROSECOND
DUE_STATES = (State.PENDING, State.QUARANTINED)  # in the order in which they are fetched

# Said in every query of what is due, so that SQLite may use the index of nothing else.
_WAITING = faxes.c.next_attempt_at.is_not(None)

# What every fetch needs is composed once: SQLAlchemy takes longer to put a statement together and
# to find it among those that it has compiled than SQLite to carry it out.
_MINE = faxes.c.id == bindparam("this")
_ONE_FAX = FAX.where(_MINE)
_HELD = select(
    *(faxes.c[name] for name in ("id", "user", "state", "attempts")),
    *(faxes.c[name] for name in ("file", "format", "bytes", "sha256", "pages", "damaged")),
).where(faxes.c.id.in_(bindparam("these", expanding=True)))
_CLAIM = (
    select(*(faxes.c[one.name] for one in fields(Claim)))
    .join_from(faxes, users)
    .where(_MINE, users.c.removed.is_(False))
)
_SET_FAX = update(faxes).where(_MINE)
_SET_STORED = _SET_FAX.values(
    state=State.STORED,
    next_attempt_at=None,
    failures=0,
    first_failed_at=None,
    last_error=None,
    force=False,
    harm=None,
    dismissed_at=None,
    dismiss_reason=None,
    **{
        name: bindparam(f"to_{name}")
        for name in (
            "stored_at",
            "attempts",
            "file",
            "format",
            "bytes",
            "sha256",
            "pages",
            "damaged",
        )
    },
)
_REMEMBER = insert(attempts)
_FORGET_OLD = delete(attempts).where(
    attempts.c.fax == bindparam("this"),
    attempts.c.id
    < select(attempts.c.id)
    .where(attempts.c.fax == bindparam("this"))
    .order_by(attempts.c.id.desc())
    .limit(1)
    .offset(KEPT_ATTEMPTS - 1)
    .scalar_subquery(),
)
_COUNT = (
    update(users)
    .where(users.c.id == bindparam("this"))
    .values({str(state): users.c[state] + bindparam(f"{state}_by") for state in State})
)
_AT = bindparam("at", type_=Instant)
_COUNT_STORED = _COUNT.values(
    damaged=users.c.damaged + bindparam("damaged_by"),
    last_stored_at=case((users.c.last_stored_at > _AT, users.c.last_stored_at), else_=_AT),
)


@dataclass(frozen=True)
class Stored:
    """A fax that is on the disk now; `problem` names how it came damaged."""

    fax: int
    now: datetime
    file: StoredFile
    problem: str | None


@dataclass(frozen=True)
class Failure:
    """A failed attempt and what it leads to; `counts` says whether `failures` grows.

    `claim` is that of the row it began with.
    """

    error: str
    problem: str | None
    next_attempt_at: datetime
    paused_s: float
    quarantine: bool
    counts: bool
    claim: Claim


# -- what is due -----------------------------------------------------------------------------------


def _in_state(state: State) -> Any:
    return and_(faxes.c.user == users.c.id, faxes.c.state == state, _WAITING)


def _has_waiting(app_id: str) -> Any:
    return and_(
        users.c.app_id == app_id,
        users.c.removed.is_(False),
        users.c.pending + users.c.quarantined > 0,
    )


def users_with_due(connection: Connection, app_id: str, now: datetime) -> list[int]:
    due = [
        select(faxes.c.id).where(_in_state(state), faxes.c.next_attempt_at <= now).exists()
        for state in DUE_STATES
    ]
    wanted = select(users.c.id).where(_has_waiting(app_id), due[0] | due[1])
    return list(connection.scalars(wanted.order_by(users.c.id)))


def due(
    connection: Connection, user: int, now: datetime, limit: int, exclude: Collection[int]
) -> list[FaxRow]:
    left_out = set(exclude)
    found: list[FaxRow] = []
    for state in DUE_STATES:
        wanted = (
            FAX.where(
                faxes.c.user == user,
                faxes.c.state == state,
                _WAITING,
                faxes.c.next_attempt_at <= now,
            )
            .order_by(faxes.c.next_attempt_at, faxes.c.id)
            .limit(limit - len(found) + len(left_out))
        )
        rows = [fax_row(row) for row in connection.execute(wanted)]
        found += [row for row in rows if row.id not in left_out]
        if len(found) >= limit:
            break
    return found[:limit]


# -- looking up ------------------------------------------------------------------------------------


def one_fax(connection: Connection, fax: int) -> FaxRow:
    row = connection.execute(_ONE_FAX, {"this": fax}).one_or_none()
    if row is None:
        raise LookupError(f"the ledger knows no fax {fax}")
    return fax_row(row)


def still_claimed(connection: Connection, fax: int, claim: Claim) -> bool:
    row = connection.execute(_CLAIM, {"this": fax}).one_or_none()
    return row is not None and Claim(*row) == claim


def some(connection: Connection, wanted: Sequence[int]) -> list[FaxRow]:
    return _rows(connection, wanted)


def find(
    connection: Connection, fax_id: str, account: str | None, user: str | None
) -> list[FaxRow]:
    wanted = FAX.where(has_key([fax_id, naming.fax_key(fax_id)]))
    if account is not None:
        wanted = wanted.where(users.c.account == account)
    if user is not None:
        wanted = wanted.where(users.c.name == user)
    rows = [fax_row(row) for row in connection.execute(wanted.order_by(faxes.c.id))]
    return [row for row in rows if row.fax_id == fax_id] or rows


def recent_directories(connection: Connection, limit: int) -> list[str]:
    """The directory of a path is what is left when all but slashes is stripped from its end."""
    directory = func.rtrim(
        func.rtrim(faxes.c.path, func.replace(faxes.c.path, "/", "")), "/"
    ).label("directory")
    last = (
        select(directory)
        .where(faxes.c.stored_at.is_not(None))
        .order_by(faxes.c.stored_at.desc())
        .limit(limit)
    )
    return sorted(set(connection.scalars(last)))


def quarantined(connection: Connection, limit: int) -> list[FaxRow]:
    wanted = FAX.where(faxes.c.state == State.QUARANTINED, _WAITING)
    rows = connection.execute(wanted.order_by(faxes.c.next_attempt_at).limit(limit))
    return [fax_row(row) for row in rows]


def pending_paths(connection: Connection) -> list[str]:
    return list(connection.scalars(select(faxes.c.path).where(_WAITING)))


def history(connection: Connection, fax: int) -> list[Attempt]:
    wanted = select(attempts.c.at, attempts.c.outcome, attempts.c.error)
    rows = connection.execute(wanted.where(attempts.c.fax == fax).order_by(attempts.c.id))
    return [Attempt(*row) for row in rows]


# -- what became of it -----------------------------------------------------------------------------


def stored(connection: Connection, items: Sequence[Stored]) -> None:
    """Record faxes that were stored, in few statements however many they are."""
    first = {item.fax: item for item in reversed(items)}
    held = {
        row.id: row
        for chunk in chunks(list(first))
        for row in connection.execute(_HELD, {"these": chunk})
    }
    new = [(item, held[item.fax]) for item in first.values() if not _is_held(item, held[item.fax])]
    if new:
        connection.execute(_SET_STORED, [_as_stored(item, row.attempts) for item, row in new])
        connection.execute(
            _REMEMBER,
            [
                {"fax": item.fax, "at": item.now, "outcome": "stored", "error": item.problem}
                for item, _ in new
            ],
        )
        for item, row in new:
            if row.attempts:
                connection.execute(_FORGET_OLD, {"this": item.fax})
        _count_stored(connection, new)
    again = [item for item in items if item is not first[item.fax]]
    if again:
        stored(connection, again)


def _is_held(item: Stored, row: Any) -> bool:
    return row.state is State.STORED and file_in(row) == item.file


def _as_stored(item: Stored, attempts_before: int) -> dict[str, Any]:
    values = {"stored_at": item.now, "attempts": attempts_before + 1, **vars(item.file)}
    return {"this": item.fax, **{f"to_{name}": value for name, value in values.items()}}


def _count_stored(connection: Connection, new: Sequence[tuple[Stored, Any]]) -> None:
    for user, out_of in _out_of(row for _, row in new).items():
        some = [(item, row) for item, row in new if row.user == user]
        by = {
            "damaged_by": sum(int(item.file.damaged) - int(row.damaged) for item, row in some),
            "at": max(item.now for item, _ in some),
        }
        connection.execute(_COUNT_STORED, _moved(user, out_of, State.STORED) | by)


def attempt_failed(connection: Connection, fax: int, now: datetime, failure: Failure) -> FaxRow:
    row = one_fax(connection, fax)
    remember(connection, fax, now, failure.problem or "failed", failure.error)
    values: dict[str, Any] = {"attempts": row.attempts + 1}
    # Else it was stored, dismissed or made due meanwhile, and that holds.
    if row.state in DUE_STATES and row.claim == failure.claim:
        values |= _consequences(row, now, failure)
        if failure.quarantine and row.state is State.PENDING:
            values |= {"state": State.QUARANTINED, "quarantined_at": now}
            _count(connection, [row], State.QUARANTINED)
    _set_fax(connection, fax, **values)
    return one_fax(connection, fax)


def _consequences(row: FaxRow, now: datetime, failure: Failure) -> dict[str, Any]:
    values: dict[str, Any] = {
        "failures": row.failures + int(failure.counts),
        "next_attempt_at": failure.next_attempt_at,
        "last_error": failure.error,
    }
    if failure.problem is not None:  # other failures between say nothing about the document
        values["last_problem"] = failure.problem
    if row.first_failed_at is None:
        values |= {"first_failed_at": now, "paused_s_at_first_failure": failure.paused_s}
    return values


def postpone(connection: Connection, fax: int, next_attempt_at: datetime) -> None:
    connection.execute(
        update(faxes).where(faxes.c.id == fax, _WAITING).values(next_attempt_at=next_attempt_at)
    )


def dismiss(connection: Connection, fax: int, now: datetime, reason: str) -> FaxRow:
    row = one_fax(connection, fax)
    if row.state in DUE_STATES or row.harm is not None:
        _set_fax(
            connection,
            fax,
            state=State.DISMISSED,
            next_attempt_at=None,
            force=row.force or row.harm is not None,  # when it is undone, the bad file is no fax
            harm=None,
            dismissed_at=now,
            dismiss_reason=reason,
        )
        remember(connection, fax, now, "dismissed", reason)
        _count(connection, [row], State.DISMISSED)
    return one_fax(connection, fax)


def make_due(connection: Connection, wanted: Sequence[int] | None, now: datetime) -> int:
    rows = [row for row in _rows(connection, wanted) if _can_be_due(row)]
    for row in rows:
        _set_due(connection, row.id, now, force=row.force or row.harm is not None)
        remember(connection, row.id, now, "made due", None)
    _count(connection, rows, State.PENDING)
    return len(rows)


def _can_be_due(row: FaxRow) -> bool:
    return row.state is not State.STORED or row.harm is not None


def _set_due(connection: Connection, fax: int, now: datetime, *, force: bool) -> None:
    _set_fax(
        connection,
        fax,
        state=State.PENDING,
        next_attempt_at=now,
        failures=0,
        first_failed_at=None,
        quarantined_at=None,
        dismissed_at=None,
        dismiss_reason=None,
        force=force,
    )


# -- what is on the disk -----------------------------------------------------------------------

_ON_DISK = select(
    *(faxes.c[name] for name in ("id", "fax_id", "state", "path", "file", "format", "bytes")),
    *(faxes.c[name] for name in ("sha256", "pages", "damaged", "force", "harm")),
    *(users.c.app_id, users.c.user_id, users.c.account, users.c.name.label("user_name")),
    users.c.removed,
).join_from(faxes, users)


def on_disk(connection: Connection, below: int | None, limit: int) -> list[OnDisk]:
    waits = and_(faxes.c.force, faxes.c.state != State.DISMISSED)
    wanted = _ON_DISK.where(faxes.c.file.is_not(None), (faxes.c.state == State.STORED) | waits)
    if below is not None:
        wanted = wanted.where(faxes.c.id < below)
    rows = connection.execute(wanted.order_by(faxes.c.id.desc()).limit(limit))
    return [OnDisk(**dict(zip(row._fields, row, strict=True))) for row in rows]


def files_of(connection: Connection, paths: Sequence[str]) -> dict[str, str | None]:
    wanted = select(faxes.c.path, faxes.c.file)
    return {
        path: file
        for chunk in chunks(paths)
        for path, file in connection.execute(wanted.where(faxes.c.path.in_(chunk)))
    }


def note_harm(
    connection: Connection, found: Mapping[int, tuple[str, str | None]], now: datetime
) -> list[int]:
    changed = []
    for fax, (sha256, harm) in found.items():
        row = one_fax(connection, fax)
        # It may have been fetched again, or asked for, since it was looked at.
        if row.state is not State.STORED or row.sha256 != sha256 or row.harm == harm:
            continue
        _set_fax(connection, fax, harm=harm)
        remember(connection, fax, now, "damaged" if harm else "not damaged", harm)
        changed.append(fax)
    return changed


def harmed(connection: Connection, limit: int) -> list[FaxRow]:
    rows = connection.execute(FAX.where(faxes.c.harm.is_not(None)).limit(limit))
    return [fax_row(row) for row in rows]


def harmed_counts(connection: Connection) -> dict[int, int]:
    wanted = select(faxes.c.user, func.count()).where(faxes.c.harm.is_not(None))
    rows = connection.execute(wanted.group_by(faxes.c.user))
    return {row[0]: row[1] for row in rows}


def stored_per_hour(connection: Connection, since: datetime) -> list[tuple[int, int, int]]:
    hour = (type_coerce(faxes.c.stored_at, BigInteger) - (since - EPOCH) // MICROSECOND) // _HOUR
    wanted = select(faxes.c.user, hour.label("hour"), func.count())
    rows = connection.execute(wanted.where(faxes.c.stored_at >= since).group_by(faxes.c.user, hour))
    return [(row[0], row[1], row[2]) for row in rows]


def fetch_again(connection: Connection, wanted: Sequence[int], now: datetime) -> list[int]:
    removed = set(connection.scalars(select(users.c.id).where(users.c.removed)))
    rows = [
        row
        for row in _rows(connection, wanted)
        if row.file is not None and row.user not in removed and row.state is not State.DISMISSED
    ]
    for row in rows:
        _set_due(connection, row.id, now, force=True)
        remember(connection, row.id, now, "to be fetched again", row.harm)
    _count(connection, rows, State.PENDING)
    return [row.id for row in rows]


def _rows(connection: Connection, wanted: Sequence[int] | None) -> list[FaxRow]:
    if wanted is None:
        quarantined = FAX.where(_in_state(State.QUARANTINED), users.c.removed.is_(False))
        return [fax_row(row) for row in connection.execute(quarantined)]
    return [
        fax_row(row)
        for chunk in chunks(sorted(set(wanted)))
        for row in connection.execute(FAX.where(faxes.c.id.in_(chunk)))
    ]


def _set_fax(connection: Connection, fax: int, **values: Any) -> None:
    connection.execute(_SET_FAX, {"this": fax, **values})


def remember(
    connection: Connection, fax: int, at: datetime, outcome: str, error: str | None
) -> None:
    values = {"fax": fax, "at": at, "outcome": outcome, "error": error}
    connection.execute(_REMEMBER, values)
    connection.execute(_FORGET_OLD, {"this": fax})


def _count(connection: Connection, rows: Iterable[FaxRow], to: State) -> None:
    """Move `rows` from the counters of their states to that of `to`."""
    for user, out_of in _out_of(rows).items():
        connection.execute(_COUNT, _moved(user, out_of, to))


def _out_of(rows: Iterable[Any]) -> dict[int, collections.Counter[State]]:
    """Say by users how many, less than nothing, these rows are in each state."""
    changes: dict[int, collections.Counter[State]] = {}
    for row in rows:
        changes.setdefault(row.user, collections.Counter())[row.state] -= 1
    return changes


def _moved(user: int, out_of: Mapping[State, int], to: State) -> dict[str, Any]:
    """Say what `_COUNT` adds when so many (less than nothing) go out of their states."""
    by = {f"{state}_by": out_of.get(state, 0) for state in State}
    by[f"{to}_by"] -= sum(out_of.values())
    return {"this": user, **by}
