"""APScheduler's side of the schedule."""

from datetime import UTC, datetime

from apscheduler.triggers.base import BaseTrigger

from poller import schedule
from poller.config.model import Poll


class PollTrigger(BaseTrigger):  # type: ignore[misc]
    """Finds the next poll of one user in constant time from any instant.

    APScheduler's own interval trigger steps through every missed run after a clock is set forward,
    and sleeps on after one is set back. `factor` stretches the interval to keep to the limits.
    """

    __slots__ = ("factor", "identity", "poll")

    def __init__(self, poll: Poll, identity: str, factor: float = 1.0) -> None:
        self.poll = poll
        self.identity = identity
        self.factor = factor

    def get_next_fire_time(
        self,
        previous_fire_time: datetime | None,  # noqa: ARG002 - the grid needs no history
        now: datetime,
    ) -> datetime:
        return schedule.next_poll(self.poll, self.identity, now.astimezone(UTC), self.factor)
