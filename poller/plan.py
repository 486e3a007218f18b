"""What a schedule asks of an account's limit, and what of it deserves a warning."""

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
    """The lists that one account's users ask for, per second, before `factor` stretches `polls`.

    `fixed` is what nothing stretches: polls at cron times, and sweeps. `limit` is the part of the
    account's limit that lists may take. The planner stretches each `every` by `factor` (>= 1).
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
    """Add up what the users of one account ask for; the planner and `poller plan` go by it."""
    intervals_s = [poll.every.total_seconds() for poll in polls if poll.every is not None]
    asked = math.fsum(1 / interval for interval in intervals_s)
    fixed = math.fsum(_sweeps_per_s(poll, now) for poll in polls)
    fixed += math.fsum(_cron(poll, now)[0] for poll in polls if poll.cron is not None)
    limit = requests_per_second * schedule.LISTS_SHARE
    # A tenth is left for polls whatever sweeps and cron times take.
    return Demand(asked, fixed, limit, factor=max(1.0, asked / max(limit - fixed, limit / 10)))


def interval_of(poll: Poll, factor: float, now: datetime) -> timedelta:
    """Return the real interval between two polls; for cron times the longest that comes up."""
    if poll.every is not None:
        return schedule.real_interval(poll.every, factor)
    return _cron(poll, now)[1]


def account_warnings(asked: Demand) -> Iterator[str]:
    """Say in sentences what is wrong with the schedule of an account as a whole."""
    if not asked.is_too_much:
        return
    wants, may = _per_hour(asked.asked), _per_hour(asked.limit)
    yield (
        f"the schedule asks for {wants} lists an hour, sweeps included, and the limit leaves {may} "
        f"for lists: every interval becomes {asked.factor:.2f} times as long; poll less often, or "
        "raise requests_per_second"
    )
    if asked.planned > asked.limit:
        yield (
            f"sweeps and cron times alone ask for {_per_hour(asked.fixed)} lists an hour, so that "
            "polls will be late: let sweep and deep_sweep come less often or reach back less far"
        )


def hook_hint(polls: Sequence[Poll]) -> str | None:
    """Say what a web-hook that has worked for a day allows for; nothing changes by itself."""
    if all(poll.every is None or poll.every >= _WITH_HOOK for poll in polls):
        return None
    return (
        "the web-hook has worked for a day: every may be longer, e.g. "
        f"{spelled(_WITH_HOOK)}; each fax of that day came after a notice"
    )


def user_warnings(poll: Poll, factor: float, late: timedelta, now: datetime) -> Iterator[str]:
    """Say what is wrong with the schedule of one user; `late` is the longest lateness measured."""
    interval = interval_of(poll, factor, now)
    if poll.every is not None and poll.overlap < 2 * interval:
        yield (
            f"overlap ({spelled(poll.overlap)}) is shorter than twice the interval between two "
            f"polls ({spelled(interval)})"
        )
    if is_late(late, poll.overlap):
        yield (
            f"a fax became visible {spelled(late)} late, which uses up more than half of overlap "
            f"({spelled(poll.overlap)}): raise overlap, or later ones are found by a sweep only"
        )
    if poll.every is None and interval > poll.max_window:
        yield (
            f"cron leaves {spelled(interval)} between two polls, longer than max_window "
            f"({spelled(poll.max_window)}): nothing comes in for so long, and it takes "
            f"{slices_in(interval + poll.overlap, _rules(poll))} lists to catch up"
        )


def spelled(length: timedelta) -> str:
    """Write a duration with its two largest units, such as `2d 16h`."""
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
    """A sweep runs in a poll, so never more often; the deep one reads one more list."""
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
    """Return polls per second and the longest pause between two, over the week that comes."""
    times = cron.cron_times(expression, zone, now)
    first = next(times, None)
    second = next(times, None)
    if first is None or second is None:
        return 0.0, timedelta(days=366)
    week = [first, second, *takewhile(lambda at: at <= first + timedelta(days=7), times)]
    pauses = [later - earlier for earlier, later in pairwise(week)]
    return len(pauses) / (week[-1] - first).total_seconds(), max(pauses)
