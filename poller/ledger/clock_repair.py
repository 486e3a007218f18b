"""Undo what a clock that was ahead, this machine's or another node's, has postponed or vouched for."""

from datetime import datetime, timedelta

from sqlalchemy import Connection, case, literal, select, update

from poller import retry
from poller.ledger.tables import Instant, JobKind, State, failed_slices, faxes, jobs, streams

# a little more than the longest time for which each is ever postponed
LONGEST_JOB = {
    JobKind.FETCH: timedelta(hours=30),
    JobKind.DELETE: timedelta(hours=12),
    JobKind.MARK: timedelta(hours=12),
}
LONGEST_REFUSAL = timedelta(hours=2)
LONGEST_SLICE = timedelta(hours=12)
# of a pending fax, by its failures so far
_WAITS = {count: retry.next_attempt(count, quarantined=False, u=1.0) for count in range(1, 8)}


def forget_far_future(connection: Connection, app_id: str, now: datetime) -> None:
    """Make due what an account postponed for longer than it ever would: the clock was ahead."""
    theirs = select(streams.c.id).where(streams.c.app_id == app_id)
    pending = select(faxes.c.id).where(faxes.c.id == jobs.c.subject, faxes.c.state == State.PENDING)
    waits = [(jobs.c.failures <= count, now + wait) for count, wait in _WAITS.items()]
    at_last = case(
        *((fewer, literal(at, Instant)) for fewer, at in waits),
        else_=literal(now + LONGEST_JOB[JobKind.FETCH], Instant),
    )
    wrong = update(jobs).where(jobs.c.kind == JobKind.FETCH, jobs.c.due > at_last)
    connection.execute(wrong.where(jobs.c.stream.in_(theirs), pending.exists()).values(due=now))
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
