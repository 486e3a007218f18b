"""A ledger after years of work, made in minutes, for benchmarks of large ledgers."""

import json
import random
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from poller.ledger import Ledger, StreamRow, streams

AGE = timedelta(days=730)
_SECOND = 1_000_000  # of the ledger's microseconds
_FAILED_BEFORE = 50  # one in this many succeeded only at the second attempt
_ABOUT_A_FAX = {
    "size": 48213,
    "duration": 61,
    "pages": 2,
    "image_downloaded": False,
    "fax_status": "STORED",
    "completed_timestamp": "2024-05-21T04:27:56.000+0000",
    "originating_fax_number": "13235551234",
    "destination_fax_number": "18185554321",
    "originating_fax_tsid": "SUNSET RADIOLOGY",
}
_FAX = (
    "INSERT INTO faxes (id, stream, fax_id, state, path, listed, received_at, first_seen_at, "
    "attempts, stored_at, file, format, bytes, sha256, pages, found_by, "
    "first_window_start, first_window_end, last_window_start, last_window_end, last_listed_at) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'newest', ?, ?, ?, ?, ?)"
)


@dataclass(frozen=True)
class Shape:
    """How many users and faxes; the newest `pending` faxes are still to be fetched."""

    users: int
    faxes: int
    pending: int = 0


async def make(path: Path, shape: Shape, now: datetime) -> list[StreamRow]:
    """Make a ledger at `path` whose faxes are spread evenly over two years and all users; return the users.

    They are those of `measured.settings`.
    """
    wanted = [("app-1", f"user-{n}", "main", f"u{n}") for n in range(shape.users)]
    async with await Ledger.open(f"sqlite:///{path}") as ledger:
        users = await ledger.write(streams.sync, wanted, now - AGE)
    with closing(sqlite3.connect(path)) as connection:
        for setting in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-4000000"):
            connection.execute(f"PRAGMA {setting}")
        with connection:
            _fill(connection, users, shape, now)
    return users


def _fill(
    connection: sqlite3.Connection, users: Sequence[StreamRow], shape: Shape, now: datetime
) -> None:
    connection.executemany(_FAX, _faxes(users, shape, now))
    connection.execute(
        "INSERT INTO jobs (kind, subject, stream, due) "
        "SELECT 'fetch', id, stream, first_seen_at FROM faxes WHERE state = 'pending'"
    )
    connection.execute(
        "INSERT INTO attempts (fax, at, outcome, error) "
        "SELECT id, received_at, 'failed', 'HTTP 404' FROM faxes WHERE attempts > 1"
    )
    connection.execute(
        "INSERT INTO attempts (fax, at, outcome) "
        "SELECT id, stored_at, 'stored' FROM faxes WHERE state = 'stored'"
    )
    _fill_users(connection, now)


def _fill_users(connection: sqlite3.Connection, now: datetime) -> None:
    at = instant(now)
    connection.execute(
        "CREATE TEMP TABLE counts AS SELECT stream, count(*) AS discovered, "
        "sum(state = 'stored') AS stored, sum(state = 'pending') AS pending, "
        "max(received_at) AS received, max(stored_at) AS last FROM faxes GROUP BY stream"
    )
    connection.execute(
        "UPDATE streams SET discovered = c.discovered, stored = c.stored, pending = c.pending, "
        "last_received_at = c.received, last_stored_at = c.last "
        "FROM counts AS c WHERE c.stream = streams.id"
    )
    connection.execute(
        "UPDATE streams SET pinned_start = ?, configured_start = '7 days, 0:00:00', "
        "last_poll_at = ?, last_success_at = ?, sweep_end = ?, deep_sweep_end = ?",
        (at - AGE // timedelta(microseconds=1), at, at, at, at),
    )
    connection.execute(
        'INSERT INTO coverage (stream, "start", "end") SELECT id, pinned_start, ? FROM streams',
        (at - 10 * _SECOND,),
    )


def _faxes(users: Sequence[StreamRow], shape: Shape, now: datetime) -> Iterator[tuple[object, ...]]:
    chance = random.Random(1)  # the same ids each time
    step = AGE // max(1, shape.faxes)
    for number in range(1, shape.faxes + 1):
        user = users[number * 7919 % len(users)]
        received = now - step * (shape.faxes - number)
        fax_id = str(uuid.UUID(int=chance.getrandbits(128)))
        is_stored = number <= shape.faxes - shape.pending
        yield _fax(number, user, fax_id, received, is_stored=is_stored)


def _fax(
    number: int, user: StreamRow, fax_id: str, received: datetime, *, is_stored: bool
) -> tuple[object, ...]:
    at = instant(received)
    path = f"{user.account}/{user.user}/{received:%Y/%m/%d}/{fax_id}"
    window = (at - 900 * _SECOND, at + 30 * _SECOND)
    attempts = (2 if number % _FAILED_BEFORE == 0 else 1) if is_stored else 0
    stored = (at + 60 * _SECOND, f"{path}.pdf", "pdf", 48213, fax_id.replace("-", "") * 2, 2)
    return (
        *(number, user.id, fax_id, "stored" if is_stored else "pending", path),
        *(json.dumps({"fax_id": fax_id, **_ABOUT_A_FAX}, separators=(",", ":")), at, at),
        attempts,
        *(stored if is_stored else (None,) * len(stored)),
        *(*window, *window, at),
    )


def instant(at: datetime) -> int:
    """Return the value as the ledger holds it."""
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
