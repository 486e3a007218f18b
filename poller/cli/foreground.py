"""Do the service's work in this process, within the same limits, or leave it to the service."""

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TextIO, TypeVar

from poller import VERSION
from poller.cli import bootstrap
from poller.cli.lookup import NotDone
from poller.cluster import own_name
from poller.config.model import Account, Config
from poller.errors import CannotStart, LockHeld, UsageError
from poller.ingest.account import AccountRunner
from poller.ingest.lease_keeper import LeaseKeeper
from poller.ingest.runtime import Runtime, open_runtime
from poller.ledger import leases, nodes
from poller.lock import StateLock, StorageLock
from poller.metrics import Metrics
from poller.stream import label

T = TypeVar("T")


@contextmanager
def holding(settings: Config, command: str, log_to: TextIO | None) -> Iterator[StorageLock]:
    """Hold the state for `command` and start the log. Raises LockHeld (75).

    At level `info` log only warnings: the summary shows the rest.
    """
    with StateLock(settings.state_directory, command), StorageLock() as storage_lock:
        bootstrap.start_log(settings, log_to, "warning" if settings.log.level == "info" else None)
        yield storage_lock


def work_or_follow(  # both ways need all of these
    settings: Config,
    command: str,
    log_to: TextIO | None,
    *,
    work: Callable[[Runtime], Coroutine[Any, Any, T]],
    follow: Callable[[], Coroutine[Any, Any, T]],
    needs_storage: bool = True,
    key: str | None = None,
    sends: bool = False,
) -> T:
    """Hold the state and `work`, or `follow` the running service. Raises LockHeld beside a command.

    Where several nodes share the ledger, `follow` the service that holds the account of `key`, or
    any account. Raises NotDone if it `sends` and that service is on another machine: what it sends
    stays in this one's state directory.
    """
    wanted = _accounts_of(settings, key)
    if sends and bootstrap.is_shared(settings):
        _require_here(settings, wanted)
    with ExitStack() as held:
        try:
            storage_lock = held.enter_context(holding(settings, command, log_to))
        except LockHeld:
            if not any(bootstrap.is_running(settings, one.app_id) for one in wanted):
                raise  # the holder is a command, which works only for itself
            return asyncio.run(follow())
        if bootstrap.is_shared(settings) and any(
            bootstrap.is_running(settings, one.app_id) for one in wanted
        ):
            return asyncio.run(follow())
        working = in_runtime(settings, storage_lock, work, needs_storage=needs_storage, key=key)
        return asyncio.run(working)


def _require_here(settings: Config, wanted: Sequence[Account]) -> None:
    held = asyncio.run(bootstrap.holders(settings))
    for account in wanted:
        holder = held.get(account.app_id)
        if holder is not None and holder.report.name != own_name(settings):
            raise NotDone(
                f"node {holder.report.name} works on account {account.name}, and only it can send for "
                "it: run this command on that machine"
            )


def _accounts_of(settings: Config, key: str | None) -> list[Account]:
    """Return the account that ACCOUNT/USER names, or all."""
    name = None if key is None else key.partition("/")[0]
    return [one for one in settings.accounts if name in (None, one.name)]


async def in_runtime(
    settings: Config,
    storage_lock: StorageLock,
    work: Callable[[Runtime], Coroutine[Any, Any, T]],
    *,
    needs_storage: bool = True,
    key: str | None = None,
) -> T:
    """Work with ledger, storage and accounts, or only the account of `key`.

    Raises CannotStart, also for unusable storage, and LockHeld if another node holds an account.
    """
    opening = open_runtime(
        settings,
        os.environ,
        metrics=Metrics(VERSION),
        storage_lock=storage_lock,
        serves=False,
    )
    async with opening as runtime:
        if needs_storage and not await runtime.services.gate.check():
            raise CannotStart(f"the storage is unusable: {runtime.services.gate.reason}")
        if runtime.keeper is None:
            return await work(runtime)
        for account in _accounts_of(settings, key):
            await _take(runtime, runtime.keeper, account)
        return await _while_held(runtime.keeper, work(runtime))


async def _take(runtime: Runtime, keeper: LeaseKeeper, account: Account) -> None:
    taken = await keeper.take(account.app_id)
    if taken is None:
        rows = await runtime.services.ledger.read(nodes.all_nodes)
        lease = (await runtime.services.ledger.read(leases.all_leases))[account.app_id]
        names = [row.report.name for row in rows if row.report.run == lease.holder]
        raise LockHeld(
            f"node {' '.join(names) or 'unknown'} works on account {account.name}; stop poller there "
            "first, or use a command that works beside it"
        )
    await runtime.take_account(account, taken)


async def _while_held(keeper: LeaseKeeper, work: Coroutine[Any, Any, T]) -> T:
    """Renew the leases until the work has ended; end it if one is lost."""
    working = asyncio.create_task(work)
    renewing = asyncio.create_task(keeper.renew_until_lost(), name="leases")
    try:
        await asyncio.wait({working, renewing}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            renewing.result()
        return await working
    finally:
        for task in (working, renewing):
            task.cancel()
        await asyncio.gather(working, renewing, return_exceptions=True)


def account_of(runtime: Runtime, key: str) -> AccountRunner:
    """Return the account of ACCOUNT/USER."""
    return next(
        one for one in runtime.accounts.values() if one.account.name == key.partition("/")[0]
    )


def keep_only(runtime: Runtime, key: str) -> None:
    """Keep only the streams of ACCOUNT/USER, or only ACCOUNT/USER/sent."""
    for account in runtime.accounts.values():
        for state in account.streams:
            if key not in (state.key, label(*state.user.names)):
                del account.lanes[state.direction].states[state.id]
        account.client.suspension.user_count = max(
            len(lane.states) for lane in account.lanes.values()
        )


def require_configured(settings: Config, key: str, option: str = "") -> None:
    """Raise UsageError if the configuration has no such user, or no archive of the sent faxes."""
    if key not in {label(*user.names, direction) for user, direction in settings.streams}:
        raise UsageError(f"{option}{key}: the configuration has no such ACCOUNT/USER")
