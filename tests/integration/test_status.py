"""The status as `poller status --json` and `/status.json` show it."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from poller.ingest.site import Site
from poller.simulator import Simulator, Switches
from poller.status import instant, status
from tests.conftest import QuickClock
from tests.integration.at_work import end_outage, faults, fetch, listed, poll, suspend

CONTRACT = {
    "account", "user", "user_id", "watermark", "lag_s", "gaps", "last_poll_at", "last_error",
    "refused", "removed", "stored", "pending", "quarantined",
}  # fmt: skip


async def shown(site: Site, clock: QuickClock) -> dict[str, Any]:
    return await status(
        site.shop.ledger, now=clock.now(), running=True, version="1", storage={"usable": True}
    )


def user(answer: dict[str, Any], name: str = "user-a") -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in answer["users"] if one["user"] == name)
    return found


async def test_user_who_was_never_polled_has_no_watermark_and_no_lag(
    site: Site, clock: QuickClock
) -> None:
    answer = await shown(site, clock)

    assert set(answer) == {
        "running", "version", "storage", "ledger", "accounts", "users", "quarantined_faxes",
        "damaged_faxes",
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
    }


async def test_stored_and_pending_faxes_lag_and_times_are_shown(
    site: Site, simulator: Simulator, clock: QuickClock
) -> None:
    first, _ = await listed(site, simulator)
    await fetch(site, first)
    await listed(site, simulator)
    clock.advance(timedelta(minutes=2))

    one = user(await shown(site, clock))

    assert (one["stored"], one["pending"], one["quarantined"]) == (1, 1, 0)
    assert 119 < one["lag_s"] < 125
    assert one["watermark"].endswith("Z")
    assert datetime.fromisoformat(one["last_success_at"]) < clock.now()


async def test_refused_user_and_last_error_are_shown_until_the_refusal_has_passed(
    site: Site, simulator: Simulator, clock: QuickClock
) -> None:
    simulator.faults = faults("403@list=always")
    await poll(site)

    refused = user(await shown(site, clock))
    assert refused["refused"]
    assert "403" in refused["last_error"]

    clock.advance(timedelta(hours=2))
    assert not user(await shown(site, clock))["refused"]


async def test_gap_is_shown_with_its_bounds(
    site: Site, simulator: Simulator, clock: QuickClock
) -> None:
    simulator.switches = Switches(oldest_window_s=6.8 * 86_400.0)
    await poll(site)

    ((start, end),) = user(await shown(site, clock))["gaps"]
    assert datetime.fromisoformat(start) < datetime.fromisoformat(end) < clock.now()


async def test_suspension_is_shown_with_its_reason_and_the_running_pause(
    site: Site, simulator: Simulator, clock: QuickClock
) -> None:
    await suspend(site, simulator)
    clock.advance(timedelta(minutes=10))
    (account,) = (await shown(site, clock))["accounts"]
    assert account["suspended_until"].endswith("Z")
    assert "503" in account["reason"]
    assert account["paused_s"] >= 600

    await end_outage(site, simulator, clock)
    (account,) = (await shown(site, clock))["accounts"]
    assert account["suspended_until"] is account["reason"] is None
    assert account["paused_s"] >= 600


def test_instants_are_utc_with_milliseconds_and_a_z() -> None:
    east = timezone(timedelta(hours=2))
    assert instant(datetime(2026, 3, 2, 14, 0, 0, 1999, east)) == "2026-03-02T12:00:00.001Z"
    assert instant(datetime(2026, 3, 2, tzinfo=UTC)) == "2026-03-02T00:00:00.000Z"
    assert instant(None) is None
