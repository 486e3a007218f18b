"""`poller status` for people: problems first, then accounts, users and faxes in trouble."""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from poller.cli.console import for_tables, say, table
from poller.cli.lookup import counted, name_of
from poller.config.values import size_text
from poller.status import by_stream
from poller.topic import see

_NARROW = 100
_BESIDES = 14  # lines of the terminal that other parts need


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
    catching_up = [one for one in shown["accounts"] if one["catching_up"]]
    if not shown["problems"]:
        if catching_up:
            console.print("Catching up; nothing is wrong.", style=f"bold {_CALM}")
        else:
            console.print("All is well.", style="bold green")
    for account in catching_up:
        _print_catching_up(console, account)
    console.print(_headline(shown), style="dim", markup=False, highlight=False)
    suspended = {one["account"] for one in shown["accounts"] if one["suspended_until"]}
    users = [row | {"state": _state(row, suspended)} for row in by_stream(shown)]
    users.sort(key=lambda row: (_RANKS[row["state"]], row["account"], row["user"]))
    # More lines would push the problems off the screen.
    room = max(10, console.height - _BESIDES - len(shown["problems"]))
    some = users[:room] if console.is_terminal else users
    for made in (_accounts(shown), _users(some, shown["at"])):
        made.padding = (0, 1 if console.width < _NARROW else 2, 0, 0)
        console.print()
        console.print(made)
    if len(some) < len(users):
        words = [row["state"] for row in users[len(some) :]]
        summed = ", ".join(f"{words.count(one)} {one}" for one in _STYLES if one in words)
        more = f"and {len(words)} more users, {summed}"
        console.print(f"{more}; all of them: poller status | less", style="dim", highlight=False)
    lines = list(_lines(shown))
    if lines:
        console.print()
    for line in lines:
        say(line)


def _print_catching_up(console: Console, account: "Row") -> None:
    done, left = account["catching_up"]["done"], account["catching_up"]["left"]
    console.print(
        see(
            f"Account {account['account']} is catching up, "
            f"{_how_long(account['catching_up']['seconds'])}: {done:,} of {done + left:,} requests are done.",
            "catching-up",
        ),
        style=_CALM,
        markup=False,
        highlight=False,
        soft_wrap=not console.is_terminal,
    )
    full = _BAR * done // (done + left)
    console.print(Text("█" * full + "░" * (_BAR - full), _CALM))


def _how_long(seconds: float | None) -> str:
    if seconds is None:
        return "for an unknown time"
    if seconds < _MINUTE_S:
        return "less than a minute"
    minutes = round(seconds / _MINUTE_S)
    if minutes < 2 * _MINUTE_S:
        return f"about {counted(minutes, 'minute', 'minutes')}"
    return f"about {round(seconds / _MINUTE_S**2)} hours"


def _is_bucket(shown: dict[str, Any]) -> bool:
    return str(shown["storage"]["directory"]).startswith("s3://")


def _headline(shown: dict[str, Any]) -> str:
    free = shown["storage"]["free_bytes"]
    where = "on this machine" if _is_bucket(shown) else "for faxes"
    space = "" if free is None else f", {size_text(free)} free {where}"
    running = "running" if shown["running"] else "stopped"
    if shown["nodes"]:
        summary = shown["nodes"]["summary"].rstrip(".")
        running = summary[0].lower() + summary[1:]
    return f"poller {shown['version']}, {running}{space}"


Row = Mapping[str, Any]
Cell = Callable[[Row], str | Text]
_BAD, _WARNING, _CALM = "bold red", "yellow", "blue"
_MINUTE_S = 60
_BAR = 40  # columns
# The worst first: a user's state in a word, its style, and when it applies.
_STATES: tuple[tuple[str, str, Callable[[Row], Any]], ...] = (
    ("refused", _BAD, lambda row: row["refused"]),
    ("suspended", _BAD, lambda row: row["suspended"]),
    ("damaged", _BAD, lambda row: row["damaged_files"]),
    ("unreadable", _BAD, lambda row: row["unreadable_files"]),
    ("quarantined", _BAD, lambda row: row["quarantined"]),
    (
        "overdue",
        _BAD,
        lambda row: row["overdue"] and row["last_poll_at"] is not None and not row["lists_left"],
    ),
    ("failing", _WARNING, lambda row: row["last_error"] or row["failing"]),
    ("gap", _WARNING, lambda row: row["failed_gaps"]),
    ("silent", _WARNING, lambda row: row["silent_since"]),
    ("catching up", _CALM, lambda row: row["lists_left"]),
    ("new", "dim", lambda row: row["last_poll_at"] is None),
    ("ok", "green", lambda _: True),
    ("removed", "dim", lambda _: True),
)
_STYLES = {state: style for state, style, _ in _STATES}
_RANKS = {state: rank for rank, state in enumerate(_STYLES)}


def _state(row: Row, suspended: set[str]) -> str:
    """Return the worst state of a user, in a word."""
    if row["removed"]:
        return "removed"
    row = {**row, "suspended": row["account"] in suspended}
    return next(state for state, _, holds in _STATES if holds(row))


def _accounts(shown: dict[str, Any]) -> Table:
    def users(account: Row) -> list[Row]:
        mine = (row for row in shown["users"] if row["account"] == account["account"])
        return [row for row in mine if not row["removed"]]

    def stored_today(account: Row) -> str:
        rows = (row for row in shown["users"] if row["account"] == account["account"])
        return f"{sum(row['stored_today'] for row in rows):,}"

    columns: dict[str, Cell] = {
        "account": name_of,
        "state": lambda one: _styled(_account_state(one)),
        **({"node": lambda one: one["node"] or ""} if shown["node"] else {}),
        "limit": lambda one: "" if one["limit"] is None else f"{one['limit']:g}/s",
        "users": lambda one: f"{len(users(one)):,}",
        "today": stored_today,
        "new/h": lambda one: _known(one["discovered_per_hour"]),
        "stored/h": lambda one: _known(one["stored_per_hour"]),
        "pend": lambda one: f"{one['pending']:,}",
        "takes": lambda one: _brief(one["pending_s"]) if one["pending_s"] is not None else "?",
    }
    return table(shown["accounts"], columns, texts=3 if shown["node"] else 2)


def _account_state(account: Row) -> str:
    if account["suspended_until"]:
        return "suspended"
    return "catching up" if account["catching_up"] else "ok"


def _known(count: int | None) -> str:
    return "?" if count is None else f"{count:,}"


def _users(rows: Sequence[Row], at: str) -> Table:
    columns: dict[str, Cell] = {
        "user": name_of,
        "state": lambda row: _styled(row["state"]),
        "polled": lambda row: ago(row["last_poll_at"], at, "–" if row["lists_left"] else "never"),
        "lag": lambda row: "" if row["lag_s"] is None else _brief(row["lag_s"]),
        "today": lambda row: f"{row['stored_today']:,}",
        "stored": lambda row: f"{row['stored']:,}",
        "pend": lambda row: f"{row['pending']:,}",
        "quar": lambda row: Text(f"{row['quarantined']:,}", _BAD if row["quarantined"] else ""),
        "gaps": lambda row: Text(str(len(row["gaps"])), _WARNING if row["failed_gaps"] else ""),
    }
    return table(rows, columns, texts=2)


def _styled(state: str) -> Text:
    return Text(state, _STYLES[state])


def ago(instant: str | None, at: str, otherwise: str) -> str:
    if instant is None:
        return otherwise
    return _brief((datetime.fromisoformat(at) - datetime.fromisoformat(instant)).total_seconds())


def _brief(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"


def _lines(shown: dict[str, Any]) -> Iterator[str]:
    """Yield the details: faxes in trouble, waiting backfills, dismissed gaps."""
    for kind in ("quarantined", "failing"):
        for fax in shown[f"{kind}_faxes"]:
            kept = f"  evidence: {fax['evidence']}" if fax["evidence"] else ""
            yield f"{kind} since {_short(fax['since'])}  {name_of(fax)}  {fax['error']}{kept}"
    for what in ("damaged", "unreadable"):
        for fax in shown[f"{what}_faxes"]:
            yield f"{what}  {name_of(fax)}  {fax['path']}: {fax['why']}"
    yield from _came_damaged(shown)
    for row in by_stream(shown):
        for start, end in row["backfills"]:
            why = f"  {row['backfill_error']}" if row["backfill_error"] else ""
            yield f"waiting backfill  {name_of(row)}  {start} to {end}{why}"
        for gap in row["dismissed_gaps"]:
            why = f"  {gap['reason']}" if gap["reason"] else ""
            yield f"dismissed gap  {name_of(row)}  {gap['from']} to {gap['to']}{why}"


def _came_damaged(shown: dict[str, Any]) -> Iterator[str]:
    """Yield the faxes that came damaged; nobody can repair them, so they are not a problem sentence."""
    counts = {name_of(row): row["damaged"] for row in by_stream(shown)}
    who = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
    if who:
        total = sum(counts.values())
        kept = "is stored as received" if total == 1 else "are stored as received"
        yield f"{counted(total, 'fax', 'faxes')} came damaged from eFax and {kept}: {who}. To find them:"
        if not _is_bucket(shown):
            directory = shlex.quote(shown["storage"]["directory"])
            yield f"  grep -rl --include='*.json' '\"damaged\": true' {directory}"
        yield "  `poller explain FAX_ID` and the log event `fax-damaged` say what is wrong."


def _short(instant: str | None) -> str:
    return "never" if instant is None else f"{instant[:10]} {instant[11:19]}"
