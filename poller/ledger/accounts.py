"""Accounts: suspensions, stopped give-up clocks, sign-ins, tokens, and what is known of their lists."""

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, and_, func, insert, select, update

from poller.ledger import faxes, meta
from poller.ledger.rows import AccountRow
from poller.ledger.tables import accounts, streams
from poller.sealing import SealedToken
from poller.window import Interval


def all_accounts(connection: Connection, *, include_removed: bool = True) -> list[AccountRow]:
    """Return the accounts that the ledger has seen, ordered by App ID."""
    wanted = select(accounts).order_by(accounts.c.app_id)
    if not include_removed:
        theirs = select(streams.c.id).where(
            streams.c.app_id == accounts.c.app_id, streams.c.removed.is_(False)
        )
        wanted = wanted.where(theirs.exists())
    return [AccountRow(**row) for row in connection.execute(wanted).mappings()]


def one_account(connection: Connection, app_id: str) -> AccountRow | None:
    wanted = select(accounts).where(accounts.c.app_id == app_id)
    row = connection.execute(wanted).mappings().one_or_none()
    return None if row is None else AccountRow(**row)


def _set_account(connection: Connection, app_id: str, **values: Any) -> None:
    connection.execute(update(accounts).where(accounts.c.app_id == app_id).values(**values))


def ensure(connection: Connection, app_id: str, account: str) -> AccountRow:
    """Make the ledger know an account by this name; an empty name leaves its present one."""
    row = one_account(connection, app_id)
    if row is None:
        connection.execute(insert(accounts).values(app_id=app_id, account=account))
        row = AccountRow(app_id, account, None, None, 0.0, None)
    elif account and account != row.account:
        _set_account(connection, app_id, account=account)
    return row


def set_suspended(
    connection: Connection, app_id: str, account: str, until: datetime | None, reason: str | None
) -> None:
    """Record until when the account is suspended; None means that it is not."""
    ensure(connection, app_id, account)
    _set_account(connection, app_id, suspended_until=until, reason=reason)


def pause_clock(
    connection: Connection, app_id: str, account: str, now: datetime, *, paused: bool
) -> float:
    """Stop or restart the give-up clock of the account's faxes; call this as often as you like.

    Returns for how many seconds in all the clock has stood still, including the current pause.
    """
    row = ensure(connection, app_id, account)
    since = row.paused_since
    # A clock that is set back must not shorten the time already counted.
    running_s = max(0.0, (now - since).total_seconds()) if since is not None else 0.0
    total_s = row.paused_s + running_s
    if paused and since is None:
        _set_account(connection, app_id, paused_since=now)
    elif not paused and since is not None:
        _set_account(connection, app_id, paused_since=None, paused_s=total_s)
    return total_s


def note_downtime(
    connection: Connection,
    app_id: str,
    now: datetime,
    since: datetime | None,
    longer_than: timedelta,
) -> None:
    """Stop the account's give-up clock for the time without a poller, if it was `longer_than` this.

    Nobody could fetch its faxes then. `since` is the last sign of life: a poll is not the only one,
    as a schedule may have none for days.
    """
    polled = select(func.max(streams.c.last_poll_at)).where(streams.c.app_id == app_id)
    last_poll = connection.scalar(polled)
    if last_poll is None:
        return
    down = now - (last_poll if since is None else max(last_poll, since))
    if down > longer_than:
        mine = and_(accounts.c.app_id == app_id, accounts.c.paused_since.is_(None))
        longer = accounts.c.paused_s + down.total_seconds()
        connection.execute(update(accounts).where(mine).values(paused_s=longer))


def sign_in(connection: Connection, app_id: str) -> tuple[float, datetime] | None:
    """Return what `save_sign_in` kept: the level of the sign-in budget, and when it had that level."""
    row = one_account(connection, app_id)
    if row is None or row.sign_in_level is None or row.sign_in_at is None:
        return None
    return row.sign_in_level, row.sign_in_at


def save_sign_in(connection: Connection, app_id: str, level: float, at: datetime) -> None:
    """Keep the sign-in budget, which also applies after a restart."""
    ensure(connection, app_id, "")
    _set_account(connection, app_id, sign_in_level=level, sign_in_at=at)


def token(connection: Connection, app_id: str) -> SealedToken | None:
    """Return the token that `save_token` kept; it may have ended."""
    row = one_account(connection, app_id)
    if row is None or row.sealed_token is None or row.token_at is None or row.token_ends_at is None:
        return None
    return SealedToken(row.sealed_token, row.token_at, row.token_ends_at)


def save_token(connection: Connection, app_id: str, kept: SealedToken) -> None:
    """Keep the token of the last sign-in, in place of the one before."""
    ensure(connection, app_id, "")
    _set_account(
        connection,
        app_id,
        sealed_token=kept.sealed,
        token_at=kept.obtained_at,
        token_ends_at=kept.ends_at,
    )


def lists(
    connection: Connection, app_id: str
) -> tuple[str | None, list[tuple[int, str, Interval]]]:
    """Return what `keep_lists` kept, and the account's newest faxes: stream, fax id and window."""
    return meta.value(connection, f"lists:{app_id}"), faxes.newest_listed(connection, app_id)


def keep_lists(connection: Connection, app_id: str, text: str) -> None:
    """Keep what is known of the account's lists."""
    meta.keep(connection, f"lists:{app_id}", text)


def hook(connection: Connection, app_id: str) -> str | None:
    """Return what `keep_hook` kept."""
    return meta.value(connection, f"webhook:{app_id}")


def keep_hook(connection: Connection, app_id: str, text: str) -> None:
    """Keep how well the account's web-hook works."""
    meta.keep(connection, f"webhook:{app_id}", text)
