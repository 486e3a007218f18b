"""The faxes of one user fail for long while all others succeed: everything that reports state says so."""

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from poller.cli import status_table
from poller.daemon.monitor import Monitor
from poller.daemon.planner import Planner
from poller.ingest.fetch import Outcome
from poller.ingest.runtime import Runtime
from poller.ledger import State, accounts, jobs, streams
from poller.problems import problems
from poller.simulator import Simulator
from poller.simulator.state import Fax
from poller.status import Surroundings, status
from poller.store import syscalls
from tests.conftest import Event, QuickClock
from tests.integration.at_work import fetch, listed, parts, row, said

HOUR = timedelta(hours=1)


@pytest.fixture
def clock() -> QuickClock:
    return QuickClock(wall=datetime.now(UTC))


@pytest.fixture
async def monitor(runtime: Runtime) -> Monitor:
    return Monitor(runtime, Planner(runtime))


async def failing_since(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, ago: timedelta
) -> Fax:
    """A fax of user-a without an image at eFax, whose first attempt was this long ago."""
    fax, _ = await listed(runtime, simulator, trouble="null-image")
    assert await fetch(runtime, fax) is Outcome.FAILED
    clock.advance(ago)
    return fax


async def told(runtime: Runtime, clock: QuickClock) -> tuple[dict[str, Any], list[str]]:
    seen = Surroundings({"usable": True}, alarm_after=runtime.config.retry.alarm_after)
    shown = await status(runtime.services.ledger, clock.now(), seen)
    return shown, problems(shown, [])


async def oldest_s(runtime: Runtime) -> dict[str, float]:
    text = (await runtime.services.metrics.render()).decode()
    found = re.findall(r'^poller_oldest_failing_seconds\{.*user="(.*)"\} (.*)$', text, re.MULTILINE)
    return {user: float(value) for user, value in found}


async def test_fax_that_fails_for_less_than_the_alarm_is_in_the_metric_and_no_problem(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, monitor: Monitor, events: list[Event]
) -> None:
    await failing_since(runtime, simulator, clock, HOUR - timedelta(minutes=1))
    await monitor._look_for_failing()
    assert await oldest_s(runtime) == {"user-a": pytest.approx(59 * 60, abs=5), "user-b": 0.0}
    shown, sentences = await told(runtime, clock)
    assert sentences == []
    assert shown["failing_faxes"] == []
    assert said(events, "fetch-failed") == []


async def test_fax_that_fails_for_longer_is_named_with_its_user_and_its_error(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, monitor: Monitor, events: list[Event]
) -> None:
    fax = await failing_since(runtime, simulator, clock, HOUR + timedelta(minutes=1))
    await monitor._look_for_failing()
    await monitor._look_for_failing()
    assert said(events, "fetch-failed") == ["fetch-failed"]
    shown, (sentence,) = await told(runtime, clock)
    error = (await row(runtime, fax)).last_error
    assert error is not None
    assert sentence.startswith(
        "1 fax cannot be fetched, and the service keeps trying (main/user-a)."
    )
    assert error.rstrip(".") in sentence
    assert f"poller explain {fax.fax_id}" in sentence
    assert {one["user"]: one["failing"] for one in shown["users"]} == {"user-a": 1, "user-b": 0}
    assert [one["fax_id"] for one in shown["failing_faxes"]] == [fax.fax_id]
    states = {one["user"]: status_table._state(one, set()) for one in shown["users"]}
    assert states == {"user-a": "failing", "user-b": "new"}
    (line,) = status_table._lines(shown)
    assert f"main/user-a/{fax.fax_id}  {error}" in line


async def test_alarm_is_over_when_the_fax_is_dismissed(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, monitor: Monitor, events: list[Event]
) -> None:
    fax = await failing_since(runtime, simulator, clock, 2 * HOUR)
    await monitor._look_for_failing()
    await runtime.services.ledger.write(
        jobs.dismiss, (await row(runtime, fax)).id, now=clock.now(), reason="lost"
    )
    await monitor._look_for_failing()
    assert said(events, "fetch-failed", "fetch-recovered") == ["fetch-failed", "fetch-recovered"]
    assert (await oldest_s(runtime))["user-a"] == 0.0
    assert (await told(runtime, clock))[1] == []


async def test_the_alarm_may_come_earlier(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    runtime.config = replace(
        runtime.config, retry=replace(runtime.config.retry, alarm_after=timedelta(minutes=5))
    )
    await failing_since(runtime, simulator, clock, timedelta(minutes=6))
    assert len((await told(runtime, clock))[1]) == 1


@pytest.mark.parametrize("ends", [True, False])
async def test_time_in_which_the_account_was_suspended_does_not_count(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, monitor: Monitor, ends: bool
) -> None:
    await failing_since(runtime, simulator, clock, timedelta(minutes=10))
    app_id, account, ledger = parts(runtime)[1].user.app_id, "main", runtime.services.ledger
    await ledger.write(accounts.pause_clock, app_id, account, clock.now(), paused=True)
    clock.advance(3 * HOUR)
    if ends:
        await ledger.write(accounts.pause_clock, app_id, account, clock.now(), paused=False)
    await monitor._look_for_failing()
    assert (await oldest_s(runtime))["user-a"] == pytest.approx(600, abs=5)
    assert (await told(runtime, clock))[1] == []


async def test_quarantined_fax_has_its_own_sentence_and_still_counts_in_the_metric(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, monitor: Monitor
) -> None:
    fax = await failing_since(runtime, simulator, clock, 8 * 24 * HOUR)
    assert await fetch(runtime, fax) is Outcome.QUARANTINED
    assert (await row(runtime, fax)).state is State.QUARANTINED
    await monitor._look_for_failing()
    assert (await oldest_s(runtime))["user-a"] == pytest.approx(8 * 86400, abs=5)
    (sentence,) = (await told(runtime, clock))[1]
    assert sentence.startswith("1 fax is quarantined")


async def test_faxes_of_a_removed_user_count_nowhere(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    await failing_since(runtime, simulator, clock, 2 * HOUR)
    await runtime.services.ledger.write(streams.sync, [], clock.now())
    shown, sentences = await told(runtime, clock)
    assert shown["failing_faxes"] == []
    assert not any("cannot be fetched" in sentence for sentence in sentences)


def _takes_nothing(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    """Like a directory of another user: readable, and nothing can be created in it."""
    monkeypatch.setattr(syscalls, "takes_names", lambda *_: False)


def _is_a_file(_: pytest.MonkeyPatch, storage: Path) -> None:
    for day in (storage / "main" / "user-a").glob("*/*/*"):
        day.rmdir()
        day.touch()


@pytest.mark.parametrize(
    ("spoil", "is_there"), [(_takes_nothing, True), (_takes_nothing, False), (_is_a_file, True)]
)
async def test_directory_that_cannot_be_used_is_a_problem_at_once_and_no_image_is_asked_for(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, monitor: Monitor, events: list[Event],
    monkeypatch: pytest.MonkeyPatch, spoil: Callable[[pytest.MonkeyPatch, Path], None],
    is_there: bool,
) -> None:  # fmt: skip
    fax, found = await listed(runtime, simulator)
    storage = runtime.config.storage.directory
    day = (storage / found.path).parent
    if is_there:
        day.mkdir(parents=True)
    with monkeypatch.context() as spoiled:
        spoil(spoiled, storage)
        for _ in range(2):
            assert await fetch(runtime, fax) is Outcome.FAILED
        assert runtime.services.gate.usable
    assert simulator.downloads == {}
    assert (await row(runtime, fax)).failures == 2

    await monitor._look_for_failing()
    assert said(events, "fetch-failed") == ["fetch-failed"]
    shown, (sentence,) = await told(runtime, clock)
    assert "1 fax cannot be fetched" in sentence
    assert f"the directory {day.relative_to(storage)} in the storage cannot be used" in sentence
    assert {status_table._state(one, set()) for one in shown["users"] if one["failing"]} == {
        "failing"
    }

    if day.is_file():
        day.unlink()
    assert await fetch(runtime, fax) is Outcome.STORED
    await monitor._look_for_failing()
    assert said(events, "fetch-recovered") == ["fetch-recovered"]
    assert (await told(runtime, clock))[1] == []
