"""The archive of sent faxes through the command: what is on the disk, and how commands end."""

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from poller.simulator import Faults, Simulator
from tests.acceptance.installation import APP, Installation, arrived, populated
from tests.crash.checker import tree_problems

ARCHIVED: dict[str, Any] = {"sent": {"archive": "image", "every": "1s"}}


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with populated(Simulator(seed=5)) as running:
        yield running


@pytest.fixture
def installation(simulator: Simulator, tmp_path: Path) -> Installation:
    return Installation(tmp_path, simulator.base_url, ARCHIVED)


async def test_once_archives_what_is_final_beside_what_came_in(
    installation: Installation, simulator: Simulator
) -> None:
    (received,) = arrived(simulator)
    before = simulator.now() - timedelta(hours=2)
    whole = simulator.sent(APP, "user-a", created=before, pages=2)
    failed = simulator.sent(
        APP, "user-b", created=before, course=((0, "NEW"), (9, "ERROR")), error_code="E41"
    )
    failed.has_image = False
    under_way = simulator.sent(APP, "user-a", created=before, course=((0, "INPROGRESS"),))

    done = await installation.poller("once", "--json")

    of_all = {"polled": 2, "failed_polls": 0, "quarantined": 0}
    of_sent = of_all | {"discovered": 3, "stored": 2, "pending": 1}
    of_received = of_all | {"discovered": 1, "stored": 1, "pending": 0}
    assert (done.code, done.json) == (0, of_received | {"sent": of_sent})
    sidecars = {key: json.loads(path.read_text()) for key, path in installation.sidecars().items()}
    assert set(sidecars) == {received.fax_id, whole.fax_id, failed.fax_id}
    assert "direction" in sidecars[received.fax_id]
    day = f"{whole.completed:%Y/%m/%d}"
    assert (
        installation.image_of(whole)
        == installation.storage / f"main/front-desk/sent/{day}/{whole.fax_id}.pdf"
    )
    assert installation.image_of(whole).read_bytes() == simulator.image_bytes(whole)
    alone = sidecars[failed.fax_id]
    assert (alone["direction"], alone["image"], alone["user"]) == ("sent", None, "billing")
    assert alone["completed_at"] == f"{failed.completed.isoformat(timespec='milliseconds')[:-6]}Z"
    assert alone["metadata"]["transmission_data"]["error_code"] == "E41"
    assert not list(tree_problems(installation.storage, at_rest=True))
    shown = {one["user"]: one for one in (await installation.status())["users"]}
    assert [shown["front-desk"][name] for name in ("stored", "pending")] == [1, 0]
    assert [shown["front-desk"]["sent"][name] for name in ("stored", "pending")] == [1, 1]
    assert [shown["billing"]["sent"][name] for name in ("stored", "pending")] == [1, 0]
    assert under_way.fax_id not in sidecars


async def test_once_whose_sent_list_fails_is_exit_1_and_stores_what_came_in(
    installation: Installation, simulator: Simulator
) -> None:
    (received,) = arrived(simulator)
    simulator.faults = Faults.of("403@sent-list=always")
    done = await installation.poller("once", "--json")
    assert (done.code, done.json["failed_polls"], done.json["stored"]) == (1, 0, 1)
    assert done.json["sent"]["failed_polls"] == 2
    assert "main/front-desk/sent" in done.err
    assert set(installation.sidecars()) == {received.fax_id}


async def test_service_archives_stops_at_sigterm_and_goes_on_where_it_was(
    installation: Installation, simulator: Simulator
) -> None:
    first = simulator.sent(APP, "user-a", course=((0, "COMPLETE"),))
    under_way = simulator.sent(APP, "user-a", course=((0, "INPROGRESS"),))
    async with installation.daemon() as daemon:
        await daemon.event("fax-stored", direction="sent", fax_id=first.fax_id)
        await daemon.event("fax-discovered", direction="sent", fax_id=under_way.fax_id)
        assert await daemon.stop() == 0
    assert set(installation.sidecars()) == {first.fax_id}
    under_way.ends(simulator.now(), "COMPLETE")
    async with installation.daemon() as daemon:
        await daemon.event("fax-stored", direction="sent", fax_id=under_way.fax_id)
        assert await daemon.stop() == 0
    assert set(installation.sidecars()) == {first.fax_id, under_way.fax_id}
    assert simulator.downloads == {first: 1, under_way: 1}
    assert not list(tree_problems(installation.storage, at_rest=True))
