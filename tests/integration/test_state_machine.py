"""The state machine, the same short run every time, and what it finds when poller has a bug.

`python -m tests.integration.state_machine` is the long run.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis.stateful import run_state_machine_as_test

from poller import deletion
from poller.ingest.empties import EmptyLists
from poller.ingest.reading import ListReader, Read
from poller.ingest.slices import SliceLister
from poller.ingest.spelling import Spelling
from poller.ingest.stream_state import StreamState
from poller.ledger import faxes
from poller.listing import Listing, Step
from poller.progress import Covered
from poller.store import publish
from poller.window import Interval, Slice
from tests.exhaustive import EXHAUSTIVE
from tests.integration.state_machine import (
    STEPS,
    DeletingMachine,
    KeepingMachine,
    PollerMachine,
    fixed,
)

Patch = pytest.MonkeyPatch


@pytest.mark.timeout(3600 if EXHAUSTIVE else 600)
def test_nothing_is_lost_doubled_or_half_shown_whatever_happens() -> None:
    run_state_machine_as_test(
        PollerMachine, settings=fixed(examples=200 if EXHAUSTIVE else 5, steps=25)
    )


# -- planted bugs ------------------------------------------------------------------------------


def coverage_before_the_last_page(patch: Patch) -> None:
    real = ListReader.read

    async def read(self: ListReader, state: StreamState, piece: Slice, bounds: Interval) -> Read:
        await self._ledger.write(
            faxes.record_page,
            state.id,
            faxes.ListedPage([], window=None, found_by="", now=bounds.end, covers=piece.interval),
        )
        return await real(self, state, piece, bounds)

    patch.setattr(ListReader, "read", read)


def new_decided_by_image_downloaded(patch: Patch) -> None:
    real = ListReader._record

    async def record(self: ListReader, state: Any, page: Any, *rest: Any) -> Any:
        unread = tuple(fax for fax in page.faxes if not fax.raw.get("image_downloaded"))
        return await real(self, state, replace(page, faxes=unread), *rest)

    patch.setattr(ListReader, "_record", record)


def watermark_advanced_by_a_failed_listing(patch: Patch) -> None:
    real = SliceLister.list_halving

    async def list_halving(self: SliceLister, state: StreamState, whole: Slice, run: Any) -> bool:
        try:
            return await real(self, state, whole, run)
        except Exception:
            await state.ledger.write(
                faxes.record_page,
                state.id,
                faxes.ListedPage([], window=None, found_by="", now=run.now, covers=whole.interval),
            )
            raise

    patch.setattr(SliceLister, "list_halving", list_halving)


def stored_without_the_file(patch: Patch) -> None:
    patch.setattr(publish, "publish", lambda *_: True)


def empty_lists_believed(patch: Patch) -> None:
    async def cover(_self: EmptyLists, state: StreamState, covers: Interval) -> None:
        await state.record_soon(Covered(covers))

    async def believe(*_: Any, **__: Any) -> None:
        return

    patch.setattr(EmptyLists, "cover", cover)
    patch.setattr(Spelling, "believe", believe)


def shifted_list_taken_for_whole(patch: Patch) -> None:
    patch.setattr(Listing, "_again", lambda _self: Step.DONE)


PLANTED: tuple[Callable[[Patch], None], ...] = (
    coverage_before_the_last_page,
    empty_lists_believed,
    stored_without_the_file,
)


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_planted_bug_is_found(plant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    """By one walk: the examples change with each constant in the code, and may meet it late."""
    _walk()
    plant(monkeypatch)

    with pytest.raises(AssertionError):
        _walk()


@pytest.mark.skipif(not EXHAUSTIVE, reason="it looks for minutes")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_examples_find_a_planted_bug(plant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    plant(monkeypatch)

    with pytest.raises(AssertionError):
        run_state_machine_as_test(PollerMachine, settings=fixed(examples=600, steps=25))


def _walk() -> None:
    """A list that breaks off, and an eFax that forgets what it had listed."""
    machine = PollerMachine()
    try:
        machine.install(two_accounts=False, dates=True, page_cap=1, archive="none")
        for _ in range(3):
            machine.many_arrive_at_once(user=0, count=2, then=False)
            machine.calls_will_fail(script=[None, "500", "500", "500"], calls=("list",), then=True)
            machine.promises_are_kept()
            machine.efax_is_well(then=True)
            machine.promises_are_kept()
        machine.efax_answers_with_nothing(effect="zero-200", user=0, polls=3)
        machine.promises_are_kept()
    finally:
        machine.is_well = False
        machine.teardown()


@pytest.mark.timeout(3600 if EXHAUSTIVE else 600)
@pytest.mark.parametrize("machine", [DeletingMachine, KeepingMachine])
def test_nothing_is_deleted_of_which_no_good_copy_exists(machine: type[PollerMachine]) -> None:
    run_state_machine_as_test(machine, settings=fixed(examples=50 if EXHAUSTIVE else 2, steps=25))


@pytest.mark.timeout(600)
def test_a_kill_at_any_step_of_a_deletion_ends_well() -> None:
    """Before each step that changes disk or ledger, and after each commit whose caller never hears of it."""
    killed = 0
    for step in range(1, 40):
        before = STEPS["deaths"]
        _kill_while_deleting(step)
        if STEPS["deaths"] == before:
            break
        killed = step
    assert killed > 3  # intention and outcome, each before and after


def _kill_while_deleting(step: int) -> None:
    machine = DeletingMachine()
    try:
        machine.install(two_accounts=False, dates=True, page_cap=3, archive="none")
        now = machine.world.clocks.true
        fax = machine.world.efax.receive("app-1", "user-a", completed=now, fax_id="old")
        machine.poll_regularly(count=1)
        machine.promises_are_kept()
        machine.time_passes(by=timedelta(hours=3))
        machine.errands_are_run(by=timedelta(0), crash=step)
        machine.promises_are_kept()
        machine.poll_regularly(count=2)  # which also tells eFax's time
        machine.promises_are_kept()
        assert fax.deleted
        assert machine.book.faxes["app-1", "user-a", "old"].deleted
    finally:
        machine.is_well = False
        machine.teardown()


def test_a_deletion_without_proof_is_found(monkeypatch: Patch) -> None:
    """Of a fax that a consumer has taken; by one walk, as above."""
    _let_a_taken_fax_grow_old()
    monkeypatch.setattr(deletion, "why_unproved", lambda *_: None)

    with pytest.raises(AssertionError, match="was deleted at eFax"):
        _let_a_taken_fax_grow_old()


def _let_a_taken_fax_grow_old() -> None:
    machine = KeepingMachine()
    try:
        machine.install(two_accounts=False, dates=True, page_cap=3, archive="none")
        machine.a_fax_grows_old(user=0, trouble=None, take=True)
        machine.errands_are_run(by=timedelta(0), crash=None)
        machine.promises_are_kept()
    finally:
        machine.is_well = False
        machine.teardown()
