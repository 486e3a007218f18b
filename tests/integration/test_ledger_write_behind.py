"""Events that may be lost: written together, in order, before anything else."""

import contextlib
import random
import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from poller.config.model import Poll, User
from poller.errors import LedgerUnavailable
from poller.ingest.stream_state import StreamState
from poller.ingest.sweeps import record_sweep
from poller.ledger import Ledger, StreamRow, faxes, fold, streams
from poller.ledger.sqlite import engine
from poller.progress import Covered, NotPolled, Polled, SliceFailed, Swept
from poller.window import Coverage, Interval, SliceKind
from tests.conftest import in_a_file

NOW = datetime(2024, 5, 21, 4, 27, 56, tzinfo=UTC)
HOUR = timedelta(hours=1)
USER = User("main", "user-0", "app", "u0", Poll())
USERS = [("app", f"u{number}", "main", f"user-{number}") for number in range(2)]


def hours(start: float, end: float) -> Interval:
    return Interval(NOW + start * HOUR, NOW + end * HOUR)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "poller.db"


@pytest.fixture
async def ledger(ledger_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Ledger]:
    monkeypatch.setattr(engine, "BUSY_TIMEOUT_S", 0.05)
    async with await Ledger.open(ledger_url) as ledger:
        yield ledger


@pytest.fixture
async def users(ledger: Ledger) -> list[StreamRow]:
    return await ledger.write(streams.sync, USERS, NOW)


def on_disk(path: Path) -> int:
    """Return how much of the users' time a crash would leave covered."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (count,) = connection.execute("SELECT count(*) FROM coverage").fetchone()
    return int(count)


async def test_many_empty_polls_are_one_commit(ledger: Ledger, users: list[StreamRow]) -> None:
    before = ledger.commits
    for user in users:
        for hour in range(5):
            await ledger.record_soon(user.id, Covered(hours(hour, hour + 1.5)))
            await ledger.record_soon(user.id, Polled(NOW))
    assert ledger.commits == before
    held = await ledger.read(fold.all_progress)
    assert {one.coverage for one in held.values()} == {Coverage((hours(0, 5.5),))}
    assert ledger.commits == before + 1


@in_a_file
async def test_crash_before_it_is_written_leaves_it_to_be_listed_again(
    ledger: Ledger, users: list[StreamRow], path: Path
) -> None:
    await ledger.record_soon(users[0].id, Covered(hours(0, 1)))
    assert on_disk(path) == 0
    await ledger.check_writable()  # any write takes it along
    assert on_disk(path) == 1


async def test_closing_writes_it(path: Path) -> None:
    async with await Ledger.open(f"sqlite:///{path}") as ledger:
        user, _ = await ledger.write(streams.sync, USERS, NOW)
        await ledger.record_soon(user.id, Covered(hours(0, 1)))
        await ledger.record_soon(user.id, Polled(NOW))
    assert on_disk(path) == 1


async def test_later_events_count(ledger: Ledger, users: list[StreamRow]) -> None:
    user = users[0].id
    await ledger.record_soon(user, Polled(NOW))
    await ledger.write(fold.record, user, NotPolled(NOW + HOUR, "no answer"))
    row = await ledger.read(streams.one, user)
    assert (row.last_success_at, row.last_poll_at, row.failed_polls) == (NOW, NOW + HOUR, 1)
    await ledger.record_soon(user, Polled(NOW + 2 * HOUR))
    row = await ledger.read(streams.one, user)
    assert (row.last_success_at, row.last_error, row.failed_polls) == (NOW + 2 * HOUR, None, 0)


@pytest.mark.parametrize("found", [0, 2])
async def test_sweep_that_found_nothing_waits_and_one_that_did_is_written_at_once(
    ledger: Ledger, users: list[StreamRow], found: int
) -> None:
    user = users[0].id
    state = StreamState(USER, user, ledger, await ledger.progress(user))
    before = ledger.commits
    await record_sweep(state, Swept(SliceKind.SWEEP, NOW, found))
    await record_sweep(state, Swept(SliceKind.DEEP_SWEEP, NOW + HOUR, found))
    assert ledger.commits == before + (2 if found else 0)
    row = await ledger.read(streams.one, user)
    assert (row.sweep_end, row.deep_sweep_end) == (NOW, NOW + HOUR)
    assert (row.found_by_sweep, row.found_by_deep_sweep) == (found, found)


@pytest.mark.parametrize("seed", range(5))
async def test_empty_lists_cover_what_pages_would(
    ledger: Ledger, users: list[StreamRow], seed: int
) -> None:
    rng = random.Random(seed)
    one, other = (user.id for user in users)
    for _ in range(30):
        begin = rng.randrange(40)
        window = hours(begin, begin + rng.randint(1, 6))
        if rng.random() < 0.2:
            for user in (one, other):
                await ledger.write(fold.record, user, SliceFailed(window, NOW, "refused"))
        await ledger.record_soon(one, Covered(window))
        await ledger.write(
            faxes.record_page,
            other,
            faxes.ListedPage([], window=None, found_by="gap", now=NOW, covers=window),
        )
        if rng.random() < 0.5:
            held = await ledger.read(fold.all_progress)
            assert held[one] == held[other]
    held = await ledger.read(fold.all_progress)
    assert held[one] == held[other]


@in_a_file
async def test_polls_fail_while_it_cannot_be_written(
    ledger: Ledger, users: list[StreamRow], path: Path
) -> None:
    user = users[0].id
    await ledger.record_soon(user, Covered(hours(0, 1)))
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert (await ledger.read(fold.progress, user)).coverage == Coverage()  # tried, and failed
        for _ in range(2):
            with pytest.raises(LedgerUnavailable, match="locked by another program"):
                await ledger.record_soon(user, Covered(hours(1, 2)))
        other.execute("ROLLBACK")
    await ledger.record_soon(user, Covered(hours(2, 3)))  # at once, and it succeeds
    before = ledger.commits
    await ledger.record_soon(user, Covered(hours(3, 4)))
    assert ledger.commits == before
    assert (await ledger.read(fold.progress, user)).coverage == Coverage((hours(2, 4),))


async def test_a_ledger_that_is_closed_or_only_read_takes_no_polls(
    ledger: Ledger, users: list[StreamRow], ledger_url: str
) -> None:
    async with await Ledger.open(ledger_url, readonly=True) as reader:
        with pytest.raises(LedgerUnavailable):
            await reader.record_soon(users[0].id, Polled(NOW))
    await ledger.close()
    with pytest.raises(LedgerUnavailable):
        await ledger.record_soon(users[0].id, Covered(hours(0, 1)))
