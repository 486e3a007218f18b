"""The storage's threads when the system allows no more of them."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from poller.errors import StorageUnusable
from poller.store.threads import Threads
from tests.integration.at_work import HELD_S, WITHIN_S, until


@pytest.fixture
def threads(tmp_path: Path) -> Iterator[Threads]:
    running = Threads(str(tmp_path), 2)
    yield running
    running.close()
    running._pool.shutdown()


def refused(_thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


async def test_step_for_which_no_thread_can_be_started_is_done_by_one_that_is_there(
    threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, done = threading.Event(), list[str]()
    busy = asyncio.create_task(threads.run(lambda: release.wait(HELD_S)))
    await until(lambda: threads._have_thread)
    monkeypatch.setattr(threading.Thread, "start", refused)
    step = asyncio.create_task(threads.run(lambda: done.append("done")))
    await asyncio.sleep(0)
    assert not step.done()
    release.set()
    await asyncio.gather(busy, step)
    assert done == ["done"]


async def test_step_that_was_refused_for_want_of_any_thread_is_not_done_later(
    threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    with monkeypatch.context() as no_threads:
        no_threads.setattr(threading.Thread, "start", refused)
        with pytest.raises(StorageUnusable, match="cannot start a thread"):
            await threads.run(lambda: done.append("refused"))
    await threads.run(lambda: done.append("wanted"))
    assert done == ["wanted"]


async def test_cancelled_caller_waits_for_a_step_that_hangs_no_longer_than_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poller.store.threads.HUNG_S", 0.1)
    threads, release = Threads(str(tmp_path), 1), threading.Event()
    step = asyncio.create_task(threads.run(lambda: release.wait(HELD_S)))
    await asyncio.sleep(0.02)
    step.cancel()
    try:
        _, late = await asyncio.wait({step}, timeout=WITHIN_S)
        assert not late
    finally:
        release.set()
        threads.close()
        threads._pool.shutdown()
