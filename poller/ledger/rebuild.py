"""A ledger made anew: which copy it begins with, what the storage adds, how it takes its place.

It is made beside the old one under a name of its own and renamed last, so that a rebuilding which
was ended anywhere is begun again as if it had not been.
"""

import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from poller.errors import CannotStart, LedgerDamaged
from poller.ledger import engine, fetching, schema, snapshots
from poller.ledger.listing import chunks
from poller.ledger.tables import State, coverage, faxes, users

_TIMEOUT_S = 5.0
Key = tuple[str, str]  # app_id, user_id


# -- what it begins with -------------------------------------------------------------------------


@dataclass(frozen=True)
class Base:
    """The copy that the new ledger begins with: None for none; `at` is None for the ledger itself.

    `passed_over` says for each better one why it could not be used.
    """

    source: Path | None
    at: datetime | None
    passed_over: tuple[str, ...]


def choose(path: Path) -> Base:
    """Choose the ledger itself where it is whole after all, else its newest readable snapshot.

    Raises CannotStart when that cannot be told: it is locked, unreadable, or another program's.
    """
    passed_over: list[str] = []
    aside = _kept_aside_as(path)
    # Without its journal, which an earlier try has moved, it may look whole and not be.
    lacks_journal = aside is not None and _journal(aside).exists()
    candidates = [] if lacks_journal else [path]
    for candidate in [*candidates, *snapshots.names(path)]:
        if not os.path.lexists(candidate):
            continue
        reason = _unusable_original(path) if candidate == path else _unusable(candidate)
        if reason is None:
            at = None if candidate == path else snapshots.made_at(candidate)
            return Base(candidate, at, tuple(passed_over))
        passed_over.append(reason)
    return Base(None, None, tuple(passed_over))


def _unusable_original(path: Path) -> str | None:
    """A damaged ledger stays byte for byte as it was, so its journal is replayed into a copy."""
    if not path.is_file() or not engine.needs_replay(path, timeout_s=_TIMEOUT_S):
        return _unusable(path)
    copy = being_made(path)
    shutil.copyfile(path, copy)
    shutil.copyfile(_journal(path), _journal(copy))
    reason = _unusable(copy)
    return None if reason is None else reason.replace(str(copy), str(path))


def _unusable(candidate: Path) -> str | None:
    try:
        found = engine.look(candidate, timeout_s=_TIMEOUT_S, thorough=False)
        if not found.tables:
            return f"{candidate} is empty"
        schema.require_known(candidate, found.revision, may_migrate=True)
    except LedgerDamaged as error:
        return str(error)
    except CannotStart as error:
        if _is_of_the_disk(error.__cause__):
            return str(error)
        raise
    problem = snapshots.problem_of(candidate)
    return None if problem is None else f"{candidate} is damaged ({problem})"


def _is_of_the_disk(cause: BaseException | None) -> bool:
    return (getattr(cause, "sqlite_errorname", None) or "").startswith("SQLITE_IOERR")


def restore(path: Path) -> datetime | None:
    """Put the newest readable snapshot where the ledger is gone; of when it is, None without one.

    An empty ledger in its place would fetch again what consumers have taken away, and forget what
    waits. Raises LedgerDamaged when there are snapshots and none can be read.
    """
    kept = [name for name in snapshots.names(path) if os.path.lexists(name)]
    source = next((name for name in kept if _unusable(name) is None), None)
    if source is None:
        if kept:
            raise LedgerDamaged(
                f"the ledger {path} is gone and its snapshots are damaged; `poller rebuild` makes "
                "a new one from the files in the storage"
            )
        return None
    part = path.with_name(f"{path.name}.restoring")
    part.unlink(missing_ok=True)
    snapshots.copy_to(source, part, timeout_s=_TIMEOUT_S)
    with suppress(FileNotFoundError):  # the lost ledger's, which would be replayed into this one
        _journal(path).rename(path.with_name(f"{path.name}.lost-journal"))
    part.rename(path)
    snapshots.sync(path.parent)
    return snapshots.made_at(source)


def being_made(path: Path) -> Path:
    return path.with_name(f"{path.name}.rebuilding")


def begin(path: Path, base: Base) -> Path:
    """Make the file of the new ledger, a copy of its base; what an earlier try left goes."""
    abandon(path)
    new = being_made(path)
    if base.source is not None:
        snapshots.copy_to(base.source, new, timeout_s=_TIMEOUT_S)
    return new


def abandon(path: Path) -> None:
    """Leave nothing of a ledger that was not finished."""
    new = being_made(path)
    for old in (new, _journal(new)):
        old.unlink(missing_ok=True)


# -- taking its place ------------------------------------------------------------------------------


def install(path: Path, now: datetime) -> Path | None:
    """Put the new ledger, closed, in the place of the old, which is kept; under what name.

    There is a ledger under `path` at every instant. The journal of the old one, which would be
    replayed into the new one, goes aside before that comes.
    """
    new, aside = being_made(path), None
    _journal(new).unlink(missing_ok=True)
    snapshots.sync(new)
    if os.path.lexists(path):
        aside = _keep_aside(path, now)
    journal = _journal(path)
    if journal.exists() and journal.stat().st_size > 0:
        journal.rename(_journal(aside or _free_name(path, now)))
        snapshots.sync(path.parent)
    journal.unlink(missing_ok=True)
    new.rename(path)
    snapshots.sync(path.parent)
    return aside


def _keep_aside(path: Path, now: datetime) -> Path:
    aside = _kept_aside_as(path)
    if aside is None:
        aside = _free_name(path, now)
        os.link(path, aside)
        snapshots.sync(path.parent)
    return aside


def _kept_aside_as(path: Path) -> Path | None:
    """The other name of the ledger, which an earlier try gave it that did not come to its end."""
    for aside in sorted(path.parent.glob(f"{path.name}.broken-*")):
        with suppress(OSError):
            if aside.samefile(path):
                return aside
    return None


def _free_name(path: Path, now: datetime) -> Path:
    name = f"{path.name}.broken-{now.astimezone(UTC):%Y%m%dT%H%M%SZ}"
    free, number = path.with_name(name), 1
    while os.path.lexists(free) or os.path.lexists(_journal(free)):
        number += 1
        free = path.with_name(f"{name}-{number}")
    return free


def _journal(path: Path) -> Path:
    return path.with_name(path.name + "-journal")


# -- what the storage adds -------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    """A fax as its sidecar tells of it; not `stored`: an interrupted hand-over, still pending.

    `harm` says what is wrong with its image on the disk, where it was looked at.
    """

    key: Key
    account: str
    user: str
    fax_id: str
    path: str
    listed: dict[str, Any] = field(repr=False)
    received_at: datetime | None
    first_seen_at: datetime
    stored_at: datetime
    file: str
    format: str
    bytes: int
    sha256: str
    pages: int | None
    damaged: bool
    stored: bool
    harm: str | None = None


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
        if (row := rows.get((one.key, one.fax_id))) is None
        or row.state is not State.STORED
        or row.sha256 != one.sha256
    ]


def _rows(connection: Connection, kept: Iterable[Kept]) -> dict[tuple[Key, str], Any]:
    wanted = select(
        *(faxes.c.id, faxes.c.fax_id, faxes.c.state, faxes.c.path, faxes.c.sha256, faxes.c.force),
        *(users.c.app_id, users.c.user_id),
    ).join_from(faxes, users)
    return {
        ((row.app_id, row.user_id), row.fax_id): row
        for chunk in chunks(sorted({one.fax_id for one in kept}))
        for row in connection.execute(wanted.where(faxes.c.fax_id.in_(chunk)))
    }


def adopt(connection: Connection, kept: Sequence[Kept], now: datetime) -> Adopted:
    """Make rows of these, or make their rows what they say; a row that is stored keeps its path."""
    done = Adopted()
    owners = _owners(connection, kept, now)
    rows = _rows(connection, kept)
    taken = _taken_paths(connection, kept)
    new: dict[tuple[Key, str], Kept] = {}
    for one in sorted(kept, key=lambda one: not one.stored):  # a visible one before a hand-over
        row = rows.get((one.key, one.fax_id))
        owner = taken.get(one.path)
        if (one.key, one.fax_id) in new or (owner is not None and (row is None or owner != row.id)):
            done.doubles += [one.path] if one.stored else []
        elif row is None:
            new[one.key, one.fax_id] = one
            taken[one.path] = -1
        else:
            _update(connection, row, one, now, done)
    if new:
        connection.execute(
            insert(faxes), [_new_row(owners[one.key], one, now) for one in new.values()]
        )
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


def _owners(connection: Connection, kept: Sequence[Kept], now: datetime) -> dict[Key, int]:
    """The users of these faxes; one who is in no configuration any more is added as removed."""
    owners = _known_owners(connection)
    labels = {one.key: (one.account, one.user) for one in kept if one.key not in owners}
    if not labels:
        return owners
    connection.execute(
        insert(users),
        [
            {
                "app_id": app_id,
                "user_id": user_id,
                "account": account,
                "name": name,
                "our_first_seen": now,
                "removed": True,
            }
            for (app_id, user_id), (account, name) in labels.items()
        ],
    )
    return _known_owners(connection)


def _known_owners(connection: Connection) -> dict[Key, int]:
    rows = connection.execute(select(users.c.app_id, users.c.user_id, users.c.id))
    return {(app_id, user_id): user for app_id, user_id, user in rows}


def _file(one: Kept) -> dict[str, Any]:
    return {
        "state": State.STORED,
        "next_attempt_at": None,
        "stored_at": one.stored_at,
        "path": one.path,
        "file": one.file,
        "format": one.format,
        "bytes": one.bytes,
        "sha256": one.sha256,
        "pages": one.pages,
        "damaged": one.damaged,
        "harm": one.harm,
    }


def _new_row(owner: int, one: Kept, now: datetime) -> dict[str, Any]:
    nothing = dict.fromkeys(_file(one))
    pending = nothing | {"damaged": False, "state": State.PENDING, "next_attempt_at": now}
    return (_file(one) if one.stored else pending | {"path": one.path}) | {
        "user": owner,
        "fax_id": one.fax_id,
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
        elif row.sha256 != one.sha256 and one.stored:  # fetched again since
            _set(connection, row.id, _file(one), now)
            done.now_stored += 1
    elif one.stored and row.force and one.harm is not None:
        return  # an operator has asked for it to be fetched again
    elif one.stored:
        settled = {"failures": 0, "first_failed_at": None, "last_error": None, "force": False}
        settled |= {"quarantined_at": None, "dismissed_at": None, "dismiss_reason": None}
        _set(connection, row.id, _file(one) | settled, now)
        done.now_stored += 1
    elif row.path == one.path:
        done.carried_on += 1


def _set(connection: Connection, fax: int, values: dict[str, Any], now: datetime) -> None:
    connection.execute(update(faxes).where(faxes.c.id == fax).values(**values))
    fetching.remember(connection, fax, now, "stored", "found by `poller rebuild`")


# -- the end ---------------------------------------------------------------------------------------


def list_again(
    connection: Connection, oldest: dict[Key, datetime], since: datetime | None, now: datetime
) -> datetime | None:
    """Let everything be listed again, and count anew; from when, over all configured users.

    A user's list begins at the oldest of the pinned start, what waits, `oldest` (of the sidecars)
    and `since`. None when nothing is known of any: the configured look-back decides then.
    """
    connection.execute(delete(coverage))
    waiting = _oldest_waiting(connection)
    rows = connection.execute(select(users)).mappings().all()
    starts = {}
    for row in rows:
        key = (row["app_id"], row["user_id"])
        known = [row["pinned_start"], waiting.get(row["id"]), oldest.get(key), since]
        instants = [one for one in known if one is not None]
        if instants:
            starts[row["id"]] = min(instants)
    if starts:
        connection.execute(
            update(users)
            .where(users.c.id == bindparam("key"))
            .values(pinned_start=bindparam("start")),
            [{"key": user, "start": start} for user, start in starts.items()],
        )
    _count_anew(connection, now)
    configured = [starts[row["id"]] for row in rows if not row["removed"] and row["id"] in starts]
    return min(configured, default=None)


def _oldest_waiting(connection: Connection) -> dict[int, datetime]:
    oldest = func.min(func.coalesce(faxes.c.received_at, faxes.c.first_seen_at)).label("oldest")
    wanted = select(faxes.c.user, oldest).where(faxes.c.next_attempt_at.is_not(None))
    return {row.user: row.oldest for row in connection.execute(wanted.group_by(faxes.c.user))}


_COUNTED = ("discovered", *(str(state) for state in State), "damaged")


def _count_anew(connection: Connection, now: datetime) -> None:
    wanted = select(
        faxes.c.user,
        faxes.c.state,
        func.count().label("count"),
        func.sum(faxes.c.damaged).label("damaged"),
        func.max(faxes.c.received_at).label("received"),
        func.max(faxes.c.stored_at).label("stored"),
    ).group_by(faxes.c.user, faxes.c.state)
    owners = {row["id"]: dict(row) for row in connection.execute(select(users)).mappings()}
    counted: dict[int, dict[str, Any]] = {
        user: dict.fromkeys(_COUNTED, 0)
        | {"received": owner["last_received_at"], "kept": owner["last_stored_at"]}
        for user, owner in owners.items()
    }
    for row in connection.execute(wanted):
        counts = counted[row.user]
        counts["discovered"] += row.count
        counts[str(row.state)] += row.count
        counts["damaged"] += row.damaged or 0
        counts["received"] = _later(counts["received"], row.received and min(row.received, now))
        counts["kept"] = _later(counts["kept"], row.stored)
    if counted:
        connection.execute(
            update(users)
            .where(users.c.id == bindparam("key"))
            .values(
                {name: bindparam(f"new_{name}") for name in _COUNTED}
                | {
                    "last_received_at": bindparam("new_received"),
                    "last_stored_at": bindparam("new_kept"),
                }
            ),
            [
                {"key": user} | {f"new_{name}": value for name, value in counts.items()}
                for user, counts in counted.items()
            ],
        )


def _later(one: datetime | None, other: datetime | None) -> datetime | None:
    return max((at for at in (one, other) if at is not None), default=None)
