"""Faxes: what lists say about them, what we know about them, and what is on the disk."""

import collections
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    Connection,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    union_all,
    update,
)

from poller import naming
from poller.ledger import fold
from poller.ledger.fold import THESE, chunks
from poller.ledger.rows import Attempt, FaxRow, NewFax, OnDisk, fax_row
from poller.ledger.sends import EXPECTS_PAGE, IS_CANARY, note_arrivals
from poller.ledger.tables import (
    FAX_KEY,
    FOLDED_PATH,
    HAS_CAPITALS,
    Instant,
    JobKind,
    State,
    Word,
    attempts,
    faxes,
    has_key,
    jobs,
    streams,
)
from poller.progress import Covered, Discovered, Progress, StreamEvent
from poller.stream import Direction
from poller.window import Interval

# Every poll lists the faxes inside the overlap. Keep the time of the last listing only to this
# precision, so that a poll that finds nothing new rewrites no fax.
LISTED_AGAIN = timedelta(minutes=10)
KEPT_ATTEMPTS = 50
_NEWEST = 100  # newest faxes to search for windows that differ

TO_FETCH = and_(jobs.c.subject == faxes.c.id, jobs.c.kind == JobKind.FETCH)
FAX = (
    select(
        *faxes.c,
        *(streams.c.app_id, streams.c.user_id, streams.c.direction, streams.c.account),
        streams.c.name.label("user"),
        *(jobs.c.first_failed_at, jobs.c.last_error, jobs.c.fence),
        jobs.c.due.label("next_attempt_at"),
        func.coalesce(jobs.c.failures, 0).label("failures"),
        func.coalesce(jobs.c.paused_s_at_first_failure, 0.0).label("paused_s_at_first_failure"),
        IS_CANARY.label("canary"),
    )
    .join_from(faxes, streams)
    .outerjoin(jobs, TO_FETCH)
)

# Compose the statements of most polls once: composing takes longer than running them.
_AT = bindparam("at", type_=Instant)
_WHOSE = faxes.c.stream == bindparam("whose")
_LAST_LISTED = (
    select(FAX_KEY, faxes.c.id, faxes.c.last_listed_at, faxes.c.deleted_at)
    .where(_WHOSE, has_key(THESE))
    .order_by(faxes.c.id.desc())  # of two spellings, the one seen first wins
)
_SPELLED = faxes.c.fax_id.in_(THESE)
_ROWS = FAX.where(_WHOSE, _SPELLED)
_TAKEN = union_all(
    select(faxes.c.path).where(faxes.c.path.in_(THESE)),
    select(FOLDED_PATH).where(FOLDED_PATH.in_(THESE), HAS_CAPITALS),
)
_INSERT = insert(faxes)
_JOBS = insert(jobs).from_select(
    ["kind", "subject", "stream", "due"],
    select(literal(JobKind.FETCH, Word(JobKind)), faxes.c.id, faxes.c.stream, _AT).where(
        _WHOSE, _SPELLED
    ),
)
_MINE = faxes.c.id == bindparam("this")
_ONE = FAX.where(_MINE)
SET_FAX = update(faxes).where(_MINE)
_REMEMBER = insert(attempts)
FORGET_OLD = delete(attempts).where(
    attempts.c.fax == bindparam("this"),
    attempts.c.id
    < select(attempts.c.id)
    .where(attempts.c.fax == bindparam("this"))
    .order_by(attempts.c.id.desc())
    .limit(1)
    .offset(KEPT_ATTEMPTS - 1)
    .scalar_subquery(),
)
_THIS_STREAM = streams.c.id == bindparam("this")
# A deletion, also one by a run that was killed, may have removed all of this.
_TO_DELETE = and_(jobs.c.subject == faxes.c.id, jobs.c.kind == JobKind.DELETE)
_NEWEST_LISTED = (
    select(
        *(faxes.c.stream, faxes.c.fax_id, faxes.c.first_window_start, faxes.c.first_window_end),
        or_(faxes.c.deleted_at.is_not(None), exists().where(_TO_DELETE)).label("is_gone"),
    )
    .join_from(faxes, streams)
    .where(
        streams.c.app_id == bindparam("app"),
        streams.c.direction == Direction.RECEIVED,
        streams.c.removed.is_(False),
        faxes.c.first_window_start.is_not(None),
    )
    .order_by(faxes.c.id.desc())
    .limit(_NEWEST)
)
_WHOSE_FAX = (
    select(faxes.c.stream)
    .distinct()
    .join_from(faxes, streams)
    .where(streams.c.app_id == bindparam("app"), has_key(THESE))
)
_OWNER = select(streams.c.app_id, streams.c.user_id, EXPECTS_PAGE.label("expects_page")).where(
    _THIS_STREAM
)
COUNT = (
    update(streams)
    .where(_THIS_STREAM)
    .values({str(state): streams.c[state] + bindparam(f"{state}_by") for state in State})
)
_COUNT_NEW = (
    update(streams)
    .where(_THIS_STREAM)
    .values(
        discovered=streams.c.discovered + bindparam("more"),
        pending=streams.c.pending + bindparam("more"),
    )
)


@dataclass(frozen=True)
class ListedPage:
    """A page of a list: its faxes, and the request for it.

    `covers` comes with the last page and is recorded in the same transaction.
    """

    faxes: Sequence[NewFax]
    window: Interval | None
    found_by: str
    now: datetime
    covers: Interval | None = None


@dataclass(frozen=True)
class RecordedPage:
    """The new faxes of a page, now pending and due; `progress` if it has changed."""

    discovered: list[FaxRow]
    progress: Progress | None


def record_page(connection: Connection, stream: int, page: ListedPage) -> RecordedPage:
    """Record a page of a list.

    A known fax keeps its first record; the time of its last listing is kept to ten minutes. A fax
    that eFax lists was not deleted there, whatever eFax has answered.
    """
    listed: dict[str, NewFax] = {}
    for fax in page.faxes:  # if a page has a fax twice, the first wins
        listed.setdefault(naming.fax_key(fax.fax_id), fax)
    known = _last_listed(connection, stream, list(listed))
    new = [fax for key, fax in listed.items() if key not in known]
    expects_page = bool(new) and _insert(connection, stream, new, page)
    _listed_again(connection, known, page)
    for id_, _, deleted_at in known.values():
        if deleted_at is not None:
            set_fax(connection, id_, deleted_at=None)
            remember(connection, id_, page.now, "listed again", "so it was not deleted at eFax")
    happened = list(_happened(new, page))
    progress = fold.record(connection, stream, *happened) if happened else None
    discovered = _by_fax_ids(connection, stream, [fax.fax_id for fax in new])
    if expects_page:
        note_arrivals(connection, stream, discovered)
    return RecordedPage(discovered, progress)


def _happened(new: Sequence[NewFax], page: ListedPage) -> Iterator[StreamEvent]:
    if new:
        received = tuple(fax.received_at for fax in new if fax.received_at is not None)
        yield Discovered(page.now, received, by_window=page.found_by != "backfill")
    if page.covers is not None:
        yield Covered(page.covers)


def other_key(fax_id: str) -> str | None:
    """Return the key of an id, or None if the key is the id itself."""
    key = naming.fax_key(fax_id)
    return None if key == fax_id else key


def _last_listed(
    connection: Connection, stream: int, keys: list[str]
) -> dict[str, tuple[int, datetime, datetime | None]]:
    """Return by key: the id, when it was last listed, and when it was deleted at eFax."""
    return {
        key: (fax, at, deleted_at)
        for chunk in chunks(keys)
        for key, fax, at, deleted_at in connection.execute(
            _LAST_LISTED, {"whose": stream, "these": chunk}
        )
    }


def _by_fax_ids(connection: Connection, stream: int, fax_ids: list[str]) -> list[FaxRow]:
    found = {
        row.fax_id: fax_row(row)
        for chunk in chunks(fax_ids)
        for row in connection.execute(_ROWS, {"whose": stream, "these": chunk})
    }
    return [found[fax_id] for fax_id in fax_ids]


def _listed_again(
    connection: Connection,
    known: Mapping[str, tuple[int, datetime, datetime | None]],
    page: ListedPage,
) -> None:
    stale = [fax for fax, at, _ in known.values() if abs(page.now - at) >= LISTED_AGAIN]
    for chunk in chunks(stale):
        connection.execute(
            update(faxes)
            .where(faxes.c.id.in_(chunk))
            .values(last_listed_at=page.now, **_window("last", page.window))
        )


def _window(which: str, window: Interval | None) -> dict[str, datetime | None]:
    return {
        f"{which}_window_start": None if window is None else window.start,
        f"{which}_window_end": None if window is None else window.end,
    }


# -- new faxes -------------------------------------------------------------------------------------


def _insert(connection: Connection, stream: int, new: list[NewFax], page: ListedPage) -> bool:
    """Insert new faxes with their jobs; return whether one may be a page that we sent to ourselves."""
    owner = connection.execute(_OWNER, {"this": stream}).one_or_none()
    if owner is None:
        raise LookupError(f"the ledger has no stream {stream}")
    paths = _Paths(connection, [fax.path for fax in new])
    shared = {
        "stream": stream,
        "state": State.PENDING,
        "first_seen_at": page.now,
        "last_listed_at": page.now,
        "found_by": page.found_by,
        **_window("first", page.window),
        **_window("last", page.window),
    }
    connection.execute(
        _INSERT,
        [
            {
                **shared,
                "fax_id": fax.fax_id,
                "fax_key": other_key(fax.fax_id),
                "path": paths.take(fax.path, f"{owner.app_id}/{owner.user_id}/{fax.fax_id}"),
                "listed": fax.listed,
                "received_at": fax.received_at,
            }
            for fax in new
        ],
    )
    add_jobs(connection, stream, [fax.fax_id for fax in new], page.now)
    connection.execute(_COUNT_NEW, {"this": stream, "more": len(new)})
    return bool(owner.expects_page)


def add_jobs(connection: Connection, stream: int, fax_ids: list[str], due: datetime) -> None:
    """Have these faxes of a stream, which have no job yet, fetched."""
    for chunk in chunks(fax_ids):
        connection.execute(_JOBS, {"whose": stream, "these": chunk, "at": due})


class _Paths:
    """Gives each fax a unique path, as two ids can be one name on disk.

    On many shares, names that differ only in case are the same, and the storage may move to one
    later.
    """

    def __init__(self, connection: Connection, wanted: list[str]) -> None:
        self._connection = connection
        self._taken = self._among(wanted)

    def take(self, path: str, identity: str) -> str:
        while naming.folded(path) in self._taken:
            path = naming.disambiguated(path, identity)
            self._taken |= self._among([path])
        self._taken.add(naming.folded(path))
        return path

    def _among(self, paths: list[str]) -> set[str]:
        return {
            path
            for chunk in chunks([naming.folded(path) for path in paths])
            for path in self._connection.scalars(_TAKEN, {"these": chunk})
        }


def unknown(connection: Connection, stream: int, fax_ids: Sequence[str]) -> list[str]:
    """Return which of these fax ids the stream does not have, each in one spelling."""
    asked = {naming.fax_key(fax_id): fax_id for fax_id in fax_ids}
    known = _last_listed(connection, stream, list(asked))
    return [fax_id for key, fax_id in asked.items() if key not in known]


def streams_of(connection: Connection, app_id: str, words: Sequence[str]) -> set[int]:
    """Return the account's streams with a fax whose id is one of these words."""
    keys = list({*words, *map(naming.fax_key, words)})
    return {
        stream
        for chunk in chunks(keys)
        for stream in connection.scalars(_WHOSE_FAX, {"app": app_id, "these": chunk})
    }


def newest_listed(connection: Connection, app_id: str) -> list[tuple[int, str, Interval]]:
    """Return stream, fax id and window of the account's newest faxes that a window has listed.

    Leaves out faxes that were deleted at eFax.
    """
    rows = connection.execute(_NEWEST_LISTED, {"app": app_id})
    return [
        (stream, fax_id, Interval(start, end))
        for stream, fax_id, start, end, is_gone in rows
        if not is_gone
    ]


def listed_within(
    connection: Connection, stream: int, within: Interval
) -> list[tuple[str, dict[str, Any]]]:
    """Return the newest faxes, with their records, that a window within this time has shown.

    They were also completed within it, and we have not deleted them.
    """
    wanted = select(faxes.c.fax_id, faxes.c.listed).where(
        faxes.c.stream == stream,
        faxes.c.received_at >= within.start,
        faxes.c.received_at < within.end,
        faxes.c.first_window_start >= within.start,
        faxes.c.first_window_end <= within.end,
        faxes.c.deleted_at.is_(None),
    )
    rows = connection.execute(wanted.order_by(faxes.c.id.desc()).limit(_NEWEST))
    return [(row.fax_id, row.listed) for row in rows]


# -- looking up ---------------------------------------------------------------------------------


def one(connection: Connection, fax: int) -> FaxRow:
    """Return one fax."""
    row = connection.execute(_ONE, {"this": fax}).one_or_none()
    if row is None:
        raise LookupError(f"the ledger has no fax {fax}")
    return fax_row(row)


def some(connection: Connection, wanted: Sequence[int]) -> list[FaxRow]:
    """Return those of these faxes that exist."""
    return [
        fax_row(row)
        for chunk in chunks(sorted(set(wanted)))
        for row in connection.execute(FAX.where(faxes.c.id.in_(chunk)))
    ]


def find(
    connection: Connection, fax_id: str, account: str | None = None, user: str | None = None
) -> list[FaxRow]:
    """Return the faxes with this id in this spelling, or else in any; several streams may have one."""
    wanted = FAX.where(has_key([fax_id, naming.fax_key(fax_id)]))
    if account is not None:
        wanted = wanted.where(streams.c.account == account)
    if user is not None:
        wanted = wanted.where(streams.c.name == user)
    rows = [fax_row(row) for row in connection.execute(wanted.order_by(faxes.c.id))]
    return [row for row in rows if row.fax_id == fax_id] or rows


def history(connection: Connection, fax: int) -> list[Attempt]:
    """Return the last fifty things that happened to a fax, oldest first."""
    wanted = select(attempts.c.at, attempts.c.outcome, attempts.c.error)
    rows = connection.execute(wanted.where(attempts.c.fax == fax).order_by(attempts.c.id))
    return [Attempt(*row) for row in rows]


# -- what is on the disk -----------------------------------------------------------------------

_ON_DISK = select(
    *(faxes.c[name] for name in ("id", "fax_id", "state", "path", "file", "format", "bytes")),
    *(faxes.c[name] for name in ("sha256", "pages", "damaged", "refetch", "damage", "unreadable")),
    *(streams.c.app_id, streams.c.user_id, streams.c.direction, streams.c.account),
    *(streams.c.name.label("user"), streams.c.removed),
).join_from(faxes, streams)


def on_disk(connection: Connection, below: int | None, limit: int) -> list[OnDisk]:
    """Return faxes whose files should be on the disk, newest first; `below` is the last id seen.

    These are the stored ones and those that are being fetched again.
    """
    waits = and_(faxes.c.refetch, faxes.c.state != State.DISMISSED)
    wanted = _ON_DISK.where(faxes.c.file.is_not(None), (faxes.c.state == State.STORED) | waits)
    if below is not None:
        wanted = wanted.where(faxes.c.id < below)
    rows = connection.execute(wanted.order_by(faxes.c.id.desc()).limit(limit))
    return [OnDisk(**dict(zip(row._fields, row, strict=True))) for row in rows]


def on_disk_of(connection: Connection, wanted: Sequence[int]) -> list[OnDisk]:
    """Return those of these faxes whose files should be on the disk, in any order."""
    rows = (
        row
        for chunk in chunks(sorted(set(wanted)))
        for row in connection.execute(
            _ON_DISK.where(faxes.c.id.in_(chunk), faxes.c.file.is_not(None))
        )
    )
    return [OnDisk(**dict(zip(row._fields, row, strict=True))) for row in rows]


def files_of(connection: Connection, paths: Sequence[str]) -> dict[str, str | None]:
    """Return those of `paths` (without extension) that belong to a fax, with its stored file."""
    wanted = select(faxes.c.path, faxes.c.file)
    return {
        path: file
        for chunk in chunks(paths)
        for path, file in connection.execute(wanted.where(faxes.c.path.in_(chunk)))
    }


def note_damage(
    connection: Connection,
    found: Mapping[int, tuple[str, str | None]],
    now: datetime,
    unreadable: Collection[int] = (),
) -> list[int]:
    """Record why the files of stored faxes are damaged; None means that they are well.

    `found` has, by fax, the hash that was expected and the reason. Of those that are `unreadable`
    nobody knows what they are. Returns the faxes whose reason changed.
    """
    changed = []
    for fax, (sha256, damage) in found.items():
        row = one(connection, fax)
        # Since the look, the fax may have been fetched again, or an operator may have asked for that.
        if row.state is not State.STORED or row.sha256 != sha256 or row.damage == damage:
            continue
        set_fax(connection, fax, damage=damage, unreadable=fax in unreadable)
        outcome = "unreadable" if fax in unreadable else "damaged" if damage else "not damaged"
        remember(connection, fax, now, outcome, damage)
        changed.append(fax)
    return changed


def with_damage(connection: Connection, limit: int, *, unreadable: bool = False) -> list[FaxRow]:
    """Return some of the faxes that are damaged on the disk, or of those that are `unreadable`."""
    which = faxes.c.unreadable if unreadable else ~faxes.c.unreadable
    rows = connection.execute(FAX.where(faxes.c.damage.is_not(None), which).limit(limit))
    return [fax_row(row) for row in rows]


def damage_counts(connection: Connection) -> dict[int, tuple[int, int]]:
    """Count the faxes that are damaged and unreadable on the disk, for each stream that has some."""
    unreadable = func.sum(case((faxes.c.unreadable, 1), else_=0))
    wanted = select(faxes.c.stream, func.count() - unreadable, unreadable)
    rows = connection.execute(wanted.where(faxes.c.damage.is_not(None)).group_by(faxes.c.stream))
    return {stream: (damaged, unread) for stream, damaged, unread in rows}


# -- what every change of a fax needs ---------------------------------------------------------------


def set_fax(connection: Connection, fax: int, **values: Any) -> None:
    connection.execute(SET_FAX, {"this": fax, **values})


def learnt(
    connection: Connection, fax: int, listed: dict[str, Any], completed_at: datetime | None
) -> None:
    """Keep what eFax says about a fax now; its path does not change."""
    set_fax(connection, fax, listed=listed, received_at=completed_at)


def remember(
    connection: Connection, fax: int, at: datetime, outcome: str, error: str | None
) -> None:
    values = {"fax": fax, "at": at, "outcome": outcome, "error": error}
    connection.execute(_REMEMBER, values)
    connection.execute(FORGET_OLD, {"this": fax})


def count(connection: Connection, rows: Iterable[FaxRow], to: State) -> None:
    """Move `rows` from the counters of their states to the counter of `to`."""
    for stream, left in out_of(rows).items():
        connection.execute(COUNT, moved(stream, left, to))


def out_of(rows: Iterable[Any]) -> dict[int, collections.Counter[State]]:
    """Return by stream how many of these rows leave each state, as negative numbers."""
    changes: dict[int, collections.Counter[State]] = {}
    for row in rows:
        changes.setdefault(row.stream, collections.Counter())[row.state] -= 1
    return changes


def moved(stream: int, left: Mapping[State, int], to: State) -> dict[str, Any]:
    """Return what `_COUNT` adds when faxes leave their states (negative numbers) for `to`."""
    by = {f"{state}_by": left.get(state, 0) for state in State}
    by[f"{to}_by"] -= sum(left.values())
    return {"this": stream, **by}
