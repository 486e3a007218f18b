"""Single values that the ledger keeps by name; every function runs in its caller's transaction."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, select, update

from poller.ledger import users
from poller.ledger.tables import meta

STORAGE_ID = "storage_id"
RUNTIME_REPORT = "verdict"  # its name in the ledgers of earlier versions
_EDITS = "gap_edits"
_STARTED = "started_at"
_ALIVE = "alive_at"


def lists(app_id: str) -> str:
    """Name what is known of an account's lists."""
    return f"lists:{app_id}"


def value(connection: Connection, name: str) -> str | None:
    """Return what is kept under this name."""
    held: str | None = connection.scalar(select(meta.c.value).where(meta.c.name == name))
    return held


def keep(connection: Connection, name: str, wanted: Callable[[str | None], str]) -> None:
    """Keep what `wanted` makes of the value held so far."""
    held = value(connection, name)
    if held is None:
        connection.execute(meta.insert().values(name=name, value=wanted(None)))
    else:
        connection.execute(update(meta).where(meta.c.name == name).values(value=wanted(held)))


def write_check(connection: Connection, now: datetime | None) -> None:
    """Write a little, and `now` as a sign of life."""
    keep(connection, "write_check", _next_count)
    if now is not None:
        keep(connection, _ALIVE, lambda _: now.astimezone(UTC).isoformat())


def edits(connection: Connection) -> str | None:
    """Return a value that changes with every edit that a running daemon has to notice."""
    return value(connection, _EDITS)


def edited(connection: Connection, count: int) -> int:
    """Note that an operator has edited so many things; returns the same."""
    if count:
        keep(connection, _EDITS, _next_count)
    return count


def checked(connection: Connection) -> tuple[datetime | None, str | None]:
    """Return when the ledger was last checked through, and what was wrong with it."""
    at = value(connection, "checked_at")
    problem = value(connection, "problem") or None
    return (None if at is None else datetime.fromisoformat(at)), problem


def set_checked(connection: Connection, now: datetime, problem: str | None) -> None:
    keep(connection, "checked_at", lambda _: now.astimezone(UTC).isoformat())
    keep(connection, "problem", lambda _: problem or "")


def note_downtime(connection: Connection, now: datetime, longer_than: timedelta) -> None:
    """Note this start, and stop the give-up clocks for the time since the last sign of life.

    Not since the last poll alone: a schedule may have none for days.
    """
    noted = [value(connection, name) for name in (_STARTED, _ALIVE)]
    signs = [datetime.fromisoformat(sign) for sign in noted if sign is not None]
    users.note_downtime(connection, max(signs, default=None), now, longer_than)
    keep(connection, _STARTED, lambda _: now.astimezone(UTC).isoformat())


def _next_count(held: str | None) -> str:
    return str(int(held or 0) + 1)
