"""A failure is said when it begins or changes, its end once, with how often it had failed."""

from dataclasses import dataclass


@dataclass
class Episode:
    """One thing that can fail again and again: a user's polls, the storage, the heartbeat."""

    failures: int = 0
    reason: str = ""

    def failed(self, reason: str = "") -> bool:
        """Count a failure; True when it is to be said: the first one, or one for another reason."""
        news = self.failures == 0 or reason != self.reason
        self.failures += 1
        self.reason = reason
        return news

    def recovered(self) -> int:
        """End the episode; return how often it had failed, 0 when it had not."""
        failures = self.failures
        self.failures = 0
        self.reason = ""
        return failures
