"""How much of an account's limit a schedule needs, and warnings about it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import pairwise, takewhile
from zoneinfo import ZoneInfo

from poller import cron, schedule
from poller.config.model import Poll
from poller.window import WindowRules, is_late, slices_in

_HOUR_S = 3600.0
_WITH_HOOK = timedelta(minutes=5)


@dataclass(frozen=True)
class Demand:
    """The lists per second that one account's users need, before `factor` stretches `polls`.

    `fixed` covers polls at cron times and sweeps, which are not stretched. `limit` is the part of the
    account's limit for lists. The planner stretches each `every` by `factor` (>= 1).
    """

    polls: float
    fixed: float
    limit: float
    factor: float

    @property
    def asked(self) -> float:
        return self.polls + self.fixed

    @property
    def planned(self) -> float:
        return self.polls / self.factor + self.fixed

    @property
    def is_too_much(self) -> bool:
        return self.factor > 1 or self.planned > self.limit


def demand(polls: Sequence[Poll], requests_per_second: float, now: datetime) -> Demand:
    """Add up the demand of one account's users, for the planner and `poller plan`."""
    intervals_s = [poll.every.total_seconds() for poll in polls if poll.every is not None]
    asked = math.fsum(1 / interval for interval in intervals_s)
    fixed = math.fsum(_sweeps_per_s(poll, now) for poll in polls)
    fixed += math.fsum(_cron(poll, now)[0] for poll in polls if poll.cron is not None)
    limit = requests_per_second * schedule.LISTS_SHARE
    # Leave a tenth for polls, however much sweeps and cron times take.
    return Demand(asked, fixed, limit, factor=max(1.0, asked / max(limit - fixed, limit / 10)))


def interval_of(poll: Poll, factor: float, now: datetime) -> timedelta:
    """Return the real interval between two polls; for cron times the longest."""
    if poll.every is not None:
        return schedule.real_interval(poll.every, factor)
    return _cron(poll, now)[1]


def account_warnings(asked: Demand) -> Iterator[str]:
    """Yield warnings about an account's whole schedule."""
    if not asked.is_too_much:
        return
    wants, may = _per_hour(asked.asked), _per_hour(asked.limit)
    yield (
        f"the schedule asks for {wants} lists an hour, including sweeps, but the limit allows only "
        f"{may}: poller makes every interval {asked.factor:.2f} times as long; poll less often, or "
        "raise requests_per_second"
    )
    if asked.planned > asked.limit:
        yield (
            f"sweeps and cron times alone need {_per_hour(asked.fixed)} lists an hour, so polls will be "
            "late: make sweep and deep_sweep less frequent, or shorten their `back`"
        )


def hook_hint(polls: Sequence[Poll]) -> str | None:
    """Return a hint if a web-hook has worked for a day; poller changes nothing by itself."""
    if all(poll.every is None or poll.every >= _WITH_HOOK for poll in polls):
        return None
    return (
        "the web-hook has worked for a day, with a notice before each fax: poll.every may be "
        f"longer, e.g. {spelled(_WITH_HOOK)}"
    )


def user_warnings(poll: Poll, factor: float, late: timedelta, now: datetime) -> Iterator[str]:
    """Yield warnings about one user's schedule; `late` is the longest lateness measured."""
    interval = interval_of(poll, factor, now)
    if poll.every is not None and poll.overlap < 2 * interval:
        yield (
            f"overlap ({spelled(poll.overlap)}) is shorter than twice the interval between two "
            f"polls ({spelled(interval)})"
        )
    if is_late(late, poll.overlap):
        yield (
            f"a fax became visible {spelled(late)} late, which is more than half of overlap "
            f"({spelled(poll.overlap)}): raise overlap, or only a sweep finds faxes that are later still"
        )
    if poll.every is None and interval > poll.max_window:
        yield (
            f"cron leaves {spelled(interval)} between two polls, longer than max_window "
            f"({spelled(poll.max_window)}): no fax arrives in that time, and the next poll needs "
            f"{slices_in(interval + poll.overlap, _rules(poll))} lists to catch up"
        )


def spelled(length: timedelta) -> str:
    """Return a duration in its two largest units, such as `2d 16h`."""
    if length < timedelta(seconds=1):
        return f"{length / timedelta(milliseconds=1):.0f}ms"
    parts, rest = [], length
    for name in ("days", "hours", "minutes", "seconds"):
        count, rest = divmod(rest, timedelta(**{name: 1}))
        parts.append(f"{count}{name[0]}" if count else "")
    first = next(place for place, part in enumerate(parts) if part)
    return " ".join(part for part in parts[first : first + 2] if part)


def _per_hour(per_s: float) -> str:
    return f"{per_s * _HOUR_S:,.0f}"


def _rules(poll: Poll) -> WindowRules:
    return WindowRules.configured(poll.overlap, poll.max_window)


def _sweeps_per_s(poll: Poll, now: datetime) -> float:
    """Return the lists for sweeps; they run within polls, and a deep sweep reads one more list."""
    pause, per_s = interval_of(poll, 1.0, now), 0.0
    for sweep, more in ((poll.sweep, 0), (poll.deep_sweep, 1)):
        every = max(sweep.every, pause)
        per_s += (slices_in(sweep.back + every, _rules(poll)) + more) / every.total_seconds()
    return per_s


def _cron(poll: Poll, now: datetime) -> tuple[float, timedelta]:
    assert poll.cron is not None
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    return _cron_week(poll.cron, poll.timezone, midnight)


@lru_cache(maxsize=4096)
def _cron_week(expression: str, zone: ZoneInfo, now: datetime) -> tuple[float, timedelta]:
    """Return polls per second and the longest pause between two, over the coming week."""
    times = cron.cron_times(expression, zone, now)
    first = next(times, None)
    second = next(times, None)
    if first is None or second is None:
        return 0.0, timedelta(days=366)
    week = [first, second, *takewhile(lambda at: at <= first + timedelta(days=7), times)]
    pauses = [later - earlier for earlier, later in pairwise(week)]
    return len(pauses) / (week[-1] - first).total_seconds(), max(pauses)
