"""The ledger in trouble: how it shows, and how it recovers."""

import asyncio
import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from poller.cli import status_command
from poller.cli.status_command import look
from poller.config.model import Config
from poller.daemon.monitor import Monitor
from poller.daemon.planner import Planner
from poller.errors import LedgerDamaged
from poller.ingest.fetch import Outcome
from poller.ingest.runtime import Runtime
from poller.ledger import Ledger, State, jobs, streams
from poller.ledger.sqlite import engine
from poller.problems import problems
from poller.rebuild import rebuild
from poller.simulator import Simulator
from poller.status import Surroundings, instant, status
from tests.conftest import APP, Event, MakeConfig, QuickClock, opened_runtime, stored_files
from tests.exhaustive import EXHAUSTIVE
from tests.integration.at_work import fetch, listed, poll, row, said
from tests.integration.in_between import Asked, around
from tests.integration.test_ledger_snapshots import break_index

DAY = timedelta(days=1)
PAGE = 4096


@pytest.fixture
def settings(simulator: Simulator, make_config: MakeConfig) -> Config:
    return make_config(simulator.base_url)


@pytest.fixture
def path(settings: Config) -> Path:
    return Path(settings.state_url.removeprefix("sqlite:///"))


async def catch_up(runtime: Runtime) -> None:
    for user in ("user-a", "user-b"):
        assert (await poll(runtime, user)).error is None
    await runtime.accounts[APP].workers.run_until_idle()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another program locks the ledger, so that nothing can be read or written."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


# -- locked, read-only -------------------------------------------------------------------------------


@pytest.fixture
async def impatient(
    settings: Config, clock: QuickClock, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Runtime]:
    """A runtime whose ledger waits for a lock only for a moment."""
    monkeypatch.setattr(engine, "BUSY_TIMEOUT_S", 0.05)
    async with opened_runtime(settings, clock) as runtime:
        yield runtime


async def test_locked_ledger_postpones_polls_and_fetches_and_drops_nothing(
    impatient: Runtime, simulator: Simulator, clock: QuickClock, path: Path, events: list[Event]
) -> None:
    runtime = impatient
    waiting, _ = await listed(runtime, simulator)
    with locked(path):
        unseen = simulator.receive(APP, "user-a", completed=simulator.now())
        clock.advance(timedelta(minutes=1))
        outcome = await poll(runtime)
        assert "locked by another program" in str(outcome.error)
        assert not await runtime.services.gate.look_again()
        assert "locked by another program" in (runtime.services.gate.reason or "")
        await runtime.accounts[APP].workers.run_until_idle()
        assert not simulator.downloads
    clock.advance(timedelta(minutes=2))
    await catch_up(runtime)
    assert {(await row(runtime, fax)).state for fax in (waiting, unseen)} == {State.STORED}
    assert set(simulator.downloads.values()) == {1}
    assert said(events, "storage-unusable", "storage-usable") == [
        "storage-unusable", "storage-usable",
    ]  # fmt: skip


async def test_fax_that_was_delivered_while_the_ledger_was_locked_is_not_downloaded_again(
    impatient: Runtime, simulator: Simulator, clock: QuickClock, path: Path
) -> None:
    runtime = impatient
    fax, _ = await listed(runtime, simulator)
    lock = contextlib.ExitStack()

    async def locked_out(record: Asked) -> None:
        lock.enter_context(locked(path))
        await record()

    with lock:
        with pytest.MonkeyPatch.context() as recording:
            around(recording, runtime.services.ledger, jobs.stored, locked_out)
            await fetch(runtime, fax)
        assert not runtime.services.gate.usable
    assert (await row(runtime, fax)).state is State.PENDING
    clock.advance(timedelta(minutes=5))
    assert await runtime.services.gate.check()
    await runtime.accounts[APP].workers.run_until_idle()
    assert (await row(runtime, fax)).state is State.STORED
    assert set(simulator.downloads.values()) == {1}


@contextlib.contextmanager
def immutable(path: Path) -> Iterator[None]:
    done = subprocess.run(["chattr", "+i", str(path)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("needs chattr +i, so root and a file system that knows it")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", str(path)], check=True)


@pytest.mark.parametrize("what", ["file", "journal"])
async def test_read_only_ledger_shuts_the_gate_and_opens_it_again(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, path: Path, what: str
) -> None:
    fax, _ = await listed(runtime, simulator)
    await runtime.services.ledger.check_writable()
    # Open connections could still write; a commit that fails makes new ones.
    await runtime.services.ledger._writer._database.let_go()  # type: ignore[union-attr]
    with immutable(path if what == "file" else path.with_name("poller.db-journal")):
        assert not await runtime.services.gate.look_again()
        assert "the ledger" in (runtime.services.gate.reason or "")
        assert (await runtime.services.ledger.read(streams.all_streams))[
            0
        ].pending == 1  # status can still read
        await runtime.accounts[APP].workers.run_until_idle()
        assert not simulator.downloads
    clock.advance(timedelta(minutes=2))
    assert await runtime.services.gate.check()
    await runtime.accounts[APP].workers.run_until_idle()
    assert (await row(runtime, fax)).state is State.STORED


# -- damaged -----------------------------------------------------------------------------------------


def flips(size: int) -> list[tuple[int, int]]:
    """Return where to flip bytes, and how many: the header, every page's own header, and its middle.

    SQLite cannot see changed bytes inside a value; `verify` finds those.
    """
    pages = [(number * PAGE, 8) for number in range(1, size // PAGE)]
    return [(0, 16), (16, 2), (100, 8), *pages]


async def test_flipped_bytes_at_every_page_refuse_the_start_and_a_rebuild_heals_each(
    settings: Config, clock: QuickClock, simulator: Simulator, path: Path
) -> None:
    async with opened_runtime(settings, clock) as runtime:
        for number in range(25):
            await listed(runtime, simulator, "user-a" if number % 2 else "user-b")
            clock.advance(timedelta(minutes=1))
        await runtime.accounts[APP].workers.run_until_idle()
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("VACUUM")  # a free page, as a migration leaves, contains nothing to damage
    whole, files = path.read_bytes(), stored_files(settings.storage.directory)
    positions = flips(len(whole))
    assert len(positions) >= 30
    for number, (offset, length) in enumerate(positions):
        spoilt = bytearray(whole)
        for at in range(offset, offset + length):
            spoilt[at] ^= 0xFF
        path.write_bytes(spoilt)
        with pytest.raises(LedgerDamaged, match="poller rebuild"):
            await Ledger.open(settings.state_url)
        assert path.read_bytes() == spoilt, f"changed at {offset}"
        if number % 10 and not EXHAUSTIVE:
            continue
        done = await rebuild(settings, {}, since=None, now=clock.now)
        assert done.added == 25
        assert done.kept_aside is not None
        assert Path(done.kept_aside).read_bytes() == spoilt
        async with opened_runtime(settings, clock) as runtime:
            await catch_up(runtime)
    assert set(simulator.downloads.values()) == {1}
    assert stored_files(settings.storage.directory) == files


async def test_damage_that_only_the_whole_check_finds_is_loud_while_the_work_goes_on(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, path: Path, events: list[Event]
) -> None:
    fax, _ = await listed(runtime, simulator)
    await runtime.services.ledger.check_writable()
    break_index(path)
    monitor = Monitor(runtime, Planner(runtime))
    await monitor._ledger_check.look()
    assert said(events, "ledger-damaged") == ["ledger-damaged"]
    assert "poller rebuild" in monitor.readiness.troubles()[0]
    shown = await status(runtime.services.ledger, clock.now(), Surroundings({"usable": True}))
    assert shown["ledger"]["ok"] is False
    assert "ix_attempts_fax" in shown["ledger"]["problem"]
    assert shown["ledger"]["checked_at"] == instant(clock.now())
    assert await fetch(runtime, fax) is Outcome.STORED


# -- lost, or replaced by an old one ------------------------------------------------------------------


async def store(runtime: Runtime, simulator: Simulator, clock: QuickClock) -> Path:
    clock.advance(timedelta(minutes=2))
    fax, _ = await listed(runtime, simulator)
    await fetch(runtime, fax)
    (image,) = runtime.config.storage.directory.rglob(f"{fax.fax_id}.pdf")
    return image


def take(image: Path) -> None:
    image.unlink()
    image.with_suffix(".json").unlink()


async def test_deleted_ledger_without_a_snapshot_is_replaced_loudly_and_adopts_the_files(
    settings: Config, clock: QuickClock, simulator: Simulator, path: Path, events: list[Event]
) -> None:
    async with opened_runtime(settings, clock) as runtime:
        await store(runtime, simulator, clock)
    assert said(events, "ledger-lost") == []
    path.unlink()
    before = stored_files(settings.storage.directory)
    async with opened_runtime(settings, clock) as runtime:
        await catch_up(runtime)
        assert (await runtime.services.ledger.read(streams.all_streams))[0].stored == 1
    assert set(simulator.downloads.values()) == {1}
    assert stored_files(settings.storage.directory) == before
    async with opened_runtime(settings, clock):
        assert said(events, "ledger-lost") == ["ledger-lost"]


async def test_lost_ledger_is_a_problem_until_it_is_rebuilt(
    settings: Config, clock: QuickClock, simulator: Simulator, path: Path
) -> None:
    async with opened_runtime(settings, clock) as runtime:
        await store(runtime, simulator, clock)
        assert await troubles(settings, runtime) == []
    path.unlink()
    lost_at = clock.now()
    for _ in range(2):  # a restart repairs nothing
        async with opened_runtime(settings, clock) as runtime:
            await catch_up(runtime)
            (trouble,) = await troubles(settings, runtime)
            assert f"lost. The new one, made at {lost_at:%Y-%m-%d %H:%M} UTC" in trouble
            assert "`poller rebuild`" in trouble
        clock.advance(DAY)
    await rebuild(settings, {}, since=None, now=clock.now)
    async with opened_runtime(settings, clock) as runtime:
        assert await troubles(settings, runtime) == []


async def troubles(settings: Config, runtime: Runtime) -> list[str]:
    """Return what `/readyz` and `poller status` say about the ledger."""
    ready = Monitor(runtime, Planner(runtime)).readiness.troubles()
    shown = await look(settings)
    told = problems(shown, list(status_command.reasons(shown, settings)))
    about = [one for one in ready if "ledger" in one.lower()]
    assert [one for one in told if "ledger" in one.lower()] == about
    return about


async def test_deleted_ledger_comes_back_from_its_snapshot_and_says_so(
    settings: Config, clock: QuickClock, simulator: Simulator, path: Path, events: list[Event]
) -> None:
    async with opened_runtime(settings, clock) as runtime:
        known = await store(runtime, simulator, clock)
        await runtime.services.ledger.look_after(clock.now())
        late = await store(runtime, simulator, clock)
        forgotten = await store(runtime, simulator, clock)
    for image in (known, forgotten):
        take(image)
    path.unlink()
    path.with_name("poller.db-journal").write_bytes(b"\xd9\xd5\x05\xf9 of the ledger that is gone")
    async with opened_runtime(settings, clock) as runtime:
        await catch_up(runtime)
    assert said(events, "ledger-restored") == ["ledger-restored"]
    again = {fax.fax_id: count for fax, count in simulator.downloads.items()}
    # what was stored and taken after the snapshot is the documented exception
    assert (again[known.stem], again[late.stem], again[forgotten.stem]) == (1, 1, 2)
    assert path.with_name("poller.db.lost-journal").exists()
    async with opened_runtime(settings, clock):
        pass
    assert said(events, "ledger-restored") == ["ledger-restored"]


async def test_deleted_ledger_whose_snapshots_are_damaged_is_for_rebuild(
    settings: Config, clock: QuickClock, simulator: Simulator, path: Path
) -> None:
    async with opened_runtime(settings, clock) as runtime:
        await store(runtime, simulator, clock)
        await runtime.services.ledger.look_after(clock.now())
    path.unlink()
    path.with_name("poller.db.snapshot-1").write_bytes(b"nothing " * 1000)
    with pytest.raises(LedgerDamaged, match="poller rebuild"):
        await Ledger.open(settings.state_url)
    assert not path.exists()
    assert (await rebuild(settings, {}, since=None, now=clock.now)).added == 1


async def test_ledger_from_an_old_backup_adopts_what_is_there_and_doubles_nothing(
    settings: Config, clock: QuickClock, simulator: Simulator, path: Path
) -> None:
    async with opened_runtime(settings, clock) as runtime:
        first = await store(runtime, simulator, clock)
    old = path.read_bytes()
    async with opened_runtime(settings, clock) as runtime:
        second, third = [await store(runtime, simulator, clock) for _ in range(2)]
        clock.advance(3 * DAY)
        await catch_up(runtime)
    take(third)
    path.write_bytes(old)
    async with opened_runtime(settings, clock) as runtime:
        for _ in range(3):
            await catch_up(runtime)
            clock.advance(timedelta(minutes=5))
        assert (await runtime.services.ledger.read(streams.all_streams))[0].stored == 3
    again = {fax.fax_id: count for fax, count in simulator.downloads.items()}
    assert (again[first.stem], again[second.stem], again[third.stem]) == (1, 1, 2)
    assert len(stored_files(settings.storage.directory)) == 6


# -- readers -----------------------------------------------------------------------------------------


async def test_reader_that_keeps_a_transaction_open_does_not_stop_the_service_for_good(
    impatient: Runtime, simulator: Simulator, clock: QuickClock, path: Path
) -> None:
    """Somebody's sqlite3 shell: commits wait for it, are postponed, and nothing is lost."""
    runtime = impatient
    fax, _ = await listed(runtime, simulator)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM faxes").fetchone()
        assert not await runtime.services.gate.look_again()
        assert "locked" in (runtime.services.gate.reason or "")
    clock.advance(timedelta(minutes=2))
    assert await runtime.services.gate.check()
    await runtime.accounts[APP].workers.run_until_idle()
    assert (await row(runtime, fax)).state is State.STORED


async def test_status_whose_output_nobody_reads_holds_up_no_commit(
    settings: Config, clock: QuickClock, simulator: Simulator, path: Path, tmp_path: Path
) -> None:
    """`poller status | less`, with more users than a pipe can take."""
    async with await Ledger.open(settings.state_url) as ledger:
        identities = [("app", f"user-{n}", "main", f"user-{n}") for n in range(2000)]
        await ledger.write(streams.sync, identities, clock.now())
        config = tmp_path / "poller.yaml"
        config.write_text(
            f'accounts: {{main: {{app_id: "app", api_key: {{env: KEY}}, '
            f'users: {{a: {{user_id: "user-0"}}}}}}}}\n'
            f"storage: {{directory: faxes}}\nstate: {{url: '{settings.state_url}'}}\n"
        )
        status = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "poller", "status", "--json", "-c", str(config)),
            stdout=asyncio.subprocess.PIPE, cwd=tmp_path, limit=1024,
        )  # fmt: skip
        try:
            assert status.stdout is not None
            await asyncio.wait_for(status.stdout.readexactly(100), 90)  # it prints, and is stuck
            with contextlib.closing(sqlite3.connect(path, timeout=0)) as other, other:
                other.execute("BEGIN EXCLUSIVE")  # nobody else has a lock
            await ledger.check_writable()
            assert status.returncode is None
        finally:
            status.kill()
            await status.communicate()


# -- a full disk -------------------------------------------------------------------------------------

ON_A_SMALL_DISK = """
import asyncio, os, sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from poller.errors import LedgerUnavailable
from poller.ledger import Ledger, NewFax, faxes, streams

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
disk = Path(sys.argv[1])

def page(name, count):
    return [NewFax(f"{name}-{n}", f"{name}/{n}", {"x": "y" * 2000}, NOW) for n in range(count)]

async def main():
    async with await Ledger.open(f"sqlite:///{disk}/state/poller.db") as ledger:
        (user,) = await ledger.write(streams.sync, [("app", "u", "main", "u")], NOW)
        record = lambda name, count: ledger.write(
            faxes.record_page, user.id,
            faxes.ListedPage(page(name, count), window=None, found_by="newest", now=NOW))
        await record("first", 10)
        await ledger.look_after(NOW)
        filler = disk / "filler"
        with filler.open("wb", buffering=0) as file:
            try:
                while file.write(b"x" * 4096):
                    pass
            except OSError:
                pass
        try:
            await record("second", 500)
        except LedgerUnavailable as error:
            print("commit:", "disk is full" in str(error))
        try:
            await ledger.look_after(NOW + timedelta(days=1))
        except LedgerUnavailable as error:
            print("copy:", "too little space" in str(error))
        print("left:", sorted(one.name for one in (disk / "state").iterdir()))
        print("rows:", (await ledger.read(streams.all_streams))[0].discovered)
        filler.unlink()
        print("again:", len((await record("second", 500)).discovered))
        health = await ledger.look_after(NOW + timedelta(days=1))
        print("well:", health.problem is None and health.snapshot_at > NOW)

asyncio.run(main())
"""


def test_full_disk_takes_no_commit_and_no_copy_breaks_nothing_and_heals(tmp_path: Path) -> None:
    """On a tmpfs of 40 MiB, in its own mount namespace."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = 'mount -t tmpfs -o size=40m tmpfs "$0" && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", mounted, str(disk), sys.executable, "-c"]
    try:
        able = subprocess.run(
            [*command, "", str(disk)], capture_output=True, check=False
        ).returncode == 0  # fmt: skip
    except FileNotFoundError:
        able = False
    if not able:
        pytest.skip("needs unshare and mount, so root")
    done = subprocess.run(
        [*command, ON_A_SMALL_DISK, str(disk)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "commit: True",
        "copy: True",
        "left: ['poller.db', 'poller.db-journal', 'poller.db.snapshot-1']",
        "rows: 10",
        "again: 500",
        "well: True",
    ]
