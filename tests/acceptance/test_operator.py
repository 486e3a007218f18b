"""`dismiss`, `verify` and `retry` as an operator uses them, with and without a running daemon."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from poller.lock import StorageLock
from poller.simulator import Simulator, Switches
from poller.simulator.state import Fax
from tests.acceptance.installation import (
    APP,
    MARKER,
    PATIENCE_S,
    USERS,
    Done,
    Installation,
    populated,
)

QUARANTINED_AT_ONCE = {"retry": {"give_up_after": "1s", "attempts": 1, "max_delay": "100ms"}}


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    """A simulated eFax with two users, two faxes of the last day each."""
    async with populated(Simulator(seed=11)) as running:
        for user_id in USERS.values():
            for hours in (1, 5):
                completed = running.now() - timedelta(hours=hours)
                running.receive(APP, user_id, completed=completed, distinct=False)
        yield running


@pytest.fixture
def installation(simulator: Simulator, tmp_path: Path) -> Installation:
    return Installation(tmp_path, simulator.base_url)


def images_asked(simulator: Simulator) -> int:
    return sum(seen.call == "image" for seen in simulator.requests)


def poison(simulator: Simulator) -> Fax:
    """A fax that eFax cannot deliver."""
    completed = simulator.now() - timedelta(minutes=1)
    return simulator.receive(
        APP, "user-a", completed=completed, distinct=False, trouble="null-image"
    )


async def verified(installation: Installation, *words: str) -> Done:
    return await installation.poller("verify", "--json", *words)


def spoil(image: Path) -> bytes:
    """Change one byte in the middle, as a bad disk does; return what it was before."""
    before = image.read_bytes()
    image.write_bytes(before[:100] + bytes([before[100] ^ 1]) + before[101:])
    return before


def kept_aside(installation: Installation) -> list[Path]:
    return sorted(installation.storage.rglob(".damaged-*"))


async def eventually(look: Callable[[], Awaitable[Any]]) -> Any:
    """Ask until the answer is true."""
    async with asyncio.timeout(PATIENCE_S):
        while not (answer := await look()):
            await asyncio.sleep(0.1)
    return answer


# verify


async def test_verify_tells_well_taken_damaged_and_unknown_apart(
    installation: Installation, simulator: Simulator
) -> None:
    await installation.once()
    well, taken, changed, half_gone = simulator.faxes()
    taken_sidecar = installation.sidecars()[taken.fax_id]
    installation.image_of(taken).unlink()
    taken_sidecar.unlink()
    spoil(installation.image_of(changed))
    installation.image_of(half_gone).unlink()
    stranger = installation.image_of(well).with_name("notes.txt")
    stranger.write_text("of an operator")

    done = await verified(installation)

    assert done.code == 1
    report = done.json
    assert (report["checked"], report["ok"], report["taken"]) == (4, 1, 1)
    damaged = {one["fax_id"]: one for one in report["damaged"]}
    assert damaged.keys() == {changed.fax_id, half_gone.fax_id}
    assert "changed" in damaged[changed.fax_id]["why"]
    assert "gone" in damaged[half_gone.fax_id]["why"]
    assert (installation.storage / damaged[changed.fax_id]["path"]).is_file()
    assert report["unknown_files"] == [str(stranger.relative_to(installation.storage))]
    assert stranger.exists()
    assert report["sweeps"]["never_deep_swept"] == 0

    shown = await installation.status()
    assert {one["fax_id"] for one in shown["damaged_faxes"]} == damaged.keys()
    assert sum(user["damaged_files"] for user in shown["users"]) == 2
    people = await installation.poller("verify")
    assert people.code == 1
    assert people.out.startswith("damaged  main/")
    assert "2 faxes are damaged on the disk" in (await installation.poller("status")).out


async def test_verify_of_a_sound_installation_ends_with_0_and_changes_nothing(
    installation: Installation, simulator: Simulator
) -> None:
    await installation.once()
    before = installation.ledger.read_bytes()
    done = await verified(installation)
    assert (done.code, done.json["ok"], done.json["damaged"]) == (0, 4, [])
    assert installation.ledger.read_bytes() == before


async def test_verify_refuses_when_the_storage_is_not_mounted(installation: Installation) -> None:
    await installation.once()
    (installation.storage / "main").rename(installation.root / "elsewhere")
    (installation.storage / MARKER).unlink()
    for words in ((), ("--repair",)):
        done = await verified(installation, *words)
        assert (done.code, done.out) == (73, "")
        assert done.said_in_one_sentence()
        assert "is its disk mounted?" in done.err
    assert [user["damaged_files"] for user in (await installation.status())["users"]] == [0, 0]


async def test_repair_without_a_daemon_fetches_damaged_faxes_and_keeps_the_bad_files(
    installation: Installation, simulator: Simulator
) -> None:
    await installation.once()
    changed, gone, _, _ = simulator.faxes()
    image = installation.image_of(changed)
    good = spoil(image)
    bad = image.read_bytes()
    missing = installation.image_of(gone)
    missing.unlink()
    asked = images_asked(simulator)

    done = await verified(installation, "--repair")

    assert done.code == 0, done
    assert len(done.json["repaired"]) == len(done.json["damaged"]) == 2
    assert images_asked(simulator) == asked + 2
    assert image.read_bytes() == good
    assert missing.is_file()
    assert [(one.name, one.read_bytes()) for one in kept_aside(installation)] == [
        (f".damaged-{image.name}", bad)
    ]
    again = await verified(installation)
    assert (again.code, again.json["ok"], again.json["damaged"]) == (0, 4, [])
    assert (await installation.status())["damaged_faxes"] == []
    assert (await verified(installation, "--repair")).code == 0
    assert images_asked(simulator) == asked + 2


async def test_verify_looks_at_a_full_disk_too_and_the_repair_waits_until_there_is_room(
    installation: Installation, simulator: Simulator
) -> None:
    await installation.once()
    spoil(installation.image_of(simulator.faxes()[0]))
    installation.write({"storage": {"min_free": "1000TiB"}})
    done = await verified(installation, "--repair")
    assert done.code == 73
    assert "min_free" in done.err
    assert (len(done.json["damaged"]), done.json["ok"]) == (1, 3)  # it reports what it found
    installation.write({"storage": {"min_free": "1MiB"}})
    assert (await installation.once())["stored"] == 1
    assert (await verified(installation)).code == 0


async def test_repair_of_a_fax_that_efax_does_not_have_any_more_fails_and_keeps_what_is_there(
    installation: Installation, simulator: Simulator
) -> None:
    await installation.once()
    fax = simulator.faxes()[0]
    image = installation.image_of(fax)
    spoil(image)
    bad = image.read_bytes()
    simulator.delete(fax)

    done = await verified(installation, "--repair")

    assert done.code == 1
    assert len(done.json["failed"]) == 1
    assert image.read_bytes() == bad
    shown = await installation.status()
    assert [one["fax_id"] for one in shown["damaged_faxes"]] == [fax.fax_id]
    assert sum(user["pending"] for user in shown["users"]) == 1
    dismissed = await installation.poller("dismiss", fax.fax_id, "--reason", "sent again by post")
    assert dismissed.code == 0
    assert (await installation.status())["damaged_faxes"] == []
    assert image.read_bytes() == bad


async def test_repair_beside_a_daemon_is_done_by_it(
    installation: Installation, simulator: Simulator
) -> None:
    async with installation.daemon() as daemon:
        await daemon.event("fax-stored", count=4)
        fax, taken = simulator.faxes()[:2]
        image = installation.image_of(fax)
        good = spoil(image)
        sidecar = installation.sidecars()[taken.fax_id]
        carried_off = installation.image_of(taken)
        carried_off.unlink()
        sidecar.unlink()

        done = await verified(installation, "--repair", "--taken", taken.fax_id)

        assert (done.code, done.json["stopped"]) == (0, None), done
        assert (done.json["requested"], done.json["by_daemon"]) == (2, True)
        assert len(done.json["repaired"]) == 2
        assert simulator.sign_ins.total() == 1
        await daemon.event("fax-stored", count=6)
        assert image.read_bytes() == good
        assert carried_off.is_file()
        assert sidecar.is_file()
        after = await verified(installation)
        assert (after.code, after.json["ok"]) == (0, 4)
        assert await daemon.stop() == 0
    assert len(kept_aside(installation)) == 1


async def test_daemon_finds_damage_at_its_start_says_so_and_repairs_nothing_by_itself(
    installation: Installation, simulator: Simulator
) -> None:
    await installation.once()
    cut, changed = simulator.faxes()[:2]
    image = installation.image_of(cut)
    image.write_bytes(image.read_bytes()[:50])
    spoil(installation.image_of(changed))
    asked = images_asked(simulator)
    async with installation.daemon() as daemon:
        await daemon.event("fax-damaged", fax_id=cut.fax_id)
        await daemon.event("fax-damaged", fax_id=changed.fax_id)

        async def both_shown() -> bool:
            return len((await installation.status())["damaged_faxes"]) == 2

        await eventually(both_shown)
        retried = await installation.poller("retry", "--json", cut.fax_id)
        assert retried.json == {"made_due": 1}
        await daemon.event("fax-stored", fax_id=cut.fax_id)
    assert images_asked(simulator) == asked + 1
    assert [one["fax_id"] for one in (await installation.status())["damaged_faxes"]] == [
        changed.fax_id
    ]


async def test_a_fax_named_as_taken_that_nobody_knows_and_a_stored_one_to_dismiss_are_errors(
    installation: Installation, simulator: Simulator
) -> None:
    await installation.once()
    done = await verified(installation, "--taken", "no-such-fax")
    assert (done.code, done.said_in_one_sentence()) == (1, True)
    assert "no-such-fax" in done.err
    fax = simulator.faxes()[0]
    done = await verified(installation, "--taken", fax.fax_id, "--json")
    assert (done.code, done.json["requested"]) == (1, 0)
    assert done.json["refused"] == [f"main/front-desk/{fax.fax_id}: its files are there and whole"]
    assert simulator.downloads[fax] == 1
    done = await installation.poller("dismiss", fax.fax_id, "--reason", "x")
    assert (done.code, done.said_in_one_sentence()) == (1, True)
    assert (await installation.status())["users"][0]["stored"] == 2


# dismiss


async def test_dismissed_fax_alarms_no_more_and_retry_brings_it_back(
    installation: Installation, simulator: Simulator
) -> None:
    installation.write(QUARANTINED_AT_ONCE)
    fax = poison(simulator)
    async with installation.daemon() as daemon:
        await daemon.event("fax-retry", fax_id=fax.fax_id)
        for words in (
            ("dismiss", fax.fax_id),
            ("dismiss",),
            ("dismiss", fax.fax_id, "--reason", " "),
        ):
            assert (await installation.poller(*words)).code == 2
        unknown = await installation.poller("dismiss", "no-such-fax", "--reason", "x")
        assert (unknown.code, unknown.said_in_one_sentence()) == (1, True)

        done = await installation.poller(
            "dismiss", f"main/front-desk/{fax.fax_id}", "--reason", "a test page", "--json"
        )

        assert (done.code, done.json) == (0, {"dismissed": 1})
        user = (await installation.status())["users"][0]
        assert (user["dismissed"], user["pending"], user["quarantined"]) == (1, 0, 0)
        await daemon.event("fax-stored", count=4)
        fax.trouble = None
        back = await installation.poller("retry", fax.fax_id, "--json")
        assert back.json == {"made_due": 1}
        await daemon.event("fax-stored", fax_id=fax.fax_id)
    with sqlite3.connect(installation.ledger) as ledger:
        told = [
            row[0]
            for row in ledger.execute("SELECT outcome FROM attempts WHERE outcome = 'dismissed'")
        ]
    assert told == ["dismissed"]


async def gap_of(installation: Installation) -> tuple[str, str] | None:
    """Return the whole gap, after eFax has refused a part of it."""
    user = (await installation.status())["users"][0]
    return (user["gaps"][0][0], user["gaps"][-1][1]) if user["failed_gaps"] else None


@pytest.fixture
def without_old_windows(simulator: Simulator) -> None:
    """Make this eFax refuse to list what is older than two days."""
    simulator.switches = Switches(oldest_window_s=2 * 86_400.0)


@pytest.mark.usefixtures("without_old_windows")
async def test_dismissed_gap_alarms_no_more_and_retry_brings_it_back_beside_a_daemon(
    installation: Installation, simulator: Simulator
) -> None:
    async with installation.daemon() as daemon:
        await daemon.event("gap-opened", user="front-desk")
        bounds = await eventually(lambda: gap_of(installation))

        words = ("--gap", "main/front-desk", *bounds)
        done = await installation.poller("dismiss", *words, "--reason", "looked at in the portal")

        assert done.code == 0, done
        # What the daemon remembers counts for it: the dismissal ends the alarm.
        await daemon.event("gap-closed", user="front-desk")
        user = (await installation.status())["users"][0]
        assert user["failed_gaps"] == []
        reasons = {one["reason"] for one in user["dismissed_gaps"]}
        assert reasons == {"looked at in the portal"}
        assert not any(start < bounds[1] and end > bounds[0] for start, end in user["gaps"])
        # doing it twice is not an error
        assert (await installation.poller("dismiss", *words)).code == 0

        simulator.switches = Switches()
        back = await installation.poller("retry", *words, "--json")

        assert back.code == 0
        # A poll that was running then may have noted a failure inside the dismissed gap.
        assert back.json["made_due"] >= len(user["dismissed_gaps"]) > 0

        async def listed() -> bool:
            user = (await installation.status())["users"][0]
            return not user["gaps"] and not user["dismissed_gaps"]

        await eventually(listed)


async def test_a_gap_that_cannot_be_meant_is_refused_with_a_sentence(
    installation: Installation,
) -> None:
    await installation.once()
    day = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z")
    for words, code, said in (
        (("main/nobody", *day), 1, "main/nobody"),
        (("main/billing", *day), 1, "no gap"),
        (("main/billing", *reversed(day)), 2, "not before"),
    ):
        done = await installation.poller("dismiss", "--gap", *words)
        assert (done.code, done.said_in_one_sentence()) == (code, True), done
        assert said in done.err


async def test_repair_says_75_when_a_poller_with_another_ledger_has_the_storage(
    installation: Installation, simulator: Simulator
) -> None:
    await installation.once()
    spoil(installation.image_of(simulator.faxes()[0]))
    with StorageLock() as held:
        held.take((installation.storage / MARKER).read_text().strip())
        done = await verified(installation, "--repair")
    assert done.code == 75
    assert done.said_in_one_sentence()
    assert (len(done.json["damaged"]), done.json["by_daemon"]) == (1, False)
