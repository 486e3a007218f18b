"""Connections to the file: their settings, and what their errors mean."""

import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from sqlalchemy import URL, Connection, create_engine, event
from sqlalchemy.pool import QueuePool

from poller.errors import LedgerBroken, LedgerUnavailable
from poller.ledger.database import Database

BUSY_TIMEOUT_S = 5.0  # for a lock that another program holds
_READERS = 3
_READERS_CACHE_KIB = 512  # instead of SQLite's 2 MiB; each commit of the writer empties it anyway
_SERIALIZED = 3  # DB-API: threads may share the module, connections and cursors

# SQLite's defaults can lose an acknowledged commit at a power failure: it deletes its journal, and
# that deletion may not have reached the disk. EXTRA also syncs the directory.
_PRAGMAS: dict[str, str | int] = {"journal_mode": "truncate", "synchronous": 3, "foreign_keys": 1}

SENTENCES = {
    "SQLITE_BUSY": "is locked by another program",
    "SQLITE_LOCKED": "is locked by another program",
    "SQLITE_READONLY": "cannot be written (read-only, moved away, or owned by another user)",
    "SQLITE_FULL": "cannot grow: the disk is full",
    "SQLITE_IOERR": "cannot be used: the disk reports an error",
    "SQLITE_CANTOPEN": "cannot be opened",
    "SQLITE_PERM": "cannot be opened: permission denied",
    "SQLITE_AUTH": "cannot be opened: permission denied",
    "SQLITE_CORRUPT": "is damaged; `poller rebuild` makes a new one and keeps this one aside",
    "SQLITE_NOTADB": "is damaged; `poller rebuild` makes a new one and keeps this one aside",
}

_DAMAGE = ("SQLITE_CORRUPT", "SQLITE_NOTADB")
# errors in our statements or values; all others concern the database
_BUGS = (
    "SQLITE_ERROR",
    "SQLITE_CONSTRAINT",
    "SQLITE_MISMATCH",
    "SQLITE_MISUSE",
    "SQLITE_RANGE",
    "SQLITE_TOOBIG",
)


def name_of(error: BaseException | None) -> str:
    """Return SQLite's name of an error, such as `SQLITE_IOERR_WRITE`; empty if it has none."""
    return getattr(error, "sqlite_errorname", None) or ""


def sentence(path: Path, error: BaseException) -> str:
    """Describe a database error in one sentence, without the statement and its values."""
    name = name_of(error)
    for prefix, meaning in SENTENCES.items():
        if name == prefix or name.startswith(prefix + "_"):
            return f"the ledger {path} {meaning}"
    return f"the ledger {path} does not answer ({name or type(error).__name__})"


def unavailable(path: Path, error: BaseException) -> LedgerUnavailable:
    broken = name_of(error).startswith(_DAMAGE)
    return (LedgerBroken if broken else LedgerUnavailable)(sentence(path, error))


def trouble(path: Path, error: BaseException) -> LedgerUnavailable | None:
    """Return what is wrong with the whole database, so that no savepoint can be trusted; None for a bug.

    SQLite itself rolls back the transaction when the disk is full or fails. Whatever the group ran
    after that would be committed statement by statement.
    """
    origin = getattr(error, "orig", None) or error
    name = name_of(origin)
    ours = name.startswith(_BUGS) if name else not isinstance(origin, sqlite3.OperationalError)
    return None if ours else unavailable(path, origin)


def connect(path: Path, mode: Literal["ro", "rw"]) -> sqlite3.Connection:
    """Connect to an existing file; with `rw`, SQLite replays a journal that a crash left."""
    address = f"file:{quote(str(path))}?mode={mode}"
    return sqlite3.connect(address, uri=True, timeout=BUSY_TIMEOUT_S)


def shared_connection(connection: Connection) -> sqlite3.Connection | None:
    """Return the driver's connection, so that another thread can read over it meanwhile.

    Returns None if SQLite was built without its serialized mode, which this needs.
    """
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver if sqlite3.threadsafety == _SERIALIZED else None


def writer(path: Path) -> Database:
    """Open the one writer; BEGIN IMMEDIATE, as a deferred write fails at once despite the timeout."""
    return _database(path, "BEGIN IMMEDIATE", _wanted(), connections=1)


def readers(path: Path) -> Database:
    reading: dict[str, str | int] = {"cache_size": -_READERS_CACHE_KIB, "query_only": 1}
    # `query_only` comes last, so that the settings before it still work.
    return _database(path, "BEGIN", _wanted() | reading, connections=_READERS)


def _wanted() -> dict[str, str | int]:
    return {"busy_timeout": round(BUSY_TIMEOUT_S * 1000), **_PRAGMAS}


def _database(
    path: Path, begin: str, wanted: dict[str, str | int], *, connections: int
) -> Database:
    engine = create_engine(
        URL.create(
            "sqlite",
            database=f"file:{quote(str(path))}",
            query={"mode": "rw", "uri": "true"},  # never create an empty file where one vanished
        ),
        # We begin the transaction (see SQLAlchemy on pysqlite); the driver would guess.
        connect_args={"isolation_level": None, "check_same_thread": False},
        poolclass=QueuePool,
        pool_size=connections,
        max_overflow=0,
        hide_parameters=True,
    )
    event.listen(engine, "connect", lambda connection, _: _set(connection, wanted, path))
    event.listen(engine, "begin", lambda started: started.exec_driver_sql(begin))
    return Database(engine, connections=connections, trouble=partial(trouble, path))


def _set(connection: Any, wanted: dict[str, str | int], path: Path) -> None:
    try:
        with closing(connection.cursor()) as cursor:
            _apply(cursor, wanted, path)
    except BaseException:
        connection.close()  # SQLAlchemy 2.0 would leave it open
        raise


def _apply(cursor: sqlite3.Cursor, wanted: dict[str, str | int], path: Path) -> None:
    for name, value in wanted.items():
        cursor.execute(f"PRAGMA {name}={value}")
    for name, value in wanted.items():
        (held,) = cursor.execute(f"PRAGMA {name}").fetchone()
        if held != value:
            raise LedgerUnavailable(
                f"the ledger {path} cannot be used safely: {name} is {held}, not {value}"
            )
