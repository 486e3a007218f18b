"""Row 51 of the fault matrix: name servers that do not answer, and work that does not wait for them."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from poller.simulator import Faults
from tests.acceptance.installation import Installation, account, arrived, populated
from tests.efax import Simulator
from tests.faults.troubled import Scene, stored

_LOST = 11  # accounts; asyncio's default executor has six threads on two processors
# Each Python of the installation reads this: a name below `.hangs` never gets an answer, `.example`
# is this machine, and everything that uses asyncio's default executor fails and is written down.
_SITECUSTOMIZE = """
import asyncio, socket, threading, traceback

real_getaddrinfo, real_executor = socket.getaddrinfo, asyncio.BaseEventLoop.run_in_executor

def note(file, text):
    with open(f"{here}/{{file}}", "a") as notes:
        notes.write(text + "\\n")

def getaddrinfo(host, *rest, **more):
    if str(host).endswith(".hangs"):
        note("hanging", host)
        threading.Event().wait()
    return real_getaddrinfo("127.0.0.1" if str(host).endswith(".example") else host, *rest, **more)

def run_in_executor(loop, executor, step, *arguments):
    if executor is None:
        note("used", "".join(traceback.format_stack()))
        raise AssertionError("asyncio's default executor")
    return real_executor(loop, executor, step, *arguments)

socket.getaddrinfo = getaddrinfo
asyncio.BaseEventLoop.run_in_executor = run_in_executor
"""


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with populated(Simulator(seed=7)) as running:
        yield running


@pytest.fixture
def scene(simulator: Simulator, tmp_path: Path) -> Scene:
    """An installation that looks up names, all of them known, without the default executor."""
    by_name = simulator.base_url.replace("127.0.0.1", "localhost")
    installation = Installation(tmp_path, by_name)
    (tmp_path / "sitecustomize.py").write_text(_SITECUSTOMIZE.format(here=tmp_path))
    installation.environ["PYTHONPATH"] = str(tmp_path)
    scene = Scene(installation, simulator)
    installation.write({"http": {"listen": f"localhost:{scene.port}"}})
    return scene


def notes(scene: Scene, file: str) -> list[str]:
    path = scene.installation.root / file
    return path.read_text().splitlines() if path.exists() else []


async def noted(scene: Scene, happened: Callable[[set[str]], bool]) -> None:
    async with asyncio.timeout(60):
        while not happened(set(notes(scene, "hanging"))):
            await asyncio.sleep(0.01)


def without_answer(count: int = _LOST) -> dict[str, Any]:
    """Accounts whose names get no answer; for every third it is the proxy's name."""
    accounts = {}
    for number in range(count):
        lost = account(f"https://efax-{number}.hangs") | {"app_id": f"lost-{number}"}
        if number % 3 == 0:
            proxy = f"http://proxy-{number}.hangs:3128"
            lost |= {"base_url": "https://efax.example", "proxy": proxy}
        accounts[f"lost-{number}"] = lost
    return accounts


async def _looks(scene: Scene) -> None:
    """Everything that answers questions still does."""
    gzip = {"Accept-Encoding": "gzip"}
    for path in ("/healthz", "/metrics", "/"):
        assert (await scene.get(path))[0] == 200
    for headers in (gzip, {"Accept-Encoding": "identity"}):
        code, text = await scene.get("/status.json", headers=headers)
        assert (code, bool(json.loads(text)["users"])) == (200, True)


async def test_a_whole_run_of_the_daemon_uses_nothing_of_asyncios_default_executor(
    scene: Scene, simulator: Simulator
) -> None:
    scene.installation.write({"heartbeat": {"url": f"{simulator.base_url}/health", "every": "1s"}})
    async with scene.installation.daemon() as daemon:
        await stored(scene, daemon, arrived(simulator, 3))
        simulator.faults = Faults.of("html-200@image=always")  # kept as evidence
        (broken,) = arrived(simulator, 1)
        await daemon.event("fax-retry", fax_id=broken.fax_id)
        await _looks(scene)
        daemon.kill(signal.SIGHUP)
        await daemon.event("service-reloaded")
        assert await daemon.stop() == 0
        assert not daemon.said("internal-error")
    assert not notes(scene, "used")


async def test_accounts_whose_names_are_not_answered_hold_up_nobody_else(
    scene: Scene, simulator: Simulator
) -> None:
    scene.installation.write({"accounts": without_answer()})
    async with scene.installation.daemon() as daemon:
        await noted(scene, lambda hanging: len(hanging) == _LOST)
        await stored(scene, daemon, arrived(simulator, 5))
        await _looks(scene)
        daemon.kill(signal.SIGHUP)
        await daemon.event("service-reloaded")
        await stored(scene, daemon, arrived(simulator, 5))
        assert not daemon.said("storage-unusable")
        assert await daemon.stop() == 0  # 1 if it took too long
        assert not daemon.said("stalled")
    scene.is_whole()


@pytest.mark.parametrize("words", [("once", "--json"), ("check", "--online")])
async def test_a_command_ends_though_its_names_are_not_answered(
    scene: Scene, words: tuple[str, ...]
) -> None:
    scene.installation.write(
        {
            "accounts": {"main": {"base_url": "https://efax.hangs"}},
            "retry": {"attempts": 1},
        }
    )
    done = await scene.installation.poller(*words)
    assert done.code == 1
    assert "Traceback" not in done.err
    assert "the name servers have not answered for" in done.out + done.err
