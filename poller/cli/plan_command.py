"""`poller plan`: when the next polls are, what they ask of each limit, and what is wrong with it."""

import asyncio
import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from rich.table import Table

from poller import plan, schedule
from poller.cli import bootstrap
from poller.cli.console import for_tables, say
from poller.config.model import Account, Config, User
from poller.errors import PollerError
from poller.ledger import streams
from poller.plan import Demand
from poller.status import instant

_HOUR_S = 3600.0
_NEXT = 3
_NAMED = 3


def show_plan(paths: Sequence[Path], *, as_json: bool) -> int:
    """Print the plan as tables, warnings first, or as JSON; with or without a daemon or a ledger."""
    settings = bootstrap.load(paths)
    late, why_not = asyncio.run(_lateness(settings))
    shown = planned(settings, late, bootstrap.now()) | {"lateness_unknown": why_not}
    if as_json:
        print(json.dumps(shown, indent=2))
    else:
        _print(shown)
    return 0


async def _lateness(settings: Config) -> tuple[dict[tuple[str, str], timedelta], str | None]:
    """Read how late faxes became visible, by (app_id, user_id); why not, where that cannot be had."""
    try:
        async with bootstrap.ledger_beside(settings, readonly=True) as ledger:
            rows = await ledger.read(streams.all_streams, include_removed=False)
    except PollerError as error:
        return {}, str(error)
    return {(row.app_id, row.user_id): timedelta(seconds=row.late_max_s) for row in rows}, None


def planned(
    settings: Config, late: dict[tuple[str, str], timedelta], now: datetime
) -> dict[str, Any]:
    """Work out the whole plan, as `--json` shows it; times by this machine's clock."""
    accounts, users = [], []
    for account in settings.accounts:
        limit = account.limits.requests_per_second
        asked = plan.demand([user.poll for user in account.users], limit, now)
        accounts.append(_account(account, asked))
        for user in account.users:
            measured = late.get((user.app_id, user.user_id), timedelta(0))
            users.append(_user(user, asked, measured, now))
    return {"accounts": accounts, "users": users, "warnings": _warnings([*accounts, *users])}


def _warnings(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Who shares a warning shares its line, so that a thousand users are still a few lines."""
    who: dict[str, list[str]] = {}
    for row in rows:
        name = f"{row['account']}/{row['user']}" if "user" in row else row["account"]
        for warning in row["warnings"]:
            who.setdefault(warning, []).append(name)
    return [f"{_names(names)}: {warning}" for warning, names in who.items()]


def _names(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _account(account: Account, asked: Demand) -> dict[str, Any]:
    return {
        "account": account.name,
        "users": len(account.users),
        "limit_per_hour": round(account.limits.requests_per_second * _HOUR_S, 1),
        "lists_limit_per_hour": round(asked.limit * _HOUR_S, 1),
        "asked_per_hour": round(asked.asked * _HOUR_S, 1),
        "planned_per_hour": round(asked.planned * _HOUR_S, 1),
        "factor": round(asked.factor, 4),
        "warnings": list(plan.account_warnings(asked)),
    }


def _user(user: User, asked: Demand, late: timedelta, now: datetime) -> dict[str, Any]:
    poll = user.poll
    return {
        "account": user.account,
        "user": user.name,
        "every_s": None if poll.every is None else poll.every.total_seconds(),
        "cron": poll.cron,
        "timezone": None if poll.cron is None else poll.timezone.key,
        "interval_s": plan.interval_of(poll, asked.factor, now).total_seconds(),
        "overlap_s": poll.overlap.total_seconds(),
        "late_s": late.total_seconds(),
        "next_polls": [instant(at) for at in _next_polls(user, asked.factor, now)],
        "warnings": list(plan.user_warnings(poll, asked.factor, late, now)),
    }


def _next_polls(user: User, factor: float, now: datetime) -> list[datetime]:
    times = [now]
    for _ in range(_NEXT):
        identity = f"{user.app_id}/{user.user_id}"
        times.append(schedule.next_poll(user.poll, identity, times[-1], factor))
    return times[1:]


def _print(shown: dict[str, Any]) -> None:
    console = for_tables()
    for warning in shown["warnings"]:
        say(console, warning, "bold red")
    table = _table("account", "users", "limit an hour", "for lists", "asked", "planned", "factor")
    for row in shown["accounts"]:
        names = ("limit_per_hour", "lists_limit_per_hour", "asked_per_hour", "planned_per_hour")
        figures = [f"{row[name]:,.0f}" for name in names]
        table.add_row(row["account"], str(row["users"]), *figures, f"{row['factor']:.2f}")
    console.print(table)
    console.print()
    table = _table("user", "schedule", "interval", "overlap", "late by", "next poll", left=2)
    for row in shown["users"]:
        table.add_row(*_cells(row), style="red" if row["warnings"] else "")
    console.print(table)
    console.print("Requests are lists, sweeps included; images come beside them, as faxes do.")
    if shown["lateness_unknown"] is not None:
        said = f"How late faxes become visible is not known yet: {shown['lateness_unknown']}."
        say(console, said)


def _table(*names: str, left: int = 1) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for place, name in enumerate(names):
        table.add_column(name, no_wrap=True, justify="left" if place < left else "right")
    return table


def _cells(row: dict[str, Any]) -> list[str]:
    every = None if row["every_s"] is None else timedelta(seconds=row["every_s"])
    at = row["next_polls"][0]
    return [
        f"{row['account']}/{row['user']}",
        f"{row['cron']} {row['timezone']}" if every is None else f"every {plan.spelled(every)}",
        plan.spelled(timedelta(seconds=row["interval_s"])),
        plan.spelled(timedelta(seconds=row["overlap_s"])),
        plan.spelled(timedelta(seconds=row["late_s"])) if row["late_s"] else "",
        f"{at[:10]} {at[11:19]}",
    ]
