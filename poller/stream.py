"""What coverage, windows, sweeps and counters belong to: one user's received faxes, or its sent ones."""

from dataclasses import dataclass
from enum import StrEnum


class Direction(StrEnum):
    """Which way the faxes of a stream went."""

    RECEIVED = "received"
    SENT = "sent"


@dataclass(frozen=True, slots=True)
class Stream:
    """The identity of a stream; the names of account and user are only labels."""

    app_id: str
    user_id: str
    direction: Direction = Direction.RECEIVED


def label(account: str, user: str, direction: Direction = Direction.RECEIVED) -> str:
    """Name a stream as operators do: `account/user`, or `account/user/sent`."""
    return f"{account}/{user}" + ("" if direction is Direction.RECEIVED else f"/{direction}")
