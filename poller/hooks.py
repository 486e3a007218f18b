"""Read web-hook notices, which are only a sign that poller should poll some users.

poller believes nothing in a notice and never follows its link. It searches the notice, in any
form, for names of users, because eFax does not document the fields.
"""

import hashlib
import hmac
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any
from urllib.parse import parse_qsl

from poller.config.model import User
from poller.naming import fax_key

LONGEST_BODY = 1 << 20
SIGNATURE = re.compile(r"(?:sha256=)?([0-9a-f]{64})", re.IGNORECASE)

_MOST_PIECES = 20_000
_LONGEST_PIECE = 1_000  # a longer one is a text, and only its words can be names
_MOST_FAX_IDS = 200
_WORD = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._~-]*[A-Za-z0-9])?")
_NUMBER = re.compile(r"\+?[0-9(][0-9 ()./-]{4,30}[0-9]")
_NO_DIGITS = re.compile(r"[^0-9]+")
_OF_SENT = frozenset({"outbound", "sent"})


@dataclass(frozen=True)
class KnownNames:
    """The users of an account, by the names that a notice may use: User IDs by key and number."""

    by_user_id: Mapping[str, str]
    by_number: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Named:
    """The names in a notice: our User IDs, and words that may be fax ids.

    `of_sent`: a word says that the notice is about a sent fax.
    """

    user_ids: frozenset[str]
    words: tuple[str, ...]
    of_sent: bool


def is_signed(body: bytes, secret: str, signature: str) -> bool:
    """Return whether `X-HMAC-Signature` is the hex HMAC-SHA256 of the raw body.

    Compares in constant time.
    """
    found = SIGNATURE.fullmatch(signature.strip())
    if found is None:
        return False
    wanted = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(wanted, found[1].lower())


def names_of(users: Iterable[User]) -> KnownNames:
    """Return the tables for reading notices; once per configuration."""
    by_user_id, by_number = {}, defaultdict(list)
    for user in users:
        by_user_id[fax_key(user.user_id)] = user.user_id
        if user.number is not None:
            by_number[_digits(user.number)].append(user.user_id)
    return KnownNames(by_user_id, {number: tuple(ids) for number, ids in by_number.items()})


def read(body: bytes, names: KnownNames) -> Named:
    """Search a notice for names; the time grows with the notice, not with the number of users."""
    user_ids: set[str] = set()
    words: dict[str, None] = {}
    of_sent = False
    for piece in islice(_pieces(body), _MOST_PIECES):
        of_sent = of_sent or piece.lower() in _OF_SENT
        user_id = names.by_user_id.get(fax_key(piece))
        if user_id is not None:
            user_ids.add(user_id)
        elif len(words) < _MOST_FAX_IDS:
            words[piece] = None
        for number in _NUMBER.findall(piece) if names.by_number else ():
            user_ids.update(names.by_number.get(_digits(number), ()))
    return Named(frozenset(user_ids), tuple(words), of_sent)


def _digits(number: str) -> str:
    """Return a fax number for comparison: its digits, in North America without the leading 1."""
    digits = _NO_DIGITS.sub("", number).removeprefix("00")
    return digits[1:] if len(digits) == 11 and digits[0] == "1" else digits


def _pieces(body: bytes) -> Iterator[str]:
    """Yield each value, and each word in it."""
    for text in _texts(body):
        text = text.strip()  # noqa: PLW2901 - blanks around a value do not belong to it
        if 0 < len(text) <= _LONGEST_PIECE:
            yield text
        for word in _WORD.finditer(text):
            if len(word[0]) < len(text) and len(word[0]) <= _LONGEST_PIECE:
                yield word[0]


def _texts(body: bytes) -> Iterator[str]:
    """Yield the values of JSON; else those of a form, and the text itself."""
    text = body.decode(errors="replace")
    try:
        # Pairs, not objects: a repeated key may name two users.
        value = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError):
        yield from (value for _, value in parse_qsl(text, max_num_fields=None))
        yield text
        return
    yield from _leaves(value)


class _Pairs(list[tuple[str, Any]]):
    """The keys and values of an object, in order."""


def _leaves(value: Any) -> Iterator[str]:
    """Walk without recursion: JSON that the parser could read may still be too deep for that."""
    waiting = [iter((value,))]
    while waiting:
        for one in waiting[-1]:
            if isinstance(one, _Pairs):
                waiting.append(iter(list(chain.from_iterable(one))))
                break
            if isinstance(one, list):
                waiting.append(iter(one))
                break
            if isinstance(one, str):
                yield one
            elif isinstance(one, int) and not isinstance(one, bool):
                yield str(one)
        else:
            waiting.pop()
