"""How the transmission of a sent fax stands, from a record of the sent list or any answer like it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_COMPLETE = {"COMPLETE", "COMPLETED"}
_FINAL = _COMPLETE | {"ERROR", "CANCELED", "CANCELLED"}


@dataclass(frozen=True)
class Transmission:
    """`status` and `error_code` as eFax spells them; an unknown status is under way."""

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

    `transmission_data` decides (object or array); the record itself is asked where that says no
    status. `fax_status` is about the image. Of an array whose entries differ, one that is under way
    counts, else the last.
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
    return value if isinstance(value, str) and value.strip() else None
