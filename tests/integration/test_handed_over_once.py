"""A visible fax is recorded, or known, before a consumer could get it again."""

import asyncio
import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from poller.errors import LedgerUnavailable
from poller.ingest.audit import Auditor
from poller.ingest.fetch import Outcome
from poller.ingest.runtime import Runtime
from poller.ledger import State, jobs
from poller.simulator import Simulator
from poller.store import syscalls
from poller.store.threads import HUNG_S
from tests.conftest import pass_time, stored_files
from tests.integration.at_work import Held, fetch, listed, row, until
from tests.integration.in_between import around


def is_sidecar(existing: str, *_: object) -> bool:
    return existing.endswith(".json.part")


def take_all(runtime: Runtime) -> int:
    taken = stored_files(runtime.config.storage.directory)
    for file in taken:
        (runtime.config.storage.directory / file).unlink()
    return len(taken)


async def fetched_but_not_recorded(
    runtime: Runtime, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """Publish a fax that no row calls stored, as after a kill at that moment."""
    fax, _ = await listed(runtime, simulator)

    async def refuses(*_: Any, **__: Any) -> None:
        raise LedgerUnavailable("the ledger is locked")

    with monkeypatch.context() as locked:
        around(locked, runtime.services.ledger, jobs.stored, refuses)
        assert await fetch(runtime, fax) is Outcome.POSTPONED
    return fax


async def test_fax_taken_while_the_ledger_was_locked_is_not_delivered_again(
    runtime: Runtime, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    fax = await fetched_but_not_recorded(runtime, simulator, monkeypatch)
    assert take_all(runtime) == 2
    assert await fetch(runtime, fax) is Outcome.STORED
    assert stored_files(runtime.config.storage.directory) == []


async def test_fax_taken_before_a_mount_that_changes_device_numbers_is_not_delivered_again(
    runtime: Runtime, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    fax = await fetched_but_not_recorded(runtime, simulator, monkeypatch)
    assert take_all(runtime) == 2
    real = syscalls.status

    def mounted_again(fd: int) -> os.stat_result:
        mode, inode, device, *rest = real(fd)
        return os.stat_result((mode, inode, device + 1, *rest))

    monkeypatch.setattr(syscalls, "status", mounted_again)
    assert await fetch(runtime, fax) is Outcome.STORED
    assert simulator.downloads[fax] == 1
    assert stored_files(runtime.config.storage.directory) == []


async def test_directory_moved_away_whose_inode_number_is_used_again_hides_no_fax(
    runtime: Runtime, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    fax, held = await listed(runtime, simulator)
    store = runtime.services.storage.store
    with monkeypatch.context() as broken:
        broken.setattr(store, "publish", _fails)
        await fetch(runtime, fax)
    directory = (runtime.config.storage.directory / held.path).parent
    number = directory.stat().st_ino
    shutil.rmtree(directory)  # as if copied to another disk
    for _ in range(50):
        directory.mkdir()
        if directory.stat().st_ino == number:
            break
        directory.rmdir()
    else:
        pytest.skip("this file system does not use the number again")
    assert await fetch(runtime, fax) is Outcome.STORED
    assert {file.suffix for file in map(Path, stored_files(runtime.config.storage.directory))} == {
        ".json",
        ".pdf",
    }


def _fails(*_: Any) -> bool:
    raise OSError(errno.EIO, "Input/output error")


async def test_what_a_ticket_tells_of_is_synced_before_its_row_says_stored(
    runtime: Runtime, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    fax = await fetched_but_not_recorded(runtime, simulator, monkeypatch)
    synced: list[str] = []

    def fails(fd: int) -> None:
        synced.append(Path(f"/proc/self/fd/{fd}").readlink().name)
        if len(synced) == 3:
            raise syscalls.SyncError(errno.EIO, "Input/output error")

    with monkeypatch.context() as unsynced:
        unsynced.setattr(syscalls, "sync_file", fails)
        unsynced.setattr(syscalls, "sync_directory", fails)
        assert await fetch(runtime, fax) is not Outcome.STORED
    assert [Path(name).suffix for name in synced] == [".pdf", ".json", ""]
    assert (await row(runtime, fax)).state is State.PENDING


async def test_stop_while_a_fax_is_made_visible_records_it(
    runtime: Runtime, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    fax, _ = await listed(runtime, simulator)
    move = Held(syscalls.move)
    monkeypatch.setattr(syscalls, "move", move)
    attempt = asyncio.create_task(fetch(runtime, fax))
    await move.reached()
    attempt.cancel()
    await asyncio.sleep(0.02)
    move.let_go.set()
    with pytest.raises(asyncio.CancelledError):
        await attempt
    assert (await row(runtime, fax)).state is State.STORED


async def test_fax_that_nobody_waits_for_after_a_stop_while_it_is_checked_stays_hidden(
    runtime: Runtime, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    fax, _ = await listed(runtime, simulator)
    inspect = Held(runtime.services.storage._checkers.inspect)
    monkeypatch.setattr(runtime.services.storage._checkers, "inspect", inspect)
    attempt = asyncio.create_task(fetch(runtime, fax))
    await inspect.reached()
    while not attempt.done():  # only the second time it leaves the thread behind
        attempt.cancel()
        await asyncio.sleep(0.02)
    inspect.let_go.set()
    await until(lambda: not runtime.services.storage._active)
    assert stored_files(runtime.config.storage.directory) == []
    assert await fetch(runtime, fax) is Outcome.STORED


async def test_fax_taken_after_its_hung_delivery_ended_is_not_delivered_again(
    runtime: Runtime, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    fax, _ = await listed(runtime, simulator)
    move = Held(syscalls.move, is_sidecar)
    monkeypatch.setattr(syscalls, "move", move)
    attempt = asyncio.create_task(fetch(runtime, fax))
    await move.reached()
    pass_time(HUNG_S)
    assert await attempt is Outcome.FAILED
    move.let_go.set()
    await until(lambda: not runtime.services.storage._active)
    assert take_all(runtime) == 2
    assert await fetch(runtime, fax) is Outcome.STORED
    assert stored_files(runtime.config.storage.directory) == []


async def test_resume_that_hangs_keeps_the_fax_to_itself(
    runtime: Runtime, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    fax, listed_row = await listed(runtime, simulator)
    (runtime.config.storage.directory / listed_row.path).parent.mkdir(parents=True)
    look = Held(runtime.services.storage.store.admit)
    with monkeypatch.context() as hung:
        hung.setattr(runtime.services.storage.store, "admit", look)
        attempt = asyncio.create_task(fetch(runtime, fax))
        await look.reached()
        pass_time(HUNG_S)
        assert await attempt is Outcome.FAILED
        assert await fetch(runtime, fax) is Outcome.FAILED
    assert "still hangs" in str((await row(runtime, fax)).last_error)
    assert simulator.downloads[fax] == 0
    look.let_go.set()
    await until(lambda: not runtime.services.storage._active)
    assert await fetch(runtime, fax) is Outcome.STORED


async def test_directory_that_cannot_be_read_hides_no_other_fax_from_the_audit(
    runtime: Runtime, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for user in ("user-a", "user-b"):
        fax, _ = await listed(runtime, simulator, user)
        assert await fetch(runtime, fax) is Outcome.STORED
    real = syscalls.open_directory

    def bad_sector(name: str, at: int) -> int:
        if name == "user-a":
            raise OSError(errno.EIO, "Input/output error")
        return real(name, at)

    monkeypatch.setattr(syscalls, "open_directory", bad_sector)
    auditor = Auditor(runtime.services.ledger, runtime.services.storage, runtime.services.clock)
    pages = [page async for page in auditor.pages(thorough=True)]
    found = {one.row.user: one.finding.condition.value for page in pages for one in page}
    assert found == {"user-a": "unreadable", "user-b": "ok"}
    assert [file async for file in auditor.strangers()] == []


async def test_directory_that_vanishes_during_a_survey_does_not_end_it(
    runtime: Runtime, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    fax, _ = await listed(runtime, simulator)
    assert await fetch(runtime, fax) is Outcome.STORED
    empty = runtime.config.storage.directory / "empty"
    empty.mkdir()
    real = syscalls.is_directory

    def then_gone(name: str, at: int) -> bool:
        found = real(name, at)
        if name == "empty":
            Path(empty).rmdir()
        return found

    monkeypatch.setattr(syscalls, "is_directory", then_gone)
    found = [one async for batch in runtime.services.storage.sidecars() for one in batch]
    assert len(found) == 1
