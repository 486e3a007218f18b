"""What has coverage, windows, sweeps and counters: one user's received faxes, or the sent ones."""

from dataclasses import dataclass
from enum import StrEnum


class Direction(StrEnum):
    """Whether a stream's faxes were received or sent."""

    RECEIVED = "received"
    SENT = "sent"


@dataclass(frozen=True, slots=True)
class Stream:
    """What identifies a stream; names of account and user are only labels."""

    app_id: str
    user_id: str
    direction: Direction = Direction.RECEIVED


def label(account: str, user: str, direction: Direction = Direction.RECEIVED) -> str:
    """Return a stream's name for operators: `account/user`, or `account/user/sent`."""
    return f"{account}/{user}" + ("" if direction is Direction.RECEIVED else f"/{direction}")
