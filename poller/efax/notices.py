"""Read the answers of GET /notifications: about which faxes eFax notified the web-hook."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from poller.efax.responses import no_deeper, usable_fax_id
from poller.efax.strict_json import strict_value
from poller.efax.timestamps import parse_timestamp
from poller.errors import BadAnswer
from poller.stream import Direction

_DIRECTIONS = {
    **dict.fromkeys(("INBOUND", "RECEIVED"), Direction.RECEIVED),
    **dict.fromkeys(("OUTBOUND", "SENT"), Direction.SENT),
}
_OF_SENT_ONLY = ("transmission_data", "routing_data", "client_tracking_data")


@dataclass(frozen=True)
class Notice:
    """One entry; a field is None if it is missing or has an unknown form."""

    fax_id: str
    user_id: str | None
    direction: Direction | None
    completed_at: datetime | None
    raw: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class NoticePage:
    """One answer; `unusable` counts entries without a usable fax id."""

    notices: tuple[Notice, ...] = ()
    unusable: int = 0

    def __len__(self) -> int:
        return len(self.notices) + self.unusable


def parse_notices(body: bytes) -> NoticePage:
    """Read a bare array; also accept an object around it, or an empty body."""
    if not body.strip():
        return NoticePage()
    value = strict_value(body, "notifications")
    if isinstance(value, dict):
        if value.get("errors"):
            raise BadAnswer("The notifications answer is an error message.")
        value = next((one for one in value.values() if isinstance(one, list)), [])
    if not isinstance(value, list):
        raise BadAnswer("The notifications answer contains no list.")
    read = [_notice(entry) for entry in value]
    notices = tuple(one for one in read if one is not None)
    return NoticePage(notices, len(read) - len(notices))


def _notice(entry: object) -> Notice | None:
    if not isinstance(entry, dict):
        return None
    fax_id = usable_fax_id(entry.get("fax_id"))
    if fax_id is None:
        return None
    user_id, direction = entry.get("user_id"), entry.get("fax_direction")
    completed = entry.get("fax_completed_timestamp")
    return Notice(
        fax_id,
        user_id if isinstance(user_id, str) and user_id else None,
        _direction(direction),
        parse_timestamp(completed) if isinstance(completed, str) else None,
        no_deeper(entry),
    )


def _direction(word: object) -> Direction | None:
    return _DIRECTIONS.get(word.strip().upper()) if isinstance(word, str) else None


def direction_of(fields: Mapping[str, Any]) -> Direction | None:
    """Return a fax's direction as its metadata say, or by fields that only a sent fax has."""
    said = _direction(fields.get("direction"))
    is_sent = said is None and any(fields.get(name) is not None for name in _OF_SENT_ONLY)
    return Direction.SENT if is_sent else said
