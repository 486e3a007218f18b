"""Users and accounts: who is configured, what their polls came to, how long they stood still."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, and_, bindparam, func, insert, or_, select, true, update

from poller.ledger.rows import AccountRow, UserRow
from poller.ledger.tables import Instant, accounts, users
from poller.window import SliceKind

Identity = tuple[str, str, str, str]  # app_id, user_id, account, user

_USER = select(*(column for column in users.c if column.name != "name"), users.c.name.label("user"))


def all_users(connection: Connection, *, include_removed: bool) -> list[UserRow]:
    wanted = _USER.order_by(users.c.id)
    if not include_removed:
        wanted = wanted.where(users.c.removed.is_(False))
    return [UserRow(**row) for row in connection.execute(wanted).mappings()]


def waiting_counts(connection: Connection) -> dict[int, tuple[int, int]]:
    wanted = select(users.c.id, users.c.pending, users.c.quarantined).where(
        users.c.removed.is_(False), or_(users.c.pending > 0, users.c.quarantined > 0)
    )
    return {row.id: (row.pending, row.quarantined) for row in connection.execute(wanted)}


def one_user(connection: Connection, user: int) -> UserRow:
    row = connection.execute(_USER.where(users.c.id == user)).mappings().one_or_none()
    if row is None:
        raise LookupError(f"the ledger knows no user {user}")
    return UserRow(**row)


def sync(connection: Connection, wanted: Sequence[Identity], now: datetime) -> list[UserRow]:
    known = {(row.app_id, row.user_id): row for row in all_users(connection, include_removed=True)}
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
    _sync_accounts(connection, {app_id: account for app_id, _, account, _ in wanted})
    if new or changed:
        rows = all_users(connection, include_removed=True)
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


def _sync_accounts(connection: Connection, labels: dict[str, str]) -> None:
    known = {row.app_id: row.account for row in connection.execute(select(accounts))}
    for app_id, account in labels.items():
        if app_id not in known:
            connection.execute(insert(accounts).values(app_id=app_id, account=account))
        elif known[app_id] != account:
            _set_account(connection, app_id, account=account)


# -- what polls came to ------------------------------------------------------------------------


def _set_user(connection: Connection, user: int, **values: Any) -> None:
    connection.execute(update(users).where(users.c.id == user).values(**values))


def pin_start(connection: Connection, user: int, start: datetime, configured: str) -> None:
    values = {"key": user, "to_start": start, "to_configured": configured}
    if not connection.execute(_PIN, values).rowcount:
        raise LookupError(f"the ledger knows no user {user}")


_TO_START = bindparam("to_start", type_=Instant)
_PIN = (
    update(users)
    .where(users.c.id == bindparam("key"))
    .values(
        pinned_start=func.min(func.coalesce(users.c.pinned_start, _TO_START), _TO_START),
        configured_start=bindparam("to_configured"),
    )
)


def poll_failed(
    connection: Connection, user: int, now: datetime, error: str, refused_until: datetime | None
) -> None:
    values: dict[str, Any] = {
        "last_poll_at": now,
        "last_error": error,
        "failed_polls": users.c.failed_polls + 1,
    }
    if refused_until is not None and refused_until != one_user(connection, user).refused_until:
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


def forget_sweeps(connection: Connection, app_id: str, since: datetime | None) -> None:
    for end in (users.c.sweep_end, users.c.deep_sweep_end):
        later = true() if since is None else end > since
        mine = and_(users.c.app_id == app_id, later)
        connection.execute(update(users).where(mine).values({end: since}))


# -- accounts ------------------------------------------------------------------------------------


def all_accounts(connection: Connection, *, include_removed: bool) -> list[AccountRow]:
    wanted = select(accounts).order_by(accounts.c.app_id)
    if not include_removed:
        theirs = select(users.c.id).where(
            users.c.app_id == accounts.c.app_id, users.c.removed.is_(False)
        )
        wanted = wanted.where(theirs.exists())
    return [AccountRow(**row) for row in connection.execute(wanted).mappings()]


def one_account(connection: Connection, app_id: str) -> AccountRow | None:
    wanted = select(accounts).where(accounts.c.app_id == app_id)
    row = connection.execute(wanted).mappings().one_or_none()
    return None if row is None else AccountRow(**row)


def _set_account(connection: Connection, app_id: str, **values: Any) -> None:
    connection.execute(update(accounts).where(accounts.c.app_id == app_id).values(**values))


def _ensure_account(connection: Connection, app_id: str, account: str) -> AccountRow:
    row = one_account(connection, app_id)
    if row is None:
        connection.execute(insert(accounts).values(app_id=app_id, account=account))
        row = AccountRow(app_id, account, None, None, 0.0, None, None, None)
    elif account and account != row.account:
        _set_account(connection, app_id, account=account)
    return row


def set_suspended(
    connection: Connection, app_id: str, account: str, until: datetime | None, reason: str | None
) -> None:
    _ensure_account(connection, app_id, account)
    _set_account(connection, app_id, suspended_until=until, reason=reason)


def pause_clock(
    connection: Connection, app_id: str, account: str, now: datetime, *, paused: bool
) -> float:
    row = _ensure_account(connection, app_id, account)
    since = row.paused_since
    # A clock that was set back must not shorten what has been counted.
    running_s = max(0.0, (now - since).total_seconds()) if since is not None else 0.0
    total_s = row.paused_s + running_s
    if paused and since is None:
        _set_account(connection, app_id, paused_since=now)
    elif not paused and since is not None:
        _set_account(connection, app_id, paused_since=None, paused_s=total_s)
    return total_s


def note_downtime(
    connection: Connection, since: datetime | None, now: datetime, longer_than: timedelta
) -> None:
    """`since` is the last sign of life that is no poll, an earlier start among them."""
    polled = func.max(users.c.last_poll_at).label("polled")
    wanted = select(users.c.app_id, polled).group_by(users.c.app_id)
    for app_id, last_poll in connection.execute(wanted):
        if last_poll is None:
            continue
        down = now - (last_poll if since is None else max(last_poll, since))
        if down > longer_than:
            mine = and_(accounts.c.app_id == app_id, accounts.c.paused_since.is_(None))
            longer = accounts.c.paused_s + down.total_seconds()
            connection.execute(update(accounts).where(mine).values(paused_s=longer))


def save_sign_in(connection: Connection, app_id: str, level: float, at: datetime) -> None:
    _ensure_account(connection, app_id, "")
    _set_account(connection, app_id, sign_in_level=level, sign_in_at=at)
