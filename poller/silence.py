"""Whether a user has received nothing for longer than expected."""

from bisect import bisect_left
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo

from poller.config.model import During, Expect
from poller.window import Coverage

_A_MONDAY = datetime(1970, 1, 5, tzinfo=UTC)
_DAY, _WEEK = timedelta(days=1), timedelta(days=7)


def silent_since(expect: Expect | None, last: datetime, coverage: Coverage) -> datetime | None:
    """Return since when nothing has arrived, if that is longer than `expect.within`; otherwise None.

    `last` is when the last fax was received, or when the user was first seen. Only time that is
    listed without a break up to the newest instant counts: time not yet listed may contain a fax.
    """
    if expect is None or not coverage.intervals:
        return None
    listed = coverage.intervals[-1]
    since = max(last, listed.start)
    silence = silent_for(since, listed.end, expect.during, expect.timezone)
    return since if silence > expect.within else None


def silent_for(last: datetime, now: datetime, during: During | None, zone: tzinfo) -> timedelta:
    """Return the time since `last`, counting only office hours if they are given.

    This is real time, exact across daylight saving. It looks at the zone once per week, so decades
    are cheap.
    """
    if now <= last:
        return timedelta(0)
    if during is None:
        return now - last
    silence = timedelta(0)
    for start, end, ahead in _stretches(last, now, zone):
        silence += _office_time(during, end + ahead) - _office_time(during, start + ahead)
    return silence


def _office_time(during: During, wall: datetime) -> timedelta:
    """Add up the office hours from a fixed Monday to `wall` (aware UTC standing for wall time)."""
    weeks, rest = divmod(wall - _A_MONDAY, _WEEK)
    overnight = during.end_minute <= during.start_minute  # a night shift belongs to its first day
    end = during.end_minute + 1440 if overnight else during.end_minute
    length = timedelta(minutes=end - during.start_minute)
    total = weeks * len(during.weekdays) * length
    for weekday in during.weekdays:
        opens = weekday * _DAY + timedelta(minutes=during.start_minute)
        # The shift a week earlier may extend into this week: Sunday night.
        for passed in (rest - opens, rest - opens + _WEEK):
            total += min(max(passed, timedelta(0)), length)
    return total


def _stretches(
    start: datetime, end: datetime, zone: tzinfo
) -> Iterator[tuple[datetime, datetime, timedelta]]:
    """Cut a span where the zone's offset changes; no zone changes there and back within a week."""
    begun = at = start
    while at < end:
        step = min(end, at + _WEEK)
        if _offset(zone, step) != _offset(zone, at):
            change = _change(at, step, zone)
            yield begun, change, _offset(zone, at)
            begun = change
        at = step
    yield begun, end, _offset(zone, begun)


def _change(before: datetime, after: datetime, zone: tzinfo) -> datetime:
    """Return the instant at which the offset of `before` ends; `after` has another offset."""
    was, instant = _offset(zone, before), timedelta(microseconds=1)
    steps = range((after - before) // instant)
    changed = bisect_left(steps, 1, key=lambda step: _offset(zone, before + step * instant) != was)
    return before + changed * instant


def _offset(zone: tzinfo, instant: datetime) -> timedelta:
    return instant.astimezone(zone).utcoffset() or timedelta(0)
