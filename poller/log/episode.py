"""Log a failure when it starts or changes, and its end once, with the number of failures."""

from dataclasses import dataclass


@dataclass
class Episode:
    """The failures in a row of one thing: a user's polls, the storage, the heartbeat."""

    failures: int = 0
    reason: str = ""

    def failed(self, reason: str = "") -> bool:
        """Count a failure; return whether to log it: if it is the first or has a new reason."""
        news = self.failures == 0 or reason != self.reason
        self.failures += 1
        self.reason = reason
        return news

    def recovered(self) -> int:
        """End the episode; return the number of failures, 0 if there were none."""
        failures = self.failures
        self.failures = 0
        self.reason = ""
        return failures
