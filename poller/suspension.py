"""Whether an account is suspended, and when a call may probe it."""

from datetime import datetime, timedelta
from enum import Enum, auto

from poller.retry import growing

_FAILURES_IN_A_ROW = 5
_FIRST_PROBE = timedelta(seconds=5)
_LONGEST_PROBE = timedelta(minutes=5)
_PROBE_LOST = timedelta(seconds=90)  # the deadline ends a list call after a minute


class EndsBy(Enum):
    """What ends a suspension."""

    ANSWER = auto()  # an answer to a probe, except a 5xx
    LIST = auto()  # a list that eFax does not refuse
    JUDGEMENT = auto()  # the caller's judgement of the lists: it calls `succeeded`


class Suspension:
    """An account's circuit breaker; while it is open, one due list call at a time goes out as a probe.

    It opens after a refused sign-in, after five connection errors or 5xx in a row over at least two
    users (one user's trouble is not the account's, unless it is the only user), or because of what
    the answers say about the whole account (`distrusted`). Probes go after 5 s, doubling to 5 min,
    jittered. Times are aware UTC, `u` uniform in [0, 1).
    """

    def __init__(self, user_count: int) -> None:
        self.user_count = user_count
        self._close()

    def _close(self) -> None:
        self.until: datetime | None = None  # when a probe may go; None: not suspended
        self.reason = ""
        self.failures = 0  # in a row, including probes
        self.ends_by = EndsBy.ANSWER
        self._users: set[str | None] = set()
        self._intervals = 0
        self._half_open = False  # a probe is under way
        self._key_refused = False

    def failed(
        self, user: str | None, now: datetime, u: float, reason: str = "eFax cannot be reached"
    ) -> bool:
        """Count a connection error or 5xx; return whether this one suspends the account.

        `user` is None for a call without a user (sign-in, health), which is the account's trouble.
        """
        self.failures += 1
        self._users.add(user)
        account_wide = None in self._users or len(self._users) >= min(2, self.user_count)
        in_a_row = account_wide and self.failures >= _FAILURES_IN_A_ROW
        if self.until is None and not in_a_row:
            return False
        return self._suspend(now, u, reason)

    def sign_in_refused(self, now: datetime, u: float, reason: str) -> bool:
        """Suspend the account at once; return whether this begins the suspension."""
        self.failures += 1
        self._key_refused = True
        return self._suspend(now, u, reason)

    def distrusted(self, now: datetime, u: float, reason: str, ends_by: EndsBy) -> bool:
        """Suspend the account, or keep it so, for what its answers say; return whether this begins it."""
        self.failures += 1
        self.ends_by = ends_by
        return self._suspend(now, u, reason)

    def keep(self, until: datetime, reason: str) -> None:
        """Suspend the account as another run had found it; only a list ends this."""
        self.failures, self.ends_by = 1, EndsBy.LIST
        self.until, self.reason = until, reason

    def key_changed(self, now: datetime) -> None:
        """Let a probe go at once if a sign-in was refused: there is a new key."""
        if self.until is not None and self._key_refused:
            self.until = now
            self._intervals = 0

    def succeeded(self) -> bool:
        """Note an answer of eFax (any but a 5xx); return whether it ends a suspension."""
        ended = self.until is not None
        self._close()
        return ended

    def may_probe(self, now: datetime) -> bool:
        """Tell whether a list call may go now; in a suspension this starts the probe.

        The next one may go when this one has failed, or after 90 s without a result.
        """
        if self.until is None:
            return True
        # An `until` beyond any interval: the clock was set back.
        if now < self.until <= now + _LONGEST_PROBE:
            return False
        self._half_open = True
        self.until = now + _PROBE_LOST
        return True

    def _suspend(self, now: datetime, u: float, reason: str) -> bool:
        began = self.until is None
        if not began and not self._half_open:
            return False  # an answer to a request from before the suspension: nothing new
        self._intervals += 1
        self.until = now + growing(self._intervals, first=_FIRST_PROBE, cap=_LONGEST_PROBE, u=u)
        self.reason = reason
        self._half_open = False
        return began
