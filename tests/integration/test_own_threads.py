"""Hanging steps occupy only their own threads, and do not delay the exit."""

import ast
import asyncio
import gc
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from poller.errors import NoThread
from poller.own_threads import OwnThreads
from tests.integration.at_work import until
from tests.test_imports import modules, relative

WITHIN_S = 60


class Hanging:
    """Steps that hang until the test is over, and which of them have begun."""

    def __init__(self) -> None:
        self.end = threading.Event()
        self.begun: list[str] = []

    def step(self, name: str) -> Callable[[], str]:
        def step() -> str:
            self.begun.append(name)
            self.end.wait(WITHIN_S)
            return name

        return step


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    steps = Hanging()
    yield steps
    steps.end.set()


def alive(name: str) -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name.startswith(f"{name}-")]


async def test_a_step_gives_its_result_or_its_error() -> None:
    threads = OwnThreads("own")
    assert await threads.run(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 // 0)
    threads.close()


async def test_steps_share_one_thread_as_long_as_it_is_free() -> None:
    threads = OwnThreads("shared", most=4)
    idents = {await threads.run(threading.get_ident) for _ in range(20)}
    assert len(idents) == 1
    threads.close()


async def test_a_step_that_hangs_leaves_the_other_threads_free_and_further_steps_wait(
    hanging: Hanging,
) -> None:
    threads = OwnThreads("busy", most=2)
    first = asyncio.ensure_future(threads.run(hanging.step("first")))
    await until(lambda: hanging.begun == ["first"])
    assert await threads.run(lambda: "beside it") == "beside it"
    second = asyncio.ensure_future(threads.run(hanging.step("second")))
    third = asyncio.ensure_future(threads.run(hanging.step("third")))
    await until(lambda: len(hanging.begun) == 2)
    assert (threads.all_busy, len(alive("busy"))) == (True, 2)
    hanging.end.set()
    assert (await first, await second, await third) == ("first", "second", "third")
    assert (threads.all_busy, len(alive("busy"))) == (False, 2)
    threads.close()


async def test_a_cancelled_caller_leaves_its_step_alone_and_takes_back_one_that_waits(
    hanging: Hanging,
) -> None:
    threads = OwnThreads("left")
    begun = asyncio.ensure_future(threads.run(hanging.step("begun")))
    waiting = asyncio.ensure_future(threads.run(hanging.step("waiting")))
    await until(lambda: hanging.begun == ["begun"])
    for one in (begun, waiting):
        one.cancel()
    await asyncio.wait([begun, waiting])
    assert threads.all_busy
    hanging.end.set()
    await until(lambda: not threads.all_busy)
    assert await threads.run(lambda: "free again") == "free again"
    assert hanging.begun == ["begun"]
    threads.close()


@pytest.mark.parametrize("how", ["closed", "dropped"])
async def test_threads_end_when_they_are_closed_or_dropped(how: str) -> None:
    threads = OwnThreads("ending", most=3)
    await asyncio.gather(*(threads.run(lambda: None) for _ in range(3)))
    left = alive("ending")
    assert left
    if how == "closed":
        threads.close()
        with pytest.raises(NoThread, match="have ended"):
            await threads.run(lambda: None)
    del threads
    gc.collect()
    await until(lambda: not any(thread.is_alive() for thread in left))


async def test_without_a_new_thread_one_that_is_there_does_it_or_it_is_said(
    monkeypatch: pytest.MonkeyPatch, hanging: Hanging
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    warm, cold = OwnThreads("warm", most=2), OwnThreads("cold", most=2)
    hangs = asyncio.ensure_future(warm.run(hanging.step("hangs")))
    await until(lambda: hanging.begun)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(NoThread, match="cold"):
        await cold.run(lambda: None)
    later = asyncio.ensure_future(warm.run(lambda: "later"))
    hanging.end.set()
    assert (await hangs, await later) == ("hangs", "later")
    warm.close()


def test_the_process_ends_while_a_step_hangs() -> None:
    program = """
import asyncio, threading
from poller.own_threads import OwnThreads

async def main():
    begun = threading.Event()
    threads = OwnThreads("hung")
    def hang():
        begun.set()
        threading.Event().wait()
    task = asyncio.create_task(threads.run(hang))
    while not begun.is_set():
        await asyncio.sleep(0.001)

asyncio.run(main())
print("over")
"""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "over\n", "")


# -- asyncio's default executor ------------------------------------------------------------------------

# Each of these uses it, in some cases inside aiohttp or asyncio.
_CALLS = {"to_thread", "set_default_executor", "enable_compression", "add_static", "FileResponse"}
_CALLS |= {"open_connection", "create_connection", "create_datagram_endpoint", "start_server"}
_CALLS |= {"sendfile", "sock_sendfile"}
# otherwise aiohttp makes its own
_NEEDS = {"ClientSession": "connector", "TCPConnector": "resolver"}
# The loop's methods use the default executor too, or look up a name there.
_OF_SOCKET = {"getaddrinfo", "getnameinfo", "create_server"}


def default_executor_uses(source: str) -> list[str]:
    """Return the calls that would run something in asyncio's default executor."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [ast.unparse(call) for call in calls if _uses_it(call)]


def _uses_it(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    last = name.rpartition(".")[2]
    if last in _OF_SOCKET:
        return name != f"socket.{last}"
    if last == "run_in_executor":
        return isinstance(call.args[0], ast.Constant)
    if last in _NEEDS:
        return all(keyword.arg != _NEEDS[last] for keyword in call.keywords)
    return last in _CALLS


@pytest.mark.parametrize("file", modules(), ids=relative)
def test_nothing_uses_the_default_executor(file: Path) -> None:
    assert not default_executor_uses(file.read_text())


@pytest.mark.parametrize(
    "source",
    [
        "await asyncio.to_thread(work)",
        "loop.run_in_executor(None, work)",
        "loop.getaddrinfo(host, port)",
        "response.enable_compression()",
        "aiohttp.ClientSession(timeout=timeout)",
        "aiohttp.TCPConnector(limit=3)",
        "web.FileResponse(path)",
        "asyncio.open_connection(host, port)",
    ],
)
def test_a_use_of_the_default_executor_is_noticed(source: str) -> None:
    assert default_executor_uses(f"async def f():\n    {source}")
