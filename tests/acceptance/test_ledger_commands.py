"""`backup` and `rebuild` as an operator runs them, beside the daemon and after a disaster."""

import os
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from poller.simulator import Simulator
from tests.acceptance.installation import APP, USERS, Installation, assert_stored, populated


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    """A simulated eFax with two users, three faxes of the last day each."""
    async with populated(Simulator(seed=7)) as running:
        for user_id in USERS.values():
            for hours in (1, 5, 20):
                completed = running.now() - timedelta(hours=hours)
                running.receive(APP, user_id, completed=completed, distinct=False)
        yield running


@pytest.fixture
def installation(simulator: Simulator, tmp_path: Path) -> Installation:
    return Installation(tmp_path, simulator.base_url)


async def test_snapshot_backup_kill_damage_and_rebuild_lose_and_double_nothing(
    installation: Installation, simulator: Simulator
) -> None:
    copy = installation.root / "copy.db"
    async with installation.daemon() as daemon:
        await daemon.event("snapshot-made")
        await daemon.event("fax-stored", count=6)
        done = await installation.poller("backup", str(copy))
        assert (done.code, done.err) == (0, "")
        for command in ("once", "rebuild"):
            assert (await installation.poller(command)).code == 75
        (installation.ledger.parent / "poller.lock").unlink()
        assert (await installation.poller("rebuild")).code == 75
        daemon.kill(signal.SIGKILL)
        await daemon.ended()
    with closing(sqlite3.connect(copy)) as backup:
        assert backup.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert backup.execute("SELECT count(*) FROM faxes").fetchone() == (6,)

    # The snapshot was made before all faxes were there: the sidecars must supply the rest.
    os.truncate(installation.ledger, installation.ledger.stat().st_size // 2)
    broken = installation.ledger.read_bytes()
    refused = await installation.poller("run")
    assert (refused.code, "poller rebuild" in refused.err) == (73, True)
    assert installation.ledger.read_bytes() == broken

    done = await installation.poller("rebuild", "--json")
    assert (done.code, done.err) == (0, "")
    assert (done.json["sidecars"], done.json["damaged"]["count"]) == (6, 0)
    assert Path(done.json["kept_aside"]).read_bytes() == broken
    assert done.json["unknown_since"] == done.json["snapshot_at"] is not None
    shown = await installation.status()
    assert sum(user["stored"] for user in shown["users"]) == 6
    assert await installation.once() == {
        "polled": 2, "failed_polls": 0, "discovered": 0, "stored": 0, "pending": 0,
        "quarantined": 0,
    }  # fmt: skip
    assert_stored(installation, simulator)
    assert set(simulator.downloads.values()) == {1}
