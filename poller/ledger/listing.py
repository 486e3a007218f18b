"""What lists say: new faxes, coverage, and slices that could not be listed."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    BindParameter,
    Connection,
    and_,
    bindparam,
    delete,
    func,
    insert,
    select,
    union_all,
    update,
)

from poller import naming
from poller.ledger.rows import FaxRow, NewFax, fax_row
from poller.ledger.tables import (
    EPOCH,
    FAX_KEY,
    FOLDED_PATH,
    HAS_CAPITALS,
    State,
    coverage,
    failed_slices,
    faxes,
    has_key,
    users,
)
from poller.window import Coverage, FailedSlice, Interval

# A fax inside the overlap is listed by every poll. When it was last listed is kept to this
# precision, so that a poll which found nothing new rewrites no fax.
LISTED_AGAIN = timedelta(minutes=10)
_AT_ONCE = 500  # values in one IN (...)
_NEWEST = 100  # faxes among which windows are looked for that are not the same

FAX = select(
    *faxes.c, users.c.app_id, users.c.user_id, users.c.account, users.c.name.label("user_name")
).join_from(faxes, users)

# What most polls need is composed once: that takes longer than the statement.
_WHOSE = faxes.c.user == bindparam("whose")
_KEYS: BindParameter[Any] = bindparam("these", expanding=True)
_LAST_LISTED = (
    select(FAX_KEY, faxes.c.id, faxes.c.last_listed_at)
    .where(_WHOSE, has_key(_KEYS))
    .order_by(faxes.c.id.desc())  # of two spellings the one first seen holds
)
_THESE = faxes.c.fax_id.in_(_KEYS)
_ROWS = FAX.where(_WHOSE, _THESE)
_FOLDED_ONES: BindParameter[Any] = bindparam("these", expanding=True)
_TAKEN = union_all(
    select(faxes.c.path).where(faxes.c.path.in_(_FOLDED_ONES)),
    select(FOLDED_PATH).where(FOLDED_PATH.in_(_FOLDED_ONES), HAS_CAPITALS),
)
_INSERT = insert(faxes)
_THIS_USER = users.c.id == bindparam("this")
_NEWEST_LISTED = (
    select(faxes.c.user, faxes.c.fax_id, faxes.c.first_window_start, faxes.c.first_window_end)
    .join_from(faxes, users)
    .where(
        users.c.app_id == bindparam("app"),
        users.c.removed.is_(False),
        faxes.c.first_window_start.is_not(None),
    )
    .order_by(faxes.c.id.desc())
    .limit(_NEWEST)
)
_OWNER = select(
    users.c.id, users.c.app_id, users.c.user_id, users.c.last_received_at, users.c.late_max_s
).where(_THIS_USER)
_COUNT_NEW = (
    update(users)
    .where(_THIS_USER)
    .values(
        discovered=users.c.discovered + bindparam("more"),
        pending=users.c.pending + bindparam("more"),
        last_received_at=bindparam("received"),
        late_max_s=bindparam("late_s"),
    )
)
_COVERED = (
    select(coverage.c.start, coverage.c.end)
    .where(coverage.c.user == bindparam("whose"))
    .order_by(coverage.c.start)
)
_TOUCHING = and_(
    coverage.c.user == bindparam("whose"),
    coverage.c.start <= bindparam("before"),
    coverage.c.end >= bindparam("after"),
)
_HELD = select(coverage.c.start, coverage.c.end).where(_TOUCHING)
_MERGE = (
    update(coverage).where(_TOUCHING).values(start=bindparam("to_start"), end=bindparam("to_end"))
)
_UNCOVER = delete(coverage).where(_TOUCHING)
_COVER = insert(coverage)
_FORGET_FAILED = delete(failed_slices).where(
    failed_slices.c.user == bindparam("whose"),
    failed_slices.c.start >= bindparam("after"),
    failed_slices.c.end <= bindparam("before"),
)


@dataclass(frozen=True)
class Page:
    """A page of a list: what it held and how it was asked for."""

    faxes: Sequence[NewFax]
    window: Interval | None
    found_by: str
    now: datetime
    covers: Interval | None


def record_page(connection: Connection, user: int, page: Page) -> list[FaxRow]:
    listed: dict[str, NewFax] = {}
    for fax in page.faxes:  # twice on a page: the first holds
        listed.setdefault(naming.fax_key(fax.fax_id), fax)
    known = _last_listed(connection, user, list(listed))
    new = [fax for key, fax in listed.items() if key not in known]
    if new:
        _insert(connection, user, new, page)
    _listed_again(connection, known, page)
    if page.covers is not None:
        cover(connection, user, page.covers)
    return _by_fax_ids(connection, user, [fax.fax_id for fax in new])


def other_key(fax_id: str) -> str | None:
    """Return the key of an id where that is not the id itself."""
    key = naming.fax_key(fax_id)
    return None if key == fax_id else key


def chunks(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for begin in range(0, len(values), _AT_ONCE):
        yield values[begin : begin + _AT_ONCE]


def _last_listed(
    connection: Connection, user: int, keys: list[str]
) -> dict[str, tuple[int, datetime]]:
    return {
        key: (fax, at)
        for chunk in chunks(keys)
        for key, fax, at in connection.execute(_LAST_LISTED, {"whose": user, "these": chunk})
    }


def _by_fax_ids(connection: Connection, user: int, fax_ids: list[str]) -> list[FaxRow]:
    found = {
        row.fax_id: fax_row(row)
        for chunk in chunks(fax_ids)
        for row in connection.execute(_ROWS, {"whose": user, "these": chunk})
    }
    return [found[fax_id] for fax_id in fax_ids]


def _listed_again(
    connection: Connection, known: dict[str, tuple[int, datetime]], page: Page
) -> None:
    stale = [fax for fax, at in known.values() if abs(page.now - at) >= LISTED_AGAIN]
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


def _insert(connection: Connection, user: int, new: list[NewFax], page: Page) -> None:
    owner = connection.execute(_OWNER, {"this": user}).one_or_none()
    if owner is None:
        raise LookupError(f"the ledger knows no user {user}")
    paths = _Paths(connection, [fax.path for fax in new])
    shared = {
        "user": user,
        "state": State.PENDING,
        "first_seen_at": page.now,
        "next_attempt_at": page.now,
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
    _count_new(connection, owner, new, page)


class _Paths:
    """Gives each fax a path of its own: two ids can be one name on disk.

    Names that differ only in case are one on many a share, and the storage may move to one later.
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


def _count_new(connection: Connection, owner: Any, new: list[NewFax], page: Page) -> None:
    values = {"received": owner.last_received_at, "late_s": owner.late_max_s}
    # A time in the future would hide for ever that nothing is received any more.
    received = [min(fax.received_at, page.now) for fax in new if fax.received_at is not None]
    if received:
        held = [] if owner.last_received_at is None else [owner.last_received_at]
        values["received"] = max(received + held)
        listed = covered(connection, owner.id)
        # A backfill comes long after a fax became visible and says nothing of when that was.
        by_window = [] if page.found_by == "backfill" else received
        late_s = [(page.now - at).total_seconds() for at in by_window if listed.covers(at)]
        values["late_s"] = max([owner.late_max_s, *late_s])
    connection.execute(_COUNT_NEW, {"this": owner.id, "more": len(new), **values})


def newest_listed(connection: Connection, app_id: str) -> list[tuple[int, str, Interval]]:
    """Return user, fax id and window of the account's newest faxes that a window has listed."""
    rows = connection.execute(_NEWEST_LISTED, {"app": app_id})
    return [(user, fax_id, Interval(start, end)) for user, fax_id, start, end in rows]


# -- coverage --------------------------------------------------------------------------------------


def covered(connection: Connection, user: int) -> Coverage:
    rows = connection.execute(_COVERED, {"whose": user})
    return Coverage(tuple(Interval(start, end) for start, end in rows))


def coverages(connection: Connection) -> dict[int, Coverage]:
    wanted = select(coverage).order_by(coverage.c.user, coverage.c.start)
    found: dict[int, list[Interval]] = {}
    for user, start, end in connection.execute(wanted):
        found.setdefault(user, []).append(Interval(start, end))
    return {user: Coverage(tuple(intervals)) for user, intervals in found.items()}


def cover(connection: Connection, user: int, covers: Interval) -> None:
    """Merge `covers` into what is covered; only the intervals that it touches are rewritten."""
    here = {"whose": user, "after": covers.start, "before": covers.end}
    held = [Interval(start, end) for start, end in connection.execute(_HELD, here)]
    merged = Interval(
        min([covers.start, *(interval.start for interval in held)]),
        max([covers.end, *(interval.end for interval in held)]),
    )
    if len(held) == 1 and held != [merged]:
        connection.execute(_MERGE, here | {"to_start": merged.start, "to_end": merged.end})
    elif held != [merged]:
        connection.execute(_UNCOVER, here)
        connection.execute(_COVER, {"user": user, "start": merged.start, "end": merged.end})
    connection.execute(_FORGET_FAILED, here)


# -- slices that could not be listed -----------------------------------------------------------


def failed(connection: Connection, user: int) -> list[FailedSlice]:
    return all_failed(connection, failed_slices.c.user == user).get(user, [])


def all_failed(connection: Connection, *where: Any) -> dict[int, list[FailedSlice]]:
    found: dict[int, list[FailedSlice]] = {}
    wanted = select(failed_slices).where(*where)
    for row in connection.execute(
        wanted.order_by(failed_slices.c.user, failed_slices.c.start, failed_slices.c.end)
    ):
        found.setdefault(row.user, []).append(
            FailedSlice(
                interval=Interval(row.start, row.end),
                failures=row.failures,
                next_attempt_at=row.next_attempt_at,
                reason=row.reason,
                dismissed=row.dismissed,
                dismiss_reason=row.dismiss_reason,
            )
        )
    return found


def _is(user: int, interval: Interval) -> Any:
    return and_(
        failed_slices.c.user == user,
        failed_slices.c.start == interval.start,
        failed_slices.c.end == interval.end,
    )


def slice_failed(
    connection: Connection, user: int, interval: Interval, next_attempt_at: datetime, reason: str
) -> int:
    failures = connection.scalar(select(failed_slices.c.failures).where(_is(user, interval)))
    values = {
        "failures": (failures or 0) + 1,
        "next_attempt_at": next_attempt_at,
        "reason": reason,
    }
    if failures is None:
        _add_slice(connection, user, interval, **values)
    else:
        connection.execute(update(failed_slices).where(_is(user, interval)).values(**values))
    return (failures or 0) + 1


def slice_split(
    connection: Connection, user: int, whole: Interval, halves: Iterable[Interval]
) -> None:
    held = connection.execute(
        select(failed_slices.c.reason, failed_slices.c.dismissed).where(_is(user, whole))
    ).one_or_none()
    connection.execute(delete(failed_slices).where(_is(user, whole)))
    for half in halves:
        known = connection.scalar(select(func.count()).where(_is(user, half)))
        if not known:
            _add_slice(
                connection,
                user,
                half,
                failures=0,
                next_attempt_at=EPOCH,
                reason=held.reason if held else "",
                dismissed=held.dismissed if held else False,
            )


def _add_slice(connection: Connection, user: int, interval: Interval, **values: Any) -> None:
    connection.execute(
        insert(failed_slices).values(user=user, start=interval.start, end=interval.end, **values)
    )
