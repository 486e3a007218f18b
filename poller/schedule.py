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
LISTS_SHARE = 0.75  # of the limit; the rest stays for images, sign-ins and repeats


def identity(app_id: str, user_id: str, direction: Direction = Direction.RECEIVED) -> str:
    """Name what has a phase of its own."""
    of_user = f"{app_id}/{user_id}"
    return of_user if direction is Direction.RECEIVED else f"{of_user}/{direction}"


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


def next_poll(poll: Poll, identity: str, now: datetime, factor: float = 1.0) -> datetime:
    """Say when this user is polled next, strictly after `now`, UTC.

    `factor` (from `plan.demand`) makes an interval longer; a cron time is what an operator
    wrote down and stays as it is, pacing spreads what falls on the same minute.
    """
    if poll.cron is not None:
        return next_cron(poll.cron, poll.timezone, now)
    assert poll.every is not None
    every = real_interval(poll.every, factor)
    return next_on_grid(now, every, phase(identity, every))


def canary_grid(canary: Canary, identity: str) -> tuple[Poll, str]:
    """Say what `next_poll` needs for the canaries of a user: a grid of their own."""
    return Poll(every=canary.every), f"canary/{identity}"


def is_overdue(
    poll: Poll, identity: str, last: datetime, now: datetime, factor: float = 1.0
) -> bool:
    """Tell whether the poll after the good one at `last` is long past; `factor` as in `next_poll`."""
    slack = max(LATE_AT_LEAST, 2 * (poll.every or timedelta(0)) * factor)
    return now > next_poll(poll, identity, last, factor) + slack


def real_interval(every: timedelta, factor: float) -> timedelta:
    """Return the interval as it is when the limit stretches it by `factor`."""
    return every if factor <= 1 else -(-(every * factor) // GRID) * GRID
