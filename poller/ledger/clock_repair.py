"""Take back what a clock that was ahead has put off, and what it vouched for."""

from datetime import datetime, timedelta

from sqlalchemy import Connection, update

from poller.ledger.tables import failed_slices, jobs, streams

# A little more than the longest that each of them is ever put off for.
LONGEST_ATTEMPT = timedelta(hours=30)
LONGEST_REFUSAL = timedelta(hours=2)
LONGEST_SLICE = timedelta(hours=12)


def forget_far_future(connection: Connection, now: datetime) -> None:
    """Make due what is put off for longer than anything ever is: our clock had been ahead."""
    connection.execute(update(jobs).where(jobs.c.due > now + LONGEST_ATTEMPT).values(due=now))
    connection.execute(
        update(streams)
        .where(streams.c.refused_until > now + LONGEST_REFUSAL)
        .values(refused_until=None)
    )
    connection.execute(
        update(streams).where(streams.c.last_success_at > now).values(last_success_at=now)
    )
    connection.execute(
        update(failed_slices)
        .where(failed_slices.c.next_attempt_at > now + LONGEST_SLICE)
        .values(next_attempt_at=now)
    )
