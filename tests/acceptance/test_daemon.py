"""The daemon as a process: signals, kill -9, storage and account that go away, what it logs."""

import asyncio
import json
import random
import re
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from poller.simulator import Faults
from poller.simulator.state import Fax
from tests.acceptance.installation import (
    APP,
    KEY,
    MARKER,
    USERS,
    Installation,
    action_of,
    assert_stored,
    populated,
)
from tests.efax import Simulator
from tests.faults.troubled import Scene


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with populated(Simulator(seed=11)) as running:
        yield running


@pytest.fixture
def installation(simulator: Simulator, tmp_path: Path) -> Installation:
    return Installation(tmp_path, simulator.base_url)


def arrived(simulator: Simulator, count: int, *, user_id: str = "user-a") -> list[Fax]:
    """Faxes of the last hours, which the next poll finds."""
    now = simulator.now()
    return [
        simulator.receive(
            APP, user_id, completed=now - timedelta(minutes=2 + number), distinct=False
        )
        for number in range(count)
    ]


# signals


async def test_sigterm_lets_a_download_under_way_end(
    installation: Installation, simulator: Simulator
) -> None:
    # More than one read of the client, so that a slow image has begun to arrive.
    simulator.faults = Faults(rules=Faults.of("drip@image=always").rules, drip_bytes=4000)
    (fax,) = arrived(simulator, 1)
    async with installation.daemon() as daemon:
        await _until_arriving(installation)
        assert await daemon.stop() == 0
        for action in ("service-stopping", "fax-stored", "service-stopped"):
            assert daemon.said(action)
        assert not daemon.said("fax-retry")
    assert_stored(installation, simulator, faxes=[fax])


async def _until_arriving(installation: Installation) -> None:
    async with asyncio.timeout(90):
        while not any((installation.storage / "main").rglob(".*")):
            await asyncio.sleep(0.005)


async def test_sigterm_does_not_wait_for_an_answer_that_has_not_begun(
    installation: Installation, simulator: Simulator
) -> None:
    (fax,) = arrived(simulator, 1)
    async with installation.daemon() as daemon:
        with simulator.hold("image") as gate:
            await gate.reached()
            assert await daemon.stop() == 0
        assert not daemon.said("fax-stored")
    async with installation.daemon() as daemon:
        await daemon.event("fax-stored", fax_id=fax.fax_id)
        assert await daemon.stop() == 0
    assert_stored(installation, simulator)


async def test_a_drain_is_cut_off_at_its_deadline(
    installation: Installation, simulator: Simulator
) -> None:
    installation.write({"drain": "500ms"})
    simulator.faults = Faults.of("stall-mid-body@image=always")
    (fax,) = arrived(simulator, 1)
    async with installation.daemon() as daemon:
        await _until_arriving(installation)
        began = asyncio.get_running_loop().time()
        assert await daemon.stop() == 0
        assert asyncio.get_running_loop().time() - began < 25  # the default would be 30
    simulator.faults = Faults()
    await installation.once()
    assert set(installation.sidecars()) == {fax.fax_id}
    assert_stored(installation, simulator)


async def test_sighup_takes_a_new_user(installation: Installation, simulator: Simulator) -> None:
    async with installation.daemon() as daemon:
        simulator.add_user(APP, "user-c")
        (fax,) = arrived(simulator, 1, user_id="user-c")
        users = {"records": {"user_id": "user-c"}}
        installation.write({"accounts": {"main": {"users": users}}})
        daemon.kill(signal.SIGHUP)
        await daemon.event("service-reloaded")
        await daemon.event("fax-stored", fax_id=fax.fax_id, user="records")
        assert simulator.sign_ins.total() == 1
        assert await daemon.stop() == 0
    names = {"user-c": "main/records"}
    assert_stored(installation, simulator, names=names)


async def test_sighup_takes_a_changed_token_of_the_page(
    installation: Installation, simulator: Simulator, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("the-old-one")
    scene = Scene(installation, simulator)
    installation.write({"http": {"token": {"file": "token"}}})

    async def answers() -> list[int]:
        bearers = [{"Authorization": f"Bearer the-{which}-one"} for which in ("old", "new")]
        return [(await scene.get("/metrics", headers=one))[0] for one in bearers]

    async with installation.daemon() as daemon:
        assert await answers() == [200, 401]
        file.write_text("the-new-one")
        daemon.kill(signal.SIGHUP)
        await daemon.event("service-reloaded")
        assert await answers() == [401, 200]
        assert await daemon.stop() == 0


async def test_sighup_with_an_invalid_configuration_keeps_the_old_one(
    installation: Installation, simulator: Simulator
) -> None:
    async with installation.daemon() as daemon:
        await daemon.event("poll-completed", count=2)
        good = installation.config.read_text()
        installation.config.write_text("poll: {every: soon}\nlog: {level: loud}\n")
        daemon.kill(signal.SIGHUP)
        await daemon.event("config-rejected", count=2)
        (fax,) = arrived(simulator, 1)
        await daemon.event("fax-stored", fax_id=fax.fax_id)
        assert not daemon.said("service-reloaded")
        installation.config.write_text(good)
        daemon.kill(signal.SIGHUP)
        await daemon.event("service-reloaded")
        assert await daemon.stop() == 0


# kill -9


@pytest.mark.parametrize("seed", [1, 2])
async def test_killed_again_and_again_it_loses_nothing_and_stores_nothing_twice(
    installation: Installation, simulator: Simulator, seed: int
) -> None:
    dice = random.Random(seed)
    faxes = arrived(simulator, 30) + arrived(simulator, 30, user_id="user-b")
    interrupted: Counter[Fax] = Counter()
    for killing in range(4):  # with the last start, five: more sign-ins at once are not allowed
        before = simulator.downloads.copy()
        # Kill some after a few answers, some after a few stored faxes, at any instant from then on.
        wanted = dice.randrange(1, 12)
        async with installation.daemon(ready=False) as daemon:
            if killing % 2:
                await daemon.event("fax-stored", count=wanted)
            else:
                await _until_downloads(simulator, before.total() + wanted)
            await asyncio.sleep(dice.uniform(0, 0.03))
            daemon.kill(signal.SIGKILL)
            await daemon.ended()
        done = set(installation.sidecars())
        for fax in faxes:
            interrupted[fax] += simulator.downloads[fax] > before[fax] and fax.fax_id not in done
    async with installation.daemon() as daemon:
        await daemon.until(
            lambda: installation.stored() == len(faxes), f"{len(faxes)} stored faxes"
        )
        assert await daemon.stop() == 0
    assert_stored(installation, simulator)
    for fax in faxes:
        assert simulator.downloads[fax] <= 1 + interrupted[fax]
    users = (await installation.status())["users"]
    assert [(user["stored"], user["pending"]) for user in users] == [(30, 0), (30, 0)]


async def _until_downloads(simulator: Simulator, count: int) -> None:
    async with asyncio.timeout(90):
        while simulator.downloads.total() < count:
            await asyncio.sleep(0.002)


# consumers


async def test_what_a_consumer_took_away_is_not_fetched_again(
    installation: Installation, simulator: Simulator
) -> None:
    faxes = arrived(simulator, 4)
    installation.write({"poll": {"sweep": {"every": "1s"}, "deep_sweep": {"every": "1s"}}})
    async with installation.daemon() as daemon:
        await daemon.event("fax-stored", count=4)
        # The event comes after the row; the dot-files go a moment later.
        for sidecar in installation.sidecars().values():
            image = sidecar.with_name(json.loads(sidecar.read_text())["image"]["file"])
            image.unlink()
            sidecar.unlink()
        polls = len(daemon.said("poll-completed"))
        await daemon.event("poll-completed", count=polls + 6)
        assert await daemon.stop() == 0
    await installation.once()
    assert installation.sidecars() == {}
    assert simulator.downloads == Counter(faxes)


# what goes away and comes back


async def test_without_its_storage_it_polls_and_downloads_nothing_until_it_is_back(
    installation: Installation, simulator: Simulator
) -> None:
    marker = installation.storage / MARKER
    aside = installation.root / "aside"
    async with installation.daemon() as daemon:
        await daemon.event("poll-completed", count=2)
        marker.rename(aside)
        await asyncio.sleep(1.1)  # a finding is trusted for a second
        (fax,) = arrived(simulator, 1)
        await daemon.event("fax-discovered", fax_id=fax.fax_id)
        await daemon.event("storage-unusable")
        polls = len(daemon.said("poll-completed"))
        await daemon.event("poll-completed", count=polls + 4)
        assert simulator.downloads.total() == 0
        shown = await installation.status()
        assert shown["storage"]["usable"] is False
        aside.rename(marker)
        await daemon.event("storage-usable")
        await daemon.event("fax-stored", fax_id=fax.fax_id)
        assert not daemon.said("fax-retry")
        assert await daemon.stop() == 0
    assert_stored(installation, simulator)


async def test_an_outage_suspends_the_account_until_efax_is_back(
    installation: Installation, simulator: Simulator
) -> None:
    async with installation.daemon() as daemon:
        await daemon.event("poll-completed", count=2)
        simulator.outage(True)
        await daemon.event("account-suspended")
        asked = len(simulator.requests)
        (fax,) = arrived(simulator, 1)
        await asyncio.sleep(2)  # two users would have been polled twice each
        assert len(simulator.requests) - asked <= 1
        users = (await installation.poller("status", "--json")).json
        assert users["accounts"][0]["suspended_until"].endswith("Z")
        assert users["accounts"][0]["reason"]
        simulator.outage(False)
        await daemon.event("account-resumed")
        await daemon.event("fax-stored", fax_id=fax.fax_id)
        assert len(daemon.said("account-suspended")) == len(daemon.said("account-resumed")) == 1
        assert await daemon.stop() == 0
    assert_stored(installation, simulator)


async def test_it_starts_while_efax_is_away(
    installation: Installation, simulator: Simulator
) -> None:
    (fax,) = arrived(simulator, 1)
    await simulator.close_port()
    async with installation.daemon() as daemon:
        await daemon.event("account-suspended")
        await simulator.open_port()
        await daemon.event("fax-stored", fax_id=fax.fax_id)
        assert await daemon.stop() == 0
    assert_stored(installation, simulator)


async def test_it_starts_without_its_storage_and_is_ready(
    installation: Installation, simulator: Simulator
) -> None:
    await installation.once()
    moved = installation.root / "moved"
    installation.storage.rename(moved)
    (fax,) = arrived(simulator, 1)
    async with installation.daemon() as daemon:
        await daemon.event("storage-unusable")
        await daemon.event("fax-discovered", fax_id=fax.fax_id)
        assert not installation.storage.exists()
        moved.rename(installation.storage)
        await daemon.event("fax-stored", fax_id=fax.fax_id)
        assert await daemon.stop() == 0
    assert_stored(installation, simulator)


# systemd


async def test_systemd_hears_ready_reloading_and_stopping(
    installation: Installation, simulator: Simulator
) -> None:
    address = str(installation.root / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.setblocking(False)
        async with installation.daemon(ready=False, environ={"NOTIFY_SOCKET": address}) as daemon:
            assert "READY=1" in await _heard(manager, "READY=1")
            assert daemon.process.returncode is None
            daemon.kill(signal.SIGHUP)
            assert any(
                line.startswith("MONOTONIC_USEC=") for line in await _heard(manager, "RELOADING=1")
            )
            await _heard(manager, "READY=1")
            daemon.kill(signal.SIGTERM)
            await _heard(manager, "STOPPING=1")
            assert await daemon.ended() == 0
            assert len(daemon.said("service-ready")) == 1


async def _heard(manager: socket.socket, wanted: str) -> list[str]:
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(90):
        while True:
            lines = (await loop.sock_recv(manager, 65536)).decode().split("\n")
            if wanted in lines:
                return lines


# logs

SENDER, NUMBER, STATION = "13125550142", "13125550199", "Dr. Maria Vandenberg"
EVERYTHING = (
    *("500@image=10%", "html-502@list=5%", "html-200@image=5%", "errors-200@list=5%"),
    *("redirect@image=3%", "cut-document=5%", "no-document=5%", "null-image=5%", "bad-base64=5%"),
    *("wrong-fax-id=5%", "bad-json@list=5%", "bom@list=3%", "trailing-garbage@list=3%"),
    *("reset@image=5%", "cut@image=5%", "cut-chunked@image=5%", "403@image=2%", "400@list=3%"),
    *("end-token@list=first:1", "404@image=5%", "reset-mid-body@list=3%"),
)
POISON = {3: "null-image", 5: "bad-base64", 7: "wrong-fax-id", 9: "cut-document", 11: "no-image"}


async def test_the_log_is_json_without_secrets_numbers_or_names(
    installation: Installation, simulator: Simulator
) -> None:
    installation.write({"retry": {"attempts": 3, "max_delay": "50ms", "give_up_after": "1s"}})
    for user_id in USERS.values():
        for number in range(15):
            simulator.receive(
                APP,
                user_id,
                trouble=POISON.get(number),
                completed=simulator.now() - timedelta(minutes=2 + number),
                originating=SENDER,
                destination=NUMBER,
                tsid=STATION,
                distinct=False,
            )
    simulator.faults = Faults.of(*EVERYTHING)
    async with installation.daemon() as daemon:
        await daemon.event("fax-stored", count=15)
        await daemon.event("fax-retry", count=6)
        await daemon.event("fax-damaged")
        simulator.outage(True, "html-502")
        await daemon.event("account-suspended")
        assert await daemon.stop() == 0
    text = "\n".join(daemon.lines)
    for secret in (KEY, SENDER, NUMBER, STATION, "Vandenberg", *_tokens(simulator)):
        assert secret not in text
    assert not re.search(r"eyJ[\w-]{8}", text), "a token"
    for line in daemon.lines:
        event = json.loads(line)
        assert event.keys() >= {"@timestamp", "log.level", "message", "event"}
        assert datetime.fromisoformat(event["@timestamp"]).utcoffset() == timedelta(0)
        assert event["log.level"] in {"debug", "info", "warning", "error"}
        assert action_of(event)
        assert "stack_trace" not in event.get("error", {}), event
        if "error" in event:
            assert event["error"]["type"]
            assert event["error"]["message"]


def _tokens(simulator: Simulator) -> list[str]:
    return [app.token for app in simulator.apps.values() if app.token]
