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
    def stored_at(self) -> datetime | None: ...
    @property
    def deleted_at(self) -> datetime | None: ...
    @property
    def damaged(self) -> bool: ...
    @property
    def damage(self) -> str | None: ...
    @property
    def refetch(self) -> bool: ...


def why_kept(
    fax: Deletable, rule: Delete | None, now: datetime, stored_before: datetime | None = None
) -> str | None:
    """Say why a fax must not be deleted by what the ledger knows of it; None: its files decide.

    `rule` is that of its user, None where it is not configured. `stored_before` stands for
    `delete.after`, and for nothing else.
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
    if rule is None:
        yield "its user is not configured any more"
    elif fax.stored_at is None:
        yield "nobody knows when it was stored"
    elif stored_before is not None:
        if fax.stored_at >= stored_before:
            yield f"it was stored at {_shown(fax.stored_at)}, not before that time"
    elif rule.after is None:
        yield "its user has no delete.after"
    elif now - fax.stored_at < rule.after:
        yield f"it was stored at {_shown(fax.stored_at)}, and delete.after has not passed since"


def why_unproved(rule: Delete, *, is_well: bool, is_gone: bool, harm: str | None) -> str | None:
    """Say why the files do not prove that a good copy exists; None: they do.

    `is_well`: both are there, and their bytes, read now, are those that were stored. `is_gone`: a
    consumer took both. `harm` is what is wrong otherwise.
    """
    if is_well:
        return None
    if is_gone:
        taken = "its files were taken away, and delete.taken is keep"
        return None if rule.taken == "delete" else taken
    return f"its files are not what was stored: {harm or 'nobody knows why'}"


def left_today(rule: Delete, deleted_lately: int) -> int:
    """How many more of the account may be deleted now, after so many in 24 hours."""
    return max(0, rule.max_per_day - deleted_lately)


def is_given_up(now: datetime, refused_since: datetime | None) -> bool:
    """Whether eFax has refused for so long that it is not asked any more."""
    return refused_since is not None and now - refused_since >= GIVEN_UP_AFTER


def _shown(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
