"""Deleting at eFax: what goes, what stays, and that nobody misses a fax by it."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from poller.config.model import Config, Delete
from poller.ingest.runtime import Runtime
from poller.ledger import FaxRow, errands, faxes
from poller.simulator.state import Fax
from tests.conftest import APP, Event, MakeConfig, QuickClock, opened_runtime
from tests.efax import Simulator
from tests.integration.at_work import (
    listed,
    parts,
    row,
    said,
)

DAY = timedelta(days=1)
WEEK = timedelta(days=7)


def deleting(settings: Config, **changes: Any) -> Config:
    """The same configuration, in which every user has this `delete`."""
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
    fax, _ = await listed(runtime, simulator, user, **fields)
    await parts(runtime, user)[0].workers.run_until_idle()
    return fax, await row(runtime, fax)


def is_gone(fax: Fax) -> bool:
    return fax.deleted


async def run_errands(runtime: Runtime) -> None:
    """What the service does every ten seconds, to its end."""
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
