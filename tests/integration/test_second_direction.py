"""A user's second stream is a value: windows, listing and coverage need to know nothing of it.

The direction is made up, and what eFax lists of it is what it lists as received.
"""

from collections.abc import AsyncIterator
from datetime import timedelta
from enum import StrEnum
from typing import Any

import pytest

from poller.config.model import Poll
from poller.ingest.runtime import Runtime
from poller.ingest.stream_state import StreamState, load_streams
from poller.ledger import faxes, fold, streams, tables
from poller.progress import NotPolled
from poller.simulator import Simulator, Switches
from poller.stream import Direction
from poller.window import Interval
from tests.conftest import APP, MakeConfig, QuickClock, opened_runtime
from tests.integration.at_work import parts, settled

DAY = timedelta(days=1)


class MadeUp(StrEnum):
    OTHER = "other"


OTHER: Any = MadeUp.OTHER


@pytest.fixture
async def runtime(
    simulator: Simulator,
    make_config: MakeConfig,
    clock: QuickClock,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Runtime]:
    poll = Poll(start=timedelta(days=3))
    settings = make_config(simulator.base_url, users=("user-a",), poll=poll)
    read = tables.Word.process_result_value

    def known(word: tables.Word, value: Any, dialect: Any) -> Any:
        return OTHER if value == OTHER else read(word, value, dialect)

    monkeypatch.setattr(tables.Word, "process_result_value", known)
    async with opened_runtime(settings, clock) as opened:
        yield opened


async def both(runtime: Runtime) -> tuple[StreamState, StreamState]:
    """The user's received faxes, and its stream of the other direction, at work beside it."""
    _, received = parts(runtime)
    user, ledger = received.user, runtime.services.ledger
    identity = (user.app_id, user.user_id, user.account, user.name)
    (row,) = await ledger.write(streams.sync, [identity], runtime.services.clock.now(), OTHER)
    (other,) = await load_streams(ledger, [(user, row.id)])
    runtime.accounts[APP].states[row.id] = other
    return received, other


async def test_streams_of_one_user_are_polled_each_by_itself(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    received, other = await both(runtime)
    account, ledger = runtime.accounts[APP], runtime.services.ledger
    assert other.id != received.id
    fax = simulator.receive(APP, "user-a", completed=clock.now() - timedelta(minutes=1))
    untouched = other.progress
    assert [row.stream for row in (await account.poll(received)).discovered] == [received.id]
    assert await ledger.progress(other.id) == other.progress == untouched
    assert other.progress.watermark is None

    clock.advance(timedelta(hours=7))
    simulator.switches = Switches(oldest_window_s=2 * 86_400.0)
    before = received.progress
    outcome = await account.poll(other)
    assert [(row.stream, row.fax_id) for row in outcome.discovered] == [(other.id, fax.fax_id)]
    assert other.progress.failed_gaps
    assert other.progress.failed_slices
    assert other.progress.deep_sweep_end != before.deep_sweep_end
    assert await ledger.progress(received.id) == received.progress == before
    assert not before.gaps

    one, two = await ledger.read(faxes.find, fax.fax_id)
    assert {one.stream, two.stream} == {received.id, other.id}
    assert one.path != two.path
    rows = {row.id: row for row in await ledger.read(streams.all_streams)}
    for id_, direction in ((received.id, Direction.RECEIVED), (other.id, OTHER)):
        assert (rows[id_].direction, rows[id_].discovered, rows[id_].pending) == (direction, 1, 1)
    await settled(account)


async def test_what_is_decided_of_one_stream_leaves_the_others_of_its_user_alone(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    received, other = await both(runtime)
    account, ledger = runtime.accounts[APP], runtime.services.ledger
    simulator.switches = Switches(oldest_window_s=2 * 86_400.0)
    for state in (received, other):
        assert not (await account.poll(state)).failed
    before = received.progress
    bounds = Interval(clock.now() - 60 * DAY, clock.now())
    assert await ledger.write(fold.dismiss_gap, other.id, bounds, "not needed")
    await other.record(NotPolled(clock.now(), "refused", clock.now() + DAY))
    assert (await account.poll(other)).skipped == "the user is refused"
    assert not other.progress.failed_gaps
    clock.advance(timedelta(minutes=1))
    assert not (await account.poll(received)).failed
    assert await ledger.progress(received.id) == received.progress
    assert received.progress.failed_gaps == before.failed_gaps != ()
    assert received.progress.refusals == 0
    assert received.progress.watermark == before.watermark
