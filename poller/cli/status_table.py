"""`poller status` for people: problems first, then the accounts, the users, and what has to be named."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.table import Table
from rich.text import Text

from poller.cli.console import for_tables, say
from poller.cli.lookup import counted
from poller.config.values import size_text

_NARROW = 100
_BESIDES = 14  # lines of a terminal that are not for users


def print_status(shown: dict[str, Any]) -> None:
    console = for_tables()
    for problem in shown["problems"]:
        console.print(
            problem,
            style="bold red",
            markup=False,
            highlight=False,
            soft_wrap=not console.is_terminal,
        )
    if not shown["problems"]:
        console.print("All is well.", style="bold green")
    console.print(_headline(shown), style="dim", markup=False, highlight=False)
    suspended = {one["account"] for one in shown["accounts"] if one["suspended_until"]}
    states = [(_state(row, suspended), row) for row in shown["users"]]
    states.sort(key=lambda pair: (_RANKS[pair[0]], pair[1]["account"], pair[1]["user"]))
    # More would push the problems out of sight.
    room = max(10, console.height - _BESIDES - len(shown["problems"]))
    some = states[:room] if console.is_terminal else states
    for table in (_accounts(shown), _users(some, shown["at"])):
        table.padding = (0, 1 if console.width < _NARROW else 2, 0, 0)
        console.print()
        console.print(table)
    if len(some) < len(states):
        more = f"and {len(states) - len(some)} more users, {_summed(states[len(some) :])}"
        console.print(f"{more}; all of them: poller status | less", style="dim", highlight=False)
    lines = list(_lines(shown))
    if lines:
        console.print()
    for line in lines:
        say(console, line)


def _headline(shown: dict[str, Any]) -> str:
    free = shown["storage"]["free_bytes"]
    space = "" if free is None else f", {size_text(free)} free for faxes"
    return f"poller {shown['version']}, {'running' if shown['running'] else 'stopped'}{space}"


_STYLES = {
    "refused": "bold red",
    "suspended": "bold red",
    "damaged": "bold red",
    "quarantined": "bold red",
    "overdue": "bold red",
    "failing": "yellow",
    "gap": "yellow",
    "silent": "yellow",
    "new": "dim",
    "ok": "green",
    "removed": "dim",
}
_RANKS = {state: rank for rank, state in enumerate(_STYLES)}


def _state(row: Mapping[str, Any], suspended: set[str]) -> str:
    """The worst that can be said of a user, in a word."""
    if row["removed"]:
        return "removed"
    found = {
        "refused": row["refused"],
        "suspended": row["account"] in suspended,
        "damaged": row["damaged_files"],
        "quarantined": row["quarantined"],
        "overdue": row["overdue"] and row["last_poll_at"] is not None,
        "failing": row["last_error"] or row["failing"],
        "gap": row["failed_gaps"],
        "silent": row["silent_since"],
        "new": row["last_poll_at"] is None,
    }
    return next((state for state, holds in found.items() if holds), "ok")


def _summed(states: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    words = [state for state, _ in states]
    return ", ".join(f"{words.count(state)} {state}" for state in _STYLES if state in words)


def _accounts(shown: dict[str, Any]) -> Table:
    table = _table("account", "state", limit="limit", users="users", today="today", pending="pend")
    for one in shown["accounts"]:
        rows = [row for row in shown["users"] if row["account"] == one["account"]]
        at_work = [row for row in rows if not row["removed"]]
        state = "suspended" if one["suspended_until"] else "ok"
        limit = "" if one["limit"] is None else f"{one['limit']:g}/s"
        table.add_row(
            Text(one["account"]),
            Text(state, _STYLES[state]),
            limit,
            f"{len(at_work):,}",
            f"{sum(row['stored_today'] for row in rows):,}",
            f"{sum(row['pending'] for row in at_work):,}",
        )
    return table


def _users(states: Sequence[tuple[str, Mapping[str, Any]]], at: str) -> Table:
    table = _table(
        "user", "state", polled="polled", lag="lag", today="today", stored="stored",
        pending="pend", quarantined="quar", gaps="gaps",
    )  # fmt: skip
    for state, row in states:
        table.add_row(
            Text(f"{row['account']}/{row['user']}"),
            Text(state, _STYLES[state]),
            _ago(row["last_poll_at"], at),
            "" if row["lag_s"] is None else _brief(row["lag_s"]),
            f"{row['stored_today']:,}",
            f"{row['stored']:,}",
            f"{row['pending']:,}",
            Text(f"{row['quarantined']:,}", "bold red" if row["quarantined"] else ""),
            Text(str(len(row["gaps"])), "yellow" if row["failed_gaps"] else ""),
        )
    return table


def _table(*texts: str, **numbers: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in texts:
        table.add_column(name, overflow="fold")
    for name in numbers.values():
        table.add_column(name, no_wrap=True, justify="right")
    return table


def _ago(instant: str | None, at: str) -> str:
    if instant is None:
        return "never"
    return _brief((datetime.fromisoformat(at) - datetime.fromisoformat(instant)).total_seconds())


def _brief(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"


def _lines(shown: dict[str, Any]) -> Iterator[str]:
    """What has to be named: faxes in trouble, backfills that wait, gaps that nobody tries any more."""
    for kind in ("quarantined", "failing"):
        for fax in shown[f"{kind}_faxes"]:
            kept = f"  evidence: {fax['evidence']}" if fax["evidence"] else ""
            yield f"{kind} since {_short(fax['since'])}  {_name(fax)}  {fax['error']}{kept}"
    for fax in shown["damaged_faxes"]:
        yield f"damaged  {_name(fax)}  {fax['path']}: {fax['why']}"
    yield from _came_damaged(shown)
    for row in shown["users"]:
        for start, end in row["backfills"]:
            why = f"  {row['backfill_error']}" if row["backfill_error"] else ""
            yield f"waiting backfill  {row['account']}/{row['user']}  {start} to {end}{why}"
        for gap in row["dismissed_gaps"]:
            why = f"  {gap['reason']}" if gap["reason"] else ""
            who = f"{row['account']}/{row['user']}"
            yield f"dismissed gap  {who}  {gap['from']} to {gap['to']}{why}"


def _came_damaged(shown: dict[str, Any]) -> Iterator[str]:
    """It is no trouble that can be mended, and never over: so it is no problem of the service."""
    counts = {f"{row['account']}/{row['user']}": row["damaged"] for row in shown["users"]}
    who = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
    if who:
        total = sum(counts.values())
        kept = "is kept as it came" if total == 1 else "are kept as they came"
        directory = shlex.quote(shown["storage"]["directory"])
        yield f"{counted(total, 'fax', 'faxes')} came damaged from eFax and {kept}: {who}. To find them:"
        yield f"  grep -rl --include='*.json' '\"damaged\": true' {directory}"
        yield "  `poller explain FAX_ID` says what is wrong; so does `fax-damaged` in the log."


def _name(fax: dict[str, Any]) -> str:
    return f"{fax['account']}/{fax['user']}/{fax['fax_id']}"


def _short(instant: str | None) -> str:
    return "never" if instant is None else f"{instant[:10]} {instant[11:19]}"
