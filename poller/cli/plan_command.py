"""`poller plan`: the next polls, their requests per hour against each limit, and warnings."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from poller import plan as planning
from poller import schedule
from poller.cli import bootstrap
from poller.cli.console import answer, for_tables, say, table
from poller.cli.lookup import listed, name_of
from poller.config.model import Account, Config, User
from poller.errors import PollerError
from poller.hook_record import HookRecord
from poller.ledger import streams
from poller.plan import Demand
from poller.status import kept_hooks

_HOUR_S = 3600.0
_NEXT = 3


def plan(paths: Sequence[Path], *, as_json: bool) -> int:
    """Print the plan as tables, warnings first, or as JSON; with or without a daemon or a ledger."""
    settings = bootstrap.load(paths)
    measured, why_not = asyncio.run(_measured(settings))
    shown = planned(settings, measured, bootstrap.now()) | {"lateness_unknown": why_not}
    answer(shown, lambda: _print(shown), as_json=as_json, indent=2)
    return 0


@dataclass(frozen=True)
class Measured:
    """How late faxes became visible, by (app_id, user_id), and how web-hooks do, by App ID."""

    late: Mapping[tuple[str, str], timedelta] = field(default_factory=dict)
    hooks: Mapping[str, HookRecord] = field(default_factory=dict)


async def _measured(settings: Config) -> tuple[Measured, str | None]:
    """Read the measurements; also return why they cannot be read, if so."""
    try:
        async with bootstrap.ledger_beside(settings, readonly=True) as ledger:
            rows = await ledger.read(streams.all_streams, include_removed=False)
            hooks = await kept_hooks(ledger, settings.accounts)
    except PollerError as error:
        return Measured(), str(error)
    late = {(row.app_id, row.user_id): timedelta(seconds=row.late_max_s) for row in rows}
    return Measured(late, hooks), None


def planned(settings: Config, measured: Measured, now: datetime) -> dict[str, Any]:
    """Return the whole plan in the form of `--json`; times by this machine's clock."""
    accounts, users = [], []
    for account in settings.accounts:
        limit = account.limits.requests_per_second
        asked = planning.demand([user.poll for user in account.users], limit, now)
        accounts.append(_account(account, asked) | {"hints": _hints(account, measured, now)})
        for user in account.users:
            late = measured.late.get((user.app_id, user.user_id), timedelta(0))
            users.append(_user(user, asked, late, now))
    return {
        "accounts": accounts,
        "users": users,
        "warnings": _of_all([*accounts, *users], "warnings"),
        "hints": _of_all(accounts, "hints"),
    }


def _hints(account: Account, measured: Measured, now: datetime) -> list[str]:
    record = measured.hooks.get(account.app_id)
    if record is None or not record.has_worked(now):
        return []
    hint = planning.hook_hint([user.poll for user in account.users])
    return [] if hint is None else [hint]


def _of_all(rows: Sequence[dict[str, Any]], key: str) -> list[str]:
    """Put users with the same sentence on one line; a thousand users still need few lines."""
    who: dict[str, list[str]] = {}
    for row in rows:
        for sentence in row[key]:
            who.setdefault(sentence, []).append(name_of(row))
    return [f"{listed(names)}: {sentence}" for sentence, names in who.items()]


def _account(account: Account, asked: Demand) -> dict[str, Any]:
    return {
        "account": account.name,
        "users": len(account.users),
        "limit_per_hour": round(account.limits.requests_per_second * _HOUR_S, 1),
        "lists_limit_per_hour": round(asked.limit * _HOUR_S, 1),
        "asked_per_hour": round(asked.asked * _HOUR_S, 1),
        "planned_per_hour": round(asked.planned * _HOUR_S, 1),
        "factor": round(asked.factor, 4),
        "warnings": list(planning.account_warnings(asked)),
    }


def _user(user: User, asked: Demand, late: timedelta, now: datetime) -> dict[str, Any]:
    poll = user.poll
    return {
        "account": user.account,
        "user": user.name,
        "every_s": None if poll.every is None else poll.every.total_seconds(),
        "cron": poll.cron,
        "timezone": None if poll.cron is None else poll.timezone.key,
        "interval_s": planning.interval_of(poll, asked.factor, now).total_seconds(),
        "overlap_s": poll.overlap.total_seconds(),
        "late_s": late.total_seconds(),
        "next_polls": _next_polls(user, asked.factor, now),
        **_next_canary(user, now),
        "warnings": list(planning.user_warnings(poll, asked.factor, late, now)),
    }


def _next_polls(user: User, factor: float, now: datetime) -> list[datetime]:
    times = [now]
    for _ in range(_NEXT):
        identity = schedule.identity(user.app_id, user.user_id)
        times.append(schedule.next_poll(user.poll, identity, times[-1], factor))
    return times[1:]


def _next_canary(user: User, now: datetime) -> dict[str, datetime]:
    """Return an empty dict for users without a canary."""
    if user.canary is None:
        return {}
    grid = schedule.canary_grid(user.canary, schedule.identity(user.app_id, user.user_id))
    return {"next_canary": schedule.next_poll(*grid, now)}


def _print(shown: dict[str, Any]) -> None:
    console = for_tables()
    for warning in shown["warnings"]:
        say(warning, "bold red")
    for hint in shown["hints"]:
        say(hint)
    accounts = {
        "account": name_of,
        "users": lambda row: str(row["users"]),
        "limit an hour": lambda row: f"{row['limit_per_hour']:,.0f}",
        "for lists": lambda row: f"{row['lists_limit_per_hour']:,.0f}",
        "asked": lambda row: f"{row['asked_per_hour']:,.0f}",
        "planned": lambda row: f"{row['planned_per_hour']:,.0f}",
        "factor": lambda row: f"{row['factor']:.2f}",
    }
    users = {
        "user": name_of,
        "schedule": _schedule,
        "interval": lambda row: _spelled(row["interval_s"]),
        "overlap": lambda row: _spelled(row["overlap_s"]),
        "late by": lambda row: _spelled(row["late_s"]) if row["late_s"] else "",
        "next poll": lambda row: _shown(row["next_polls"][0]),
    }
    if any("next_canary" in row for row in shown["users"]):
        users["next canary"] = lambda row: (
            _shown(row["next_canary"]) if "next_canary" in row else ""
        )
    console.print(table(shown["accounts"], accounts, texts=1))
    console.print()
    console.print(
        table(shown["users"], users, texts=2, style=lambda row: "red" if row["warnings"] else "")
    )
    console.print("The requests are lists, including sweeps; each fax adds one for its image.")
    if shown["lateness_unknown"] is not None:
        say(f"Not known yet how late faxes become visible: {shown['lateness_unknown']}.")


def _shown(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def _schedule(row: dict[str, Any]) -> str:
    if row["cron"] is None:
        return f"every {_spelled(row['every_s'])}"
    return f"{row['cron']} {row['timezone']}"


def _spelled(seconds: float) -> str:
    return planning.spelled(timedelta(seconds=seconds))
