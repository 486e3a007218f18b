"""Several nodes in the test's process, over one PostgreSQL database and one storage directory."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Delete, Update, delete, update

from poller.config.model import Config, StateConfig
from poller.daemon.holding import Holding
from poller.ingest.account import AccountRunner
from poller.ingest.runtime import Runtime
from poller.ledger import Ledger, State, leases, nodes, tables
from poller.ledger.leases import LeaseRow
from poller.ledger.tables import faxes as faxes_table
from poller.ledger.tables import leases as table
from poller.ledger.tables import nodes as nodes_table
from tests.conftest import APP, QuickClock, opened_runtime

LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class ClusterNode:
    """One node: `boot_s` is its clock for leases. `started` and `ended` are accounts, in order."""

    runtime: Runtime
    boot_s: list[float]
    started: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        assert self.runtime.keeper is not None
        self.keeper = self.runtime.keeper
        self.keeper._now = lambda: self.boot_s[0]
        self.keeper._answered_at = self.boot_s[0]
        self.holding = Holding(self.runtime, self.keeper, start=self._start, close=self._close)

    def _start(self, account: AccountRunner) -> None:
        self.started.append(account.account.app_id)

    async def _close(self, account: AccountRunner) -> None:
        self.ended.append(account.account.app_id)
        await self.runtime.close_account(account)

    @property
    def holds(self) -> list[str]:
        return sorted(self.runtime.accounts)

    @property
    def account(self) -> AccountRunner:
        return self.runtime.accounts[APP]

    async def poll(self, user: str = "user-a") -> Any:
        state = next(one for one in self.account.states.values() if one.user.name == user)
        return await self.account.poll(state)

    async def fetch_all(self) -> None:
        await self.account.workers.run_until_idle()

    def let_trust_end(self) -> None:
        """Let as much time pass for this node as it trusts its leases without a renewal."""
        self.boot_s[0] += 11

    def die(self) -> None:
        """Never tell anybody anything again, as after kill -9; the test ends what still runs."""

        async def nothing(*_: object, **__: object) -> None:
            return

        self.keeper.end = nothing  # type: ignore[method-assign]


class Cluster:
    """Opens nodes; `ledger` is an operator's view of the database."""

    def __init__(self, settings: Config, url: str, directory: Path, clock: QuickClock) -> None:
        self.settings = settings
        self.clock = clock
        self.url = url
        self._directory = directory
        self._stack = AsyncExitStack()
        self.ledger: Ledger

    async def node(
        self, name: str, change: Callable[[Config], Config] = lambda one: one
    ) -> ClusterNode:
        settings = change(self.of(name))
        runtime = await self._stack.enter_async_context(opened_runtime(settings, self.clock))
        return ClusterNode(runtime, [1000.0])

    def of(self, name: str) -> Config:
        """Return the configuration of a node."""
        state = StateConfig(self._directory / f"state-{name}", self.url)
        return replace(self.settings, state=state, node=name)

    async def roll_back(self, fax: int) -> None:
        """Take the database back to before the last renewal, and before a fax was stored."""
        await self._write(update(table).values(renewed=0))
        unstored = update(faxes_table).where(faxes_table.c.id == fax)
        await self._write(unstored.values(state=State.PENDING, stored_at=None, file=None))

    async def lose_all(self) -> None:
        """Take the database back to before the last renewal, and before anything was listed."""
        await self._write(update(table).values(renewed=0))
        for one in (tables.attempts, tables.jobs, tables.faxes, tables.coverage):
            await self._write(delete(one))
        counters = dict.fromkeys(("discovered", "pending", "stored"), 0)
        await self._write(update(tables.streams).values(**counters))

    async def steal(self) -> None:
        """Let a node that nobody knows take the account."""
        stolen = update(table).where(table.c.app_id == APP)
        await self._write(stolen.values(holder="another", term=table.c.term + 1))

    async def expire(self, app_id: str = APP, *, ago: timedelta | None = None) -> None:
        """Let the lease of an account have ended (long ago), as if nobody had renewed it."""
        ended = update(table).where(table.c.app_id == app_id)
        at = LONG_AGO if ago is None else await self.ledger.read(nodes.database_now) - ago
        await self._write(ended.values(expires_at=at))

    async def _write(self, statement: Update | Delete) -> None:
        await self.ledger.write(lambda connection: connection.execute(statement) and None)

    async def forget(self, node: ClusterNode) -> None:
        """Let a node count as dead: it has not reported for a minute."""
        silent = update(nodes_table).where(nodes_table.c.run == node.keeper.run)
        await self._write(silent.values(seen_at=LONG_AGO))

    async def lease(self, app_id: str = APP) -> LeaseRow:
        return (await self.ledger.read(leases.all_leases))[app_id]


@asynccontextmanager
async def opened_cluster(
    settings: Config, url: str, directory: Path, clock: QuickClock
) -> AsyncIterator[Cluster]:
    cluster = Cluster(settings, url, directory, clock)
    async with cluster._stack as stack, asyncio.timeout(120):
        cluster.ledger = await stack.enter_async_context(await Ledger.open(url))
        yield cluster
