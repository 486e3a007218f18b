"""Do the service's work in this process, within the same limits, or leave it to the service."""

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TextIO, TypeVar

from poller import VERSION
from poller.cli import bootstrap
from poller.config.model import Config
from poller.errors import CannotStart, LockHeld, UsageError
from poller.ingest.runtime import Runtime, open_runtime
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
) -> T:
    """Hold the state and `work`, or `follow` the running service. Raises LockHeld beside a command."""
    with ExitStack() as held:
        try:
            storage_lock = held.enter_context(holding(settings, command, log_to))
        except LockHeld:
            if not bootstrap.is_running(settings):
                raise  # the holder is a command, which works only for itself
            return asyncio.run(follow())
        return asyncio.run(in_runtime(settings, storage_lock, work, needs_storage=needs_storage))


async def in_runtime(
    settings: Config,
    storage_lock: StorageLock,
    work: Callable[[Runtime], Coroutine[Any, Any, T]],
    *,
    needs_storage: bool = True,
) -> T:
    """Work with ledger, storage and accounts. Raises CannotStart, also for unusable storage."""
    async with open_runtime(
        settings, os.environ, metrics=Metrics(VERSION), storage_lock=storage_lock
    ) as runtime:
        if needs_storage and not await runtime.services.gate.check():
            raise CannotStart(f"the storage is unusable: {runtime.services.gate.reason}")
        return await work(runtime)


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
