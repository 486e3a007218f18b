"""Undo what a clock that was ahead has postponed or vouched for."""

from datetime import datetime, timedelta

from sqlalchemy import Connection, update

from poller.ledger.tables import JobKind, failed_slices, jobs, streams

# a little more than the longest time for which each is ever postponed
LONGEST_JOB = {
    JobKind.FETCH: timedelta(hours=30),
    JobKind.DELETE: timedelta(hours=12),
    JobKind.MARK: timedelta(hours=12),
}
LONGEST_REFUSAL = timedelta(hours=2)
LONGEST_SLICE = timedelta(hours=12)


def forget_far_future(connection: Connection, now: datetime) -> None:
    """Make due what is postponed for longer than anything ever is: our clock was ahead."""
    for kind in JobKind:
        wrong = update(jobs).where(jobs.c.kind == kind, jobs.c.due > now + LONGEST_JOB[kind])
        connection.execute(wrong.values(due=now))
    for column, longest, instead in (
        (streams.c.refused_until, LONGEST_REFUSAL, None),
        (streams.c.last_success_at, timedelta(0), now),
        (failed_slices.c.next_attempt_at, LONGEST_SLICE, now),
    ):
        wrong = update(column.table).where(column > now + longest)
        connection.execute(wrong.values({column: instead}))
