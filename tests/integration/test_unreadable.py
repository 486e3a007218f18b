"""What cannot be read is not called damaged: it is said, kept, and neither replaced nor deleted."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poller.config.model import Delete
from poller.daemon.background_checks import BackgroundChecks
from poller.daemon.monitor import Monitor
from poller.daemon.planner import Planner
from poller.deletion import why_kept, why_unproved
from poller.errors import ALONE, StorageConflict
from poller.ingest.audit import Auditor
from poller.ingest.runtime import Runtime
from poller.ledger import State, faxes, jobs
from poller.problems import problems
from poller.simulator import Simulator
from poller.store import Condition, syscalls
from tests.conftest import Event, MakeConfig, QuickClock
from tests.integration.at_work import row, said
from tests.integration.storage_seam import (
    IDENTITY,
    PATH,
    describe,
    opened,
    store,
    tiff,
    tree,
    visible,
)
from tests.integration.test_background_checks import shown, stored
from tests.integration.test_cli_commands import (
    Run,
    default_signals,
    directory,
    efax,
    receive,
    run,
)
from tests.integration.test_rebuild import Installation, gone

__all__ = ["default_signals", "directory", "efax", "run"]
Refuse = Callable[..., None]


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """Let files whose names end so not be opened, or with EIO not be read; `None` ends it."""
    wanted: dict[str, int | None] = {}
    real_open, real_read = syscalls.open_file, syscalls.read
    bad: dict[int, int] = {}

    def number_of(name: str) -> int | None:
        return next((number for end, number in wanted.items() if name.endswith(end)), None)

    def open_file(name: str, at: int) -> int:
        number = number_of(name)
        if number is not None and number != errno.EIO:
            raise OSError(number, os.strerror(number), name)
        fd = real_open(name, at)
        bad.pop(fd, None)
        if number is not None:
            bad[fd] = number
        return fd

    def read(fd: int) -> Any:
        if fd in bad:
            raise OSError(bad[fd], os.strerror(bad[fd]))
        return real_read(fd)

    monkeypatch.setattr(syscalls, "open_file", open_file)
    monkeypatch.setattr(syscalls, "read", read)
    return lambda **ends: wanted.update({f".{end}": number for end, number in ends.items()})


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EIO])
@pytest.mark.parametrize("what", ["tif", "json"])
async def test_a_file_that_cannot_be_read_is_unreadable_and_stays_as_it_is(
    what: str, number: int, tmp_path: Path, refuse: Refuse
) -> None:
    storage = await opened(tmp_path / "faxes")
    held = await store(storage, tiff())
    before = tree(tmp_path / "faxes")
    refuse(**{what: number})
    (found,) = await storage.look([(held, IDENTITY)], thorough=True)
    assert found.condition is Condition.UNREADABLE
    name = "image" if what == "tif" else "sidecar"
    assert found.why == f"the {name} cannot be read: {os.strerror(number)}"
    assert tree(tmp_path / "faxes") == before
    storage.close()


async def test_a_directory_that_cannot_be_opened_makes_its_faxes_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = await opened(tmp_path / "faxes")
    held = await store(storage, tiff())
    real = syscalls.open_directory

    def open_directory(name: str, at: int) -> int:
        if name.endswith("desk"):
            raise PermissionError(errno.EACCES, "Permission denied", name)
        return real(name, at)

    monkeypatch.setattr(syscalls, "open_directory", open_directory)
    (found,) = await storage.look([(held, IDENTITY)], thorough=True)
    assert found.condition is Condition.UNREADABLE
    assert found.why == "the directory cannot be read: Permission denied"
    storage.close()


async def test_a_hand_over_that_cannot_be_looked_at_is_neither_made_again_nor_called_taken(
    tmp_path: Path, refuse: Refuse
) -> None:
    storage = await opened(tmp_path / "faxes")
    tickets: list[Any] = []
    await store(storage, tiff(), ticketed=tickets.append)
    before = visible(tmp_path / "faxes")
    refuse(json=errno.EIO)
    async with storage.draft(PATH, IDENTITY) as draft:
        with pytest.raises(StorageConflict, match=f"{ALONE}: the sidecar cannot be read"):
            await draft.settle(tickets[0], describe)
    refuse(json=None)
    async with storage.draft(PATH, IDENTITY) as draft:
        assert await draft.settle(tickets[0], describe) == tickets[0].file
    assert visible(tmp_path / "faxes") == before
    storage.close()


async def test_it_is_in_the_log_the_status_the_problems_and_the_metrics_until_it_can_be_read(
    runtime: Runtime, simulator: Simulator, refuse: Refuse, events: list[Event]
) -> None:
    fax, image = await stored(runtime, simulator)
    refuse(pdf=errno.EIO)
    await BackgroundChecks(runtime)._check_files()
    assert said(events, "files-unreadable", "fax-damaged") == ["files-unreadable"]
    found = await shown(runtime)
    assert found["damaged_faxes"] == []
    (one,) = found["unreadable_faxes"]
    assert (one["fax_id"], one["why"]) == (
        fax.fax_id,
        "the image cannot be read: Input/output error",
    )
    assert [(u["damaged_files"], u["unreadable_files"]) for u in found["users"]] == [(0, 1), (0, 0)]
    (problem,) = problems(found, [])
    assert problem.startswith("The files of 1 stored fax cannot be read (main/user-a)")
    await Monitor(runtime, Planner(runtime))._gauges()
    text = (await runtime.services.metrics.render()).decode()
    assert 'poller_fax_unreadable{account="main",user="user-a"} 1.0' in text
    assert 'poller_fax_damaged{account="main",user="user-a"} 0.0' in text

    refuse(pdf=None)
    await BackgroundChecks(runtime)._check_files()
    assert problems(await shown(runtime), []) == []
    assert image.exists()


async def test_what_becomes_readable_and_is_another_is_damaged_after_all(
    runtime: Runtime, simulator: Simulator, refuse: Refuse
) -> None:
    fax, image = await stored(runtime, simulator)
    auditor = Auditor(runtime.services.ledger, runtime.services.storage, runtime.services.clock)
    refuse(pdf=errno.EACCES)
    [_ async for _ in auditor.pages(thorough=True)]
    assert (await row(runtime, fax)).unreadable
    refuse(pdf=None)
    image.write_bytes(b"another")
    [_ async for _ in auditor.pages(thorough=True)]
    now = await row(runtime, fax)
    assert now.is_damaged
    assert await runtime.services.ledger.write(jobs.make_due, [now.id], now.first_seen_at) == 1


async def test_retry_does_not_fetch_what_may_be_whole(
    runtime: Runtime, simulator: Simulator
) -> None:
    fax, _ = await stored(runtime, simulator)
    before = await row(runtime, fax)
    now = runtime.services.clock.now()
    noted = {before.id: (before.sha256 or "", "the image cannot be read: no")}
    await runtime.services.ledger.write(faxes.note_damage, noted, now, {before.id})
    assert await runtime.services.ledger.write(jobs.make_due, [before.id], now) == 0
    assert (await row(runtime, fax)).state is State.STORED


async def test_an_unreadable_fax_is_no_proof_for_its_deletion(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, refuse: Refuse
) -> None:
    fax, _ = await stored(runtime, simulator)
    auditor = Auditor(runtime.services.ledger, runtime.services.storage, clock)
    refuse(pdf=errno.EIO)
    on_disk = await runtime.services.ledger.read(faxes.on_disk_of, [(await row(runtime, fax)).id])
    (checked,) = await auditor.check(on_disk, thorough=True)
    rule = Delete(after=clock.now() - clock.now(), taken="delete")
    proves_nothing = (
        "its files cannot be read, so they prove nothing: "
        "the image cannot be read: Input/output error"
    )
    assert why_unproved(rule, checked.finding) == proves_nothing
    assert why_kept(await row(runtime, fax), rule, clock.now()) == proves_nothing


async def test_a_ledger_made_from_sidecars_knows_what_could_not_be_read(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock, refuse: Refuse
) -> None:
    place = Installation(make_config(simulator.base_url), simulator, clock)
    (fax,) = await place.store()
    gone(place.ledger)
    refuse(pdf=errno.EIO)
    done = await place.rebuild()
    assert done.damaged.count == 0
    assert [why for _, why in done.unreadable.named] == [
        "the image cannot be read: Input/output error"
    ]
    refuse(pdf=None)
    async with place.open() as runtime:
        assert (await row(runtime, fax)).unreadable
    await place.catch_up()
    assert set(place.downloads().values()) == {1}


def test_verify_names_it_and_repair_leaves_it_alone(
    run: Run, efax: Any, directory: Path, refuse: Refuse
) -> None:
    fax = receive(efax)
    assert run("once")[0] == 0
    before = tree(directory / "faxes")
    refuse(pdf=errno.EACCES)
    code, out, _ = run("verify", "--repair", "--json")
    found = json.loads(out)
    assert code == 1
    assert (found["checked"], found["ok"], found["damaged"], found["requested"]) == (1, 0, [], 0)
    (one,) = found["unreadable"]
    assert (one["fax_id"], one["account"], one["user"]) == (fax.fax_id, "main", "a")
    assert one["why"] == "the image cannot be read: Permission denied"

    code, out, _ = run("verify", "--taken", fax.fax_id)
    assert code == 1
    assert f"not requested  main/a/{fax.fax_id}: its files are there but cannot be read" in out
    assert "poller help fax-unreadable" in out
    assert "its files cannot be read: the image" in run("explain", fax.fax_id)[1]
    assert "its files cannot be read" in run("retry", fax.fax_id)[1]
    assert "unreadable  main/a" in run("status")[1]
    assert tree(directory / "faxes") == before

    refuse(pdf=None)
    assert run("verify")[0] == 0
    assert json.loads(run("status", "--json")[1])["unreadable_faxes"] == []
