"""`send`, `selftest` and canaries as an operator runs them, alone and with the service."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from poller.drawn_page import page
from poller.simulator import Faults, Switches
from poller.simulator.state import SentFax
from tests.acceptance.installation import APP, KEY, PATIENCE_S, Installation, account
from tests.efax import Simulator

OWN_NUMBER = "18005550123"
USER = "main/front-desk"


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with Simulator(seed=3, switches=Switches(send_takes_s=0.0)) as running:
        running.add_app(APP, KEY)
        running.add_user(APP, "user-a", number=OWN_NUMBER)
        running.add_user(APP, "user-b")
        yield running


@pytest.fixture
def installation(simulator: Simulator, tmp_path: Path) -> Installation:
    (tmp_path / "letter.pdf").write_bytes(page("LETTER", ["Dear Sir"]))
    (tmp_path / "half.pdf").write_bytes(page("HALF", [])[:300])
    main = account(simulator.base_url)
    main["users"]["front-desk"]["number"] = OWN_NUMBER
    return Installation(tmp_path, simulator.base_url, {"accounts": {"main": main}})


def sent(simulator: Simulator) -> list[SentFax]:
    return [fax for box in simulator.apps[APP].users.values() for fax in box.sent]


async def test_a_fax_is_sent_without_a_service_and_followed(
    installation: Installation, simulator: Simulator
) -> None:
    words = ("send", USER, "--to", "(323) 555-1212", "letter.pdf", "letter.pdf", "--wait", "--json")
    done = await installation.poller(*words)
    assert done.code == 0, done
    (fax,) = sent(simulator)
    assert done.json == {
        "transaction_id": fax.transaction_id,
        "fax_id": fax.fax_id,
        "status": "transmitted",
        "transmission_status": "COMPLETE",
        "error": None,
    }
    assert (fax.destination, fax.pages) == ("13235551212", 2)
    assert "5551212" not in done.err
    assert not list((installation.ledger.parent / "outbox").glob("*"))


async def test_what_is_not_whole_is_refused_before_anything_is_sent(
    installation: Installation, simulator: Simulator
) -> None:
    done = await installation.poller("send", USER, "--to", "13235551212", "letter.pdf", "half.pdf")
    assert done.code == 1
    assert done.said_in_one_sentence()
    assert "half.pdf" in done.err
    assert simulator.requests == []


def step_times(report: dict[str, Any]) -> list[str]:
    return [report[f"{step}_at"] for step in ("asked", "accepted", "listed", "stored")]


async def test_a_self_test_without_a_service_polls_by_itself(
    installation: Installation, simulator: Simulator
) -> None:
    done = await installation.poller("selftest", USER, "--json")
    assert done.code == 0, done
    report = done.json
    assert report["ok"]
    assert step_times(report) == sorted(step_times(report))
    assert (installation.storage / report["file"]).is_file()
    (fax,) = sent(simulator)
    assert (report["fax_id"], fax.tsid) == (fax.fax_id, f"POLLER {report['code']}")


async def test_the_service_sends_tests_itself_and_flies_canaries(
    installation: Installation, simulator: Simulator
) -> None:
    canary = {"every": "2s", "within": "1m"}
    users = {"front-desk": {"canary": canary}}
    installation.write({"accounts": {"main": {"users": users}}})
    async with installation.daemon() as daemon:
        done = await installation.poller("send", USER, "--to", "13235551212", "letter.pdf")
        assert done.code == 0, done
        assert done.out.split(":")[0] in ("accepted", "transmitted")
        tested = await installation.poller("selftest", USER)
        assert tested.code == 0, tested
        assert "The self-test passed" in tested.out
        arrived = await daemon.event("canary-arrived")
        assert await daemon.stop() == 0
    fax_id = arrived["poller"]["fax_id"]
    sidecar = json.loads(installation.sidecars()[fax_id].read_text())
    assert sidecar["canary"] is True
    marks = [json.loads(path.read_text())["canary"] for path in installation.sidecars().values()]
    assert all(marks)  # also the self-test's, which is nobody's fax
    assert len({fax.transaction_id for fax in sent(simulator)}) == len(sent(simulator))
    assert not any("5551212" in line for line in daemon.lines)


async def test_a_service_that_is_killed_while_it_sends_finds_the_fax_and_sends_no_other(
    installation: Installation, simulator: Simulator
) -> None:
    """Let the command wait for the service, and get the fax id."""
    simulator.faults = Faults.of("stall@send=first:1")
    async with installation.daemon() as killed:
        sending = asyncio.create_task(
            installation.poller("send", USER, "--to", "13235551212", "letter.pdf", "--json")
        )
        async with asyncio.timeout(PATIENCE_S):
            while not sent(simulator):
                await asyncio.sleep(0.01)
        killed.kill(signal.SIGKILL)
        await killed.ended()
    async with installation.daemon() as daemon:
        done = await sending
        assert await daemon.stop() == 0
    (fax,) = sent(simulator)
    assert (done.code, done.json["fax_id"]) == (0, fax.fax_id)
    assert sum(one.call == "send" for one in simulator.requests) == 1
