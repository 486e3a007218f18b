"""When to poll: phases on a grid, standard cron, office hours."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Protocol
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
GRID = timedelta(milliseconds=100)  # users due together share one wake-up of the event loop
LATE_AT_LEAST = timedelta(minutes=5)
LISTS_SHARE = 0.75  # of the limit; the rest stays for images, sign-ins and repeats
DAY = timedelta(days=1)
WEEK = timedelta(days=7)
_A_MONDAY = EPOCH + timedelta(days=4)
_CRON_LENGTH = 200
_CRON_TRIAL = datetime(2024, 1, 1, tzinfo=UTC)


class Timing(Protocol):
    """When a user is polled (`config.model.Poll`): exactly one of `every` and `cron` is set."""

    @property
    def every(self) -> timedelta | None: ...
    @property
    def cron(self) -> str | None: ...
    @property
    def timezone(self) -> ZoneInfo: ...


class Hours(Protocol):
    """Weekly office hours (`config.model.During`): Monday is 0, minutes of the day, end exclusive.

    An end that is not after its start lies on the next day: a night shift counts for its first.
    """

    @property
    def weekdays(self) -> frozenset[int]: ...
    @property
    def start_minute(self) -> int: ...
    @property
    def end_minute(self) -> int: ...


@lru_cache(maxsize=1 << 15)  # asked for twice a poll, and always the same
def phase(identity: str, every: timedelta) -> timedelta:
    """Spread users evenly over their interval: 0 <= phase < every, the same after each restart.

    A whole number of `GRID` steps, so that a thousand users do not need a thousand timers.
    """
    digest = hashlib.sha256(identity.encode(errors="surrogatepass")).digest()
    steps = max(1, -(-every // GRID))
    return (int.from_bytes(digest[:8]) * steps >> 64) * GRID


def next_on_grid(now: datetime, every: timedelta, offset: timedelta) -> datetime:
    """Find the first instant `EPOCH + offset + k * every` strictly after `now`.

    Arithmetic only: a clock that jumps by fifty years costs nothing and leaves no missed runs.
    """
    origin = EPOCH + offset
    return origin + ((now - origin) // every + 1) * every


def next_poll(poll: Timing, identity: str, now: datetime, factor: float = 1.0) -> datetime:
    """Say when this user is polled next, strictly after `now`, UTC.

    `factor` (from `stretched`) makes an interval longer; a cron time is what an operator
    wrote down and stays as it is, pacing spreads what falls on the same minute.
    """
    if poll.cron is not None:
        return next_cron(poll.cron, poll.timezone, now)
    assert poll.every is not None
    every = real_interval(poll.every, factor)
    return next_on_grid(now, every, phase(identity, every))


def is_overdue(
    poll: Timing, identity: str, last: datetime, now: datetime, factor: float = 1.0
) -> bool:
    """Tell whether the poll after the good one at `last` is long past; `factor` as in `next_poll`."""
    if now <= last + LATE_AT_LEAST:
        return False  # as most are, whatever their schedule
    slack = max(LATE_AT_LEAST, 2 * (poll.every or timedelta(0)) * factor)
    return now > next_poll(poll, identity, last, factor) + slack


def real_interval(every: timedelta, factor: float) -> timedelta:
    """Return the interval as it is when the limit stretches it by `factor`."""
    return every if factor <= 1 else -(-(every * factor) // GRID) * GRID


def stretched(
    intervals_s: Sequence[float],
    requests_per_second: float,
    share: float = LISTS_SHARE,
    fixed_per_s: float = 0.0,
) -> float:
    """Return the factor (>= 1) by which all intervals grow to fit the lists into the limit.

    `share` of the limit is for lists; the rest stays for images, sign-ins and repeats. What
    `fixed_per_s` takes of it does not stretch; a tenth is left for polls whatever that takes.
    """
    demand = math.fsum(1 / interval for interval in intervals_s)
    for_lists = requests_per_second * share
    return max(1.0, demand / max(for_lists - fixed_per_s, for_lists / 10))


def cron_problem(text: str) -> str | None:
    """Say in one sentence what is wrong with a cron expression, None when it is good."""
    try:
        next_cron(text, ZoneInfo("UTC"), _CRON_TRIAL)
    except ValueError as error:
        return str(error)
    return None


def next_cron(text: str, zone: ZoneInfo, now: datetime) -> datetime:
    """Find the next time of a five-field cron expression strictly after `now`, UTC.

    Debian's meaning: 0 and 7 are Sunday; a day field that begins with `*` narrows the other
    one, else either may match; a fixed time that daylight saving skips comes right after the gap,
    and one that it repeats comes once, while `*` in minute or hour follows real time.
    ValueError says what is wrong.
    """
    instant = next(cron_times(text, zone, now), None)
    if instant is None:
        raise ValueError("cron: no such day ever comes")
    return instant


def cron_times(text: str, zone: ZoneInfo, now: datetime) -> Iterator[datetime]:
    """Give all times of a cron expression after `now`, one after the other; as `next_cron`."""
    if len(text) > _CRON_LENGTH or len(text.split()) != 5:
        raise ValueError("a cron expression has five fields: minute hour day month weekday")
    last = now
    try:
        for moment in CronSim(text, now.astimezone(zone)):
            instant = moment.astimezone(UTC)
            # In the second pass of a repeated hour CronSim offers fixed times of the first one.
            if instant > last:
                last = instant
                yield instant
    except CronSimError as error:
        raise ValueError(f"cron: {str(error)[:1].lower()}{str(error)[1:]}") from None


def in_hours(during: Hours, zone: tzinfo, instant: datetime) -> bool:
    """Tell whether an instant lies within the office hours of a time zone."""
    local = instant.astimezone(zone)
    minute = local.hour * 60 + local.minute
    end = _end_minute(during)
    return any(
        (local.weekday() - days) % 7 in during.weekdays
        and during.start_minute <= minute + days * 1440 < end
        for days in (0, 1)
    )


def silent_for(last: datetime, now: datetime, during: Hours | None, zone: tzinfo) -> timedelta:
    """Return how long it has been since `last`, counted only within the office hours if given.

    Real time, exact over daylight saving; the cost is one look at the zone per week, so
    decades are cheap.
    """
    if now <= last:
        return timedelta(0)
    if during is None:
        return now - last
    silence = timedelta(0)
    for start, end, ahead in _stretches(last, now, zone):
        silence += _office_time(during, end + ahead) - _office_time(during, start + ahead)
    return silence


def _end_minute(during: Hours) -> int:
    overnight = during.end_minute <= during.start_minute
    return during.end_minute + 1440 if overnight else during.end_minute


def _office_time(during: Hours, wall: datetime) -> timedelta:
    """Add up the office hours from a fixed Monday to `wall` (aware UTC standing for wall time)."""
    weeks, rest = divmod(wall - _A_MONDAY, WEEK)
    length = timedelta(minutes=_end_minute(during) - during.start_minute)
    total = weeks * len(during.weekdays) * length
    for weekday in during.weekdays:
        opens = weekday * DAY + timedelta(minutes=during.start_minute)
        # The same shift a week earlier may reach into this week: Sunday night.
        for passed in (rest - opens, rest - opens + WEEK):
            total += min(max(passed, timedelta(0)), length)
    return total


def _stretches(
    start: datetime, end: datetime, zone: tzinfo
) -> Iterator[tuple[datetime, datetime, timedelta]]:
    """Cut a span where the zone's offset changes; no zone changes there and back in a week."""
    begun, at = start, start
    while at < end:
        step = min(end, at + WEEK)
        if _offset(zone, step) != _offset(zone, at):
            change = _change(at, step, zone)
            yield begun, change, _offset(zone, at)
            begun = change
        at = step
    yield begun, end, _offset(zone, begun)


def _change(before: datetime, after: datetime, zone: tzinfo) -> datetime:
    """Find the instant at which the offset of `before` ends; the offset of `after` is another."""
    was = _offset(zone, before)
    while after - before > timedelta(microseconds=1):
        middle = before + (after - before) / 2
        if _offset(zone, middle) == was:
            before = middle
        else:
            after = middle
    return after


def _offset(zone: tzinfo, instant: datetime) -> timedelta:
    return instant.astimezone(zone).utcoffset() or timedelta(0)
