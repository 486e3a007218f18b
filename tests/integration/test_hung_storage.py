"""A step in the storage does not end: poller names it and leaves it, and everybody else continues."""

import asyncio
import os
from collections.abc import Iterator

import pytest

from poller.ingest.fetch import Outcome
from poller.ingest.runtime import Runtime
from poller.simulator import Simulator
from poller.store import syscalls
from poller.store.threads import HUNG_S
from tests.conftest import Event, QuickClock, pass_time, stored_files
from tests.integration.at_work import Held, fetch, listed, row, until


def is_image(fd: int) -> bool:
    return os.readlink(f"/proc/self/fd/{fd}").endswith(".image.part")


@pytest.fixture
def hung(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    """The first fsync of an image hangs until it is let go."""
    hung = Held(syscalls.sync_file, is_image)
    monkeypatch.setattr(syscalls, "sync_file", hung)
    yield hung
    hung.let_go.set()


async def test_fax_whose_fsync_hangs_is_named_and_the_others_are_stored(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, events: list[Event], hung: Held
) -> None:
    stuck, _ = await listed(runtime, simulator)
    other, _ = await listed(runtime, simulator, user="user-b")

    waiting = asyncio.create_task(fetch(runtime, stuck))
    await hung.reached()
    assert await fetch(runtime, other) is Outcome.STORED
    pass_time(HUNG_S)
    assert await waiting is Outcome.FAILED

    (event,) = [event for event in events if event.action == "stalled"]
    assert (event.fields["what"], event.fields["fax_id"]) == ("storage", stuck.fax_id)
    assert runtime.services.gate.usable


async def test_fax_whose_fsync_hung_is_stored_once_it_has_ended(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, events: list[Event], hung: Held
) -> None:
    fax, _ = await listed(runtime, simulator)
    before = set(os.listdir("/proc/self/fd"))
    waiting = asyncio.create_task(fetch(runtime, fax))
    await hung.reached()
    pass_time(HUNG_S)
    assert await waiting is Outcome.FAILED
    assert await fetch(runtime, fax) is Outcome.FAILED
    assert "still hangs" in str((await row(runtime, fax)).last_error)

    hung.let_go.set()
    await until(lambda: not runtime.services.storage._active)
    assert await fetch(runtime, fax) is Outcome.STORED

    assert len(stored_files(runtime.config.storage.directory)) == 2
    assert [file.name for file in runtime.config.storage.directory.rglob(".*.part")] == []
    assert simulator.downloads[fax] == 1  # the step that hung ran to its end
    await until(lambda: len(set(os.listdir("/proc/self/fd")) - before) <= 2)
