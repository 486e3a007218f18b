"""Single values that the ledger keeps by name."""

from datetime import UTC, datetime

from sqlalchemy import Connection, delete, select, update
from sqlalchemy.exc import IntegrityError

from poller.ledger.tables import meta

STORAGE_ID = "storage_id"  # the marker file of the storage must have this id
RUNTIME_REPORT = "verdict"  # what only the service knows, for commands that look from outside


def value(connection: Connection, name: str) -> str | None:
    """Return the value with this name."""
    held: str | None = connection.scalar(select(meta.c.value).where(meta.c.name == name))
    return held


def keep(connection: Connection, name: str, wanted: str) -> None:
    """Keep `wanted` under this name."""
    changed = connection.execute(update(meta).where(meta.c.name == name).values(value=wanted))
    if changed.rowcount == 0:
        try:
            with connection.begin_nested():
                connection.execute(meta.insert().values(name=name, value=wanted))
        except IntegrityError:  # another node was faster
            keep(connection, name, wanted)


def of_node(name: str, node: str) -> str:
    """Return under which name a node of several keeps this value."""
    return f"{name}:{node}" if node else name


def begin(connection: Connection, storage_id: str, lost_at: datetime | None) -> None:
    """Keep the storage's id; with `lost_at`, it holds faxes of a ledger that was gone by then."""
    keep(connection, STORAGE_ID, storage_id)
    if lost_at is not None:
        _keep_instant(connection, "lost_at", lost_at)


def lost_at(connection: Connection) -> datetime | None:
    """Return when this ledger replaced a lost one, unless it has been rebuilt since."""
    return _instant(connection, "lost_at")


def rebuilt(connection: Connection) -> None:
    """Note that this ledger knows what the storage contains."""
    connection.execute(delete(meta).where(meta.c.name == "lost_at"))


def _count(connection: Connection, name: str) -> None:
    keep(connection, name, str(int(value(connection, name) or 0) + 1))


def _instant(connection: Connection, name: str) -> datetime | None:
    held = value(connection, name)
    return None if held is None else datetime.fromisoformat(held)


def _keep_instant(connection: Connection, name: str, at: datetime) -> None:
    keep(connection, name, at.astimezone(UTC).isoformat())


def write_check(connection: Connection, now: datetime | None, node: str = "") -> None:
    """Write a little, and `now` as a sign of life; each node of several has its own row."""
    _count(connection, of_node("write_check", node))
    if now is not None:
        _keep_instant(connection, "alive_at", now)


def set_started(connection: Connection, now: datetime) -> None:
    _keep_instant(connection, "started_at", now)


def last_sign_of_life(connection: Connection) -> datetime | None:
    """Return when the ledger last got a sign of life: from a start or a check."""
    signs = [_instant(connection, name) for name in ("started_at", "alive_at")]
    return max((sign for sign in signs if sign is not None), default=None)


def edits(connection: Connection) -> str | None:
    """Return a value that changes with every edit of gaps and every requested backfill."""
    return value(connection, "gap_edits")


def edited(connection: Connection, count: int) -> int:
    """Note that an operator has edited this many things; return the same number."""
    if count:
        _count(connection, "gap_edits")
    return count


def checked(connection: Connection) -> tuple[datetime | None, str | None]:
    """Return when the ledger was last checked through, and what was wrong with it."""
    return _instant(connection, "checked_at"), value(connection, "problem") or None


def set_checked(connection: Connection, now: datetime, problem: str | None) -> None:
    _keep_instant(connection, "checked_at", now)
    keep(connection, "problem", problem or "")
