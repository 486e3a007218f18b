"""Moving to several nodes and back: a new ledger in another database that begins with the old one's rows."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from poller.config.model import Config, StateConfig
from poller.errors import CannotStart, LockHeld
from poller.ledger import Ledger, copying, tables
from poller.rebuild import rebuild
from tests.conftest import MakeConfig, QuickClock, opened_runtime
from tests.efax import Simulator
from tests.integration.at_work import fetch, listed, poll
from tests.integration.cluster import ClusterNode, opened_cluster

_CHANGED = {"coverage", "streams", "accounts", "meta", "leases", "nodes"}


class Move:
    """One machine with a file, and the database to which its accounts move."""

    def __init__(
        self, settings: Config, url: str, directory: Path, *, efax: Simulator, clock: QuickClock
    ) -> None:
        self.alone, self.efax, self.clock = settings, efax, clock
        self.directory = directory
        self.shared = replace(settings, state=StateConfig(directory / "shared", url), node="a")

    async def to(self, new: Config, old: Config) -> Any:
        return await rebuild(new, {}, since=None, now=self.clock.now, of=old)

    async def store(self, count: int) -> None:
        async with opened_runtime(self.alone, self.clock) as runtime:
            for _ in range(count):
                fax, _ = await listed(runtime, self.efax)
                await fetch(runtime, fax)

    def take_all(self) -> None:
        for file in self.alone.storage.directory.rglob("main/**/*.*"):
            file.unlink()

    @contextlib.asynccontextmanager
    async def node(self) -> AsyncIterator[ClusterNode]:
        url = self.shared.state_url
        async with opened_cluster(self.shared, url, self.directory, self.clock) as cluster:
            node = await cluster.node("a")
            await node.holding.look()
            yield node


@pytest.fixture
def move(
    simulator: Simulator,
    make_config: MakeConfig,
    clock: QuickClock,
    postgres_url: str,
    tmp_path: Path,
) -> Move:
    settings = make_config(simulator.base_url)
    return Move(settings, postgres_url, tmp_path, efax=simulator, clock=clock)


async def rows(settings: Config) -> dict[str, list[Any]]:
    """Return the rows of the tables that a rebuild copies and leaves as they are."""
    kept = [table for table in tables.metadata.sorted_tables if table.name not in _CHANGED]

    def read(connection: Connection) -> dict[str, list[Any]]:
        found = {table.name: connection.execute(table.select()).all() for table in kept}
        return {name: sorted(map(tuple, held)) for name, held in found.items()}

    async with await Ledger.open(settings.state_url, readonly=True) as ledger:
        return await ledger.read(read)


async def test_taken_faxes_do_not_come_again_from_the_new_database_nor_back_from_it(
    move: Move, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "_ROWS", 2)
    await move.store(3)
    move.take_all()
    before = await rows(move.alone)
    done = await move.to(move.shared, move.alone)
    assert (done.was_whole, done.base) == (True, move.alone.state_url.removeprefix("sqlite:///"))
    assert await rows(move.shared) == before

    async with move.node() as node:
        assert (await node.poll()).error is None
        new = move.efax.receive("app-1", "user-a")
        await node.poll()
        await node.fetch_all()
    assert set(move.efax.downloads.values()) == {1}
    assert len(move.efax.downloads) == 4

    move.take_all()
    file = Path(move.alone.state_url.removeprefix("sqlite:///"))
    with pytest.raises(CannotStart, match="--from is for a new one"):
        await move.to(move.alone, move.shared)
    file.rename(file.with_suffix(".before"))
    await move.to(move.alone, move.shared)
    assert await rows(move.alone) == await rows(move.shared)
    async with opened_runtime(move.alone, move.clock) as runtime:
        for user in ("user-a", "user-b"):
            assert (await poll(runtime, user)).error is None
        await runtime.accounts["app-1"].workers.run_until_idle()
    assert move.efax.downloads[new] == 1
    assert set(move.efax.downloads.values()) == {1}


async def test_a_ledger_on_which_a_node_works_is_not_moved(move: Move) -> None:
    await move.store(1)
    await move.to(move.shared, move.alone)
    file = Path(move.alone.state_url.removeprefix("sqlite:///"))
    file.rename(file.with_suffix(".before"))
    async with move.node():
        with pytest.raises(LockHeld, match=r"old ledger \(a\): stop poller on all of them"):
            await move.to(move.alone, move.shared)
    assert not file.exists()
    await move.to(move.alone, move.shared)
