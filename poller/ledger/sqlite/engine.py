"""Connections to the file: what they must be set to, and what their errors mean."""

import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from sqlalchemy import URL, Connection, create_engine, event
from sqlalchemy.pool import QueuePool

from poller.errors import LedgerUnavailable
from poller.ledger.database import Database

BUSY_TIMEOUT_S = 5.0  # for a lock that another program holds
_READERS = 3
_READERS_CACHE_KIB = 512  # of SQLite's 2 MiB; each commit of the writer empties it anyway
_SERIALIZED = 3  # DB-API: threads may share the module, connections and cursors

# SQLite's defaults can lose a commit that was acknowledged when the power fails: its journal is
# deleted, and that deletion may not have reached the disk. EXTRA syncs the directory too.
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

# What a wrong statement or value of ours is called; everything else concerns the database.
_BUGS = (
    "SQLITE_ERROR",
    "SQLITE_CONSTRAINT",
    "SQLITE_MISMATCH",
    "SQLITE_MISUSE",
    "SQLITE_RANGE",
    "SQLITE_TOOBIG",
)


def name_of(error: BaseException | None) -> str:
    """Return what SQLite calls an error, such as `SQLITE_IOERR_WRITE`; empty where it says nothing."""
    return getattr(error, "sqlite_errorname", None) or ""


def sentence(path: Path, error: BaseException) -> str:
    """Put a database error into one sentence, without the statement and its values."""
    name = name_of(error)
    for prefix, meaning in SENTENCES.items():
        if name == prefix or name.startswith(prefix + "_"):
            return f"the ledger {path} {meaning}"
    return f"the ledger {path} does not answer ({name or type(error).__name__})"


def trouble(path: Path, error: BaseException) -> str | None:
    """Say what befell the database as a whole, so that no savepoint can be trusted; None for a bug.

    SQLite itself rolls a transaction back when the disk is full or fails; what ran after that in
    the same group would be committed statement by statement.
    """
    origin = getattr(error, "orig", None) or error
    name = name_of(origin)
    ours = name.startswith(_BUGS) if name else not isinstance(origin, sqlite3.OperationalError)
    return None if ours else sentence(path, origin)


def connect(path: Path, mode: Literal["ro", "rw"]) -> sqlite3.Connection:
    """Connect to a file that is there; with `rw` a journal that a crash left is replayed."""
    address = f"file:{quote(str(path))}?mode={mode}"
    return sqlite3.connect(address, uri=True, timeout=BUSY_TIMEOUT_S)


def shared_connection(connection: Connection) -> sqlite3.Connection | None:
    """Give the driver's connection, for another thread to read over it meanwhile.

    None where SQLite was built without what that takes, its serialized mode.
    """
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver if sqlite3.threadsafety == _SERIALIZED else None


def writer(path: Path) -> Database:
    """A deferred transaction that turns into a write fails at once, whatever the timeout."""
    return _database(path, "BEGIN IMMEDIATE", _wanted(), connections=1)


def readers(path: Path) -> Database:
    reading: dict[str, str | int] = {"cache_size": -_READERS_CACHE_KIB, "query_only": 1}
    # `query_only` comes last: the settings before it stay possible.
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
            query={"mode": "rw", "uri": "true"},  # never an empty new file where one vanished
        ),
        # The transaction is begun by us (see SQLAlchemy on pysqlite), not guessed by the driver.
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
