"""A server has no simulator: everything else works without the packages of that extra."""

import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from poller.simulator import Simulator
from tests.acceptance.installation import Installation, arrived, assert_stored, populated
from tests.exhaustive import sample

# Python runs this at each start, so the checking process has no such package either.
_NOT_INSTALLED = 'import sys; sys.modules["img2pdf"] = None'


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with Simulator(seed=1) as simulator:
        yield populated(simulator)


@pytest.fixture
def server(simulator: Simulator, tmp_path: Path) -> Installation:
    installation = Installation(tmp_path, simulator.base_url)
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    (runtime / "sitecustomize.py").write_text(_NOT_INSTALLED)
    paths = (str(runtime), os.environ.get("PYTHONPATH"))
    installation.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return installation


async def test_faxes_are_fetched_without_the_simulators_packages(
    server: Installation, simulator: Simulator
) -> None:
    arrived(simulator, 2)
    for words in sample(("check", "check --online", "plan"), 1):
        done = await server.poller(*words.split())
        assert done.code == 0, done
    assert (await server.once())["stored"] == 2
    arrived(simulator)
    async with server.daemon() as daemon:
        await daemon.event("fax-stored")
        assert await daemon.stop() == 0
    for words in sample(("status", "verify", "backup simulate"), 1):
        done = await server.poller(*words.split())
        assert done.code == 0, done
    assert_stored(server, simulator)


@pytest.mark.parametrize("command", ["simulate --users=2", "demo"])
async def test_simulate_and_demo_say_what_to_install_and_leave_nothing_behind(
    server: Installation, tmp_path: Path, command: str
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environ = {"TMPDIR": str(temporary)}
    done = await server.poller(*command.split(), config=False, environ=environ)
    assert done.code == 2, done
    assert done.said_in_one_sentence(), done
    assert "needs img2pdf, which is not installed" in done.err
    assert f"{sys.executable} -m pip install '.[simulator]'" in done.err
    assert (done.out, list(temporary.iterdir())) == ("", [])


async def test_the_options_of_simulate_are_shown_all_the_same(server: Installation) -> None:
    done = await server.poller("simulate", "--help", config=False)
    assert done.code == 0, done
    assert "--arrivals-per-minute" in done.out
