"""Whether a list without a fax is to be believed.

An outage may answer 200 with nothing. Two things tell it from a mailbox in which nothing came: how
this server spells an empty list (it is learnt, for nobody has published it), and the witness, a
window that held a fax when it was listed and must hold it now.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from typing import Self

from poller.window import Interval

NEVER = Interval(datetime(1990, 1, 1, tzinfo=UTC), datetime(1990, 1, 1, 0, 0, 1, tzinfo=UTC))
PROVE_EVERY_S = 15.0
PROOFS_AT_MOST = 0.05  # of the requests that the account may send
MOST_WITNESSES = 3
LONGEST_DOUBT = timedelta(hours=1)
LATER_DOUBT = timedelta(minutes=5)  # where faxes were taken for deleted before, and stayed away
PROBES_WITHIN = timedelta(minutes=10)  # of each other; nobody has looked in the rest of a pause


class WitnessResult(Enum):
    """What asking for a known fax's window came to."""

    LISTED = auto()  # the window holds a fax
    ABSENT = auto()  # it holds none, and nothing says why
    BROKEN = auto()  # it holds none, and what eFax says of the fax makes no sense either
    GONE = auto()  # it holds none, and eFax says that the fax is no longer there
    REFUSED = auto()  # eFax does not list such a window


class Credibility(Enum):
    """What the witnesses say of an account's empty lists."""

    PROVED = auto()
    UNPROVED = auto()  # no known fax could tell
    LOST = auto()  # lists show nothing of what they showed before


def credibility(results: Iterable[WitnessResult]) -> Credibility:
    """Judge an account by what came of its witnesses."""
    found = set(results)
    if WitnessResult.LISTED in found:
        return Credibility.PROVED
    return (
        Credibility.LOST
        if found & {WitnessResult.ABSENT, WitnessResult.BROKEN}
        else Credibility.UNPROVED
    )


def is_proof_due(now_s: float, proved_s: float | None, requests_per_second: float) -> bool:
    """Tell whether a witness is to be asked for, in an account with this limit.

    What is empty waits for a proof that comes after it, so one proof serves all lists of its time.
    """
    every_s = max(PROVE_EVERY_S, 1 / (PROOFS_AT_MOST * requests_per_second))
    return proved_s is None or now_s - proved_s >= every_s


@dataclass(frozen=True)
class Lists:
    """What is known of an account's lists.

    `shapes`: how it spells an empty one, None before it was asked, empty where it would not say.
    `tells_gone`: whether metadata tell a fax that is there from one that is not. `doubted_since`:
    since when its lists show nothing of what they showed before; `doubted_at`: when that was looked
    at last, `doubted_for`: how long it was looked at. `deleted_until`: a fax of a window
    that ended by then is no witness, for these were deleted at eFax. `unproved`: spellings that were
    believed while no fax was known that could prove them. `given_up`: faxes that were taken for
    deleted without eFax saying so, the last ones; `believed_since`: what empty lists were believed
    for that, and are to be listed again once any list holds a fax. All times are eFax's.
    """

    shapes: frozenset[str] | None = None
    tells_gone: bool = False
    doubted_since: datetime | None = None
    deleted_until: datetime | None = None
    unproved: frozenset[str] = frozenset()
    doubted_at: datetime | None = None
    doubted_for: timedelta = timedelta(0)
    given_up: tuple[str, ...] = ()
    believed_since: datetime | None = None

    @property
    def is_doubted_too_long(self) -> bool:
        """Whether faxes that are not listed any more are to be taken for deleted."""
        return self.doubted_for >= (LATER_DOUBT if self.given_up else LONGEST_DOUBT)

    def doubted(self, now: datetime, *, is_outage: bool = False) -> Self:
        """Note a look that found nothing; an outage that is known as one counts for no deletion."""
        passed = timedelta(0)
        if self.doubted_at is not None and not is_outage:
            passed = min(max(now - self.doubted_at, passed), PROBES_WITHIN)
        since = min(self.doubted_since or now, now)
        return replace(
            self, doubted_since=since, doubted_at=now, doubted_for=self.doubted_for + passed
        )

    def well(self) -> Self:
        """Note a list that holds a fax, or the end of all that could be doubted."""
        return replace(self, doubted_since=None, doubted_at=None, doubted_for=timedelta(0))

    def believed(self, given_up: Sequence[str]) -> Self:
        """Note that empty lists are believed after all, and which faxes for deleted."""
        since = [one for one in (self.believed_since, self.doubted_since) if one is not None]
        kept = (*given_up, *self.given_up)[: 2 * MOST_WITNESSES]
        return replace(self, believed_since=min(since, default=None), given_up=kept)

    def is_deleted(self, listed_until: datetime) -> bool:
        """Tell whether a fax of a window that ended then is taken for deleted at eFax."""
        return self.deleted_until is not None and listed_until <= self.deleted_until

    def text(self) -> str:
        """Write it down; `read` undoes that."""
        said = asdict(self)
        said["doubted_for_s"] = said.pop("doubted_for").total_seconds()
        return json.dumps(said, default=_plain)

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
                _instant(kept.get("doubted_at")),
                timedelta(seconds=kept.get("doubted_for_s", 0)),
                tuple(kept.get("given_up", ())),
                _instant(kept.get("believed_since")),
            )
        except (ValueError, TypeError, AttributeError, OverflowError):
            return cls()


def _plain(value: datetime | frozenset[str]) -> str | list[str]:
    return value.isoformat() if isinstance(value, datetime) else sorted(value)


def _instant(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
