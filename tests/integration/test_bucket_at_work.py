"""An installation whose faxes go to a bucket: fetched once, taken, fetched again, and while it is away."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from poller.config.model import Config, StorageConfig
from poller.ingest.runtime import Runtime, open_runtime
from poller.ledger import State
from poller.metrics import Metrics
from poller.store.bucket_calls import Objects
from poller.store.bucket_errors import unanswered
from tests import s3
from tests.conftest import APP, KEY, Event, MakeConfig, QuickClock
from tests.efax import Simulator
from tests.integration.at_work import fetch, listed, row, said
from tests.s3 import bucket, s3_url

__all__ = ["bucket", "s3_url"]


@pytest.fixture
def front(s3_url: str) -> Iterator[s3.Front]:
    with s3.lacking("", s3_url) as front:
        yield front


@pytest.fixture
def settings(
    simulator: Simulator, make_config: MakeConfig, bucket: StorageConfig, front: s3.Front
) -> Config:
    return make_config(simulator.base_url, storage=replace(bucket, endpoint=front.url))


@pytest.fixture
async def at_work(settings: Config, clock: QuickClock) -> AsyncIterator[Runtime]:
    environ = {"KEY": KEY} | s3.ENVIRON
    metrics = Metrics("test")
    async with open_runtime(
        settings, environ, metrics=metrics, clock=clock, random=lambda: 0.5
    ) as runtime:
        yield runtime


async def test_fax_goes_to_the_bucket_and_is_not_fetched_again_once_it_was_taken(
    at_work: Runtime, settings: Config, simulator: Simulator, clock: QuickClock
) -> None:
    fax, _ = await listed(at_work, simulator)
    await fetch(at_work, fax)
    stored = await row(at_work, fax)
    assert stored.state is State.STORED
    assert stored.file is not None
    assert set(s3.visible(settings.storage)) == {stored.file, f"{stored.path}.json"}
    assert list((settings.state_directory / "spool").iterdir()) == []
    s3.take(settings.storage, stored.file, f"{stored.path}.json")
    for state in at_work.states:
        await at_work.accounts[APP].poll(state)
    await at_work.accounts[APP].workers.run_until_idle()
    assert s3.objects(settings.storage) == {}
    assert sum(simulator.downloads.values()) == 1


async def test_store_that_is_away_shuts_the_gate_and_its_return_opens_it(
    at_work: Runtime,
    settings: Config,
    simulator: Simulator,
    front: s3.Front,
    clock: QuickClock,
    events: list[Event],
) -> None:
    fax, _ = await listed(at_work, simulator)
    front.lacks = "503"
    clock.advance(timedelta(minutes=5))
    await at_work.accounts[APP].workers.run_until_idle()
    assert not simulator.downloads
    assert (await row(at_work, fax)).failures == 0
    assert "answers 503" in str(at_work.services.gate.reason)
    front.lacks = ""
    clock.advance(timedelta(minutes=5))
    await at_work.accounts[APP].workers.run_until_idle()
    assert (await row(at_work, fax)).state is State.STORED
    assert said(events, "storage-unusable", "storage-usable") == [
        "storage-unusable",
        "storage-usable",
    ]


async def test_answer_that_is_lost_when_the_fax_is_published_costs_no_second_download(
    at_work: Runtime,
    settings: Config,
    simulator: Simulator,
    clock: QuickClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    complete = Objects.complete
    lost: list[Any] = []

    def lose(self: Objects, *given: Any) -> Any:
        ended = complete(self, *given)
        if not lost:
            lost.append(ended)
            (stored,) = (name for name in s3.visible(settings.storage) if name.endswith(".pdf"))
            s3.take(settings.storage, stored, stored.replace(".pdf", ".json"))
            raise unanswered("s3://faxes", TimeoutError())
        return ended

    monkeypatch.setattr(Objects, "complete", lose)
    fax, _ = await listed(at_work, simulator)
    await fetch(at_work, fax)
    assert (await row(at_work, fax)).staged is not None
    clock.advance(timedelta(hours=1))
    await at_work.accounts[APP].workers.run_until_idle()
    assert (await row(at_work, fax)).state is State.STORED
    assert s3.objects(settings.storage) == {}
    assert sum(simulator.downloads.values()) == 1
