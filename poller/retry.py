"""When to try again: backoff with jitter, growing intervals, giving up, Retry-After, sign-ins."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from poller.errors import ApiError, BadAnswer, DeadlinePassed, RateLimited, Unreachable

RETRY_AFTER_MAX_S = 3600.0
SIGN_INS_AT_ONCE = 5
SIGN_IN_EVERY_S = 30.0

_FIRST_PAUSE = timedelta(seconds=1)
_ALMOST_ONE = 1 - 1e-6  # a wait rounded to microseconds must not end a little too early
_SECONDS = re.compile(r"[0-9]+(\.[0-9]*)?")


def worth_repeating(error: BaseException) -> bool:
    """Tell whether the same call may succeed in a moment."""
    if isinstance(error, DeadlinePassed):
        return False
    return isinstance(error, (RateLimited, Unreachable, BadAnswer))


def pause_s(attempt: int, error: ApiError, *, cap: timedelta, u: float) -> float:
    """Return the seconds until the next try after the `attempt`-th (from 1) ended with this error.

    That is the backoff from one second, or Retry-After if it is longer, up to `cap`.
    """
    if isinstance(error, RateLimited):
        return 0.0  # pacing pauses the whole account
    pause = backoff(attempt, base=_FIRST_PAUSE, cap=cap, u=u)
    return min(max(pause.total_seconds(), error.retry_after_s or 0.0), cap.total_seconds())


def backoff(attempt: int, *, base: timedelta, cap: timedelta, u: float) -> timedelta:
    """Return the wait after the `attempt`-th try (from 1): `u * min(cap, base * 2**(attempt-1))`.

    Full jitter, `u` uniform in [0, 1): callers that failed together do not come back together
    (Brooker, "Exponential Backoff And Jitter").
    """
    return u * _doubled(attempt, base, cap)


def growing(failures: int, *, first: timedelta, cap: timedelta, u: float) -> timedelta:
    """Return the interval after `failures` in a row: doubling from `first`, ±20 %, up to `cap`."""
    return min(cap, _doubled(failures, first, cap) * (0.8 + 0.4 * u))


def next_attempt(failures: int, quarantined: bool, u: float) -> timedelta:  # noqa: FBT001
    """Return how long a fax waits after its failures: 30 s doubling to 1 h, quarantined a day."""
    if quarantined:
        return growing(1, first=timedelta(days=1), cap=timedelta(days=1), u=u)
    return growing(failures, first=timedelta(seconds=30), cap=timedelta(hours=1), u=u)


def gives_up(
    now: datetime, first_failed_at: datetime, paused: timedelta, give_up_after: timedelta
) -> bool:
    """Tell whether an attempt that failed at `now` quarantines the fax.

    `paused` (account suspended, storage unusable) does not count. A clock that was set back makes
    the fax younger, never older.
    """
    return now - first_failed_at - paused > give_up_after


def parse_retry_after(value: str | None, now: datetime) -> float | None:
    """Return the seconds that a Retry-After header asks for, within 0 to 3600; None if unreadable.

    Accepts seconds, or an HTTP date in any of its three spellings (RFC 9110, 5.6.7); a past date is
    0. Pass the server's own time as `now`, so that an error of our clock does not matter.
    """
    text = (value or "").strip()
    if _SECONDS.fullmatch(text):
        return min(float(text), RETRY_AFTER_MAX_S)
    try:
        moment = parsedate_to_datetime(text)
        if moment.tzinfo is None:  # asctime has no zone; it is UTC by definition
            moment = moment.replace(tzinfo=UTC)
        wait_s = (moment - now).total_seconds()
    except (ValueError, OverflowError):
        return None
    return min(max(wait_s, 0.0), RETRY_AFTER_MAX_S)


@dataclass(frozen=True)
class SignInBudget:
    """The sign-ins that an account may make: five at once, then one per 30 s; `level` remained at `at`.

    The ledger keeps it, so that a service that restarts in a loop does not sign in each time.
    """

    level: float
    at: datetime

    @classmethod
    def full(cls, now: datetime) -> "SignInBudget":
        """Return the budget of an account that has never signed in."""
        return cls(level=float(SIGN_INS_AT_ONCE), at=now)

    def take(self, now: datetime) -> "SignInBudget | float":
        """Return the budget after one sign-in at `now`, or the seconds to wait for one."""
        elapsed_s = (now - self.at).total_seconds()
        level = min(self.level + max(elapsed_s, 0.0) / SIGN_IN_EVERY_S, float(SIGN_INS_AT_ONCE))
        if elapsed_s < -SIGN_IN_EVERY_S:
            # The clock was set back, so nobody knows how long ago the last sign-in was. Allow one;
            # its new `at` repairs the budget, which would otherwise block until `at` comes again.
            level = max(level, 1.0)
        if level >= _ALMOST_ONE:
            return SignInBudget(level=max(level - 1, 0.0), at=now)
        return (1 - level) * SIGN_IN_EVERY_S + max(-elapsed_s, 0.0)


def _doubled(count: int, first: timedelta, cap: timedelta) -> timedelta:
    doublings = min(max(count - 1, 0), 64)  # beyond that every cap is reached; avoids overflow
    return min(first.total_seconds() * 2.0**doublings, cap.total_seconds()) * timedelta(seconds=1)
