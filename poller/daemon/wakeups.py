"""Poll the users that a notice names now, and again if the poll lists nothing new."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from poller import schedule
from poller.clock import Clock
from poller.ingest.stream_state import StreamState

_APART_S = 5.0  # between two polls of a stream that notices cause
_AGAIN_S = (10.0, 60.0)  # a fax may be listed later than it is announced
_TICK_S = 0.5

PollSoon = Callable[[StreamState, timedelta], None]


@dataclass
class _Wake:
    """The streams of one notice, their number of listed faxes at that time, and the next poll."""

    streams: Sequence[StreamState]
    listed: int
    due: deque[float]
    spread: timedelta


class Wakeups:
    """Brings polls forward; like all polls, they keep to the account's limits and suspension."""

    def __init__(self, poll_soon: PollSoon, clock: Clock) -> None:
        self._poll_soon = poll_soon
        self._clock = clock
        self._wakes: dict[tuple[int, ...], _Wake] = {}
        self._asked: dict[int, tuple[StreamState, timedelta]] = {}
        self._not_before: dict[int, float] = {}
        self._anything = asyncio.Event()

    def wake(self, streams: Sequence[StreamState], spread: timedelta = timedelta(0)) -> None:
        """Poll these streams now, spread over the time given, and after 10 s and 60 s if needed.

        A new fax in any of the streams satisfies the notice. A repeated notice starts from the beginning.
        """
        now = self._clock.monotonic()
        key = tuple(stream.id for stream in streams)
        due = deque([now, *(now + after_s for after_s in _AGAIN_S)])
        self._wakes[key] = _Wake(streams, _listed(streams), due, spread)
        self._anything.set()
        self._bring_forward()

    async def run(self) -> None:
        """Poll again the streams that are due again, until cancelled."""
        while True:
            if not (self._wakes or self._asked):
                self._anything.clear()
                await self._anything.wait()
            self._bring_forward()
            await self._clock.sleep(_TICK_S)

    def _bring_forward(self) -> None:
        now = self._clock.monotonic()
        for key, wake in list(self._wakes.items()):
            if _listed(wake.streams) > wake.listed:
                del self._wakes[key]
            elif wake.due[0] <= now:
                wake.due.popleft()
                self._asked |= {one.id: (one, wake.spread) for one in wake.streams}
                if not wake.due:
                    del self._wakes[key]
        for stream, spread in list(self._asked.values()):
            # A poll under way may have missed the fax: schedule the next one after it.
            if stream.poll_began_at is None and now >= self._not_before.get(stream.id, now):
                delay = schedule.phase(stream.key, spread) if spread else spread
                self._poll_soon(stream, delay)
                self._not_before[stream.id] = now + delay.total_seconds() + _APART_S
                del self._asked[stream.id]
        self._not_before = {one: at for one, at in self._not_before.items() if at > now}


def _listed(streams: Sequence[StreamState]) -> int:
    return sum(stream.discovered for stream in streams)
