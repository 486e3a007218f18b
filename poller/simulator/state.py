"""What eFax knows about an App ID, a user and a fax. No network, no clock."""

import bisect
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Any, Literal

Format = Literal["pdf", "tiff"]

_COMPLETED = attrgetter("completed")
_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(eq=False, repr=False)
class Fax:
    """One received fax; tests compare it by identity, eFax by (app_id, user_id, fax_id).

    `completed` is the time in the list, in whole milliseconds; the list shows the fax from
    `visible_at` on. `trouble` is a fault (see faults.py) in each download of this fax. `fields`
    override the fax's fields in the list; None removes a field there.
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
        """Return the text that `search_text` searches."""
        return f"{self.originating}\n{self.destination}\n{self.tsid}".lower()


Course = tuple[tuple[float, str], ...]
FINAL = frozenset({"COMPLETE", "ERROR", "CANCELED"})


@dataclass(eq=False, repr=False)
class SentFax(Fax):
    """One sent fax; it exists from `visible_at` on, when eFax accepted it.

    `course` holds each state and the seconds until it (NEW, INPROGRESS, PENDING RETRY, and the
    three of FINAL); `completed` is the time of the last one. `error_code` belongs to ERROR.
    """

    course: Course = ((0.0, "COMPLETE"),)
    error_code: str = "E42"
    transaction_id: str = ""
    reference: str = ""
    has_image: bool = True

    def status(self, now: datetime) -> str:
        since_s = (now - self.visible_at).total_seconds()
        reached = [state for after_s, state in self.course if after_s <= since_s]
        return reached[-1] if reached else self.course[0][1]

    def is_final(self, now: datetime) -> bool:
        return self.status(now) in FINAL

    def ends(self, now: datetime, state: str, error_code: str = "E42") -> None:
        """Put it into a state now, for good."""
        since_s = (now - self.visible_at).total_seconds()
        before = tuple(step for step in self.course if step[0] < since_s)
        self.course, self.error_code = (*before, (since_s, state)), error_code
        self.completed = whole_milliseconds(now)


def whole_milliseconds(instant: datetime) -> datetime:
    """Cut a time to whole milliseconds, as in the API."""
    utc = instant.astimezone(UTC)
    return utc - timedelta(microseconds=utc.microsecond % 1000)


@dataclass
class Mailbox:
    """The faxes of one user: received ones oldest first, sent ones in the order of sending."""

    app_id: str
    user_id: str
    number: str | None = None
    faxes: list[Fax] = field(default_factory=list)
    sent: list[SentFax] = field(default_factory=list)
    by_id: dict[str, Fax] = field(default_factory=dict)

    def add(self, fax: Fax) -> None:
        if fax.fax_id in self.by_id:
            raise ValueError(f"fax {fax.fax_id!r} exists already")
        if isinstance(fax, SentFax):
            self.sent.append(fax)
        else:
            bisect.insort(self.faxes, fax, key=lambda one: (one.completed, one.number))
        self.by_id[fax.fax_id] = fax

    def find(self, fax_id: str) -> Fax | None:
        """Return the fax with this id; ignore a UUID's case, as eFax may spell it either way."""
        found = self.by_id.get(fax_id)
        if found is None and is_uuid(fax_id):
            spellings = (fax_id.lower(), fax_id.upper())
            found = next((self.by_id[one] for one in spellings if one in self.by_id), None)
        return found

    def remove(self, fax: Fax) -> None:
        if isinstance(fax, SentFax):
            self.sent.remove(fax)
        else:
            self.faxes.remove(fax)
        del self.by_id[fax.fax_id]
        fax.deleted = True

    def between(self, start: datetime | None, end: datetime | None) -> list[Fax]:
        """Return the faxes completed from start to end inclusive, oldest first."""
        low = 0 if start is None else bisect.bisect_left(self.faxes, start, key=_COMPLETED)
        high = None if end is None else bisect.bisect_right(self.faxes, end, key=_COMPLETED)
        return self.faxes[low:high]


def is_uuid(text: str) -> bool:
    return re.fullmatch("[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}", text) is not None


@dataclass(frozen=True)
class HookTarget:
    """Where to post the notices of an App ID, and the secret that signs them."""

    url: str
    secret: str = field(repr=False)


@dataclass
class App:
    """One App ID with its one valid token."""

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
        """Take one token and return 0, or take none and return the seconds until there is one."""
        self.level = min(self.burst, self.level + max(0.0, now - self.at) * self.rate)
        self.at = now
        if self.level >= 1.0:
            self.level -= 1.0
            return 0.0
        return (1.0 - self.level) / self.rate
