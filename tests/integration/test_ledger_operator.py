"""What the ledger keeps of an operator's decisions and of damage, and how an older ledger becomes this."""

import asyncio
import contextlib
import signal
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from poller.ledger import (
    FaxRow,
    Ledger,
    State,
    StreamRow,
    accounts,
    faxes,
    fold,
    jobs,
    meta,
    streams,
)
from poller.progress import Pinned, SliceFailed
from poller.window import Interval
from tests.integration.test_ledger_open import KILLED_WHILE_MIGRATING
from tests.integration.test_ledger_rows import (
    DAY,
    HOUR,
    NOW,
    fail,
    ledger,
    new_fax,
    record,
    span,
    store,
    user,
)

__all__ = ["ledger", "user"]  # fixtures

OLD = Path(__file__).parent.parent / "data" / "ledger-0001.sql"
OLD_NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
HASH = "ab" * 32


# -- an older ledger -----------------------------------------------------------------------------


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A ledger of the first release, with faxes under way."""
    path = tmp_path / "poller.db"
    with contextlib.closing(sqlite3.connect(path)) as made:
        made.executescript(OLD.read_text())
    path.chmod(0o600)
    return path


async def assert_all_is_there(path: Path) -> None:
    async with await Ledger.open(f"sqlite:///{path}") as ledger:
        assert not ledger.created
        (user,) = await ledger.read(streams.all_streams)
        counted = (user.stored, user.pending, user.quarantined, user.dismissed, user.damaged)
        assert counted == (2, 1, 1, 1, 1)
        rows = [(await ledger.read(faxes.find, f"fax-{number}"))[0] for number in range(1, 6)]
        assert [fax.state for fax in rows] == [
            State.STORED, State.STORED, State.PENDING, State.QUARANTINED, State.DISMISSED
        ]  # fmt: skip
        assert rows[2].next_attempt_at == rows[3].next_attempt_at == OLD_NOON + HOUR
        assert (rows[2].failures, rows[2].last_error) == (1, "404")
        assert rows[4].dismiss_reason == "a test page"
        assert rows[0].listed["note"] == "Grüße"
        assert {fax.damage for fax in rows} == {None}
        assert len(await ledger.read(faxes.history, rows[3].id)) == 2
        (piece,) = (await ledger.read(fold.progress, user.id)).failed_slices
        assert (piece.reason, piece.dismissed) == ("refused", False)
        assert await ledger.read(meta.value, meta.STORAGE_ID) == "storage-1"
        (account,) = await ledger.read(accounts.all_accounts)
        assert account.paused_since == OLD_NOON
        # And it works like a new one.
        assert await ledger.write(faxes.note_damage, {rows[0].id: (HASH, "gone")}, NOW) == [
            rows[0].id
        ]
        assert [fax.fax_id for fax in await ledger.read(faxes.with_damage, 5)] == ["fax-1"]


async def test_a_ledger_of_the_first_release_is_migrated_with_its_faxes_on_their_way(
    old: Path,
) -> None:
    await assert_all_is_there(old)


@pytest.mark.parametrize("statements", [1, 2])
def test_a_migration_of_an_old_ledger_that_was_killed_loses_nothing_and_is_made_again(
    old: Path, statements: int
) -> None:
    url = str(make_url(f"sqlite:///{old}"))
    command = [sys.executable, "-c", KILLED_WHILE_MIGRATING, url, str(statements)]
    child = subprocess.run(command, capture_output=True, check=False)
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    with contextlib.closing(sqlite3.connect(old)) as left:
        assert left.execute("SELECT version_num FROM alembic_version").fetchall() == [("0001",)]
    asyncio.run(assert_all_is_there(old))


# -- damage --------------------------------------------------------------------------------------


@pytest.fixture
async def stored(ledger: Ledger, user: StreamRow) -> FaxRow:
    (fax,) = await record(ledger, user, new_fax("one"))
    await store(ledger, fax)
    return await ledger.read(faxes.one, fax.id)


async def counts(ledger: Ledger, user: StreamRow) -> tuple[int, ...]:
    row = await ledger.read(streams.one, user.id)
    return row.stored, row.pending, row.quarantined, row.dismissed


async def test_damage_is_noted_once_listed_and_taken_back(ledger: Ledger, stored: FaxRow) -> None:
    assert await ledger.write(faxes.note_damage, {stored.id: (HASH, "gone")}, NOW) == [stored.id]
    assert await ledger.write(faxes.note_damage, {stored.id: (HASH, "gone")}, NOW) == []
    assert await ledger.read(faxes.damage_counts) == {stored.stream: (1, 0)}
    assert [fax.damage for fax in await ledger.read(faxes.with_damage, 10)] == ["gone"]
    assert await ledger.write(faxes.note_damage, {stored.id: (HASH, None)}, NOW) == [stored.id]
    assert await ledger.read(faxes.damage_counts) == {}
    outcomes = [one.outcome for one in await ledger.read(faxes.history, stored.id)]
    assert outcomes == ["stored", "damaged", "not damaged"]


async def test_damage_of_a_fax_fetched_again_meanwhile_is_not_noted(
    ledger: Ledger, stored: FaxRow
) -> None:
    assert await ledger.write(faxes.note_damage, {stored.id: ("cd" * 32, "changed")}, NOW) == []
    await ledger.write(jobs.fetch_again, [stored.id], NOW)
    assert await ledger.write(faxes.note_damage, {stored.id: (HASH, "changed")}, NOW) == []
    assert await ledger.read(faxes.with_damage, 10) == []


async def test_a_fax_to_be_fetched_again_is_due_and_stays_on_the_list_until_it_is_stored(
    ledger: Ledger, user: StreamRow, stored: FaxRow
) -> None:
    await ledger.write(faxes.note_damage, {stored.id: (HASH, "gone")}, NOW)
    assert await ledger.write(jobs.fetch_again, [stored.id, stored.id, 999], NOW) == [stored.id]
    (due,) = await ledger.read(jobs.due, user.id, NOW, 10)
    assert (due.refetch, due.damage, due.file, due.sha256) == (True, "gone", stored.file, HASH)
    assert await counts(ledger, user) == (0, 1, 0, 0)
    assert await ledger.write(jobs.fetch_again, [stored.id], NOW) == [stored.id]
    assert await counts(ledger, user) == (0, 1, 0, 0)
    assert [row.id for row in await ledger.read(faxes.on_disk, None, 10)] == [stored.id]

    quarantined = await fail(ledger, due, quarantine=True)
    assert (quarantined.state, quarantined.refetch) == (State.QUARANTINED, True)
    await store(ledger, due, sha256="cd" * 32)
    after = await ledger.read(faxes.one, stored.id)
    assert (after.state, after.refetch, after.damage) == (State.STORED, False, None)
    assert await counts(ledger, user) == (1, 0, 0, 0)


async def test_damage_can_be_dismissed_and_its_undoing_fetches_again(
    ledger: Ledger, user: StreamRow, stored: FaxRow
) -> None:
    await ledger.write(faxes.note_damage, {stored.id: (HASH, "gone")}, NOW)
    gone = await ledger.write(jobs.dismiss, stored.id, now=NOW, reason="eFax has it no more")
    assert (gone.state, gone.damage, gone.refetch) == (State.DISMISSED, None, True)
    assert await counts(ledger, user) == (0, 0, 0, 1)
    assert await ledger.read(faxes.on_disk, None, 10) == []
    assert await ledger.write(jobs.fetch_again, [stored.id], NOW) == []
    assert await ledger.write(jobs.make_due, [stored.id], NOW) == 1
    back = await ledger.read(faxes.one, stored.id)
    # The file on the disk must not count as the fax.
    assert (back.state, back.refetch, back.dismiss_reason) == (State.PENDING, True, None)
    assert await counts(ledger, user) == (0, 1, 0, 0)


async def test_retry_of_a_damaged_fax_fetches_it_again_and_one_of_a_well_fax_does_not(
    ledger: Ledger, stored: FaxRow
) -> None:
    assert await ledger.write(jobs.make_due, [stored.id], NOW) == 0
    await ledger.write(faxes.note_damage, {stored.id: (HASH, "gone")}, NOW)
    assert await ledger.write(jobs.make_due, None, NOW) == 0  # all quarantined faxes: it is not one
    assert await ledger.write(jobs.make_due, [stored.id], NOW) == 1
    assert (await ledger.read(faxes.one, stored.id)).refetch


async def test_a_dismissed_fax_that_fails_once_more_stays_dismissed(
    ledger: Ledger, user: StreamRow
) -> None:
    (fax,) = await record(ledger, user, new_fax("one"))
    await ledger.write(jobs.dismiss, fax.id, now=NOW, reason="a test page")
    after = await fail(ledger, fax, quarantine=True)
    assert (after.state, after.next_attempt_at) == (State.DISMISSED, None)
    assert await counts(ledger, user) == (0, 0, 0, 1)


async def test_faxes_of_a_removed_user_are_looked_at_but_not_fetched_again(
    ledger: Ledger, stored: FaxRow
) -> None:
    await ledger.write(streams.sync, [("app", "u2", "main", "billing")], NOW)
    (row,) = await ledger.read(faxes.on_disk, None, 10)
    assert row.removed
    assert await ledger.write(jobs.fetch_again, [stored.id], NOW) == []


async def test_pages_of_faxes_on_the_disk_contain_every_stored_fax_once(
    ledger: Ledger, user: StreamRow
) -> None:
    made = await record(ledger, user, *(new_fax(f"fax-{number}") for number in range(25)))
    for fax in made[:20]:
        await store(ledger, fax)
    seen: list[str] = []
    below = None
    while rows := await ledger.read(faxes.on_disk, below, 6):
        assert len(rows) <= 6
        seen += [row.fax_id for row in rows]
        below = rows[-1].id
    assert seen == [f"fax-{number}" for number in range(19, -1, -1)]
    known = await ledger.read(
        faxes.files_of, [made[0].path, made[24].path, "main/front-desk/nothing"]
    )
    assert known == {made[0].path: f"{made[0].path}.pdf", made[24].path: None}


# -- gaps ----------------------------------------------------------------------------------------


@pytest.fixture
async def with_a_gap(ledger: Ledger, user: StreamRow) -> StreamRow:
    """Listed for the last day; the two days before could not be listed."""
    await ledger.write(fold.record, user.id, Pinned(NOW - 3 * DAY, "3d"))
    await record(ledger, user, covers=span(-24, 0))
    await ledger.write(fold.record, user.id, SliceFailed(span(-72, -48), NOW + HOUR, "refused"))
    return await ledger.read(streams.one, user.id)


async def gaps(ledger: Ledger, user: StreamRow) -> tuple[list[Interval], list[Interval]]:
    progress = await ledger.read(fold.progress, user.id)
    return list(progress.gaps), list(progress.failed_gaps)


async def test_dismissed_gap_is_kept_with_its_reason_and_no_longer_alarms(
    ledger: Ledger, with_a_gap: StreamRow
) -> None:
    assert await gaps(ledger, with_a_gap) == ([span(-72, -24)], [span(-72, -48)])
    before = await ledger.read(meta.edits)
    assert await ledger.write(fold.dismiss_gap, with_a_gap.id, span(-72, -48), "in the portal") == 1
    assert await ledger.read(meta.edits) != before
    assert await gaps(ledger, with_a_gap) == ([span(-48, -24)], [])
    (held,) = (await ledger.read(fold.progress, with_a_gap.id)).failed_slices
    assert (held.dismissed, held.dismiss_reason, held.reason) == (True, "in the portal", "refused")
    assert not held.is_due(NOW + 30 * DAY)
    assert await ledger.write(fold.dismiss_gap, with_a_gap.id, span(-72, -48), None) == 1
    # Dismissed time does not count as listed: the watermark stays.
    assert (await ledger.read(fold.progress, with_a_gap.id)).coverage.watermark(
        NOW - 3 * DAY
    ) == NOW - 3 * DAY


async def test_only_what_is_a_gap_now_is_dismissed(ledger: Ledger, with_a_gap: StreamRow) -> None:
    bounds = Interval(NOW - 30 * DAY, NOW + 30 * DAY)
    assert await ledger.write(fold.dismiss_gap, with_a_gap.id, bounds, None) == 1
    (held,) = (await ledger.read(fold.progress, with_a_gap.id)).failed_slices
    assert held.interval == span(-72, -24)


async def test_nothing_is_dismissed_where_there_is_no_gap(
    ledger: Ledger, user: StreamRow, with_a_gap: StreamRow
) -> None:
    before = await ledger.read(meta.edits)
    assert await ledger.write(fold.dismiss_gap, user.id, span(-12, -6), None) == 0
    assert await ledger.write(fold.dismiss_gap, user.id, span(1, 5), None) == 0
    assert await ledger.write(fold.make_gap_due, user.id, span(-12, -6)) == 0
    assert await ledger.read(meta.edits) == before


async def test_a_user_who_was_never_polled_has_no_gap_to_dismiss(
    ledger: Ledger, user: StreamRow
) -> None:
    assert await ledger.write(fold.dismiss_gap, user.id, span(-12, -6), None) == 0


async def test_dismissal_is_undone_and_the_gap_is_due_at_once(
    ledger: Ledger, with_a_gap: StreamRow
) -> None:
    await ledger.write(fold.dismiss_gap, with_a_gap.id, span(-72, -24), None)
    assert await ledger.write(fold.make_gap_due, with_a_gap.id, span(-60, -59)) == 1
    (held,) = (await ledger.read(fold.progress, with_a_gap.id)).failed_slices
    assert (held.dismissed, held.dismiss_reason, held.is_due(NOW)) == (False, None, True)
    assert await gaps(ledger, with_a_gap) == ([span(-72, -24)], [span(-72, -24)])


async def test_a_dismissed_gap_that_is_listed_after_all_is_forgotten(
    ledger: Ledger, with_a_gap: StreamRow
) -> None:
    await ledger.write(fold.dismiss_gap, with_a_gap.id, span(-72, -24), None)
    await record(ledger, with_a_gap, covers=Interval(NOW - 3 * DAY, NOW - timedelta(hours=20)))
    assert (await ledger.read(fold.progress, with_a_gap.id)).failed_slices == ()
    assert await gaps(ledger, with_a_gap) == ([], [])
