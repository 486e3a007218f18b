"""The status as in `poller status --json` and `/status.json`."""

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from poller.config.model import Expect
from poller.ingest.runtime import Runtime
from poller.ledger import fold, streams
from poller.simulator import Simulator, Switches
from poller.status import StoredLately, Surroundings, instant, status
from tests.conftest import QuickClock
from tests.integration.at_work import end_outage, faults, fetch, listed, poll, suspend
from tests.integration.in_between import Asked, around

CONTRACT = {
    "account", "user", "user_id", "watermark", "lag_s", "gaps", "last_poll_at", "last_error",
    "refused", "removed", "stored", "pending", "quarantined",
}  # fmt: skip


async def shown(runtime: Runtime, clock: QuickClock) -> dict[str, Any]:
    return await status(runtime.services.ledger, clock.now(), Surroundings({"usable": True}))


def user(answer: dict[str, Any], name: str = "user-a") -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in answer["users"] if one["user"] == name)
    return found


async def test_user_who_was_never_polled_has_no_watermark_and_no_lag(
    runtime: Runtime, clock: QuickClock
) -> None:
    answer = await shown(runtime, clock)

    assert set(answer) == {
        "at", "running", "version", "storage", "ledger", "accounts", "users",
        "quarantined_faxes", "failing_faxes", "damaged_faxes", "unreadable_faxes",
        "config_rejected", "node", "nodes",
    }  # fmt: skip
    assert set(user(answer)) >= CONTRACT
    assert (
        user(answer)["watermark"] is user(answer)["lag_s"] is user(answer)["last_poll_at"] is None
    )
    assert user(answer)["gaps"] == []
    assert answer["accounts"][0] | {"paused_s": 0} == {
        "account": "main",
        "suspended_until": None,
        "reason": None,
        "paused_s": 0,
        "limit": None,
        "rate": None,
        "used": None,
        "token_war": None,
        "slow": None,
        "node": None,
        "pending": 0,
        "pending_s": 0.0,
        "stored_per_hour": 0,
        "discovered_per_hour": 0,
        "catching_up": None,
    }


async def test_who_received_nothing_for_longer_than_expected_is_shown_until_a_fax_comes(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    (account,) = runtime.config.accounts
    one, other = account.users
    expecting = replace(account, users=(replace(one, expect=Expect(timedelta(hours=1))), other))

    async def silent() -> list[Any]:
        answer = await status(
            runtime.services.ledger, clock.now(), Surroundings({}, accounts=[expecting])
        )
        return [row["silent_since"] for row in answer["users"]]

    first_seen = clock.now()
    clock.advance(timedelta(hours=2))
    assert await silent() == [None, None]  # nothing is listed yet: nobody knows
    await poll(runtime, one.name)
    await poll(runtime, other.name)
    assert await silent() == [instant(first_seen), None]
    await listed(runtime, simulator)
    assert await silent() == [None, None]
    clock.advance(timedelta(hours=2))
    await poll(runtime, one.name)
    assert (await silent())[0] is not None
    await runtime.services.ledger.write(
        streams.sync, [], clock.now()
    )  # nothing is expected of a removed user
    assert await silent() == [None, None]


async def test_stored_and_pending_faxes_lag_and_times_are_shown(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    first, _ = await listed(runtime, simulator)
    await fetch(runtime, first)
    await listed(runtime, simulator)
    clock.advance(timedelta(minutes=2))

    one = user(await shown(runtime, clock))

    assert (one["stored"], one["pending"], one["quarantined"]) == (1, 1, 0)
    assert 119 < one["lag_s"] < 125
    assert one["watermark"].endswith("Z")
    assert datetime.fromisoformat(one["last_success_at"]) < clock.now()


async def test_refused_user_and_last_error_are_shown_until_the_refusal_has_passed(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    simulator.faults = faults("403@list=always")
    await poll(runtime)

    refused = user(await shown(runtime, clock))
    assert refused["refused"]
    assert "403" in refused["last_error"]

    clock.advance(timedelta(hours=2))
    assert not user(await shown(runtime, clock))["refused"]


async def test_gap_is_shown_with_its_bounds(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    simulator.switches = Switches(oldest_window_s=6.8 * 86_400.0)
    await poll(runtime)

    ((start, end),) = user(await shown(runtime, clock))["gaps"]
    assert datetime.fromisoformat(start) < datetime.fromisoformat(end) < clock.now()


async def test_suspension_is_shown_with_its_reason_and_the_running_pause(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    await suspend(runtime, simulator)
    clock.advance(timedelta(minutes=10))
    (account,) = (await shown(runtime, clock))["accounts"]
    assert account["suspended_until"].endswith("Z")
    assert "503" in account["reason"]
    assert account["paused_s"] >= 600

    await end_outage(runtime, simulator, clock)
    (account,) = (await shown(runtime, clock))["accounts"]
    assert account["suspended_until"] is account["reason"] is None
    assert account["paused_s"] >= 600


async def test_fax_stored_while_the_status_is_read_is_in_both_counts_or_in_none(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    fax, _ = await listed(runtime, simulator)

    async def storing_meanwhile(read: Asked) -> Any:
        await fetch(runtime, fax)
        return await read()

    around(monkeypatch, runtime.services.ledger, fold.all_progress, storing_meanwhile)
    one = user(await shown(runtime, clock))
    assert (one["stored"], sum(one["stored_by_hour"])) == (0, 0)


# -- recently stored -------------------------------------------------------------------------------


async def store(runtime: Runtime, simulator: Simulator, clock: QuickClock, at: datetime) -> None:
    clock.advance(at - clock.now())
    fax, _ = await listed(runtime, simulator)
    await fetch(runtime, fax)


async def lately(
    runtime: Runtime, clock: QuickClock, reader: StoredLately | None = None
) -> tuple[int, list[int]]:
    answer = await status(runtime.services.ledger, clock.now(), Surroundings({}), reader)
    return user(answer)["stored_today"], user(answer)["stored_by_hour"]


async def test_faxes_stored_today_and_in_each_of_the_last_24_hours_are_counted(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    # The same after a restart, which remembers nothing, and for a caller that looks all the time.
    reader = StoredLately()
    assert await lately(runtime, clock, reader) == (0, [0] * 24)
    evening = datetime(2026, 3, 2, 22, 10, tzinfo=UTC)
    for minutes in (0, 1, 60, 130, 135):  # 22:10, 22:11, 23:10, and 0:20, 0:25 the next day
        await store(runtime, simulator, clock, evening + timedelta(minutes=minutes))
        assert await lately(runtime, clock, reader) == await lately(runtime, clock)
    assert await lately(runtime, clock, reader) == (2, [0] * 21 + [2, 1, 2])
    for hours, by_hour in ((20, [0, 2, 1, 2]), (2, [1, 2, 0, 0]), (3, [0, 0, 0, 0])):
        clock.advance(timedelta(hours=hours))
        assert (await lately(runtime, clock, reader))[1] == by_hour + [0] * 20
        assert (await lately(runtime, clock))[1] == by_hour + [0] * 20


async def test_an_hour_that_was_looked_at_before_it_ended_is_read_again(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    reader = StoredLately()
    hour = datetime(2026, 3, 2, 14, tzinfo=UTC)
    for minutes in (10, 50):
        await store(runtime, simulator, clock, hour + timedelta(minutes=minutes))
        if minutes == 10:
            assert (await lately(runtime, clock, reader))[1][-1] == 1
    clock.advance(timedelta(hours=5))
    assert (await lately(runtime, clock, reader))[1] == [0] * 18 + [2] + [0] * 5


@pytest.mark.parametrize(
    ("zone", "today"), [("UTC", 1), ("America/Los_Angeles", 2), ("Asia/Kathmandu", 0)]
)
async def test_today_begins_at_midnight_where_the_machine_is(
    runtime: Runtime,
    simulator: Simulator,
    clock: QuickClock,
    monkeypatch: pytest.MonkeyPatch,
    zone: str,
    today: int,
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        for at in ((2, 23, 50), (3, 0, 10)):  # Kathmandu's midnight is 18:15 UTC
            await store(runtime, simulator, clock, datetime(2026, 3, *at, tzinfo=UTC))
        clock.advance(datetime(2026, 3, 3, 1 if today else 18, 20, tzinfo=UTC) - clock.now())
        assert (await lately(runtime, clock))[0] == today
        assert sum((await lately(runtime, clock))[1]) == 2
    finally:
        monkeypatch.undo()
        time.tzset()


def test_instants_are_utc_with_milliseconds_and_a_z() -> None:
    east = timezone(timedelta(hours=2))
    assert instant(datetime(2026, 3, 2, 14, 0, 0, 1999, east)) == "2026-03-02T12:00:00.001Z"
    assert instant(datetime(2026, 3, 2, tzinfo=UTC)) == "2026-03-02T00:00:00.000Z"
    assert instant(None) is None
