"""The ledger that the release before revision 0006 left, at any size; see `tests/data/upgrade`.

Plain SQL in the tables of that release, so that no change of ours affects it.
"""

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent.parent / "data" / "upgrade"
FACTS: dict[str, Any] = json.loads((DATA / "facts.json").read_text())
MADE_AT = datetime.fromisoformat(FACTS["made_at"])
_APART = 10_000  # between the ids of two copies


def make(path: Path, *, copies: int = 0, later: timedelta = timedelta(0)) -> Path:
    """Make it with more copies of all its users, and with all times this much later.

    The n-th copy has `~n` after a user's id and name and `n/` before each path, and all its times
    are n microseconds later than in the first; the fax ids are the same.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, isolation_level=None)) as ledger:
        ledger.executescript(f"PRAGMA synchronous=OFF; {(DATA / 'ledger.sql').read_text()}")
        ledger.execute("BEGIN")
        for table, columns in _tables(ledger):
            if times := [name for name, kind in columns if _is_time(name, kind)]:
                moved = ", ".join(f'"{name}" = {_later(table, name, ":later")}' for name in times)
                ledger.execute(f"UPDATE {table} SET {moved}", {"later": _microseconds(later)})
            if table not in ("meta", "accounts"):
                ledger.execute(_copied(table, columns), {"copies": copies})
        ledger.execute("COMMIT")
        assert ledger.execute("PRAGMA foreign_key_check").fetchall() == []
    path.chmod(0o600)
    return path


def copied(source: Path, directory: Path) -> Path:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Path(shutil.copy(source, directory / "poller.db"))


def without_the_newest_migration(path: Path) -> None:
    """Take back revision 0005, which is one index, so that a migration is due today as well.

    Also remove free pages, which a rolled-back transaction need not restore.
    """
    with closing(sqlite3.connect(path, isolation_level=None)) as ledger:
        ledger.execute("DROP INDEX ix_faxes_folded_path")
        ledger.execute("UPDATE alembic_version SET version_num = '0004'")
        ledger.execute("VACUUM")


def copy_of(user_id: str) -> tuple[str, int]:
    """Return which user it is, and of which copy."""
    plain, _, number = user_id.partition("~")
    return plain, int(number or 0)


def _tables(ledger: sqlite3.Connection) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Each table after those that it refers to, with names and types of its columns."""
    for table in (
        *("meta", "accounts", "users", "coverage", "failed_slices"),
        *("backfills", "backfill_failures", "faxes", "attempts"),
    ):
        rows = ledger.execute(f"PRAGMA table_info({table})").fetchall()
        yield table, [(name, kind) for _, name, kind, *_ in rows]


def _is_time(name: str, kind: str) -> bool:
    return kind == "BIGINT" and name != "bytes"


def _copied(table: str, columns: list[tuple[str, str]]) -> str:
    names = ", ".join(f'"{name}"' for name, _ in columns)
    values = ", ".join(_value(table, name, kind) for name, kind in columns)
    return (
        "WITH RECURSIVE copy (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM copy WHERE n < :copies) "
        f"INSERT INTO {table} ({names}) SELECT {values} FROM copy, {table} WHERE :copies > 0"
    )


def _value(table: str, name: str, kind: str) -> str:
    if name in ("id", "user", "fax", "backfill", "after_fax"):
        return f'"{name}" + n * {_APART}'
    if table == "users" and name in ("user_id", "name"):
        return f"{name} || '~' || n"
    if name in ("path", "file"):
        return f"n || '/' || {name}"
    return _later(table, name, "n") if _is_time(name, kind) else f'"{name}"'


def _later(table: str, name: str, by: str) -> str:
    if (table, name) == ("failed_slices", "next_attempt_at"):  # 0 means at once
        return f"CASE {name} WHEN 0 THEN 0 ELSE {name} + {by} END"
    return f'"{name}" + {by}'


def _microseconds(span: timedelta) -> int:
    return span // timedelta(microseconds=1)
