"""What the storage adds to a rebuilt ledger: the faxes that its sidecars describe."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, case, delete, func, insert, select, update

from poller.ledger.faxes import TO_FETCH, add_jobs, other_key, remember
from poller.ledger.fold import chunks
from poller.ledger.tables import JobKind, State, coverage, faxes, has_key, jobs, streams
from poller.naming import fax_key
from poller.store import FoundSidecar
from poller.stream import Stream

_IDENTITY = (streams.c.app_id, streams.c.user_id, streams.c.direction)
_SET_STREAM = update(streams).where(streams.c.id == bindparam("key"))


@dataclass
class Adopted:
    """Count rows that were added, became stored, or continue; `doubles` are paths that were not taken."""

    added: int = 0
    now_stored: int = 0
    carried_on: int = 0
    doubles: list[str] = field(default_factory=list)


def unknown(connection: Connection, found: Sequence[FoundSidecar]) -> list[int]:
    """Return the positions of those that the ledger does not have as stored with the same hash."""
    rows = _rows(connection, found)
    return [
        place
        for place, one in enumerate(found)
        if (row := _row_of(one, rows)) is None
        or row.state is not State.STORED
        or row.sha256 != one.stored.sha256
    ]


def _rows(connection: Connection, found: Sequence[FoundSidecar]) -> dict[tuple[Stream, str], Any]:
    """Return rows by stream key and fax id, and by the key of all spellings: the one seen first."""
    wanted = select(
        *(faxes.c.id, faxes.c.fax_id, faxes.c.state, faxes.c.path, faxes.c.sha256, faxes.c.refetch),
        *_IDENTITY,
    ).join_from(faxes, streams)
    ids = {fax_id for one in found for fax_id in (one.fax_id, fax_key(one.fax_id))}
    held = [
        row
        for chunk in chunks(sorted(ids))
        for row in connection.execute(wanted.where(has_key(chunk)))
    ]
    rows = {}
    for row in sorted(held, key=lambda row: row.id):
        key = Stream(row.app_id, row.user_id, row.direction)
        rows[key, row.fax_id] = row
        rows.setdefault((key, fax_key(row.fax_id)), row)
    return rows


def _row_of(one: FoundSidecar, rows: dict[tuple[Stream, str], Any]) -> Any:
    return rows.get((one.stream, one.fax_id)) or rows.get((one.stream, fax_key(one.fax_id)))


def adopt(connection: Connection, found: Sequence[FoundSidecar], now: datetime) -> Adopted:
    """Make rows from these sidecars, or update their rows; a row that is stored keeps its path.

    An invisible sidecar is an interrupted delivery: its fax is pending.
    """
    done = Adopted()
    owners = _owners(connection, found, now)
    rows = _rows(connection, found)
    taken = _taken_paths(connection, found)
    new: dict[tuple[Stream, str], FoundSidecar] = {}
    # before an interrupted delivery of the same fax
    for one in sorted(found, key=lambda one: not one.visible):
        row = _row_of(one, rows)
        identity = (one.stream, fax_key(one.fax_id))
        owner = taken.get(one.path)
        if identity in new or (owner is not None and (row is None or owner != row.id)):
            done.doubles += [one.path] if one.visible else []
        elif row is None:
            new[identity] = one
            taken[one.path] = -1
        else:
            _update(connection, row, one, now, done)
    if new:
        rows_of_them = [_new_row(owners[one.stream], one) for one in new.values()]
        connection.execute(insert(faxes), rows_of_them)
    for one in new.values():
        if not one.visible:
            add_jobs(connection, owners[one.stream], [one.fax_id], now)
    done.added = sum(one.visible for one in new.values())
    done.carried_on += len(new) - done.added
    return done


def _taken_paths(connection: Connection, found: Sequence[FoundSidecar]) -> dict[str, int]:
    wanted = select(faxes.c.path, faxes.c.id)
    return {
        path: fax
        for chunk in chunks([one.path for one in found])
        for path, fax in connection.execute(wanted.where(faxes.c.path.in_(chunk)))
    }


def _owners(
    connection: Connection, found: Sequence[FoundSidecar], now: datetime
) -> dict[Stream, int]:
    """Return the streams of these faxes; add those that are no longer configured as removed."""
    owners = _known_owners(connection)
    origins = {one.stream: one.origin for one in found if one.stream not in owners}
    if not origins:
        return owners
    added = {"our_first_seen": now, "removed": True}
    connection.execute(
        insert(streams),
        [
            {**asdict(stream), "account": origin.account, "name": origin.user, **added}
            for stream, origin in origins.items()
        ],
    )
    return _known_owners(connection)


def _known_owners(connection: Connection) -> dict[Stream, int]:
    rows = connection.execute(select(streams.c.id, *_IDENTITY))
    return {Stream(*identity): stream for stream, *identity in rows}


def _file(one: FoundSidecar) -> dict[str, Any]:
    return {
        "state": State.STORED,
        "stored_at": one.stored_at,
        "path": one.path,
        **vars(one.stored),
        "damage": one.damage,
        "unreadable": one.unreadable,
        "staged": None,
    }


def _new_row(owner: int, one: FoundSidecar) -> dict[str, Any]:
    nothing = dict.fromkeys(_file(one))
    pending = nothing | {"damaged": False, "unreadable": False, "state": State.PENDING}
    return (_file(one) if one.visible else pending | {"path": one.path}) | {
        "stream": owner,
        "fax_id": one.fax_id,
        "fax_key": other_key(one.fax_id),
        "listed": one.origin.metadata,
        "received_at": one.origin.received_at,
        "first_seen_at": one.origin.first_seen_at,
        "last_listed_at": one.origin.first_seen_at,
        "found_by": "rebuild",
    }


def _update(
    connection: Connection, row: Any, one: FoundSidecar, now: datetime, done: Adopted
) -> None:
    if row.state is State.STORED:
        if row.path != one.path:
            done.doubles += [one.path] if one.visible else []
        elif row.sha256 != one.stored.sha256 and one.visible:  # fetched again since
            _set(connection, row.id, _file(one), now)
            done.now_stored += 1
    elif one.visible and row.refetch and one.damage is not None:
        return  # an operator asked for it to be fetched again
    elif one.visible:
        nothing = ("quarantined_at", "dismissed_at", "dismiss_reason")
        settled = {"refetch": False, **dict.fromkeys(nothing)}
        _set(connection, row.id, _file(one) | settled, now)
        done.now_stored += 1
    elif row.path == one.path:
        done.carried_on += 1


def _set(connection: Connection, fax: int, values: dict[str, Any], now: datetime) -> None:
    connection.execute(update(faxes).where(faxes.c.id == fax).values(**values))
    connection.execute(delete(jobs).where(jobs.c.subject == fax, jobs.c.kind == JobKind.FETCH))
    remember(connection, fax, now, "stored", "found by `poller rebuild`")


# -- the end ---------------------------------------------------------------------------------------


def list_again(
    connection: Connection, oldest: dict[Stream, datetime], since: datetime | None, now: datetime
) -> datetime | None:
    """Have everything listed again and recount; return from when, over all configured streams.

    A stream's list begins at the oldest of the pinned start, what waits, `oldest` (of the sidecars)
    and `since`. Returns None if no stream has any of these: then the configured look-back decides.
    """
    connection.execute(delete(coverage))
    waiting = _oldest_waiting(connection)
    rows = connection.execute(select(streams)).all()
    starts = {}
    for row in rows:
        key = Stream(row.app_id, row.user_id, row.direction)
        known = [row.pinned_start, waiting.get(row.id), oldest.get(key), since]
        if instants := [one for one in known if one is not None]:
            starts[row.id] = min(instants)
    if starts:
        pinned = [{"key": stream, "pinned_start": start} for stream, start in starts.items()]
        connection.execute(_SET_STREAM, pinned)
    _count_anew(connection, rows, now)
    configured = [starts[row.id] for row in rows if not row.removed and row.id in starts]
    return min(configured, default=None)


def _oldest_waiting(connection: Connection) -> dict[int, datetime]:
    oldest = func.min(func.coalesce(faxes.c.received_at, faxes.c.first_seen_at)).label("oldest")
    wanted = (
        select(faxes.c.stream, oldest)
        .join_from(faxes, jobs, TO_FETCH)
        .where(jobs.c.due.is_not(None))
    )
    return {row.stream: row.oldest for row in connection.execute(wanted.group_by(faxes.c.stream))}


def _count_anew(connection: Connection, owners: Sequence[Any], now: datetime) -> None:
    counted: dict[int, dict[str, Any]] = {
        owner.id: dict.fromkeys(["discovered", *State, "damaged"], 0)
        | {"last_received_at": owner.last_received_at, "last_stored_at": owner.last_stored_at}
        for owner in owners
    }
    wanted = select(
        faxes.c.stream,
        faxes.c.state,
        func.count().label("count"),
        func.sum(case((faxes.c.damaged, 1), else_=0)).label("damaged"),
        func.max(faxes.c.received_at).label("received"),
        func.max(faxes.c.stored_at).label("stored"),
    ).group_by(faxes.c.stream, faxes.c.state)
    for row in connection.execute(wanted):
        counts = counted[row.stream]
        counts["discovered"] += row.count
        counts[row.state] += row.count
        counts["damaged"] += row.damaged
        received = row.received and min(row.received, now)
        counts["last_received_at"] = _later(counts["last_received_at"], received)
        counts["last_stored_at"] = _later(counts["last_stored_at"], row.stored)
    if counted:
        new = [{"key": stream} | counts for stream, counts in counted.items()]
        connection.execute(_SET_STREAM, new)


def _later(one: datetime | None, other: datetime | None) -> datetime | None:
    return max((at for at in (one, other) if at is not None), default=None)
