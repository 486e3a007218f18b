"""Deleting at eFax: which faxes go and which stay, so that nobody misses one."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from poller.config.model import Config, Delete, Poll, Sweep
from poller.errors import LedgerUnavailable, UserRefused
from poller.ingest.deleting import Deleter
from poller.ingest.errand_runner import LOOK_S
from poller.ingest.runtime import Runtime
from poller.ingest.stream_state import Hold, StreamState
from poller.ledger import FaxRow, State, deletions, errands, faxes, jobs
from poller.ledger.tables import JobKind
from poller.simulator import Fault, Faults, Switches
from poller.simulator.state import Fax
from tests.conftest import APP, Event, MakeConfig, QuickClock, opened_runtime
from tests.efax import Simulator
from tests.integration.at_work import (
    calls,
    end_outage,
    faults,
    listed,
    mount,
    parts,
    poll,
    row,
    said,
    suspend,
    unmount,
)

DAY = timedelta(days=1)
WEEK = timedelta(days=7)


def deleting(settings: Config, **changes: Any) -> Config:
    """The same configuration, with this `delete` for every user."""
    (account,) = settings.accounts
    rule = Delete(**{"after": DAY, **changes})
    users = tuple(replace(user, delete=rule) for user in account.users)
    return replace(settings, accounts=(replace(account, users=users),))


@pytest.fixture
async def runtime(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> AsyncIterator[Runtime]:
    """An installation that deletes a day after storing."""
    async with opened_runtime(deleting(make_config(simulator.base_url)), clock) as opened:
        yield opened


async def stored(
    runtime: Runtime, simulator: Simulator, user: str = "user-a", **fields: Any
) -> tuple[Fax, FaxRow]:
    """A fax that is stored."""
    fax, _ = await listed(runtime, simulator, user, distinct=False, **fields)
    await parts(runtime, user)[0].workers.run_until_idle()
    return fax, await row(runtime, fax)


def is_gone(fax: Fax) -> bool:
    return fax.deleted


async def run_errands(runtime: Runtime) -> None:
    """Do what the service does every ten seconds, to its end."""
    errand_runner = runtime.accounts[APP].errands
    await errand_runner.look()
    await errand_runner.run_until_idle()


async def test_a_fax_is_deleted_when_its_time_has_come_and_not_before(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, events: list[Event]
) -> None:
    fax, before = await stored(runtime, simulator)
    clock.advance(DAY - timedelta(minutes=1))
    await run_errands(runtime)
    assert not is_gone(fax)
    clock.advance(timedelta(minutes=2))
    await run_errands(runtime)
    after = await row(runtime, fax)
    assert is_gone(fax)
    assert after.deleted_at == clock.now()
    assert replace(after, deleted_at=None) == before
    assert said(events, "fax-deleted") == ["fax-deleted"]
    assert not await runtime.services.ledger.read(errands.waiting, APP)
    history = await runtime.services.ledger.read(faxes.history, after.id)
    assert [one.outcome for one in history] == ["stored", "deleted at eFax"]


# -- what stays ------------------------------------------------------------------------------------


def image_of(runtime: Runtime, fax: FaxRow) -> Path:
    assert fax.file is not None
    return runtime.config.storage.directory / fax.file


def take(runtime: Runtime, fax: FaxRow) -> None:
    """Take it as a consumer does: first the image, last the sidecar."""
    image = image_of(runtime, fax)
    image.unlink()
    image.with_suffix(".json").unlink()


def other_bytes(runtime: Runtime, fax: FaxRow) -> None:
    """Change as many bytes as before, so that only a reader of them finds out."""
    image = image_of(runtime, fax)
    content = bytearray(image.read_bytes())
    content[-20] ^= 1
    image.write_bytes(content)


SPOILED: dict[str, Callable[[Runtime, FaxRow], None]] = {
    "one bit is another": other_bytes,
    "the image is gone": lambda runtime, fax: image_of(runtime, fax).unlink(),
    "the sidecar is gone": lambda runtime, fax: (
        image_of(runtime, fax).with_suffix(".json").unlink()
    ),
}


@pytest.mark.parametrize("how", SPOILED)
async def test_a_fax_with_changed_files_stays_and_is_reported_as_damaged(
    how: str, runtime: Runtime, simulator: Simulator, clock: QuickClock, events: list[Event]
) -> None:
    fax, before = await stored(runtime, simulator)
    clock.advance(2 * DAY)
    ledger = runtime.services.ledger
    await ledger.write(errands.ask, [before], JobKind.DELETE, clock.now())  # it looked well then
    SPOILED[how](runtime, before)
    await run_errands(runtime)
    assert not is_gone(fax)
    assert (await row(runtime, fax)).damage is not None
    assert said(events, "fax-damaged", "fax-deleted") == ["fax-damaged"]
    assert not await ledger.read(errands.waiting, APP)


async def damaged(runtime: Runtime, simulator: Simulator, fax: FaxRow) -> None:
    await runtime.services.ledger.write(
        faxes.note_damage, {fax.id: (fax.sha256 or "", "no image")}, runtime.services.clock.now()
    )


async def to_fetch_again(runtime: Runtime, simulator: Simulator, fax: FaxRow) -> None:
    now = runtime.services.clock.now()
    await runtime.services.ledger.write(jobs.fetch_again, [fax.id], now)


async def dismissed(runtime: Runtime, simulator: Simulator, fax: FaxRow) -> None:
    await damaged(runtime, simulator, fax)
    now = runtime.services.clock.now()
    await runtime.services.ledger.write(jobs.dismiss, fax.id, now=now, reason="known")


async def unmounted(runtime: Runtime, _: Simulator, _fax: FaxRow) -> None:
    unmount(runtime)
    runtime.services.clock.advance(timedelta(seconds=2))  # type: ignore[attr-defined]


async def suspended(runtime: Runtime, simulator: Simulator, _: FaxRow) -> None:
    await suspend(runtime, simulator)


async def user_is_removed(runtime: Runtime, _: Simulator, fax: FaxRow) -> None:
    del runtime.accounts[APP].states[fax.stream]


async def config_says_never(runtime: Runtime, _: Simulator, fax: FaxRow) -> None:
    state = runtime.accounts[APP].states[fax.stream]
    state.user = replace(state.user, delete=Delete())


@pytest.mark.parametrize(
    "happens",
    [
        damaged,
        to_fetch_again,
        dismissed,
        unmounted,
        suspended,
        user_is_removed,
        config_says_never,
    ],
    ids=lambda happens: happens.__name__,
)
@pytest.mark.parametrize("when", ["before", "intended"])
async def test_whatever_speaks_against_it_keeps_a_fax(
    happens: Any, when: str, runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    fax, before = await stored(runtime, simulator)
    clock.advance(2 * DAY)
    if when == "intended":
        await runtime.services.ledger.write(errands.ask, [before], JobKind.DELETE, clock.now())
    await happens(runtime, simulator, before)
    await run_errands(runtime)
    assert not is_gone(fax)
    assert not calls(simulator, "delete")


@pytest.mark.parametrize("happens", [unmounted, suspended], ids=lambda happens: happens.__name__)
async def test_while_nothing_can_be_done_nothing_is_begun(
    happens: Any, runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    _, before = await stored(runtime, simulator)
    clock.advance(2 * DAY)
    ledger = runtime.services.ledger
    await ledger.write(errands.ask, [before], JobKind.DELETE, clock.now())
    intended = await ledger.read(errands.of_faxes, [before.id], JobKind.DELETE)
    await happens(runtime, simulator, before)
    await run_errands(runtime)
    assert await ledger.read(errands.of_faxes, [before.id], JobKind.DELETE) == intended


async def test_a_fax_that_came_broken_stays(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    broken, fax = await stored(runtime, simulator, trouble="cut-document")
    assert fax.damaged
    clock.advance(30 * DAY)
    await run_errands(runtime)
    assert not is_gone(broken)


async def test_what_was_taken_stays_unless_that_is_proof_enough(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, events: list[Event]
) -> None:
    fax, before = await stored(runtime, simulator)
    take(runtime, before)
    clock.advance(2 * DAY)
    await run_errands(runtime)
    assert not is_gone(fax)
    assert not await runtime.services.ledger.read(errands.waiting, APP)
    state = parts(runtime)[1]
    state.user = replace(state.user, delete=Delete(after=DAY, taken="delete"))
    unmount(runtime)
    clock.advance(timedelta(minutes=1))
    await run_errands(runtime)
    assert not is_gone(fax)
    mount(runtime)
    clock.advance(timedelta(minutes=1))
    await run_errands(runtime)
    assert is_gone(fax)
    assert [one.fields["proof"] for one in events if one.action == "fax-deleted"] == ["taken"]


async def test_a_clock_that_is_ahead_deletes_nothing(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    fax, _ = await stored(runtime, simulator)
    there = clock.now()
    simulator.now = lambda: there
    clock.wall += 365 * DAY  # and no time has passed
    await run_errands(runtime)
    assert not is_gone(fax)


# -- how often, and in which order -------------------------------------------------------------------


async def test_no_more_than_max_per_day_go_in_any_24_hours(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> None:
    settings = deleting(make_config(simulator.base_url), max_per_day=3)
    async with opened_runtime(settings, clock) as runtime:
        gone = [await stored(runtime, simulator, user) for user in ("user-a", "user-b") * 4]
        clock.advance(2 * DAY)
        counts = []
        for hours in (0, 12, 11.9, 0.2, 24.1):
            clock.advance(timedelta(hours=hours))
            await run_errands(runtime)
            counts.append(sum(is_gone(fax) for fax, _ in gone))
        assert counts == [3, 3, 3, 6, 8]


async def test_a_fax_that_has_already_gone_counts_as_deleted(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    fax, _ = await stored(runtime, simulator)
    simulator.delete(fax)
    clock.advance(2 * DAY)
    await run_errands(runtime)
    assert (await row(runtime, fax)).deleted_at is not None


async def test_what_could_not_be_recorded_is_asked_for_again(
    runtime: Runtime,
    simulator: Simulator,
    clock: QuickClock,
    events: list[Event],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fax, _ = await stored(runtime, simulator)
    clock.advance(2 * DAY)
    with monkeypatch.context() as patch:

        def locked(*_: Any) -> None:
            raise LedgerUnavailable("the ledger is locked")

        patch.setattr(deletions, "deleted", locked)
        await run_errands(runtime)
    assert is_gone(fax)
    assert (await row(runtime, fax)).deleted_at is None
    assert not said(events, "fax-deleted")
    clock.advance(timedelta(minutes=5))
    await run_errands(runtime)
    assert (await row(runtime, fax)).deleted_at is not None
    assert calls(simulator, "delete") == 2


@pytest.mark.parametrize("status", ["403", "409"])
async def test_a_refusal_is_reported_once_tried_again_and_left_after_a_week(
    status: str, runtime: Runtime, simulator: Simulator, clock: QuickClock, events: list[Event]
) -> None:
    fax, before = await stored(runtime, simulator)
    clock.advance(2 * DAY)
    simulator.faults = faults(f"{status}@delete=always")
    ledger = runtime.services.ledger
    await run_errands(runtime)
    pauses = []
    while await ledger.read(errands.waiting, APP):
        (errand,) = await ledger.read(errands.of_faxes, [before.id], JobKind.DELETE)
        assert errand.due is not None
        pauses.append(errand.due - clock.now())
        clock.advance(pauses[-1])
        await run_errands(runtime)
    minutes = [pause / timedelta(minutes=1) for pause in pauses]
    assert minutes[:9] == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert set(minutes[9:]) == {360}
    assert sum(pauses, timedelta(0)) < 7 * DAY + timedelta(hours=6)
    assert calls(simulator, "delete") == len(pauses) + 1
    refusals = [one for one in events if one.action == "delete-refused"]
    assert [one.fields["level"] for one in refusals] == ["warning", "error"]
    assert await ledger.read(errands.left, JobKind.DELETE) == {before.stream: 1}
    assert not await ledger.read(errands.waiting, APP)
    history = [one.outcome for one in await ledger.read(faxes.history, before.id)]
    assert history == ["stored", "not deleted at eFax", "not deleted at eFax"]
    simulator.faults = faults()
    await run_errands(runtime)
    assert not is_gone(fax)  # it is left
    await ledger.write(deletions.ask_by_hand, [await row(runtime, fax)], clock.now(), None)
    await run_errands(runtime)
    assert is_gone(fax)


async def test_an_eFax_that_fails_is_asked_later_and_no_account_is_suspended_for_it(  # noqa: N802
    runtime: Runtime, simulator: Simulator, clock: QuickClock, events: list[Event]
) -> None:
    fax, _ = await stored(runtime, simulator)
    clock.advance(2 * DAY)
    simulator.faults = faults("500@delete=always")
    for _ in range(20):
        await run_errands(runtime)
        clock.advance(timedelta(hours=12))
    assert not said(events, "account-suspended", "delete-refused")
    simulator.faults = faults()
    clock.advance(timedelta(hours=6))
    await run_errands(runtime)
    assert is_gone(fax)


async def test_deletions_continue_after_an_outage(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    fax, _ = await stored(runtime, simulator)
    clock.advance(2 * DAY)
    await suspend(runtime, simulator)
    asked = len(simulator.requests)
    await run_errands(runtime)
    assert len(simulator.requests) == asked
    await end_outage(runtime, simulator, clock)
    await run_errands(runtime)
    assert is_gone(fax)


async def test_a_proof_that_is_old_when_the_turn_comes_is_repeated(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request may wait for hours, and meanwhile the file may be damaged."""
    fax, before = await stored(runtime, simulator)
    clock.advance(2 * DAY)
    prove = Deleter._prove

    async def slow(self: Deleter, *args: Any) -> Any:
        proof = await prove(self, *args)
        attempt_later = asyncio.get_running_loop().call_soon
        attempt_later(lambda: clock.advance(timedelta(hours=2)))
        return proof

    with monkeypatch.context() as patch:
        patch.setattr(Deleter, "_prove", slow)
        await run_errands(runtime)
    assert not calls(simulator, "delete")
    other_bytes(runtime, before)
    clock.advance(timedelta(minutes=1))
    await run_errands(runtime)
    assert not calls(simulator, "delete")
    assert not is_gone(fax)


async def stored_anew(runtime: Runtime, _: Simulator, fax: FaxRow) -> None:
    other = "0" * 64
    await runtime.services.ledger.write(partial(faxes.set_fax, fax=fax.id, sha256=other))


async def storage_is_gone(runtime: Runtime, _: Simulator, _fax: FaxRow) -> None:
    runtime.services.gate.close("it hangs")


@pytest.mark.parametrize(
    "happens",
    [
        damaged,
        to_fetch_again,
        dismissed,
        stored_anew,
        storage_is_gone,
        user_is_removed,
        config_says_never,
    ],
    ids=lambda happens: happens.__name__,
)
async def test_what_happens_after_the_proof_keeps_a_fax_when_the_turn_comes(
    happens: Any,
    runtime: Runtime,
    simulator: Simulator,
    clock: QuickClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, before = await stored(runtime, simulator)
    clock.advance(2 * DAY)
    prove = Deleter._prove

    async def proved_in_vain(self: Deleter, errand: Any, state: StreamState) -> Any:
        proof = await prove(self, errand, state)
        await happens(runtime, simulator, before)
        return proof

    monkeypatch.setattr(Deleter, "_prove", proved_in_vain)
    await run_errands(runtime)
    assert not calls(simulator, "delete")


async def test_a_deletion_requested_again_meanwhile_is_left_to_the_new_request(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    """The fence: a running attempt does nothing after an operator's decision that it has not read."""
    _, before = await stored(runtime, simulator)
    clock.advance(2 * DAY)
    ledger = runtime.services.ledger
    await ledger.write(errands.ask, [before], JobKind.DELETE, clock.now())
    (old,) = await ledger.read(errands.of_faxes, [before.id], JobKind.DELETE)
    await ledger.write(deletions.ask_by_hand, [before], clock.now(), None)
    _, state = parts(runtime)
    await runtime.accounts[APP].errands._deleter.run(old, state)
    assert not calls(simulator, "delete")
    (new,) = await ledger.read(errands.of_faxes, [before.id], JobKind.DELETE)
    assert new.fence == old.fence + 1


# -- together with polls ---------------------------------------------------------------------------


async def test_a_poll_waits_for_a_deletion_and_a_deletion_for_no_poll(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    fax, _ = await stored(runtime, simulator)
    clock.advance(2 * DAY)
    with simulator.hold("delete") as held:
        deletion = asyncio.create_task(run_errands(runtime))
        await held.reached()
        asked = calls(simulator, "list")
        polling = asyncio.create_task(poll(runtime))
        for _ in range(20):
            await asyncio.sleep(0)
        assert calls(simulator, "list", "user-a") == asked
        await poll(runtime, "user-b")  # others do not wait
        held.open()
        await asyncio.gather(deletion, polling)
    assert is_gone(fax)
    assert calls(simulator, "list", "user-a") > asked


async def test_nothing_is_deleted_while_the_list_of_its_user_is_read(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    fax, _ = await stored(runtime, simulator)
    other, _ = await stored(runtime, simulator, "user-b")
    clock.advance(2 * DAY)
    with simulator.hold("list", user="user-a") as held:
        polling = asyncio.create_task(poll(runtime))
        await held.reached()
        await run_errands(runtime)
        assert not is_gone(fax)
        assert is_gone(other)
        held.open()
        await polling
    await run_errands(runtime)  # nothing was tried meanwhile, so it is due at once
    assert is_gone(fax)


async def test_a_poll_that_begins_while_a_deletion_waits_for_its_turn_goes_first(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    fax, _ = await stored(runtime, simulator)
    clock.advance(2 * DAY)
    prove = Deleter._prove

    async def poll_begins(self: Deleter, errand: Any, state: StreamState) -> Any:
        proof = await prove(self, errand, state)
        assert await state.deletions.hold(1.0)
        return proof

    with monkeypatch.context() as patch:
        patch.setattr(Deleter, "_prove", poll_begins)
        await run_errands(runtime)
    assert not calls(simulator, "delete")
    parts(runtime)[1].deletions.let_go()
    clock.advance(timedelta(seconds=10))
    await run_errands(runtime)
    assert is_gone(fax)


@pytest.mark.parametrize(
    ("page_cap", "order"),
    [(2, "newest"), (2, "oldest"), (3, "newest"), (4, "newest"), (5, "newest")],
)
async def test_no_fax_is_missed_however_long_the_pages_are(
    page_cap: int,
    order: Any,
    simulator: Simulator,
    make_config: MakeConfig,
    clock: QuickClock,
) -> None:
    """Faxes arrive, are listed and deleted at the same time; no deletion happens during a listing."""
    simulator.switches = Switches(page_cap=page_cap, order=order)
    rule = Poll(overlap=timedelta(hours=1), sweep=Sweep(timedelta(hours=1), timedelta(hours=3)))
    settings = deleting(make_config(simulator.base_url, poll=rule), after=timedelta(minutes=5))
    async with opened_runtime(settings, clock) as runtime:
        account, _ = parts(runtime)
        there: list[Fax] = []
        for turn in range(5):
            there += [
                simulator.receive(
                    APP, "user-a", completed=clock.now() - timedelta(seconds=n), distinct=False
                )
                for n in range(page_cap + turn % 3)
            ]
            begun = len(simulator.requests)
            await asyncio.gather(poll(runtime), run_errands(runtime))
            during = [one.call for one in simulator.requests[begun:]]
            lists = [n for n, call in enumerate(during) if call == "list"]
            deleted = [n for n, call in enumerate(during) if call == "delete"]
            assert not any(lists[0] < n < lists[-1] for n in deleted)
            await account.workers.run_until_idle()
            clock.advance(timedelta(minutes=4))
            await run_errands(runtime)
        rows = [await row(runtime, fax) for fax in there]
        assert {fax.state for fax in rows} == {State.STORED}
        assert sum(fax.deleted for fax in there) > len(there) // 2


# -- what eFax no longer lists ------------------------------------------------------------------------


async def test_what_was_deleted_is_not_missed_in_the_lists(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, events: list[Event]
) -> None:
    """Otherwise an account whose faxes are all deleted would be suspended: its lists have lost them."""
    gone = [(await stored(runtime, simulator, user))[0] for user in ("user-a", "user-b")]
    clock.advance(2 * DAY)
    await run_errands(runtime)
    assert all(map(is_gone, gone))
    for _ in range(20):
        clock.advance(timedelta(minutes=10))
        for user in ("user-a", "user-b"):
            assert (await poll(runtime, user)).error is None
    assert not said(events, "account-suspended", "witnesses-deleted")


async def test_nor_after_a_kill_between_the_deletion_and_its_record(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock, events: list[Event]
) -> None:
    simulator.faults = faults("404@metadata=always")  # so that metadata never tell what has gone
    settings = deleting(make_config(simulator.base_url))
    async with opened_runtime(settings, clock) as runtime:
        fax, before = await stored(runtime, simulator)
        await runtime.services.ledger.write(errands.ask, [before], JobKind.DELETE, clock.now())
    simulator.delete(fax)
    async with opened_runtime(settings, clock) as runtime:
        for _ in range(3):
            clock.advance(timedelta(minutes=10))
            assert (await poll(runtime)).error is None
    assert not said(events, "account-suspended")


async def test_the_witness_of_an_empty_list_is_not_deleted_while_it_is_asked_for(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    fax, _ = await stored(runtime, simulator)
    clock.advance(2 * DAY)
    account, state = parts(runtime)
    memory = account.errands._deleter._memory
    async with memory.lock:
        await run_errands(runtime)
        assert not is_gone(fax)
        assert [one.fax_id for one in memory.witnesses] == [fax.fax_id]
    clock.advance(timedelta(minutes=1))
    await run_errands(runtime)
    assert is_gone(fax)
    assert memory.witnesses == []
    assert not state.deletions.under_way


async def test_where_the_last_witness_goes_an_older_fax_takes_its_place(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    old, before = await stored(runtime, simulator, completed=clock.now() - timedelta(hours=3))
    new, _ = await stored(runtime, simulator, "user-b")
    memory = runtime.accounts[APP].errands._deleter._memory
    memory.witnesses = [one for one in memory.witnesses if one.fax_id == new.fax_id]
    take(runtime, before)  # so that it stays
    clock.advance(2 * DAY)
    await run_errands(runtime)
    assert [is_gone(new), is_gone(old)] == [True, False]
    assert [one.fax_id for one in memory.witnesses] == [old.fax_id]


async def test_what_eFax_has_no_more_is_not_fetched_again(  # noqa: N802
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    fax, _ = await stored(runtime, simulator)
    clock.advance(2 * DAY)
    await run_errands(runtime)
    gone = await row(runtime, fax)
    await damaged(runtime, simulator, gone)
    ledger = runtime.services.ledger
    assert await ledger.write(jobs.make_due, [gone.id], clock.now()) == 0
    assert await ledger.write(jobs.fetch_again, [gone.id], clock.now()) == []
    await dismissed(runtime, simulator, gone)
    assert await ledger.write(jobs.make_due, [gone.id], clock.now()) == 0
    assert (await row(runtime, fax)).state is State.DISMISSED


# -- the walk, and what it costs ---------------------------------------------------------------------


async def test_without_a_rule_nobody_looks_and_nothing_is_written(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> None:
    async with opened_runtime(make_config(simulator.base_url), clock) as runtime:
        fax, _ = await stored(runtime, simulator)
        clock.advance(400 * DAY)
        runner = runtime.accounts[APP].errands
        commits, asked = runtime.services.ledger.commits, len(simulator.requests)
        assert await runner.look() is None  # and then only when woken
        assert runtime.services.ledger.commits == commits
        assert len(simulator.requests) == asked
        assert not is_gone(fax)


async def test_the_service_looks_every_ten_seconds(runtime: Runtime) -> None:
    assert await runtime.accounts[APP].errands.look() == LOOK_S == 10.0


async def test_the_walk_continues_where_it_was_and_starts_over_with_another_rule(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poller.ingest.deleting._WALKED_AT_ONCE", 2)
    walked, begun_at = [], []
    real = deletions.walk

    def walk(connection: Any, place: deletions.Place, *args: Any) -> Any:
        found = real(connection, place, *args)
        walked.append(len(found))
        begun_at.append(place)
        return found

    monkeypatch.setattr(deletions, "walk", walk)
    several = [(await stored(runtime, simulator, completed=clock.now()))[0] for _ in range(5)]
    clock.advance(2 * DAY)
    for _ in range(5):
        await run_errands(runtime)
    assert all(map(is_gone, several))
    assert walked == [2, 2, 1, 0, 0]
    assert begun_at[3:] == [deletions.Place(clock.now() - DAY)] * 2  # and that is not read again
    _, state = parts(runtime)
    state.user = replace(state.user, delete=Delete(after=2 * DAY))
    await run_errands(runtime)
    assert begun_at[5:] == [deletions.Place()] * 2  # two rules now, of two users
    assert walked[5:] == [0, 0]  # the ledger skips what is deleted


async def test_a_stop_waits_for_the_answer_and_records_it(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    fax, _ = await stored(runtime, simulator)
    clock.advance(2 * DAY)
    runner = runtime.accounts[APP].errands
    with simulator.hold("delete") as held:
        running = asyncio.create_task(runner.run())
        await held.reached()
        stopping = asyncio.create_task(runner.drain(30.0))
        await asyncio.sleep(0)
        held.open()
        await stopping
        await running
    assert (await row(runtime, fax)).deleted_at is not None


async def test_a_request_that_hangs_is_cut_off_and_asked_again(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The polls of its user must not wait for it."""
    fax, _ = await stored(runtime, simulator)
    clock.advance(2 * DAY)
    monkeypatch.setattr("poller.ingest.deleting.DELETED_WITHIN_S", 0.0)
    with simulator.hold("delete"):
        await run_errands(runtime)
    assert (await row(runtime, fax)).deleted_at is None
    assert not parts(runtime)[1].deletions.under_way
    monkeypatch.undo()
    clock.advance(timedelta(minutes=5))
    await run_errands(runtime)
    assert (await row(runtime, fax)).deleted_at is not None


async def test_a_bug_in_one_deletion_stops_neither_the_others_nor_the_service(
    runtime: Runtime,
    simulator: Simulator,
    clock: QuickClock,
    events: list[Event],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bad, _ = await stored(runtime, simulator)
    good, _ = await stored(runtime, simulator, "user-b")
    clock.advance(2 * DAY)
    real = Deleter._prove

    async def prove(self: Deleter, errand: Any, state: Any) -> Any:
        if errand.fax.fax_id == bad.fax_id:
            raise ZeroDivisionError
        return await real(self, errand, state)

    monkeypatch.setattr(Deleter, "_prove", prove)
    await run_errands(runtime)
    assert [is_gone(bad), is_gone(good)] == [False, True]
    assert said(events, "internal-error") == ["internal-error"]


# -- has eFax really deleted it ------------------------------------------------------------------


async def test_nothing_is_deleted_while_its_user_is_refused_and_404_is_no_proof_then(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    """eFax answers 404 to everything for a user whom it does not know."""
    several = [await stored(runtime, simulator) for _ in range(3)]
    clock.advance(2 * DAY)
    simulator.switches = replace(simulator.switches, wrong_user="404")
    boxes = simulator.apps[APP].users
    box = boxes.pop("user-a")
    await run_errands(runtime)  # before any poll has found out
    assert {(await row(runtime, fax)).deleted_at for fax, _ in several} == {None}
    await poll(runtime)
    assert parts(runtime)[1].is_refused
    asked = calls(simulator, "delete")
    for _ in range(3):
        clock.advance(DAY / 4)
        await run_errands(runtime)
    assert calls(simulator, "delete") == asked
    ids, ledger = [before.id for _, before in several], runtime.services.ledger
    waiting = await ledger.read(errands.of_faxes, ids, JobKind.DELETE)
    clock.advance(DAY / 4)
    await run_errands(runtime)
    assert await ledger.read(errands.of_faxes, ids, JobKind.DELETE) == waiting  # none was started
    boxes["user-a"] = box
    await poll(runtime)
    clock.advance(DAY / 4)
    await run_errands(runtime)
    assert all(is_gone(fax) for fax, _ in several)


async def test_a_user_who_is_refused_while_a_deletion_waits_for_its_turn_keeps_the_fax(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stored(runtime, simulator)
    clock.advance(2 * DAY)
    prove = Deleter._prove

    async def refused(self: Deleter, errand: Any, state: StreamState) -> Any:
        proof = await prove(self, errand, state)
        state.refusal = UserRefused("no such user")
        return proof

    monkeypatch.setattr(Deleter, "_prove", refused)
    await run_errands(runtime)
    assert not calls(simulator, "delete")


async def test_404_about_a_fax_that_eFax_shows_is_a_refusal(  # noqa: N802
    runtime: Runtime, simulator: Simulator, clock: QuickClock, events: list[Event]
) -> None:
    fax, _ = await stored(runtime, simulator)
    clock.advance(2 * DAY)
    simulator.faults = faults("404@delete=always")
    await run_errands(runtime)
    assert (await row(runtime, fax)).deleted_at is None
    assert said(events, "fax-deleted", "delete-refused") == ["delete-refused"]


async def test_404_is_no_proof_while_no_list_of_the_user_is_answered(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    fax, _ = await stored(runtime, simulator)
    simulator.delete(fax)
    clock.advance(2 * DAY)
    simulator.faults = faults("403@list=always")
    await run_errands(runtime)
    assert (await row(runtime, fax)).deleted_at is None
    simulator.faults = faults()
    clock.advance(timedelta(minutes=5))
    await run_errands(runtime)
    assert (await row(runtime, fax)).deleted_at is not None


async def test_what_eFax_lists_was_not_deleted_and_can_be_fetched_again(  # noqa: N802
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    fax, before = await stored(runtime, simulator)
    ledger = runtime.services.ledger
    await ledger.write(partial(faxes.set_fax, fax=before.id, deleted_at=clock.now()))
    await poll(runtime)
    assert (await row(runtime, fax)).deleted_at is None
    history = [one.outcome for one in await ledger.read(faxes.history, before.id)]
    assert history == ["stored", "listed again"]
    await damaged(runtime, simulator, before)
    assert await ledger.write(jobs.make_due, [before.id], clock.now()) == 1


# -- one does not block the others ----------------------------------------------------------------


@pytest.fixture
def few_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poller.ingest.deleting._OPEN_AT_MOST", 5)
    monkeypatch.setattr("poller.ingest.deleting._LOOKED_AT_ONCE", 5)
    monkeypatch.setattr("poller.ingest.errand_runner._READ_AT_ONCE", 2)


@pytest.mark.usefixtures("few_open")
async def test_a_user_whose_deletions_are_refused_stops_nobody_elses(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    for _ in range(12):
        await stored(runtime, simulator)
    clock.advance(timedelta(minutes=1))
    other, _ = await stored(runtime, simulator, "user-b")
    simulator.faults = Faults(
        rules=(Fault("403", frozenset({"delete"}), user_id="user-a", probability=1.0),)
    )
    clock.advance(2 * DAY)
    await run_errands(runtime)
    assert is_gone(other)
    for _ in range(5):
        await run_errands(runtime)
    assert calls(simulator, "delete", "user-a") == 12  # nor the user's own others


@pytest.mark.usefixtures("few_open")
async def test_a_user_with_a_low_limit_blocks_no_other_and_finishes(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> None:
    async with opened_runtime(deleting(make_config(simulator.base_url)), clock) as runtime:
        _, low = parts(runtime)
        low.user = replace(low.user, delete=Delete(after=DAY, max_per_day=1))
        mine = [(await stored(runtime, simulator))[0] for _ in range(12)]
        clock.advance(timedelta(minutes=1))
        others = [(await stored(runtime, simulator, "user-b"))[0] for _ in range(3)]
        clock.advance(2 * DAY)
        await run_errands(runtime)
        await run_errands(runtime)
        assert all(map(is_gone, others))
        untried = await runtime.services.ledger.read(errands.untried, APP, JobKind.DELETE)
        assert untried == {low.id: 4}  # only this many planned deletions are written down
        low.user = replace(low.user, delete=Delete(after=DAY))
        for _ in range(5):
            await run_errands(runtime)
        assert all(map(is_gone, mine))


@pytest.mark.usefixtures("few_open")
async def test_faxes_left_out_for_lack_of_room_come_when_there_is_room(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> None:
    async with opened_runtime(deleting(make_config(simulator.base_url)), clock) as runtime:
        mine = [(await stored(runtime, simulator))[0] for _ in range(17)]
        clock.advance(2 * DAY)
        for _ in range(8):
            await run_errands(runtime)
        assert all(map(is_gone, mine))


async def test_what_the_walk_has_passed_is_looked_at_again_the_next_day(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    fax, before = await stored(runtime, simulator)
    image = image_of(runtime, before)
    away = image.with_suffix(".away")
    image.rename(away)  # somebody looks at it, or a restore is running
    clock.advance(2 * DAY)
    await run_errands(runtime)
    away.rename(image)
    clock.advance(DAY)
    await run_errands(runtime)
    assert is_gone(fax)


async def test_without_a_service_it_ends_although_the_last_one_ended_while_it_looked(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> None:
    settings = deleting(make_config(simulator.base_url), max_per_day=1)
    async with opened_runtime(settings, clock) as runtime:
        several = [(await stored(runtime, simulator))[1] for _ in range(3)]
        clock.advance(2 * DAY)
        await run_errands(runtime)
        ledger, runner = runtime.services.ledger, runtime.accounts[APP].errands
        held = await ledger.read(faxes.some, [one.id for one in several])
        await ledger.write(deletions.ask_by_hand, held, clock.now(), clock.now())
        for _ in range(20):
            await ledger.write(errands.ask, held[:1], JobKind.MARK, clock.now())
            await runner.run_until_idle()


# -- what prevents it --------------------------------------------------------------------------------


async def test_while_a_list_is_read_nothing_begins_although_something_takes_too_long() -> None:
    hold = Hold()
    assert hold.begin()
    async with hold.while_held(0.0):
        assert not hold.begin()
    assert hold.begin()


async def test_a_poll_that_waits_goes_before_the_second_try_of_a_deletion(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    fax, _ = await stored(runtime, simulator)
    clock.advance(2 * DAY)
    _, state = parts(runtime)
    claim = Deleter._claim

    async def poll_comes(self: Deleter, attempt: Any) -> None:
        await claim(self, attempt)
        state.deletions.held = True

    simulator.faults = Faults(script=("429+1",), script_calls=frozenset({"delete"}))
    with monkeypatch.context() as patch:
        patch.setattr(Deleter, "_claim", poll_comes)
        await run_errands(runtime)
    assert calls(simulator, "delete") == 1
    state.deletions.let_go()
    clock.advance(timedelta(minutes=1))
    await run_errands(runtime)
    assert is_gone(fax)


async def test_what_nobody_took_is_no_proof_where_its_directory_is_gone_too(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> None:
    """A mount below the storage is missing, or somebody restored an older state of it."""
    settings = deleting(make_config(simulator.base_url), taken="delete")
    async with opened_runtime(settings, clock) as runtime:
        fax, before = await stored(runtime, simulator)
        ledger, root = runtime.services.ledger, settings.storage.directory
        await ledger.write(errands.ask, [before], JobKind.DELETE, clock.now())
        (root / "main").rename(root.parent / "elsewhere")
        (root / "main").mkdir()
        clock.advance(2 * DAY)
        await run_errands(runtime)
        assert not is_gone(fax)


async def test_a_fax_that_was_stored_by_a_clock_that_was_behind_is_not_old(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    fax, before = await stored(runtime, simulator)
    assert before.stored_at is not None
    ledger = runtime.services.ledger
    earlier = before.stored_at - 365 * DAY
    await ledger.write(partial(faxes.set_fax, fax=before.id, stored_at=earlier))
    await run_errands(runtime)
    assert not is_gone(fax)
    clock.advance(2 * DAY)
    await run_errands(runtime)
    assert is_gone(fax)
