"""A poll that is running, and its outcome."""

from dataclasses import dataclass, field
from datetime import datetime

from poller.errors import PollerError
from poller.ledger import FaxRow
from poller.window import Coverage, Interval


@dataclass
class PollOutcome:
    """What one poll did. `error`: the newest slice failed; `trouble`: an older one or a sweep failed."""

    discovered: list[FaxRow] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)
    skipped: str | None = None
    error: PollerError | None = None
    trouble: list[PollerError] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return self.error is not None or bool(self.trouble)


@dataclass
class PollRun:
    """The server's time, read once, and what has been listed since.

    `until` is when the poll's time is over (monotonic); None means never.
    """

    now: datetime
    until: float | None
    outcome: PollOutcome
    covered_before: Coverage
    listed: Coverage = field(default_factory=Coverage)
    not_listed: list[tuple[Interval, str]] = field(default_factory=list)  # of a backfill
    asked_up_to_now: bool = False  # because a window that reached beyond now was refused

    def is_over(self, monotonic: float) -> bool:
        return self.until is not None and monotonic >= self.until
