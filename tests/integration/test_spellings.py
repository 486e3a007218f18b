"""A UUID in other letters is the same fax, whose id stays as first seen; other ids are exact."""

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from poller.cli.lookup import find_one
from poller.config.model import Config
from poller.errors import UsageError
from poller.ingest.audit import Auditor
from poller.ingest.runtime import Runtime
from poller.ledger import Ledger, State, faxes, jobs, streams
from poller.rebuild import rebuild
from poller.simulator import Simulator, Switches
from tests.conftest import APP, MakeConfig, QuickClock, opened_runtime, stored_files
from tests.earlier_tables import put_back
from tests.integration.at_work import calls, fetch, listed, parts, poll, row

LOWER = "0f8a1b2c-3d4e-4f50-8a6b-7c8d9e0fa1b2"
UPPER = LOWER.upper()
MIXED = UPPER[:13] + LOWER[13:]
MINUTE = timedelta(minutes=1)


def receive(simulator: Simulator, *fax_ids: str) -> None:
    for fax_id in fax_ids:
        simulator.receive(APP, "user-a", completed=simulator.now() - MINUTE, fax_id=fax_id)


async def settle(runtime: Runtime, clock: QuickClock, polls: int = 4) -> list[str]:
    """Poll a few times, including sweeps, and fetch all; return the ids that the ledger has now."""
    account, state = parts(runtime)
    for _ in range(polls):
        assert not (await poll(runtime)).failed
        await account.workers.run_until_idle()
        clock.advance(timedelta(hours=7))
    held = await runtime.services.ledger.read(faxes.on_disk, None, 100)
    assert (await runtime.services.ledger.read(streams.one, state.id)).discovered == len(held)
    return sorted(one.fax_id for one in held)


@pytest.mark.parametrize("images", ["same", "lower", "upper", "mixed"])
@pytest.mark.parametrize("lists", ["upper", "mixed"])
async def test_fax_is_stored_once_however_lists_and_images_spell_its_id(
    runtime: Runtime, simulator: Simulator, clock: QuickClock, lists: str, images: str
) -> None:
    simulator.switches = Switches.parse([f"list_fax_id={lists}", f"image_fax_id={images}"])
    receive(simulator, *(f"{number}{LOWER[1:]}" for number in range(5)))
    (first, *_) = (await poll(runtime)).discovered
    ids = await settle(runtime, clock)
    assert first.fax_id in ids
    assert len(ids) == 5
    assert calls(simulator, "image") == 5
    assert len(stored_files(runtime.config.storage.directory)) == 10


async def test_list_that_holds_both_spellings_is_of_one_fax_named_as_the_first(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    receive(simulator, LOWER, UPPER)  # newest first: the upper one
    assert await settle(runtime, clock) == [UPPER]
    (image,) = runtime.config.storage.directory.rglob("*.pdf")
    assert image.stem == UPPER


async def test_pages_that_spell_their_ids_differently_are_one_list(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    simulator.switches = Switches(list_fax_id="mixed", page_cap=3)
    receive(simulator, *(f"{number:02}{LOWER[2:]}" for number in range(20)))
    assert len((await poll(runtime)).discovered) == 20
    assert calls(simulator, "list", "user-a") < 40


async def test_ids_that_are_no_uuids_are_exact(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    ids = ["CaseId", "caseid", LOWER.replace("-", ""), UPPER.replace("-", ""), f"{{{LOWER}}}"]
    receive(simulator, *ids)
    assert await settle(runtime, clock) == sorted(ids)


async def test_operator_may_name_a_fax_in_any_spelling(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    receive(simulator, MIXED, "CaseId")
    await settle(runtime, clock)
    for name in (LOWER, UPPER, MIXED, f"main/user-a/{UPPER}"):
        assert (await find_one(runtime.services.ledger, name)).fax_id == MIXED
    assert await runtime.services.ledger.read(faxes.find, "caseid") == []


_NEVER_STORED = "UPDATE faxes SET refetch = 0"


async def test_sidecar_in_another_spelling_is_that_of_the_fax(
    runtime: Runtime, simulator: Simulator, clock: QuickClock
) -> None:
    fax, held = await listed(runtime, simulator, fax_id=LOWER)
    await fetch(runtime, fax)
    respell(runtime.config)
    auditor = Auditor(runtime.services.ledger, runtime.services.storage, clock)
    ((one,),) = [page async for page in auditor.pages(thorough=True)]
    assert not one.is_damaged
    # A crash before the row: continue from what is there.
    async with await Ledger.open(runtime.config.state_url) as other:
        await other.write(jobs.fetch_again, [held.id], clock.now())
        await other.write(lambda connection: connection.exec_driver_sql(_NEVER_STORED))
    await fetch(runtime, fax)
    assert (await row(runtime, fax)).state is State.STORED
    assert (await row(runtime, fax)).path == held.path
    assert calls(simulator, "image") == 1


def respell(settings: Config) -> Path:
    """Write the id in the only sidecar in capitals."""
    (sidecar,) = settings.storage.directory.rglob("*.json")
    content = json.loads(sidecar.read_text())
    content["fax_id"] = content["fax_id"].upper()
    sidecar.write_text(json.dumps(content))
    return sidecar


async def test_rebuilt_ledger_knows_a_fax_by_its_sidecar_in_another_spelling(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> None:
    settings = make_config(simulator.base_url)
    async with opened_runtime(settings, clock) as runtime:
        receive(simulator, LOWER)
        await settle(runtime, clock)
    sidecar = respell(settings)
    again = [sidecar.with_name(f"{LOWER}-2{kind}") for kind in (".pdf", ".json")]
    again[0].write_bytes(sidecar.with_suffix(".pdf").read_bytes())
    content = json.loads(sidecar.read_text())
    content["image"]["file"] = again[0].name
    again[1].write_text(json.dumps(content | {"fax_id": LOWER}))
    lose(settings)
    done = await rebuild(settings, {}, since=None, now=clock.now)
    assert (done.added, done.doubles.count) == (1, 1)
    async with opened_runtime(settings, clock) as runtime:
        assert len(await settle(runtime, clock)) == 1
    assert calls(simulator, "image") == 1


def lose(settings: Config) -> None:
    for file in Path(settings.state_url.removeprefix("sqlite:///")).parent.glob("poller.db*"):
        file.unlink()


def before_keys(path: Path, *spellings: str) -> None:
    """Make it a ledger of the previous version, which took each spelling for its own fax."""
    put_back(path, "0003")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as ledger:
        columns = [name for _, name, *_ in ledger.execute("PRAGMA table_info(faxes)")]
        others = [name for name in columns if name not in ("id", "fax_id", "path")]
        for spelling in spellings:
            ledger.execute(
                f"INSERT INTO faxes (fax_id, path, {', '.join(map(repr, others))}) "
                f"SELECT ?, ?, {', '.join(f'[{name}]' for name in others)} FROM faxes LIMIT 1",
                (spelling, f"another/{spelling}"),
            )
            ledger.execute("UPDATE users SET discovered = discovered + 1, stored = stored + 1")


async def test_id_in_an_older_ledger_that_only_begins_as_a_uuid_is_exact(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> None:
    settings = make_config(simulator.base_url)
    path = Path(settings.state_url.removeprefix("sqlite:///"))
    async with opened_runtime(settings, clock) as runtime:
        receive(simulator, LOWER)
        await settle(runtime, clock)
    before_keys(path, f"{UPPER}\n")
    async with await Ledger.open(settings.state_url):
        pass
    with contextlib.closing(sqlite3.connect(path)) as ledger:
        assert list(ledger.execute("SELECT fax_key FROM faxes WHERE fax_key IS NOT NULL")) == []


@pytest.mark.parametrize("spellings", [(LOWER, UPPER), (UPPER, LOWER), (UPPER, MIXED, LOWER)])
async def test_older_ledger_with_separate_spellings_continues_and_adds_none(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock, spellings: tuple[str, ...]
) -> None:
    settings = make_config(simulator.base_url)
    async with opened_runtime(settings, clock) as runtime:
        receive(simulator, spellings[0])
        assert await settle(runtime, clock) == [spellings[0]]
    before_keys(Path(settings.state_url.removeprefix("sqlite:///")), *spellings[1:])

    simulator.switches = Switches(list_fax_id="mixed")
    async with opened_runtime(settings, clock) as runtime:
        assert await settle(runtime, clock) == sorted(spellings)
        ledger = runtime.services.ledger
        for spelling in spellings:
            assert (await find_one(ledger, spelling)).fax_id == spelling
        with pytest.raises(UsageError, match="ambiguous"):
            await find_one(ledger, UPPER[:8] + LOWER[8:])
    assert calls(simulator, "image") == 1


async def test_older_ledger_of_one_spelling_knows_its_faxes_in_the_others(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> None:
    settings = make_config(simulator.base_url)
    async with opened_runtime(settings, clock) as runtime:
        receive(simulator, MIXED)
        await settle(runtime, clock)
    before_keys(Path(settings.state_url.removeprefix("sqlite:///")))
    simulator.switches = Switches(list_fax_id="lower")
    async with opened_runtime(settings, clock) as runtime:
        assert await settle(runtime, clock) == [MIXED]


@pytest.mark.parametrize(
    ("states", "left"),
    [
        pytest.param(("pending", "pending"), ("pending", "dismissed"), id="both wait"),
        pytest.param(("quarantined", "pending"), ("quarantined", "dismissed"), id="one in vain"),
        pytest.param(("pending", "stored"), ("dismissed", "stored"), id="the second is stored"),
        pytest.param(("dismissed", "pending"), ("dismissed", "pending"), id="one is dismissed"),
        pytest.param(("stored", "stored"), ("stored", "stored"), id="both are stored"),
    ],
)
async def test_of_two_spellings_in_an_older_ledger_one_waits_at_most(
    simulator: Simulator,
    make_config: MakeConfig,
    clock: QuickClock,
    states: tuple[str, ...],
    left: tuple[str, ...],
) -> None:
    settings = make_config(simulator.base_url)
    async with opened_runtime(settings, clock) as runtime:
        receive(simulator, UPPER)
        await settle(runtime, clock)
    path = Path(settings.state_url.removeprefix("sqlite:///"))
    before_keys(path, LOWER)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as older:
        for number, state in enumerate(states, start=1):
            due = 0 if state in ("pending", "quarantined") else None
            values = (state, due, number)
            older.execute("UPDATE faxes SET state = ?, next_attempt_at = ? WHERE id = ?", values)
        counts = ", ".join(f"{state} = {states.count(state)}" for state in State)
        older.execute(f"UPDATE users SET {counts} WHERE name = 'user-a'")
    async with await Ledger.open(settings.state_url) as ledger:
        assert tuple(row.state for row in await ledger.read(faxes.some, [1, 2])) == left
        (user, _) = await ledger.read(streams.all_streams)
        assert [getattr(user, state) for state in State] == [left.count(state) for state in State]


async def test_migration_reads_an_older_ledger_as_often_however_many_spellings_it_holds(
    simulator: Simulator, make_config: MakeConfig, clock: QuickClock
) -> None:
    settings = make_config(simulator.base_url)
    async with opened_runtime(settings, clock) as runtime:
        receive(simulator, UPPER)
        await settle(runtime, clock)
    reads = []
    for pairs in (1, 20):
        ids = [f"{number:08x}{LOWER[8:]}" for number in range(pairs)]
        path = Path(settings.state_url.removeprefix("sqlite:///"))
        before_keys(path, *ids, *map(str.upper, ids))
        with statements() as said:
            await (await Ledger.open(settings.state_url)).close()
        reads.append(len([one for one in said if "FROM faxes" in one]))
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as ledger:
            ledger.execute("DELETE FROM faxes WHERE id > 1")
    assert reads[0] == reads[1] > 0


@contextlib.contextmanager
def statements() -> Iterator[list[str]]:
    said: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        said.append(statement)

    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", note)
    try:
        yield said
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", note)
