"""`poller explain`: one fax as a timeline, from the ledger, also while the service runs."""

import asyncio
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from poller import deletion
from poller.cli import bootstrap
from poller.cli.console import answer, say
from poller.cli.lookup import find_one, name_of
from poller.cli.taken import how_to_have_it_again, taken
from poller.config.model import Config
from poller.evidence import EvidenceStore
from poller.ledger import Attempt, Errand, FaxRow, errands, faxes
from poller.ledger.tables import JobKind
from poller.status import instant, span
from poller.store import store_of
from poller.stream import Direction
from poller.window import Interval

_FOUND_BY = {
    "newest": "a poll",
    "gap": "a poll, in a gap",
    "sweep": "the sweep",
    "deep_sweep": "the deep sweep",
    "not-downloaded": "the deep sweep, in the list of faxes never downloaded",
    "backfill": "a backfill",
    "witness": "a check whether a known fax is still listed",
    "canary": "a check whether a known fax is still listed",  # its name before migration 0008
    "rebuild": "its sidecar, when the ledger was rebuilt",
}
# Show nothing of `listed`: numbers and names are in the sidecar, for those who may read it.
_FACTS = (
    *("account", "user", "direction", "fax_id", "state", "found_by"),
    *("first_listed_at", "first_window", "last_listed_at", "last_window"),
    *("attempts", "failures", "last_error", "next_attempt_at"),
    *("quarantined_at", "dismissed_at", "dismiss_reason", "stored_at"),
    *("file", "format", "bytes", "sha256", "pages", "damaged", "harm", "unreadable", "deleted_at"),
)
_CALLED_IN_THE_LEDGER = {"first_listed_at": "first_seen_at", "harm": "damage"}


def explain(paths: Sequence[Path], *, fax_id: str, as_json: bool) -> int:
    """Print the history of one fax. Raises NotDone (1), UsageError (2) for an ambiguous id."""
    settings = bootstrap.load(paths)
    shown = asyncio.run(_explained(settings, fax_id))
    answer(shown, lambda: _print(shown), as_json=as_json, indent=2)
    return 0


async def _explained(settings: Config, fax_id: str) -> dict[str, Any]:
    async with bootstrap.ledger_beside(settings, readonly=True) as ledger:
        fax = await find_one(ledger, fax_id)
        history = await ledger.read(faxes.history, fax.id)
        gone = await taken(settings, ledger, [fax])
        asked = await ledger.read(errands.of_faxes, [fax.id], JobKind.DELETE)
    planned = _deletion(settings, fax, asked)
    store = EvidenceStore(settings.state_directory, settings.evidence_max)
    return {
        **{name: getattr(fax, _CALLED_IN_THE_LEDGER.get(name, name)) for name in _FACTS},
        "completed_at" if fax.direction is Direction.SENT else "received_at": fax.received_at,
        "file": None if fax.file is None else store_of(settings).where(fax.file),
        "taken": None if gone is None else bool(gone),
        "deletion": planned,
        "evidence": await store.find(fax.app_id, fax.user_id, fax.fax_id),
        "timeline": sorted(_timeline(fax, history, planned), key=lambda one: str(one["at"])),
    }


def _deletion(settings: Config, fax: FaxRow, asked: Sequence[Errand]) -> dict[str, Any] | None:
    """Return when eFax is to delete the fax and why it refused; None if poller leaves it there."""
    for one in asked:
        return {"next_attempt_at": one.due, "refused": one.last_error}
    rules = [
        user.delete
        for user in settings.users
        if (user.app_id, user.user_id) == (fax.app_id, fax.user_id)
    ]
    for rule in rules:
        if rule.after is not None and fax.stored_at is not None:
            due = fax.stored_at + rule.after
            if deletion.why_kept(fax, rule, due) is None:
                return {"next_attempt_at": due, "refused": None}
    return None


def _timeline(
    fax: FaxRow, history: Sequence[Attempt], planned: dict[str, Any] | None
) -> Iterator[dict[str, Any]]:
    """Yield the steps in time order; the ledger keeps the last fifty attempts and commands."""
    if fax.received_at is not None:
        is_sent = fax.direction is Direction.SENT
        yield _moment(fax.received_at, "completed at eFax" if is_sent else "received by eFax")
    found_by = _FOUND_BY.get(fax.found_by, fax.found_by)
    yield _moment(fax.first_seen_at, f"first listed, by {found_by}", fax.first_window)
    if fax.last_listed_at > fax.first_seen_at:
        yield _moment(fax.last_listed_at, "last listed (to within ten minutes)", fax.last_window)
    for one in history:
        yield {"at": instant(one.at), "what": one.outcome, "why": one.error}
    if fax.quarantined_at is not None:
        yield _moment(fax.quarantined_at, "quarantined")
    if fax.next_attempt_at is not None:
        yield _moment(fax.next_attempt_at, "next attempt")
    if planned is not None and planned["next_attempt_at"] is not None:
        yield _moment(
            planned["next_attempt_at"], "to be deleted at eFax, if its files are still intact then"
        )


def _moment(at: datetime, what: str, window: Interval | None = None) -> dict[str, Any]:
    why = window and "window {} to {}".format(*span(window))
    return {"at": instant(at), "what": what, "why": why}


def _print(shown: dict[str, Any]) -> None:
    """Print trouble first; wrap no line, so that people can copy paths."""
    name = name_of(shown)
    say(f"{name}: {shown['state']}", None if shown["state"] == "stored" else "bold")
    for problem in _problems(shown):
        say(problem, "bold red")
    if shown["file"] is not None:
        pages = "" if shown["pages"] is None else f", pages: {shown['pages']}"
        say(f"file      {shown['file']}")
        say(f"          {shown['bytes']} bytes{pages}, sha256 {shown['sha256']}")
    if shown["format"] == "json":
        say("          eFax has no image of it; this is its sidecar.")
    if shown["taken"]:
        say("          no longer there: a consumer took its files, which is normal.")
        if shown["deleted_at"] is None:
            say(f"          {how_to_have_it_again(name)}.")
    if shown["deleted_at"] is not None:
        say(f"deleted   at eFax, {shown['deleted_at']}; it cannot be fetched again")
    say(f"attempts  {shown['attempts']}")
    for path in shown["evidence"]:
        say(f"evidence  {path}")
    say("")
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for one in shown["timeline"]:
        table.add_row(f"{one['at'][:10]} {one['at'][11:]}", one["what"], one["why"] or "")
    console = Console()
    console.width = max(console.width, 4000 if not console.is_terminal else 0)
    console.print(table, markup=False, highlight=False)


def _problems(shown: dict[str, Any]) -> Iterator[str]:
    if shown["state"] in ("pending", "quarantined") and shown["last_error"]:
        yield f"failures in a row: {shown['failures']}; the last error: {shown['last_error']}"
    if shown["dismissed_at"] is not None:
        yield f"dismissed: {shown['dismiss_reason']}"
    if shown["damaged"]:
        how = [one["why"] for one in shown["timeline"] if one["what"] == "stored" and one["why"]]
        why = f": {how[-1]}" if how else ""
        yield f"eFax sent it damaged twice in the same way, so poller stored it as received{why}"
    if shown["unreadable"]:
        yield f"its files cannot be read: {shown['harm']}; see `poller help fax-unreadable`"
    elif shown["harm"] is not None:
        see = "" if shown["deleted_at"] else "; see `poller verify --repair`"
        yield f"its files have changed since they were stored: {shown['harm']}{see}"
    if shown["deletion"] is not None and shown["deletion"]["refused"]:
        left = "" if shown["deletion"]["next_attempt_at"] else ", and poller leaves it there"
        yield f"eFax did not delete it{left}: {shown['deletion']['refused']}"
