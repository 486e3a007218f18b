"""The time: callables that the shell passes in, and eFax's own time from its answers."""

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from statistics import median_low
from typing import Protocol

_TIME_FORM = "write it like 2024-05-21T00:00:00+02:00 or 2024-05-21T00:00:00Z"


class NoOffsetError(ValueError):
    """A time without its offset from UTC."""


def instant(word: str) -> datetime:
    """Read an ISO 8601 time with offset, as UTC; the ValueError continues the word: `is not a time …`.

    Ignores the offset of a time that has no year in UTC, such as one before the year 1.
    """
    try:
        at = datetime.fromisoformat(word)
    except ValueError:
        raise ValueError(f"is not a time; {_TIME_FORM}") from None
    if at.tzinfo is None:
        raise NoOffsetError(f"has no offset from UTC; {_TIME_FORM}")
    try:
        return at.astimezone(UTC)
    except OverflowError:
        return at.replace(tzinfo=UTC)


class Clock(Protocol):
    """Wall clock (aware, UTC), monotonic clock and sleep; tests pass one that they move."""

    def now(self) -> datetime: ...
    def monotonic(self) -> float: ...
    async def sleep(self, seconds: float) -> None: ...


@dataclass(frozen=True)
class SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)

    monotonic = staticmethod(time.monotonic)  # called twenty times per poll

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


STEP = timedelta(seconds=2)
Reading = tuple[datetime, float]  # wall clock, monotonic seconds, read together


def clock_step(previous: Reading, current: Reading) -> timedelta | None:
    """Return by how much the wall clock was set between two readings; None if it was not.

    A suspended machine counts too, as its monotonic clock stood still. Slewing stays below two
    seconds unless the readings are hours apart.
    """
    step = (current[0] - previous[0]) - timedelta(seconds=current[1] - previous[1])
    return step if abs(step) > STEP else None


AGREEMENT = timedelta(minutes=1)
SAMPLES = 5
WITNESSES = 3
BEHIND_WITHOUT_DATES = timedelta(minutes=5)
POSSIBLE_YEARS = range(2000, 2200)


class ServerClock:
    """eFax's time, the median of its last `Date` headers; values in, values out.

    A `Date` that differs by more than a minute from the believed time (at first our own clock)
    counts only when three in a row agree. A `Date` is cut to the second and as old as its answer,
    so `now` is not ahead of the server. After three answers in a row without one, `now` is our
    clock less five minutes, unless one was believed before.
    """

    def __init__(self) -> None:
        self._believed: deque[timedelta] = deque(maxlen=SAMPLES)
        self._doubted: deque[timedelta] = deque(maxlen=WITNESSES)
        self._without_date = 0
        self._last: Reading | None = None

    def our_now(self, wall: datetime, monotonic_s: float) -> datetime:
        """Take a reading of our clocks before any other use of `wall`, and return `wall`.

        So a step since the last reading is noticed before it can move anything into the future.
        """
        reading = (wall, monotonic_s)
        step = None if self._last is None else clock_step(self._last, reading)
        self._last = reading
        if step is not None:
            self.stepped(step)
        return wall

    @property
    def agreed(self) -> bool:
        return bool(self._believed) or self._without_date >= WITNESSES

    def observed(self, date: datetime | None, our_now: datetime) -> None:
        """Take an answer's `Date`, or None if it has none, and the time of its arrival by our clock.

        An impossible date counts as none.
        """
        if date is None or date.year not in POSSIBLE_YEARS:
            self._without_date += 1
            return
        self._without_date = 0
        offset = date - our_now
        if abs(offset - (self._believed_offset or timedelta(0))) <= AGREEMENT:
            self._believed.append(offset)
            self._doubted.clear()
        else:
            self._doubt(offset)

    def _doubt(self, offset: timedelta) -> None:
        self._doubted.append(offset)
        agree = max(self._doubted) - min(self._doubted) <= AGREEMENT
        if agree and len(self._doubted) == WITNESSES:
            self._believed = deque(self._doubted, maxlen=SAMPLES)
            self._doubted.clear()

    @property
    def _believed_offset(self) -> timedelta | None:
        return median_low(self._believed) if self._believed else None

    def now(self, our_now: datetime) -> datetime | None:
        """Return the server's time; None until one is agreed, and until then list nothing."""
        if (offset := self._believed_offset) is not None:
            return our_now + offset
        return our_now - BEHIND_WITHOUT_DATES if self.agreed else None

    def stepped(self, by: timedelta) -> None:
        """Keep the server's time when our wall clock is set forward by `by` (negative: back)."""
        self._believed = deque((one - by for one in self._believed), maxlen=SAMPLES)
        self._doubted = deque((one - by for one in self._doubted), maxlen=WITNESSES)
