"""`poller purge`: delete faxes at eFax as the rules allow; `--dry-run` lists them and the reasons."""

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from poller import cluster, deletion
from poller.cli import bootstrap
from poller.cli.console import answer, progress, say
from poller.cli.follow import wait
from poller.cli.foreground import work_or_follow
from poller.cli.lookup import configured_user, counted, fax_name
from poller.clock import SystemClock
from poller.config.model import Config, User
from poller.errors import (
    CannotStart,
    LockHeld,
    StorageConflict,
    StorageUnusable,
    UsageError,
)
from poller.ingest.audit import Auditor
from poller.ingest.runtime import Runtime
from poller.ledger import FaxRow, Ledger, deletions, errands, faxes, meta, streams
from poller.ledger.tables import JobKind
from poller.store import Storage, storage_of
from poller.stream import Direction

_PAGE = 256
_HANG_TIMEOUT_S = 120.0


@dataclass
class _Purge:
    """The faxes to delete and the outcome; one that eFax `refused` makes the exit code 1."""

    wanted: dict[int, FaxRow] = field(default_factory=dict)
    deleted: list[FaxRow] = field(default_factory=list)
    kept: list[tuple[FaxRow, str]] = field(default_factory=list)
    refused: bool = False
    stopped: str | None = None  # why it stopped waiting for the service

    def shown(self, *, dry_run: bool) -> dict[str, Any]:
        return {
            "deleted": [fax.fax_id for fax in self.deleted],
            "would_delete": [fax.fax_id for fax in self.wanted.values()] if dry_run else [],
            "kept": [
                {"fax_id": fax.fax_id, "why": why, "account": fax.account, "user": fax.user}
                for fax, why in self.kept
            ],
            "stopped": self.stopped,
        }


def purge(
    paths: Sequence[Path], *, key: str | None, before: datetime | None, dry_run: bool, as_json: bool
) -> int:
    """Delete at eFax, or have a running service do it. Raises UsageError (2), CannotStart (73)."""
    settings = bootstrap.load(paths)
    if key is not None:
        configured_user(settings, key)
    if before is not None and before > bootstrap.now():
        raise UsageError("--before is in the future")
    if not dry_run and not bootstrap.is_running(settings):
        bootstrap.read_all_secrets(settings)  # fail before an hour of hashing, not after it
    report = asyncio.run(_plan(settings, key, before, dry_run=dry_run))
    if report.wanted and not dry_run:
        try:
            work_or_follow(
                settings,
                "purge",
                sys.stderr,
                work=partial(_work, report),
                follow=partial(_follow, settings, report),
            )
        except LockHeld as held_by:
            raise LockHeld(
                f"{held_by}. The requests are in the ledger, and the service will delete these faxes"
            ) from held_by
    answer(report.shown(dry_run=dry_run), lambda: _print(report, dry_run=dry_run), as_json=as_json)
    return 1 if report.refused else 0


# -- the plan --------------------------------------------------------------------------------------


async def _plan(
    settings: Config, key: str | None, before: datetime | None, *, dry_run: bool
) -> _Purge:
    """Find the faxes that the rules allow to delete; unless it is a dry run, request it."""
    report = _Purge()
    async with bootstrap.ledger_beside(settings, readonly=dry_run) as ledger:
        store_id = await ledger.read(meta.value, meta.STORAGE_ID)
        if store_id is None:
            raise CannotStart(
                "the ledger knows no storage yet; start the service once, which sets it up"
            )
        users = await _users(settings, ledger, key)
        try:
            with closing(storage_of(settings)) as storage, progress("reading") as show:
                await storage.prepare(store_id)
                planner = _Planner(ledger, storage, users, before, report)
                async for done in planner.go_through():
                    show(done, None, f"{done:,}")
        except (StorageUnusable, StorageConflict) as error:
            raise CannotStart(f"the files cannot be read: {error}") from error
        if report.wanted and not dry_run:
            rows = list(report.wanted.values())
            await ledger.write(deletions.ask_by_hand, rows, bootstrap.now(), before)
    return report


async def _users(settings: Config, ledger: Ledger, key: str | None) -> dict[int, User]:
    """Return the configured users to purge, by the id of their received stream."""
    configured = {(user.app_id, user.user_id): user for user in settings.users}
    found = {
        row.id: user
        for row in await ledger.read(streams.all_streams, include_removed=False)
        if row.direction is Direction.RECEIVED
        and (user := configured.get((row.app_id, row.user_id))) is not None
    }
    return {id_: user for id_, user in found.items() if key in (None, "/".join(user.names))}


class _Planner:
    """Goes through all faxes of these users and enters each in the report."""

    def __init__(
        self,
        ledger: Ledger,
        storage: Storage,
        users: Mapping[int, User],
        before: datetime | None,
        report: _Purge,
    ) -> None:
        self._ledger = ledger
        self._auditor = Auditor(ledger, storage, SystemClock())
        self._users = users
        self._before = before
        self._report = report
        self._spent: Counter[str] = Counter()  # deletions of the last 24 hours, by App ID

    async def go_through(self) -> AsyncIterator[int]:
        """Yield how many faxes it has looked at so far."""
        now = bootstrap.now()
        for app_id in {user.app_id for user in self._users.values()}:
            since = now - deletion.A_DAY
            self._spent[app_id] = await self._ledger.read(deletions.deleted_since, app_id, since)
        above = done = 0
        while rows := await self._ledger.read(deletions.page, list(self._users), above, _PAGE):
            await self._judge([row for row in rows if row.stream in self._users], now)
            above, done = rows[-1].id, done + len(rows)
            yield done

    async def _judge(self, rows: Sequence[FaxRow], now: datetime) -> None:
        allowed = []
        for row in rows:
            rule = self._users[row.stream].delete
            why = deletion.why_kept(row, rule, now, self._before)
            if why is None and not deletion.left_today(rule, self._spent[row.app_id]):
                why = f"its account has reached delete.max_per_day ({rule.max_per_day})"
            if why is None:
                self._spent[row.app_id] += 1
                allowed.append(row)
            else:
                self._report.kept.append((row, why))
        on_disk = await self._ledger.read(faxes.on_disk_of, [row.id for row in allowed])
        found = {one.row.id: one for one in await self._auditor.look(on_disk, thorough=True)}
        for row in allowed:
            one = found.get(row.id)
            why = "it has no file" if one is None else None
            if one is not None:
                why = deletion.why_unproved(self._users[row.stream].delete, one.finding)
            if why is None:
                self._report.wanted[row.id] = row
            else:
                self._spent[row.app_id] -= 1
                self._report.kept.append((row, why))


# -- the outcome -----------------------------------------------------------------------------------


async def _work(report: _Purge, runtime: Runtime) -> None:
    """Delete the requested faxes in this process, within the limits."""
    accounts = runtime.accounts.values()
    await asyncio.gather(*(account.errands.run_until_idle() for account in accounts))
    await _sum_up(runtime.services.ledger, report)


async def _follow(settings: Config, report: _Purge) -> None:
    """Wait until the running service has tried them all."""
    async with bootstrap.ledger_beside(settings, readonly=True) as ledger:

        async def look() -> tuple[float, float, str]:
            untried = [
                one
                for one in await ledger.read(errands.of_faxes, list(report.wanted), JobKind.DELETE)
                if one.last_error is None
            ]
            return len(report.wanted) - len(untried), len(report.wanted), await _closed(ledger)

        report.stopped = await wait(settings, "deleting", look, hang_timeout_s=_HANG_TIMEOUT_S)
        await _sum_up(ledger, report)


async def _closed(ledger: Ledger) -> str:
    """Return why the service deletes nothing now; empty if it can delete."""
    said = await cluster.reports(ledger, await cluster.look(ledger))
    reasons = [report.reason for report in said.values()]
    if not reasons or None in reasons:
        return ""
    return f"the service deletes nothing while the storage is unusable: {reasons[0]}"


async def _sum_up(ledger: Ledger, report: _Purge) -> None:
    wanted = list(report.wanted)
    open_ones = {
        one.fax.id: one for one in await ledger.read(errands.of_faxes, wanted, JobKind.DELETE)
    }
    for row in await ledger.read(faxes.some, wanted):
        errand = open_ones.get(row.id)
        if row.deleted_at is not None:
            report.deleted.append(row)
        elif errand is None:
            report.kept.append((row, "the fax or its files have changed in the meantime"))
        elif errand.last_error is None:
            report.kept.append((row, "its turn has not come yet; the service will delete it"))
        else:
            report.refused |= errand.first_failed_at is not None
            report.kept.append((row, f"the service will try again: {errand.last_error}"))


def _print(report: _Purge, *, dry_run: bool) -> None:
    """Print deleted faxes last, so that they stay on the screen."""
    for fax, why in report.kept:
        say(f"kept  {fax_name(fax)}: {why}")
    gone = list(report.wanted.values()) if dry_run else report.deleted
    for fax in gone:
        say(f"{'would delete' if dry_run else 'deleted'}  {fax_name(fax)}")
    if report.stopped is not None:
        say(f"Some faxes are not deleted yet: {report.stopped}.")
    what = counted(len(gone), "fax", "faxes")
    say(f"Would delete {what} at eFax." if dry_run else f"Deleted {what} at eFax.")
