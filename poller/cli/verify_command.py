"""`poller verify`: do the files on disk match the ledger? `--repair` and `--taken` fetch again."""

import asyncio
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from poller.cli import bootstrap, stdio
from poller.cli.console import answer, print_figures, progress, say
from poller.cli.follow import wait_for_faxes
from poller.cli.foreground import work_or_follow
from poller.cli.lookup import counted, fax_name, find_one, name_of
from poller.cli.taken import no_more
from poller.clock import SystemClock
from poller.config.model import Config
from poller.errors import CannotStart, LockHeld, StorageConflict, StorageUnusable
from poller.ingest.audit import Auditor, Checked
from poller.ingest.runtime import Runtime
from poller.ledger import FaxRow, Ledger, State, StreamRow, faxes, jobs, meta, streams
from poller.status import instant
from poller.store import Condition, storage_of

_STRANGERS_SHOWN = 1000
_HANG_TIMEOUT_S = 120.0


@dataclass
class VerifyReport:
    """The findings and the outcome, as shown, and the exit code."""

    conditions: Counter[Condition] = field(default_factory=Counter)
    damaged: list[dict[str, Any]] = field(default_factory=list)
    unreadable: list[dict[str, Any]] = field(default_factory=list)
    left_over: list[dict[str, Any]] = field(default_factory=list)
    unknown: int = 0
    unknown_files: list[str] = field(default_factory=list)
    sweeps: dict[str, Any] = field(default_factory=dict)
    asked: dict[int, FaxRow] = field(default_factory=dict)  # their rows before the request
    refused: list[str] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    by_daemon: bool = False
    stopped: str | None = None  # why it stopped waiting for the service
    unread: set[int] = field(default_factory=set)
    amiss: set[int] = field(default_factory=set)  # damaged or requested, and not fetched yet

    def found(self, one: Checked) -> None:
        """Note what is on disk for one fax."""
        self.conditions[one.condition] += 1
        row = one.row
        named = {"fax_id": row.fax_id, "path": row.file, "why": one.finding.why}
        whose = {"account": row.account, "user": row.user, "direction": row.direction}
        if one.is_damaged:
            self.amiss.add(row.id)
            self.damaged.append(named | whose)
        elif one.is_unreadable:
            self.unreadable.append(named | whose)
            self.unread.add(row.id)
        elif one.is_left_over:
            self.left_over.append(named | whose)

    def tried(self, rows: Sequence[FaxRow]) -> None:
        """Note the requested faxes' present state; the service may not have tried some yet."""
        for row in rows:
            if row.state is State.STORED:
                self.repaired.append(fax_name(row))
                self.amiss.discard(row.id)
            elif not self.by_daemon or row.attempts > self.asked[row.id].attempts:
                self.failed.append({"fax": fax_name(row), "error": row.last_error})

    def counts(self) -> dict[str, int]:
        return {
            "checked": self.conditions.total(),
            "ok": self.conditions[Condition.OK],
            "taken": self.conditions[Condition.TAKEN],
        }

    def shown(self) -> dict[str, Any]:
        return {
            **self.counts(),
            "damaged": self.damaged,
            "unreadable": self.unreadable,
            "left_over": self.left_over,
            "unknown": self.unknown,
            "unknown_files": self.unknown_files,
            "sweeps": self.sweeps,
            "requested": len(self.asked),
            "by_daemon": self.by_daemon,
            "repaired": self.repaired,
            "failed": self.failed,
            "refused": self.refused,
            "stopped": self.stopped,
        }


def verify(
    paths: Sequence[Path], *, repair: bool, taken: Sequence[str], thorough: bool, as_json: bool
) -> int:
    """Compare ledger and disk. Raises CannotStart if the storage cannot be read."""
    settings = bootstrap.load(paths)
    if (repair or taken) and not bootstrap.is_running(settings):
        bootstrap.read_all_secrets(settings)  # fail before an hour of hashing, not after it
    report = asyncio.run(_verify(settings, taken, repair=repair, thorough=thorough))
    try:
        if report.asked:
            _fetch_again(settings, report)
    finally:  # print the findings even if nothing can be fetched now
        answer(report.shown(), lambda: _print(report), as_json=as_json)
    return 1 if report.amiss or report.unreadable or report.refused else 0


def _fetch_again(settings: Config, report: VerifyReport) -> None:
    """Fetch the requested faxes: here if the lock is free, else the running service does it."""
    try:
        work_or_follow(
            settings,
            "verify",
            sys.stderr,
            work=partial(_work, report),
            follow=partial(_follow, settings, report),
        )
    except LockHeld as held_by:
        raise LockHeld(
            f"{held_by}. The requests are in the ledger: the service or `poller once` fetches these faxes"
        ) from held_by


async def _verify(
    settings: Config, taken: Sequence[str], *, repair: bool, thorough: bool
) -> VerifyReport:
    report = VerifyReport()
    async with bootstrap.ledger_beside(settings, readonly=False) as ledger:
        named = {(await find_one(ledger, name)).id for name in taken}
        whole = await _audit(settings, ledger, report, named, thorough=thorough)
        wanted = named - whole - report.unread
        if repair:
            wanted |= report.amiss
        if wanted:
            before = await ledger.read(faxes.some, list(wanted))
            requested = await ledger.write(jobs.fetch_again, list(wanted), bootstrap.now())
            report.asked = {row.id: row for row in before if row.id in requested}
            report.amiss.update(report.asked)
            refused = [row for row in before if row.id not in report.asked]
            report.refused = sorted(f"{fax_name(row)}: {_why_not(row)}" for row in refused)
        for ids, why in (
            (whole, "its files are there and whole"),
            (named & report.unread, "its files are there but cannot be read"),
        ):
            rows = await ledger.read(faxes.some, sorted(ids))
            report.refused += [f"{fax_name(row)}: {why}" for row in rows]
    return report


async def _audit(
    settings: Config, ledger: Ledger, report: VerifyReport, named: set[int], *, thorough: bool
) -> set[int]:
    """Note what is on disk; return which of the `named` faxes are there and whole."""
    storage_id = await ledger.read(meta.value, meta.STORAGE_ID)
    if storage_id is None:
        raise CannotStart(
            "the ledger knows no storage yet; start the service once, which sets it up"
        )
    users = await ledger.read(streams.all_streams)
    report.sweeps = _sweeps([row for row in users if not row.removed])
    total = sum(row.stored for row in users)
    whole = set()
    try:
        with closing(storage_of(settings)) as storage, progress("verifying") as show:
            await storage.prepare(storage_id)
            if thorough and not storage.reading_is_free:
                stdio.complain(
                    f"Reading all {total:,} faxes from {storage.where()}: its owner may charge for it."
                )
            auditor = Auditor(ledger, storage, SystemClock())
            async for page in auditor.pages(thorough=thorough or storage.reading_is_free):
                for one in page:
                    report.found(one)
                    if one.row.id in named and one.finding.condition is Condition.OK:
                        whole.add(one.row.id)
                checked = report.conditions.total()
                show(checked, total, f"{checked:,} of {total:,}")
            async for file in auditor.strangers():
                report.unknown += 1
                if len(report.unknown_files) < _STRANGERS_SHOWN:
                    report.unknown_files.append(file)
    except (StorageUnusable, StorageConflict) as error:
        raise CannotStart(f"the files cannot be checked: {error}") from error
    return whole


def _sweeps(users: Sequence[StreamRow]) -> dict[str, Any]:
    """Count the faxes that polls missed and a sweep found, and return the oldest deep sweep."""
    ends = [row.deep_sweep_end for row in users if row.deep_sweep_end is not None]
    return {
        "found_by_sweep": sum(row.found_by_sweep for row in users),
        "found_by_deep_sweep": sum(row.found_by_deep_sweep for row in users),
        "oldest_deep_sweep": instant(min(ends, default=None)),
        "never_deep_swept": len(users) - len(ends),
    }


def _why_not(row: FaxRow) -> str:
    if row.state is State.DISMISSED:
        return "it is dismissed; `poller retry` undoes this"
    if row.deleted_at is not None:
        return no_more(row)
    return "it was never stored" if row.file is None else "its user is no longer configured"


async def _follow(settings: Config, report: VerifyReport) -> None:
    """Wait until the running service has tried them all."""
    report.by_daemon = True
    async with bootstrap.ledger_beside(settings, readonly=True) as ledger:
        report.stopped = await wait_for_faxes(
            settings, ledger, list(report.asked.values()), hang_timeout_s=_HANG_TIMEOUT_S
        )
        report.tried(await ledger.read(faxes.some, list(report.asked)))


async def _work(report: VerifyReport, runtime: Runtime) -> None:
    """Fetch the requested faxes and all others that are due, within the limits."""
    lanes = [lane for account in runtime.accounts.values() for lane in account.lanes.values()]
    await asyncio.gather(*(lane.workers.run_until_idle() for lane in lanes))
    report.tried(await runtime.services.ledger.read(faxes.some, list(report.asked)))


def _print(report: VerifyReport) -> None:
    """Print problems first; wrap no line, so that people can copy paths."""
    for what, found in (("damaged", report.damaged), ("unreadable", report.unreadable)):
        for one in found:
            say(f"{what}  {name_of(one)}  {one['path']}: {one['why']}", "bold red")
    for fax in report.failed:
        error = fax["error"] or "its account or the storage could not be used"
        say(f"not fetched  {fax['fax']}: {error}", "bold red")
    for sentence in report.refused:
        say(f"not requested  {sentence}", "bold red")
    for one in report.left_over:
        say(f"left over  {name_of(one)}  {one['path']}: {one['why']}; the fax was taken", "yellow")
    for file in report.unknown_files:
        say(f"unknown  {file} belongs to no fax; poller leaves it alone", "yellow")
    print_figures(
        {
            **report.counts(),
            "damaged": len(report.damaged),
            "unreadable": len(report.unreadable),
            "left over": len(report.left_over),
            "unknown files": report.unknown,
            "found by sweep": report.sweeps["found_by_sweep"],
            "found by deep sweep": report.sweeps["found_by_deep_sweep"],
            "oldest deep sweep": report.sweeps["oldest_deep_sweep"] or "none yet",
        }
    )
    if report.stopped is not None:
        say(f"Some faxes are not fetched again yet: {report.stopped}.")
    if report.asked:
        of = counted(len(report.asked), "fax", "faxes")
        say(f"Repaired: {len(report.repaired)} of {of}.")
    elif report.damaged:
        say("`poller verify --repair` fetches damaged faxes again.")
    if report.unreadable:
        say(
            "Unreadable files may be whole, so poller does not fetch these faxes again: see "
            "`poller help fax-unreadable`."
        )
