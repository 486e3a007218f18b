"""Ledger size: what polls, fetches and `status` take with millions of faxes in the ledger.

python -m tests.benchmarks.ledger_size

With `--keep DIRECTORY` the ledgers stay there and are used again: millions take minutes to make.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from poller import VERSION, config, log
from poller.config.model import Config
from poller.documents import StoredFile
from poller.ingest.account import AccountRunner
from poller.ingest.runtime import Runtime, open_runtime
from poller.ledger import Ledger, jobs
from poller.metrics import Metrics
from poller.status import Surroundings, status
from tests.acceptance.installation import KEY, KEY_VARIABLE, Installation
from tests.benchmarks import documents, measured
from tests.benchmarks.faxes_served import Faxes, served
from tests.benchmarks.large_ledger import Shape, make
from tests.benchmarks.restart import ready_s

_WHAT = ("poll", "fetch", "status", "query")


@dataclass
class Sized:
    """One ledger and its measured times in seconds; `meanwhile`: polls during a snapshot."""

    faxes: int
    installation: Installation
    took: dict[str, list[float]] = field(default_factory=lambda: {what: [] for what in _WHAT})
    meanwhile: list[float] = field(default_factory=list)
    snapshot_s: float = 0.0
    ready_s: float = 0.0

    def median(self, what: str) -> float:
        return statistics.median(self.took[what])


async def main(options: argparse.Namespace) -> None:
    log.configure("error")
    async with AsyncExitStack() as stack:
        kept = options.keep or stack.enter_context(tempfile.TemporaryDirectory(prefix="poller-"))
        encoded = Path(kept) / "document"
        documents.write_encoded(encoded, 1000)
        small, large = [
            await _sized(stack, Path(kept) / str(faxes), options.users, faxes, encoded)
            for faxes in (options.small, options.large)
        ]
        await _measure(small, large, options.rounds)
        for one in (small, large):
            one.ready_s = await ready_s(one.installation)
    _tell(small, large, options)


async def _sized(
    stack: AsyncExitStack, directory: Path, users: int, faxes: int, encoded: Path
) -> Sized:
    """Each has its own server, which gives each list one more fax."""
    every_list_has_one_more = Faxes(str(encoded), users, each=0, nth=1)
    server = await stack.enter_async_context(served(every_list_has_one_more))
    return Sized(faxes, await _installed(directory, users, faxes, server.base_url))


async def _installed(directory: Path, users: int, faxes: int, base_url: str) -> Installation:
    directory.mkdir(parents=True, exist_ok=True)
    installation = Installation(directory, base_url)
    installation.settings = measured.settings(users, base_url)
    installation.write({})
    if not installation.ledger.exists():
        await make(installation.ledger, Shape(users, faxes), datetime.now(UTC))
    return installation


async def _measure(small: Sized, large: Sized, rounds: int) -> None:
    async with AsyncExitStack() as stack:
        both = [(one, await stack.enter_async_context(_at_work(one))) for one in (small, large)]
        for _ in range(rounds):
            for one, runtime in both:
                await _work(one, runtime)
        for one, _ in both * rounds:
            one.took["status"].append(await _timed(one.installation.status()))
        for one, runtime in both:
            await _poll_beside_snapshot(one, runtime)


@asynccontextmanager
async def _at_work(one: Sized) -> AsyncIterator[Runtime]:
    settings = config.load([one.installation.config])
    async with open_runtime(settings, {KEY_VARIABLE: KEY}, metrics=Metrics(VERSION)) as runtime:
        account = _account(runtime)
        for state in account.states.values():
            state.sweep_now = False
            await account.poll(state)  # the first poll has the gap since the ledger was made
        yield runtime


def _account(runtime: Runtime) -> AccountRunner:
    (account,) = runtime.accounts.values()
    return account


async def _timed(work: Awaitable[object]) -> float:
    began = time.perf_counter()
    await work
    return time.perf_counter() - began


async def _work(one: Sized, runtime: Runtime) -> None:
    """Poll every user once, which finds one more fax, and record one as stored."""
    account, ledger = _account(runtime), runtime.services.ledger
    for state in account.states.values():
        one.took["poll"].append(await _timed(account.poll(state)))
        while state.id not in await ledger.read(jobs.streams_with_due, "app-1", datetime.now(UTC)):
            await account.poll(state)  # the server's clock, which has whole seconds, was behind
        one.took["fetch"].append(await _timed(_bookkeeping(ledger, state.id)))
    one.took["query"].append(await _timed(_status(ledger, runtime.config)))


async def _bookkeeping(ledger: Ledger, user: int) -> None:
    """Do all that the ledger does for one fax: find that it is due, and record that it is stored."""
    now = datetime.now(UTC)
    assert user in await ledger.read(jobs.streams_with_due, "app-1", now)
    fax, *_ = await ledger.read(jobs.due, user, now, 16)
    file = StoredFile(f"{fax.path}.pdf", "pdf", 1000, "0" * 64, 1, damaged=False)
    await ledger.write_together(jobs.stored, jobs.Stored(fax.id, now, file))


async def _status(ledger: Ledger, settings: Config) -> None:
    await status(ledger, datetime.now(UTC), Surroundings({}))


async def _poll_beside_snapshot(one: Sized, runtime: Runtime) -> None:
    """Poll user after user while the daily snapshot is made and checked."""
    account = _account(runtime)
    began = time.perf_counter()
    copying = asyncio.create_task(runtime.services.ledger.look_after(datetime.now(UTC)))
    while not copying.done():
        for state in account.states.values():
            one.meanwhile.append(await _timed(account.poll(state)))
            if copying.done():
                break
            await asyncio.sleep(0.02)
    await copying
    one.snapshot_s = time.perf_counter() - began


def _tell(small: Sized, large: Sized, options: argparse.Namespace) -> None:
    def beside(what: str) -> str:
        return f"{small.median(what) * 1e3:.2f} and {large.median(what) * 1e3:.2f} ms, ratio " + (
            f"{large.median(what) / small.median(what):.2f}"
        )

    measured.told(
        f"Ledger size: a poll that finds one fax, the ledger's part of a fetch, `poller status --json`, "
        f"with {options.small} faxes of {options.users} users in the ledger and with {options.large}.",
        f"poll {beside('poll')}",
        f"fetch's bookkeeping {beside('fetch')}",
        f"status {beside('status')}; its queries alone {beside('query')}",
        f"ready after {small.ready_s:.2f} and {large.ready_s:.2f} s",
        *(
            f"snapshot of {one.faxes} faxes: {one.snapshot_s:.1f} s; polls meanwhile "
            f"{statistics.median(one.meanwhile) * 1e3:.1f} ms, slowest {max(one.meanwhile):.2f} s"
            for one in (small, large)
        ),
        ratio=max(large.median(what) / small.median(what) for what in ("poll", "fetch")),
        wanted="at most 1.2, status 3, ready within 5 s",
    )


if __name__ == "__main__":
    asyncio.run(main(measured.options(rounds=3, users=200, small=5_000, large=5_000_000, keep="")))
