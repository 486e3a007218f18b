"""`backfill` as an operator runs it: without a daemon, beside one, and killed in the middle."""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from poller.simulator import Switches
from poller.simulator.state import Fax
from tests.acceptance.installation import (
    APP,
    PATIENCE_S,
    Done,
    Installation,
    account,
    assert_stored,
    populated,
)
from tests.efax import Simulator

DAY = timedelta(days=1)
SLOWLY = {"limits": {"requests_per_second": 20, "burst": 2}}
KEYS = {
    *("account", "user", "from", "to", "by_daemon", "discovered", "stored", "pending", "failed"),
    *("left", "not_listed", "stopped"),
}


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    """A simulated eFax with two users; the first one has three faxes that are weeks old."""
    async with populated(Simulator(seed=11)) as running:
        for days in (16, 25, 44):
            old_fax(running, days)
        yield running


@pytest.fixture
def installation(simulator: Simulator, tmp_path: Path) -> Installation:
    return Installation(tmp_path, simulator.base_url)


def old_fax(simulator: Simulator, days: float, **fields: str) -> Fax:
    completed = simulator.now() - days * DAY
    return simulator.receive(APP, "user-a", completed=completed, distinct=False, **fields)


def days_ago(simulator: Simulator, start: float, end: float) -> list[str]:
    """The words that name an old window of `front-desk`."""
    now = simulator.now()
    times = [(now - days * DAY).isoformat(timespec="milliseconds") for days in (start, end)]
    return ["backfill", "main/front-desk", "--from", times[0], "--to", times[1]]


async def backfilled(installation: Installation, words: list[str]) -> Done:
    done = await installation.poller(*words, "--json")
    assert set(done.json) == KEYS
    return done


def old_windows(simulator: Simulator) -> Counter[tuple[str, str]]:
    """Return how often each window of more than twelve days ago was requested.

    Leaves out the window of 1990, with which poller learns how an empty list is spelled.
    """
    limit, earliest = simulator.now() - 12 * DAY, simulator.now() - 1000 * DAY
    found: Counter[tuple[str, str]] = Counter()
    for seen in simulator.requests:
        query = parse_qs(urlsplit(seen.target).query)
        first_page = seen.headers.get("pagination-offset") == "0"
        if seen.call == "list" and first_page and "max_completed_timestamp" in query:
            start, end = (query[f"{which}_completed_timestamp"][0] for which in ("min", "max"))
            if earliest < datetime.fromisoformat(end.replace("+0000", "+00:00")) < limit:
                found[start, end] += 1
    return found


@asynccontextmanager
async def in_the_middle(simulator: Simulator) -> AsyncIterator[None]:
    """Hold the backfill after it has listed a few of its windows, however fast it is."""
    async with asyncio.timeout(PATIENCE_S):
        while old_windows(simulator).total() < 5:
            await asyncio.sleep(0.01)
    with simulator.hold("list", user="user-a"):
        yield


def assert_listed_once(simulator: Simulator, slices: int) -> None:
    """Require that only work interrupted by the kill is listed once more."""
    windows = old_windows(simulator)
    assert len(windows) == slices
    assert asked_for_themselves(windows).total() <= slices, windows


def asked_for_themselves(windows: Counter[tuple[str, str]]) -> Counter[tuple[str, str]]:
    """Leave out the window that poller requests repeatedly to prove that lists are empty."""
    (known, _), *_ = windows.most_common(1)
    return Counter({window: count for window, count in windows.items() if window != known})


async def test_without_a_daemon_it_lists_and_fetches_and_leaves_the_watermark(
    installation: Installation, simulator: Simulator
) -> None:
    await installation.once()
    before = (await installation.status())["users"][0]
    done = await backfilled(installation, days_ago(simulator, 45, 15))
    assert done.code == 0, done
    shown = done.json
    assert (shown["discovered"], shown["stored"], shown["by_daemon"]) == (3, 3, False)
    assert (shown["pending"], shown["failed"], shown["left"], shown["not_listed"]) == (
        0,
        0,
        None,
        [],
    )
    assert_stored(installation, simulator)
    after = (await installation.status())["users"][0]
    assert (after["watermark"], after["gaps"]) == (before["watermark"], before["gaps"])
    windows = old_windows(simulator)
    assert set(asked_for_themselves(windows).values()) == {1}

    again = await installation.poller(*days_ago(simulator, 45, 15))
    assert (again.code, again.err) == (0, ""), again
    assert "discovered  0" in again.out
    assert set(simulator.downloads.values()) == {1}


async def test_it_is_the_first_command_on_a_new_installation(
    installation: Installation, simulator: Simulator
) -> None:
    done = await backfilled(installation, days_ago(simulator, 45, 15))
    assert (done.code, done.json["stored"]) == (0, 3), done
    await installation.once()
    assert_stored(installation, simulator)


async def test_beside_a_daemon_it_is_done_by_it_without_a_second_sign_in(
    installation: Installation, simulator: Simulator
) -> None:
    async with installation.daemon() as daemon:
        done = await backfilled(installation, days_ago(simulator, 45, 15))
        assert done.code == 0, done
        assert (done.json["stored"], done.json["by_daemon"]) == (3, True)
        assert "The running service does the backfill" in done.err
        assert simulator.sign_ins.total() == 1
        (event,) = daemon.said("backfill-completed")
        assert event["poller"]["user"] == "front-desk"
        assert await daemon.stop() == 0
    assert_stored(installation, simulator)


async def test_daemon_goes_on_when_the_command_is_interrupted(
    installation: Installation, simulator: Simulator
) -> None:
    installation.write({"accounts": {"main": SLOWLY}})
    async with installation.daemon() as daemon:
        words = days_ago(simulator, 45, 15)
        process = await installation._start(*words, config=True, environ={})
        async with in_the_middle(simulator):
            process.send_signal(signal.SIGINT)
            await process.communicate()
        assert process.returncode == 130
        await daemon.event("backfill-completed")
        await daemon.event("fax-stored", count=3)
        assert await daemon.stop() == 0
    assert_listed_once(simulator, 31)


async def test_killed_daemon_goes_on_where_it_was_when_it_is_started_again(
    installation: Installation, simulator: Simulator
) -> None:
    installation.write({"accounts": {"main": SLOWLY}})
    async with installation.daemon() as daemon:
        words = days_ago(simulator, 45, 15)
        process = await installation._start(*words, config=True, environ={})
        async with in_the_middle(simulator):
            daemon.kill(signal.SIGKILL)
            await daemon.ended()
            process.kill()
            await process.communicate()
    missing = 3 - len(installation.sidecars())
    async with installation.daemon() as daemon:
        await daemon.event("backfill-completed")
        await daemon.event("fax-stored", count=missing)
        assert await daemon.stop() == 0
    assert_listed_once(simulator, 31)
    assert_stored(installation, simulator)


async def test_killed_command_leaves_what_is_left_to_whoever_comes_next(
    installation: Installation, simulator: Simulator
) -> None:
    installation.write({"accounts": {"main": SLOWLY}})
    words = days_ago(simulator, 45, 15)
    process = await installation._start(*words, config=True, environ={})
    async with in_the_middle(simulator):
        process.kill()
        await process.communicate()
    done = await backfilled(installation, words)
    assert (done.code, done.json["stored"]) == (0, 3), done
    assert_listed_once(simulator, 31)
    assert_stored(installation, simulator)


async def test_a_part_that_efax_does_not_list_is_exit_1_and_named(
    installation: Installation, simulator: Simulator
) -> None:
    simulator.switches = Switches(oldest_window_s=30.5 * 86_400)
    words = days_ago(simulator, 45, 15)
    done = await backfilled(installation, words)
    assert (done.code, done.json["stored"], done.json["left"]) == (1, 2, None), done
    assert done.json["not_listed"][0]["from"] == done.json["from"]
    shown = await installation.poller(*words)
    assert shown.code == 1
    assert f"not listed  {done.json['from']} to " in shown.out


async def test_a_fax_that_cannot_be_fetched_is_exit_1_and_counted(
    installation: Installation, simulator: Simulator
) -> None:
    installation.write({"retry": {"attempts": 1}})
    old_fax(simulator, 20, trouble="null-image")
    done = await backfilled(installation, days_ago(simulator, 45, 15))
    assert (done.code, done.json["stored"], done.json["failed"]) == (1, 3, 1), done


async def test_without_efax_it_is_exit_1_and_the_request_stays_for_the_daemon(
    installation: Installation, simulator: Simulator
) -> None:
    await installation.once()
    simulator.outage(True)
    done = await backfilled(installation, days_ago(simulator, 45, 15))
    assert (done.code, done.json["stored"]) == (1, 0), done
    assert done.json["left"] is not None
    assert done.json["stopped"]
    simulator.outage(False)
    async with installation.daemon() as daemon:
        await daemon.event("backfill-completed")
        await daemon.event("fax-stored", count=3)
        assert await daemon.stop() == 0
    assert_stored(installation, simulator)


async def test_one_that_waits_is_shown_by_status_and_ended_by_cancel(
    installation: Installation, simulator: Simulator
) -> None:
    await installation.once()
    simulator.outage(True)
    done = await backfilled(installation, days_ago(simulator, 45, 15))
    waiting = [[done.json["from"], done.json["to"]]]
    assert (await installation.status())["users"][0]["backfills"] == waiting
    shown = await installation.poller("status")
    assert f"waiting backfill  main/front-desk  {' to '.join(waiting[0])}" in shown.out
    cancel = ["backfill", "main/front-desk", "--cancel"]
    ended = await installation.poller(*cancel, "--json")
    assert (ended.code, ended.json) == (0, {"cancelled": waiting})
    assert (await installation.status())["users"][0]["backfills"] == []
    again = await installation.poller(*cancel)
    assert (again.code, again.said_in_one_sentence()) == (1, True), again


async def test_cancel_beside_a_daemon_ends_the_command_that_waits(
    installation: Installation, simulator: Simulator
) -> None:
    installation.write({"accounts": {"main": SLOWLY}})
    async with installation.daemon() as daemon:
        words = days_ago(simulator, 400, 15)
        waits = asyncio.create_task(backfilled(installation, words))
        async with in_the_middle(simulator):
            ended = await installation.poller("backfill", "main/front-desk", "--cancel")
        assert (ended.code, ended.err) == (0, ""), ended
        done = await waits
        assert (done.code, done.json["stopped"]) == (1, "it was cancelled"), done
        assert daemon.said("backfill-completed") == []
        assert await daemon.stop() == 0


async def test_reload_without_the_user_ends_the_command_and_it_says_so(
    installation: Installation, simulator: Simulator
) -> None:
    installation.write({"accounts": {"main": SLOWLY}})
    async with installation.daemon() as daemon:
        waits = asyncio.create_task(backfilled(installation, days_ago(simulator, 400, 15)))
        async with in_the_middle(simulator):
            del installation.settings["accounts"]["main"]["users"]["front-desk"]
            installation.write({})
            daemon.kill(signal.SIGHUP)
            await daemon.event("service-reloaded")
        done = await waits
        assert done.code == 1, done
        assert "reloaded without main/front-desk" in done.json["stopped"]
        assert await daemon.stop() == 0


@pytest.mark.parametrize(
    "words",
    [
        pytest.param("main/nobody --from 2026-01-01T00:00Z --to 2026-02-01T00:00Z", id="user"),
        pytest.param("main/billing --from 2026-02-01T00:00Z --to 2026-01-01T00:00Z", id="order"),
        pytest.param("main/billing --from 2096-01-01T00:00Z --to 2096-02-01T00:00Z", id="future"),
        pytest.param("main/billing --from 2026-01-01T00:00Z --to 2096-02-01T00:00Z", id="to-come"),
        pytest.param("main/billing --from 1909-01-01T00:00Z --to 1910-02-01T00:00Z", id="too-old"),
        pytest.param("main/billing --from 2026-01-01 --to 2026-02-01", id="no-offset"),
        pytest.param("main/billing --from 2026-01-01T00:00Z", id="no-end"),
        pytest.param("main/billing --cancel --from 2026-01-01T00:00Z", id="cancel-a-window"),
    ],
)
async def test_what_cannot_be_meant_is_wrong_usage(installation: Installation, words: str) -> None:
    done = await installation.poller("backfill", *words.split())
    assert done.code == 2, done
    assert done.said_in_one_sentence() or "usage:" in done.err


async def test_user_whom_the_running_daemon_does_not_know_yet_is_exit_1(
    installation: Installation, simulator: Simulator
) -> None:
    async with installation.daemon():
        users = account(simulator.base_url)["users"] | {"new": {"user_id": "user-c"}}
        installation.write({"accounts": {"main": {"users": users}}})
        words = ["backfill", "main/new", *days_ago(simulator, 3, 2)[2:]]
        done = await installation.poller(*words)
        assert (done.code, done.said_in_one_sentence()) == (1, True), done
        assert "reload" in done.err


# beside the daemon, the other commands


async def test_retry_beside_a_daemon_says_what_became_of_the_faxes(
    installation: Installation, simulator: Simulator
) -> None:
    installation.write({"retry": {"attempts": 1}})
    good, bad = (
        simulator.receive(
            APP,
            "user-b",
            completed=simulator.now() - DAY / 24,
            distinct=False,
            trouble="null-image",
        )
        for _ in range(2)
    )
    async with installation.daemon() as daemon:
        for fax in (good, bad):
            await daemon.event("fax-retry", fax_id=fax.fax_id)
        good.trouble = None
        done = await installation.poller("retry", good.fax_id, bad.fax_id)
        assert (done.code, done.err) == (0, "")
        assert done.out.startswith("2 faxes were made due.\n1 of 2 faxes are stored.\n")
        assert f"pending  main/billing/{bad.fax_id}: " in done.out
        assert simulator.sign_ins.total() == 1
