"""A sample of the crash points in every run; `python -m tests.crash.explore` visits all of them."""

import asyncio
import tempfile
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.crash.explore import (
    WAYS,
    Explorer,
    Point,
    around_visible,
    double_kills,
    explored,
    faults,
    in_memory,
    kills,
)
from tests.crash.runs import After, shimmed
from tests.crash.scenario import FIRST, SECOND, SENT, Moment

pytestmark = pytest.mark.timeout(600)
MOMENTS = (FIRST, SECOND)
Calls = dict[Moment, list[str]]


def _explore(
    work: Callable[[Explorer, Calls], Coroutine[Any, Any, None]], way: str = "rename"
) -> None:
    async def with_its_calls(explorer: Explorer) -> None:
        await work(explorer, {moment: await explorer.calls_of(moment) for moment in MOMENTS})

    _explored(with_its_calls, way)


def _explored(work: Callable[[Explorer], Coroutine[Any, Any, None]], way: str = "rename") -> None:
    async def all_of_it() -> None:
        with tempfile.TemporaryDirectory(dir=in_memory()) as name:
            await work(Explorer(Path(name), way))

    shimmed()  # or skipped
    asyncio.run(all_of_it())


@pytest.mark.parametrize("way", WAYS)
def test_the_runs_make_every_kind_of_call_in_their_hundreds(way: str) -> None:
    async def look(_: Explorer, calls: Calls) -> None:
        assert sum(map(len, calls.values())) > 796
        kinds = {call.split(" ")[1] for call in calls[FIRST]}
        assert kinds >= {"create", "write", "pwrite", "fsync", "fdatasync", way, "unlink"}
        assert kinds >= {"mkdir", "ftruncate", "fchmod", "close"}
        # The quarantined fax keeps evidence, the damaged one its file, TIFF its name.
        paths = "\n".join([*calls[FIRST], *calls[SECOND]])
        assert all(part in paths for part in ("evidence/", "f-damaged.tif", "f-00.pdf", "f-late"))

    _explore(look, way)


@pytest.mark.parametrize("way", WAYS)
def test_a_kill_at_a_sample_of_calls_loses_doubles_and_halves_nothing(way: str) -> None:
    async def look(explorer: Explorer, calls: Calls) -> None:
        points = [point for moment in MOMENTS for point in kills(moment, calls[moment])[7::149]]
        for moment in MOMENTS:
            points += around_visible(moment, calls[moment], 6)
        reached, wrong = await explored(explorer, points)
        assert not wrong
        assert reached > len(points) * 0.8

    _explore(look, way)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_taken_between_a_kill_and_the_next_start_is_not_delivered_again(
    way: str,
) -> None:
    async def look(explorer: Explorer) -> None:
        points = [
            Point(FIRST, 0, taken=True, after=After(way, ".json", nth, more))
            for nth in (1, 2, 3)
            for more in range(4)
        ]
        reached, wrong = await explored(explorer, points)
        assert not wrong
        assert reached == len(points)

    _explored(look, way)


@pytest.mark.parametrize("way", WAYS)
def test_a_kill_during_the_recovery_from_a_kill_is_recovered_from(way: str) -> None:
    async def look(explorer: Explorer, calls: Calls) -> None:
        points = [p for m in MOMENTS for p in double_kills(m, calls[m], every=397)[1::3]]
        _, wrong = await explored(explorer, points)
        assert not wrong

    _explore(look, way)


@pytest.mark.parametrize("way", WAYS)
def test_a_fault_at_a_sample_of_calls_is_survived_or_said_and_heals(way: str) -> None:
    async def look(explorer: Explorer, calls: Calls) -> None:
        points = [p for m in MOMENTS for p in faults(m, calls[m], every_sticky=20)[5::499]]
        _, wrong = await explored(explorer, points)
        assert not wrong

    _explore(look, way)


def test_a_kill_of_the_process_that_checks_documents_at_a_sample_of_calls_costs_nothing() -> None:
    async def look(explorer: Explorer, calls: Calls) -> None:
        points = [Point(m, at, "child") for m in MOMENTS for at in _while_checked(calls[m])[::7]]
        _, wrong = await explored(explorer, points)
        assert points
        assert not wrong

    _explore(look)


def _while_checked(calls: list[str]) -> list[int]:
    """The calls around a document check: the image is written, and then synced."""
    split = [call.split(" ", 2) for call in calls]
    return [
        int(n) for n, kind, path in split if kind in ("write", "fsync") and "/faxes/main" in path
    ]


SIDECAR = After("", ".json")  # gets its name by that way's call

# A planted bug, where to break the run, and what the checker then says.
PLANTED = {
    "row_before_link": ("lost:", Point(FIRST, 0, after=SIDECAR)),
    "ticket_believed": ("lost:", Point(FIRST, 0, after=SIDECAR)),
    "never_resumed": ("again:", Point(FIRST, 0, after=replace(SIDECAR, more=1))),
    "published_before_the_ticket": (
        "again:",
        Point(FIRST, 0, after=replace(SIDECAR, more=1), taken=True),
    ),
    "visible_while_written": ("bytes:", Point(FIRST, 0, after=After("write", "/faxes/main"))),
    "page_forgotten": ("coverage:", Point(FIRST, 0, act="")),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_found(name: str, way: str) -> None:
    _is_found(name, way, *PLANTED[name])


def _is_found(name: str, way: str, said: str, point: Point) -> None:
    after = point.after and replace(point.after, call=point.after.call or way)

    async def look(explorer: Explorer) -> None:
        bug = replace(point, after=after, planted=f"tests.crash.planted:{name}")
        _, found = await explorer.broken(bug)
        assert any(said in one for one in found), found

    _explored(look, way)


# -- sent faxes, and sidecars that come alone ------------------------------------------------------

HIDDEN, SHOWN = "s-error.alone", "s-error.json"


@pytest.mark.parametrize("way", WAYS)
def test_a_kill_around_a_sidecar_alone_loses_doubles_and_halves_nothing(
    way: str,
) -> None:
    async def look(explorer: Explorer) -> None:
        calls = await explorer.calls_of(SENT)
        assert all(any(name in call for call in calls) for name in (HIDDEN, SHOWN, "s-image.pdf"))
        names = (HIDDEN, SHOWN) if way == "rename" else (SHOWN,)
        points = [
            Point(SENT, 0, after=After(way, name, 1, more)) for name in names for more in (0, 1, 3)
        ]
        reached, wrong = await explored(explorer, points)
        assert not wrong
        assert reached == len(points)

    _explored(look, way)


def test_a_sidecar_alone_that_is_taken_after_a_kill_is_not_delivered_again() -> None:
    async def look(explorer: Explorer) -> None:
        points = [
            Point(SENT, 0, taken=True, after=After("rename", SHOWN, 1, more)) for more in (0, 1, 3)
        ]
        reached, wrong = await explored(explorer, points)
        assert not wrong
        assert reached == len(points)

    _explored(look)


PLANTED_ALONE = {
    "row_before_link": ("lost:", Point(SENT, 0, after=After("", SHOWN))),
    "ticket_believed": ("lost:", Point(SENT, 0, after=After("", SHOWN))),
    "hidden_ones_swept": ("lost:", Point(SENT, 0, after=After("", SHOWN))),
    "published_before_the_ticket": (
        "again:",
        Point(SENT, 0, after=After("", SHOWN, more=1), taken=True),
    ),
}


@pytest.mark.parametrize("name", PLANTED_ALONE)
def test_a_planted_bug_of_a_sidecar_alone_is_found(name: str) -> None:
    _is_found(name, "rename", *PLANTED_ALONE[name])
