"""`poller retry`: make quarantined or named faxes, or a gap, due now; a running daemon does the work."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

from poller.cli import setup
from poller.cli.naming import UnknownGap, find_one, find_user, stretch
from poller.config.model import Config
from poller.errors import UsageError


def retry(
    paths: Sequence[Path], fax_ids: Sequence[str], *, gap: Sequence[str] | None, as_json: bool
) -> int:
    """Make faxes or a gap due; raises UnknownFax and UnknownGap (1), UsageError (2).

    It undoes `dismiss`; a damaged fax is fetched again.
    """
    if gap is not None and fax_ids:
        raise UsageError("retry takes either faxes or --gap")
    settings = setup.load(paths)
    count = asyncio.run(_retry(settings, fax_ids) if gap is None else _retry_gap(settings, gap))
    if as_json:
        print(json.dumps({"made_due": count}))
    else:
        running = setup.is_running(settings)
        who = "The running daemon" if running else "The next run"
        what, does = ("faxes", "fetches") if gap is None else ("stretches of time", "lists")
        print(f"{count} {what} are due now. {who} {does} them.")
    return 0


async def _retry(settings: Config, fax_ids: Sequence[str]) -> int:
    async with setup.ledger_beside(settings, readonly=False) as ledger:
        if not fax_ids:
            return await ledger.make_due(None, setup.now())
        rows = [await find_one(ledger, fax_id) for fax_id in fax_ids]
        return await ledger.make_due([row.id for row in rows], setup.now())


async def _retry_gap(settings: Config, gap: Sequence[str]) -> int:
    bounds = stretch(gap[1:])
    async with setup.ledger_beside(settings, readonly=False) as ledger:
        row = await find_user(ledger, gap[0])
        count = await ledger.make_gap_due(row.id, bounds)
    if not count:
        raise UnknownGap(
            f"nothing of {gap[0]} failed or was dismissed from {gap[1]} to {gap[2]}; "
            "`poller status --json` shows the gaps"
        )
    return count
