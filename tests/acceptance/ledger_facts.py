"""Every fact that a ledger holds, by its subject and meaning, independent of the tables.

The upgrade tests ask the ledger only through this module, so change it together with the ledger's
tables or methods. What it returns must stay the same, because the release before revision 0006
wrote `tests/data/upgrade/facts.json` with it.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, func, select

from poller.ledger import (
    Attempt,
    FaxRow,
    Ledger,
    StreamRow,
    accounts,
    backfills,
    faxes,
    fold,
    jobs,
    streams,
    tables,
)
from poller.window import FailedSlice, Interval

Facts = dict[str, Any]

_IDENTITY = {"id", "app_id", "user_id", "direction"}
_USER = [one.name for one in fields(StreamRow) if one.name not in _IDENTITY]
# Names that differ from the ledger's, so that somebody can rename them there.
_FAX = {"refetch": "fetch_again", "damage": "damage_on_disk"} | {
    name: name
    for name in (
        *("state", "path", "listed", "received_at", "first_seen_at", "attempts", "failures"),
        *("first_failed_at", "paused_s_at_first_failure", "next_attempt_at", "last_error"),
        *("last_problem", "stored_at", "file", "format", "bytes", "sha256", "pages", "damaged"),
        *("found_by", "first_window", "last_window", "last_listed_at", "quarantined_at"),
        *("dismissed_at", "dismiss_reason", "fax_key"),
    )
}
_META = {"verdict": "runtime_report", "gap_edits": "edits", "write_check": "writes_checked"}


def _not_later(_: str) -> timedelta:
    return timedelta(0)


def _of_all(_: str) -> bool:
    return True


async def facts_of(
    ledger: Ledger,
    *,
    later: Callable[[str], timedelta] = _not_later,
    whole: Callable[[str], bool] = _of_all,
) -> Facts:
    """Read everything; backfills and faxes only of users whose id is `whole`.

    Returns times as they were before everything about users and accounts was made `later`.
    """
    return await ledger.read(_facts, later, whole)


async def due(ledger: Ledger, now: datetime) -> dict[str, list[str]]:
    """Return which faxes to fetch now, in order, by `app_id/user_id`."""
    rows = {row.id: row for row in await ledger.read(streams.all_streams)}
    return {
        f"{app_id}/{rows[user].user_id}": [
            fax.fax_id for fax in await ledger.read(jobs.due, user, now, 1000)
        ]
        for app_id in sorted({row.app_id for row in rows.values()})
        for user in await ledger.read(jobs.streams_with_due, app_id, now)
    }


def _facts(
    connection: Connection, later: Callable[[str], timedelta], whole: Callable[[str], bool]
) -> Facts:
    held = fold.all_progress(connection)
    counts = _counts(connection)
    users: dict[str, Facts] = {}
    for row in streams.all_streams(connection):
        by = later(row.user_id)
        users[f"{row.app_id}/{row.user_id}"] = {
            **{name: _plain(getattr(row, name), by) for name in _USER},
            "coverage": [_plain(one, by) for one in held[row.id].coverage.intervals],
            "failed_slices": [_slice(one, by) for one in held[row.id].failed_slices],
            "faxes_by_state": dict(counts.get(row.id, {})),
        }
        if whole(row.user_id):
            users[f"{row.app_id}/{row.user_id}"] |= {
                "faxes": _faxes_of(connection, row.id, by),
                "backfills": _backfills_of(connection, row.id, by),
            }
    return {
        "meta": _meta(connection),
        "accounts": {
            row.app_id: {
                name: _plain(value, later(row.app_id))
                for name, value in vars(row).items()
                if name not in {"app_id", "sealed_token", "token_at", "token_ends_at"}
            }
            for row in accounts.all_accounts(connection)
        },
        "users": users,
    }


def _slice(failed: FailedSlice, by: timedelta) -> Facts:
    at = failed.next_attempt_at
    return {
        "interval": _plain(failed.interval, by),
        "failures": failed.failures,
        "next_attempt_at": "at once" if at.year == 1970 else _plain(at, by),
        "reason": failed.reason,
        "dismissed": failed.dismissed,
        "dismiss_reason": failed.dismiss_reason,
    }


def _fax(fax: FaxRow, history: Sequence[Attempt], by: timedelta) -> Facts:
    return {
        **{told: _plain(getattr(fax, name), by) for name, told in _FAX.items()},
        "history": [[_plain(one.at, by), one.outcome, one.error] for one in history],
    }


def _plain(value: Any, by: timedelta) -> Any:
    """Return the value as JSON would give it back."""
    if isinstance(value, datetime):
        return (value - by).isoformat()
    if isinstance(value, Interval):
        return [_plain(value.start, by), _plain(value.end, by)]
    return str(value) if isinstance(value, str) else value


def _counts(connection: Connection) -> dict[int, Counter[str]]:
    counts: dict[int, Counter[str]] = {}
    wanted = select(tables.faxes.c.stream, tables.faxes.c.state, func.count())
    grouped = wanted.group_by(tables.faxes.c.stream, tables.faxes.c.state)
    for user, state, count in connection.execute(grouped):
        counts.setdefault(user, Counter())[str(state)] = count
    return counts


def _faxes_of(connection: Connection, user: int, by: timedelta) -> Facts:
    held = tables.faxes.c
    ids = list(connection.scalars(select(held.id).where(held.stream == user)))
    rows = faxes.some(connection, ids)
    told = {row.fax_id: _fax(row, faxes.history(connection, row.id), by) for row in rows}
    assert len(told) == len(ids)
    return told


def _backfills_of(connection: Connection, user: int, by: timedelta) -> list[Facts]:
    held = tables.backfills.c
    ids = connection.scalars(select(held.id).where(held.stream == user).order_by(held.id)).all()
    asked = [backfills.one(connection, one) for one in ids]
    return [
        {
            "window": _plain(one.window, by),
            "rest": _plain(one.rest, by),
            "asked_at": _plain(one.asked_at, by),
            "done_at": _plain(one.done_at, by),
            "last_error": one.last_error,
            "not_listed": [[_plain(part, by), reason] for part, reason in one.not_listed],
            "found": vars(backfills.found(connection, one.id)),
        }
        for one in asked
    ]


def _meta(connection: Connection) -> Facts:
    rows = connection.execute(select(tables.meta))
    return {_META.get(name, name): value for name, value in rows}
