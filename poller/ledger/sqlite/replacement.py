"""Ledgers that replace the present one: copies for operators, and a rebuilt ledger.

The new ledger has its own name and is renamed last. So a rebuild that was killed anywhere starts
over, as if it had never begun.
"""

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from poller import state_directory
from poller.errors import CannotStart, LedgerDamaged
from poller.ledger import schema
from poller.ledger.backend import Backend, Base
from poller.ledger.sqlite import file, snapshots
from poller.ledger.sqlite.engine import name_of
from poller.ledger.sqlite.file import journal_of


@dataclass(frozen=True)
class FileReplacement:
    path: Path
    base: Base
    backend: Backend

    @classmethod
    def begin(cls, path: Path, snapshot_stem: Path, backend: Backend) -> Self:
        """Choose the copy to begin with, and copy it; remove what an earlier try left.

        `backend` is that of the new ledger.
        """
        new = being_made(path)
        with snapshots.mapped(path):
            state_directory.make(path.parent)
            try:
                base = _choose(path, snapshot_stem)
                _abandon(path)
                if base.source is not None:
                    snapshots.copy_to(Path(base.source), new)
            except BaseException:
                _abandon(path)
                raise
        return cls(path, base, backend)

    def abandon(self) -> None:
        with suppress(OSError):
            _abandon(self.path)

    def install(self, now: datetime) -> str | None:
        """Put the new ledger in the place of the old; there is a ledger under that name at every instant.

        First move the journal of the old one aside, as SQLite would replay it into the new one.
        """
        path, new, aside = self.path, being_made(self.path), None
        with snapshots.mapped(path):
            journal_of(new).unlink(missing_ok=True)
            state_directory.sync(new)
            if os.path.lexists(path):
                aside = _keep_aside(path, now)
            journal = journal_of(path)
            if journal.exists() and journal.stat().st_size > 0:
                journal.rename(journal_of(aside or _free_name(path, now)))
                state_directory.sync(path.parent)
            journal.unlink(missing_ok=True)
            new.rename(path)
            state_directory.sync(path.parent)
        return None if aside is None else str(aside)


# -- the copy to begin with ----------------------------------------------------------------------


def _choose(path: Path, snapshot_stem: Path) -> Base:
    """Choose the ledger itself if it is whole after all, otherwise its newest readable snapshot.

    Raises CannotStart if nobody can tell: it is locked, unreadable, or another program's.
    """
    passed_over: list[str] = []
    aside = _kept_aside_as(path)
    # Without its journal, which an earlier try has moved, it may look whole although it is not.
    lacks_journal = aside is not None and journal_of(aside).exists()
    candidates = [] if lacks_journal else [path]
    for candidate in [*candidates, *snapshots.names(snapshot_stem)]:
        if not os.path.lexists(candidate):
            continue
        reason = _unusable_original(path) if candidate == path else _unusable(candidate)
        if reason is None:
            at = None if candidate == path else snapshots.made_at(candidate)
            return Base(str(candidate), at, tuple(passed_over))
        passed_over.append(reason)
    return Base(None, None, tuple(passed_over))


def _unusable_original(path: Path) -> str | None:
    """Say why the original cannot be used. Replay its journal into a copy: it must not change."""
    if not path.is_file() or not file.needs_replay(path):
        return _unusable(path)
    copy = being_made(path)
    shutil.copyfile(path, copy)
    shutil.copyfile(journal_of(path), journal_of(copy))
    reason = _unusable(copy)
    return None if reason is None else reason.replace(str(copy), str(path))


def _unusable(candidate: Path) -> str | None:
    try:
        revision = file.look(candidate, thorough=False)
        if revision is None:
            return f"{candidate} is empty"
        schema.require_known(str(candidate), revision, may_migrate=True)
    except LedgerDamaged as error:
        return str(error)
    except CannotStart as error:
        if name_of(error.__cause__).startswith("SQLITE_IOERR"):  # the disk's error, not the file's
            return str(error)
        raise
    problem = snapshots.problem_of(candidate)
    return None if problem is None else f"{candidate} is damaged ({problem})"


def restore(path: Path, snapshot_stem: Path) -> datetime | None:
    """Put the newest readable snapshot in place of a lost ledger; return its date, None if there is none.

    An empty ledger would fetch again what consumers have taken, and forget what waits. Raises
    LedgerDamaged if there are snapshots and none can be read.
    """
    kept = [name for name in snapshots.names(snapshot_stem) if os.path.lexists(name)]
    source = next((name for name in kept if _unusable(name) is None), None)
    if source is None:
        if kept:
            raise LedgerDamaged(
                f"the ledger {path} is gone and its snapshots are damaged; `poller rebuild` makes "
                "a new one from the files in the storage"
            )
        return None
    part = path.with_name(f"{path.name}.restoring")
    part.unlink(missing_ok=True)
    snapshots.copy_to(source, part)
    # that of the lost ledger, which SQLite would replay into this one
    with suppress(FileNotFoundError):
        journal_of(path).rename(path.with_name(f"{path.name}.lost-journal"))
    part.rename(path)
    state_directory.sync(path.parent)
    return snapshots.made_at(source)


def being_made(path: Path) -> Path:
    """Return the name of the ledger that is to replace this one."""
    return path.with_name(f"{path.name}.rebuilding")


def _abandon(path: Path) -> None:
    new = being_made(path)
    for old in (new, journal_of(new)):
        old.unlink(missing_ok=True)


# -- taking its place ------------------------------------------------------------------------------


def _keep_aside(path: Path, now: datetime) -> Path:
    aside = _kept_aside_as(path)
    if aside is None:
        aside = _free_name(path, now)
        os.link(path, aside)
        state_directory.sync(path.parent)
    return aside


def _kept_aside_as(path: Path) -> Path | None:
    """Return the other name of the ledger, which an earlier, interrupted try gave it."""
    for aside in sorted(path.parent.glob(f"{path.name}.broken-*")):
        with suppress(OSError):
            if aside.samefile(path):
                return aside
    return None


def _free_name(path: Path, now: datetime) -> Path:
    name = f"{path.name}.broken-{now.astimezone(UTC):%Y%m%dT%H%M%SZ}"
    free, number = path.with_name(name), 1
    while os.path.lexists(free) or os.path.lexists(journal_of(free)):
        number += 1
        free = path.with_name(f"{name}-{number}")
    return free
