"""One account at work: what it reports once, what it counts, and the consequences of a suspension."""

import asyncio
import json
from base64 import b64decode
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from poller import log
from poller.config.model import Limits
from poller.efax.responses import Page, parse_page
from poller.errors import LedgerUnavailable
from poller.ingest.account import AccountRunner
from poller.ingest.runtime import Runtime
from poller.ledger import AccountRow, accounts
from poller.simulator import Faults, Simulator, Switches
from tests.conftest import APP, Event, MakeConfig, QuickClock, opened_runtime
from tests.integration.at_work import (
    end_outage,
    faults,
    fetch,
    in_background,
    listed,
    parts,
    poll,
    said,
    settled,
    suspend,
    unmount,
    until,
)
from tests.integration.in_between import around

SECOND = timedelta(seconds=1)


async def account_row(runtime: Runtime) -> AccountRow:
    (found,) = await runtime.services.ledger.read(accounts.all_accounts)
    return found


def of_stream(name: str, more: str = "") -> str:
    return f'{name}{{account="main",direction="received",{more}user="user-a"}}'


async def samples(runtime: Runtime) -> dict[str, float]:
    lines = (await runtime.services.metrics.render()).decode().splitlines()
    return {
        name: float(value)
        for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))
    }


# -- polls -----------------------------------------------------------------------------------------


async def test_poll_that_found_something_is_info_and_a_quiet_one_is_debug(
    runtime: Runtime, simulator: Simulator, events: list[Event]
) -> None:
    await listed(runtime, simulator)
    await poll(runtime)

    completed = [event.fields for event in events if event.action == "poll-completed"]
    assert [fields["level"] for fields in completed] == ["info", "debug"]
    assert [fields["discovered"] for fields in completed] == [1, 0]
    assert said(events, "fax-discovered") == ["fax-discovered"]


@pytest.mark.parametrize(
    ("listed_as", "said_as"),
    [
        *((value, 3) for value in (3, "3", " 3 ")),
        *((value, None) for value in (3.5, "many", "", True, None, [3], {"a": 3}, -1, 10**30)),
    ],
)
async def test_log_fields_of_a_listing_have_one_type_whatever_efax_sends(
    listed_as: object, said_as: object, runtime: Runtime, simulator: Simulator, events: list[Event],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def page(body: bytes) -> Page:
        answer = json.loads(body)
        for fax in answer.get("faxes", []):
            fax |= {"pages": listed_as, "fax_id": 4711}
        return parse_page(json.dumps(answer).encode())

    monkeypatch.setattr("poller.client.client.parse_page", page)
    simulator.receive(APP, "user-a", completed=simulator.now() - timedelta(minutes=1))
    await poll(runtime)
    (discovered,) = [event.fields for event in events if event.action == "fax-discovered"]
    assert discovered["pages"] == said_as
    assert type(discovered["pages"]) in (int, type(None))
    assert discovered["fax_id"] == "4711"
    assert isinstance(discovered["received_at"], datetime)


async def test_polls_and_faxes_are_tallied_and_counted(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    account, _ = parts(runtime)
    await poll(runtime)
    clock.advance(30 * SECOND)
    await listed(runtime, simulator)
    await account.workers.run_until_idle()
    simulator.faults = faults("html-200@list=always")
    await poll(runtime)

    assert account.tally["polls"] == 2
    assert account.tally["failed_polls"] == 1
    assert account.tally["discovered"] == account.tally["stored"] == 1
    counted = await samples(runtime)
    assert counted['poller_polls_total{account="main",outcome="ok",user="user-a"}'] == 2
    assert counted['poller_polls_total{account="main",outcome="failed",user="user-a"}'] == 1
    assert (
        counted[
            'poller_faxes_total{account="main",direction="received",outcome="discovered",user="user-a"}'
        ]
        == 1
    )
    assert (
        counted[
            'poller_faxes_total{account="main",direction="received",outcome="stored",user="user-a"}'
        ]
        == 1
    )
    assert counted["poller_visibility_delay_seconds_count"] == 1
    assert (
        counted[
            'poller_watermark_timestamp_seconds{account="main",direction="received",user="user-a"}'
        ]
        > 0
    )


async def test_fax_that_used_up_half_the_overlap_is_counted_as_late(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    await poll(runtime)
    clock.advance(10 * 60 * SECOND)
    await listed(runtime, simulator)
    await listed(runtime, simulator, completed=clock.now() - timedelta(minutes=9))
    counted = await samples(runtime)
    assert (
        counted[
            'poller_faxes_total{account="main",direction="received",outcome="discovered",user="user-a"}'
        ]
        == 2
    )
    assert (
        counted[
            'poller_faxes_total{account="main",direction="received",outcome="late",user="user-a"}'
        ]
        == 1
    )


async def test_fax_in_a_gap_says_nothing_of_how_late_faxes_become_visible(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    simulator.switches = Switches(oldest_window_s=5.5 * 86_400.0)
    await poll(runtime)
    _, state = parts(runtime)
    assert state.progress.gaps
    simulator.receive(APP, "user-a", completed=clock.now() - timedelta(days=6))
    simulator.switches = Switches()
    while state.progress.gaps:  # each success is recent, as when the service catches up
        clock.advance(5 * 60 * SECOND)
        await poll(runtime)
    counted = await samples(runtime)
    assert (
        counted[
            'poller_faxes_total{account="main",direction="received",outcome="discovered",user="user-a"}'
        ]
        == 1
    )
    assert counted["poller_visibility_delay_seconds_count"] == 0


async def test_skipped_poll_is_counted_and_not_said(
    runtime: Runtime, simulator: Simulator, events: list[Event]
) -> None:
    await suspend(runtime, simulator)
    name = 'poller_polls_total{account="main",outcome="skipped",user="user-a"}'
    before, counted = len(events), (await samples(runtime))[name]

    outcome = await poll(runtime)

    assert outcome.skipped
    assert len(events) == before
    assert (await samples(runtime))[name] == counted + 1


async def test_429_is_reported_with_its_pause_and_counted(
    runtime: Runtime, simulator: Simulator, events: list[Event]
) -> None:
    simulator.faults = faults("429@list+7=first:1")

    assert not (await poll(runtime)).failed

    (limited,) = [event.fields for event in events if event.action == "rate-limited"]
    assert limited["pause_s"] == 7
    assert limited["requests_per_second"] == 500
    assert runtime.accounts[APP].tally["rate_limited"] == 1


async def test_every_token_is_registered_as_a_secret_of_its_account(
    runtime: Runtime, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered: list[tuple[str, str | None]] = []
    monkeypatch.setattr(
        "poller.log.register_secret", lambda secret, slot=None: registered.append((secret, slot))
    )
    await poll(runtime)
    simulator.end_token(APP)
    await poll(runtime)
    first, _of_another_program, second = simulator._owners
    assert registered == [(first, "token:main"), (second, "token:main")]


async def test_another_program_with_our_app_id_is_reported_once(
    runtime: Runtime, simulator: Simulator, events: list[Event], clock: QuickClock
) -> None:
    simulator.faults = faults("end-token@list=always")
    for _ in range(12):
        await poll(runtime)
        clock.advance(40 * SECOND)

    assert said(events, "token-war") == ["token-war"]
    assert (await samples(runtime))['poller_token_war{account="main"}'] == 1


async def test_gap_is_not_said_again_while_it_stays(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, events: list[Event]
) -> None:
    simulator.switches = Switches(oldest_window_s=6.8 * 86_400.0)
    for _ in range(3):
        await poll(runtime)
        clock.advance(timedelta(hours=1))

    assert said(events, "gap-opened", "gap-closed") == ["gap-opened"]


# -- suspension --------------------------------------------------------------------------------------


async def test_suspension_is_reported_once_and_is_in_the_ledger_until_it_ends(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, events: list[Event]
) -> None:
    account, _ = parts(runtime)
    changes: list[bool] = []
    account.on_suspension_change = lambda one: changes.append(one.is_suspended)
    await suspend(runtime, simulator)
    for _ in range(3):  # probes
        clock.advance(timedelta(minutes=6))
        await poll(runtime)
    await settled(account)

    suspended = await account_row(runtime)
    assert suspended.suspended_until is not None
    assert suspended.suspended_until > clock.now()
    assert "503" in str(suspended.reason)
    assert suspended.paused_since is not None
    assert (await samples(runtime))['poller_account_suspended{account="main"}'] == 1
    assert said(events, "account-suspended") == ["account-suspended"]

    await end_outage(runtime, simulator, clock)

    resumed = await account_row(runtime)
    assert (resumed.suspended_until, resumed.reason, resumed.paused_since) == (None, None, None)
    assert resumed.paused_s > 1000
    assert (await samples(runtime))['poller_account_suspended{account="main"}'] == 0
    (message,) = [event.message for event in events if event.action == "account-resumed"]
    assert message.startswith("The account works again, and polling and fetching continue. ")
    assert str(suspended.reason) in message
    assert said(events, "account-suspended", "account-resumed") == [
        "account-suspended",
        "account-resumed",
    ]
    assert changes[0] is True
    assert changes[-1] is False


async def test_end_of_a_suspension_sweeps_every_user_and_wakes_the_workers(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    for user in ("user-a", "user-b"):
        await poll(runtime, user)
    account, state = parts(runtime)
    _, other = parts(runtime, "user-b")
    fax, _ = await listed(runtime, simulator)
    await suspend(runtime, simulator)
    async with in_background(account.workers.run()):
        await asyncio.sleep(0.01)
        assert not simulator.downloads
        simulator.outage(False)
        clock.advance(timedelta(minutes=6))
        await account.poll(state)
        assert other.sweep_now
        await until(lambda: simulator.downloads[fax])
    await settled(account)


async def test_refused_sign_in_suspends_at_once_and_never_says_the_key(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock, events: list[Event]
) -> None:
    simulator.apps[APP].api_key = "another key"
    async with opened_runtime(make_config(simulator.base_url), clock) as runtime:
        await poll(runtime)
        account, _ = parts(runtime)
        await settled(account)
        assert account.is_suspended
        assert (await account_row(runtime)).suspended_until is not None

        account.take(account.account, "another key")
        clock.advance(timedelta(minutes=6))
        assert not (await poll(runtime)).failed
        await settled(account)
    assert said(events, "account-suspended", "account-resumed") == [
        "account-suspended",
        "account-resumed",
    ]
    assert "key-of-app-1" not in repr(events)
    assert "key-of-app-1" not in repr(account)


async def test_suspension_that_a_stopped_process_left_in_the_ledger_is_not_shown_after_the_restart(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> None:
    settings = make_config(simulator.base_url)
    async with opened_runtime(settings, clock) as runtime:
        await suspend(runtime, simulator)
        assert (await account_row(runtime)).suspended_until is not None
    simulator.outage(False)

    async with opened_runtime(settings, clock) as runtime:
        assert not (await poll(runtime)).failed
        await settled(runtime.accounts[APP])
        assert (await account_row(runtime)).suspended_until is None


async def test_ledger_that_takes_no_note_closes_the_gate(
    runtime: Runtime, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuses(*_: Any, **__: Any) -> None:
        raise LedgerUnavailable("the ledger is locked")

    around(monkeypatch, runtime.services.ledger, accounts.set_suspended, refuses)
    await suspend(runtime, simulator)

    assert runtime.services.gate.reason == (
        "the ledger is locked. See `poller help ledger-unusable`."
    )


async def test_give_up_clock_stands_still_while_the_storage_is_unusable(
    runtime: Runtime, clock: QuickClock
) -> None:
    account, _ = parts(runtime)
    assert await account.paused_s() == 0
    unmount(runtime)
    clock.advance(SECOND)
    assert not await runtime.services.gate.check()
    account.note_pause()
    await settled(account)
    clock.advance(timedelta(hours=1))

    assert await account.paused_s() == pytest.approx(3600, abs=5)


# -- changed settings --------------------------------------------------------------------------------


async def test_changed_limits_hold_from_the_next_request_on(
    runtime: Runtime, simulator: Simulator
) -> None:
    account, _ = parts(runtime)
    account.take(replace(account.account, limits=Limits(3.0, 4, 2)), "key-of-app-1")

    assert account.client.pacing.speed.limit == 3.0
    assert account.client.pacing.slots.in_flight == 2
    assert account.workers.at_once == 2


async def test_tally_names_what_became_of_each_attempt(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    account, _ = parts(runtime)
    heard: list[str] = []
    account.on_fetched = lambda fax, outcome: heard.append(outcome.name)
    await listed(runtime, simulator)
    simulator.faults = faults("404@image=first:1")
    await account.workers.run_until_idle()
    clock.advance(timedelta(minutes=1))
    await account.workers.run_until_idle()

    assert heard == ["NOT_YET", "STORED"]
    assert (account.tally["not_yet"], account.tally["stored"]) == (1, 1)


async def test_sign_ins_are_counted_in_the_ledger_over_restarts(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> None:
    settings = make_config(simulator.base_url)
    levels = []
    for _ in range(3):
        simulator.end_token(APP)
        async with opened_runtime(settings, clock) as runtime:
            await poll(runtime)
            levels.append((await account_row(runtime)).sign_in_level)
    assert levels == pytest.approx([4, 3, 2], abs=0.2)


async def test_a_restart_polls_with_the_token_that_the_ledger_keeps_and_hides(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> None:
    settings = make_config(simulator.base_url)
    for _ in range(3):
        async with opened_runtime(settings, clock) as runtime:
            assert (await poll(runtime)).error is None
            token = simulator.apps[APP].token or ""
            assert token not in log.redact(f"Bearer {token}!")
            sealed = (await account_row(runtime)).sealed_token or ""
            files = [file.read_bytes() for file in settings.state_directory.rglob("*.*")]
    assert simulator.sign_ins[APP] == 1
    assert any(sealed.encode() in content for content in files)
    files.append(b64decode(sealed))
    pieces = [token[at : at + 12].encode() for at in range(0, len(token) - 12, 4)]
    assert not [piece for piece in pieces for content in files if piece in content]


async def test_closing_waits_for_notes_under_way(runtime: Runtime, simulator: Simulator) -> None:
    account: AccountRunner = runtime.accounts[APP]
    fax, _ = await listed(runtime, simulator)
    simulator.faults = Faults()
    await fetch(runtime, fax)
    for _ in range(5):
        account.note_pause()
    await runtime.close_account(account)
    assert not account._notes
    assert runtime.accounts == {}


async def test_suspension_with_a_new_reason_is_reported_again(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, events: list[Event]
) -> None:
    await suspend(runtime, simulator)
    simulator.outage(False)
    simulator.apps[APP].api_key = "another key"
    simulator.end_token(APP)
    for _ in range(3):
        clock.advance(timedelta(minutes=6))
        await poll(runtime)

    reasons = [e.fields["reason"] for e in events if e.action == "account-suspended"]
    assert len(reasons) == 2
    assert "401" in reasons[1]


# -- users whom eFax refuses, and accounts all of whose users it refuses ---------------------------


def refusing(*users: str, status: str = "403") -> Faults:
    """eFax refuses lists of these users, or of all."""
    of = users or (None,)
    rules = (replace(faults(f"{status}@list=always").rules[0], user_id=user) for user in of)
    return Faults(rules=tuple(rules))


@pytest.mark.parametrize("status", ["403", "404"])
@pytest.mark.parametrize("was_accepted", [False, True])
async def test_account_whose_users_are_all_refused_is_suspended_and_no_user_is_blamed(
    status: str,
    *,
    was_accepted: bool,
    runtime: Runtime,
    simulator: Simulator,
    clock: QuickClock,
    events: list[Event],
) -> None:
    users = ("user-a", "user-b")
    for user in users if was_accepted else ():
        await poll(runtime, user)
    simulator.faults = refusing(status=status)
    for user in users:
        assert (await poll(runtime, user)).failed
    account, _ = parts(runtime)
    await settled(account)
    assert account.is_suspended
    reason = str((await account_row(runtime)).reason)
    assert f"HTTP {status}" in reason
    for culprit in ("every user", "proxy", "headers", "App ID"):
        assert culprit in reason
    assert (await samples(runtime))['poller_account_suspended{account="main"}'] == 1

    for number in range(6):  # probes, with users in turn
        clock.advance(6 * 60 * SECOND)
        before = len(simulator.requests)
        parts(runtime, users[number % 2])[1].ask_anyway = True
        assert (await poll(runtime, users[number % 2])).failed
        assert len(simulator.requests) == before + 1
    assert said(events, "account-suspended", "user-refused", "poll-failed") == ["account-suspended"]

    simulator.faults = Faults()
    clock.advance(6 * 60 * SECOND)
    parts(runtime)[1].ask_anyway = True
    for user in users:
        assert not (await poll(runtime, user)).failed
    assert said(events, "account-resumed", "user-accepted") == ["account-resumed"]


async def test_refused_user_is_named_as_soon_as_another_one_is_accepted(
    runtime: Runtime, simulator: Simulator, events: list[Event]
) -> None:
    simulator.faults = refusing("user-a")
    await poll(runtime)
    assert not said(events, "user-refused")
    await poll(runtime, "user-b")
    (refused,) = [event for event in events if event.action == "user-refused"]
    assert refused.fields["user"] == "user-a"
    assert "403" in str(refused.fields["error"])
    assert not runtime.accounts[APP].is_suspended


async def test_report_of_a_refused_user_says_that_efax_accepted_it_before(
    runtime: Runtime, simulator: Simulator, events: list[Event]
) -> None:
    await poll(runtime)
    simulator.faults = refusing("user-a")
    await poll(runtime)
    await poll(runtime, "user-b")
    (refused,) = [event for event in events if event.action == "user-refused"]
    assert "accepted before" in refused.message


async def test_only_user_of_an_account_is_refused_at_once_and_the_report_names_id_and_proxy(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock, events: list[Event]
) -> None:
    simulator.faults = refusing()
    async with opened_runtime(make_config(simulator.base_url, users=("user-a",)), clock) as runtime:
        assert (await poll(runtime)).failed
        assert not runtime.accounts[APP].is_suspended
        (refused,) = [event for event in events if event.action == "user-refused"]
        assert "user_id" in refused.message
        assert "proxy" in refused.message
        assert (await poll(runtime)).skipped  # for a minute


async def test_users_who_are_refused_one_by_one_suspend_no_account_that_has_a_good_one(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    for refused, good in (("user-a", "user-b"), ("user-b", "user-a")) * 3:
        simulator.faults = refusing(refused)
        clock.advance(timedelta(hours=2))
        assert (await poll(runtime, refused)).failed
        assert not (await poll(runtime, good)).failed
        assert not runtime.accounts[APP].is_suspended


async def test_probe_of_an_account_whose_users_are_refused_ends_it_by_an_empty_list_too(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    await listed(runtime, simulator)
    clock.advance(timedelta(hours=2))
    simulator.faults = refusing()
    for user in ("user-a", "user-b"):
        await poll(runtime, user)
    assert runtime.accounts[APP].is_suspended
    simulator.faults = Faults()
    clock.advance(6 * 60 * SECOND)
    parts(runtime)[1].ask_anyway = True
    assert not (await poll(runtime)).failed
    assert not (await poll(runtime, "user-b")).failed
