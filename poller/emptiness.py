"""Decide whether to believe a list without a fax.

An outage may answer 200 with nothing. Two things tell it from a mailbox in which nothing has
arrived: how this server writes an empty list (poller learns this, as nobody has published it), and
the witness, a window that contained a fax when it was listed and must still contain it.
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
LATER_DOUBT = timedelta(minutes=5)  # if earlier faxes that we believed deleted stayed away
PROBES_WITHIN = timedelta(minutes=10)  # of each other; in a longer pause nobody has looked


class WitnessResult(Enum):
    """What the request for a known fax's window showed."""

    LISTED = auto()  # the window contains a fax
    ABSENT = auto()  # it contains none, and nothing says why
    BROKEN = auto()  # it contains none, and what eFax says about the fax makes no sense either
    GONE = auto()  # it contains none, and eFax says that the fax has gone
    REFUSED = auto()  # eFax does not list such a window


class Credibility(Enum):
    """What the witnesses say about an account's empty lists."""

    PROVED = auto()
    UNPROVED = auto()  # no known fax could prove anything
    LOST = auto()  # lists show nothing that they showed before


def credibility(results: Iterable[WitnessResult]) -> Credibility:
    """Judge an account by the results of its witnesses."""
    found = set(results)
    if WitnessResult.LISTED in found:
        return Credibility.PROVED
    return (
        Credibility.LOST
        if found & {WitnessResult.ABSENT, WitnessResult.BROKEN}
        else Credibility.UNPROVED
    )


def is_proof_due(now_s: float, proved_s: float | None, requests_per_second: float) -> bool:
    """Tell whether to ask for a witness now, in an account with this limit.

    An empty list waits for a later proof, so one proof serves all lists before it.
    """
    every_s = max(PROVE_EVERY_S, 1 / (PROOFS_AT_MOST * requests_per_second))
    return proved_s is None or now_s - proved_s >= every_s


@dataclass(frozen=True)
class Lists:
    """What is known about an account's lists.

    `shapes`: how it writes an empty one; None before anybody asked, empty if it would not say.
    `tells_gone`: whether metadata distinguish a fax that is there from one that is not.
    `doubted_since`: since when its lists show nothing that they showed before; `doubted_at`: when
    poller last looked at that; `doubted_for`: for how long it has looked. `deleted_until`: faxes of
    windows that ended by then are not witnesses, as they were deleted at eFax. `unproved`:
    spellings that were believed while no known fax could prove them. `given_up`: the last faxes
    that were believed deleted although eFax did not say so; `believed_since`: since when empty
    lists were believed for that reason; they are listed again once any list contains a fax. All
    times are eFax's.
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
        """Whether to believe that faxes were deleted because eFax no longer lists them."""
        return self.doubted_for >= (LATER_DOUBT if self.given_up else LONGEST_DOUBT)

    def doubted(self, now: datetime, *, is_outage: bool = False) -> Self:
        """Note a look that found nothing; a known outage does not count as a sign of deletion."""
        passed = timedelta(0)
        if self.doubted_at is not None and not is_outage:
            passed = min(max(now - self.doubted_at, passed), PROBES_WITHIN)
        since = min(self.doubted_since or now, now)
        return replace(
            self, doubted_since=since, doubted_at=now, doubted_for=self.doubted_for + passed
        )

    def well(self) -> Self:
        """Note a list that contains a fax, or that nothing is left to doubt."""
        return replace(self, doubted_since=None, doubted_at=None, doubted_for=timedelta(0))

    def believed(self, given_up: Sequence[str]) -> Self:
        """Note that empty lists are believed after all, and which faxes are believed deleted."""
        since = [one for one in (self.believed_since, self.doubted_since) if one is not None]
        kept = (*given_up, *self.given_up)[: 2 * MOST_WITNESSES]
        return replace(self, believed_since=min(since, default=None), given_up=kept)

    def is_deleted(self, listed_until: datetime) -> bool:
        """Tell whether a fax of a window that ended then is believed deleted at eFax."""
        return self.deleted_until is not None and listed_until <= self.deleted_until

    def text(self) -> str:
        """Write this as text, for `read`."""
        said = asdict(self)
        said["doubted_for_s"] = said.pop("doubted_for").total_seconds()
        return json.dumps(said, default=_plain)

    @classmethod
    def read(cls, text: str | None) -> Self:
        """Read that text; from another version's text, learn nothing."""
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
