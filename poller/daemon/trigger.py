"""APScheduler's side of the schedule."""

from datetime import UTC, datetime

from apscheduler.triggers.base import BaseTrigger

from poller import schedule
from poller.config.model import Poll


class PollTrigger(BaseTrigger):  # type: ignore[misc]
    """The next poll of one user, found in constant time from any instant.

    APScheduler's own interval trigger walks every missed run after a clock set forward and sleeps
    through a clock set back. `factor` stretches the interval when the limits allow no more.
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
