"""Detect that eFax, or a proxy in front of it, answers slowly."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Final

from poller.efax.requests import Call

# With the default limits (8 requests in flight, 6 of them for images), poller reaches 5 requests a
# second if answers take less than about 1.5 s. If a list takes 5 s, it reaches less than a third of
# the limit; if an image (perhaps some MiB) takes 10 s, an eighth: then eFax, not the limit, decides
# how fast faxes arrive. Both are far below the time-outs (60 s until the answer starts).
_SLOW_S: Final[Mapping[Call, float]] = {Call.LIST: 5.0, Call.IMAGE: 10.0}
_LAST = 30  # answers of a kind that count
_OLDEST_S = 600.0
_FEWEST = 3
_HELD_S = 120.0  # how long it must be slow to be reported, and fast to be over


@dataclass(frozen=True)
class Slow:
    """The median of the last answers to this call took `seconds`."""

    call: str
    seconds: float


class Slowness:
    """The last answers of one account; times are monotonic seconds."""

    def __init__(self) -> None:
        self._answers: dict[Call, deque[tuple[float, float]]] = {
            call: deque(maxlen=_LAST) for call in _SLOW_S
        }
        self._turned_at: float | None = None
        self.slow: Slow | None = None

    def answered(self, call: Call, status: int | None, seconds: float, now_s: float) -> None:
        """Take an answer, or the end of waiting for one (`status` None).

        A refusal says nothing about how long the work takes, nor does a connection that breaks at once.
        """
        if call not in _SLOW_S or (status or 200) >= 300:
            return
        if status is not None or seconds >= _SLOW_S[call]:
            self._answers[call].append((now_s, seconds))

    def look(self, now_s: float) -> Slow | None:
        """Return the slow call: after two minutes of slowness, until two minutes without any."""
        found = self._found(now_s)
        if (found is None) == (self.slow is None):
            self._turned_at = None
            self.slow = found
            return found
        if self._turned_at is None:
            self._turned_at = now_s
        if now_s - self._turned_at >= _HELD_S:
            self.slow, self._turned_at = found, None
        return self.slow

    def _found(self, now_s: float) -> Slow | None:
        slow = []
        for call, answers in self._answers.items():
            while answers and answers[0][0] < now_s - _OLDEST_S:
                answers.popleft()
            if len(answers) < _FEWEST:
                continue
            middle = median(seconds for _, seconds in answers)
            if middle >= _SLOW_S[call]:
                slow.append((middle / _SLOW_S[call], Slow(call.value, round(middle, 1))))
        return max(slow, key=lambda one: one[0])[1] if slow else None
