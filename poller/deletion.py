"""Decide whether to delete a fax at eFax, which cannot be undone: by its row and by its files."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Protocol

from poller.config.model import Delete
from poller.stream import Direction

GIVEN_UP_AFTER = timedelta(days=7)
A_DAY = timedelta(hours=24)


class Deletable(Protocol):
    """What the rules need to know of a fax from the ledger."""

    @property
    def direction(self) -> Direction: ...
    @property
    def state(self) -> str: ...
    @property
    def received_at(self) -> datetime | None: ...
    @property
    def stored_at(self) -> datetime | None: ...
    @property
    def deleted_at(self) -> datetime | None: ...
    @property
    def damaged(self) -> bool: ...
    @property
    def damage(self) -> str | None: ...
    @property
    def unreadable(self) -> bool: ...
    @property
    def refetch(self) -> bool: ...


class Found(Protocol):
    """What the look at a fax's files found.

    `is_well`: both are there and are what was stored, as far as they were read. `is_gone`: both are
    missing, whether or not their directory exists. Otherwise `why` says what is wrong, or what
    nobody can read (`is_unreadable`).
    """

    @property
    def is_well(self) -> bool: ...
    @property
    def is_gone(self) -> bool: ...
    @property
    def has_directory(self) -> bool: ...
    @property
    def is_unreadable(self) -> bool: ...
    @property
    def why(self) -> str | None: ...


def why_kept(
    fax: Deletable, rule: Delete | None, now: datetime, stored_before: datetime | None = None
) -> str | None:
    """Return why the ledger forbids to delete a fax; None leaves the decision to its files.

    `rule` is the user's, None if the user is not configured. `stored_before` replaces only
    `delete.after`. A fax that our clock says was stored before eFax received it was stored later
    than that.
    """
    return next(_reasons(fax, rule, now, stored_before), None)


def _reasons(
    fax: Deletable, rule: Delete | None, now: datetime, stored_before: datetime | None
) -> Iterator[str]:
    if fax.direction is not Direction.RECEIVED:
        yield "it was sent, and only received faxes are deleted"
    if fax.deleted_at is not None:
        yield f"it was deleted at eFax at {_shown(fax.deleted_at)}"
    if fax.state != "stored":
        yield f"it is {fax.state}"
    if fax.damaged:
        yield "eFax delivered it broken, so the file may be incomplete"
    if fax.damage is not None:
        yield _not_well(fax.damage, unreadable=fax.unreadable)
    if fax.refetch:
        yield "poller must fetch it again"
    stored_at = fax.stored_at and max(fax.stored_at, fax.received_at or fax.stored_at)
    if rule is None:
        yield "its user is no longer configured"
    elif stored_at is None:
        yield "nobody knows when it was stored"
    elif stored_before is not None:
        if stored_at >= stored_before:
            yield f"it was stored at {_shown(stored_at)}, not before that time"
    elif rule.after is None:
        yield "its user has no delete.after"
    elif now - stored_at < rule.after:
        yield f"it was stored at {_shown(stored_at)}, and delete.after has not passed since then"


def why_unproved(rule: Delete, found: Found) -> str | None:
    """Return why the files do not prove that a good copy exists; None if they do.

    Consumers take files. If the directory is gone as well, a mount may be missing, or somebody
    restored an older state of the storage; then nobody took the files.
    """
    if found.is_well:
        return None
    if not found.is_gone:
        return _not_well(found.why or "nobody knows why", unreadable=found.is_unreadable)
    if rule.taken == "keep":
        return "somebody has taken its files, and delete.taken is keep"
    if not found.has_directory:
        return "its files and their directory are gone, so perhaps nobody has taken them"
    return None


def _not_well(why: str, *, unreadable: bool) -> str:
    what = "cannot be read, so they prove nothing" if unreadable else "are not what was stored"
    return f"its files {what}: {why}"


def left_today(rule: Delete, deleted_lately: int) -> int:
    """Return how many more faxes of the account may be deleted now, after this many in 24 hours."""
    return max(0, rule.max_per_day - deleted_lately)


def is_given_up(now: datetime, refused_since: datetime | None) -> bool:
    """Whether eFax has refused for so long that poller stops asking."""
    return refused_since is not None and now - refused_since >= GIVEN_UP_AFTER


def _shown(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
