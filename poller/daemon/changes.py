"""Which users a changed configuration adds, removes and renames, as data and as a sentence."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from poller.config.model import Config
from poller.ledger import StreamRow
from poller.stream import Direction, label

NAMED: Final = 10
_Key = tuple[str, str, Direction]


@dataclass(frozen=True)
class Changes:
    """Labels (`account/user`), sorted; for renamed users the old label and the new one."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    renamed: tuple[tuple[str, str], ...]

    def sentence(self) -> str:
        """Return the counts as a phrase; empty if no user changed."""
        counts = {"added": self.added, "removed": self.removed, "renamed": self.renamed}
        said = [f"{len(some)} {what}" for what, some in counts.items() if some]
        return f"users: {', '.join(said)}" if said else ""


def changes(old: Config, new: Config) -> Changes:
    """Compare by App ID and User ID: names are labels.

    If a user stays, its archive of sent faxes counts separately.
    """
    before, after = _labels(old), _labels(new)
    of_users = {(app_id, user_id) for app_id, user_id, _ in before.keys() & after.keys()}

    def counts(stream: _Key) -> bool:
        return stream[2] is Direction.RECEIVED or stream[:2] in of_users

    return Changes(
        added=tuple(after[key] for key in after if key not in before and counts(key)),
        removed=tuple(before[key] for key in before if key not in after and counts(key)),
        renamed=tuple(
            (before[key], label)
            for key, label in after.items()
            if key[2] is Direction.RECEIVED and key in before and before[key] != label
        ),
    )


def _labels(settings: Config) -> dict[_Key, str]:
    return {
        (user.app_id, user.user_id, direction): label(*user.names, direction)
        for user, direction in settings.streams
    }


def left_behind(old: Config, new: Config, rows: Sequence[StreamRow]) -> list[StreamRow]:
    """Return the ledger's streams that the change removes while their faxes wait."""
    gone = _labels(old).keys() - _labels(new).keys()
    return [
        row
        for row in rows
        if (row.app_id, row.user_id, row.direction) in gone and (row.pending or row.quarantined)
    ]


def said_of_left_behind(rows: Sequence[StreamRow]) -> list[str]:
    """Return a sentence for each of the first ten, and one for the rest."""
    said = [
        f"user {row.key} was removed with {row.quarantined} quarantined and "
        f"{row.pending} pending {'fax' if row.pending == 1 else 'faxes'}; "
        "poller no longer fetches them"
        for row in rows[:NAMED]
    ]
    if len(rows) > NAMED:
        said.append(f"the same holds for {len(rows) - NAMED} more users")
    return said
