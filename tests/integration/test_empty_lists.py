"""Empty lists: which ones poller believes, and what happens if an outage answers 200 with nothing."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from poller.config.model import Poll
from poller.efax.responses import Page
from poller.emptiness import MOST_WITNESSES, Lists
from poller.errors import BadAnswer
from poller.ingest.empties import EmptyLists
from poller.ingest.reading import Read
from poller.ingest.runtime import Runtime
from poller.ingest.sweeps import Sweeps
from poller.ledger import State, accounts, backfills, faxes, fold, streams
from poller.progress import SweepsForgotten
from poller.simulator import Faults, Simulator, Switches
from poller.window import Interval
from tests.conftest import APP, Event, MakeConfig, QuickClock, opened_runtime
from tests.integration.at_work import calls, listed, parts, poll, said, settled

SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
SHAPES = ("array", "missing", "bare")
# Spellings of an empty list that some server may use; no server uses the others.
MAYBE_LISTS = ("bare-200", "array-200", "zero-200", "full-200")
NO_LISTS = ("empty-200", "null-200", "list-200", "other-200", "html-200")
OWN = {"array": "full-200", "missing": "zero-200", "bare": "bare-200"}  # by switch


@pytest.fixture
async def quiet(runtime: Runtime, simulator: Simulator, clock: QuickClock) -> Runtime:
    """Discover a fax whose time lies before every window that will be requested."""
    await listed(runtime, simulator)
    for _ in range(2):
        clock.advance(20 * MINUTE)
        for user in ("user-a", "user-b"):
            assert not (await poll(runtime, user)).failed
    return runtime


async def covered(runtime: Runtime, user: str = "user-a") -> Any:
    """Return up to when the ledger says that this user's faxes are listed."""
    return (
        await runtime.services.ledger.read(fold.progress, parts(runtime, user)[1].id)
    ).coverage.newest_end


def asked_for_1990(simulator: Simulator) -> int:
    return sum("1990-01-01" in one.target for one in simulator.requests)


async def probe(runtime: Runtime, clock: QuickClock, user: str = "user-a") -> None:
    """Poll when the next probe is due."""
    until = runtime.accounts[APP].client.suspension.until
    assert until is not None
    clock.advance(max(until - clock.now(), timedelta(0)))
    await poll(runtime, user)


# -- how an empty list is spelled ---------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
async def test_first_fax_teaches_how_this_server_spells_an_empty_list_once_for_all_runs(
    shape: Any, simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> None:
    simulator.switches = Switches(empty_list=shape)
    for _ in range(2):
        async with opened_runtime(make_config(simulator.base_url), clock) as runtime:
            for user in ("user-a", "user-b", "user-a"):
                await listed(runtime, simulator, user)
                clock.advance(MINUTE)
            lists = Lists.read((await runtime.services.ledger.read(accounts.lists, APP))[0])
            assert lists.shapes is not None
            assert len(lists.shapes) == 1
            assert lists.tells_gone
    assert asked_for_1990(simulator) == 1
    assert calls(simulator, "metadata") == 1


@pytest.mark.parametrize("shape", SHAPES)
async def test_installation_without_any_fax_is_polled_however_an_empty_list_is_spelled(
    shape: Any, runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    simulator.switches = Switches(empty_list=shape)
    for _ in range(3):
        before = len(simulator.requests)
        assert not (await poll(runtime)).failed
        clock.advance(2 * MINUTE)
    assert [one.call for one in simulator.requests[before:]] == ["list"]
    assert await covered(runtime) == clock.now() - 2 * MINUTE


@pytest.mark.parametrize("effect", NO_LISTS)
@pytest.mark.parametrize("has_fax", [False, True])
async def test_answer_that_no_list_is_spelled_like_fails_the_poll_and_covers_nothing(
    effect: str, *, has_fax: bool, runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    if has_fax:
        await listed(runtime, simulator)
    assert not (await poll(runtime)).failed
    before = await covered(runtime)
    simulator.faults = Faults.of(f"{effect}@list=always")
    clock.advance(5 * MINUTE)
    outcome = await poll(runtime)
    assert isinstance(outcome.error, BadAnswer)
    assert await covered(runtime) == before

    simulator.faults = Faults()
    fax = simulator.receive(APP, "user-a", completed=clock.now() - 2 * MINUTE)
    clock.advance(MINUTE)
    assert [row.fax_id for row in (await poll(runtime)).discovered] == [fax.fax_id]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("effect", MAYBE_LISTS)
async def test_outage_that_answers_200_with_nothing_covers_nothing_and_loses_no_fax(
    shape: Any,
    effect: str,
    simulator: Simulator,
    make_config: MakeConfig,
    clock: QuickClock,
    events: list[Event],
) -> None:
    """A fax that no later poll and no net would find if the outage were believed."""
    simulator.switches = Switches(empty_list=shape)
    back = replace(Poll().sweep, back=MINUTE)
    rules = Poll(overlap=MINUTE, sweep=back, deep_sweep=replace(back, every=24 * HOUR))
    async with opened_runtime(make_config(simulator.base_url, poll=rules), clock) as runtime:
        account, _ = parts(runtime)
        await listed(runtime, simulator)
        await poll(runtime, "user-b")
        clock.advance(5 * MINUTE)
        await poll(runtime)
        before = [await covered(runtime, user) for user in ("user-a", "user-b")]

        simulator.outage(True, effect)
        clock.advance(2 * MINUTE)
        lost = simulator.receive(APP, "user-b", completed=clock.now())
        for _ in range(8):
            clock.advance(2 * MINUTE)
            for user in ("user-a", "user-b"):
                await poll(runtime, user)
        assert account.is_suspended
        assert [await covered(runtime, user) for user in ("user-a", "user-b")] == before
        await settled(account)
        (row,) = await runtime.services.ledger.read(accounts.all_accounts)
        assert "lists nothing that it listed before" in str(row.reason)
        assert said(events, "account-suspended") == ["account-suspended"]

        simulator.outage(False)
        await probe(runtime, clock)
        (resumed,) = [event for event in events if event.action == "account-resumed"]
        assert "lists nothing that it listed before" in resumed.message
        found = (await poll(runtime, "user-b")).discovered
        assert [fax.fax_id for fax in found] == [lost.fax_id]
        assert await covered(runtime, "user-b") == clock.now()


async def test_answer_that_is_spelled_like_another_servers_empty_list_is_no_list(
    quiet: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    """eFax lists the witness, so this is not an outage: one user's lists are broken."""
    before = clock.now()
    clock.advance(2 * MINUTE)
    simulator.faults = Faults.of("bare-200@list=always")
    rule = simulator.faults.rules[0]
    simulator.faults = replace(simulator.faults, rules=(replace(rule, user_id="user-b"),))
    outcome = await poll(quiet, "user-b")
    assert "which is not a list" in str(outcome.error)
    assert not quiet.accounts[APP].is_suspended
    assert await covered(quiet, "user-b") == before

    requests = len(simulator.requests)
    clock.advance(8 * SECOND)
    assert (await poll(quiet, "user-b")).failed
    assert len(simulator.requests) == requests + 1  # the result holds for a while


async def test_server_that_changes_how_it_spells_empty_lists_is_asked_once_and_believed(
    quiet: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    simulator.switches = Switches(empty_list="bare")
    for _ in range(3):
        clock.advance(2 * MINUTE)
        assert not (await poll(quiet)).failed
    assert asked_for_1990(simulator) == 2
    assert await covered(quiet) == clock.now()


async def test_other_spelling_that_no_fax_can_prove_fails_for_an_hour_and_is_then_believed(
    quiet: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    for fax in simulator.faxes():
        simulator.delete(fax)
    clock.advance(2 * MINUTE)
    assert not (await poll(quiet)).failed  # eFax itself says that it was deleted
    before = await covered(quiet)
    simulator.switches = Switches(empty_list="bare")
    clock.advance(2 * MINUTE)
    began = clock.now()
    while (await poll(quiet)).failed:
        clock.advance(2 * MINUTE)
    assert HOUR <= clock.now() - began <= HOUR + 2 * MINUTE
    assert before < await covered(quiet)
    lists = Lists.read((await quiet.services.ledger.read(accounts.lists, APP))[0])
    # it may not have been empty: everything since then is listed again
    assert lists.believed_since == began


@pytest.mark.parametrize("shape", SHAPES)
async def test_server_that_refuses_1990_is_believed_as_long_as_it_lists_a_known_fax(
    shape: Any, simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> None:
    simulator.switches = Switches(empty_list=shape, oldest_window_s=8 * 86_400.0)
    async with opened_runtime(make_config(simulator.base_url), clock) as runtime:
        await listed(runtime, simulator)
        for _ in range(3):
            clock.advance(20 * MINUTE)
            assert not (await poll(runtime)).failed
        assert await covered(runtime) == clock.now()
        simulator.faults = Faults.of(f"{OWN[shape]}@list=always")
        clock.advance(20 * MINUTE)
        assert (await poll(runtime)).skipped
        assert runtime.accounts[APP].is_suspended
        assert await covered(runtime) == clock.now() - 20 * MINUTE


async def test_installation_that_began_in_an_outage_lists_everything_again(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> None:
    old = simulator.receive(APP, "user-b", completed=clock.now() - timedelta(days=20))
    rules = Poll(start=timedelta(days=30))
    async with opened_runtime(make_config(simulator.base_url, poll=rules), clock) as runtime:
        simulator.faults = Faults.of("bare-200@list=always")
        for user in ("user-a", "user-b"):
            assert not (await poll(runtime, user)).failed
        simulator.faults = Faults()
        clock.advance(10 * MINUTE)
        await listed(runtime, simulator)
        assert [fax.fax_id for fax in (await poll(runtime, "user-b")).discovered] == [old.fax_id]


async def test_run_that_began_in_an_outage_has_the_next_ones_list_everything_again(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> None:
    """As `poller once` does, run by cron; somebody has opened the fax, so that no net finds it."""
    days = timedelta(days=1)
    old = simulator.receive(APP, "user-b", completed=clock.now() - 20 * days)
    old.image_downloaded = True
    settings = make_config(simulator.base_url, poll=Poll(start=30 * days))
    simulator.faults = Faults.of("bare-200@list=always")
    async with opened_runtime(settings, clock) as runtime:
        for user in ("user-a", "user-b"):
            assert not (await poll(runtime, user)).failed
    simulator.faults = Faults()
    clock.advance(10 * MINUTE)
    async with opened_runtime(settings, clock) as runtime:
        await listed(
            runtime, simulator
        )  # the first fax; that run ends before it has listed the rest
    clock.advance(10 * MINUTE)
    async with opened_runtime(settings, clock) as runtime:
        assert [fax.fax_id for fax in (await poll(runtime, "user-b")).discovered] == [old.fax_id]


async def test_sweep_that_was_under_way_when_all_is_to_be_listed_again_does_not_end_that(
    runtime: Runtime, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's poll finds that out while this one's sweep reads its last list."""
    _, state = parts(runtime)
    read = Sweeps._read_not_downloaded

    async def meanwhile(sweeps: Sweeps, *arguments: Any) -> Read:
        state.sweeps.clear()
        await state.record(SweepsForgotten())
        return await read(sweeps, *arguments)

    monkeypatch.setattr(Sweeps, "_read_not_downloaded", meanwhile)
    assert not (await poll(runtime)).failed
    assert state.progress.deep_sweep_end is None
    (row,) = [
        row for row in await runtime.services.ledger.read(streams.all_streams) if row.id == state.id
    ]
    assert row.deep_sweep_end is None


# -- the witness -----------------------------------------------------------------------------------


async def test_quiet_account_asks_for_a_known_fax_every_fifteen_seconds_for_all_its_users(
    quiet: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    before = len(simulator.requests)
    for _ in range(20):
        clock.advance(8 * SECOND)
        for user in ("user-a", "user-b"):
            assert not (await poll(quiet, user)).failed
    assert len(simulator.requests) == before + 40 + 10


async def test_empty_time_is_covered_once_a_known_fax_is_listed_after_it(
    quiet: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    clock.advance(2 * MINUTE)
    await poll(quiet)
    proved = await covered(quiet)
    assert proved == clock.now()
    clock.advance(8 * SECOND)
    await poll(quiet, "user-b")
    assert await covered(quiet, "user-b") < clock.now()
    assert parts(quiet, "user-b")[1].progress.coverage.newest_end == clock.now() - 128 * SECOND
    clock.advance(8 * SECOND)
    await poll(quiet)
    assert await covered(quiet) == clock.now()
    assert await covered(quiet, "user-b") == clock.now() - 8 * SECOND


async def test_empty_list_whose_proof_could_not_be_had_is_asked_for_again(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> None:
    """A proof that comes hours later proves nothing about it; no net lies below."""
    back = replace(Poll().sweep, back=MINUTE, every=24 * HOUR)
    rules = Poll(overlap=MINUTE, sweep=back, deep_sweep=back)
    async with opened_runtime(make_config(simulator.base_url, poll=rules), clock) as runtime:
        for user in ("user-a", "user-b"):
            await listed(runtime, simulator, user)
        await poll(runtime, "user-b")
        before = await covered(runtime, "user-b")
        clock.advance(20 * HOUR)
        lost = simulator.receive(APP, "user-b", completed=clock.now() - 10 * HOUR)
        script = ("full-200", *["503"] * 30)
        simulator.faults = Faults(script=script, script_calls=frozenset({"list"}))
        assert (await poll(runtime, "user-b")).failed

        simulator.faults = Faults()
        clock.advance(2 * HOUR)
        await listed(runtime, simulator)
        assert await covered(runtime, "user-b") == before
        found = (await poll(runtime, "user-b")).discovered
        assert [fax.fax_id for fax in found] == [lost.fax_id]


async def test_empty_list_from_before_a_suspension_is_asked_for_again(
    quiet: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    clock.advance(2 * MINUTE)
    await poll(quiet)  # a proof
    before = await covered(quiet, "user-b")
    clock.advance(SECOND)
    await poll(quiet, "user-b")  # it waits for the next one
    simulator.faults = Faults.of("503@list=always")
    clock.advance(SECOND)
    for user in ("user-a", "user-b"):
        await poll(quiet, user)
    assert quiet.accounts[APP].is_suspended
    simulator.faults = Faults()
    clock.advance(2 * HOUR)
    await listed(quiet, simulator)
    assert not quiet.accounts[APP].is_suspended
    assert await covered(quiet, "user-b") == before


async def test_what_waits_for_a_proof_is_proved_after_a_minute_without_any_poll(
    quiet: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    """The next poll may come only in hours."""
    account, _ = parts(quiet)
    clock.advance(4 * HOUR)
    for user in ("user-a", "user-b"):
        clock.advance(SECOND)
        await poll(quiet, user)
    polled, lists = clock.now(), calls(simulator, "list")
    assert not account.settle_in_time()
    clock.advance(MINUTE)
    assert account.settle_in_time()
    assert account.settling is not None
    assert await account.settling is None
    assert await covered(quiet, "user-b") == polled
    clock.advance(2 * MINUTE)
    assert not account.settle_in_time()  # nothing waits
    assert calls(simulator, "list") == lists + 1


async def test_known_fax_whose_window_is_refused_is_not_asked_for_again(
    quiet: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    """It is too old by now, and those of a refused user are left alone, like the user's polls."""
    simulator.switches = Switches(oldest_window_s=8 * 86_400.0)
    clock.advance(timedelta(days=7))
    for user in ("user-a", "user-b"):
        assert not (await poll(quiet, user)).failed
    clock.advance(timedelta(days=1))
    asked = [calls(simulator, "list")]
    for _ in range(3):
        clock.advance(2 * MINUTE)
        assert not (await poll(quiet)).failed
        asked.append(calls(simulator, "list"))
    assert asked[-1] - asked[-2] == 1


async def test_known_fax_of_a_refused_user_is_not_asked_for(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    await listed(runtime, simulator, "user-b")
    assert not (await poll(runtime)).failed
    rule = replace(Faults.of("403@list=always").rules[0], user_id="user-b")
    simulator.faults = Faults(rules=(rule,))
    assert (await poll(runtime, "user-b")).failed
    before = calls(simulator, "list")
    clock.advance(20 * MINUTE)
    assert not (await poll(runtime)).failed
    assert calls(simulator, "list") == before + 1


async def test_spelling_is_not_asked_for_when_the_known_faxes_were_deleted_meanwhile(
    runtime: Runtime, simulator: Simulator
) -> None:
    """A poll may wait for the proof of another, which finds that out."""
    await listed(runtime, simulator)
    client, states = runtime.accounts[APP].client, runtime.accounts[APP].states
    empties = EmptyLists(client, runtime.services.ledger, runtime.services.clock, states)
    await runtime.services.ledger.write(accounts.keep_lists, APP, Lists(tells_gone=True).text())
    await empties.spelling.believe("", is_end=True)
    await empties.listed(parts(runtime)[1].user, Page(()))
    simulator.delete(simulator.faxes()[0])
    proving, learning = empties.prove(), empties.spelling.learn()
    await asyncio.gather(proving, learning)
    assert asked_for_1990(simulator) == 1  # from the poll that listed the fax


async def test_list_of_another_user_that_holds_a_fax_is_proof_enough(
    quiet: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    clock.advance(2 * MINUTE)
    await poll(quiet)
    before = len(simulator.requests)
    clock.advance(8 * SECOND)
    await poll(quiet)
    await listed(quiet, simulator, "user-b")
    assert await covered(quiet) == clock.now()
    assert len(simulator.requests) == before + 1 + 2  # the end of a single fax is requested


async def test_fax_that_a_witness_happens_to_list_is_new_and_recorded(
    quiet: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    late = simulator.receive(APP, "user-a", completed=clock.now() - timedelta(minutes=41))
    clock.advance(2 * MINUTE)
    await poll(quiet, "user-b")
    (row,) = await quiet.services.ledger.read(faxes.find, late.fax_id)
    assert row.found_by == "witness"


async def test_fax_that_is_missed_in_its_own_window_is_noticed_at_once(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    await listed(runtime, simulator)
    simulator.faults = Faults.of(f"{OWN['array']}@list=always")
    clock.advance(SECOND)
    assert (await poll(runtime)).skipped
    assert runtime.accounts[APP].is_suspended


async def test_fax_that_somebody_deleted_at_once_costs_one_witness(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    await listed(runtime, simulator, completed=clock.now() - HOUR)
    fax, _ = await listed(runtime, simulator)
    simulator.delete(fax)
    before = len(simulator.requests)
    for _ in range(3):
        clock.advance(SECOND)
        assert not (await poll(runtime)).failed
    assert len(simulator.requests) <= before + 3 + 1


async def test_faxes_deleted_at_efax_suspend_nobody_and_are_reported_once(
    quiet: Runtime, simulator: Simulator, clock: QuickClock, events: list[Event]
) -> None:
    for fax in simulator.faxes():
        simulator.delete(fax)
    for _ in range(3):
        clock.advance(2 * MINUTE)
        before = len(simulator.requests)
        assert not (await poll(quiet)).failed
        assert await covered(quiet) == clock.now()
    assert len(simulator.requests) == before + 1
    assert said(events, "witnesses-deleted", "account-suspended") == ["witnesses-deleted"]


async def test_next_run_does_not_ask_for_what_was_deleted(
    quiet: Runtime, simulator: Simulator, clock: QuickClock, make_config: MakeConfig
) -> None:
    for fax in simulator.faxes():
        simulator.delete(fax)
    clock.advance(2 * MINUTE)
    assert not (await poll(quiet)).failed
    known = await quiet.services.ledger.read(accounts.lists, APP)
    assert Lists.read(known[0]).is_deleted(known[1][0][2].end)


async def test_when_the_newest_fax_was_deleted_an_older_one_is_asked_for(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    for _ in range(MOST_WITNESSES):
        fax, _ = await listed(runtime, simulator)
        clock.advance(30 * MINUTE)
    simulator.delete(fax)
    assert not (await poll(runtime)).failed
    assert not runtime.accounts[APP].is_suspended
    assert await covered(runtime) == clock.now()


async def test_faxes_that_efax_neither_lists_nor_calls_deleted_are_given_up_after_an_hour(
    quiet: Runtime,
    simulator: Simulator,
    clock: QuickClock,
    events: list[Event],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As if they were in a trash can: metadata still describe them."""
    for fax in simulator.faxes():
        simulator.apps[APP].users[fax.user_id].faxes.remove(fax)
    clock.advance(2 * MINUTE)
    await poll(quiet)
    account, _ = parts(quiet)
    began = clock.now()
    while account.is_suspended:
        await probe(quiet, clock)
    assert HOUR <= clock.now() - began <= HOUR + 10 * MINUTE
    assert said(events, "witnesses-deleted", "account-suspended", "account-resumed") == [
        "account-suspended",
        "witnesses-deleted",
        "account-resumed",
    ]
    assert await covered(quiet) == clock.now()


def hide(simulator: Simulator) -> None:
    """Make eFax list no fax, but still describe each."""
    for fax in simulator.faxes():
        if fax in (faxes := simulator.apps[APP].users[fax.user_id].faxes):
            faxes.remove(fax)


async def given_up(runtime: Runtime, clock: QuickClock) -> timedelta:
    """Poll while the known faxes are missing, and return how long that was."""
    clock.advance(2 * MINUTE)
    began = clock.now()
    await poll(runtime)
    while runtime.accounts[APP].is_suspended:
        await probe(runtime, clock)
    return clock.now() - began


async def test_later_deletions_that_efax_does_not_tell_of_cost_minutes_and_are_said_each_time(
    quiet: Runtime, simulator: Simulator, clock: QuickClock, events: list[Event]
) -> None:
    hide(simulator)
    assert await given_up(quiet, clock) >= HOUR
    for _ in range(2):
        await listed(quiet, simulator)
        clock.advance(20 * MINUTE)
        hide(simulator)
        assert 5 * MINUTE <= await given_up(quiet, clock) <= 10 * MINUTE
    said_deleted = [one for one in events if one.action == "witnesses-deleted"]
    assert [one.fields["level"] for one in said_deleted] == ["error"] * 3


async def test_doubt_is_long_again_when_what_was_taken_for_deleted_is_listed(
    quiet: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    """It was an outage."""
    simulator.faults = Faults.of("full-200@list=always")
    assert await given_up(quiet, clock) >= HOUR
    simulator.faults = Faults()
    clock.advance(2 * MINUTE)
    await listed(quiet, simulator)
    lists = Lists.read((await quiet.services.ledger.read(accounts.lists, APP))[0])
    assert (lists.given_up, lists.deleted_until, lists.believed_since) == ((), None, None)
    clock.advance(20 * MINUTE)
    simulator.faults = Faults.of("full-200@list=always")
    assert await given_up(quiet, clock) >= HOUR


@pytest.mark.parametrize("restarts", [False, True])
async def test_all_since_the_first_doubt_is_listed_again_after_a_long_outage_that_was_believed(
    *, restarts: bool, simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> None:
    """Somebody has opened the faxes, so that only a window finds them."""
    days = timedelta(days=1)
    settings = make_config(simulator.base_url)
    async with AsyncExitStack() as stack:
        runtime = await stack.enter_async_context(opened_runtime(settings, clock))
        for user in ("user-a", "user-b"):
            await listed(runtime, simulator, user)
        clock.advance(20 * MINUTE)
        simulator.faults = Faults.of("full-200@list=always")
        await given_up(runtime, clock)
        lost = [
            simulator.receive(APP, user, completed=clock.now() + HOUR)
            for user in ("user-a", "user-b")
        ]
        for fax in lost:
            fax.image_downloaded = True
        for _ in range(20):
            clock.advance(days)
            for user in ("user-a", "user-b"):
                assert not (await poll(runtime, user)).failed
        assert await covered(runtime) == clock.now()
        if restarts:
            await stack.aclose()
            runtime = await stack.enter_async_context(opened_runtime(settings, clock))
        simulator.faults = Faults()
        clock.advance(MINUTE)
        await listed(runtime, simulator)
        for user in ("user-a", "user-b"):
            await poll(runtime, user)
        for fax in lost:
            assert await runtime.services.ledger.read(faxes.find, fax.fax_id)


@pytest.mark.parametrize("step", [timedelta(0), 2 * HOUR])
async def test_doubt_counts_neither_downtime_nor_a_clock_that_was_set_ahead(
    step: timedelta, simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> None:
    settings = make_config(simulator.base_url)
    async with opened_runtime(settings, clock) as runtime:
        await listed(runtime, simulator)
        clock.advance(20 * MINUTE)
        simulator.faults = Faults.of("full-200@list=always")
        await poll(runtime)
        assert runtime.accounts[APP].is_suspended
        if step:
            clock.wall += step
            await probe(runtime, clock)
            assert runtime.accounts[APP].is_suspended
    if not step:
        clock.advance(2 * HOUR)
        async with opened_runtime(settings, clock) as runtime:
            await poll(runtime)
            assert runtime.accounts[APP].is_suspended


async def test_broken_answers_before_an_outage_of_the_lists_are_no_doubt_that_counts(
    quiet: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    clock.advance(2 * MINUTE)
    simulator.outage(True, "full-200")
    began = clock.now()
    while clock.now() - began < 2 * HOUR:
        await poll(quiet)
        await probe(quiet, clock)
    simulator.outage(False)
    simulator.faults = Faults.of("full-200@list=always")
    await probe(quiet, clock)
    assert quiet.accounts[APP].is_suspended


@pytest.mark.parametrize("effect", MAYBE_LISTS)
async def test_outage_of_every_call_is_never_taken_for_deleted_faxes(
    effect: str, quiet: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    before = await covered(quiet)
    simulator.outage(True, effect)
    for _ in range(4):
        clock.advance(2 * HOUR)
        assert not (await poll(quiet)).discovered
    assert quiet.accounts[APP].is_suspended
    assert await covered(quiet) == before


async def test_server_without_metadata_is_not_believed_that_a_fax_was_deleted(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> None:
    simulator.faults = Faults.of("404@metadata=always")
    async with opened_runtime(make_config(simulator.base_url), clock) as runtime:
        await listed(runtime, simulator)
        clock.advance(20 * MINUTE)
        simulator.faults = Faults.of("404@metadata=always", "full-200@list=always")
        assert (await poll(runtime)).skipped
        assert runtime.accounts[APP].is_suspended


@pytest.mark.parametrize("status", [404, 403, 400])
async def test_where_metadata_are_not_served_deleted_faxes_are_given_up_after_an_hour(
    status: int, simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> None:
    simulator.faults = Faults.of(f"{status}@metadata=always")
    async with opened_runtime(make_config(simulator.base_url), clock) as runtime:
        await listed(runtime, simulator)
        clock.advance(20 * MINUTE)
        hide(simulator)
        clock.advance(2 * MINUTE)
        began = clock.now()
        await poll(runtime)
        while runtime.accounts[APP].is_suspended and clock.now() - began < 2 * HOUR:
            await probe(runtime, clock)
        assert HOUR <= clock.now() - began <= HOUR + 10 * MINUTE


async def test_fax_that_arrives_ends_the_suspension_also_where_the_known_ones_stay_away(
    quiet: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    for fax in simulator.faxes():
        simulator.apps[APP].users[fax.user_id].faxes.remove(fax)
    clock.advance(2 * MINUTE)
    await poll(quiet)
    assert quiet.accounts[APP].is_suspended
    fax = simulator.receive(APP, "user-a", completed=clock.now())
    await probe(quiet, clock)
    assert not quiet.accounts[APP].is_suspended
    (row,) = await quiet.services.ledger.read(faxes.find, fax.fax_id)
    assert row.state is State.PENDING


async def test_outage_is_met_with_two_requests_a_probe_at_growing_intervals(
    quiet: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    simulator.faults = Faults.of("full-200@list=always")
    clock.advance(2 * MINUTE)
    await poll(quiet)
    for expected_s in (5, 10, 20, 40):
        until = quiet.accounts[APP].client.suspension.until
        assert until is not None
        assert (until - clock.now()).total_seconds() == pytest.approx(expected_s)
        before = calls(simulator, "list")
        await probe(quiet, clock)
        assert calls(simulator, "list") == before + 2
        assert (await poll(quiet, "user-b")).skipped
        assert calls(simulator, "list") == before + 2


async def test_give_up_clock_stands_still_while_nothing_is_listed(
    quiet: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    account, _ = parts(quiet)
    simulator.faults = Faults.of("full-200@list=always")
    clock.advance(2 * MINUTE)
    await poll(quiet)
    await settled(account)
    paused = await account.paused_s()
    clock.advance(HOUR)
    assert await account.paused_s() == pytest.approx(paused + 3600)


async def test_outage_continues_over_a_restart_and_is_reported_again(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> None:
    settings = make_config(simulator.base_url)
    async with opened_runtime(settings, clock) as runtime:
        await listed(runtime, simulator)
    simulator.outage(True, "full-200")
    for _ in range(2):
        clock.advance(20 * MINUTE)
        simulator.outage(False)
        async with opened_runtime(settings, clock) as runtime:
            account, _ = parts(runtime)
            await account.client.health()
            before = await covered(runtime)
            simulator.outage(True, "full-200")
            assert (await poll(runtime)).skipped
            assert account.is_suspended
            assert await covered(runtime) == before


async def test_backfill_does_not_take_an_outage_for_an_old_window_without_faxes(
    quiet: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    account, state = parts(quiet)
    old = simulator.receive(APP, "user-a", completed=clock.now() - timedelta(days=20))
    window = Interval(clock.now() - timedelta(days=21), clock.now() - timedelta(days=19))
    await quiet.services.ledger.write(backfills.ask, state.id, window, clock.now())
    await state.reread()
    simulator.faults = Faults.of("full-200@list=always")
    assert (await account.backfill(state)).error is not None
    simulator.faults = Faults()
    await probe(quiet, clock)
    state.backfill_not_before = 0.0
    await account.backfill(state)
    assert await quiet.services.ledger.read(faxes.find, old.fax_id)
    assert not await quiet.services.ledger.read(backfills.waiting, state.id)


async def test_gap_is_not_closed_by_an_outage(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock, events: list[Event]
) -> None:
    """The newest slice contains a fax; the outage begins right after it."""
    async with opened_runtime(make_config(simulator.base_url), clock) as runtime:
        old = simulator.receive(APP, "user-a", completed=clock.now() - timedelta(days=5))
        simulator.receive(APP, "user-a", completed=clock.now() - MINUTE)
        script = (None, None, *["full-200"] * 30)
        simulator.faults = Faults(script=script, script_calls=frozenset({"list"}))
        await poll(runtime)
        assert runtime.accounts[APP].is_suspended
        assert parts(runtime)[1].progress.gaps
        simulator.faults = Faults()
        await probe(runtime, clock)
        assert await runtime.services.ledger.read(faxes.find, old.fax_id)
        assert not parts(runtime)[1].progress.gaps
