"""`poller status`: problems, accounts and users, from the ledger, also while the service runs."""

import asyncio
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from poller import cluster
from poller import status as current
from poller.cli import bootstrap
from poller.cli.console import answer
from poller.cli.status_table import print_status
from poller.config.model import Account, Config
from poller.evidence import EvidenceStore
from poller.problems import not_in_time, problems
from poller.runtime_report import RuntimeReport
from poller.store import store_of
from poller.topic import see


def status(paths: Sequence[Path], *, as_json: bool) -> int:
    """Print the status as tables, problems first, or as JSON."""
    settings = bootstrap.load(paths)
    shown = asyncio.run(look(settings))
    shown["problems"] = problems(shown, list(reasons(shown, settings)))
    answer(shown, lambda: print_status(shown), as_json=as_json, indent=2)
    return 0


async def look(settings: Config) -> dict[str, Any]:
    """Read what `status --json` shows.

    Print only after the ledger is closed: a slow terminal must not hold up the writer.
    """
    async with bootstrap.ledger_beside(settings, readonly=True) as ledger:
        running = bootstrap.is_running(settings)
        seen = await cluster.look(ledger)
        reports = await cluster.reports(ledger, seen) if running else {}
        own = "" if seen is None else cluster.own_name(settings)
        report = reports.get(own)
        storage = await bootstrap.storage_now(settings, ledger, shortly=running)
        around = current.Surroundings(
            _storage(storage, report),
            running,
            evidence=EvidenceStore(settings.state_directory, settings.evidence_max),
            paces={
                one.name: pace_of(one, reports.get(cluster.holder_name(seen, one.app_id)))
                for one in settings.accounts
            },
            rejected=report.rejected if report else None,
            alarm_after=settings.retry.alarm_after,
            accounts=settings.accounts,
            catching_up=cluster.catching_up(reports),
            node=own or None,
            cluster=seen,
        )
        return await current.status(ledger, bootstrap.now(), around)


def _storage(seen: dict[str, Any], report: RuntimeReport | None) -> dict[str, Any]:
    """Combine this command's finding with the service's, which runs as another user in a sandbox.

    If the service still uses another directory, because the configuration changed, use only its word.
    """
    if report is None:
        return seen
    if report.directory != seen["directory"]:
        seen = seen | {"directory": report.directory, "reason": None, "free_bytes": None}
    reason = report.reason or seen["reason"]
    return seen | {"usable": reason is None, "reason": reason}


def pace_of(account: Account, report: RuntimeReport | None) -> current.Pace:
    limit, name = account.limits.requests_per_second, account.name
    if report is None:
        return current.Pace(limit)
    rate, at_war = report.rates.get(name, limit), name in report.at_war
    return current.Pace(limit, rate, token_war=at_war, slow=report.slow.get(name))


def reasons(shown: dict[str, Any], settings: Config) -> Iterator[str]:
    """Yield the problems that only a command outside the service sees, as sentences."""
    configured, used = store_of(settings).where(), shown["storage"]["directory"]
    if configured != used:
        yield see(
            f"the running service still stores in {used}; `systemctl restart poller` makes it use "
            f"the configured {configured}",
            "install",
        )
    if not shown["running"] and shown["nodes"] is None:
        yield see(
            "poller is not running: `systemctl start poller` starts it, "
            "`systemctl status poller` shows why it ended",
            "service-does-not-start",
        )
    elif shown["running"] and (late := not_in_time(shown)) is not None:
        yield late
    if not shown["storage"]["usable"]:
        yield see(f"nothing is fetched: {shown['storage']['reason']}", "storage-unusable")
    if shown["ledger"]["problem"] is not None:
        yield current.damaged(shown["ledger"]["problem"])
    if shown["ledger"]["lost_at"] is not None:
        yield current.lost(datetime.fromisoformat(shown["ledger"]["lost_at"]))
