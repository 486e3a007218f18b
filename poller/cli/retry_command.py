"""`poller retry`: make quarantined or named faxes, or a gap, due now, for the service to handle."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from poller.cli import bootstrap
from poller.cli.console import answer, print_json
from poller.cli.follow import wait_for_faxes
from poller.cli.lookup import NotDone, change_gap, counted, fax_name, find_one
from poller.cli.taken import how_to_have_it_again, no_more, taken
from poller.config.model import Config
from poller.errors import UsageError
from poller.ledger import FaxRow, Ledger, State, accounts, faxes, fold, jobs, streams
from poller.stream import Direction

_HANG_TIMEOUT_S = 60.0
_FOLLOWED = 1000
_STOPPED = "The service is not running: `systemctl start poller`, or run `poller once`."


def retry(
    paths: Sequence[Path], *, fax_ids: Sequence[str], gap: Sequence[str] | None, as_json: bool
) -> int:
    """Make faxes or a gap due. Raises NotDone (1), UsageError (2).

    Undo `dismiss`; fetch a damaged fax again. Without `--json`, wait until a running service has
    tried the faxes, unless it cannot fetch now.
    """
    if gap is not None and fax_ids:
        raise UsageError("retry takes either faxes or --gap")
    settings = bootstrap.load(paths)
    if gap is None:
        asyncio.run(_retry(settings, fax_ids, as_json=as_json))
        return 0
    nothing = f"{gap[0]} has no failed or dismissed time"
    count = asyncio.run(change_gap(settings, gap, fold.make_gap_due, nothing))
    said = f"{counted(count, 'stretch', 'stretches')} of time made due."
    then = "The service lists them." if bootstrap.is_running(settings) else _STOPPED
    answer({"made_due": count}, lambda: print(f"{said}\n{then}"), as_json=as_json)
    return 0


async def _retry(settings: Config, fax_ids: Sequence[str], *, as_json: bool) -> None:
    async with bootstrap.ledger_beside(settings, readonly=False) as ledger:
        if fax_ids:
            rows = [await find_one(ledger, fax_id) for fax_id in fax_ids]
            await _refuse_removed(settings, ledger, rows)
        else:
            rows = await ledger.read(jobs.quarantined, _FOLLOWED)
        wanted = [row.id for row in rows] if fax_ids else None
        count = made = await ledger.write(jobs.make_due, wanted, bootstrap.now())
        while wanted is None and made:
            made = await ledger.write(jobs.make_due, None, bootstrap.now())
            count += made
        if as_json:
            print_json({"made_due": count})
            return
        if count:  # print now: the rest may take a minute
            print(f"{counted(count, 'fax was', 'faxes were')} made due.", flush=True)
        elif not fax_ids:
            print("No fax is quarantined.")
        await _print_left_alone(settings, ledger, rows, count)
        if count:
            await _follow(settings, ledger, rows)


async def _print_left_alone(
    settings: Config, ledger: Ledger, rows: Sequence[FaxRow], made_due: int
) -> None:
    """Say why stored faxes are not fetched; mention intact ones only if there are no others."""
    for row in rows:
        if row.deleted_at is not None:
            print(f"Not fetched: {fax_name(row)}: {no_more(row)}.")
    rows = [row for row in rows if row.deleted_at is None]
    for row in rows:
        if row.unreadable:
            print(
                f"{fax_name(row)} is not fetched: it is stored, and its files cannot be read: "
                f"{row.damage}. See `poller help fax-unreadable`."
            )
    stored = [row for row in rows if row.state is State.STORED and row.damage is None]
    gone = await taken(settings, ledger, stored)
    for row in gone or ():
        again = how_to_have_it_again(fax_name(row))
        print(f"{fax_name(row)} is stored, and a consumer took its files away; {again}.")
    if not made_due and len(stored) > len(gone or ()):
        unseen = "; the storage cannot be read now, so nobody knows whether the files are there"
        print(f"Nothing to do: stored{unseen if gone is None else ' and intact'}.")


def _is_configured(settings: Config, row: FaxRow) -> bool:
    return any(
        (row.app_id, row.user_id, row.direction) == (user.app_id, user.user_id, direction)
        for user, direction in settings.streams
    )


async def _refuse_removed(settings: Config, ledger: Ledger, rows: Sequence[FaxRow]) -> None:
    """Refuse faxes of users who are not configured; a running service keeps a user until a reload."""
    for row in rows:
        if _is_configured(settings, row):
            continue
        if (await ledger.read(streams.one, row.stream)).removed or not bootstrap.is_running(
            settings
        ):
            is_sent = row.direction is Direction.SENT
            what = "with `sent.archive`" if is_sent else "any more"
            raise NotDone(
                f"user {row.account}/{row.user} is not configured {what}, so nothing fetches its "
                f"fax {row.fax_id}: put {'that' if is_sent else 'the user'} back into the "
                "configuration, run `systemctl reload poller`, then retry the fax"
            )


async def _follow(settings: Config, ledger: Ledger, rows: Sequence[FaxRow]) -> None:
    """Print the outcome for each fax; do not wait for faxes that cannot be fetched now."""
    if not bootstrap.is_running(settings):
        print(_STOPPED)
        return
    storage = await bootstrap.storage_now(settings, ledger, shortly=True)
    if not storage["usable"]:
        print(f"The service cannot fetch now: {storage['reason'].rstrip('.')}.")
        print("It will fetch the faxes once that is over.")
        return
    suspended = set()
    for one in await ledger.read(accounts.all_accounts, include_removed=False):
        if one.suspended_until is None:
            continue
        suspended.add(one.app_id)
        if count := sum(row.app_id == one.app_id for row in rows):
            why = (one.reason or "eFax cannot be reached").rstrip(".")
            wait = f"{counted(count, 'fax', 'faxes')} must wait"
            print(f"{wait}: account {one.account} is suspended: {why}.")
            print("The service will fetch them once that is over.")
    rows = [row for row in rows if _is_configured(settings, row) and row.app_id not in suspended]
    if rows:
        stopped = await wait_for_faxes(settings, ledger, rows, hang_timeout_s=_HANG_TIMEOUT_S)
        _print_tried(await ledger.read(faxes.some, [row.id for row in rows]), stopped)


def _print_tried(tried: Sequence[FaxRow], stopped: str | None) -> None:
    left = [row for row in tried if row.state is not State.STORED]
    print(f"{len(tried) - len(left)} of {counted(len(tried), 'fax is', 'faxes are')} stored.")
    for row in left:
        print(f"{row.state.value}  {fax_name(row)}: {row.last_error or 'not tried yet'}")
    if stopped is not None:
        print(f"Stopped waiting: {stopped}.")
