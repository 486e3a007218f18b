"""Whether a fax may be deleted at eFax, which cannot be undone: the row's part and the files' part."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Protocol

from poller.config.model import Delete
from poller.stream import Direction

GIVEN_UP_AFTER = timedelta(days=7)
A_DAY = timedelta(hours=24)


class Deletable(Protocol):
    """What the rules ask of a fax, as the ledger has it."""

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
    def refetch(self) -> bool: ...


class Found(Protocol):
    """What was found where the files of a fax should be.

    `is_well`: both are there, and what was read of them is what was stored. `is_gone`: neither is
    there, in a directory that is there or not. `why` is what is wrong otherwise.
    """

    @property
    def is_well(self) -> bool: ...
    @property
    def is_gone(self) -> bool: ...
    @property
    def has_directory(self) -> bool: ...
    @property
    def why(self) -> str | None: ...


def why_kept(
    fax: Deletable, rule: Delete | None, now: datetime, stored_before: datetime | None = None
) -> str | None:
    """Say why a fax must not be deleted by what the ledger knows of it; None: its files decide.

    `rule` is that of its user, None where it is not configured. `stored_before` stands for
    `delete.after`, and for nothing else. What our clock calls stored before eFax had received it was
    stored later than that.
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
        yield "eFax served it broken, so what is here may not be all of it"
    if fax.damage is not None:
        yield f"its files are not what was stored: {fax.damage}"
    if fax.refetch:
        yield "it is to be fetched again"
    stored_at = fax.stored_at and max(fax.stored_at, fax.received_at or fax.stored_at)
    if rule is None:
        yield "its user is not configured any more"
    elif stored_at is None:
        yield "nobody knows when it was stored"
    elif stored_before is not None:
        if stored_at >= stored_before:
            yield f"it was stored at {_shown(stored_at)}, not before that time"
    elif rule.after is None:
        yield "its user has no delete.after"
    elif now - stored_at < rule.after:
        yield f"it was stored at {_shown(stored_at)}, and delete.after has not passed since"


def why_unproved(rule: Delete, found: Found) -> str | None:
    """Say why the files do not prove that a good copy exists; None: they do.

    A consumer takes files. Where their directory is gone, too, a mount may be missing or an older
    state of the storage may have been restored, and then nobody took them.
    """
    if found.is_well:
        return None
    if not found.is_gone:
        return f"its files are not what was stored: {found.why or 'nobody knows why'}"
    if rule.taken == "keep":
        return "its files were taken away, and delete.taken is keep"
    if not found.has_directory:
        return "its files are gone and their directory with them, so nobody may have taken them"
    return None


def left_today(rule: Delete, deleted_lately: int) -> int:
    """How many more of the account may be deleted now, after so many in 24 hours."""
    return max(0, rule.max_per_day - deleted_lately)


def is_given_up(now: datetime, refused_since: datetime | None) -> bool:
    """Whether eFax has refused for so long that it is not asked any more."""
    return refused_since is not None and now - refused_since >= GIVEN_UP_AFTER


def _shown(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
