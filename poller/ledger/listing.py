"""What lists say: new faxes, coverage, and slices that could not be listed."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, and_, delete, func, insert, select, update

from poller import naming
from poller.ledger.rows import FaxRow, NewFax, fax_row
from poller.ledger.tables import EPOCH, State, coverage, failed_slices, faxes, users
from poller.window import Coverage, FailedSlice, Interval

# A fax inside the overlap is listed by every poll. When it was last listed is kept to this
# precision, so that a poll which found nothing new rewrites no fax.
LISTED_AGAIN = timedelta(minutes=10)
_AT_ONCE = 500  # values in one IN (...)

FAX = select(
    *faxes.c, users.c.app_id, users.c.user_id, users.c.account, users.c.name.label("user_name")
).join_from(faxes, users)


@dataclass(frozen=True)
class Page:
    """A page of a list: what it held and how it was asked for."""

    faxes: Sequence[NewFax]
    window: Interval | None
    found_by: str
    now: datetime
    covers: Interval | None


def record_page(connection: Connection, user: int, page: Page) -> list[FaxRow]:
    listed = {fax.fax_id: fax for fax in reversed(page.faxes)}  # twice on a page: the first holds
    ids = list(dict.fromkeys(fax.fax_id for fax in page.faxes))
    known = _last_listed(connection, user, ids)
    new = [listed[fax_id] for fax_id in ids if fax_id not in known]
    if new:
        _insert(connection, user, new, page)
    _listed_again(connection, known, page)
    if page.covers is not None:
        cover(connection, user, page.covers)
    return _by_fax_ids(connection, user, [fax.fax_id for fax in new])


def chunks(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for begin in range(0, len(values), _AT_ONCE):
        yield values[begin : begin + _AT_ONCE]


def _last_listed(
    connection: Connection, user: int, fax_ids: list[str]
) -> dict[str, tuple[int, datetime]]:
    wanted = select(faxes.c.fax_id, faxes.c.id, faxes.c.last_listed_at)
    return {
        fax_id: (fax, at)
        for chunk in chunks(fax_ids)
        for fax_id, fax, at in connection.execute(wanted.where(_among(user, chunk)))
    }


def _among(user: int, fax_ids: Sequence[str]) -> Any:
    return and_(faxes.c.user == user, faxes.c.fax_id.in_(fax_ids))


def _by_fax_ids(connection: Connection, user: int, fax_ids: list[str]) -> list[FaxRow]:
    found = {
        row.fax_id: fax_row(row)
        for chunk in chunks(fax_ids)
        for row in connection.execute(FAX.where(_among(user, chunk)))
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

_OWNER = select(
    users.c.id, users.c.app_id, users.c.user_id, users.c.last_received_at, users.c.late_max_s
)


def _insert(connection: Connection, user: int, new: list[NewFax], page: Page) -> None:
    owner = connection.execute(_OWNER.where(users.c.id == user)).one_or_none()
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
        insert(faxes),
        [
            {
                **shared,
                "fax_id": fax.fax_id,
                "path": paths.take(fax.path, f"{owner.app_id}/{owner.user_id}/{fax.fax_id}"),
                "listed": fax.listed,
                "received_at": fax.received_at,
            }
            for fax in new
        ],
    )
    _count_new(connection, owner, new, page)


class _Paths:
    """Gives each fax a path of its own: two ids can be one name on disk."""

    def __init__(self, connection: Connection, wanted: list[str]) -> None:
        self._connection = connection
        self._taken = self._among(wanted)

    def take(self, path: str, identity: str) -> str:
        while path in self._taken:
            path = naming.disambiguated(path, identity)
            self._taken |= self._among([path])
        self._taken.add(path)
        return path

    def _among(self, paths: list[str]) -> set[str]:
        wanted = select(faxes.c.path)
        return {
            path
            for chunk in chunks(paths)
            for path in self._connection.scalars(wanted.where(faxes.c.path.in_(chunk)))
        }


def _count_new(connection: Connection, owner: Any, new: list[NewFax], page: Page) -> None:
    values: dict[str, Any] = {
        "discovered": users.c.discovered + len(new),
        "pending": users.c.pending + len(new),
    }
    # A time in the future would hide for ever that nothing is received any more.
    received = [min(fax.received_at, page.now) for fax in new if fax.received_at is not None]
    if received:
        held = [] if owner.last_received_at is None else [owner.last_received_at]
        values["last_received_at"] = max(received + held)
        listed = covered(connection, owner.id)
        # A backfill comes long after a fax became visible and says nothing of when that was.
        by_window = [] if page.found_by == "backfill" else received
        late_s = [(page.now - at).total_seconds() for at in by_window if listed.covers(at)]
        values["late_max_s"] = max([owner.late_max_s, *late_s])
    connection.execute(update(users).where(users.c.id == owner.id).values(**values))


# -- coverage --------------------------------------------------------------------------------------


def covered(connection: Connection, user: int) -> Coverage:
    wanted = select(coverage.c.start, coverage.c.end).where(coverage.c.user == user)
    rows = connection.execute(wanted.order_by(coverage.c.start))
    return Coverage(tuple(Interval(start, end) for start, end in rows))


def coverages(connection: Connection) -> dict[int, Coverage]:
    wanted = select(coverage).order_by(coverage.c.user, coverage.c.start)
    found: dict[int, list[Interval]] = {}
    for user, start, end in connection.execute(wanted):
        found.setdefault(user, []).append(Interval(start, end))
    return {user: Coverage(tuple(intervals)) for user, intervals in found.items()}


def cover(connection: Connection, user: int, covers: Interval) -> None:
    """Merge `covers` into what is covered; only the intervals that it touches are rewritten."""
    touching = and_(
        coverage.c.user == user, coverage.c.start <= covers.end, coverage.c.end >= covers.start
    )
    held = [
        Interval(start, end)
        for start, end in connection.execute(
            select(coverage.c.start, coverage.c.end).where(touching)
        )
    ]
    merged = Interval(
        min([covers.start, *(interval.start for interval in held)]),
        max([covers.end, *(interval.end for interval in held)]),
    )
    if len(held) == 1 and held != [merged]:
        connection.execute(
            update(coverage).where(touching).values(start=merged.start, end=merged.end)
        )
    elif held != [merged]:
        connection.execute(delete(coverage).where(touching))
        connection.execute(insert(coverage).values(user=user, start=merged.start, end=merged.end))
    connection.execute(
        delete(failed_slices).where(
            failed_slices.c.user == user,
            failed_slices.c.start >= covers.start,
            failed_slices.c.end <= covers.end,
        )
    )


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
