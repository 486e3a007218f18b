"""Ledgers that are made beside the one at work: copies for operators, and a new one in its place.

The new one is made under a name of its own and renamed last, so that a rebuilding which was ended
anywhere is begun again as if it had not been.
"""

import asyncio
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from poller import state_directory
from poller.errors import CannotStart, LedgerDamaged
from poller.ledger import engine, schema, snapshots
from poller.own_threads import in_own_thread

_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Replacement:
    """A new ledger that is being made beside the one at `path`, of which it keeps what it can."""

    path: Path
    base: "Base"

    @classmethod
    def begin(cls, url: str, directory: Path | None = None) -> Self:
        """Choose what it begins with and copy that; blocking. Raises as `Ledger.open`."""
        path = engine.database_path(url)
        with snapshots.mapped(path):
            state_directory.make(path.parent)
            try:
                base = choose(path, snapshots.stem(path, directory))
                begin(path, base)
            except BaseException:
                abandon(path)
                raise
        return cls(path, base)

    @property
    def url(self) -> str:
        """Where the new ledger is opened, to be filled."""
        return f"sqlite:///{being_made(self.path)}"

    def abandon(self) -> None:
        """Remove it, closed by now, where it was not finished; blocking."""
        with suppress(OSError):
            abandon(self.path)

    def install(self, now: datetime) -> Path | None:
        """Give the new ledger, closed by now, the name of the old; blocking.

        Returns where the old one is kept.
        """
        with snapshots.mapped(self.path):
            return install(self.path, now)


async def backup(url: str, target: Path) -> int:
    """Copy the ledger at `url` to a new file, beside a daemon too; its size in bytes.

    Raises CannotStart or LedgerUnavailable, both in a sentence.
    """
    path = engine.database_path(url)
    try:
        return await in_own_thread(
            "backup", lambda: snapshots.backup(path, target, timeout_s=_TIMEOUT_S)
        )
    except asyncio.CancelledError:  # the thread goes on, and is left behind when the process ends
        snapshots.part_of(target).unlink(missing_ok=True)
        raise


# -- what it begins with -------------------------------------------------------------------------


@dataclass(frozen=True)
class Base:
    """The copy that the new ledger begins with: None for none; `at` is None for the ledger itself.

    `passed_over` says for each better one why it could not be used.
    """

    source: Path | None
    at: datetime | None
    passed_over: tuple[str, ...]


def choose(path: Path, snapshot_stem: Path) -> Base:
    """Choose the ledger itself where it is whole after all, else its newest readable snapshot.

    Raises CannotStart when that cannot be told: it is locked, unreadable, or another program's.
    """
    passed_over: list[str] = []
    aside = _kept_aside_as(path)
    # Without its journal, which an earlier try has moved, it may look whole and not be.
    lacks_journal = aside is not None and _journal(aside).exists()
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
    if not path.is_file() or not engine.needs_replay(path, timeout_s=_TIMEOUT_S):
        return _unusable(path)
    copy = being_made(path)
    shutil.copyfile(path, copy)
    shutil.copyfile(_journal(path), _journal(copy))
    reason = _unusable(copy)
    return None if reason is None else reason.replace(str(copy), str(path))


def _unusable(candidate: Path) -> str | None:
    try:
        found = engine.look(candidate, timeout_s=_TIMEOUT_S, thorough=False)
        if not found.tables:
            return f"{candidate} is empty"
        schema.require_known(candidate, found.revision, may_migrate=True)
    except LedgerDamaged as error:
        return str(error)
    except CannotStart as error:
        if _is_of_the_disk(error.__cause__):
            return str(error)
        raise
    problem = snapshots.problem_of(candidate)
    return None if problem is None else f"{candidate} is damaged ({problem})"


def _is_of_the_disk(cause: BaseException | None) -> bool:
    return (getattr(cause, "sqlite_errorname", None) or "").startswith("SQLITE_IOERR")


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
    snapshots.copy_to(source, part, timeout_s=_TIMEOUT_S)
    with suppress(FileNotFoundError):  # the lost ledger's, which would be replayed into this one
        _journal(path).rename(path.with_name(f"{path.name}.lost-journal"))
    part.rename(path)
    state_directory.sync(path.parent)
    return snapshots.made_at(source)


def being_made(path: Path) -> Path:
    return path.with_name(f"{path.name}.rebuilding")


def begin(path: Path, base: Base) -> Path:
    """Make the file of the new ledger, a copy of its base; what an earlier try left goes."""
    abandon(path)
    new = being_made(path)
    if base.source is not None:
        snapshots.copy_to(base.source, new, timeout_s=_TIMEOUT_S)
    return new


def abandon(path: Path) -> None:
    """Leave nothing of a ledger that was not finished."""
    new = being_made(path)
    for old in (new, _journal(new)):
        old.unlink(missing_ok=True)


# -- taking its place ------------------------------------------------------------------------------


def install(path: Path, now: datetime) -> Path | None:
    """Put the new ledger, closed, in the place of the old, which is kept; under what name.

    There is a ledger under `path` at every instant. The journal of the old one, which would be
    replayed into the new one, goes aside before that comes.
    """
    new, aside = being_made(path), None
    _journal(new).unlink(missing_ok=True)
    state_directory.sync(new)
    if os.path.lexists(path):
        aside = _keep_aside(path, now)
    journal = _journal(path)
    if journal.exists() and journal.stat().st_size > 0:
        journal.rename(_journal(aside or _free_name(path, now)))
        state_directory.sync(path.parent)
    journal.unlink(missing_ok=True)
    new.rename(path)
    state_directory.sync(path.parent)
    return aside


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
    while os.path.lexists(free) or os.path.lexists(_journal(free)):
        number += 1
        free = path.with_name(f"{name}-{number}")
    return free


def _journal(path: Path) -> Path:
    return path.with_name(path.name + "-journal")
