"""`explain` and `plan`: what an operator sees of one fax, and of the coming polls."""

import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from poller.simulator import Simulator
from poller.simulator.state import Fax
from tests.acceptance.installation import APP, USERS, Installation, populated

BROKEN_AT_ONCE = {"retry": {"attempts": 1}}


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with populated(Simulator(seed=3)) as running:
        yield running


@pytest.fixture
def installation(simulator: Simulator, tmp_path: Path) -> Installation:
    return Installation(tmp_path, simulator.base_url)


def receive(simulator: Simulator, user_id: str = "user-a", **fields: str) -> Fax:
    completed = simulator.now() - timedelta(minutes=5)
    return simulator.receive(APP, user_id, completed=completed, distinct=False, **fields)  # type: ignore[arg-type]


# explain


async def test_explain_tells_the_whole_history_of_a_fax_in_order(
    installation: Installation, simulator: Simulator
) -> None:
    fax = receive(simulator, trouble="null-image")
    installation.write(BROKEN_AT_ONCE)
    assert (await installation.poller("once")).code == 1
    fax.trouble = None
    assert (await installation.poller("retry", fax.fax_id)).code == 0
    await installation.once()

    done = await installation.poller("explain", fax.fax_id, "--json")

    assert (done.code, done.err) == (0, "")
    shown = done.json
    assert (shown["account"], shown["user"], shown["state"]) == ("main", "front-desk", "stored")
    assert Path(shown["file"]) == installation.image_of(fax)
    assert len(shown["sha256"]) == 64
    assert (shown["attempts"], shown["harm"], shown["found_by"]) == (2, None, "newest")
    window = [datetime.fromisoformat(at) for at in shown["first_window"]]
    assert window[0] < fax.completed < window[1]
    assert all(Path(path).is_file() for path in shown["evidence"])
    assert shown["evidence"]
    happened = [one["what"] for one in shown["timeline"]]
    assert happened[:2] == ["received by eFax", "first listed, by a poll"]
    assert happened[2:] == ["failed", "made due", "stored"]
    times = [one["at"] for one in shown["timeline"]]
    assert times == sorted(times)
    assert all(at.endswith("Z") for at in times)


async def test_explain_for_people_names_state_trouble_evidence_and_the_next_attempt(
    installation: Installation, simulator: Simulator
) -> None:
    fax = receive(simulator, trouble="null-image")
    installation.write(BROKEN_AT_ONCE)
    assert (await installation.poller("once")).code == 1
    done = await installation.poller("explain", f"main/front-desk/{fax.fax_id}")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"main/front-desk/{fax.fax_id}: pending\n")
    for words in ("failures in a row: 1", "evidence  ", "received by eFax", "next attempt"):
        assert words in done.out
    assert fax.originating not in done.out


async def test_explain_shows_harm_and_dismissal_beside_a_running_daemon(
    installation: Installation, simulator: Simulator
) -> None:
    fax = receive(simulator)
    async with installation.daemon() as daemon:
        await daemon.event("fax-stored", fax_id=fax.fax_id)
        installation.image_of(fax).unlink()
        assert (await installation.poller("verify")).code == 1
        shown = (await installation.poller("explain", fax.fax_id, "--json")).json
        assert shown["harm"]
        assert shown["timeline"][-1]["what"] == "damaged"
        reason = "asked the sender again"
        assert (await installation.poller("dismiss", fax.fax_id, "--reason", reason)).code == 0
        done = await installation.poller("explain", fax.fax_id)
        assert f"dismissed: {reason}" in done.out


async def test_explain_of_an_unknown_fax_is_1_and_of_an_ambiguous_one_2(
    installation: Installation, simulator: Simulator
) -> None:
    for user_id in USERS.values():
        receive(simulator, user_id, fax_id="same-id")
    await installation.once()
    unknown = await installation.poller("explain", "no-such-fax")
    assert (unknown.code, unknown.said_in_one_sentence()) == (1, True)
    ambiguous = await installation.poller("explain", "same-id")
    assert (ambiguous.code, ambiguous.said_in_one_sentence()) == (2, True)
    assert "main/billing/same-id" in ambiguous.err
    assert (await installation.poller("explain", "main/billing/same-id")).code == 0
    assert (await installation.poller("explain")).code == 2


# plan


async def test_plan_needs_no_ledger_no_secret_and_no_efax(
    installation: Installation, simulator: Simulator
) -> None:
    done = await installation.poller("plan", "--json", environ={"POLLER_TEST_KEY": ""})
    assert (done.code, done.err) == (0, "")
    assert not simulator.requests
    assert not installation.ledger.parent.exists()
    (account,) = done.json["accounts"]
    assert account["limit_per_hour"] == 3_600_000
    assert account["asked_per_hour"] == account["planned_per_hour"] > 2 * 3600
    assert [user["interval_s"] for user in done.json["users"]] == [1, 1]
    for user in done.json["users"]:
        times = [datetime.fromisoformat(at) for at in user["next_polls"]]
        assert times == sorted(times)
        assert all(at > datetime.now(UTC) - timedelta(minutes=2) for at in times)
    assert done.json["warnings"] == []
    assert "no ledger" in done.json["lateness_unknown"]


async def test_plan_warns_of_what_the_limit_stretches_as_the_daemon_does(
    installation: Installation,
) -> None:
    installation.write({"accounts": {"main": {"limits": {"requests_per_second": 1}}}})
    done = await installation.poller("plan", "--json")
    assert done.code == 0
    (account,) = done.json["accounts"]
    assert account["planned_per_hour"] == pytest.approx(0.75 * 3600, rel=1e-3)
    assert len(done.json["warnings"]) == 1
    async with installation.daemon() as daemon:
        said = await daemon.event("schedule-stretched")
    assert said["poller"]["factor"] == round(account["factor"], 2)
    shown = await installation.poller("plan")
    assert shown.out.startswith("main: the schedule asks for ")
    assert "every 1s" in shown.out


async def test_plan_warns_of_overlap_lateness_and_cron(installation: Installation) -> None:
    await installation.once()
    with sqlite3.connect(installation.ledger) as connection:
        connection.execute("UPDATE streams SET late_max_s = 1000 WHERE name = 'front-desk'")
    connection.close()
    users = {"billing": {"poll": {"cron": "0 8 * * mon-fri"}}}
    installation.write({"accounts": {"main": {"users": users}}, "poll": {"overlap": "1s"}})
    done = await installation.poller("plan", "--json")
    assert done.code == 0
    front, billing = (user["warnings"] for user in done.json["users"])
    assert [("shorter than twice" in one, "16m 40s late" in one) for one in front] == [
        (True, False),
        (False, True),
    ]
    assert ["max_window" in one for one in billing] == [True]
    assert done.json["lateness_unknown"] is None
    assert len(done.json["warnings"]) == 3
