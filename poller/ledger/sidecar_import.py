"""What the storage adds to a ledger that is made anew: the faxes that its sidecars tell of."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, case, delete, func, insert, select, update

from poller.documents import StoredFile
from poller.ledger.faxes import TO_FETCH, add_jobs, other_key, remember
from poller.ledger.fold import chunks
from poller.ledger.tables import JobKind, State, coverage, faxes, has_key, jobs, streams
from poller.naming import fax_key
from poller.stream import Stream

_IDENTITY = (streams.c.app_id, streams.c.user_id, streams.c.direction)


@dataclass(frozen=True)
class Kept:
    """A fax as its sidecar tells of it; not `stored`: an interrupted hand-over, still pending.

    `damage` says what is wrong with its image on the disk, where it was looked at.
    """

    key: Stream
    account: str
    user: str
    fax_id: str
    path: str
    listed: dict[str, Any] = field(repr=False)
    received_at: datetime | None
    first_seen_at: datetime
    stored_at: datetime
    file: StoredFile
    stored: bool
    damage: str | None = None


@dataclass
class Adopted:
    """How many rows were added, became stored, or are carried on; `doubles`: paths not taken."""

    added: int = 0
    now_stored: int = 0
    carried_on: int = 0
    doubles: list[str] = field(default_factory=list)


def unknown(connection: Connection, kept: Sequence[Kept]) -> list[int]:
    """Say which of these the ledger does not hold as stored with the same hash: their places."""
    rows = _rows(connection, kept)
    return [
        place
        for place, one in enumerate(kept)
        if (row := _row_of(one, rows)) is None
        or row.state is not State.STORED
        or row.sha256 != one.file.sha256
    ]


def _rows(connection: Connection, kept: Iterable[Kept]) -> dict[tuple[Stream, str], Any]:
    """Rows by the stream's key and the fax id, and by that of all its spellings: the one first seen."""
    wanted = select(
        *(faxes.c.id, faxes.c.fax_id, faxes.c.state, faxes.c.path, faxes.c.sha256, faxes.c.refetch),
        *_IDENTITY,
    ).join_from(faxes, streams)
    ids = {fax_id for one in kept for fax_id in (one.fax_id, fax_key(one.fax_id))}
    found = [
        row
        for chunk in chunks(sorted(ids))
        for row in connection.execute(wanted.where(has_key(chunk)))
    ]
    rows = {}
    for row in sorted(found, key=lambda row: row.id):
        key = Stream(row.app_id, row.user_id, row.direction)
        rows[key, row.fax_id] = row
        rows.setdefault((key, fax_key(row.fax_id)), row)
    return rows


def _row_of(one: Kept, rows: dict[tuple[Stream, str], Any]) -> Any:
    return rows.get((one.key, one.fax_id)) or rows.get((one.key, fax_key(one.fax_id)))


def adopt(connection: Connection, kept: Sequence[Kept], now: datetime) -> Adopted:
    """Make rows of these, or make their rows what they say; a row that is stored keeps its path."""
    done = Adopted()
    owners = _owners(connection, kept, now)
    rows = _rows(connection, kept)
    taken = _taken_paths(connection, kept)
    new: dict[tuple[Stream, str], Kept] = {}
    for one in sorted(kept, key=lambda one: not one.stored):  # a visible one before a hand-over
        row = _row_of(one, rows)
        identity = (one.key, fax_key(one.fax_id))
        owner = taken.get(one.path)
        if identity in new or (owner is not None and (row is None or owner != row.id)):
            done.doubles += [one.path] if one.stored else []
        elif row is None:
            new[identity] = one
            taken[one.path] = -1
        else:
            _update(connection, row, one, now, done)
    if new:
        connection.execute(insert(faxes), [_new_row(owners[one.key], one) for one in new.values()])
    for one in new.values():
        if not one.stored:
            add_jobs(connection, owners[one.key], [one.fax_id], now)
    done.added = sum(one.stored for one in new.values())
    done.carried_on += len(new) - done.added
    return done


def _taken_paths(connection: Connection, kept: Sequence[Kept]) -> dict[str, int]:
    wanted = select(faxes.c.path, faxes.c.id)
    return {
        path: fax
        for chunk in chunks([one.path for one in kept])
        for path, fax in connection.execute(wanted.where(faxes.c.path.in_(chunk)))
    }


def _owners(connection: Connection, kept: Sequence[Kept], now: datetime) -> dict[Stream, int]:
    """The streams of these faxes; one who is in no configuration any more is added as removed."""
    owners = _known_owners(connection)
    labels = {one.key: (one.account, one.user) for one in kept if one.key not in owners}
    if not labels:
        return owners
    connection.execute(
        insert(streams),
        [
            {
                **asdict(stream),
                "account": account,
                "name": name,
                "our_first_seen": now,
                "removed": True,
            }
            for stream, (account, name) in labels.items()
        ],
    )
    return _known_owners(connection)


def _known_owners(connection: Connection) -> dict[Stream, int]:
    rows = connection.execute(select(streams.c.id, *_IDENTITY))
    return {Stream(*identity): stream for stream, *identity in rows}


def _file(one: Kept) -> dict[str, Any]:
    return {
        "state": State.STORED,
        "stored_at": one.stored_at,
        "path": one.path,
        **vars(one.file),
        "damage": one.damage,
        "staged": None,
    }


def _new_row(owner: int, one: Kept) -> dict[str, Any]:
    nothing = dict.fromkeys(_file(one))
    pending = nothing | {"damaged": False, "state": State.PENDING}
    return (_file(one) if one.stored else pending | {"path": one.path}) | {
        "stream": owner,
        "fax_id": one.fax_id,
        "fax_key": other_key(one.fax_id),
        "listed": one.listed,
        "received_at": one.received_at,
        "first_seen_at": one.first_seen_at,
        "last_listed_at": one.first_seen_at,
        "found_by": "rebuild",
    }


def _update(connection: Connection, row: Any, one: Kept, now: datetime, done: Adopted) -> None:
    if row.state is State.STORED:
        if row.path != one.path:
            done.doubles += [one.path] if one.stored else []
        elif row.sha256 != one.file.sha256 and one.stored:  # fetched again since
            _set(connection, row.id, _file(one), now)
            done.now_stored += 1
    elif one.stored and row.refetch and one.damage is not None:
        return  # an operator has asked for it to be fetched again
    elif one.stored:
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
    """Let everything be listed again, and count anew; from when, over all configured streams.

    A stream's list begins at the oldest of the pinned start, what waits, `oldest` (of the sidecars)
    and `since`. None when nothing is known of any: the configured look-back decides then.
    """
    connection.execute(delete(coverage))
    waiting = _oldest_waiting(connection)
    rows = connection.execute(select(streams)).mappings().all()
    starts = {}
    for row in rows:
        key = Stream(row["app_id"], row["user_id"], row["direction"])
        known = [row["pinned_start"], waiting.get(row["id"]), oldest.get(key), since]
        instants = [one for one in known if one is not None]
        if instants:
            starts[row["id"]] = min(instants)
    if starts:
        connection.execute(
            update(streams)
            .where(streams.c.id == bindparam("key"))
            .values(pinned_start=bindparam("start")),
            [{"key": stream, "start": start} for stream, start in starts.items()],
        )
    _count_anew(connection, now)
    configured = [starts[row["id"]] for row in rows if not row["removed"] and row["id"] in starts]
    return min(configured, default=None)


def _oldest_waiting(connection: Connection) -> dict[int, datetime]:
    oldest = func.min(func.coalesce(faxes.c.received_at, faxes.c.first_seen_at)).label("oldest")
    wanted = (
        select(faxes.c.stream, oldest)
        .join_from(faxes, jobs, TO_FETCH)
        .where(jobs.c.due.is_not(None))
    )
    return {row.stream: row.oldest for row in connection.execute(wanted.group_by(faxes.c.stream))}


_COUNTED = ("discovered", *(str(state) for state in State), "damaged")


def _count_anew(connection: Connection, now: datetime) -> None:
    wanted = select(
        faxes.c.stream,
        faxes.c.state,
        func.count().label("count"),
        func.sum(case((faxes.c.damaged, 1), else_=0)).label("damaged"),
        func.max(faxes.c.received_at).label("received"),
        func.max(faxes.c.stored_at).label("stored"),
    ).group_by(faxes.c.stream, faxes.c.state)
    owners = {row["id"]: dict(row) for row in connection.execute(select(streams)).mappings()}
    counted: dict[int, dict[str, Any]] = {
        stream: dict.fromkeys(_COUNTED, 0)
        | {"received": owner["last_received_at"], "kept": owner["last_stored_at"]}
        for stream, owner in owners.items()
    }
    for row in connection.execute(wanted):
        counts = counted[row.stream]
        counts["discovered"] += row.count
        counts[str(row.state)] += row.count
        counts["damaged"] += row.damaged
        counts["received"] = _later(counts["received"], row.received and min(row.received, now))
        counts["kept"] = _later(counts["kept"], row.stored)
    if counted:
        connection.execute(
            update(streams)
            .where(streams.c.id == bindparam("key"))
            .values(
                {name: bindparam(f"new_{name}") for name in _COUNTED}
                | {
                    "last_received_at": bindparam("new_received"),
                    "last_stored_at": bindparam("new_kept"),
                }
            ),
            [
                {"key": stream} | {f"new_{name}": value for name, value in counts.items()}
                for stream, counts in counted.items()
            ],
        )


def _later(one: datetime | None, other: datetime | None) -> datetime | None:
    return max((at for at in (one, other) if at is not None), default=None)
