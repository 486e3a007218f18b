"""The first steps of most commands: configuration, the right user, the log, the lock."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from poller import cluster, config, lock, log
from poller.cli import stdio
from poller.cli.owner import become_owner
from poller.config import addresses
from poller.config.model import Config, SecretRef
from poller.errors import CannotStart, ConfigError, LedgerUnavailable, Problem
from poller.events import Level
from poller.ledger import Ledger, backend_of, meta, nodes
from poller.ledger.nodes import NodeRow
from poller.store import storage_of, store_of

DEFAULT_CONFIG = Path("/etc/poller")


def load(paths: Sequence[Path]) -> Config:
    """Read the configuration and become the owner of its state; raises ConfigError, CannotStart."""
    return load_as_owner(paths)[0]


def load_as_owner(paths: Sequence[Path]) -> tuple[Config, str | None]:
    """Do the same as `load`; also return the name of the user that root's command became."""
    settings = config.load(list(paths) or [DEFAULT_CONFIG])
    return settings, become_owner(settings.state_directory)


def start_log(settings: Config, stream: TextIO | None = None, level: Level | None = None) -> None:
    """Log to `stream` (stdout) as configured, with a new key if there is none. Hold the state lock.

    Raises ConfigError if the configured key is unusable.
    """
    log.configure(
        level or settings.log.level,
        settings.log.format,
        log.load_or_create_key(settings.state_directory)
        if settings.log.key is None
        else config.read_log_key(settings.log.key, os.environ),
        stream,
        cluster.own_name(settings) if settings.node or is_shared(settings) else None,
    )
    log.install_hooks()


def read_all_secrets(settings: Config) -> None:
    """Read every secret before the command changes anything, and warn about odd ones.

    Raises ConfigError with every secret that cannot be read.
    """
    if problems := unreadable(settings.secrets):
        raise ConfigError(problems)
    for reference in settings.secrets:
        if (problem := config.blanks_problem(reference, os.environ)) is not None:
            stdio.complain(str(problem))


def unreadable(references: Iterable[SecretRef]) -> list[Problem]:
    """Return a problem for each of these secrets that cannot be read."""
    problems: list[Problem] = []
    for reference in references:
        try:
            log.register_secret(config.read_secret(reference, os.environ))
        except ConfigError as error:
            problems += error.problems
    return problems


@asynccontextmanager
async def ledger_beside(settings: Config, *, readonly: bool) -> AsyncIterator[Ledger]:
    """Open the ledger, with or without a running daemon. Raises CannotStart if there is none yet."""
    backend = backend_of(settings, os.environ)
    async with await Ledger.open(
        backend, create=False, readonly=readonly, is_command=True
    ) as ledger:
        yield ledger


async def storage_now(settings: Config, ledger: Ledger, *, shortly: bool = False) -> dict[str, Any]:
    """Look at the storage and at the ledger's disk: usable, why not, free bytes.

    `shortly`: skip the trial of each step; a running service has made it already.
    """
    free: int | None = None
    reason: str | None = None
    try:
        with closing(storage_of(settings)) as storage:
            storage_id = await ledger.read(meta.value, meta.STORAGE_ID)
            reason = await storage.check(storage_id, shortly=shortly)
            free = await storage.free_bytes()
        await ledger.require_room()
    except ConfigError:  # only the service can read the key of its bucket
        pass
    except LedgerUnavailable as error:
        reason = error.told
    return storage_shown(settings, reason, free)


def storage_shown(settings: Config, reason: str | None, free_bytes: int | None) -> dict[str, Any]:
    """Return the status's `storage` object; `reason` is why the storage is unusable."""
    return {
        "directory": store_of(settings).where(),
        "usable": reason is None,
        "reason": reason,
        "free_bytes": free_bytes,
        "min_free_bytes": settings.storage.min_free,
    }


def is_running(settings: Config, app_id: str | None = None) -> bool:
    """Return whether the service runs; `once` and other holders of the state do not count.

    Where several nodes share the ledger: whether one of them holds this account, or any.
    """
    if not is_shared(settings):
        return lock.holder(settings.state_directory) == lock.DAEMON
    with ThreadPoolExecutor(1) as thread:  # the caller's loop may be running
        held = thread.submit(asyncio.run, holders(settings)).result()
    return bool(held) if app_id is None else app_id in held


def is_shared(settings: Config) -> bool:
    return settings.state_url.startswith(addresses.POSTGRESQL)


async def holders(settings: Config) -> dict[str, NodeRow]:
    """Return which service holds each account, by App ID; empty if there is no ledger yet."""
    try:
        async with ledger_beside(settings, readonly=True) as ledger:
            return await ledger.read(nodes.holders)
    except CannotStart:
        return {}


def now() -> datetime:
    return datetime.now(UTC)
