"""A sample of the crash points in every run, more with POLLER_EXHAUSTIVE=1.

`python -m tests.crash.explore` visits them all.
"""

import asyncio
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.crash.explore import (
    FAULTS,
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
from tests.exhaustive import EXHAUSTIVE, sample

# On one worker, so that the runs without a fault are made once.
pytestmark = pytest.mark.timeout(600)
MOMENTS = (FIRST, SECOND)
Calls = dict[Moment, list[str]]


@pytest.fixture(scope="module")
def explorers() -> Iterator[dict[str, Explorer]]:
    """One for each way of giving names."""
    shimmed()  # or skipped
    with tempfile.TemporaryDirectory(dir=in_memory()) as name:
        for way in WAYS:
            (Path(name) / way).mkdir()
        yield {way: Explorer(Path(name) / way, way) for way in WAYS}


@pytest.fixture(scope="module")
def calls(explorers: dict[str, Explorer]) -> dict[str, Calls]:
    """What the runs without a fault change on the disk, by way."""

    async def made(explorer: Explorer) -> Calls:
        return {moment: await explorer.calls_of(moment) for moment in MOMENTS}

    return {way: asyncio.run(made(explorer)) for way, explorer in explorers.items()}


def _some(points: list[Point], count: int, way: str) -> list[Point]:
    """Choose some, others for each way; all of them where all are tried."""
    return points if EXHAUSTIVE else sample(points[list(WAYS).index(way) :: len(WAYS)], count)


@pytest.mark.parametrize("way", WAYS)
def test_the_runs_make_every_kind_of_call_in_their_hundreds(
    calls: dict[str, Calls], way: str
) -> None:
    made = calls[way]
    assert sum(map(len, made.values())) > 796
    kinds = {call.split(" ")[1] for call in made[FIRST]}
    assert kinds >= {"create", "write", "pwrite", "fsync", "fdatasync", way, "unlink"}
    assert kinds >= {"mkdir", "ftruncate", "fchmod", "close"}
    # The quarantined fax keeps evidence, the damaged one its file, TIFF its name.
    paths = "\n".join([*made[FIRST], *made[SECOND]])
    assert all(part in paths for part in ("evidence/", "f-damaged.tif", "f-00.pdf", "f-late"))


@pytest.mark.parametrize("way", WAYS)
def test_a_kill_at_a_sample_of_calls_loses_doubles_and_halves_nothing(
    explorers: dict[str, Explorer], calls: dict[str, Calls], way: str
) -> None:
    points: list[Point] = []
    for moment, made in calls[way].items():
        points += _some(kills(moment, made)[7::149], 1, way)
        points += _some(around_visible(moment, made, 6), 2, way)
    reached, wrong = asyncio.run(explored(explorers[way], points))
    assert not wrong
    assert reached > len(points) * 0.7


@pytest.mark.parametrize("way", WAYS)
def test_what_is_taken_between_a_kill_and_the_next_start_is_not_delivered_again(
    explorers: dict[str, Explorer], way: str
) -> None:
    points = [
        Point(FIRST, 0, taken=True, after=After(way, ".json", nth, more))
        for nth in ((1, 2, 3) if EXHAUSTIVE else (2,))
        for more in range(4)
    ]
    points = _some(points, 2, way)
    reached, wrong = asyncio.run(explored(explorers[way], points))
    assert not wrong
    assert reached == len(points)


@pytest.mark.parametrize("way", WAYS)
def test_a_kill_during_the_recovery_from_a_kill_is_recovered_from(
    explorers: dict[str, Explorer], calls: dict[str, Calls], way: str
) -> None:
    points: list[Point] = []
    for moment, made in calls[way].items():
        points += _some(double_kills(moment, made, every=397)[1::3], 1, way)
    _, wrong = asyncio.run(explored(explorers[way], points))
    assert points
    assert not wrong


@pytest.mark.parametrize("way", WAYS)
def test_a_fault_at_a_sample_of_calls_is_survived_or_said_and_heals(
    explorers: dict[str, Explorer], calls: dict[str, Calls], way: str
) -> None:
    points: list[Point] = []
    for moment, made in calls[way].items():
        every = faults(moment, made, every_sticky=20)
        points += every[5::499] if EXHAUSTIVE else _each_kind_once(every, moment, way)
    _, wrong = asyncio.run(explored(explorers[way], points))
    assert points
    assert not wrong


def _each_kind_once(points: list[Point], moment: Moment, way: str) -> list[Point]:
    """One point of a quarter of the kinds: both moments, in both ways, have them all."""
    quarter = 2 * list(WAYS).index(way) + MOMENTS.index(moment)
    mine = [kind for at, kind in enumerate(FAULTS) if at % 4 == quarter]
    return [sample([p for p in points if p.act == kind], 1)[0] for kind in mine]


def test_a_kill_of_the_process_that_checks_documents_at_a_sample_of_calls_costs_nothing(
    explorers: dict[str, Explorer], calls: dict[str, Calls]
) -> None:
    points = [
        Point(moment, at, "child")
        for moment, made in calls["rename"].items()
        for at in sample(_while_checked(made)[::7], 1)
    ]
    _, wrong = asyncio.run(explored(explorers["rename"], points))
    assert points
    assert not wrong


def _while_checked(calls: list[str]) -> list[int]:
    """The calls just before and after a document is checked: its image is written, and then synced."""
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


@pytest.mark.parametrize("way", WAYS if EXHAUSTIVE else ["rename"])
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_found(explorers: dict[str, Explorer], name: str, way: str) -> None:
    assert _found(explorers[way], name, *PLANTED[name])


def _found(explorer: Explorer, name: str, said: str, point: Point) -> bool:
    after = point.after and replace(point.after, call=point.after.call or explorer.way)
    bug = replace(point, after=after, planted=f"tests.crash.planted:{name}")
    _, found = asyncio.run(explorer.broken(bug))
    print(*found, sep="\n")
    return any(said in one for one in found)


# -- sent faxes, and sidecars that come alone ------------------------------------------------------

HIDDEN, SHOWN = "s-error.alone", "s-error.json"


@pytest.mark.parametrize("way", WAYS)
def test_a_kill_around_a_sidecar_alone_loses_doubles_and_halves_nothing(
    explorers: dict[str, Explorer], way: str
) -> None:
    calls = asyncio.run(explorers[way].calls_of(SENT))
    assert all(any(name in call for call in calls) for name in (HIDDEN, SHOWN, "s-image.pdf"))
    names = (HIDDEN, SHOWN) if way == "rename" else (SHOWN,)
    points = [
        Point(SENT, 0, after=After(way, name, 1, more)) for name in names for more in (0, 1, 3)
    ]
    points = _some(points, 2, way)
    reached, wrong = asyncio.run(explored(explorers[way], points))
    assert not wrong
    assert reached == len(points)


def test_a_sidecar_alone_that_is_taken_after_a_kill_is_not_delivered_again(
    explorers: dict[str, Explorer],
) -> None:
    points = [
        Point(SENT, 0, taken=True, after=After("rename", SHOWN, 1, more))
        for more in sample((0, 1, 3), 2)
    ]
    reached, wrong = asyncio.run(explored(explorers["rename"], points))
    assert not wrong
    assert reached == len(points)


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
def test_a_planted_bug_of_a_sidecar_alone_is_found(
    explorers: dict[str, Explorer], name: str
) -> None:
    assert _found(explorers["rename"], name, *PLANTED_ALONE[name])
