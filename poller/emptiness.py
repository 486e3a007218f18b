"""Whether a list without a fax is to be believed.

An outage may answer 200 with nothing. Two things tell it from a mailbox in which nothing came: how
this server spells an empty list (it is learnt, for nobody has published it), and the canary, a
window that held a fax when it was listed and must hold it now.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from typing import Self

from poller.window import Interval

NEVER = Interval(datetime(1990, 1, 1, tzinfo=UTC), datetime(1990, 1, 1, 0, 0, 1, tzinfo=UTC))
PROVE_EVERY_S = 60.0
CANARIES = 3
LONGEST_DOUBT = timedelta(hours=1)


class Finding(Enum):
    """What asking for a known fax's window came to."""

    LISTED = auto()  # the window holds a fax
    ABSENT = auto()  # it holds none, and nothing says why
    BROKEN = auto()  # it holds none, and what eFax says of the fax makes no sense either
    GONE = auto()  # it holds none, and eFax says that the fax is no longer there
    REFUSED = auto()  # eFax does not list such a window


class Verdict(Enum):
    """What the canaries say of an account's empty lists."""

    PROVED = auto()
    UNPROVED = auto()  # no known fax could tell
    LOST = auto()  # lists show nothing of what they showed before


def verdict(findings: Iterable[Finding]) -> Verdict:
    """Judge an account by what came of its canaries."""
    found = set(findings)
    if Finding.LISTED in found:
        return Verdict.PROVED
    return Verdict.LOST if found & {Finding.ABSENT, Finding.BROKEN} else Verdict.UNPROVED


def is_proof_due(now_s: float, proved_s: float | None, *, is_missed: bool = False) -> bool:
    """Tell whether a canary is to be asked for; `is_missed`: a fax known to be there is not listed.

    What is empty waits for a proof that comes after it, so one proof serves all lists of a minute.
    """
    return is_missed or proved_s is None or now_s - proved_s >= PROVE_EVERY_S


@dataclass(frozen=True)
class Lists:
    """What is known of an account's lists.

    `shapes`: how it spells an empty one, None before it was asked, empty where it would not say.
    `tells_gone`: whether metadata tell a fax that is there from one that is not. `doubted_since`:
    since when its lists show nothing of what they showed before. `deleted_until`: a fax of a window
    that ended by then is no canary, for these were deleted at eFax. `unproved`: spellings that were
    believed while no fax was known that could prove them.
    """

    shapes: frozenset[str] | None = None
    tells_gone: bool = False
    doubted_since: datetime | None = None
    deleted_until: datetime | None = None
    unproved: frozenset[str] = frozenset()

    def is_doubted_too_long(self, now: datetime) -> bool:
        """Tell whether faxes that are not listed any more are to be taken for deleted."""
        return self.doubted_since is not None and now - self.doubted_since >= LONGEST_DOUBT

    def is_deleted(self, listed_until: datetime) -> bool:
        """Tell whether a fax of a window that ended then is taken for deleted at eFax."""
        return self.deleted_until is not None and listed_until <= self.deleted_until

    def text(self) -> str:
        """Write it down; `read` undoes that."""
        return json.dumps(
            {
                "shapes": None if self.shapes is None else sorted(self.shapes),
                "tells_gone": self.tells_gone,
                "doubted_since": self.doubted_since and self.doubted_since.isoformat(),
                "deleted_until": self.deleted_until and self.deleted_until.isoformat(),
                "unproved": sorted(self.unproved),
            }
        )

    @classmethod
    def read(cls, text: str | None) -> Self:
        """Read what was written down; of another version's text nothing is known."""
        try:
            kept = json.loads(text or "{}")
            return cls(
                None if kept.get("shapes") is None else frozenset(kept["shapes"]),
                kept.get("tells_gone") is True,
                _instant(kept.get("doubted_since")),
                _instant(kept.get("deleted_until")),
                frozenset(kept.get("unproved", ())),
            )
        except (ValueError, TypeError, AttributeError):
            return cls()


def _instant(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
