"""What eFax keeps of an App ID, a user and a fax. No network, no clock of its own."""

import bisect
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any, Literal

Format = Literal["pdf", "tiff"]

_COMPLETED = attrgetter("completed")
_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(eq=False, repr=False)
class Fax:
    """One received fax; tests compare it by identity, eFax by (app_id, user_id, fax_id).

    `completed` is what the list says, in whole milliseconds; it is listed from `visible_at` on.
    `trouble` is a fault (see faults.py) that each download of this fax meets. `fields` are put over
    what the list says of it; None takes a field away.
    """

    app_id: str
    user_id: str
    fax_id: str
    completed: datetime
    visible_at: datetime
    number: int
    pages: int = 1
    originating: str = "13235551212"
    destination: str = "18005550100"
    tsid: str = "Front Desk"
    distinct: bool = True
    trouble: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    documents: dict[Format, bytes] = field(default_factory=dict)
    image_downloaded: bool = False
    deleted: bool = False

    def __repr__(self) -> str:
        return f"<Fax {self.number} {self.app_id}/{self.user_id}/{self.fax_id}>"

    @property
    def searched(self) -> str:
        """What `search_text` is looked for in."""
        return f"{self.originating}\n{self.destination}\n{self.tsid}".lower()


@dataclass
class Mailbox:
    """The received faxes of one user, oldest first."""

    faxes: list[Fax] = field(default_factory=list)
    by_id: dict[str, Fax] = field(default_factory=dict)

    def add(self, fax: Fax) -> None:
        if fax.fax_id in self.by_id:
            raise ValueError(f"fax {fax.fax_id!r} exists already")
        bisect.insort(self.faxes, fax, key=lambda one: (one.completed, one.number))
        self.by_id[fax.fax_id] = fax

    def find(self, fax_id: str) -> Fax | None:
        """Find a fax by its id; a UUID in any case, for eFax itself may spell it so."""
        found = self.by_id.get(fax_id)
        if found is None and is_uuid(fax_id):
            spellings = (fax_id.lower(), fax_id.upper())
            found = next((self.by_id[one] for one in spellings if one in self.by_id), None)
        return found

    def remove(self, fax: Fax) -> None:
        self.faxes.remove(fax)
        del self.by_id[fax.fax_id]
        fax.deleted = True

    def between(self, start: datetime | None, end: datetime | None) -> list[Fax]:
        """Give the faxes completed from start to end, both included, oldest first."""
        low = 0 if start is None else bisect.bisect_left(self.faxes, start, key=_COMPLETED)
        high = None if end is None else bisect.bisect_right(self.faxes, end, key=_COMPLETED)
        return self.faxes[low:high]


def is_uuid(text: str) -> bool:
    return re.fullmatch("[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}", text) is not None


@dataclass
class App:
    """One App ID with its one good token."""

    app_id: str
    api_key: str
    users: dict[str, Mailbox] = field(default_factory=dict)
    token: str | None = None
    token_ends: datetime = _NEVER


@dataclass
class RateLimit:
    """A token bucket; starts full. Time is monotonic seconds."""

    rate: float
    burst: float
    level: float
    at: float

    def take(self, now: float) -> float:
        """Take one token; gives 0, or the seconds until there is one (then none was taken)."""
        self.level = min(self.burst, self.level + max(0.0, now - self.at) * self.rate)
        self.at = now
        if self.level >= 1.0:
            self.level -= 1.0
            return 0.0
        return (1.0 - self.level) / self.rate
