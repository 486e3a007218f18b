"""Copies of the ledger, made while its writer works, checked and durable; all of it blocks.

Check a copy, not the ledger: a check of a large file takes long, and a reader that takes long
blocks every commit. `VACUUM INTO` is such a reader: with 234 MiB, one commit waited 1.5 seconds.
With the backup API on the writer's own connection, commits waited 0.07 seconds at most.
"""

import errno
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from poller.errors import CannotStart, LedgerUnavailable
from poller.ledger.backend import Stopped, snapshot_is_due
from poller.ledger.sqlite import engine, file
from poller.ledger.sqlite.engine import connect, name_of, unavailable
from poller.state_directory import sync

_PAGES_AT_ONCE = 256
_RESTARTS = 3
_LET_OTHERS_S = 0.001
_BUSY_S = 0.005
_INSTRUCTIONS_AT_ONCE = 100_000
_ROOM = 16 << 20  # leave this much for the ledger itself
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}

Stop = Callable[[], bool]


@dataclass(frozen=True)
class Terms:
    """How to make a copy, and when to stop.

    Over its `writer`'s connection, a ledger can be copied while the writer works: SQLite writes
    changes to the copy as well. Any other copy starts over at each write.
    """

    stop: Stop = lambda: False
    writer: sqlite3.Connection | None = None


# -- the snapshots that are kept -------------------------------------------------------------------


def names(stem: Path) -> list[Path]:
    """Return the names of the snapshots that begin with `stem`, newest first, existing or not.

    Names tell their order, because somebody may have set the clock since.
    """
    return [stem.with_name(f"{stem.name}.snapshot-{number}") for number in (1, 2)]


def newest_at(stem: Path) -> datetime | None:
    """Return when the newest snapshot was made; None if there is none."""
    for name in names(stem):
        with suppress(OSError):
            return made_at(name)
    return None


def made_at(snapshot: Path) -> datetime:
    """Return when a snapshot was made; raises OSError if it is missing."""
    return datetime.fromtimestamp(snapshot.stat().st_mtime, UTC)


def look_after(path: Path, stem: Path, now: datetime, terms: Terms) -> str | None:
    """Copy the ledger, check the copy, and keep it as the newest snapshot if one is due.

    Returns what is wrong with the ledger; then existing snapshots stay. Raises LedgerUnavailable if
    it cannot make a copy.
    """
    part = stem.with_name(f"{stem.name}.snapshot-part")
    with mapped(part):
        part.unlink(missing_ok=True)  # of a killed run; the state's lock is held
    with _copied(path, part, terms):
        problem = problem_of(part, terms.stop)
        if problem is None and snapshot_is_due(newest_at(stem), now):
            with mapped(part):
                _keep(stem, part, now)
    return problem


def _keep(stem: Path, part: Path, now: datetime) -> None:
    os.utime(part, (now.timestamp(), now.timestamp()))
    sync(part)
    newest, older = names(stem)
    with suppress(FileNotFoundError):
        newest.rename(older)
    part.rename(newest)
    sync(stem.parent)


# -- one copy --------------------------------------------------------------------------------------


def backup(path: Path, target: Path) -> int:
    """Copy the ledger to a new file (0600) that appears when it is whole and durable; return its size.

    Raises CannotStart if `target` exists, or if there is no ledger at `path` or a bad one.
    """
    if os.path.lexists(target):
        raise CannotStart(f"{target} exists already, and poller does not overwrite it")
    if file.look(path, thorough=False) is None:
        raise CannotStart(f"there is no ledger at {path}")
    part = part_of(target)
    with _copied(path, part, Terms()):
        problem = problem_of(part)
        if problem is not None:
            raise CannotStart(
                f"the ledger {path} is damaged ({problem}), so poller did not copy it"
            )
        with mapped(target):
            sync(part)
            _name_it(part, target)
            try:
                sync(target.parent)
                return target.stat().st_size
            except BaseException:  # the command reports a failure, so no file may appear
                target.unlink(missing_ok=True)
                raise


def part_of(target: Path) -> Path:
    """Return the name under which this process makes a copy."""
    return target.with_name(f".{target.name}.{os.getpid()}.part")


def _name_it(part: Path, target: Path) -> None:
    """Give it its name without overwriting. A link never does, but some network shares lack links."""
    try:
        os.link(part, target)
    except FileExistsError as error:
        raise CannotStart(f"{target} exists already, and poller does not overwrite it") from error
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        part.rename(target)


def copy_to(path: Path, target: Path) -> None:
    """Copy a database to a new file; its data is durable, its name is not."""
    try:
        _copy_new(path, target, Terms())
        sync(target)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


@contextmanager
def _copied(path: Path, part: Path, terms: Terms) -> Iterator[None]:
    """Hold a copy of the ledger under the name `part`, and remove it afterwards."""
    try:
        with mapped(part):
            _require_room(path, part)
            _copy_new(path, part, terms)
        yield
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _require_room(path: Path, part: Path) -> None:
    """Leave space for the ledger itself, which may be on the same disk."""
    space = os.statvfs(part.parent)
    if space.f_bavail * space.f_frsize < path.stat().st_size + _ROOM:
        raise LedgerUnavailable(
            f"the ledger {path} cannot be copied: there is too little space in {part.parent}"
        )


def _copy_new(path: Path, part: Path, terms: Terms) -> None:
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    try:
        _copy(path, part, terms)
    except sqlite3.Error as error:
        if name_of(error).startswith(("SQLITE_FULL", "SQLITE_IOERR_WRITE")):
            raise LedgerUnavailable(f"{part} cannot be written: the disk is full") from error
        raise unavailable(path, error) from error


def _copy(path: Path, part: Path, terms: Terms) -> None:
    with closing(connect(path, "rw")) as reader:
        reader.execute("PRAGMA query_only=1")
        try:
            _copy_pages(terms.writer or reader, part, _PAGES_AT_ONCE, _Steps(path, terms))
        except _RestartedTooOften:
            os.truncate(part, 0)  # half a copy is not a database that could be overwritten
            _copy_pages(reader, part, -1, _Steps(path, terms))


def _copy_pages(source: sqlite3.Connection, part: Path, at_once: int, steps: "_Steps") -> None:
    with closing(sqlite3.connect(part)) as made:
        for setting in ("journal_mode=OFF", "synchronous=OFF"):  # the sync comes when it is whole
            made.execute(f"PRAGMA {setting}")
        source.backup(made, pages=at_once, progress=steps, sleep=_BUSY_S)


class _RestartedTooOften(Exception): ...


class _Steps:
    """Watches a copy that lets the writer work between its steps.

    When another connection writes in between, SQLite starts over. Under steady writing that would
    never end, so after some tries everything is copied in one step while writers wait.
    """

    def __init__(self, path: Path, terms: Terms) -> None:
        self._path = path
        self._terms = terms
        self._came_on_at = time.monotonic()
        self._copied = 0
        self._restarts = 0

    def __call__(self, status: int, remaining: int, total: int) -> None:
        if self._terms.stop():
            raise Stopped("the copy of the ledger was stopped")
        if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            self._is_busy()
            return
        self._came_on_at = time.monotonic()
        copied = total - remaining
        self._restarts += copied <= self._copied
        self._copied = copied
        if self._restarts > _RESTARTS:
            raise _RestartedTooOften
        time.sleep(_LET_OTHERS_S)

    def _is_busy(self) -> None:
        """Give up if the file stays locked; the writer's own transaction ends in a moment."""
        if time.monotonic() - self._came_on_at >= engine.BUSY_TIMEOUT_S:
            raise LedgerUnavailable(f"the ledger {self._path} is locked by another program")


def problem_of(path: Path, stop: Stop = lambda: False) -> str | None:
    """Check a whole file to which nobody writes; return None, or what is wrong with it."""

    def let_others() -> int:
        time.sleep(_LET_OTHERS_S)
        return int(stop())

    try:
        with closing(connect(path, "ro")) as connection:
            connection.set_progress_handler(let_others, _INSTRUCTIONS_AT_ONCE)
            ((verdict,),) = connection.execute("PRAGMA integrity_check(1)").fetchall()
    except sqlite3.Error as error:
        if stop():
            raise Stopped("the check of the ledger was stopped") from error
        if name_of(error).startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise unavailable(path, error) from error
        return str(error)
    return None if verdict == "ok" else str(verdict).strip().rpartition("\n")[2]


@contextmanager
def mapped(path: Path) -> Iterator[None]:
    """Turn the system's errors into LedgerUnavailable."""
    try:
        yield
    except OSError as error:
        raise LedgerUnavailable(f"{path} cannot be written: {error.strerror}") from error
