"""`poller retry`: make quarantined or named faxes, or a gap, due now; a running daemon does the work."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from poller.cli import setup
from poller.cli.beside import wait_for_faxes
from poller.cli.naming import UnknownGap, find_one, find_user, stretch
from poller.config.model import Config
from poller.errors import UsageError
from poller.ledger import FaxRow, State

_PATIENCE_S = 60.0  # while the running daemon comes on with nothing
_FOLLOWED = 1000


@dataclass(frozen=True)
class _Retried:
    """How many faxes were made due; where it was waited for the daemon, what became of them."""

    count: int
    tried: Sequence[FaxRow] | None = None
    stopped: str | None = None


def retry(
    paths: Sequence[Path], fax_ids: Sequence[str], *, gap: Sequence[str] | None, as_json: bool
) -> int:
    """Make faxes or a gap due; raises UnknownFax and UnknownGap (1), UsageError (2).

    It undoes `dismiss`; a damaged fax is fetched again. For people it waits until a running daemon
    has tried the faxes.
    """
    if gap is not None and fax_ids:
        raise UsageError("retry takes either faxes or --gap")
    settings = setup.load(paths)
    if gap is not None:
        done = _Retried(asyncio.run(_retry_gap(settings, gap)))
    else:
        done = asyncio.run(_retry(settings, fax_ids, follow=not as_json))
    if as_json:
        print(json.dumps({"made_due": done.count}))
    elif done.tried is None:
        who = "The running daemon" if setup.is_running(settings) else "The next run"
        what, does = ("faxes", "fetches") if gap is None else ("stretches of time", "lists")
        print(f"{done.count} {what} are due now. {who} {does} them.")
    else:
        _print(done, done.tried)
    return 0


async def _retry(settings: Config, fax_ids: Sequence[str], *, follow: bool) -> _Retried:
    async with setup.ledger_beside(settings, readonly=False) as ledger:
        if fax_ids:
            rows = [await find_one(ledger, fax_id) for fax_id in fax_ids]
            count = await ledger.make_due([row.id for row in rows], setup.now())
        else:
            rows = await ledger.quarantined(_FOLLOWED)
            count = await ledger.make_due(None, setup.now())
        configured = {(user.app_id, user.user_id) for user in settings.users}
        rows = [row for row in rows if (row.app_id, row.user_id) in configured]
        if not (follow and count and rows and setup.is_running(settings)):
            return _Retried(count)
        stopped = await wait_for_faxes(settings, ledger, rows, patience_s=_PATIENCE_S)
        return _Retried(count, await ledger.faxes([row.id for row in rows]), stopped)


def _print(done: _Retried, tried: Sequence[FaxRow]) -> None:
    left = [row for row in tried if row.state is not State.STORED]
    print(f"{done.count} faxes were made due; {len(tried) - len(left)} of {len(tried)} are stored.")
    for row in left:
        name = f"{row.account}/{row.user_name}/{row.fax_id}"
        print(f"{row.state.value}  {name}: {row.last_error or 'not tried yet'}")
    if done.stopped is not None:
        print(f"It is not waited for the rest: {done.stopped}.")


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
