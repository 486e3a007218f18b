"""What each method records and returns, on a real file."""

import asyncio
import dataclasses
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, text

from poller.documents import Staged, StoredFile
from poller.ledger import (
    FaxRow,
    Ledger,
    NewFax,
    State,
    StreamRow,
    accounts,
    faxes,
    fold,
    jobs,
    meta,
    streams,
)
from poller.naming import disambiguated
from poller.progress import NotPolled, Pinned, Polled, SliceFailed, SliceSplit, Swept
from poller.sealing import SealedToken
from poller.window import Coverage, FailedSlice, Interval, SliceKind

NOW = datetime(2024, 5, 21, 4, 27, 56, 123456, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def span(start_h: float, end_h: float) -> Interval:
    """Hours before NOW, as negative numbers."""
    return Interval(NOW + start_h * HOUR, NOW + end_h * HOUR)


@pytest.fixture
async def ledger(ledger_url: str) -> AsyncIterator[Ledger]:
    async with await Ledger.open(ledger_url) as ledger:
        yield ledger


@pytest.fixture
async def user(ledger: Ledger) -> StreamRow:
    (user,) = await ledger.write(streams.sync, [("app", "u1", "main", "front-desk")], NOW)
    return user


def new_fax(fax_id: str, path: str | None = None, **fields: Any) -> NewFax:
    values: dict[str, Any] = {"listed": {"fax_id": fax_id}, "received_at": NOW - HOUR}
    values |= fields
    return NewFax(fax_id, path or f"main/front-desk/{fax_id}", **values)


async def record(ledger: Ledger, user: StreamRow, *new: NewFax, **fields: Any) -> list[FaxRow]:
    values: dict[str, Any] = {"window": span(-24, 0), "found_by": "newest", "now": NOW}
    values |= fields
    page = faxes.ListedPage(new, **values)
    return (await ledger.write(faxes.record_page, user.id, page)).discovered


async def one_fax(ledger: Ledger, user: StreamRow) -> FaxRow:
    (fax,) = await record(ledger, user, new_fax("one"))
    return fax


async def fail(ledger: Ledger, fax: FaxRow, **fields: Any) -> FaxRow:
    values: dict[str, Any] = {
        "fence": (await ledger.read(faxes.one, fax.id)).fence,
        "now": NOW,
        "error": "it did not work",
        "problem": None,
        "next_attempt_at": NOW + MINUTE,
        "paused_s": 0.0,
        "quarantine": False,
    }
    values |= fields
    now = values.pop("now")
    return await ledger.write(jobs.attempt_failed, fax.id, now, jobs.Failure(**values))


async def store(ledger: Ledger, fax: FaxRow, **fields: Any) -> FaxRow:
    values: dict[str, Any] = {
        "now": NOW,
        "file": f"{fax.path}.pdf",
        "format": "pdf",
        "bytes": 12345,
        "sha256": "ab" * 32,
        "pages": 2,
        "damaged": False,
    }
    values |= fields
    now, problem = values.pop("now"), values.pop("problem", None)
    await ledger.write_together(
        jobs.stored, jobs.Stored(fax.id, now, StoredFile(**values), problem)
    )
    return await ledger.read(faxes.one, fax.id)


# -- users -----------------------------------------------------------------------------------------


async def test_users_come_back_in_the_order_asked_for(ledger: Ledger) -> None:
    asked = [("app", f"u{number}", "main", f"user-{number}") for number in (3, 1, 2)]
    rows = await ledger.write(streams.sync, asked, NOW)
    assert [(row.app_id, row.user_id, row.account, row.user) for row in rows] == asked
    again = await ledger.write(streams.sync, asked[::-1], NOW + DAY)
    assert again == rows[::-1]
    assert {row.our_first_seen for row in again} == {NOW}


async def test_labels_change_and_the_identity_stays(ledger: Ledger, user: StreamRow) -> None:
    (renamed,) = await ledger.write(streams.sync, [("app", "u1", "other", "reception")], NOW + DAY)
    assert renamed == dataclasses.replace(user, account="other", user="reception")
    assert [row.account for row in await ledger.read(accounts.all_accounts)] == ["other"]


async def test_a_user_no_longer_configured_is_kept_as_removed(
    ledger: Ledger, user: StreamRow
) -> None:
    await one_fax(ledger, user)
    await ledger.write(streams.sync, [], NOW)
    (removed,) = await ledger.read(streams.all_streams)
    assert (removed.removed, removed.user, removed.pending) == (True, "front-desk", 1)
    assert await ledger.read(streams.all_streams, include_removed=False) == []
    assert await ledger.read(jobs.streams_with_due, "app", NOW) == []
    (back,) = await ledger.write(streams.sync, [("app", "u1", "main", "front-desk")], NOW)
    assert not back.removed
    assert await ledger.read(jobs.streams_with_due, "app", NOW) == [user.id]


async def test_twenty_thousand_users_are_synced_at_once(ledger: Ledger) -> None:
    asked = [("app", f"u{number}", "main", f"user-{number}") for number in range(20_000)]
    rows = await ledger.write(streams.sync, asked, NOW)
    assert len({row.id for row in rows}) == 20_000
    before = ledger.commits
    assert await ledger.write(streams.sync, asked, NOW) == rows
    assert ledger.commits == before + 1


async def test_an_unknown_user_or_fax_is_a_lookup_error(ledger: Ledger) -> None:
    with pytest.raises(LookupError):
        await ledger.read(streams.one, 7)
    with pytest.raises(LookupError):
        await ledger.read(faxes.one, 7)
    with pytest.raises(LookupError):
        await ledger.write(
            faxes.record_page,
            7,
            faxes.ListedPage([new_fax("one")], window=None, found_by="newest", now=NOW),
        )


async def test_the_pinned_start_only_moves_to_earlier_times(
    ledger: Ledger, user: StreamRow
) -> None:
    async def pin(start: datetime, configured: str) -> tuple[datetime | None, str | None]:
        await ledger.write(fold.record, user.id, Pinned(start, configured))
        row = await ledger.read(streams.one, user.id)
        return row.pinned_start, row.configured_start

    assert await pin(NOW - DAY, "1d") == (NOW - DAY, "1d")
    assert await pin(NOW - HOUR, "1h") == (NOW - DAY, "1h")
    assert await pin(NOW - 7 * DAY, "7d") == (NOW - 7 * DAY, "7d")


async def test_polls_are_counted_until_one_succeeds(ledger: Ledger, user: StreamRow) -> None:
    await ledger.write(fold.record, user.id, NotPolled(NOW, "no answer"))
    until = NOW + MINUTE
    await ledger.write(fold.record, user.id, NotPolled(NOW + MINUTE, "refused", until))
    await ledger.write(fold.record, user.id, NotPolled(NOW + 2 * MINUTE, "no answer"))
    row = await ledger.read(streams.one, user.id)
    assert (row.failed_polls, row.refusals, row.refused_until) == (3, 1, until)
    assert (row.last_error, row.last_success_at) == ("no answer", None)
    assert row.last_poll_at == NOW + 2 * MINUTE
    await ledger.record_soon(user.id, Polled(NOW + HOUR))
    row = await ledger.read(streams.one, user.id)
    assert (row.failed_polls, row.refusals, row.refused_until) == (0, 0, None)
    assert (row.last_error, row.last_success_at) == (None, NOW + HOUR)


async def test_each_sweep_has_its_own_end_and_count(ledger: Ledger, user: StreamRow) -> None:
    await ledger.record_soon(user.id, Swept(SliceKind.SWEEP, NOW, 2))
    await ledger.record_soon(user.id, Swept(SliceKind.SWEEP, NOW + HOUR, 1))
    await ledger.record_soon(user.id, Swept(SliceKind.DEEP_SWEEP, NOW, 5))
    row = await ledger.read(streams.one, user.id)
    assert (row.sweep_end, row.found_by_sweep) == (NOW + HOUR, 3)
    assert (row.deep_sweep_end, row.found_by_deep_sweep) == (NOW, 5)


# -- accounts and single facts -----------------------------------------------------------------


async def test_accounts_without_a_configured_user_can_be_left_out(
    ledger: Ledger, user: StreamRow
) -> None:
    await ledger.write(streams.sync, [("app-2", "u2", "second", "front-desk")], NOW)
    assert [row.account for row in await ledger.read(accounts.all_accounts)] == ["main", "second"]
    (row,) = await ledger.read(accounts.all_accounts, include_removed=False)
    assert row.account == "second"


async def test_the_storage_id_is_remembered(ledger: Ledger) -> None:
    assert await ledger.read(meta.value, meta.STORAGE_ID) is None
    await ledger.write(meta.keep, meta.STORAGE_ID, "one")
    await ledger.write(meta.keep, meta.STORAGE_ID, "two")
    assert await ledger.read(meta.value, meta.STORAGE_ID) == "two"


async def test_a_suspension_is_remembered(ledger: Ledger) -> None:
    await ledger.write(accounts.set_suspended, "app", "main", NOW, "no answer")
    (row,) = await ledger.read(accounts.all_accounts)
    assert (row.account, row.suspended_until, row.reason) == ("main", NOW, "no answer")
    await ledger.write(accounts.set_suspended, "app", "renamed", None, None)
    (row,) = await ledger.read(accounts.all_accounts)
    assert (row.account, row.suspended_until, row.reason) == ("renamed", None, None)


async def test_the_give_up_clock_counts_pauses_and_the_one_that_runs(ledger: Ledger) -> None:
    async def paused_s(after_s: float, *, paused: bool) -> float:
        now = NOW + timedelta(seconds=after_s)
        return await ledger.write(accounts.pause_clock, "app", "main", now, paused=paused)

    assert await paused_s(0, paused=False) == 0
    assert await paused_s(10, paused=True) == 0
    assert await paused_s(15, paused=True) == 5
    assert await paused_s(30, paused=False) == 20
    assert await paused_s(99, paused=False) == 20
    assert await paused_s(100, paused=True) == 20
    assert await paused_s(50, paused=True) == 20  # the clock was set back
    assert await paused_s(60, paused=False) == 20
    assert (await ledger.read(accounts.all_accounts))[0].paused_s == 20


async def test_the_sign_in_budget_is_remembered(ledger: Ledger) -> None:
    assert await ledger.read(accounts.sign_in, "app") is None
    await ledger.write(accounts.save_sign_in, "app", 3.5, NOW)
    assert await ledger.read(accounts.sign_in, "app") == (3.5, NOW)
    await ledger.write(accounts.set_suspended, "app", "main", None, None)
    assert await ledger.read(accounts.sign_in, "app") == (3.5, NOW)
    assert (await ledger.read(accounts.all_accounts))[0].account == "main"


async def test_each_account_keeps_its_last_token(ledger: Ledger) -> None:
    first, second, other = (SealedToken(name, NOW, NOW + DAY) for name in ("one", "two", "three"))
    assert await ledger.read(accounts.token, "app") is None
    await ledger.write(accounts.save_sign_in, "app", 3.5, NOW)
    assert await ledger.read(accounts.token, "app") is None
    for app_id, kept in (("app", first), ("other", other), ("app", second)):
        await ledger.write(accounts.save_token, app_id, kept)
    assert await ledger.read(accounts.token, "app") == second
    assert await ledger.read(accounts.token, "other") == other
    assert await ledger.read(accounts.sign_in, "app") == (3.5, NOW)


# -- pages -----------------------------------------------------------------------------------------


async def test_only_users_with_waiting_faxes_are_counted(ledger: Ledger, user: StreamRow) -> None:
    assert await ledger.read(streams.waiting_counts) == {}
    one, two, _ = await record(ledger, user, new_fax("one"), new_fax("two"), new_fax("three"))
    await fail(ledger, one, quarantine=True)
    await store(ledger, two)
    assert await ledger.read(streams.waiting_counts) == {user.id: (1, 1)}
    await ledger.write(streams.sync, [], NOW)
    assert await ledger.read(streams.waiting_counts) == {}


async def test_new_faxes_are_pending_and_due_at_once(ledger: Ledger, user: StreamRow) -> None:
    first, second = await record(ledger, user, new_fax("one"), new_fax("two", received_at=None))
    assert (first.fax_id, second.fax_id) == ("one", "two")
    assert (first.app_id, first.user_id) == ("app", "u1")
    assert (first.account, first.user, first.stream) == ("main", "front-desk", user.id)
    assert (first.state, first.next_attempt_at) == (State.PENDING, NOW)
    assert (first.first_window, first.last_window) == (span(-24, 0), span(-24, 0))
    assert (first.received_at, second.received_at) == (NOW - HOUR, None)
    assert await ledger.read(jobs.due, user.id, NOW, 10) == [first, second]
    row = await ledger.read(streams.one, user.id)
    assert (row.discovered, row.pending, row.last_received_at) == (2, 2, NOW - HOUR)


async def test_a_known_fax_keeps_its_first_record(ledger: Ledger, user: StreamRow) -> None:
    before = await one_fax(ledger, user)
    changed = new_fax("one", path="other", listed={"changed": True}, received_at=NOW)
    assert await record(ledger, user, changed, now=NOW + MINUTE) == []
    assert await ledger.read(faxes.one, before.id) == before
    later = NOW + HOUR
    assert await record(ledger, user, changed, now=later, window=span(-1, 1)) == []
    assert await ledger.read(faxes.one, before.id) == dataclasses.replace(
        before, last_listed_at=later, last_window=span(-1, 1)
    )


async def test_a_fax_listed_twice_on_a_page_is_one_fax(ledger: Ledger, user: StreamRow) -> None:
    found = await record(ledger, user, new_fax("one"), new_fax("two"), new_fax("one", "other"))
    assert [(fax.fax_id, fax.path) for fax in found] == [
        ("one", "main/front-desk/one"),
        ("two", "main/front-desk/two"),
    ]


async def test_a_page_of_any_length_is_recorded(ledger: Ledger, user: StreamRow) -> None:
    faxes = [new_fax(f"fax-{number}") for number in range(1201)]
    assert len(await record(ledger, user, *faxes)) == 1201
    assert await record(ledger, user, *faxes, now=NOW + HOUR) == []


async def test_one_page_recorded_by_many_at_once_is_new_to_one(
    ledger: Ledger, user: StreamRow
) -> None:
    faxes = [new_fax(f"fax-{number}") for number in range(50)]
    found = await asyncio.gather(*(record(ledger, user, *faxes) for _ in range(10)))
    assert sorted(len(rows) for rows in found) == [0] * 9 + [50]
    assert (await ledger.read(streams.one, user.id)).discovered == 50


@pytest.mark.parametrize(
    "listed",
    [
        pytest.param({"z": 1, "a": 2, "m": {"y": [], "b": None}}, id="order of keys"),
        pytest.param({"size": 2**200, "duration": 1.1, "pages": "2"}, id="numbers"),
        pytest.param({"tsid": "lone \ud800 surrogate \x00 ümlaut \\u0041"}, id="odd text"),
        pytest.param({}, id="nothing"),
    ],
)
async def test_what_was_listed_is_kept_exactly(
    ledger: Ledger, user: StreamRow, listed: dict[str, Any]
) -> None:
    (fax,) = await record(ledger, user, new_fax("one", listed=listed))
    assert fax.listed == listed
    assert list(fax.listed) == list(listed)


@pytest.mark.parametrize(
    "fax_id",
    ["\x00", "\ud800", "\\ud800", "\\", "\\u005c", "é", "", " ", "%", "'; DROP TABLE faxes; --"],
)
async def test_any_id_can_be_kept_and_found(ledger: Ledger, user: StreamRow, fax_id: str) -> None:
    await record(ledger, user, new_fax("\\u0000", "a"), new_fax("ud800", "b"))
    (fax,) = await record(ledger, user, new_fax(fax_id, "some/path"))
    assert await ledger.read(faxes.find, fax_id) == [fax]
    assert fax.fax_id == fax_id


async def test_two_faxes_never_share_a_path(ledger: Ledger, user: StreamRow) -> None:
    second_path = disambiguated("same", "app/u1/two")
    third_path = disambiguated("same", "app/u1/three")
    (first,) = await record(ledger, user, new_fax("one", "same"))
    found = await record(
        ledger, user, new_fax("two", "same"), new_fax("three", "same"), new_fax("four", third_path)
    )
    assert [fax.path for fax in [first, *found]] == [
        "same",
        second_path,
        third_path,
        disambiguated(third_path, "app/u1/four"),
    ]
    taken = disambiguated("same", "app/u1/six")
    (_, last) = await record(ledger, user, new_fax("five", taken), new_fax("six", "same"))
    assert last.path == disambiguated(taken, "app/u1/six")


async def test_two_users_may_have_the_same_fax_id(ledger: Ledger) -> None:
    asked = [("app", "u1", "main", "front-desk"), ("app", "u2", "main", "billing")]
    one, two = await ledger.write(streams.sync, asked, NOW)
    (first,) = await record(ledger, one, new_fax("same"))
    (second,) = await record(ledger, two, new_fax("same", "main/billing/same"))
    assert await ledger.read(faxes.find, "same") == [first, second]
    assert await ledger.read(faxes.find, "same", account="main") == [first, second]
    assert await ledger.read(faxes.find, "same", account="main", user="billing") == [second]
    assert await ledger.read(faxes.find, "same", account="other") == []


async def test_a_fax_is_late_only_where_its_time_had_been_listed(
    ledger: Ledger, user: StreamRow
) -> None:
    await record(ledger, user, new_fax("old", received_at=NOW - 5 * DAY), covers=span(-2, -1))
    assert (await ledger.read(streams.one, user.id)).late_max_s == 0
    await record(ledger, user, new_fax("new", received_at=NOW - MINUTE))
    assert (await ledger.read(streams.one, user.id)).late_max_s == 0
    await record(ledger, user, new_fax("late", received_at=NOW - 1.5 * HOUR))
    await record(ledger, user, new_fax("less", received_at=NOW - 1.1 * HOUR))
    assert (await ledger.read(streams.one, user.id)).late_max_s == 5400


async def test_a_time_in_the_future_does_not_hide_silence(ledger: Ledger, user: StreamRow) -> None:
    far = datetime(9999, 12, 31, tzinfo=UTC)
    (fax,) = await record(ledger, user, new_fax("one", received_at=far))
    assert fax.received_at == far
    await record(ledger, user, new_fax("two", received_at=NOW - HOUR))
    assert (await ledger.read(streams.one, user.id)).last_received_at == NOW


# -- coverage --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("added", "merged"),
    [
        pytest.param([(-9, -6), (-3, 0)], [(-9, -6), (-3, 0)], id="apart"),
        pytest.param([(-9, -6), (-6, -3)], [(-9, -3)], id="touching"),
        pytest.param([(-9, -6), (-7, -3)], [(-9, -3)], id="overlapping"),
        pytest.param([(-9, 0), (-6, -3)], [(-9, 0)], id="inside"),
        pytest.param([(-6, -3), (-9, 0)], [(-9, 0)], id="around"),
        pytest.param([(-9, -7), (-5, -4), (-2, 0), (-7, -2)], [(-9, 0)], id="closing a gap"),
        pytest.param([(-3, 0), (-9, -6), (-4, -2)], [(-9, -6), (-4, 0)], id="in any order"),
    ],
)
async def test_coverage_is_merged(
    ledger: Ledger, user: StreamRow, added: list[Any], merged: list[Any]
) -> None:
    for ends in added:
        await record(ledger, user, covers=span(*ends))
    wanted = Coverage(tuple(span(*ends) for ends in merged))
    assert (await ledger.read(fold.progress, user.id)).coverage == wanted
    assert (await ledger.read(fold.all_progress))[user.id].coverage == wanted

    def count(connection: Connection) -> Any:
        return connection.scalar(text("SELECT count(*) FROM coverage"))

    assert await ledger._read(count) == len(merged)


async def test_coverage_is_each_users_own(ledger: Ledger, user: StreamRow) -> None:
    asked = [("app", "u1", "main", "front-desk"), ("app", "u2", "main", "billing")]
    one, two = await ledger.write(streams.sync, asked, NOW)
    await record(ledger, one, covers=span(-2, 0))
    assert (await ledger.read(fold.progress, two.id)).coverage == Coverage()
    await record(ledger, two, covers=span(-1, 0))
    assert (await ledger.read(fold.progress, one.id)).coverage == Coverage((span(-2, 0),))


async def test_a_page_and_its_coverage_are_recorded_together_or_not_at_all(
    ledger: Ledger, user: StreamRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    def boom(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("poller.ledger.fold._write_coverage", boom)
    with pytest.raises(ZeroDivisionError):
        await record(ledger, user, new_fax("one"), covers=span(-1, 0))
    assert await ledger.read(faxes.find, "one") == []
    assert (await ledger.read(streams.one, user.id)).discovered == 0
    assert (await ledger.read(fold.progress, user.id)).coverage == Coverage()


async def test_a_failed_slice_is_counted_and_forgotten_when_covered(
    ledger: Ledger, user: StreamRow
) -> None:
    await ledger.write(fold.record, user.id, SliceFailed(span(-9, -6), NOW, "first"))
    second, other = (
        SliceFailed(span(-9, -6), NOW + HOUR, "second"),
        SliceFailed(span(-4, -2), NOW, "other"),
    )
    await ledger.write(fold.record, user.id, second, other)
    older = FailedSlice(span(-9, -6), 2, NOW + HOUR, "second")
    newer = FailedSlice(span(-4, -2), 1, NOW, "other")
    assert (await ledger.read(fold.progress, user.id)).failed_slices == (older, newer)
    assert (await ledger.read(fold.all_progress))[user.id].failed_slices == (older, newer)
    await record(ledger, user, covers=span(-8, -2))
    assert (await ledger.read(fold.progress, user.id)).failed_slices == (older,)
    await record(ledger, user, covers=span(-9, -6))
    assert (await ledger.read(fold.progress, user.id)).failed_slices == ()


async def test_a_split_slice_is_replaced_by_its_halves(ledger: Ledger, user: StreamRow) -> None:
    halves = (span(-4, -2), span(-2, 0))
    await ledger.write(fold.record, user.id, SliceFailed(span(-4, 0), NOW + HOUR, "refused"))
    await ledger.write(fold.record, user.id, SliceFailed(span(-2, 0), NOW + HOUR, "known before"))
    await ledger.write(fold.record, user.id, SliceSplit(span(-4, 0), halves))
    older, newer = (await ledger.read(fold.progress, user.id)).failed_slices
    assert (older.interval, older.failures, older.reason) == (halves[0], 0, "refused")
    assert older.next_attempt_at < NOW
    assert (newer.interval, newer.failures, newer.reason) == (halves[1], 1, "known before")
    await ledger.write(fold.record, user.id, SliceSplit(span(-9, -7), (span(-9, -8), span(-8, -7))))
    assert len((await ledger.read(fold.progress, user.id)).failed_slices) == 4


# -- fetching --------------------------------------------------------------------------------------


async def test_what_is_due_longest_comes_first_and_quarantined_last(
    ledger: Ledger, user: StreamRow
) -> None:
    ids = ["quarantined", "later", "soon", "not due", "stored", "dismissed"]
    faxes = {fax.fax_id: fax for fax in await record(ledger, user, *map(new_fax, ids))}
    await fail(ledger, faxes["quarantined"], next_attempt_at=NOW - DAY, quarantine=True)
    await ledger.write(jobs.postpone, faxes["later"].id, faxes["later"].fence, NOW - MINUTE)
    await ledger.write(jobs.postpone, faxes["soon"].id, faxes["soon"].fence, NOW - HOUR)
    await ledger.write(jobs.postpone, faxes["not due"].id, faxes["not due"].fence, NOW + MINUTE)
    await store(ledger, faxes["stored"])
    await ledger.write(jobs.dismiss, faxes["dismissed"].id, now=NOW, reason="lost")

    async def due(limit: int, *exclude: str) -> list[str]:
        left_out = [faxes[name].id for name in exclude]
        return [fax.fax_id for fax in await ledger.read(jobs.due, user.id, NOW, limit, left_out)]

    assert await due(10) == ["soon", "later", "quarantined"]
    assert await due(2) == ["soon", "later"]
    assert await due(1, "soon") == ["later"]
    assert await due(1, "soon", "later") == ["quarantined"]
    assert await due(0) == []


async def test_who_has_something_due(ledger: Ledger) -> None:
    asked = [("app", f"u{number}", "main", f"user-{number}") for number in range(3)]
    one, _, three = await ledger.write(streams.sync, asked, NOW)
    (first,) = await record(ledger, one, new_fax("one"))
    (second,) = await record(ledger, three, new_fax("two"))
    assert await ledger.read(jobs.streams_with_due, "app", NOW) == [one.id, three.id]
    assert await ledger.read(jobs.streams_with_due, "other", NOW) == []
    await ledger.write(jobs.postpone, first.id, first.fence, NOW + HOUR)
    await fail(ledger, second, next_attempt_at=NOW + MINUTE, quarantine=True)
    assert await ledger.read(jobs.streams_with_due, "app", NOW) == []
    assert await ledger.read(jobs.streams_with_due, "app", NOW + MINUTE) == [three.id]
    await store(ledger, second)
    assert await ledger.read(jobs.streams_with_due, "app", NOW + MINUTE) == []
    assert await ledger.read(jobs.streams_with_due, "app", NOW + HOUR) == [one.id]
    await store(ledger, first)
    assert await ledger.read(jobs.streams_with_due, "app", NOW + HOUR) == []


async def test_a_stored_fax_says_what_was_stored(ledger: Ledger, user: StreamRow) -> None:
    fax = await fail(ledger, await one_fax(ledger, user))
    after = await store(ledger, fax, now=NOW + HOUR, damaged=True)
    assert (after.state, after.stored_at, after.next_attempt_at) == (
        State.STORED,
        NOW + HOUR,
        None,
    )
    assert (after.file, after.format, after.bytes) == ("main/front-desk/one.pdf", "pdf", 12345)
    assert (after.sha256, after.pages, after.damaged) == ("ab" * 32, 2, True)
    assert (after.attempts, after.failures, after.first_failed_at) == (2, 0, None)
    row = await ledger.read(streams.one, user.id)
    assert (row.pending, row.stored, row.damaged) == (0, 1, 1)
    assert row.last_stored_at == NOW + HOUR


async def test_storing_again_changes_nothing_but_what_differs(
    ledger: Ledger, user: StreamRow
) -> None:
    fax = await store(ledger, await one_fax(ledger, user), now=NOW + HOUR, damaged=True)
    assert await store(ledger, fax, damaged=True) == fax
    mended = await store(ledger, fax, damaged=False, sha256="cd" * 32)
    assert (mended.damaged, mended.sha256) == (False, "cd" * 32)
    row = await ledger.read(streams.one, user.id)
    assert (row.stored, row.damaged, row.last_stored_at) == (1, 0, NOW + HOUR)


async def test_faxes_stored_at_the_same_time_are_recorded_together_and_each_answers_for_itself(
    ledger: Ledger, user: StreamRow
) -> None:
    one, two, waiting = await record(ledger, user, *(new_fax(f"f{n}") for n in range(3)))
    before = ledger.commits
    outcomes = await asyncio.gather(
        store(ledger, one),
        store(ledger, one),  # the next fetch may record a fax whose fetch was cut off
        store(ledger, dataclasses.replace(two, id=999)),
        store(ledger, two, damaged=True),
        return_exceptions=True,
    )
    assert [isinstance(outcome, LookupError) for outcome in outcomes] == [False, False, True, False]
    assert ledger.commits - before == 1
    after = await ledger.read(streams.one, user.id)
    assert (after.stored, after.damaged, after.pending) == (2, 1, 1)
    assert len(await ledger.read(faxes.history, one.id)) == 1
    assert (await ledger.read(faxes.one, waiting.id)).state is State.PENDING


async def test_the_first_failure_starts_the_give_up_clock(ledger: Ledger, user: StreamRow) -> None:
    fax = await fail(ledger, await one_fax(ledger, user), paused_s=7.5, problem="no-eof")
    assert (fax.attempts, fax.failures, fax.next_attempt_at) == (1, 1, NOW + MINUTE)
    assert (fax.first_failed_at, fax.paused_s_at_first_failure) == (NOW, 7.5)
    assert (fax.last_error, fax.last_problem) == ("it did not work", "no-eof")
    again = await fail(ledger, fax, now=NOW + HOUR, paused_s=99, error="no answer")
    assert (again.attempts, again.failures) == (2, 2)
    assert (again.first_failed_at, again.paused_s_at_first_failure) == (NOW, 7.5)
    assert (again.last_error, again.last_problem) == ("no answer", "no-eof")


async def test_an_outcome_counts_only_for_the_decision_that_its_attempt_began_with(
    ledger: Ledger, user: StreamRow
) -> None:
    began = await one_fax(ledger, user)
    assert await ledger.read(jobs.is_open, began.id, began.fence)
    assert await ledger.write(jobs.make_due, [began.id], NOW + HOUR) == 1
    assert not await ledger.read(jobs.is_open, began.id, began.fence)
    late = await fail(ledger, began, fence=began.fence, quarantine=True)
    assert (late.state, late.failures, late.next_attempt_at) == (State.PENDING, 0, NOW + HOUR)
    assert (late.attempts, late.first_failed_at) == (1, None)
    gone = await ledger.write(jobs.dismiss, began.id, now=NOW, reason="lost")
    assert not await ledger.read(jobs.is_open, began.id, gone.fence)
    assert (await fail(ledger, gone, fence=late.fence)).state is State.DISMISSED


async def test_quarantine_is_entered_once_and_left_by_storing(
    ledger: Ledger, user: StreamRow
) -> None:
    fax = await fail(ledger, await one_fax(ledger, user), quarantine=True)
    assert (fax.state, fax.quarantined_at) == (State.QUARANTINED, NOW)
    again = await fail(ledger, fax, now=NOW + DAY, quarantine=True)
    assert (again.state, again.quarantined_at, again.failures) == (State.QUARANTINED, NOW, 2)
    still = await fail(ledger, fax, now=NOW + DAY, quarantine=False)
    assert still.state is State.QUARANTINED
    row = await ledger.read(streams.one, user.id)
    assert (row.pending, row.quarantined) == (0, 1)
    await store(ledger, fax)
    row = await ledger.read(streams.one, user.id)
    assert (row.quarantined, row.stored) == (0, 1)


@pytest.mark.parametrize("state", [State.STORED, State.DISMISSED])
async def test_a_late_failure_does_not_reopen_a_settled_fax(
    ledger: Ledger, user: StreamRow, state: State
) -> None:
    fax = await one_fax(ledger, user)
    if state is State.STORED:
        before = await store(ledger, fax)
    else:
        before = await ledger.write(jobs.dismiss, fax.id, now=NOW, reason="lost")
    after = await fail(ledger, fax, quarantine=True)
    assert after == dataclasses.replace(before, attempts=before.attempts + 1)
    await ledger.write(jobs.postpone, fax.id, fax.fence, NOW)
    assert await ledger.read(faxes.one, fax.id) == after
    assert len(await ledger.read(faxes.history, fax.id)) == 2


async def test_a_stored_fax_is_not_dismissed(ledger: Ledger, user: StreamRow) -> None:
    fax = await store(ledger, await one_fax(ledger, user))
    assert await ledger.write(jobs.dismiss, fax.id, now=NOW, reason="mistaken") == fax


async def test_a_dismissed_fax_keeps_its_reason(ledger: Ledger, user: StreamRow) -> None:
    fax = await fail(ledger, await one_fax(ledger, user), quarantine=True)
    gone = await ledger.write(jobs.dismiss, fax.id, now=NOW + DAY, reason="lost at the sender")
    assert (gone.state, gone.dismissed_at) == (State.DISMISSED, NOW + DAY)
    assert gone.dismiss_reason == "lost at the sender"
    row = await ledger.read(streams.one, user.id)
    assert (row.quarantined, row.dismissed, row.discovered) == (0, 1, 1)


async def test_making_due_takes_all_quarantined_or_the_named_ones(
    ledger: Ledger, user: StreamRow
) -> None:
    ids = ["one", "two", "waiting", "stored", "dismissed"]
    rows = {fax.fax_id: fax for fax in await record(ledger, user, *map(new_fax, ids))}
    for name in ("one", "two"):
        await fail(ledger, rows[name], next_attempt_at=NOW + DAY, quarantine=True)
    await fail(ledger, rows["waiting"], next_attempt_at=NOW + DAY)
    await store(ledger, rows["stored"])
    await ledger.write(jobs.dismiss, rows["dismissed"].id, now=NOW, reason="lost")
    assert await ledger.write(jobs.make_due, None, NOW) == 2
    assert await ledger.write(jobs.make_due, None, NOW) == 0
    fax = await ledger.read(faxes.one, rows["one"].id)
    assert (fax.state, fax.next_attempt_at, fax.failures) == (State.PENDING, NOW, 0)
    assert (fax.first_failed_at, fax.quarantined_at) == (None, None)
    named = [rows[name].id for name in ("waiting", "stored", "dismissed", "waiting")]
    assert await ledger.write(jobs.make_due, [*named, 999], NOW) == 2
    assert await ledger.write(jobs.make_due, [], NOW) == 0
    due = {fax.fax_id for fax in await ledger.read(jobs.due, user.id, NOW, 10)}
    assert due == {"one", "two", "waiting", "dismissed"}
    back = await ledger.read(faxes.one, rows["dismissed"].id)
    assert (back.dismissed_at, back.dismiss_reason) == (None, None)


async def test_the_last_fifty_attempts_are_kept(ledger: Ledger, user: StreamRow) -> None:
    fax, other = await record(ledger, user, new_fax("one"), new_fax("two"))
    await fail(ledger, other)
    for number in range(60):
        problem = "no-eof" if number % 2 else None
        await fail(ledger, fax, now=NOW + number * MINUTE, error=f"e{number}", problem=problem)
    await store(ledger, fax)
    attempts = await ledger.read(faxes.history, fax.id)
    assert len(attempts) == 50
    assert (attempts[0].error, attempts[0].outcome) == ("e11", "no-eof")
    assert attempts[0].at == NOW + 11 * MINUTE
    assert (attempts[1].outcome, attempts[-1].outcome) == ("failed", "stored")
    assert len(await ledger.read(faxes.history, other.id)) == 1


async def test_names_that_differ_only_in_case_are_one_name_and_ordinary_ones_stay(
    ledger: Ledger, user: StreamRow
) -> None:
    """On Windows, Samba and casefold they would be one file; the storage may move there later."""
    ids = ["CaseId", "caseid", "other", "Ordinary", "CASEID"]
    pages = [ids[:1], ids[1:3], ids[3:]]
    found = [
        fax for page in pages for fax in await record(ledger, user, *map(new_fax, page))
    ]  # fmt: skip
    assert [fax.path.rpartition("/")[2] for fax in found] == [
        "CaseId",
        "caseid" + _suffix("caseid"),
        "other",
        "Ordinary",
        "CASEID" + _suffix("CASEID"),
    ]
    (more,) = await record(ledger, user, new_fax("OTHER"))
    assert more.path == "main/front-desk/OTHER" + _suffix("OTHER")


def _suffix(fax_id: str) -> str:
    return disambiguated("", f"app/u1/{fax_id}")


async def test_paths_of_waiting_faxes_are_those_that_are_fetched_next(
    ledger: Ledger, user: StreamRow
) -> None:
    paths = ["a/1/x", "a/1/y", "a/2/x", "top", "b/x", "c/gone"]
    rows = {fax.path: fax for fax in await record(ledger, user, *(new_fax(p, p) for p in paths))}
    for path in ("a/2/x", "b/x", "top"):
        await store(ledger, rows[path])
    await ledger.write(jobs.dismiss, rows["c/gone"].id, now=NOW, reason="lost")
    assert sorted(await ledger.read(jobs.pending_paths, "app")) == ["a/1/x", "a/1/y"]


async def test_ticket_of_a_fax_that_is_published_next_stays_in_its_row_until_it_is_stored(
    ledger: Ledger, user: StreamRow
) -> None:
    fax = await one_fax(ledger, user)
    file = StoredFile(f"{fax.path}.pdf", "pdf", 12345, "ab" * 32, pages=None, damaged=True)
    staged = Staged(file, "1:2/.f.json.part", "pdf-no-eof: it is cut")
    await ledger.write_together(jobs.staged, (fax.id, staged))
    await fail(ledger, fax)
    await ledger.write(jobs.make_due, [fax.id], NOW)
    held = await ledger.read(faxes.one, fax.id)
    assert (held.staged, held.state, held.file) == (staged, State.PENDING, None)
    await ledger.write_together(jobs.staged, (fax.id, None))
    assert (await ledger.read(faxes.one, fax.id)).staged is None
    await ledger.write_together(jobs.staged, (fax.id, staged))
    assert (await store(ledger, fax)).staged is None


# -- counters --------------------------------------------------------------------------------------

COUNTED = """
SELECT count(*), count(*) FILTER (WHERE state = 'stored'),
       count(*) FILTER (WHERE state = 'pending'), count(*) FILTER (WHERE state = 'quarantined'),
       count(*) FILTER (WHERE state = 'dismissed'), count(*) FILTER (WHERE damaged)
FROM faxes WHERE stream = :user
"""


async def act(ledger: Ledger, users: list[StreamRow], known: list[FaxRow], dice: Any) -> None:
    fax = dice.choice(known) if known else None
    what = dice.randrange(8) if fax else 0
    if what == 0 or fax is None:
        user = dice.choice(users)
        faxes = [
            new_fax(f"{dice.randrange(30)}", f"{user.id}/{dice.randrange(9)}") for _ in range(3)
        ]
        covers = dice.choice([None, span(-dice.randrange(1, 9), 0)])
        known += await record(ledger, user, *faxes, covers=covers)
    elif what == 1:
        await store(ledger, fax, damaged=dice.choice([True, False]))
    elif what in (2, 3):
        quarantine = dice.choice([True, False])
        await fail(ledger, fax, quarantine=quarantine)
    elif what == 4:
        await ledger.write(jobs.dismiss, fax.id, now=NOW, reason="lost")
    elif what == 5:
        await ledger.write(jobs.make_due, None, NOW)
    elif what == 6:
        await ledger.write(
            jobs.make_due, [one.id for one in dice.sample(known, min(3, len(known)))], NOW
        )
    else:
        await ledger.write(jobs.postpone, fax.id, fax.fence, NOW + MINUTE)


@pytest.mark.parametrize("seed", range(5))
async def test_counters_always_equal_a_recount(ledger: Ledger, seed: int) -> None:
    dice = random.Random(seed)
    asked = [("app", f"u{number}", "main", f"user-{number}") for number in range(3)]
    users = await ledger.write(streams.sync, asked, NOW)
    known: list[FaxRow] = []

    def recount(user: int) -> Any:
        def work(connection: Connection) -> Any:
            return tuple(connection.execute(text(COUNTED), {"user": user}).one())

        return ledger._read(work)

    for _ in range(15):
        await asyncio.gather(*(act(ledger, users, known, dice) for _ in range(4)))
        for row in await ledger.read(streams.all_streams):
            kept = (
                row.discovered,
                row.stored,
                row.pending,
                row.quarantined,
                row.dismissed,
                row.damaged,
            )
            assert kept == await recount(row.id)
    assert len(known) > 10
    assert len({fax.path for fax in known}) == len(known)
