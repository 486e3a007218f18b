"""poller keeps the limits: a server that enforces the configured rate never answers 429."""

from datetime import timedelta
from pathlib import Path

import pytest

from poller.simulator import Simulator
from tests.acceptance.installation import KEY_VARIABLE, Installation, account, assert_stored
from tests.exhaustive import EXHAUSTIVE

ACCOUNTS = 3
USERS_EACH, FAXES = (200, 2000) if EXHAUSTIVE else (60, 600)
RATE, BURST = 35, 20  # so low that pacing, not this machine, is the limit


@pytest.mark.timeout(600)
async def test_a_backlog_of_many_users_drains_without_a_single_429(tmp_path: Path) -> None:
    async with Simulator(rate=RATE, burst=BURST + 2, seed=3) as simulator:
        accounts, names = {}, {}
        for number in range(ACCOUNTS):
            app_id = f"app-{number}"
            simulator.add_app(app_id, "key")
            users = {f"user-{user}": {"user_id": f"{app_id}-{user}"} for user in range(USERS_EACH)}
            for name, user in users.items():
                simulator.add_user(app_id, user["user_id"])
                names[user["user_id"]] = f"account-{number}/{name}"
            accounts[f"account-{number}"] = {
                **account(simulator.base_url),
                "app_id": app_id,
                "limits": {"requests_per_second": RATE, "burst": BURST, "in_flight": 8},
                "users": users,
            }
        for _ in range(FAXES):
            age = timedelta(seconds=simulator.random.uniform(60, 80_000))
            simulator.receive_somewhere(completed=simulator.now() - age, distinct=False)
        installation = Installation(tmp_path, simulator.base_url, {"poll": {"start": "1d"}})
        installation.settings["accounts"] = accounts
        installation.write({})
        installation.environ[KEY_VARIABLE] = "key"
        done = await installation.poller("once", "--json", hang_timeout_s=270)
        assert done.code == 0, done
        summary = done.json
        assert (summary["polled"], summary["stored"]) == (ACCOUNTS * USERS_EACH, FAXES)
        assert summary["pending"] == summary["failed_polls"] == 0
        assert simulator.refused_429 == 0
        assert {seen.status for seen in simulator.requests} == {200}
        print(duration_report(simulator))
        assert simulator.downloads.total() == FAXES
        assert_stored(installation, simulator, names=names)


def duration_report(simulator: Simulator) -> str:
    seen = simulator.requests
    calls = {call: sum(one.call == call for one in seen) for call in {one.call for one in seen}}
    return f"{seen[-1].at_s - seen[0].at_s:.1f} s for {calls}"
