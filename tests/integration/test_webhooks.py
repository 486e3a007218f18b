"""The consequences of notices: who is polled, what is reported and kept, and whether the hook works."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from poller.cli.plan_command import Measured, planned
from poller.config.model import AccountHook, Config, SecretRef, Sent, WebhookConfig
from poller.daemon.webhooks import Webhooks
from poller.efax.notices import Notice
from poller.errors import LedgerUnavailable
from poller.hook_record import HookRecord
from poller.ingest.notifications import NoticeReader
from poller.ingest.runtime import Runtime, open_runtime
from poller.ingest.stream_state import StreamState
from poller.ledger import accounts, faxes
from poller.ledger.ledger import Ledger
from poller.metrics import Metrics
from poller.pacing import Kind, Ticket
from poller.problems import problems
from poller.simulator import Faults
from poller.status import Surroundings, status
from tests.conftest import APP, KEY, NOON, Event, MakeConfig, QuickClock
from tests.efax import Simulator
from tests.integration.at_work import in_background, listed, parts, poll, said, until

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
HOOK = AccountHook("/efax/main", SecretRef("env", "HOOK"))


@pytest.fixture
def settings(make_config: MakeConfig, simulator: Simulator) -> Config:
    config = make_config(simulator.base_url, webhook=WebhookConfig("127.0.0.1", 0))
    (account,) = config.accounts
    users = tuple(
        replace(user, number=f"1323555000{n}", sent=Sent(archive="metadata"))
        for n, user in enumerate(account.users)
    )
    return replace(config, accounts=(replace(account, webhook=HOOK, users=users),))


@pytest.fixture
async def runtime(settings: Config, clock: QuickClock) -> AsyncIterator[Runtime]:
    secrets = {"KEY": KEY, "HOOK": "hook-secret"}
    opening = open_runtime(
        settings, secrets, metrics=Metrics("test"), clock=clock, random=lambda: 0.5
    )
    async with opening as opened:
        yield opened


class Woken(list[str]):
    """The users whose faxes were to be listed, in order; nothing is polled."""

    def __call__(self, stream: StreamState, _: timedelta) -> None:
        self.append(stream.key.removeprefix("main/"))


@pytest.fixture
def woken() -> Woken:
    return Woken()


@pytest.fixture
def webhooks(runtime: Runtime, woken: Woken) -> Webhooks:
    """Without its loops, and so without the third net."""
    return without_net(runtime, woken)


def without_net(runtime: Runtime, woken: Woken) -> Webhooks:
    webhooks = Webhooks(runtime, woken)
    setattr(webhooks, "_follow", lambda _: None)  # noqa: B010 - mypy knows no such assignment
    webhooks.start(runtime.accounts[APP])
    return webhooks


def notice(**names: Any) -> bytes:
    return json.dumps(names).encode()


async def looked_up(webhooks: Webhooks) -> None:
    """Let fax ids be looked up until none is left."""
    while webhooks._look_ups:
        await webhooks._look_up_next()


async def test_the_path_of_an_account_leads_to_its_secret(
    runtime: Runtime, webhooks: Webhooks
) -> None:
    assert await webhooks.find("/efax/main") == (APP, "hook-secret")
    assert await webhooks.find("/efax") is None
    runtime.hook_secrets = {}
    assert await webhooks.find("/efax/main") is None


@pytest.mark.parametrize(
    ("names", "who"),
    [
        pytest.param({"user_id": "user-b"}, ["user-b"], id="user id"),
        pytest.param({"to": "+1 323 555 0001"}, ["user-b"], id="number"),
        pytest.param({"a": "user-a", "b": "user-b"}, ["user-a", "user-b"], id="both"),
        pytest.param({"user": "user-b", "way": "OUTBOUND"}, ["user-b", "user-b/sent"], id="sent"),
        pytest.param({}, ["user-a", "user-b"], id="nobody"),
        pytest.param(
            {"direction": "sent"},
            ["user-a", "user-a/sent", "user-b", "user-b/sent"],
            id="nobody, of a sent fax",
        ),
        pytest.param({"user_id": "stranger"}, ["user-a", "user-b"], id="a stranger"),
    ],
)
async def test_who_is_named_is_polled_or_else_everybody(
    webhooks: Webhooks, woken: Woken, names: dict[str, str], who: list[str]
) -> None:
    webhooks.taken(APP, notice(**names))
    await looked_up(webhooks)
    assert sorted(woken) == who


async def test_the_lists_of_who_is_named_go_first(runtime: Runtime, webhooks: Webhooks) -> None:
    slots = runtime.accounts[APP].client.pacing.slots
    for user in ("user-c", "user-a", "user-b"):
        slots.enqueue(Ticket(Kind.LIST, user))
    webhooks.taken(APP, notice(user_id="user-b"))
    assert [slots.start(Kind.LIST).user for _ in range(3)] == ["user-b", "user-c", "user-a"]


async def test_a_fax_that_is_known_names_its_user(
    runtime: Runtime, simulator: Simulator, webhooks: Webhooks, woken: Woken
) -> None:
    fax, _ = await listed(runtime, simulator, "user-b")
    webhooks.taken(APP, notice(fax=fax.fax_id.upper()))
    await looked_up(webhooks)
    assert woken == ["user-b"]


async def test_while_the_ledger_is_away_everybody_is_polled(
    webhooks: Webhooks, woken: Woken, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: Any) -> None:
        raise LedgerUnavailable("away")

    monkeypatch.setattr(Ledger, "read", away)
    webhooks.taken(APP, notice(fax="fax-1"))
    await looked_up(webhooks)
    assert sorted(woken) == ["user-a", "user-b"]


async def test_a_reload_changes_which_user_a_number_names(
    runtime: Runtime, webhooks: Webhooks, woken: Woken
) -> None:
    webhooks.taken(APP, notice(to="13235550001"))
    runner = runtime.accounts[APP]
    first, second = runner.account.users
    swapped = (replace(first, number=second.number), replace(second, number=first.number))
    runner.take(replace(runner.account, users=swapped), KEY)
    webhooks.taken(APP, notice(to="13235550001"))
    assert woken == ["user-b", "user-a"]


async def test_the_first_is_reported_and_the_rest_are_counted(
    runtime: Runtime, webhooks: Webhooks, events: list[Event]
) -> None:
    runtime.services.metrics.show_webhook("main")
    for body in (notice(user_id="user-a"), notice(user_id="user-b")):
        webhooks.taken(APP, body)
    webhooks.refused(APP)
    webhooks.refused(APP)
    webhooks.taken(APP, b"no sense [")
    await looked_up(webhooks)
    levels = [(one.action, one.fields["level"]) for one in events if "webhook" in one.action]
    assert levels == [
        ("webhook-received", "info"),
        ("webhook-received", "debug"),
        ("webhook-refused", "warning"),
        ("webhook-received", "info"),
    ]
    users = [one.fields["users"] for one in events if one.action == "webhook-received"]
    assert users == [1, 1, 2]
    text = (await runtime.services.metrics.render()).decode()
    counted = [line for line in text.splitlines() if line.startswith("poller_webhooks_total")]
    assert counted == [
        'poller_webhooks_total{account="main",outcome="accepted"} 2.0',
        'poller_webhooks_total{account="main",outcome="refused"} 2.0',
        'poller_webhooks_total{account="main",outcome="unknown"} 1.0',
    ]
    assert "no sense" not in str(events)


async def test_a_log_is_quiet_while_good_and_bad_alternate(
    webhooks: Webhooks, clock: QuickClock, events: list[Event]
) -> None:
    for _ in range(100):
        webhooks.refused(APP)
        webhooks.taken(APP, notice(user_id="user-b"))
        clock.advance(timedelta(seconds=30))  # fifty minutes in all
    loud = [one.action for one in events if one.fields.get("level") in ("info", "warning")]
    assert [one for one in loud if one.startswith("webhook")] == [
        "webhook-refused",
        "webhook-received",
    ]
    clock.advance(HOUR)
    webhooks.refused(APP)
    assert said(events, "webhook-refused") == ["webhook-refused"] * 2


async def test_all_are_polled_once_for_a_flood_of_notices_and_once_more_after_it(
    webhooks: Webhooks, woken: Woken, clock: QuickClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    wakes: list[int] = []
    wake = webhooks._wakeups.wake

    def counted(streams: Sequence[StreamState], spread: timedelta = timedelta(0)) -> None:
        wakes.append(len(streams))
        wake(streams, spread)

    monkeypatch.setattr(webhooks._wakeups, "wake", counted)
    for one in range(100):
        webhooks.taken(APP, notice(direction="sent") if one == 50 else notice())
    await looked_up(webhooks)
    assert wakes == [2]
    async with in_background(*webhooks.loops().values()):
        began = clock.now()
        await until(lambda: len(wakes) > 1)
        assert wakes == [2, 4]  # also those of the sent faxes
        clock.advance(timedelta(minutes=1))
        await until(lambda: clock.now() - began > timedelta(minutes=2))
    assert wakes == [2, 4]


# -- what is kept ----------------------------------------------------------------------------------


async def kept(runtime: Runtime) -> HookRecord:
    return HookRecord.read(await runtime.services.ledger.read(accounts.hook, APP))


async def test_a_record_continues_where_an_earlier_process_left_it(
    runtime: Runtime, webhooks: Webhooks, woken: Woken
) -> None:
    await webhooks.find("/efax/main")
    webhooks.taken(APP, notice(user_id="user-a"))
    webhooks.refused(APP)
    await webhooks.stop()
    assert await kept(runtime) == HookRecord(NOON, 1, 1, NOON, None)

    later = without_net(runtime, woken)
    await later.find("/efax/main")
    later.refused(APP)
    assert later.records() == {APP: HookRecord(NOON, 1, 2, NOON, None)}


async def test_a_record_is_written_at_most_every_half_minute(
    runtime: Runtime, webhooks: Webhooks, clock: QuickClock
) -> None:
    (hook,) = webhooks._hooks.values()
    await webhooks.find("/efax/main")
    for _ in range(2):
        webhooks.refused(APP)
        await webhooks._keep(hook)
    assert (await kept(runtime)).refused == 1
    clock.advance(timedelta(seconds=31))
    await webhooks._keep(hook)
    assert (await kept(runtime)).refused == 2


async def test_the_status_counts_notices_and_says_of_silence(
    runtime: Runtime, settings: Config, clock: QuickClock
) -> None:
    record = HookRecord(NOON - 2 * DAY, 5, 1, None, NOON - DAY, 3)
    await runtime.services.ledger.write(accounts.keep_hook, APP, record.text())
    around = Surroundings({"usable": True}, accounts=settings.accounts)
    shown = await status(runtime.services.ledger, clock.now(), around)
    assert shown["accounts"][0]["webhook"] == {
        "last_at": "2026-02-28T12:00:00.000Z",
        "accepted": 5,
        "refused": 1,
        "found_by_notifications": 3,
        "silent_since": "2026-03-01T12:00:00.000Z",
    }
    assert "For a day faxes have arrived in account main without a notice" in problems(shown, [])[0]
    known = replace(around, hooks={APP: replace(record, silent_since=NOON)})
    shown = await status(runtime.services.ledger, clock.now(), known)
    assert shown["accounts"][0]["webhook"]["silent_since"] is None
    assert problems(shown, []) == []


# -- whether it works ------------------------------------------------------------------------------


async def comes(runtime: Runtime, simulator: Simulator, clock: QuickClock, user: str) -> None:
    """A fax is received and listed a minute later."""
    simulator.receive(APP, user, completed=clock.now(), distinct=False)
    clock.advance(timedelta(minutes=1))
    await poll(runtime, user)


async def test_faxes_that_come_after_their_notices_prove_the_hook(
    runtime: Runtime, simulator: Simulator, webhooks: Webhooks, clock: QuickClock
) -> None:
    (hook,) = webhooks._hooks.values()
    for _ in range(9):
        await comes(runtime, simulator, clock, "user-a")
        webhooks.taken(APP, notice(user_id="user-a"))  # a little later than the poll
        clock.advance(3 * HOUR)
        webhooks._judge(hook)
    assert hook.record.has_worked(clock.now())
    measured = Measured(hooks={APP: hook.record})
    shown = planned(runtime.config, measured, clock.now())
    assert shown["hints"] == [
        "main: the web-hook has worked for a day, with a notice before each fax: poll.every may be "
        "longer, e.g. 5m"
    ]
    assert planned(runtime.config, measured, clock.now() + 2 * DAY)["hints"] == []

    webhooks.taken(APP, notice(user_id="user-b"))  # not about the fax that comes later
    clock.advance(HOUR)
    await comes(runtime, simulator, clock, "user-b")
    webhooks.taken(APP, notice(user_id="user-a"))
    clock.advance(HOUR)
    webhooks._judge(hook)
    assert not hook.record.has_worked(clock.now())


async def test_a_hook_that_loses_two_of_three_notices_is_not_proven(
    runtime: Runtime, simulator: Simulator, webhooks: Webhooks, clock: QuickClock
) -> None:
    (hook,) = webhooks._hooks.values()
    for _ in range(9):
        for _ in range(3):
            await comes(runtime, simulator, clock, "user-a")
        webhooks.taken(APP, notice(user_id="user-a"))
        clock.advance(3 * HOUR)
        webhooks._judge(hook)
        assert not hook.record.has_worked(clock.now())


async def test_notices_that_name_nobody_prove_the_hook_one_fax_each(
    runtime: Runtime, simulator: Simulator, webhooks: Webhooks, clock: QuickClock
) -> None:
    (hook,) = webhooks._hooks.values()
    for _ in range(9):
        for user in ("user-a", "user-b"):
            await comes(runtime, simulator, clock, user)
            webhooks.taken(APP, notice())
        clock.advance(3 * HOUR)
        webhooks._judge(hook)
    assert hook.record.has_worked(clock.now())


async def test_faxes_without_a_notice_for_a_day_are_silence(
    runtime: Runtime, simulator: Simulator, webhooks: Webhooks, clock: QuickClock
) -> None:
    (hook,) = webhooks._hooks.values()
    simulator.receive(APP, "user-a", completed=NOON - HOUR)  # before the start: nobody knows
    await poll(runtime, "user-a")
    clock.advance(HOUR)
    webhooks._judge(hook)
    assert hook.record == HookRecord()
    await comes(runtime, simulator, clock, "user-a")
    clock.advance(HOUR)
    webhooks._judge(hook)
    assert hook.record.silent_since == clock.now()
    assert hook.record.is_silent(clock.now() + DAY)


# -- the third net ---------------------------------------------------------------------------------


@asynccontextmanager
async def at_work(runtime: Runtime, woken: Woken) -> AsyncIterator[Webhooks]:
    webhooks = Webhooks(runtime, woken)
    webhooks.start(runtime.accounts[APP])
    try:
        async with in_background(*webhooks.loops().values()):
            yield webhooks
    finally:
        await webhooks.stop()


def asked(simulator: Simulator) -> list[str]:
    return [str(one.user) for one in simulator.requests if one.call == "notifications"]


async def test_a_fax_that_no_list_shows_is_found_by_its_notice(
    runtime: Runtime,
    simulator: Simulator,
    clock: QuickClock,
    woken: Woken,
    events: list[Event],
) -> None:
    for user in ("user-a", "user-b"):
        await poll(runtime, user)
    late = simulator.receive(APP, "user-b", completed=clock.now() - 3 * HOUR)
    await poll(runtime, "user-b")
    assert said(events, "fax-discovered") == []

    async with at_work(runtime, woken) as webhooks:
        await until(lambda: said(events, "fax-discovered"))
        await until(lambda: webhooks.records()[APP].found == 1)
    (found,) = [one for one in events if one.action == "fax-discovered"]
    assert found.fields["fax_id"] == late.fax_id
    _, state = parts(runtime, "user-b")
    rows = await runtime.services.ledger.read(faxes.find, late.fax_id)
    assert [(row.found_by, row.stream, row.received_at) for row in rows] == [
        ("notifications", state.id, late.completed)
    ]
    assert rows[0].listed["fax_id"] == late.fax_id
    assert (await kept(runtime)).found == 1


async def test_nobody_is_asked_before_a_first_poll_then_hourly_and_after_a_notice(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, woken: Woken
) -> None:
    async with at_work(runtime, woken) as webhooks:
        await until(lambda: clock.now() > NOON + timedelta(seconds=30))
        assert asked(simulator) == []
        await poll(runtime, "user-a")
        await until(lambda: len(asked(simulator)) >= 2)
        assert sorted(asked(simulator)) == ["user-a", "user-b"]
        before, at = len(asked(simulator)), clock.now()
        webhooks.taken(APP, notice(user_id="user-b"))
        await until(lambda: len(asked(simulator)) > before)
        assert asked(simulator)[-1] == "user-b"
        assert clock.now() - at < timedelta(minutes=2)


async def test_an_answer_that_is_of_all_users_is_asked_for_once(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, woken: Woken
) -> None:
    simulator.switches = replace(simulator.switches, notifications_of="account")
    await listed(runtime, simulator, "user-b")
    async with at_work(runtime, woken):
        await until(lambda: asked(simulator))
        await until(lambda: clock.now() > NOON + timedelta(minutes=5))
    assert asked(simulator) == ["user-a"]


async def test_where_there_is_no_such_list_it_is_off_for_a_day_and_said_once(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, woken: Woken, events: list[Event]
) -> None:
    simulator.switches = replace(simulator.switches, notifications="404")
    await poll(runtime, "user-a")
    async with at_work(runtime, woken) as webhooks:
        await until(lambda: said(events, "notifications-off"))
        webhooks.taken(APP, notice(user_id="user-a"))
        await until(lambda: clock.now() > NOON + timedelta(minutes=10))
        assert asked(simulator) == ["user-a"]
        clock.advance(DAY)
        await until(lambda: len(asked(simulator)) == 2)
    assert said(events, "notifications-off") == ["notifications-off"]
    assert not runtime.accounts[APP].is_suspended
    assert said(events, "account-suspended", "user-refused", "internal-error") == []


async def test_a_fax_that_is_not_there_yet_is_asked_for_again(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, woken: Woken, events: list[Event]
) -> None:
    for user in ("user-a", "user-b"):
        await poll(runtime, user)
    simulator.receive(APP, "user-b", completed=clock.now() - 3 * HOUR)
    simulator.faults = Faults.of("404@metadata=first:1")
    async with at_work(runtime, woken):
        await until(lambda: len(asked(simulator)) == 2)
        clock.advance(HOUR)
        await until(lambda: said(events, "fax-discovered"))


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"direction": "OUTBOUND"}, 0),
        ({"direction": " sent "}, 0),
        ({"transmission_data": {}}, 0),
        ({"direction": 3, "client_tracking_data": []}, 0),
        ({"routing_data": {"to_name": ""}}, 0),
        ({"destination_fax_number": "+1 206 555 0100"}, 0),
        ({"destination_fax_number": "3235550000"}, 1),  # the user's own
        ({"direction": "INBOUND", "destination_fax_number": "2065550100"}, 1),
        ({}, 1),
    ],
    ids=str,
)
async def test_a_sent_fax_is_not_taken_for_a_received_one(
    runtime: Runtime,
    clock: QuickClock,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
    found: int,
) -> None:
    async def notified(*_: Any) -> tuple[Notice, ...]:
        return (Notice("fax-1", "user-a", None, None, {}),)

    async def said_of_it(*_: Any) -> dict[str, Any]:
        return {"fax_id": "fax-1", "completed_timestamp": "2026-03-02T11:00:00.000+0000"} | fields

    runner, state = parts(runtime, "user-a")
    await poll(runtime, "user-a")
    monkeypatch.setattr(runner.client, "notifications", notified)
    monkeypatch.setattr(runner.client, "metadata", said_of_it)
    assert await NoticeReader(runner, runtime.services.ledger, clock).read(state) == found


async def test_what_a_first_poll_may_list_is_left_to_it(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    fax = simulator.receive(APP, "user-b", completed=clock.now() - 3 * HOUR)
    runner, state = parts(runtime, "user-b")
    reader = NoticeReader(runner, runtime.services.ledger, clock)
    assert await reader.read(state) == 0
    for user in ("user-a", "user-b"):
        await poll(runtime, user)
    later = simulator.receive(APP, "user-b", completed=clock.now() - 3 * HOUR)
    assert await reader.read(state) == 1
    found = [await runtime.services.ledger.read(faxes.find, one.fax_id) for one in (fax, later)]
    assert [row.found_by for rows in found for row in rows] == ["newest", "notifications"]


async def test_a_notice_that_does_not_say_which_way_is_no_received_fax_when_its_metadata_do(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, events: list[Event]
) -> None:
    runner, state = parts(runtime, "user-b")
    await poll(runtime, "user-b")
    sent = simulator.sent(APP, "user-b")
    reader = NoticeReader(runner, runtime.services.ledger, clock)
    assert await reader._record(state, [Notice(sent.fax_id, None, None, None, {})]) == 0
    assert said(events, "fax-discovered") == []


async def test_an_account_without_a_hook_asks_for_nothing_until_a_reload_gives_it_one(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, woken: Woken
) -> None:
    await poll(runtime, "user-a")
    runner = runtime.accounts[APP]
    hooked = runner.account
    runner.take(replace(hooked, webhook=None), KEY)
    async with at_work(runtime, woken) as webhooks:
        await until(lambda: clock.now() > NOON + timedelta(minutes=5))
        assert (asked(simulator), webhooks.records()) == ([], {})
        runner.take(hooked, KEY)
        await until(lambda: asked(simulator))
        runner.take(replace(hooked, webhook=None), KEY)
        await until(lambda: next(iter(webhooks._hooks.values())).work is None)
