"""`poller run`: the daemon in the foreground."""

import asyncio
import gc
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from poller import VERSION, config
from poller.cli import bootstrap
from poller.cli.allocator import keep_little
from poller.cli.exit import StopDeadline
from poller.client import Client
from poller.config.model import Config
from poller.daemon import service
from poller.daemon.monitor import Monitor
from poller.ingest.site import Site, open_site
from poller.lock import StateLock, StorageLock
from poller.metrics import Metrics
from poller.status import Pace, StoredLately, Surroundings, status
from poller.web import Answers, StatusServer

_CLOSING_S = 20.0  # for all that comes after the drain
_GARBAGE = 10_000  # objects in circles may wait to be found: some two MiB


def run(paths: Sequence[Path]) -> int:
    """Run until SIGTERM; raises CannotStart, LockHeld, ConfigError."""
    keep_little()
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
    async def serve(site: Site, monitor: Monitor) -> AsyncIterator[None]:
        async def current() -> dict[str, Any]:
            return await _status(site, lately)

        ready = monitor.readiness
        answers = Answers(metrics, current, ready.troubles, ready.alive)
        server = StatusServer(settings.http, secret, answers)
        site.on_http_token = server.take_token
        await server.start()
        # What was made for the users stays. Looking through it for garbage would be a tenth of
        # what a poll costs, and looking every 700 objects, which a few polls under way have, another.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_GARBAGE)
        try:
            yield
        finally:
            await server.stop()

    await service.run(
        settings,
        open_site(settings, os.environ, metrics=metrics, storage_lock=storage_lock),
        load=lambda: bootstrap.load(paths),
        serve=serve,
        on_stop=lambda drain: deadline.start(drain.total_seconds() + _CLOSING_S),
    )


async def _status(site: Site, lately: StoredLately) -> dict[str, Any]:
    gate = site.shop.gate
    storage = {
        "directory": str(site.config.storage.directory),
        "usable": gate.usable,
        "reason": gate.reason,
        "free_bytes": gate.free_bytes,
        "min_free_bytes": site.config.storage.min_free,
    }
    now_s = site.shop.clock.monotonic()
    seen = Surroundings(
        storage,
        evidence=site.shop.evidence,
        paces={one.account.name: _pace(one.client, now_s) for one in site.accounts.values()},
        rejected=site.rejected,
        alarm_after=site.config.retry.alarm_after,
        accounts=site.config.accounts,
    )
    return await status(site.shop.ledger, site.shop.clock.now(), seen, lately)


def _pace(client: Client, now_s: float) -> Pace:
    pacing = client.pacing
    return Pace(pacing.speed.limit, pacing.speed.rate, pacing.used(now_s), client.is_at_war)
