"""When to poll: phases on a grid, or cron."""

import hashlib
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from poller.config.model import Canary, Poll
from poller.cron import next_cron
from poller.stream import Direction

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
GRID = timedelta(milliseconds=100)  # users due together share one wake-up of the event loop
LATE_AT_LEAST = timedelta(minutes=5)
LISTS_SHARE = 0.75  # of the limit; the rest remains for images, sign-ins and repeats


def identity(app_id: str, user_id: str, direction: Direction = Direction.RECEIVED) -> str:
    """Return the string that decides the phase of a stream."""
    of_user = f"{app_id}/{user_id}"
    return of_user if direction is Direction.RECEIVED else f"{of_user}/{direction}"


@lru_cache(maxsize=1 << 15)  # called twice per poll, always with the same values
def phase(identity: str, every: timedelta) -> timedelta:
    """Spread users evenly over their interval: 0 <= phase < every, the same after each restart.

    The phase is a whole number of `GRID` steps, so that a thousand users do not need a thousand
    timers.
    """
    digest = hashlib.sha256(identity.encode(errors="surrogatepass")).digest()
    steps = max(1, -(-every // GRID))
    return (int.from_bytes(digest[:8]) * steps >> 64) * GRID


def next_on_grid(now: datetime, every: timedelta, offset: timedelta) -> datetime:
    """Return the first instant `EPOCH + offset + k * every` strictly after `now`.

    Uses only arithmetic: a clock that jumps by fifty years costs nothing and leaves no missed runs.
    """
    origin = EPOCH + offset
    return origin + ((now - origin) // every + 1) * every


def next_poll(poll: Poll, identity: str, now: datetime, factor: float = 1.0) -> datetime:
    """Return when to poll this user next, strictly after `now`, in UTC.

    `factor` (from `plan.demand`) lengthens an interval. A cron time stays as the operator wrote it;
    pacing spreads polls that fall on the same minute.
    """
    if poll.cron is not None:
        return next_cron(poll.cron, poll.timezone, now)
    assert poll.every is not None
    every = real_interval(poll.every, factor)
    return next_on_grid(now, every, phase(identity, every))


def canary_grid(canary: Canary, identity: str) -> tuple[Poll, str]:
    """Return the arguments of `next_poll` for the canaries of a user, which have their own grid."""
    return Poll(every=canary.every), f"canary/{identity}"


def is_overdue(
    poll: Poll, identity: str, last: datetime, now: datetime, factor: float = 1.0
) -> bool:
    """Tell whether the poll after the good one at `last` is long overdue; `factor` as in `next_poll`."""
    slack = max(LATE_AT_LEAST, 2 * (poll.every or timedelta(0)) * factor)
    return now > next_poll(poll, identity, last, factor) + slack


def real_interval(every: timedelta, factor: float) -> timedelta:
    """Return the interval after the limit has stretched it by `factor`."""
    return every if factor <= 1 else -(-(every * factor) // GRID) * GRID
