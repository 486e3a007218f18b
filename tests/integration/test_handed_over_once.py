"""A fax that became visible is recorded, or known, before a consumer can be given it again."""

import asyncio
import errno
from pathlib import Path
from typing import Any

import pytest

from poller.errors import LedgerUnavailable
from poller.ingest.audit import Auditor
from poller.ingest.fetch import Outcome
from poller.ingest.site import Site
from poller.ledger import State, jobs
from poller.simulator import Simulator
from poller.store import survey, syscalls
from poller.store.threads import HUNG_S
from tests.conftest import pass_time, stored_files
from tests.integration.at_work import Held, fetch, listed, row, until
from tests.integration.in_between import around


def is_sidecar(existing: str, *_: object) -> bool:
    return existing.endswith(".json.part")


def take_all(site: Site) -> int:
    taken = stored_files(site.config.storage.directory)
    for file in taken:
        (site.config.storage.directory / file).unlink()
    return len(taken)


async def test_fax_taken_while_the_ledger_was_locked_is_not_delivered_again(
    site: Site, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    fax, _ = await listed(site, simulator)

    async def refuses(*_: Any, **__: Any) -> None:
        raise LedgerUnavailable("the ledger is locked")

    with monkeypatch.context() as locked:
        around(locked, site.shop.ledger, jobs.stored, refuses)
        assert await fetch(site, fax) is Outcome.POSTPONED
    assert take_all(site) == 2
    assert await fetch(site, fax) is Outcome.STORED
    assert stored_files(site.config.storage.directory) == []


async def test_stop_while_a_fax_is_made_visible_records_it(
    site: Site, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    fax, _ = await listed(site, simulator)
    move = Held(syscalls.move)
    monkeypatch.setattr(syscalls, "move", move)
    attempt = asyncio.create_task(fetch(site, fax))
    await move.reached()
    attempt.cancel()
    await asyncio.sleep(0.02)
    move.let_go.set()
    with pytest.raises(asyncio.CancelledError):
        await attempt
    assert (await row(site, fax)).state is State.STORED


async def test_fax_that_nobody_waits_for_after_a_stop_while_it_is_checked_stays_hidden(
    site: Site, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    fax, _ = await listed(site, simulator)
    inspect = Held(site.shop.storage._checkers.inspect)
    monkeypatch.setattr(site.shop.storage._checkers, "inspect", inspect)
    attempt = asyncio.create_task(fetch(site, fax))
    await inspect.reached()
    while not attempt.done():  # only the second time does it leave the thread to itself
        attempt.cancel()
        await asyncio.sleep(0.02)
    inspect.let_go.set()
    await until(lambda: not site.shop.storage._active)
    assert stored_files(site.config.storage.directory) == []
    assert await fetch(site, fax) is Outcome.STORED


async def test_fax_taken_after_its_hung_delivery_ended_is_not_delivered_again(
    site: Site, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    fax, _ = await listed(site, simulator)
    move = Held(syscalls.move, is_sidecar)
    monkeypatch.setattr(syscalls, "move", move)
    attempt = asyncio.create_task(fetch(site, fax))
    await move.reached()
    pass_time(HUNG_S)
    assert await attempt is Outcome.FAILED
    move.let_go.set()
    await until(lambda: not site.shop.storage._active)
    assert take_all(site) == 2
    assert await fetch(site, fax) is Outcome.STORED
    assert stored_files(site.config.storage.directory) == []


async def test_resume_that_hangs_keeps_the_fax_to_itself(
    site: Site, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    fax, listed_row = await listed(site, simulator)
    (site.config.storage.directory / listed_row.path).parent.mkdir(parents=True)
    look = Held(site.shop.storage.store.admit)
    with monkeypatch.context() as hung:
        hung.setattr(site.shop.storage.store, "admit", look)
        attempt = asyncio.create_task(fetch(site, fax))
        await look.reached()
        pass_time(HUNG_S)
        assert await attempt is Outcome.FAILED
        assert await fetch(site, fax) is Outcome.FAILED
    assert "still hangs" in str((await row(site, fax)).last_error)
    assert simulator.downloads[fax] == 0
    look.let_go.set()
    await until(lambda: not site.shop.storage._active)
    assert await fetch(site, fax) is Outcome.STORED


async def test_directory_that_cannot_be_read_hides_no_other_fax_from_the_audit(
    site: Site, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for user in ("user-a", "user-b"):
        fax, _ = await listed(site, simulator, user)
        assert await fetch(site, fax) is Outcome.STORED
    real = syscalls.open_directory

    def bad_sector(name: str, at: int) -> int:
        if name == "user-a":
            raise OSError(errno.EIO, "Input/output error")
        return real(name, at)

    monkeypatch.setattr(syscalls, "open_directory", bad_sector)
    auditor = Auditor(site.shop.ledger, site.shop.storage, site.shop.clock)
    pages = [page async for page in auditor.pages(thorough=True)]
    found = {one.row.user: one.finding.condition.value for page in pages for one in page}
    assert found == {"user-a": "damaged", "user-b": "ok"}
    assert [file async for file in auditor.strangers()] == []


async def test_directory_that_vanishes_during_a_survey_does_not_end_it(
    site: Site, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    fax, _ = await listed(site, simulator)
    assert await fetch(site, fax) is Outcome.STORED
    empty = site.config.storage.directory / "empty"
    empty.mkdir()
    real = survey._is_directory

    def then_gone(fd: int, name: str) -> bool:
        found = real(fd, name)
        if name == "empty":
            Path(empty).rmdir()
        return found

    monkeypatch.setattr(survey, "_is_directory", then_gone)
    found = [one async for batch in site.shop.storage.sidecars() for one in batch]
    assert len(found) == 1
