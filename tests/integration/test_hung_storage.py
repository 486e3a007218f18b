"""A step in the storage that does not end: named, left alone, and everybody else goes on."""

import asyncio
import os
import threading
from collections.abc import Iterator

import pytest

from poller.ingest.fetch import Outcome
from poller.ingest.site import Site
from poller.simulator import Simulator
from poller.storage import steps
from tests.conftest import Event, QuickClock, stored_files
from tests.integration.at_work import fetch, listed, row, until


class HungFsync:
    """The first fsync of a file hangs until it is let go."""

    def __init__(self) -> None:
        self.hangs = threading.Event()
        self.let_go = threading.Event()
        self._real = steps.sync_file

    def __call__(self, fd: int) -> None:
        first = not self.hangs.is_set()
        if first and os.readlink(f"/proc/self/fd/{fd}").endswith(".image.part"):
            self.hangs.set()
            self.let_go.wait(30)
        self._real(fd)


@pytest.fixture
def hung(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[HungFsync]:
    monkeypatch.setattr(site.shop.storage._threads, "_hung_s", 0.3)
    hung = HungFsync()
    monkeypatch.setattr(steps, "sync_file", hung)
    yield hung
    hung.let_go.set()


async def test_fax_whose_fsync_hangs_is_named_and_the_others_are_stored(
    site: Site, simulator: Simulator, clock: QuickClock, events: list[Event], hung: HungFsync
) -> None:
    stuck, _ = await listed(site, simulator)
    other, _ = await listed(site, simulator, user="user-b")

    waiting = asyncio.create_task(fetch(site, stuck))
    await asyncio.to_thread(hung.hangs.wait, 10)
    assert await fetch(site, other) is Outcome.STORED
    assert await waiting is Outcome.FAILED

    (event,) = [event for event in events if event.action == "stalled"]
    assert (event.fields["what"], event.fields["fax_id"]) == ("storage", stuck.fax_id)
    assert site.shop.gate.usable


async def test_fax_whose_fsync_hung_is_stored_once_it_has_ended(
    site: Site, simulator: Simulator, clock: QuickClock, events: list[Event], hung: HungFsync
) -> None:
    fax, _ = await listed(site, simulator)
    before = set(os.listdir("/proc/self/fd"))
    assert await fetch(site, fax) is Outcome.FAILED
    assert await fetch(site, fax) is Outcome.FAILED
    assert "still hangs" in str((await row(site, fax)).last_error)

    hung.let_go.set()
    await until(lambda: not site.shop.storage._active)
    assert await fetch(site, fax) is Outcome.STORED

    assert len(stored_files(site.config.storage.directory)) == 2
    assert [file.name for file in site.config.storage.directory.rglob(".*.part")] == []
    assert simulator.downloads[fax] == 1  # the step that hung carried it to its end
    await until(lambda: len(set(os.listdir("/proc/self/fd")) - before) <= 2)
