"""Recognize our own faxes: among sent ones after an answer was lost, and among those that arrive.

Of the two possible mistakes, avoid this one: taking another fax for ours would hide that ours was
never sent. If nothing tells two faxes apart, recognize neither.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from poller.efax.responses import ListedFax

CSID_BEGINS: Final = "POLLER"
# Both clocks may be off a little, and some answers of eFax have times in whole seconds.
_TOLERANCE: Final = timedelta(minutes=2)
_DEEPEST: Final = 6
_NORTH_AMERICA: Final = re.compile(r"1?([2-9]\d{2}[2-9]\d{6})")
_TYPED: Final = re.compile(r"[\s().\-/]")


# -- numbers ----------------------------------------------------------------------------------------


def to_dial(typed: str) -> str:
    """Return a number as eFax wants it: 1 and ten digits in North America, otherwise with `+`.

    Drops blanks, brackets and dashes. ValueError says what is wrong.
    """
    plain = _TYPED.sub("", typed)
    digits = plain.removeprefix("+")
    if not re.fullmatch(r"[0-9]+", digits):
        raise ValueError("NUMBER may contain only digits, blanks, brackets, dashes and a leading +")
    if plain.startswith("+") and not digits.startswith("1"):
        if not 7 <= len(digits) <= 15:
            raise ValueError("NUMBER begins with + and must have 7 to 15 digits")
        return plain
    if (found := _NORTH_AMERICA.fullmatch(digits)) is None:
        raise ValueError(
            "NUMBER is not a North American number (1 and ten digits, such as 13235551212); begin a number "
            "of another country with + and its code"
        )
    return f"1{found[1]}"


def is_same_number(one: str, other: str) -> bool:
    """Compare the digits of two numbers; ignore a leading 1 before ten digits."""
    return _digits(one) == _digits(other) != ""


def _digits(number: str) -> str:
    digits = "".join(re.findall(r"[0-9]", number))
    return digits[1:] if len(digits) == 11 and digits.startswith("1") else digits


# -- what was sent ----------------------------------------------------------------------------------


def find_sent(transaction_id: str, listed: Iterable[ListedFax]) -> str | None:
    """Return the id of the sent fax whose record contains our transaction id."""
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
    """A page on its way to our own `number`: it shows `code`, and so does the sender's id that we gave.

    After `late_at`, only its code identifies it.
    """

    send: int
    code: str
    number: str
    sent_at: datetime
    late_at: datetime


def csid_of(code: str) -> str:
    """Return the sender's id of a page with this code: at most 20 printable ASCII characters."""
    return f"{CSID_BEGINS} {code}"


def find_arrived(expected: Sequence[Expected], fax: ListedFax) -> Expected | None:
    """Return which of the expected pages this received fax is; None if it belongs to somebody else.

    A carrier may replace our sender's id. Then it must be a single page from our own number that
    arrived after the expected page was sent, and not late; of several expected pages, the one sent
    last.
    """
    tsid = _letters(str(fax.raw.get("originating_fax_tsid") or ""))
    for one in expected:
        if _letters(one.code) in tsid:
            return one
    if CSID_BEGINS in tsid:
        return None  # another code: from another poller, or no longer expected
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
