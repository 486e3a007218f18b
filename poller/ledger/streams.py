"""Users: who is configured, and what their polls came to."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, bindparam, case, insert, or_, select, true, update

from poller.ledger import accounts, backfills, coverage, faxes
from poller.ledger.rows import Progress, UserRow
from poller.ledger.tables import Instant, users
from poller.window import Coverage, SliceKind

Identity = tuple[str, str, str, str]  # app_id, user_id, account, user

_USER = select(*(column for column in users.c if column.name != "name"), users.c.name.label("user"))


def all_users(connection: Connection, *, include_removed: bool = True) -> list[UserRow]:
    """Return all users in the order in which they were added."""
    wanted = _USER.order_by(users.c.id)
    if not include_removed:
        wanted = wanted.where(users.c.removed.is_(False))
    return [UserRow(**row) for row in connection.execute(wanted).mappings()]


def waiting_counts(connection: Connection) -> dict[int, tuple[int, int]]:
    """Count pending and quarantined faxes of the users that have some, but for removed ones."""
    wanted = select(users.c.id, users.c.pending, users.c.quarantined).where(
        users.c.removed.is_(False), or_(users.c.pending > 0, users.c.quarantined > 0)
    )
    return {row.id: (row.pending, row.quarantined) for row in connection.execute(wanted)}


def one(connection: Connection, user: int) -> UserRow:
    """Return one user."""
    row = connection.execute(_USER.where(users.c.id == user)).mappings().one_or_none()
    if row is None:
        raise LookupError(f"the ledger knows no user {user}")
    return UserRow(**row)


def sync(connection: Connection, wanted: Sequence[Identity], now: datetime) -> list[UserRow]:
    """Make the ledger know exactly these users (app_id, user_id, account, user).

    New ones are added as first seen `now`, labels are brought up to date, all others are marked
    removed. Returns the rows in the order asked for.
    """
    known = {(row.app_id, row.user_id): row for row in all_users(connection)}
    asked = {(app_id, user_id): (account, name) for app_id, user_id, account, name in wanted}
    new = [identity for identity in asked if identity not in known]
    if new:
        connection.execute(insert(users), [_new_user(key, asked[key], now) for key in new])
    changed = [
        {"key": row.id, **_labels(row, asked.get(identity))}
        for identity, row in known.items()
        if _differs(row, asked.get(identity))
    ]
    if changed:
        connection.execute(_RELABEL, changed)
    accounts.sync(connection, {app_id: account for app_id, _, account, _ in wanted})
    if new or changed:
        rows = all_users(connection)
        known = {(row.app_id, row.user_id): row for row in rows}
    return [known[app_id, user_id] for app_id, user_id, _, _ in wanted]


_RELABEL = (
    update(users)
    .where(users.c.id == bindparam("key"))
    .values(
        account=bindparam("to_account"), name=bindparam("to_name"), removed=bindparam("to_removed")
    )
)


def _new_user(identity: tuple[str, str], labels: tuple[str, str], now: datetime) -> dict[str, Any]:
    (app_id, user_id), (account, name) = identity, labels
    return {
        "app_id": app_id,
        "user_id": user_id,
        "account": account,
        "name": name,
        "our_first_seen": now,
    }


def _labels(row: UserRow, labels: tuple[str, str] | None) -> dict[str, Any]:
    """A user who is no longer configured keeps the labels under which operators knew them."""
    account, name = labels or (row.account, row.user)
    return {"to_account": account, "to_name": name, "to_removed": labels is None}


def _differs(row: UserRow, labels: tuple[str, str] | None) -> bool:
    if labels is None:
        return not row.removed
    return row.removed or (row.account, row.user) != labels


# -- what polls came to ------------------------------------------------------------------------


def _set_user(connection: Connection, user: int, **values: Any) -> None:
    connection.execute(update(users).where(users.c.id == user).values(**values))


def pin_start(connection: Connection, user: int, start: datetime, configured: str) -> None:
    """Fix where the user's look-back begins; once set it only moves to earlier times."""
    values = {"key": user, "to_start": start, "to_configured": configured}
    if not connection.execute(_PIN, values).rowcount:
        raise LookupError(f"the ledger knows no user {user}")


_TO_START = bindparam("to_start", type_=Instant)
_PIN = (
    update(users)
    .where(users.c.id == bindparam("key"))
    .values(
        pinned_start=case(
            (users.c.pinned_start < _TO_START, users.c.pinned_start), else_=_TO_START
        ),
        configured_start=bindparam("to_configured"),
    )
)


def poll_failed(
    connection: Connection,
    user: int,
    now: datetime,
    *,
    error: str,
    refused_until: datetime | None = None,
) -> None:
    """Record a poll that failed.

    A `refused_until` other than the one held is one more refusal in a row; None leaves it.
    """
    values: dict[str, Any] = {
        "last_poll_at": now,
        "last_error": error,
        "failed_polls": users.c.failed_polls + 1,
    }
    if refused_until is not None and refused_until != one(connection, user).refused_until:
        values |= {"refused_until": refused_until, "refusals": users.c.refusals + 1}
    _set_user(connection, user, **values)


def sweep_done(
    connection: Connection, user: int, kind: SliceKind, end: datetime, found: int
) -> None:
    if kind is SliceKind.DEEP_SWEEP:
        total = users.c.found_by_deep_sweep + found
        _set_user(connection, user, deep_sweep_end=end, found_by_deep_sweep=total)
    else:
        _set_user(connection, user, sweep_end=end, found_by_sweep=users.c.found_by_sweep + found)


def forget_sweeps(connection: Connection, app_id: str, since: datetime | None = None) -> None:
    """Have the account's next sweeps reach back as one at `since` would, or to the starts."""
    for end in (users.c.sweep_end, users.c.deep_sweep_end):
        later = true() if since is None else end > since
        mine = and_(users.c.app_id == app_id, later)
        connection.execute(update(users).where(mine).values({end: since}))


# -- what polls go by ------------------------------------------------------------------------------


def progress(connection: Connection, user: int) -> Progress:
    """Return what polls of this user go by."""
    return Progress(
        one(connection, user),
        coverage.covered(connection, user),
        coverage.failed(connection, user),
        user in backfills.users_waiting(connection),
    )


def all_progress(connection: Connection) -> dict[int, Progress]:
    """Return what polls of all users go by."""
    covered, failed = coverage.all_covered(connection), coverage.all_failed(connection)
    to_backfill = backfills.users_waiting(connection)
    return {
        row.id: Progress(
            row, covered.get(row.id, Coverage()), failed.get(row.id, []), row.id in to_backfill
        )
        for row in all_users(connection)
    }


def users_with_stored_per_hour(
    connection: Connection, since: datetime
) -> tuple[list[UserRow], list[tuple[int, int, int]]]:
    """Return all users, and how many faxes were stored in each hour, both of one moment.

    The hours are user, hour (0 begins at `since`) and count, where there are any.
    """
    return all_users(connection), faxes.stored_per_hour(connection, since)
