"""Loops that only fetch and write, to compare with poller's throughput.

`python -m tests.benchmarks.loops honest|bare URL DIRECTORY` takes the fax ids as JSON on stdin and
prints the seconds that they took, by the clock and of the processor.
"""

import asyncio
import base64
import hashlib
import json
import os
import sqlite3
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aiohttp

_AT_ONCE = 16
Row = tuple[str, str]
Keep = Callable[[bytes, str], Awaitable[None]]


async def honest(base_url: str, directory: Path, ids: list[str]) -> None:
    """Durable, with a sidecar and a ledger, but without proof, pacing, retries or events."""
    ledger = Ledger(directory / "ledger.db")

    async def keep(answer: bytes, fax: str) -> None:
        await ledger.add((fax, await asyncio.to_thread(_store, answer, fax, directory)))

    await _all(base_url, ids, keep)
    ledger.close()


async def bare(base_url: str, directory: Path, ids: list[str]) -> None:
    """Only write a file that is complete under its name."""

    async def keep(answer: bytes, fax: str) -> None:
        await asyncio.to_thread(_write_and_rename, answer, fax, directory)

    await _all(base_url, ids, keep)


async def _all(base_url: str, ids: list[str], keep: Keep) -> None:
    waiting = iter(ids)
    async with aiohttp.ClientSession(base_url) as session:
        await asyncio.gather(*(_some(session, waiting, keep) for _ in range(_AT_ONCE)))


async def _some(session: aiohttp.ClientSession, waiting: Iterator[str], keep: Keep) -> None:
    for fax in waiting:
        async with session.get(f"/faxes/{fax}/image") as response:
            answer = await response.read()
        await keep(answer, fax)


def _store(answer: bytes, fax: str, directory: Path) -> str:
    image = base64.b64decode(json.loads(answer)["image"])
    sha256 = hashlib.sha256(image).hexdigest()
    sidecar = json.dumps({"fax_id": fax, "bytes": len(image), "sha256": sha256}).encode()
    _write(directory / f".{fax}.image.part", image)
    _write(directory / f".{fax}.json.part", sidecar)
    for part, name in ((".image.part", ".pdf"), (".json.part", ".json")):
        os.link(directory / f".{fax}{part}", directory / f"{fax}{name}")
    _sync_directory(directory)
    for part in (".image.part", ".json.part"):
        os.unlink(directory / f".{fax}{part}")
    return sha256


def _write_and_rename(answer: bytes, fax: str, directory: Path) -> None:
    image = base64.b64decode(json.loads(answer)["image"])
    _write(directory / f".{fax}", image)
    os.rename(directory / f".{fax}", directory / f"{fax}.pdf")


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Ledger:
    """Commit rows that come during a commit together with the next one."""

    def __init__(self, path: Path) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode=TRUNCATE")
        self._connection.execute("PRAGMA synchronous=EXTRA")
        self._connection.execute("CREATE TABLE faxes (fax_id TEXT PRIMARY KEY, sha256 TEXT)")
        self._rows: list[Row] = []
        self._turn = asyncio.Lock()

    async def add(self, row: Row) -> None:
        """Record a row; returns when it is durable."""
        self._rows.append(row)
        mine = self._rows
        async with self._turn:
            if mine is not self._rows:
                return  # the holder of the turn has committed it too
            self._rows = []
            await asyncio.get_running_loop().run_in_executor(self._thread, self._commit, mine)

    def _commit(self, rows: list[Row]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany("INSERT INTO faxes VALUES (?, ?)", rows)
        self._connection.execute("COMMIT")

    def close(self) -> None:
        self._thread.submit(self._connection.close).result()
        self._thread.shutdown()


async def _run(name: str, base_url: str, directory: Path, ids: list[str]) -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_AT_ONCE))
    began, cpu_s = time.monotonic(), time.process_time()
    await {"honest": honest, "bare": bare}[name](base_url, directory, ids)
    print(json.dumps([time.monotonic() - began, time.process_time() - cpu_s]))


if __name__ == "__main__":
    asyncio.run(_run(sys.argv[1], sys.argv[2], Path(sys.argv[3]), json.load(sys.stdin)))
