"""How much work an account has left, and how long it takes."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from poller.config.model import Poll
from poller.progress import Progress
from poller.schedule import LISTS_SHARE
from poller.window import WindowRules, pinned_start, slices_in

RECENT: Final = timedelta(minutes=5)
_TOO_SHORT: Final = timedelta(seconds=15)  # to measure a pace
_BEGINS_S, _ENDS_S = 60.0, 5.0  # of fetching at the limit


@dataclass(frozen=True)
class Left:
    """What an account still has to do: `lists` to read and `faxes` to fetch, each for the first time.

    An account **catches up** while both hold:

    - it is not suspended;
    - a list is left, or the faxes take more than a minute at the account's limit (once begun, more
      than five seconds, so that a page does not flicker).

    A list is left for each slice of a user's window when the user was not polled since the service
    started or the account was resumed, and for each slice of a gap that was never asked for. So a
    first start, a start after an outage, the end of a suspension, a new user and an earlier
    `poll.start` all count. A gap stops counting once a slice of it has failed: from then on it is a
    gap that an operator must know about. A fax counts until its first attempt fails: from then on it
    is a failing fax. A user whom eFax refuses does not count, nor do sent faxes, which wait for
    received ones. Sweeps are not counted: they look for what should not be there.
    """

    lists: int = 0
    faxes: int = 0

    @property
    def requests(self) -> int:
        return self.lists + self.faxes

    def is_catching_up(self, allowed_per_s: float, *, begun: bool) -> bool:
        return self.lists > 0 or self.faxes > allowed_per_s * (_ENDS_S if begun else _BEGINS_S)


@dataclass(frozen=True)
class CatchUp:
    """An account that catches up: `since` when, with `lists` left and `stored` faxes at that time.

    `started`: when the service started or the account resumed.
    """

    since: datetime
    started: datetime
    lists: int
    stored: int

    def done(self, left: Left, stored: int) -> int:
        """Return how many requests are done since then, given what is `left` and `stored` now."""
        return max(0, self.lists - left.lists) + max(0, stored - self.stored)


def lists_left(progress: Progress, poll: Poll, started: datetime, now: datetime) -> int:
    """Return how many lists a stream of received faxes has left, as `Left` defines it."""
    if progress.refused_until is not None:  # until a poll succeeds, also when it may be asked again
        return 0
    rules = WindowRules.configured(poll.overlap, poll.max_window)
    newest_end = progress.coverage.newest_end
    if newest_end is None:
        start = progress.pinned_start or pinned_start(poll.start, now)
        return slices_in(now - start, rules) if start < now else 0
    lists = sum(slices_in(gap.length, rules) for gap in progress.untried_gaps)
    if progress.last_poll_at is None or progress.last_poll_at < started:
        lists += slices_in(now - newest_end + poll.overlap, rules)
    return lists


def still_sweeps(progress: Progress, started: datetime) -> bool:
    """Return whether the sweeps after a start or resumption still take turns from the images."""
    ends = (progress.sweep_end, progress.deep_sweep_end)
    return any(end is None or end < started for end in ends)


@dataclass(frozen=True)
class Throughput:
    """How fast an account works: `allowed` requests per second, of which its schedule takes `planned`.

    `stored`: faxes stored `over` the last minutes, with a backlog all the time; None if that says
    nothing yet, because the lists after a start go first.
    """

    allowed: float | None
    planned: float = 0.0
    stored: int | None = None
    over: timedelta = timedelta(0)

    def seconds_for(self, left: Left) -> float | None:
        """Return how long a backlog takes, in seconds; None if that is unknown.

        Assume the pace of the last minutes, but never above the limit. If that pace says nothing, or
        the time is too short to measure, assume the limit minus the schedule's share. It is unknown if
        no requests are allowed now, or if nothing was stored although faxes wait. `Speeds` also makes
        it unknown if an account that catches up has listed and stored nothing for `RECENT`.
        """
        if not left.requests:
            return 0.0
        if not self.allowed:
            return None
        if self.stored is None or self.over < _TOO_SHORT:
            faxes_per_s = max(self.allowed * (1 - LISTS_SHARE), self.allowed - self.planned)
        elif not self.stored:
            return None
        else:
            faxes_per_s = min(self.allowed, self.stored / self.over.total_seconds())
        return left.lists / self.allowed + left.faxes / faxes_per_s


def per_hour(count: int, over: timedelta) -> int | None:
    """Return the figure per hour; None if `over` is too short."""
    return None if over < _TOO_SHORT else round(count * timedelta(hours=1) / over)
