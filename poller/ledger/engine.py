"""SQLite and nothing else: where the file is, what it must be set to, and what its errors mean."""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from sqlalchemy import URL, Connection, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool

from poller import state_directory
from poller.errors import CannotStart, LedgerDamaged, LedgerUnavailable
from poller.ledger.database import Database

_PREFIX = "sqlite:///"
_QUICK_CHECK_BELOW = 64 << 20
_SMALLEST = 512  # bytes of a page
_READERS = 3
_ROOM = 256 << 10
_READERS_CACHE_KIB = 512  # of SQLite's 2 MiB; each commit of the writer empties it anyway
_SERIALIZED = 3  # DB-API: threads may share the module, connections and cursors

# SQLite's defaults can lose a commit that was acknowledged when the power fails: its journal is
# deleted, and that deletion may not have reached the disk. EXTRA syncs the directory too.
_PRAGMAS: dict[str, str | int] = {"journal_mode": "truncate", "synchronous": 3, "foreign_keys": 1}

_SENTENCES = {
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


def database_path(url: str) -> Path:
    """Say which file `url` means; CannotStart when it is no `sqlite:///` address of a file."""
    name = url.removeprefix(_PREFIX)
    if name == url or name in ("", ":memory:"):
        raise CannotStart("state.url must be sqlite:/// and the path of a file")
    return Path(name)


def sentence(path: Path, error: BaseException) -> str:
    """Put a database error into one sentence, without the statement and its values."""
    name = getattr(error, "sqlite_errorname", None) or ""
    for prefix, meaning in _SENTENCES.items():
        if name == prefix or name.startswith(prefix + "_"):
            return f"the ledger {path} {meaning}"
    return f"the ledger {path} does not answer ({name or type(error).__name__})"


@contextmanager
def unavailable(path: Path) -> Iterator[None]:
    """Turn what the database reports into LedgerUnavailable; bugs of ours stay what they are."""
    try:
        yield
    except DBAPIError as error:
        if not concerns_the_database(error):
            raise
        raise LedgerUnavailable(sentence(path, error.orig or error)) from error
    except sqlite3.Error as error:
        raise LedgerUnavailable(sentence(path, error)) from error
    except CannotStart as error:
        raise LedgerUnavailable(str(error)) from error


def concerns_the_database(error: BaseException) -> bool:
    """Say whether `error` befell the database as a whole, so that no savepoint can be trusted.

    SQLite itself rolls a transaction back when the disk is full or fails; what ran after that in
    the same group would be committed statement by statement.
    """
    origin = getattr(error, "orig", None) or error
    name = getattr(origin, "sqlite_errorname", None)
    if name is None:
        return isinstance(origin, sqlite3.OperationalError)
    return not name.startswith(_BUGS)


# -- looking before opening ------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What lies at the path: `tables` is False for no file, an empty or a half-made one."""

    tables: bool
    revision: str | None = None


def look(path: Path, *, timeout_s: float, thorough: bool) -> Found:
    """Look at the file without changing a byte of it, but for a replay; blocking.

    Raises CannotStart for what is no ledger or is damaged. With `thorough` a small file is checked
    through. It is opened by SQLite alone: closing another descriptor of it would drop the locks
    that this process holds (POSIX).
    """
    if not _is_file_with_content(path):
        return Found(tables=False)
    try:
        return _look("ro", path, timeout_s, thorough=thorough)
    except sqlite3.Error as error:
        if not _needs_replay(path, error):
            raise _refusal(path, error) from error
    try:
        return _look("rw", path, timeout_s, thorough=thorough)
    except sqlite3.Error as error:
        raise _refusal(path, error) from error


def _refusal(path: Path, error: sqlite3.Error) -> CannotStart:
    name = getattr(error, "sqlite_errorname", None) or ""
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_ERROR")):
        return LedgerDamaged(f"the ledger {path} {_SENTENCES['SQLITE_CORRUPT']}")
    return CannotStart(sentence(path, error))


def _is_file_with_content(path: Path) -> bool:
    try:
        status = path.stat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise CannotStart(f"the ledger {path} cannot be opened: {error.strerror}") from error
    if not path.is_file():
        raise CannotStart(f"the ledger {path} is not a file")
    if not os.access(path, os.R_OK, effective_ids=True):
        raise CannotStart(f"the ledger {path} cannot be read: permission denied")
    return status.st_size > 0


def needs_replay(path: Path, *, timeout_s: float) -> bool:
    """Whether a crash left a journal that has to be replayed before the file can be read."""
    try:
        _look("ro", path, timeout_s, thorough=False)
    except sqlite3.Error as error:
        return _needs_replay(path, error)
    except CannotStart:
        return False
    return False


def _needs_replay(path: Path, error: sqlite3.Error) -> bool:
    """A journal that a crash left behind must be replayed by SQLite, which a reader may not do."""
    name = getattr(error, "sqlite_errorname", None) or ""
    journal = path.with_name(path.name + "-journal")
    return name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN")) and journal.exists()


def _look(mode: str, path: Path, timeout_s: float, *, thorough: bool) -> Found:
    address = f"file:{quote(str(path))}?mode={mode}"
    with closing(sqlite3.connect(address, uri=True, timeout=timeout_s)) as connection:
        names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        if not names:
            if 0 < path.stat().st_size < _SMALLEST:  # SQLite would take it for an empty one
                raise LedgerDamaged(f"the ledger {path} {_SENTENCES['SQLITE_NOTADB']}")
            return Found(tables=False)
        if "alembic_version" not in names:
            if names & {"faxes", "users", "coverage"}:
                raise LedgerDamaged(f"the ledger {path} {_SENTENCES['SQLITE_CORRUPT']}")
            raise CannotStart(f"{path} is a database of another program, not a ledger")
        if thorough and path.stat().st_size < _QUICK_CHECK_BELOW:
            _quick_check(connection, path)
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        return Found(tables=True, revision=row[0] if row else None)


def _quick_check(connection: sqlite3.Connection, path: Path) -> None:
    ((verdict,),) = connection.execute("PRAGMA quick_check(1)").fetchall()
    if verdict != "ok":
        raise LedgerDamaged(f"the ledger {path} {_SENTENCES['SQLITE_CORRUPT']}")


def prepare(path: Path) -> None:
    """Make the directory (0700) and the file (0600) where they are missing; blocking.

    SQLite gives its journal the mode of the file. A file that others may read is made private.
    """
    try:
        state_directory.make(path.parent)
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        _make_private(path)
    except OSError as error:
        raise CannotStart(f"the ledger {path} cannot be made: {error.strerror}") from error
    else:
        os.close(descriptor)


def require_room(path: Path) -> None:
    """Raise LedgerUnavailable where the disk has no room for the ledger to grow; blocking."""
    try:
        space = os.statvfs(path.parent)
    except OSError as error:
        raise LedgerUnavailable(f"the ledger {path} cannot be reached: {error.strerror}") from error
    if space.f_bavail * space.f_frsize < _ROOM:
        raise LedgerUnavailable(f"the ledger {path} {_SENTENCES['SQLITE_FULL']}")


def _make_private(path: Path) -> None:
    try:
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
    except OSError as error:
        raise CannotStart(f"the ledger {path} cannot be made private: {error.strerror}") from error


def reader_connection(path: Path, *, timeout_s: float) -> sqlite3.Connection:
    """Connect for reading, beside a writer too; a journal that a crash left is replayed."""
    address = f"file:{quote(str(path))}?mode=rw"
    connection = sqlite3.connect(address, uri=True, timeout=timeout_s)
    connection.execute("PRAGMA query_only=1")
    return connection


def shared_connection(connection: Connection) -> sqlite3.Connection | None:
    """Give the driver's connection, for another thread to read over it meanwhile.

    None where SQLite was built without what that takes, its serialized mode.
    """
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver if sqlite3.threadsafety == _SERIALIZED else None


# -- engines -------------------------------------------------------------------------------------


def writer_engine(path: Path, *, timeout_s: float) -> Database:
    """One connection whose transactions hold the write lock from their first statement.

    A deferred transaction that turns into a write fails at once, whatever the timeout.
    """
    return _engine(path, timeout_s=timeout_s, begin="BEGIN IMMEDIATE", connections=1)


def reader_engine(path: Path, *, timeout_s: float) -> Database:
    """A few connections that cannot write; each transaction sees one state of the ledger."""
    return _engine(path, timeout_s=timeout_s, begin="BEGIN", connections=_READERS)


def _engine(
    path: Path,
    *,
    timeout_s: float,
    begin: Literal["BEGIN", "BEGIN IMMEDIATE"],
    connections: int,
) -> Database:
    engine = create_engine(
        URL.create(
            "sqlite",
            database=f"file:{quote(str(path))}",
            query={"mode": "rw", "uri": "true"},  # never an empty new file where one vanished
        ),
        # The transaction is begun by us (see SQLAlchemy on pysqlite), not guessed by the driver.
        connect_args={"isolation_level": None, "timeout": timeout_s, "check_same_thread": False},
        poolclass=QueuePool,
        pool_size=connections,
        max_overflow=0,
        hide_parameters=True,
    )
    event.listen(engine, "connect", _settings(path, begin, timeout_s))
    event.listen(engine, "begin", lambda started: started.exec_driver_sql(begin))
    return Database(engine, connections=connections)


def _settings(path: Path, begin: str, timeout_s: float) -> Callable[[Any, Any], None]:
    wanted: dict[str, str | int] = {"busy_timeout": round(timeout_s * 1000), **_PRAGMAS}
    if begin == "BEGIN":
        wanted["cache_size"] = -_READERS_CACHE_KIB
        wanted["query_only"] = 1  # last: the settings before it stay possible

    def apply(connection: Any, _record: Any) -> None:
        try:
            with closing(connection.cursor()) as cursor:
                _apply(cursor, wanted, path)
        except BaseException:
            connection.close()  # SQLAlchemy 2.0 would leave it open
            raise

    return apply


def _apply(cursor: Any, wanted: dict[str, str | int], path: Path) -> None:
    for name, value in wanted.items():
        cursor.execute(f"PRAGMA {name}={value}")
    for name, value in wanted.items():
        cursor.execute(f"PRAGMA {name}")
        (held,) = cursor.fetchone()
        if held != value:
            raise CannotStart(
                f"the ledger {path} cannot be used safely: {name} is {held}, not {value}"
            )
