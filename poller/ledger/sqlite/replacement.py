"""Ledgers that are made beside the one at work: copies for operators, and a new one in its place.

The new one is made under a name of its own and renamed last, so that a rebuilding which was ended
anywhere is begun again as if it had not been.
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
from poller.ledger.backend import Base
from poller.ledger.sqlite import file, snapshots
from poller.ledger.sqlite.engine import name_of
from poller.ledger.sqlite.file import journal_of


@dataclass(frozen=True)
class FileReplacement:
    path: Path
    base: Base

    @classmethod
    def begin(cls, path: Path, snapshot_stem: Path) -> Self:
        """Choose what it begins with and copy that; what an earlier try left goes."""
        new = _being_made(path)
        with snapshots.mapped(path):
            state_directory.make(path.parent)
            try:
                base = _choose(path, snapshot_stem)
                _abandon(path)
                if base.source is not None:
                    snapshots.copy_to(base.source, new)
            except BaseException:
                _abandon(path)
                raise
        return cls(path, base)

    @property
    def url(self) -> str:
        return f"sqlite:///{_being_made(self.path)}"

    def abandon(self) -> None:
        with suppress(OSError):
            _abandon(self.path)

    def install(self, now: datetime) -> Path | None:
        """Put the new ledger in the place of the old, under whose name there is one at every instant.

        The journal of the old one, which would be replayed into the new one, goes aside before that
        comes.
        """
        path, new, aside = self.path, _being_made(self.path), None
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
        return aside


# -- what it begins with -------------------------------------------------------------------------


def _choose(path: Path, snapshot_stem: Path) -> Base:
    """Choose the ledger itself where it is whole after all, else its newest readable snapshot.

    Raises CannotStart when that cannot be told: it is locked, unreadable, or another program's.
    """
    passed_over: list[str] = []
    aside = _kept_aside_as(path)
    # Without its journal, which an earlier try has moved, it may look whole and not be.
    lacks_journal = aside is not None and journal_of(aside).exists()
    candidates = [] if lacks_journal else [path]
    for candidate in [*candidates, *snapshots.names(snapshot_stem)]:
        if not os.path.lexists(candidate):
            continue
        reason = _unusable_original(path) if candidate == path else _unusable(candidate)
        if reason is None:
            at = None if candidate == path else snapshots.made_at(candidate)
            return Base(candidate, at, tuple(passed_over))
        passed_over.append(reason)
    return Base(None, None, tuple(passed_over))


def _unusable_original(path: Path) -> str | None:
    """A damaged ledger stays byte for byte as it was, so its journal is replayed into a copy."""
    if not path.is_file() or not file.needs_replay(path):
        return _unusable(path)
    copy = _being_made(path)
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
        if name_of(error.__cause__).startswith("SQLITE_IOERR"):  # of the disk under this one
            return str(error)
        raise
    problem = snapshots.problem_of(candidate)
    return None if problem is None else f"{candidate} is damaged ({problem})"


def restore(path: Path, snapshot_stem: Path) -> datetime | None:
    """Put the newest readable snapshot where the ledger is gone; of when it is, None without one.

    An empty ledger in its place would fetch again what consumers have taken away, and forget what
    waits. Raises LedgerDamaged when there are snapshots and none can be read.
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
    with suppress(FileNotFoundError):  # the lost ledger's, which would be replayed into this one
        journal_of(path).rename(path.with_name(f"{path.name}.lost-journal"))
    part.rename(path)
    state_directory.sync(path.parent)
    return snapshots.made_at(source)


def _being_made(path: Path) -> Path:
    return path.with_name(f"{path.name}.rebuilding")


def _abandon(path: Path) -> None:
    new = _being_made(path)
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
    """The other name of the ledger, which an earlier try gave it that did not come to its end."""
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
