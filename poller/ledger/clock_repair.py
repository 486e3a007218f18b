"""Undo what a clock that was ahead has postponed or vouched for."""

from datetime import datetime, timedelta

from sqlalchemy import Connection, select, update

from poller.ledger.tables import JobKind, failed_slices, jobs, streams

# a little more than the longest time for which each is ever postponed
LONGEST_JOB = {
    JobKind.FETCH: timedelta(hours=30),
    JobKind.DELETE: timedelta(hours=12),
    JobKind.MARK: timedelta(hours=12),
}
LONGEST_REFUSAL = timedelta(hours=2)
LONGEST_SLICE = timedelta(hours=12)


def forget_far_future(connection: Connection, app_id: str, now: datetime) -> None:
    """Make due what an account postponed for longer than anything ever is: our clock was ahead."""
    theirs = select(streams.c.id).where(streams.c.app_id == app_id)
    for kind in JobKind:
        wrong = update(jobs).where(jobs.c.kind == kind, jobs.c.due > now + LONGEST_JOB[kind])
        connection.execute(wrong.where(jobs.c.stream.in_(theirs)).values(due=now))
    for stream, column, longest, instead in (
        (streams.c.id, streams.c.refused_until, LONGEST_REFUSAL, None),
        (streams.c.id, streams.c.last_success_at, timedelta(0), now),
        (failed_slices.c.stream, failed_slices.c.next_attempt_at, LONGEST_SLICE, now),
    ):
        wrong = update(column.table).where(stream.in_(theirs), column > now + longest)
        connection.execute(wrong.values({column: instead}))
