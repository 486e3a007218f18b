"""All that polls of a user go by, read in one transaction."""

from sqlalchemy import Connection

from poller.ledger import backfills, listing, users
from poller.ledger.rows import Progress
from poller.window import Coverage


def of_one(connection: Connection, user: int) -> Progress:
    return Progress(
        users.one_user(connection, user),
        listing.covered(connection, user),
        listing.failed(connection, user),
        user in backfills.users_waiting(connection),
    )


def of_all(connection: Connection) -> dict[int, Progress]:
    coverages, failed = listing.coverages(connection), listing.all_failed(connection)
    to_backfill = backfills.users_waiting(connection)
    return {
        row.id: Progress(
            row,
            coverages.get(row.id, Coverage()),
            failed.get(row.id, []),
            row.id in to_backfill,
        )
        for row in users.all_users(connection, include_removed=True)
    }
