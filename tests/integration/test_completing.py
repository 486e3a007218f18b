"""A received fax with an incomplete record: poller asks once, and never waits for the answer."""

import json
from datetime import timedelta
from typing import Any

import pytest

from poller.client import Timeouts
from poller.ingest.fetch import Outcome
from poller.ingest.runtime import Runtime, open_runtime
from poller.ledger import FaxRow, State
from poller.metrics import Metrics
from poller.pacing import Kind
from poller.simulator import Simulator, Switches, replies
from poller.simulator.state import Fax
from tests.conftest import KEY, MakeConfig, QuickClock
from tests.integration.at_work import calls, faults, fetch, listed, parts, row

MINUTE = timedelta(minutes=1)
TOLD = (
    "completed_timestamp",
    "pages",
    "originating_fax_number",
    "destination_fax_number",
)


async def discovered(
    runtime: Runtime, simulator: Simulator, *missing: str, **fields: Any
) -> tuple[Fax, FaxRow]:
    """Let a fax arrive whose record lacks these; do not count what an account asks at its first poll."""
    found = await listed(runtime, simulator, fields=dict.fromkeys(missing), **fields)
    simulator.requests.clear()
    return found


def content(runtime: Runtime) -> dict[str, Any]:
    (file,) = runtime.config.storage.directory.rglob("*.json")
    read: dict[str, Any] = json.loads(file.read_bytes())
    return read


async def test_record_that_has_everything_costs_no_request(
    runtime: Runtime, simulator: Simulator
) -> None:
    fax, _ = await discovered(runtime, simulator)
    assert await fetch(runtime, fax) is Outcome.STORED
    assert calls(simulator, "metadata") == 0


@pytest.mark.parametrize("name", TOLD)
async def test_each_thing_that_a_list_leaves_out_is_asked_for_once(
    runtime: Runtime, simulator: Simulator, name: str
) -> None:
    fax, found = await discovered(runtime, simulator, name, pages=2)
    assert await fetch(runtime, fax) is Outcome.STORED
    assert calls(simulator, "metadata") == 1
    sidecar = content(runtime)
    assert set(TOLD) <= sidecar["metadata"].keys()
    assert sidecar["metadata"]["direction"] == "INBOUND"
    assert sidecar["metadata"]["image_downloaded"] is False
    assert sidecar["received_at"] == f"{fax.completed:%Y-%m-%dT%H:%M:%S}.000Z"
    assert sidecar["image"]["listed_pages"] == 2
    known = await row(runtime, fax)
    assert (known.listed, known.received_at) == (sidecar["metadata"], fax.completed)
    assert (known.path, known.state) == (found.path, State.STORED)


async def test_lists_of_ids_alone_give_whole_sidecars_under_the_path_of_discovery(
    runtime: Runtime, simulator: Simulator
) -> None:
    simulator.switches = Switches(list_fields="only-id")
    fax, found = await discovered(runtime, simulator, completed=simulator.now() - timedelta(days=2))
    assert await fetch(runtime, fax) is Outcome.STORED
    sidecar = content(runtime)
    assert set(TOLD) <= sidecar["metadata"].keys()
    assert sidecar["received_at"] == f"{fax.completed:%Y-%m-%dT%H:%M:%S}.000Z"
    assert f"{found.first_seen_at:/%Y/%m/%d/}" in found.path
    assert (await row(runtime, fax)).file == found.path + ".pdf"
    assert "image_downloaded" not in sidecar["metadata"]  # by then we may have done so


@pytest.mark.parametrize(
    "effect", ["404", "403", "500", "503", "429", "reset", "html-200", "bad-json", "errors-200"]
)
async def test_answer_that_fails_holds_no_fax_back(
    runtime: Runtime, simulator: Simulator, effect: str
) -> None:
    fax, _ = await discovered(runtime, simulator, "pages")
    simulator.faults = faults(f"{effect}@metadata=always")
    assert await fetch(runtime, fax) is Outcome.STORED
    assert calls(simulator, "metadata") == (2 if effect in ("429", "reset") else 1)
    assert "pages" not in content(runtime)["metadata"]
    assert not parts(runtime)[0].is_suspended


async def test_metadata_of_another_fax_are_not_believed(
    runtime: Runtime, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    fax, _ = await discovered(runtime, simulator, "pages")
    monkeypatch.setattr(replies, "metadata_body", lambda *_: {"fax_id": "other", "pages": 9})
    assert await fetch(runtime, fax) is Outcome.STORED
    assert "pages" not in content(runtime)["metadata"]


async def test_one_429_is_met_after_its_pause(runtime: Runtime, simulator: Simulator) -> None:
    fax, _ = await discovered(runtime, simulator, "pages")
    simulator.faults = faults("429@metadata=first:1")
    assert await fetch(runtime, fax) is Outcome.STORED
    assert content(runtime)["image"]["listed_pages"] == 1


async def test_fax_without_an_image_is_asked_for_its_metadata_once(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    simulator.switches = Switches(list_fields="no-timestamp", metadata_fields="as-listed")
    fax, _ = await discovered(runtime, simulator)
    simulator.faults = faults("404@image=always")
    workers = parts(runtime)[0].workers
    for _ in range(3):
        await workers.run_until_idle()
        clock.advance(timedelta(hours=2))
    assert (await row(runtime, fax)).failures >= 3
    simulator.faults = faults()
    await workers.run_until_idle()
    assert (await row(runtime, fax)).state is State.STORED
    assert content(runtime)["received_at"] is None
    assert calls(simulator, "metadata") == 1


@pytest.mark.parametrize("effect", ["401", "stall"])
async def test_call_that_costs_sign_ins_or_minutes_is_left_alone_for_a_while(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock, effect: str
) -> None:
    async with open_runtime(
        make_config(simulator.base_url),
        {"KEY": KEY},
        metrics=Metrics("test"),
        clock=clock,
        timeouts=Timeouts(total_s=0.5),
    ) as runtime:
        account, _ = parts(runtime)

        async def asked() -> int:
            """Return the metadata requests for one more fax, which is stored in any case."""
            fax, _ = await discovered(runtime, simulator, "pages")
            await account.workers.run_until_idle()
            assert (await row(runtime, fax)).state is State.STORED
            return calls(simulator, "metadata")

        simulator.faults = faults(f"{effect}@metadata=always")
        assert await asked() > 0
        clock.advance(9 * MINUTE)
        assert await asked() == 0
        simulator.faults = faults()
        clock.advance(2 * MINUTE)
        assert await asked() == 1


async def test_metadata_wait_their_turn_among_the_images(
    runtime: Runtime, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lists go first."""
    account, _ = parts(runtime)
    kinds: list[Kind] = []
    turn = account.client._requester._pacer.turn
    monkeypatch.setattr(
        account.client._requester._pacer,
        "turn",
        lambda kind, user: kinds.append(kind) or turn(kind, user),  # type: ignore[func-returns-value]
    )
    fax, _ = await discovered(runtime, simulator, "pages")
    kinds.clear()
    await fetch(runtime, fax)
    assert kinds == [Kind.IMAGE, Kind.IMAGE]
