"""A fax that became visible is recorded, or known, before a consumer can be given it again."""

import asyncio
import errno
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


async def test_fax_taken_while_the_ledger_was_locked_is_not_delivered_again(
    runtime: Runtime, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    fax, _ = await listed(runtime, simulator)

    async def refuses(*_: Any, **__: Any) -> None:
        raise LedgerUnavailable("the ledger is locked")

    with monkeypatch.context() as locked:
        around(locked, runtime.services.ledger, jobs.stored, refuses)
        assert await fetch(runtime, fax) is Outcome.POSTPONED
    assert take_all(runtime) == 2
    assert await fetch(runtime, fax) is Outcome.STORED
    assert stored_files(runtime.config.storage.directory) == []


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
    while not attempt.done():  # only the second time does it leave the thread to itself
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
    assert found == {"user-a": "damaged", "user-b": "ok"}
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
