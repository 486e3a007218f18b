"""The file: what it is before it is opened, its owner, and its room to grow; blocks."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Literal

from poller import state_directory
from poller.errors import CannotStart, LedgerDamaged, LedgerUnavailable
from poller.ledger.sqlite.engine import SENTENCES, connect, name_of, sentence

_QUICK_CHECK_BELOW = 64 << 20
_SMALLEST = 512  # bytes of a page
_ROOM = 256 << 10


def look(path: Path, *, thorough: bool) -> str | None:
    """Return the revision of its tables without changing the file, except by a replay.

    Returns None for no file, an empty one or a half-made one. Raises CannotStart if it is not a
    ledger or is damaged. With `thorough`, check all of a small file. Only SQLite opens it: closing
    another descriptor of it would drop the locks of this process (POSIX).
    """
    if not _is_file_with_content(path):
        return None
    try:
        return _look("ro", path, thorough=thorough)
    except sqlite3.Error as error:
        if not _needs_replay(path, error):
            raise _refusal(path, error) from error
    try:
        return _look("rw", path, thorough=thorough)
    except sqlite3.Error as error:
        raise _refusal(path, error) from error


def _refusal(path: Path, error: sqlite3.Error) -> CannotStart:
    if name_of(error).startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_ERROR")):
        return LedgerDamaged(f"the ledger {path} {SENTENCES['SQLITE_CORRUPT']}")
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


def needs_replay(path: Path) -> bool:
    """Whether a crash left a journal that must be replayed before the file can be read."""
    try:
        _look("ro", path, thorough=False)
    except sqlite3.Error as error:
        return _needs_replay(path, error)
    except CannotStart:
        return False
    return False


def _needs_replay(path: Path, error: sqlite3.Error) -> bool:
    """Tell whether a crash left a journal: only SQLite may replay it, and a reader may not."""
    expected = name_of(error).startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN"))
    return expected and journal_of(path).exists()


def journal_of(path: Path) -> Path:
    return path.with_name(path.name + "-journal")


def _look(mode: Literal["ro", "rw"], path: Path, *, thorough: bool) -> str | None:
    with closing(connect(path, mode)) as connection:
        names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        if not names:
            if 0 < path.stat().st_size < _SMALLEST:  # SQLite would take it for an empty file
                raise LedgerDamaged(f"the ledger {path} {SENTENCES['SQLITE_NOTADB']}")
            return None
        if "alembic_version" not in names:
            if names & {"faxes", "users", "coverage"}:
                raise LedgerDamaged(f"the ledger {path} {SENTENCES['SQLITE_CORRUPT']}")
            raise CannotStart(f"{path} is not a ledger but a database of another program")
        if thorough and path.stat().st_size < _QUICK_CHECK_BELOW:
            ((verdict,),) = connection.execute("PRAGMA quick_check(1)").fetchall()
            if verdict != "ok":
                raise LedgerDamaged(f"the ledger {path} {SENTENCES['SQLITE_CORRUPT']}")
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        return str(row[0]) if row else "unknown"


def prepare(path: Path) -> None:
    """Make the directory (0700) and the file (0600) if they are missing.

    SQLite gives its journal the file's mode. A file that others may read is made private.
    """
    try:
        state_directory.make(path.parent)
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        _make_private(path)
    except OSError as error:
        raise CannotStart(f"the ledger {path} cannot be created: {error.strerror}") from error
    else:
        os.close(descriptor)


def require_room(path: Path) -> None:
    """Raise LedgerUnavailable if the disk has no room for the ledger to grow."""
    try:
        space = os.statvfs(path.parent)
    except OSError as error:
        raise LedgerUnavailable(f"the ledger {path} cannot be reached: {error.strerror}") from error
    if space.f_bavail * space.f_frsize < _ROOM:
        raise LedgerUnavailable(f"the ledger {path} {SENTENCES['SQLITE_FULL']}")


def _make_private(path: Path) -> None:
    try:
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
    except OSError as error:
        raise CannotStart(f"the ledger {path} cannot be made private: {error.strerror}") from error
