"""`poller status`: how it is doing, from the ledger, beside a running daemon too."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from poller import VERSION
from poller.cli import setup
from poller.config.model import Config
from poller.evidence import EvidenceStore
from poller.status import damaged, status
from poller.web.problems import problems

_PIPED_WIDTH = 160


def show_status(paths: Sequence[Path], *, as_json: bool) -> int:
    """Print the status as a table, problems first, or as JSON."""
    settings = setup.load(paths)
    shown = asyncio.run(_status(settings))
    if as_json:
        print(json.dumps(shown, indent=2))
    else:
        _print(shown)
    return 0


async def _status(settings: Config) -> dict[str, Any]:
    """Nothing is printed while the ledger is open: a slow reader must not hold up the writer."""
    async with setup.ledger_beside(settings, readonly=True) as ledger:
        return await status(
            ledger,
            now=setup.now(),
            running=setup.is_running(settings),
            version=VERSION,
            storage=await setup.storage_now(settings, ledger),
            evidence=EvidenceStore(settings.state_directory, settings.evidence_max),
        )


def _print(shown: dict[str, Any]) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    reasons = [] if shown["running"] else ["poller is not running"]
    if not shown["storage"]["usable"]:
        reasons.append(f"nothing is fetched: {shown['storage']['reason']}")
    if shown["ledger"]["problem"] is not None:
        reasons.append(damaged(shown["ledger"]["problem"]))
    for problem in problems(shown, reasons):
        console.print(problem, style="bold red", markup=False, highlight=False, soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("user", "lag", "last poll", "stored", "pending", "quarantined", "gaps"):
        is_text = name in ("user", "last poll")
        table.add_column(name, no_wrap=True, justify="left" if is_text else "right")
    for row in sorted(shown["users"], key=_trouble_first):
        table.add_row(*_cells(row), style=_style(row))
    console.print(table)
    for line in _lines(shown):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _lines(shown: dict[str, Any]) -> Iterator[str]:
    """What has to be named: faxes in trouble, and gaps that nobody tries any more."""
    for fax in shown["quarantined_faxes"]:
        kept = f"  evidence: {fax['evidence']}" if fax["evidence"] else ""
        yield f"quarantined {_short(fax['since'])}  {_name(fax)}  {fax['error']}{kept}"
    for fax in shown["damaged_faxes"]:
        yield f"damaged  {_name(fax)}  {fax['path']}: {fax['why']}"
    for row in shown["users"]:
        for gap in row["dismissed_gaps"]:
            why = f"  {gap['reason']}" if gap["reason"] else ""
            who = f"{row['account']}/{row['user']}"
            yield f"dismissed gap  {who}  {gap['from']} to {gap['to']}{why}"


def _name(fax: dict[str, Any]) -> str:
    return f"{fax['account']}/{fax['user']}/{fax['fax_id']}"


def _cells(row: dict[str, Any]) -> list[str]:
    name = f"{row['account']}/{row['user']}" + (" (removed)" if row["removed"] else "")
    lag = "" if row["lag_s"] is None else str(timedelta(seconds=round(row["lag_s"])))
    return [
        name,
        lag,
        _short(row["last_poll_at"]),
        str(row["stored"]),
        str(row["pending"]),
        str(row["quarantined"]),
        str(len(row["gaps"])),
    ]


def _short(instant: str | None) -> str:
    return "never" if instant is None else f"{instant[:10]} {instant[11:19]}"


def _trouble_first(row: dict[str, Any]) -> tuple[bool, str, str]:
    return not _in_trouble(row), row["account"], row["user"]


def _in_trouble(row: dict[str, Any]) -> bool:
    troubles = ("refused", "last_error", "quarantined", "damaged_files", "failed_gaps")
    return any(row[name] for name in troubles)


def _style(row: dict[str, Any]) -> str:
    if row["removed"]:
        return "dim"
    return "red" if _in_trouble(row) else ""
