"""A sample of checks 1, 2, 3 and 6 of several nodes; all steps and cuts with `POLLER_EXHAUSTIVE=1`."""

import pytest

from tests.cluster import checks_of_cuts, checks_of_stops, checks_of_stores
from tests.cluster.altered import named
from tests.cluster.checks import Kind, Trial
from tests.cluster.checks_of_kills import killed_under_load
from tests.cluster.judge import Verdict
from tests.cluster.lab import opened_lab
from tests.exhaustive import EXHAUSTIVE
from tests.s3 import s3_url

__all__ = ["s3_url"]
pytestmark = pytest.mark.timeout(7200 if EXHAUSTIVE else 300)


@pytest.fixture(autouse=True)
def one_store_for_all(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLER_TEST_S3", s3_url)


def passed(verdict: Verdict) -> bool:
    assert verdict.faults == [], verdict.figures
    return True


async def test_others_take_over_when_a_node_is_killed_under_load(postgres_url: str) -> None:
    async with opened_lab(accounts=2, users=1, url=postgres_url) as lab:
        for name in "ab":
            await lab.node(name, prepare=named("short_leases"))
        assert passed(await killed_under_load(lab, Trial("directory", seconds=1.0)))


@pytest.mark.parametrize("store", ["directory", "bucket"])
async def test_node_that_is_stopped_at_a_step_and_wakes_delivers_nothing_twice(
    postgres_url: str, store: Kind
) -> None:
    wanted = None if EXHAUSTIVE else 2
    assert passed(await checks_of_stops.stopped_at_steps(store, wanted=wanted, url=postgres_url))


@pytest.mark.skipif(not EXHAUSTIVE, reason="takes minutes; runs with POLLER_EXHAUSTIVE=1")
@pytest.mark.parametrize("store", ["directory", "bucket"])
async def test_planted_faults_are_found(store: Kind) -> None:
    assert passed(await checks_of_stops.plants_found(Trial(store)))


async def test_node_that_is_cut_off_from_the_database_is_replaced_and_comes_back() -> None:
    wanted = [] if EXHAUSTIVE else ["database in"]
    assert passed(await checks_of_cuts.in_a_namespace("directory", 2.0, *wanted))


async def test_bucket_that_ignores_conditions_or_sums_is_refused(postgres_url: str) -> None:
    assert passed(await checks_of_stores.refused(postgres_url))
