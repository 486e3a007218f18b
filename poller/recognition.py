"""Which fax is ours: in the list of sent ones after an answer was lost, and among those that arrive.

Of two mistakes the one is kept away from: to take another's fax for ours would hide that ours was
never sent. Where nothing tells them apart, nothing is recognised.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from poller.efax.responses import ListedFax

CSID_BEGINS: Final = "POLLER"
# Both clocks may be off by a little, and eFax's times have whole seconds in some answers.
_TOLERANCE: Final = timedelta(minutes=2)
_DEEPEST: Final = 6
_NORTH_AMERICA: Final = re.compile(r"1?([2-9]\d{2}[2-9]\d{6})")
_TYPED: Final = re.compile(r"[\s().\-/]")


# -- numbers ----------------------------------------------------------------------------------------


def to_dial(typed: str) -> str:
    """Give a number as eFax wants it: 1 and ten digits in North America, else with `+`.

    Blanks, brackets and dashes are left out. ValueError says what is wrong.
    """
    plain = _TYPED.sub("", typed)
    digits = plain.removeprefix("+")
    if not re.fullmatch(r"[0-9]+", digits):
        raise ValueError("NUMBER holds more than digits, blanks, brackets, dashes and a leading +")
    if plain.startswith("+") and not digits.startswith("1"):
        if not 7 <= len(digits) <= 15:
            raise ValueError("NUMBER has not the 7 to 15 digits of a number that begins with +")
        return plain
    if (found := _NORTH_AMERICA.fullmatch(digits)) is None:
        raise ValueError(
            "NUMBER is no number of North America (1 and ten digits, such as 13235551212); begin a number "
            "of another country with + and its code"
        )
    return f"1{found[1]}"


def is_same_number(one: str, other: str) -> bool:
    """Compare by digits; a leading 1 before ten digits does not count."""
    return _digits(one) == _digits(other) != ""


def _digits(number: str) -> str:
    digits = "".join(re.findall(r"[0-9]", number))
    return digits[1:] if len(digits) == 11 and digits.startswith("1") else digits


# -- what was sent ----------------------------------------------------------------------------------


def find_sent(transaction_id: str, listed: Iterable[ListedFax]) -> str | None:
    """Give the id of the sent fax that is ours: our transaction id stands somewhere in its record."""
    return next((fax.fax_id for fax in listed if _bears(fax.raw, transaction_id)), None)


def may_be_sent(fax: ListedFax, number: str, sent_at: datetime) -> bool:
    """Tell whether a record can be of a fax that was sent to this number then, as far as it says."""
    told = fax.raw.get("destination_fax_number")
    if isinstance(told, str) and _digits(told) and not is_same_number(told, number):
        return False
    return fax.received_at is None or fax.received_at >= sent_at - _TOLERANCE


def _bears(value: Any, text: str, depth: int = 0) -> bool:
    if isinstance(value, str):
        return value.strip().casefold() == text.casefold()
    if depth == _DEEPEST:
        return False
    if isinstance(value, Mapping):
        return any(_bears(item, text, depth + 1) for item in value.values())
    return isinstance(value, list) and any(_bears(item, text, depth + 1) for item in value)


# -- what has arrived -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expected:
    """A page on its way to our own `number`: `code` stands on it and in the sender's id that we gave.

    After `late_at` it is known by its code alone.
    """

    send: int
    code: str
    number: str
    sent_at: datetime
    late_at: datetime


def csid_of(code: str) -> str:
    """Give the sender's id of a page with this code: 20 printable ASCII characters at most."""
    return f"{CSID_BEGINS} {code}"


def find_arrived(expected: Sequence[Expected], fax: ListedFax) -> Expected | None:
    """Say which of the pages on their way this received fax is, or None: it is somebody else's.

    A carrier may put its own text in the place of our sender's id. Then it is one page, from our
    own number, that came after it was sent and not late; of several the one sent last.
    """
    tsid = _letters(str(fax.raw.get("originating_fax_tsid") or ""))
    for one in expected:
        if _letters(one.code) in tsid:
            return one
    if CSID_BEGINS in tsid:
        return None  # another code: another poller's, or one that is not waited for any more
    sender = str(fax.raw.get("originating_fax_number") or "")
    if fax.pages != 1 or fax.received_at is None:
        return None
    could_be = [
        one
        for one in expected
        if is_same_number(sender, one.number)
        and one.sent_at - _TOLERANCE <= fax.received_at <= one.late_at + _TOLERANCE
    ]
    return max(could_be, key=lambda page: page.sent_at, default=None)


def _letters(text: str) -> str:
    return re.sub(r"[^A-Z0-9]", "", text.upper())
