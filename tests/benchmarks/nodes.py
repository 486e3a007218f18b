"""Throughput of one to three nodes that share a PostgreSQL database, beside one node alone.

python -m tests.benchmarks.nodes
python -m tests.benchmarks.nodes --s3 here    # to a bucket; see `large`

The database, eFax and all nodes share this machine, so its processors limit them together.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import psycopg
from sqlalchemy import Connection, func, select

from poller.ledger import Ledger, leases
from poller.ledger.leases import Lease
from poller.ledger.tables import State
from poller.ledger.tables import faxes as table
from tests.acceptance.installation import Daemon
from tests.benchmarks import documents, measured
from tests.benchmarks.faxes_served import Faxes, Served, served
from tests.cluster import database_proxy
from tests.cluster.lab import a_database

_DELAY_S = 0.001
_ACCOUNTS = 6
_TRIPS = 50


@dataclass(frozen=True)
class Run:
    """Faxes a second, seconds of the nodes' processor time for each, and how many accounts each had.

    `trip_s` is how long a statement took the database.
    """

    rate: float
    cpu_s: float
    shares: tuple[int, ...]
    trip_s: float


@dataclass(frozen=True)
class Trial:
    """What one run is made of; `delay_s` is added to each answer of the database."""

    nodes: int
    accounts: int
    delay_s: float = 0.0


async def main(options: argparse.Namespace) -> None:
    trials = [Trial(nodes, accounts) for accounts in (_ACCOUNTS, 1) for nodes in (1, 2, 3)]
    trials.append(Trial(1, _ACCOUNTS, _DELAY_S))
    runs: dict[Trial, list[Run]] = {trial: [] for trial in trials}
    with tempfile.TemporaryDirectory(prefix="poller-benchmark-") as directory:
        encoded = Path(directory) / "document"
        documents.write_encoded(encoded, options.kilobytes * 1000)
        for _ in range(options.rounds):
            for trial, so_far in runs.items():
                here = Path(tempfile.mkdtemp(dir=directory))
                so_far.append(await _run(trial, str(encoded), here, options))
    rates = {trial: statistics.median(run.rate for run in some) for trial, some in runs.items()}
    alone = rates[trials[0]]
    measured.told(
        f"Throughput: {options.faxes} faxes of {options.kilobytes} KB that came in together, without "
        f"a limit, from the first image asked for to the last one recorded; on {os.cpu_count()} "
        f"processors, with a load of {os.getloadavg()[0]:.1f}; beside one node with {_ACCOUNTS} accounts.",
        *(_figures(trial, some, alone) for trial, some in runs.items()),
        ratio=rates[trials[5]] / rates[trials[3]],
        wanted="with one account, three nodes are as fast as one; 100 faxes/s with the slow database",
    )


def _figures(trial: Trial, runs: list[Run], alone: float) -> str:
    rate = statistics.median(run.rate for run in runs)
    cpu_s = statistics.median(run.cpu_s for run in runs)
    trip_s = statistics.median(run.trip_s for run in runs)
    shares = " + ".join(map(str, runs[0].shares))
    return (
        f"{trial.nodes} nodes with {shares} accounts, {trip_s * 1e3:.1f} ms for a statement: "
        f"{rate:.0f} faxes/s, {rate / alone:.2f} of one node, {cpu_s * 1e3:.1f} ms of CPU per fax; "
        f"all rounds: {[round(run.rate) for run in runs]}"
    )


async def _run(trial: Trial, encoded: str, directory: Path, options: argparse.Namespace) -> Run:
    each = options.faxes // trial.accounts
    async with AsyncExitStack() as stack:
        url = a_database(stack)
        proxy = await stack.enter_async_context(database_proxy.before(url))
        server = await stack.enter_async_context(served(Faxes(encoded, trial.accounts, 0)))
        ledger = await stack.enter_async_context(await Ledger.open(url))
        kept = await _kept_back(ledger, trial.accounts)
        if trial.delay_s:
            proxy.delay_s, url = trial.delay_s, proxy.url
        storage = {"storage": {"directory": str(directory / "faxes"), "min_free": "1MiB"}}
        (directory / "faxes").mkdir()
        changes = storage | measured.in_bucket(options.s3, directory.parent)
        settings = _settings(trial.accounts, server.base_url, url) | changes
        nodes = await stack.enter_async_context(_running(trial.nodes, settings, directory))
        for lease in kept:  # now all take their share at once
            await ledger.write(leases.release, lease)
        await _all_held(nodes, trial.accounts)
        cpu_s = sum(measured.cpu_s(node.process.pid) for node in nodes)
        for n in range(trial.accounts):
            await server.receive(f"user-{n}", each)
        ended = await _all_stored(ledger, each * trial.accounts)
        cpu_s = sum(measured.cpu_s(node.process.pid) for node in nodes) - cpu_s
        return Run(
            each * trial.accounts / (ended - await _began(server)),
            cpu_s / (each * trial.accounts),
            tuple(len(node.said("lease-taken")) for node in nodes),
            await asyncio.to_thread(_trip_s, url),
        )


def _settings(accounts: int, base_url: str, url: str) -> dict[str, object]:
    of_one = measured.settings(1, base_url)["accounts"]["main"]
    return measured.settings(1, base_url) | {
        "accounts": {
            f"account-{n}": of_one
            | {"app_id": f"app-{n}", "users": {"user": {"user_id": f"user-{n}"}}}
            for n in range(accounts)
        },
        "poll": {"every": "1s"},
        "state": {"url": url, "directory": "state"},
    }


async def _kept_back(ledger: Ledger, accounts: int) -> list[Lease]:
    """Take all accounts, so that no node takes more than its share because it starts first."""
    app_ids = [f"app-{n}" for n in range(accounts)]
    await ledger.write(leases.add, app_ids)
    taken = [
        await ledger.write(leases.take, app_id, "benchmark", timedelta(hours=1))
        for app_id in app_ids
    ]
    return [one.lease for one in taken if one is not None]


@asynccontextmanager
async def _running(
    count: int, settings: dict[str, object], directory: Path
) -> AsyncIterator[list[Daemon]]:
    async with AsyncExitStack() as stack:
        nodes = []
        for n in range(1, count + 1):
            (directory / f"node-{n}").mkdir()
            running = measured.running(settings | {"node": f"node-{n}"}, directory / f"node-{n}")
            nodes.append(await stack.enter_async_context(running))
        yield nodes


async def _all_held(nodes: list[Daemon], accounts: int) -> None:
    while sum(len(node.said("lease-taken")) for node in nodes) < accounts:
        await asyncio.sleep(0.1)


async def _all_stored(ledger: Ledger, count: int) -> float:
    """Wait until so many faxes are recorded; return the time."""
    while await ledger.read(_stored) < count:
        await asyncio.sleep(0.1)
    return time.time()


def _stored(connection: Connection) -> int:
    found = select(func.count()).where(table.c.state == State.STORED)
    return connection.scalar(found) or 0


def _trip_s(url: str) -> float:
    with psycopg.connect(url, autocommit=True) as connection:
        began = time.monotonic()
        for _ in range(_TRIPS):
            connection.execute("SELECT 1")
        return (time.monotonic() - began) / _TRIPS


async def _began(server: Served) -> float:
    return (await server.counts())["first_image_at"]


if __name__ == "__main__":
    asyncio.run(main(measured.options(rounds=1, faxes=600, kilobytes=150, s3="")))
