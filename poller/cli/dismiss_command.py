"""`poller dismiss`: end the alert for a fax or gap that cannot be fetched; `retry` undoes it."""

import asyncio
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from poller.cli import bootstrap
from poller.cli.console import answer
from poller.cli.lookup import NotDone, change_gap, counted, find_one
from poller.config.model import Config
from poller.errors import UsageError
from poller.ledger import State, fold, jobs


def dismiss(
    paths: Sequence[Path],
    *,
    fax_id: str | None,
    gap: Sequence[str] | None,
    reason: str | None,
    as_json: bool,
) -> int:
    """Dismiss one fax or gap; raises NotDone (1), UsageError (2)."""
    if (fax_id is None) == (gap is None):
        raise UsageError("dismiss takes either FAX_ID or --gap ACCOUNT/USER FROM TO")
    if reason is not None and not reason.strip():
        raise UsageError("--reason is empty")
    settings = bootstrap.load(paths)
    if gap is not None:
        command = partial(fold.dismiss_gap, reason=reason)
        count = asyncio.run(change_gap(settings, gap, command, f"{gap[0]} has no gap"))
        what = f"{counted(count, 'stretch', 'stretches')} of time of {gap[0]}"
        undone = f"retry --gap {' '.join(gap)}"
    elif fax_id is not None and reason is not None:
        count = asyncio.run(_dismiss_fax(settings, fax_id, reason))
        what, undone = f"Fax {fax_id}", f"retry {fax_id}"
    else:
        raise UsageError("dismiss FAX_ID needs --reason TEXT, which poller keeps with the fax")
    said = f"{what} dismissed. `poller {undone}` undoes it."
    answer({"dismissed": count}, lambda: print(said), as_json=as_json)
    return 0


async def _dismiss_fax(settings: Config, fax_id: str, reason: str) -> int:
    async with bootstrap.ledger_beside(settings, readonly=False) as ledger:
        row = await find_one(ledger, fax_id)
        after = await ledger.write(jobs.dismiss, row.id, now=bootstrap.now(), reason=reason)
    if after.state is State.STORED:
        raise NotDone(f"fax {fax_id} is stored: there is nothing to dismiss")
    return 1
