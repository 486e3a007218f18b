"""The transmission of a sent fax, read from a record of the sent list or any similar answer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

# the published error codes; there are more
ERRORS: Final[Mapping[str, str]] = {
    "E06": "an error of eFax's system",
    "E07": "an error of eFax's sending machines",
    "E33": "a person answered",
    "E41": "the number was busy",
    "E42": "nobody answered",
    "E43": "a person answered",
    "E44": "it was interrupted",
    "E45": "it was cancelled",
    "E46": "it expired",
    "E49": "the machines could not communicate",
    "E51": "the number has the wrong form",
    "E52": "eFax considers the number a high risk",
    "E53": "the number is not allowed",
}
_COMPLETE = {"COMPLETE", "COMPLETED"}
_LONGEST = 64
_FINAL = _COMPLETE | {"ERROR", "CANCELED", "CANCELLED"}


@dataclass(frozen=True)
class Transmission:
    """`status` and `error_code` as eFax spells them; an unknown status means still under way."""

    status: str | None = None
    error_code: str | None = None

    @property
    def is_final(self) -> bool:
        return self._word in _FINAL

    @property
    def is_complete(self) -> bool:
        return self._word in _COMPLETE

    @property
    def _word(self) -> str:
        return "".join((self.status or "").upper().split())


def final_status(listed: Mapping[str, Any]) -> Transmission:
    """Read a sent record, its metadata or its transmission details.

    `transmission_data` (an object or an array) decides; without a status in it, the record itself
    does. `fax_status` is about the image. If the entries of an array differ, one under way counts,
    otherwise the last.
    """
    data = listed.get("transmission_data")
    entries = data if isinstance(data, list) else [data]
    found = [_transmission(entry) for entry in entries if isinstance(entry, Mapping)]
    told = [one for one in found if one.status is not None] or [_transmission(listed)]
    return next((one for one in told if not one.is_final), told[-1])


def _transmission(fields: Mapping[str, Any]) -> Transmission:
    return Transmission(_text(fields.get("transmission_status")), _text(fields.get("error_code")))


def _text(value: object) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip() or len(value) > _LONGEST:
        return None
    return value if value.isprintable() else None  # otherwise we might be unable to write it down
