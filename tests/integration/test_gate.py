"""The gate before every image: open only while storage and ledger can take a fax."""

from datetime import timedelta
from typing import Any

import pytest

from poller.errors import LedgerUnavailable
from poller.ingest.runtime import Runtime
from tests.conftest import Event, QuickClock
from tests.integration.at_work import mount, said, unmount

STORAGE = ("storage-unusable", "storage-usable")
SECOND = timedelta(seconds=1)


async def look(runtime: Runtime, clock: QuickClock) -> bool:
    clock.advance(SECOND)
    return await runtime.services.gate.check()


async def test_missing_disk_shuts_the_gate_and_its_return_opens_it_each_said_once(
    runtime: Runtime, clock: QuickClock, events: list[Event]
) -> None:
    changes = 0

    def changed() -> None:
        nonlocal changes
        changes += 1

    runtime.services.gate.on_change = changed
    assert await look(runtime, clock)
    unmount(runtime)
    for _ in range(3):
        assert not await look(runtime, clock)
    assert "is its disk mounted" in str(runtime.services.gate.reason)
    mount(runtime)
    for _ in range(3):
        assert await look(runtime, clock)

    assert said(events, *STORAGE) == list(STORAGE)
    assert changes == 2
    assert runtime.services.gate.free_bytes


async def test_answer_is_trusted_for_a_second(
    runtime: Runtime, clock: QuickClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    real = runtime.services.storage.check

    async def check(storage_id: str | None = None) -> str | None:
        nonlocal looks
        looks += 1
        return await real(storage_id)

    monkeypatch.setattr(runtime.services.storage, "check", check)
    for _ in range(5):
        clock.advance(SECOND / 2)
        assert await runtime.services.gate.check()
    assert looks == 2


async def test_ledger_that_takes_no_writes_shuts_the_gate(
    runtime: Runtime, clock: QuickClock, monkeypatch: pytest.MonkeyPatch, events: list[Event]
) -> None:
    async def refuses(*_: Any) -> None:
        raise LedgerUnavailable("the ledger's disk is full")

    with monkeypatch.context() as full:
        full.setattr(runtime.services.ledger, "check_writable", refuses)
        assert not await look(runtime, clock)
        assert runtime.services.gate.reason == (
            "the ledger's disk is full. See `poller help ledger-unusable`."
        )
    assert await look(runtime, clock)
    assert said(events, *STORAGE) == list(STORAGE)


async def test_gate_stays_shut_longer_after_each_failed_attempt(
    runtime: Runtime, clock: QuickClock, events: list[Event]
) -> None:
    """A check cannot see a quota; without the pause the same image would be fetched repeatedly."""
    gate = runtime.services.gate
    for pause_s in (2, 4, 8, 16, 32, 60, 60):
        assert await look(runtime, clock)
        gate.close("no space is left of the quota")
        gate.close("no space is left of the quota")  # another attempt at the same time
        clock.advance(timedelta(seconds=pause_s - 0.5))
        assert not await gate.check()
        clock.advance(timedelta(seconds=0.5))
        assert await gate.check()
    gate.passed()
    gate.close("once more")
    clock.advance(timedelta(seconds=2))
    assert await gate.check()


async def test_storage_that_fails_in_every_way_shuts_the_gate_and_raises_nothing(
    runtime: Runtime, clock: QuickClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr("poller.store.syscalls.space", fails)
    assert not await look(runtime, clock)
    assert runtime.services.gate.reason
