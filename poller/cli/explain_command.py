"""`poller explain`: one fax as a timeline, from the ledger, beside a running daemon too."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from poller.cli import bootstrap
from poller.cli.console import say
from poller.cli.lookup import find_one
from poller.cli.taken import how_to_have_it_again, taken
from poller.config.model import Config
from poller.evidence import EvidenceStore
from poller.ledger import Attempt, FaxRow, faxes
from poller.status import instant, span
from poller.window import Interval

_FOUND_BY = {
    "newest": "a poll",
    "gap": "a poll, in a gap",
    "sweep": "the sweep",
    "deep_sweep": "the deep sweep",
    "not-downloaded": "the deep sweep, among what was never downloaded",
    "backfill": "a backfill",
    "canary": "a look whether a known fax is still listed",
    "rebuild": "its sidecar, when the ledger was rebuilt",
}


def explain(paths: Sequence[Path], fax_id: str, *, as_json: bool) -> int:
    """Print what is known of one fax; raises UnknownFax (1), UsageError for an ambiguous id (2)."""
    settings = bootstrap.load(paths)
    shown = asyncio.run(_explained(settings, fax_id))
    if as_json:
        print(json.dumps(shown, indent=2))
    else:
        _print(shown)
    return 0


async def _explained(settings: Config, fax_id: str) -> dict[str, Any]:
    async with bootstrap.ledger_beside(settings, readonly=True) as ledger:
        fax = await find_one(ledger, fax_id)
        history = await ledger.read(faxes.history, fax.id)
        gone = await taken(settings, ledger, [fax])
    store = EvidenceStore(settings.state_directory, settings.evidence_max)
    evidence = await store.find(fax.app_id, fax.user_id, fax.fax_id)
    file = None if fax.file is None else str(settings.storage.directory / fax.file)
    return {
        **_facts(fax, file),
        "taken": None if gone is None else bool(gone),
        "evidence": [str(path) for path in evidence],
        "timeline": sorted(_timeline(fax, history), key=lambda one: str(one["at"])),
    }


def _facts(fax: FaxRow, file: str | None) -> dict[str, Any]:
    """Nothing of `metadata`: whoever may see numbers and names finds them in the sidecar."""
    return {
        "account": fax.account,
        "user": fax.user,
        "fax_id": fax.fax_id,
        "state": fax.state.value,
        "received_at": instant(fax.received_at),
        "found_by": fax.found_by,
        "first_listed_at": instant(fax.first_seen_at),
        "first_window": fax.first_window and span(fax.first_window),
        "last_listed_at": instant(fax.last_listed_at),
        "last_window": fax.last_window and span(fax.last_window),
        "attempts": fax.attempts,
        "failures": fax.failures,
        "last_error": fax.last_error,
        "next_attempt_at": instant(fax.next_attempt_at),
        "quarantined_at": instant(fax.quarantined_at),
        "dismissed_at": instant(fax.dismissed_at),
        "dismiss_reason": fax.dismiss_reason,
        "stored_at": instant(fax.stored_at),
        "file": file,
        "format": fax.format,
        "bytes": fax.bytes,
        "sha256": fax.sha256,
        "pages": fax.pages,
        "damaged": fax.damaged,
        "harm": fax.harm,
    }


def _timeline(fax: FaxRow, history: Sequence[Attempt]) -> Iterator[dict[str, Any]]:
    """Attempts, and what operators did, are kept to the last fifty."""
    if fax.received_at is not None:
        yield _moment(instant(fax.received_at), "received by eFax")
    found_by = _FOUND_BY.get(fax.found_by, fax.found_by)
    yield _moment(instant(fax.first_seen_at), f"listed first, by {found_by}", fax.first_window)
    if fax.last_listed_at > fax.first_seen_at:
        yield _moment(
            instant(fax.last_listed_at), "listed last, within ten minutes", fax.last_window
        )
    for one in history:
        yield {"at": instant(one.at), "what": one.outcome, "why": one.error}
    if fax.quarantined_at is not None:
        yield _moment(instant(fax.quarantined_at), "quarantined")
    if fax.next_attempt_at is not None:
        yield _moment(instant(fax.next_attempt_at), "to be tried next")


def _moment(at: str | None, what: str, window: Interval | None = None) -> dict[str, Any]:
    return {
        "at": at,
        "what": what,
        "why": window and "window {} to {}".format(*span(window)),
    }


def _print(shown: dict[str, Any]) -> None:
    """Trouble first; nothing of it is wrapped, so that paths can be copied."""
    console = Console()
    name = f"{shown['account']}/{shown['user']}/{shown['fax_id']}"
    say(console, f"{name}: {shown['state']}", None if shown["state"] == "stored" else "bold")
    for problem in _problems(shown):
        say(console, problem, "bold red")
    if shown["file"] is not None:
        pages = "" if shown["pages"] is None else f", pages: {shown['pages']}"
        say(console, f"file      {shown['file']}")
        say(console, f"          {shown['bytes']} bytes{pages}, sha256 {shown['sha256']}")
    if shown["taken"]:
        say(console, "          not there any more: its files were taken away, which is normal;")
        say(console, f"          {how_to_have_it_again(name)}.")
    say(console, f"attempts  {shown['attempts']}")
    for path in shown["evidence"]:
        say(console, f"evidence  {path}")
    say(console, "")
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for one in shown["timeline"]:
        table.add_row(f"{one['at'][:10]} {one['at'][11:]}", one["what"], one["why"] or "")
    console.width = max(console.width, 4000 if not console.is_terminal else 0)
    console.print(table, markup=False, highlight=False)


def _problems(shown: dict[str, Any]) -> Iterator[str]:
    if shown["state"] in ("pending", "quarantined") and shown["last_error"]:
        yield f"failures in a row: {shown['failures']}, the last: {shown['last_error']}"
    if shown["dismissed_at"] is not None:
        yield f"dismissed: {shown['dismiss_reason']}"
    if shown["damaged"]:
        how = [one["why"] for one in shown["timeline"] if one["what"] == "stored" and one["why"]]
        why = f": {how[-1]}" if how else ""
        yield f"it came broken from eFax, twice in the same way, and is kept as it came{why}"
    if shown["harm"] is not None:
        yield f"its files are not what was stored: {shown['harm']}; see `poller verify --repair`"
