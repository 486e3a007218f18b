"""`poller verify`: is on the disk what the ledger says; `--repair` and `--taken` fetch again."""

import asyncio
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from poller import VERSION
from poller.cli import bootstrap
from poller.cli.console import say
from poller.cli.follow import wait_for_faxes
from poller.cli.lookup import find_one
from poller.clock import SystemClock
from poller.config.model import Config
from poller.errors import CannotStart, LockHeld, StorageConflict, StorageUnusable
from poller.ingest.audit import Auditor, Checked
from poller.ledger import FaxRow, Ledger, State, StreamRow, faxes, jobs, meta, streams
from poller.lock import StateLock, StorageLock
from poller.status import instant
from poller.store import Condition, Storage

_STRANGERS_SHOWN = 1000
_PATIENCE_S = 120.0  # while the running daemon comes on with nothing


@dataclass
class VerifyReport:
    """The JSON of `verify --json`, and what decides its exit code."""

    checked: int = 0
    ok: int = 0
    taken: int = 0
    damaged: list[Checked] = field(default_factory=list)
    named: frozenset[int] = frozenset()  # with --taken
    whole: set[int] = field(default_factory=set)  # of these
    unknown: int = 0
    unknown_files: list[str] = field(default_factory=list)
    sweeps: dict[str, Any] = field(default_factory=dict)
    asked: list[FaxRow] = field(default_factory=list)  # as they were before
    requested: list[int] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    repaired: list[FaxRow] = field(default_factory=list)
    failed: list[FaxRow] = field(default_factory=list)
    by_daemon: bool = False
    stopped: str | None = None  # why it is waited for the daemon no longer

    @property
    def exit_code(self) -> int:
        """Damage is an error until it is mended; what the daemon has not come to yet is not."""
        repaired = {row.id for row in self.repaired}
        left = {one.row.id for one in self.damaged}.union(self.requested) - repaired
        return 1 if left or self.failed or self.refused else 0

    def add(self, one: Checked) -> None:
        self.checked += 1
        self.ok += one.finding.condition is Condition.OK
        self.taken += one.finding.condition is Condition.TAKEN
        if one.is_damaged:
            self.damaged.append(one)
        elif one.row.id in self.named and one.finding.condition is Condition.OK:
            self.whole.add(one.row.id)

    def add_stranger(self, file: str) -> None:
        self.unknown += 1
        if len(self.unknown_files) < _STRANGERS_SHOWN:
            self.unknown_files.append(file)

    def shown(self) -> dict[str, Any]:
        return {
            "checked": self.checked,
            "ok": self.ok,
            "taken": self.taken,
            "damaged": [_damaged(one) for one in self.damaged],
            "unknown": self.unknown,
            "unknown_files": self.unknown_files,
            "sweeps": self.sweeps,
            "requested": len(self.requested),
            "by_daemon": self.by_daemon,
            "repaired": [_name(row) for row in self.repaired],
            "failed": [{"fax": _name(row), "error": row.last_error} for row in self.failed],
            "refused": self.refused,
            "stopped": self.stopped,
        }


def _damaged(one: Checked) -> dict[str, Any]:
    row = one.row
    return {
        "fax_id": row.fax_id,
        "path": row.file,
        "why": one.finding.why,
        "account": row.account,
        "user": row.user,
    }


def verify(paths: Sequence[Path], repair: bool, taken: Sequence[str], *, as_json: bool) -> int:  # noqa: FBT001
    """Compare ledger and disk; raises CannotStart for a storage that cannot be looked at."""
    settings = bootstrap.load(paths)
    fetches = repair or bool(taken)
    if fetches and not bootstrap.is_running(settings):
        bootstrap.read_all_secrets(settings)  # found out before an hour of hashing, not after
    report = asyncio.run(_verify(settings, taken, repair=repair))
    try:
        if report.requested:
            _fetch_or_leave(settings, report)
    finally:  # what was found is said also when nothing can be fetched now
        if as_json:
            print(json.dumps(report.shown()))
        else:
            _print(report)
    return report.exit_code


def _fetch_or_leave(settings: Config, report: VerifyReport) -> None:
    """The requests are in the ledger: whoever holds the lock does them."""
    with ExitStack() as held:
        try:
            held.enter_context(StateLock(settings.state_directory, "verify"))
        except LockHeld as held_by:
            if not bootstrap.is_running(settings):
                raise LockHeld(
                    f"{held_by}. What is to be fetched again is noted for the service or `poller once`"
                ) from held_by
            report.by_daemon = True
            asyncio.run(_follow(settings, report))
            return
        storage_lock = held.enter_context(StorageLock())  # held by another: that one has no request
        bootstrap.start_log(_quiet(settings), sys.stderr)
        asyncio.run(_fetch(settings, report, storage_lock))


def _quiet(settings: Config) -> Config:
    return replace(settings, log=replace(settings.log, level="warning"))


async def _verify(settings: Config, taken: Sequence[str], *, repair: bool) -> VerifyReport:
    report = VerifyReport()
    async with bootstrap.ledger_beside(settings, readonly=False) as ledger:
        report.named = frozenset([(await find_one(ledger, name)).id for name in taken])
        await _audit(settings, ledger, report)
        wanted = sorted(report.named - report.whole)
        if repair:
            wanted += [one.row.id for one in report.damaged]
        if wanted:
            await _request(ledger, wanted, report)
        for fax in sorted(report.whole):
            report.refused.append(
                f"{_name(await ledger.read(faxes.one, fax))}: it is there and whole"
            )
    return report


async def _audit(settings: Config, ledger: Ledger, report: VerifyReport) -> None:
    storage_id = await ledger.read(meta.value, meta.STORAGE_ID)
    if storage_id is None:
        raise CannotStart("the ledger knows no storage yet; the service makes it when it starts")
    users = await ledger.read(streams.all_streams)
    report.sweeps = _sweeps([row for row in users if not row.removed])
    storage = Storage(settings.storage)
    auditor = Auditor(ledger, storage, SystemClock())
    try:
        await storage.prepare(storage_id)
        with _progress(sum(row.stored for row in users)) as advance:
            async for page in auditor.pages(thorough=True):
                for one in page:
                    report.add(one)
                advance(len(page))
        async for file in auditor.strangers():
            report.add_stranger(file)
    except (StorageUnusable, StorageConflict) as error:
        raise CannotStart(f"nothing can be said of the files: {error}") from error
    finally:
        storage.close()


def _sweeps(users: Sequence[StreamRow]) -> dict[str, Any]:
    """What eFax lists against the ledger: what the windows had missed and a net has found."""
    ends = [row.deep_sweep_end for row in users if row.deep_sweep_end is not None]
    return {
        "found_by_sweep": sum(row.found_by_sweep for row in users),
        "found_by_deep_sweep": sum(row.found_by_deep_sweep for row in users),
        "oldest_deep_sweep": instant(min(ends, default=None)),
        "never_deep_swept": len(users) - len(ends),
    }


async def _request(ledger: Ledger, wanted: Sequence[int], report: VerifyReport) -> None:
    report.asked = await ledger.read(faxes.some, wanted)
    report.requested = await ledger.write(jobs.fetch_again, wanted, bootstrap.now())
    refused = [await ledger.read(faxes.one, fax) for fax in set(wanted) - set(report.requested)]
    report.refused = sorted(f"{_name(row)}: {_why_not(row)}" for row in refused)


def _why_not(row: FaxRow) -> str:
    if row.state is State.DISMISSED:
        return "it is dismissed; `poller retry` undoes that"
    return "it was never stored" if row.file is None else "its user is not configured any more"


async def _follow(settings: Config, report: VerifyReport) -> None:
    """Beside a daemon: wait until it has tried them all."""
    before = {row.id: row for row in report.asked if row.id in report.requested}
    async with bootstrap.ledger_beside(settings, readonly=True) as ledger:
        report.stopped = await wait_for_faxes(
            settings, ledger, list(before.values()), patience_s=_PATIENCE_S
        )
        rows = await ledger.read(faxes.some, report.requested)
    report.repaired = [row for row in rows if row.state is State.STORED]
    report.failed = [
        row
        for row in rows
        if row.state is not State.STORED and row.attempts > before[row.id].attempts
    ]


async def _fetch(settings: Config, report: VerifyReport, storage_lock: StorageLock) -> None:
    """Without a daemon: fetch what was asked for, and all else that is due, within the limits."""
    from poller.ingest.site import open_site
    from poller.metrics import Metrics

    async with open_site(
        settings, os.environ, metrics=Metrics(VERSION), storage_lock=storage_lock
    ) as site:
        if not await site.shop.gate.check():
            raise CannotStart(f"the storage is unusable: {site.shop.gate.reason}")
        await asyncio.gather(
            *(account.workers.run_until_idle() for account in site.accounts.values())
        )
        rows = [await site.shop.ledger.read(faxes.one, fax) for fax in report.requested]
    report.repaired = [row for row in rows if row.state is State.STORED]
    report.failed = [row for row in rows if row.state is not State.STORED]


def _name(row: FaxRow) -> str:
    return f"{row.account}/{row.user}/{row.fax_id}"


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A bar on stderr where that is a terminal, else nothing."""
    console = Console(stderr=True)
    columns = (TextColumn("verifying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=console, disable=not console.is_terminal, transient=True
    ) as bar:
        task = bar.add_task("verifying", total=total)
        yield lambda count: bar.advance(task, count)


def _print(report: VerifyReport) -> None:
    """Problems first; nothing of it is wrapped, so that paths can be copied."""
    console = Console()
    for one in report.damaged:
        row = one.row
        name = f"{row.account}/{row.user}/{row.fax_id}"
        say(console, f"damaged  {name}  {row.file}: {one.finding.why}", "bold red")
    for fax in report.failed:
        error = fax.last_error or "its account or the storage could not be used"
        say(console, f"not fetched  {_name(fax)}: {error}", "bold red")
    for sentence in report.refused:
        say(console, f"not asked for  {sentence}", "bold red")
    for file in report.unknown_files:
        say(console, f"unknown  {file} belongs to no fax; it is left alone", "yellow")
    table = Table(show_header=False, box=None)
    for name, value in _counts(report).items():
        table.add_row(name, str(value))
    console.print(table)
    for sentence in _what_next(report):
        say(console, sentence)


def _counts(report: VerifyReport) -> dict[str, Any]:
    return {
        "checked": report.checked,
        "ok": report.ok,
        "taken": report.taken,
        "damaged": len(report.damaged),
        "unknown files": report.unknown,
        "found by sweep": report.sweeps["found_by_sweep"],
        "found by deep sweep": report.sweeps["found_by_deep_sweep"],
        "oldest deep sweep": report.sweeps["oldest_deep_sweep"] or "none yet",
    }


def _what_next(report: VerifyReport) -> Iterator[str]:
    count = len(report.requested)
    if report.stopped is not None:
        yield f"Not all are fetched again yet: {report.stopped}."
    if count:
        done, noun = len(report.repaired), "fax" if count == 1 else "faxes"
        yield f"Fetched again, or well after all: {done} of {count} {noun}."
    elif report.damaged:
        yield "`poller verify --repair` fetches damaged faxes again."
