"""Receiving works with every pair of values of eFax's open points; a sample with some of the pairs."""

import asyncio
from datetime import timedelta
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from poller.simulator import Faults, Simulator, Switches
from poller.simulator.state import Fax
from tests.acceptance.installation import APP, USERS, Installation, assert_stored, populated
from tests.exhaustive import sample
from tests.pairs import Row, of_receiving, pairwise

# Nobody wants to wait as long as `table()` has them; they only must not be over at once.
_SHORT = {"late_visible_s": (0.0, 1.0), "image_not_yet_s": (0.0, 2.0)}
# Besides the switches: the requested formats, and a trouble so that errors are read at all.
_OURS: dict[str, tuple[Any, ...]] = {
    "format": ("pdf", "tiff"),
    "trouble": (None, "500@image=first:1", "429@list=first:1", "reset@image=first:2"),
}
_START = "3d"
# longer ago than the five minutes that a server without Date headers costs
_RECENT = timedelta(minutes=10)


def table() -> dict[str, tuple[Any, ...]]:
    return of_receiving() | _SHORT | _OURS


ROWS = list(pairwise(table()))


def test_the_rows_hold_every_pair_of_values() -> None:
    parameters = table()
    for one, other in combinations(parameters, 2):
        met = {(row[one], row[other]) for row in ROWS}
        assert met == {(a, b) for a in parameters[one] for b in parameters[other]}
    assert set(of_receiving()) < set(parameters)


@pytest.mark.parametrize(
    "row", sample([pytest.param(row, id=f"{n:02}") for n, row in enumerate(ROWS)], 15)
)
async def test_each_fax_is_stored_once_however_the_server_behaves(row: Row, tmp_path: Path) -> None:
    print(row)
    simulator = populated(Simulator(switches=switches(row), seed=len(str(row))))
    if row["trouble"] is not None:
        simulator.faults = Faults.of(row["trouble"])
    receive(simulator, row)
    changes = {"poll": {"start": _START}, "image": {"format": row["format"]}}
    async with simulator:
        installation = Installation(tmp_path, simulator.base_url, changes)
        await fetch_all(installation, simulator)
        assert_stored(installation, simulator)
        downloads = simulator.downloads.total()
        summary = await installation.once()
        assert simulator.downloads.total() == downloads
        assert summary["discovered"] == summary["stored"] == summary["pending"] == 0


def switches(row: Row) -> Switches:
    return Switches(**{name: value for name, value in row.items() if name not in _OURS})


def receive(simulator: Simulator, row: Row) -> None:
    """Six faxes for each of two users, spread over three days.

    Three arrive in the same second, unless pages cannot be turned: then a slice shows only one
    whole fax. Leaves out what a server refuses to list because of its age.
    """
    spread = [timedelta(hours=hours) for hours in (12, 30, 41, 52, 65)]
    if row["paging_headers"] == "used":
        moment = timedelta(hours=12)
        spread[:3] = [moment, moment + timedelta(milliseconds=3), moment - timedelta(minutes=3)]
    if row["oldest_window_s"] is not None:
        spread[3:] = [timedelta(hours=20), timedelta(hours=46)]
        spread = sorted(set(spread))
    now = simulator.now().replace(microsecond=500_000)
    for user_id in USERS.values():
        for number, age in enumerate(spread):
            simulator.receive(
                APP, user_id, completed=now - age, distinct=False, pages=1 + number % 2
            )
        visible = simulator.now() + timedelta(seconds=row["late_visible_s"])
        simulator.receive(APP, user_id, completed=now - _RECENT, visible_at=visible, distinct=False)


async def fetch_all(installation: Installation, simulator: Simulator) -> None:
    """Run `once`, and again if something was not available the first time."""
    await installation.once()
    late = [fax for fax in simulator.faxes() if fax not in simulator.downloads]
    if not late:
        return
    assert all(_takes_its_time(simulator, fax) for fax in late), late
    not_yet = timedelta(seconds=simulator.switches.image_not_yet_s)
    ready = max(fax.visible_at for fax in late) + not_yet
    await asyncio.sleep(max(0.0, (ready - simulator.now()).total_seconds()))
    known = {str(seen.fax_id).lower() for seen in simulator.requests if seen.call == "image"}
    if due := [fax.fax_id for fax in late if fax.fax_id in known]:
        done = await installation.poller("retry", *due)
        assert done.code == 0, done
    await installation.once()


def _takes_its_time(simulator: Simulator, fax: Fax) -> bool:
    waits = simulator.switches.late_visible_s or simulator.switches.image_not_yet_s
    return bool(waits) and simulator.now() - fax.completed < timedelta(hours=1)
