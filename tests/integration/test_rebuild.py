"""A rebuilt ledger knows what snapshot and sidecars say, and reports what it cannot know."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from poller.config.model import Account, Archive, Config, Sent
from poller.errors import CannotStart, LockHeld
from poller.ingest.runtime import Runtime
from poller.ledger import Ledger, State, faxes, fold, jobs, meta, streams
from poller.ledger.sqlite import engine
from poller.lock import StorageLock
from poller.rebuild import Rebuilt, rebuild
from poller.simulator import Simulator
from poller.simulator.state import Fax
from poller.store import Identity, Origin, sidecar
from poller.store.marker import MARKER
from poller.stream import Direction
from tests.conftest import APP, MakeConfig, QuickClock, opened_runtime, stored_files
from tests.exhaustive import EXHAUSTIVE
from tests.integration.at_work import fetch, listed, poll

DAY = timedelta(days=1)


class Installation:
    """One installation that is opened for a while, broken, rebuilt and opened again."""

    def __init__(self, settings: Config, simulator: Simulator, clock: QuickClock) -> None:
        self.settings = settings
        self.simulator = simulator
        self.clock = clock
        self.ledger = Path(settings.state_url.removeprefix("sqlite:///"))
        self.faxes = settings.storage.directory

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Runtime]:
        async with opened_runtime(self.settings, self.clock) as runtime:
            yield runtime

    async def store(self, count: int = 1, user: str = "user-a") -> list[Fax]:
        """Let faxes arrive and be stored, and close again."""
        async with self.open() as runtime:
            made = []
            for _ in range(count):
                self.clock.advance(timedelta(minutes=2))
                fax, _ = await listed(runtime, self.simulator, user)
                await fetch(runtime, fax)
                made.append(fax)
        return made

    async def snapshot(self) -> datetime:
        async with await Ledger.open(self.settings.state_url) as ledger:
            health = await ledger.look_after(self.clock.now())
        assert health.snapshot_at is not None
        return health.snapshot_at

    async def rebuild(self, since: datetime | None = None) -> Rebuilt:
        return await rebuild(self.settings, {}, since=since, now=self.clock.now)

    async def catch_up(self) -> None:
        """List and fetch everything that the new ledger wants, until nothing is due."""
        async with self.open() as runtime:
            for _ in range(3):
                for user in ("user-a", "user-b"):
                    outcome = await poll(runtime, user)
                    assert outcome.error is None
                await runtime.accounts[APP].workers.run_until_idle()
                self.clock.advance(timedelta(minutes=5))

    async def archive(self, fax_id: str, *, publish: bool = True, **origin: Any) -> Path:
        """Leave a sidecar without an image, of a fax without a row, as before the ledger was lost."""
        user, at = self.settings.users[0], self.clock.now()
        identity = Identity(user.app_id, user.user_id, fax_id)
        kept = {"direction": Direction.SENT, "metadata": {"fax_id": fax_id}, "listed_pages": None}
        whose = Origin(identity, user.account, user.name, at, at, **(kept | origin))
        async with self.open() as runtime:
            store = runtime.services.storage
            async with store.draft(f"main/{user.name}/sent/{fax_id}", identity) as draft:
                staged = await draft.stage_alone(lambda _: sidecar(None, whose, stored_at=at))
                if publish:
                    await draft.publish(staged)
        return self.faxes / f"main/{user.name}/sent/{fax_id}.json"

    def archiving(self, what: Archive) -> None:
        """From now on, archive what users send, with `what`."""
        (account,) = self.settings.accounts
        users = tuple(replace(user, sent=Sent(archive=what)) for user in account.users)
        self.settings = replace(self.settings, accounts=(replace(account, users=users),))

    def downloads(self) -> dict[str, int]:
        return {fax.fax_id: self.simulator.downloads.get(fax, 0) for fax in self.simulator.faxes()}

    def sidecar(self, fax: Fax) -> Path:
        (found,) = self.faxes.rglob(f"{fax.fax_id}.json")
        return found

    def take(self, fax: Fax) -> None:
        sidecar = self.sidecar(fax)
        sidecar.with_suffix(".pdf").unlink()
        sidecar.unlink()

    def state_files(self) -> list[str]:
        return sorted(
            one.name for one in self.ledger.parent.iterdir() if not one.name.endswith("-journal")
        )


@pytest.fixture
def place(simulator: Simulator, make_config: MakeConfig, clock: QuickClock) -> Installation:
    return Installation(make_config(simulator.base_url), simulator, clock)


def gone(path: Path) -> None:
    path.unlink()


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flipped(path: Path) -> None:
    """Damage a page in the middle."""
    data = bytearray(path.read_bytes())
    data[5 * 4096 : 5 * 4096 + 64] = bytes(byte ^ 0xFF for byte in data[5 * 4096 : 5 * 4096 + 64])
    path.write_bytes(data)


DAMAGES = [gone, zeroed, truncated, empty, flipped]
SNAPSHOTS = ["good", "newest-bad", "both-bad", "none"]


@pytest.mark.parametrize(
    ("spoil", "snapshots"),
    [
        (spoil, snapshots)
        for spoil in DAMAGES
        for snapshots in SNAPSHOTS
        if EXHAUSTIVE
        or spoil is truncated
        or (spoil, snapshots) in [(gone, "none"), (flipped, "good")]
    ],
)
async def test_nothing_is_fetched_again_that_snapshot_or_sidecar_tell_of(
    place: Installation, spoil: Callable[[Path], None], snapshots: str
) -> None:
    stored = await place.store(2)
    if snapshots != "none":
        await place.snapshot()
        place.clock.advance(DAY)
        await place.snapshot()
    stored += await place.store(1) + await place.store(1, "user-b")
    newest, older = (place.ledger.with_name(f"poller.db.snapshot-{n}") for n in (1, 2))
    if snapshots in ("newest-bad", "both-bad"):
        truncated(newest)
    if snapshots == "both-bad":
        zeroed(older)
    marker = (place.faxes / MARKER).read_text()
    spoil(place.ledger)
    before = None if spoil is gone else place.ledger.read_bytes()
    files = {path: path.read_bytes() for path in stored_files(place.faxes)}

    done = await place.rebuild()

    assert done.base == {"good": str(newest), "newest-bad": str(older)}.get(snapshots)
    assert (done.sidecars, done.damaged.count, done.unreadable.count) == (4, 0, 0)
    assert done.added == (2 if done.base else 4)
    if before is None:
        assert done.kept_aside is None
    else:
        assert done.kept_aside is not None
        assert Path(done.kept_aside).read_bytes() == before
    async with await Ledger.open(place.settings.state_url) as ledger:
        assert await ledger.read(meta.value, meta.STORAGE_ID) == marker.strip()
        rows = {row.user: row for row in await ledger.read(streams.all_streams)}
        assert [rows[u].stored for u in ("user-a", "user-b")] == [3, 1]
        assert sum(row.discovered for row in rows.values()) == 4
    await place.catch_up()
    assert place.downloads() == {fax.fax_id: 1 for fax in stored}
    assert {path: path.read_bytes() for path in stored_files(place.faxes)} == files


async def test_a_taken_fax_is_known_by_the_snapshot_and_only_by_that(place: Installation) -> None:
    (known,) = await place.store()
    at = await place.snapshot()
    (forgotten,) = await place.store()
    place.take(known)
    place.take(forgotten)
    truncated(place.ledger)

    done = await place.rebuild()

    assert done.base_at == at
    await place.catch_up()
    assert place.downloads() == {known.fax_id: 1, forgotten.fax_id: 2}
    assert len(stored_files(place.faxes)) == 2


async def test_what_waits_in_the_snapshot_waits_on_and_all_since_is_listed_again(
    place: Installation,
) -> None:
    async with place.open() as runtime:
        pending, _ = await listed(runtime, place.simulator)
        dismissed, row = await listed(runtime, place.simulator)
        await runtime.services.ledger.write(
            jobs.dismiss, row.id, now=place.clock.now(), reason="spam"
        )
        (user, _) = await runtime.services.ledger.read(streams.all_streams)
    await place.snapshot()
    pinned = user.pinned_start
    place.clock.advance(30 * DAY)
    place.simulator.receive(APP, "user-a", completed=place.simulator.now() - 20 * DAY)
    truncated(place.ledger)

    done = await place.rebuild()

    assert done.listed_from == pinned
    async with await Ledger.open(place.settings.state_url) as ledger:
        states = {
            fax: (await ledger.read(faxes.find, fax.fax_id))[0].state
            for fax in (pending, dismissed)
        }
        assert states == {pending: State.PENDING, dismissed: State.DISMISSED}
        assert (await ledger.read(fold.progress, user.id)).coverage.intervals == ()
    await place.catch_up()
    assert sorted(place.downloads().values()) == [0, 1, 1]


async def test_listing_reaches_back_to_the_oldest_sidecar_or_since(place: Installation) -> None:
    (fax,) = await place.store()
    await place.store(1, "user-b")
    gone(place.ledger)
    place.clock.advance(100 * DAY)  # far beyond the configured look-back of a new user

    assert (await place.rebuild()).listed_from == fax.completed
    since = fax.completed - 3 * DAY
    assert (await place.rebuild(since)).listed_from == since
    # if it is later than what is known it changes nothing, because that could lose something
    assert (await place.rebuild(place.clock.now() - DAY)).listed_from == since


async def test_a_fax_of_an_impossible_time_does_not_let_decades_be_listed(
    place: Installation,
) -> None:
    (fax,) = await place.store()
    sidecar = place.sidecar(fax)
    content = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps(content | {"received_at": "1970-01-01T00:00:00.000Z"}))
    gone(place.ledger)
    done = await place.rebuild()
    assert done.listed_from == datetime.fromisoformat(content["first_seen_at"])


async def test_a_sidecar_whose_image_is_gone_or_changed_is_damaged_and_not_fetched(
    place: Installation,
) -> None:
    lost, changed = await place.store(2)
    place.sidecar(lost).with_suffix(".pdf").unlink()
    place.sidecar(changed).with_suffix(".pdf").write_bytes(b"other")
    gone(place.ledger)
    done = await place.rebuild()
    assert {why for _, why in done.damaged.named} == {
        "the image is missing",
        "the image has another hash",
    }
    await place.catch_up()
    assert set(place.downloads().values()) == {1}
    assert place.sidecar(changed).with_suffix(".pdf").read_bytes() == b"other"


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "null", '"text"', "{}", '{"fax_id": 1}', "\xff", "[" * 100_000,
        '{"image": {"format": "exe"}}', '{"image": []}', "1" * 5000,
    ],
)  # fmt: skip
async def test_a_file_that_only_looks_like_a_sidecar_is_named_and_left(
    place: Installation, content: str
) -> None:
    await place.store()
    strange = place.faxes / "main" / "strange.json"
    strange.write_text(content, encoding="latin-1")
    (place.faxes / "main" / "link.json").symlink_to(strange)
    (place.faxes / "main" / "directory.json").mkdir()
    gone(place.ledger)
    done = await place.rebuild()
    assert [path for path, _ in done.unreadable.named] == ["main/strange.json"]
    assert done.added == 1
    assert strange.exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("fax_id", 7), ("user_id", None), ("account", []), ("metadata", "x"),
        ("stored_at", "yesterday"), ("first_seen_at", "2026-03-02T12:00:00"), ("received_at", 1),
    ],
)  # fmt: skip
async def test_a_sidecar_with_a_wrong_value_is_named(
    place: Installation, key: str, value: Any
) -> None:
    (fax,) = await place.store()
    sidecar = place.sidecar(fax)
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {key: value}))
    gone(place.ledger)
    done = await place.rebuild()
    assert (done.unreadable.count, done.added) == (1, 0)


async def test_a_copy_of_a_file_under_another_name_is_left_out_and_named(
    place: Installation,
) -> None:
    await place.store()
    shutil.copytree(place.faxes / "main", place.faxes / "copy")
    gone(place.ledger)
    done = await place.rebuild()
    assert (done.sidecars, done.added, done.doubles.count) == (2, 1, 1)


async def test_users_who_are_no_longer_configured_become_removed(
    place: Installation,
) -> None:
    await place.store(1, "user-b")
    gone(place.ledger)
    (account,) = place.settings.accounts
    fewer: Account = replace(account, users=account.users[:1])
    place.settings = replace(place.settings, accounts=(fewer,))
    done = await place.rebuild()
    assert done.listed_from is None
    async with await Ledger.open(place.settings.state_url) as ledger:
        rows = {
            row.user: (row.removed, row.stored) for row in await ledger.read(streams.all_streams)
        }
    assert rows == {"user-a": (False, 0), "user-b": (True, 1)}


async def test_an_interrupted_hand_over_that_no_snapshot_knows_is_carried_on(
    place: Installation,
) -> None:
    (fax,) = await place.store()
    sidecar = place.sidecar(fax)
    sidecar.rename(sidecar.with_name(f".{sidecar.stem}.0123abcd.json.part"))
    gone(place.ledger)
    done = await place.rebuild()
    assert (done.sidecars, done.added, done.carried_on) == (0, 0, 1)
    await place.catch_up()
    assert place.downloads() == {fax.fax_id: 1}
    assert place.sidecar(fax).with_suffix(".pdf").exists()


async def test_a_broken_hand_over_is_not_believed(place: Installation) -> None:
    (fax,) = await place.store()
    sidecar = place.sidecar(fax)
    sidecar.rename(sidecar.with_name(f".{sidecar.stem}.0123abcd.json.part"))
    sidecar.with_suffix(".pdf").unlink()
    gone(place.ledger)
    assert (await place.rebuild()).carried_on == 0
    await place.catch_up()
    assert place.downloads() == {fax.fax_id: 2}


async def test_a_ledger_that_is_whole_is_taken_over_whole(place: Installation) -> None:
    (fax,) = await place.store()
    place.take(fax)
    done = await place.rebuild()
    assert done.was_whole
    assert done.kept_aside is not None
    await place.catch_up()
    assert place.downloads() == {fax.fax_id: 1}


async def test_a_ledger_of_a_newer_poller_gives_way_to_its_snapshot(place: Installation) -> None:
    (fax,) = await place.store()
    await place.snapshot()
    with contextlib.closing(sqlite3.connect(place.ledger)) as other, other:
        other.execute("UPDATE alembic_version SET version_num = '9999'")
    done = await place.rebuild()
    assert "newer poller" in done.passed_over[0]
    assert done.base == str(place.ledger.with_name("poller.db.snapshot-1"))
    await place.catch_up()
    assert place.downloads() == {fax.fax_id: 1}


@pytest.mark.parametrize("trouble", ["unmounted", "gone", "other marker", "foreign", "locked"])
async def test_a_rebuilding_that_cannot_be_right_is_refused_and_changes_nothing(
    place: Installation, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await place.store()
    await place.snapshot()
    monkeypatch.setattr(engine, "BUSY_TIMEOUT_S", 0.05)
    lock = contextlib.closing(sqlite3.connect(place.ledger, isolation_level=None))
    if trouble == "unmounted":
        (place.faxes / MARKER).unlink()
    elif trouble == "gone":
        shutil.rmtree(place.faxes)
    elif trouble == "other marker":
        (place.faxes / MARKER).write_text("another\n")
    elif trouble == "foreign":
        gone(place.ledger)
        with contextlib.closing(sqlite3.connect(place.ledger)) as other:
            other.execute("CREATE TABLE songs (name TEXT)")
    before, content = place.state_files(), place.ledger.read_bytes()
    with lock as connection:
        if trouble == "locked":
            connection.execute("BEGIN EXCLUSIVE")
        with pytest.raises(CannotStart):
            await place.rebuild()
    assert place.state_files() == before
    assert place.ledger.read_bytes() == content


async def test_a_storage_that_another_poller_holds_is_not_read(place: Installation) -> None:
    await place.store()
    truncated(place.ledger)
    before, content = place.state_files(), place.ledger.read_bytes()
    with StorageLock() as theirs, StorageLock() as ours:
        theirs.take((place.faxes / MARKER).read_text().strip())
        with pytest.raises(LockHeld):
            await rebuild(place.settings, {}, since=None, now=place.clock.now, storage_lock=ours)
    assert place.state_files() == before
    assert place.ledger.read_bytes() == content


# -- interrupted -----------------------------------------------------------------------------------

KILLED = """
import asyncio, os, signal, sys
from datetime import UTC, datetime
from pathlib import Path
from poller.config.model import *
from poller.rebuild import rebuild

left = 0

def maybe_die(*_):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def audit(event, args):
    if event in ("os.rename", "os.link", "os.remove") or (
        event == "open" and args[2] and args[2] & os.O_CREAT
    ):
        maybe_die()

root = Path(sys.argv[1])
user = User("main", "user-a", "app-1", "user-a")
settings = Config(
    accounts=(Account("main", "app-1", SecretRef("env", "KEY"), (user,)),),
    storage=StorageConfig(root / "faxes", min_free=1),
    state=StateConfig(root / "state"),
)
for line in sys.stdin:
    if child := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    left = int(line)
    sys.addaudithook(audit)
    asyncio.run(rebuild(settings, {}, since=None, now=lambda: datetime.now(UTC)))
    os._exit(0)
"""


@contextlib.contextmanager
def rebuilding_that_is_killed(root: Path) -> Iterator[Callable[[int], int]]:
    """Give what rebuilds and dies at a call; it returns the exit code. One process forks for each."""
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        orders, answers = server.stdin, server.stdout

        def run(point: int) -> int:
            print(point, file=orders, flush=True)
            return int(answers.readline())

        yield run


@pytest.mark.parametrize("journal", [False, True] if EXHAUSTIVE else [True])
async def test_a_rebuilding_that_is_killed_anywhere_is_begun_again_and_loses_nothing(
    place: Installation, tmp_path: Path, journal: bool
) -> None:
    """At each call that creates, links, renames or removes a file."""
    (kept,) = await place.store()
    await place.snapshot()
    (taken,) = await place.store()
    del taken
    truncated(place.ledger)
    if journal:
        place.ledger.with_name("poller.db-journal").write_bytes(b"a journal of the old ledger")
    broken = place.ledger.read_bytes()
    original = tmp_path / "original"
    shutil.copytree(tmp_path / "state", original)
    points = 0
    with rebuilding_that_is_killed(tmp_path) as run:
        while True:
            points += 1
            shutil.rmtree(tmp_path / "state")
            shutil.copytree(original, tmp_path / "state", copy_function=shutil.copy2)
            if (code := run(points)) == 0:
                break
            assert code == -signal.SIGKILL
            assert place.ledger.exists()
            await place.rebuild()
            asides = [one for one in place.state_files() if ".broken-" in one]
            contents = [place.ledger.with_name(name).read_bytes() for name in asides]
            assert contents[:1] == [broken]
            assert (place.ledger.with_name(f"{asides[0]}-journal").exists()) is journal
            assert "poller.db.rebuilding" not in place.state_files()
            async with await Ledger.open(place.settings.state_url) as ledger:
                assert sum(row.stored for row in await ledger.read(streams.all_streams)) == 2
                (row,) = await ledger.read(faxes.find, kept.fax_id)
                assert row.state is State.STORED
    assert points > (7 if journal else 6)


# -- sent faxes, and faxes without an image --------------------------------------------------------


async def test_sent_faxes_become_rows_of_their_users_sent_stream(place: Installation) -> None:
    place.archiving("metadata")
    (received,) = await place.store()
    alone = await place.archive("s-1")
    place.clock.advance(DAY)
    gone(place.ledger)
    done = await place.rebuild()
    assert (done.sidecars, done.added, done.damaged.count) == (2, 2, 0)
    async with await Ledger.open(place.settings.state_url) as ledger:
        (row,) = await ledger.read(faxes.find, "s-1")
        rows = await ledger.read(streams.all_streams)
    assert row.direction is Direction.SENT
    assert (row.state, row.file, row.format) == (State.STORED, "main/user-a/sent/s-1.json", "json")
    assert row.listed == {"fax_id": "s-1"}
    assert row.received_at is not None
    assert hashlib.sha256(alone.read_bytes()).hexdigest() == row.sha256
    assert row.path == "main/user-a/sent/s-1"
    counted = {(one.user, one.direction): (one.removed, one.stored) for one in rows}
    assert counted == {
        ("user-a", Direction.RECEIVED): (False, 1),
        ("user-a", Direction.SENT): (False, 1),
        ("user-b", Direction.RECEIVED): (False, 0),
        ("user-b", Direction.SENT): (False, 0),
    }
    # The sent stream begins at its own oldest fax, not at a received one's.
    pinned = {(one.user, one.direction): one.pinned_start for one in rows}
    assert pinned["user-a", Direction.SENT] == row.received_at
    assert pinned["user-a", Direction.RECEIVED] == received.completed
    again = await place.rebuild()
    assert (again.sidecars, again.added, again.doubles.count) == (2, 0, 0)


async def test_sent_faxes_stay_as_a_removed_stream_when_nothing_is_archived_now(
    place: Installation,
) -> None:
    await place.archive("s-1")
    gone(place.ledger)
    assert (await place.rebuild()).added == 1
    async with await Ledger.open(place.settings.state_url) as ledger:
        rows = [row for row in await ledger.read(streams.all_streams) if row.stored]
    assert [(row.direction, row.removed) for row in rows] == [(Direction.SENT, True)]


async def test_one_id_received_and_sent_is_two_faxes(place: Installation) -> None:
    place.archiving("metadata")
    (fax,) = await place.store()
    await place.archive(fax.fax_id)
    gone(place.ledger)
    done = await place.rebuild()
    assert (done.added, done.doubles.count) == (2, 0)


async def test_received_fax_and_canary_without_image_are_taken_in_too(place: Installation) -> None:
    await place.archive("r-1", direction=Direction.RECEIVED)
    await place.archive("c-1", direction=Direction.RECEIVED, canary=True)
    gone(place.ledger)
    assert (await place.rebuild()).added == 2
    async with await Ledger.open(place.settings.state_url) as ledger:
        found = [(await ledger.read(faxes.find, name))[0] for name in ("r-1", "c-1")]
    assert {(row.direction, row.format) for row in found} == {(Direction.RECEIVED, "json")}


async def test_sidecar_alone_that_was_never_published_is_continued(place: Installation) -> None:
    place.archiving("metadata")
    path = await place.archive("s-1", publish=False)
    assert not path.exists()
    gone(place.ledger)
    done = await place.rebuild()
    assert (done.sidecars, done.added, done.carried_on) == (0, 0, 1)
    async with await Ledger.open(place.settings.state_url) as ledger:
        (row,) = await ledger.read(faxes.find, "s-1")
    assert (row.state, row.path) == (State.PENDING, "main/user-a/sent/s-1")
