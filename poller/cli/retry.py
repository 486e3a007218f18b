"""`poller retry`: make quarantined or named faxes, or a gap, due now; a running daemon does the work."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from poller.cli import setup
from poller.cli.beside import wait_for_faxes
from poller.cli.naming import UnknownGap, counted, find_one, find_user, stretch
from poller.config.model import Config
from poller.errors import UsageError
from poller.ledger import FaxRow, Ledger, State

_PATIENCE_S = 60.0  # while the running daemon comes on with nothing
_FOLLOWED = 1000
_STOPPED = "The service does not run: start it (`systemctl start poller`), or run `poller once`."


def retry(
    paths: Sequence[Path], fax_ids: Sequence[str], *, gap: Sequence[str] | None, as_json: bool
) -> int:
    """Make faxes or a gap due; raises UnknownFax and UnknownGap (1), UsageError (2).

    It undoes `dismiss`; a damaged fax is fetched again. For people it waits until a running daemon
    has tried the faxes, where that can fetch now.
    """
    if gap is not None and fax_ids:
        raise UsageError("retry takes either faxes or --gap")
    settings = setup.load(paths)
    if gap is None:
        asyncio.run(_retry(settings, fax_ids, as_json=as_json))
        return 0
    count = asyncio.run(_retry_gap(settings, gap))
    if as_json:
        print(json.dumps({"made_due": count}))
    else:
        print(f"{counted(count, 'stretch', 'stretches')} of time made due.")
        print("The service lists them." if setup.is_running(settings) else _STOPPED)
    return 0


async def _retry(settings: Config, fax_ids: Sequence[str], *, as_json: bool) -> None:
    async with setup.ledger_beside(settings, readonly=False) as ledger:
        if fax_ids:
            rows = [await find_one(ledger, fax_id) for fax_id in fax_ids]
            count = await ledger.make_due([row.id for row in rows], setup.now())
        else:
            rows = await ledger.quarantined(_FOLLOWED)
            count = await ledger.make_due(None, setup.now())
        if as_json:
            print(json.dumps({"made_due": count}))
        elif not count:
            print("Nothing to do: stored, and well." if fax_ids else "No fax is quarantined.")
        else:  # at once: what follows may take a minute
            print(f"{counted(count, 'fax was', 'faxes were')} made due.", flush=True)
            await _follow(settings, ledger, rows)


async def _follow(settings: Config, ledger: Ledger, rows: Sequence[FaxRow]) -> None:
    """Say what becomes of the faxes; what cannot come now is not waited for."""
    if not setup.is_running(settings):
        print(_STOPPED)
        return
    storage = await setup.storage_now(settings, ledger)
    if not storage["usable"]:
        print(f"The service fetches nothing now: {_clause(storage['reason'])}.")
        print("It fetches them when that is over.")
        return
    suspended = {
        one.app_id: f"account {one.account} is suspended: {_clause(one.reason)}"
        for one in await ledger.accounts(include_removed=False)
        if one.suspended_until is not None
    }
    _print_suspended(rows, suspended)
    configured = {(user.app_id, user.user_id) for user in settings.users}
    rows = [
        row
        for row in rows
        if (row.app_id, row.user_id) in configured and row.app_id not in suspended
    ]
    if rows:
        stopped = await wait_for_faxes(settings, ledger, rows, patience_s=_PATIENCE_S)
        _print_tried(await ledger.faxes([row.id for row in rows]), stopped)


def _clause(reason: str | None) -> str:
    return (reason or "eFax cannot be reached").rstrip(".")


def _print_suspended(rows: Sequence[FaxRow], suspended: Mapping[str, str]) -> None:
    for app_id, why in suspended.items():
        count = sum(row.app_id == app_id for row in rows)
        if count:
            print(f"{counted(count, 'fax', 'faxes')} must wait: {why}.")
            print("The service fetches them when that is over.")


def _print_tried(tried: Sequence[FaxRow], stopped: str | None) -> None:
    left = [row for row in tried if row.state is not State.STORED]
    print(f"{len(tried) - len(left)} of {counted(len(tried), 'fax is', 'faxes are')} stored.")
    for row in left:
        name = f"{row.account}/{row.user_name}/{row.fax_id}"
        print(f"{row.state.value}  {name}: {row.last_error or 'not tried yet'}")
    if stopped is not None:
        print(f"It is not waited for the rest: {stopped}.")


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
