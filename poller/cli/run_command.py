"""`poller run`: the daemon in the foreground."""

import asyncio
import ctypes
import gc
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from poller import VERSION, cluster, config
from poller.cli import bootstrap
from poller.cli.exit import StopDeadline
from poller.cli.status_command import pace_of
from poller.config.model import Config
from poller.daemon import service
from poller.daemon.monitor import Monitor
from poller.daemon.readiness import Readiness
from poller.daemon.webhooks import Webhooks
from poller.ingest.account import AccountRunner
from poller.ingest.runtime import Runtime, open_runtime
from poller.lock import StateLock, StorageLock
from poller.metrics import Metrics
from poller.status import Pace, StoredLately, Surroundings, status
from poller.web import Answers, StatusServer
from poller.webhook import HookListener, server_context

_CLOSING_S = 20.0  # for all steps after the drain
# Options of mallopt, from glibc's malloc.h.
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
_LARGE = 1 << 20  # bytes; with glibc's default of 128 KiB, fetching was an eighth slower
_ARENAS = 2
_GARBAGE = 10_000  # objects before a collection; cyclic garbage then takes about two MiB


def run(paths: Sequence[Path]) -> int:
    """Run until SIGTERM. Raises CannotStart, LockHeld, ConfigError."""
    _keep_little_memory()
    settings = bootstrap.load(paths)
    bootstrap.read_all_secrets(settings)
    with StateLock(settings.state_directory), StorageLock() as storage_lock:
        bootstrap.start_log(settings)
        with StopDeadline() as deadline:
            asyncio.run(_run(settings, paths, storage_lock, deadline))
    return 0


async def _run(
    settings: Config, paths: Sequence[Path], storage_lock: StorageLock, deadline: StopDeadline
) -> None:
    metrics = Metrics(VERSION)
    token = settings.http.token
    lately = StoredLately()
    secret = config.read_secret(token, os.environ) if token is not None else None

    @asynccontextmanager
    async def serve(
        runtime: Runtime, monitor: Monitor, webhooks: Webhooks | None
    ) -> AsyncIterator[None]:
        ready = monitor.readiness
        answers = Answers(
            metrics,
            lambda: _status(runtime, ready, lately, webhooks),
            ready.troubles,
            ready.alive,
            ready.notes,
        )
        server = StatusServer(settings.http, secret, answers)
        runtime.on_http_token = server.take_token
        await server.start()
        try:
            async with _listening(settings, webhooks):
                _leave_users_out_of_garbage()
                yield
        finally:
            await server.stop()

    await service.run(
        settings,
        open_runtime(settings, os.environ, metrics=metrics, storage_lock=storage_lock),
        load=lambda: bootstrap.load(paths),
        serve=serve,
        on_stop=lambda drain: deadline.start(drain.total_seconds() + _CLOSING_S),
    )


@asynccontextmanager
async def _listening(settings: Config, webhooks: Webhooks | None) -> AsyncIterator[None]:
    """Listen for eFax's notices if web-hooks are configured."""
    at = settings.webhook
    if at is None or webhooks is None:
        yield
        return
    tls = None
    if at.tls is not None:
        tls = server_context(at.tls, config.read_secret(at.tls.key, os.environ))
    listener = HookListener(
        at, tls, find=webhooks.find, taken=webhooks.taken, refused=webhooks.refused
    )
    await listener.start()
    try:
        yield
    finally:
        await listener.stop()


def _keep_little_memory() -> None:
    """Have glibc return memory after a busy moment. Call before any thread starts.

    By default glibc makes up to eight arenas per core, and each keeps the most its threads ever
    needed. Over time it also takes large blocks, such as images, from the arenas, which leaves holes.
    """
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_ARENA_MAX, _ARENAS)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE)


def _leave_users_out_of_garbage() -> None:
    """Exempt the users' objects from garbage collection, as they live as long as the process.

    Scanning them would take a tenth of a poll's time. A scan every 700 objects, Python's default,
    would take another tenth, because a few polls under way already hold that many.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GARBAGE)


async def _status(
    runtime: Runtime, ready: Readiness, lately: StoredLately, webhooks: Webhooks | None
) -> dict[str, Any]:
    services, settings = runtime.services, runtime.config
    now_s = services.clock.monotonic()
    seen = await cluster.look(services.ledger)
    others = await cluster.reports(services.ledger, seen) if seen is not None else {}
    paces = {
        one.name: pace_of(one, others.get(cluster.holder_name(seen, one.app_id)))
        for one in settings.accounts
    }
    paces |= {one.account.name: _pace(one, now_s) for one in runtime.accounts.values()}
    around = Surroundings(
        bootstrap.storage_shown(settings, services.gate.reason, services.gate.free_bytes),
        evidence=services.evidence,
        paces=paces,
        rejected=runtime.rejected,
        alarm_after=settings.retry.alarm_after,
        accounts=settings.accounts,
        hooks=None if webhooks is None else webhooks.records(),
        catching_up=cluster.catching_up(others) | ready.catching_up,
        node=services.ledger.node or None,
        cluster=seen,
    )
    return await status(services.ledger, services.clock.now(), around, lately)


def _pace(account: AccountRunner, now_s: float) -> Pace:
    pacing, slow = account.client.pacing, account.slowness.slow
    used, at_war = pacing.used(now_s), account.client.is_at_war
    return Pace(pacing.speed.limit, pacing.speed.rate, used, at_war, slow)
