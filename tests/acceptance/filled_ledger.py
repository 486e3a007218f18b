"""A ledger after a day of work, for as many users as wanted, for tests of status and page."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import datetime, timedelta

from poller.ledger import Ledger, NewFax, StreamRow, faxes, fold, jobs, streams
from poller.progress import NotPolled, Pinned, SliceFailed
from poller.window import Interval

APP = "app-1"
_HOUR = timedelta(hours=1)


def names(count: int) -> list[str]:
    return [f"clinic-{number:04}" for number in range(count)]


async def fill(url: str, count: int, now: datetime, *, well: bool) -> None:
    """Make a ledger of users with a day of faxes; unless all is `well`, six users have one trouble each."""
    wanted = [(APP, f"id-of-{name}", "main", name) for name in names(count)]
    async with await Ledger.open(url) as ledger:
        users = await ledger.write(streams.sync, wanted, now - timedelta(days=30))
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection, connection:
        # straight into the tables; through the ledger's commands it takes minutes
        _worked(connection, users, now)
    if not well:
        async with await Ledger.open(url) as ledger:
            await _trouble(ledger, users, now)


def _worked(connection: sqlite3.Connection, users: Sequence[StreamRow], now: datetime) -> None:
    at, hour = int(now.timestamp() * 1e6), 3_600_000_000
    week_ago = at - 7 * 24 * hour
    each = [(user.id, 2 + number % 4, number) for number, user in enumerate(users)]
    connection.executemany(
        "UPDATE streams SET pinned_start = ?, configured_start = '7 days, 0:00:00', last_poll_at = ?, "
        "last_success_at = ?, discovered = ?, stored = ?, last_received_at = ? WHERE id = ?",
        [
            (week_ago, at - number % 30 * 1_000_000, at, faxes, faxes, at - hour, user)
            for user, faxes, number in each
        ],
    )
    connection.executemany(
        'INSERT INTO coverage (stream, "start", "end") VALUES (?, ?, ?)',
        [(user, week_ago, at - 20_000_000) for user, _, _ in each],
    )
    connection.executemany(
        "INSERT INTO faxes (stream, fax_id, state, path, listed, first_seen_at, last_listed_at, "
        "found_by, stored_at, file, sha256) VALUES (?, ?, 'stored', ?, '{}', ?, ?, 'newest', ?, ?, ?)",
        [
            (user, f"f-{user}-{one}", f"{user}/{one}", at, at, when, f"{user}/{one}.pdf", "0" * 64)
            for user, faxes, number in each
            for one in range(faxes)
            for when in [at - hour * ((one * one * 3 + number) % 26)]
        ],
    )


async def _trouble(ledger: Ledger, users: Sequence[StreamRow], now: datetime) -> None:
    refused, failing, late, poisoned, damaged, gap = users[:6]
    error = "eFax answered the list call with HTTP 403 (not allowed)."
    await ledger.write(fold.record, refused.id, NotPolled(now, error, now + _HOUR))
    no_json = NotPolled(now, "The list answer is not JSON.")
    await ledger.write(fold.record, failing.id, no_json)
    for user, quarantine in ((late, False), (poisoned, True)):
        fax = NewFax(f"bad-{user.user}", f"main/{user.user}/bad", {}, now - _HOUR)
        page = await ledger.write(
            faxes.record_page,
            user.id,
            faxes.ListedPage([fax], window=None, found_by="newest", now=now - _HOUR),
        )
        (row,) = page.discovered
        await ledger.write(
            jobs.attempt_failed,
            row.id,
            now,
            jobs.Failure(
                fence=row.fence,
                error="The image is not strict base64.",
                problem="bad-base64",
                next_attempt_at=now + 24 * _HOUR,
                paused_s=0.0,
                quarantine=quarantine,
            ),
        )
    on_disk = next(
        one for one in await ledger.read(faxes.on_disk, None, 10_000) if one.user == damaged.user
    )
    await ledger.write(
        faxes.note_damage, {on_disk.id: (on_disk.sha256, "the image has changed")}, now
    )
    missing = Interval(now - 20 * _HOUR * 24, now - 19 * _HOUR * 24)
    await ledger.write(fold.record, gap.id, Pinned(missing.start, "20d"))
    await ledger.write(fold.record, gap.id, SliceFailed(missing, now + _HOUR, "HTTP 400"))
