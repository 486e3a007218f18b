"""Remove secrets, fax numbers and names from everything that poller writes.

Every log line goes through `Redactor.value`; other output (status page, errors on the terminal)
can go through `Redactor.text`. The result contains only JSON types, so that no renderer calls
`repr` on an object that was not examined.
"""

import base64
import enum
import functools
import hmac
import html
import json
import math
import re
import threading
import unicodedata
import urllib.parse
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import PurePath
from typing import Any, Final, NamedTuple, TypeVar

from poller.log import secret_bytes

T = TypeVar("T")
SECRET: Final = "[secret]"  # noqa: S105 - it replaces a secret
_DEEPEST: Final = 8
_MOST_ITEMS: Final = 200
_KEPT_PER_SLOT: Final = 4
_END: Final = 12 * 1024
_MARGIN: Final = 4 * 1024  # longer than any token
_MOST_TEXT: Final = 128 * 1024
_REMEMBERED: Final = 2048
_SHORT: Final = 256

# Labels and identities that operators and scripts look up. Only secrets are removed from them.
_IDENTITY_KEYS: Final = frozenset(
    {"fax_id", "path", "file", "files", "account", "user", "directory", "sha256", "version", "host"}
    | {"added", "removed", "renamed"}
)
_MEASURE_KEYS: Final = frozenset(
    {"bytes", "size", "free", "free_bytes", "needed", "count", "total", "limit", "pid"}
    | {"polls", "requests", "stored", "pending", "discovered", "pages"}
)
_MEASURE_ENDS: Final = ("_s", "_ms", "_ns", "_bytes", "_count", "_total", "_pages")
_SECRET_KEYS: Final = re.compile(
    r"authorization|api_?-?key|access_?-?token|password|secret|credential|cookie|^token$",
    re.IGNORECASE,
)
_NAME_KEYS: Final = re.compile(r"tsid|csid|sender|caller|to_name|to_company", re.IGNORECASE)
_NUMBER_KEYS: Final = re.compile(r"fax_?-?number|^number$|^phone|telephone", re.IGNORECASE)

_IN_TEXT: Final = re.compile(
    r"""
    (?P<jwt> \beyJ[\w-]{4,}(?:\.[\w-]*)* )
  | (?P<scheme> \b(?:bearer|basic) \s+ ) (?!(?:tokens?|auth|authentication|credentials?)\b)
        [\w.~+/=:-]+
  | (?P<assigned> \b(?:[\w-]{0,40}
        (?:authorization|api[_-]?key|access[_-]?token|client[_-]?secret|password)
        ["']? \s* [:=] \s* | token=) ["']? (?:(?:bearer|basic)\s+)? )
        (?! \[secret\]  # nor what our own sentences begin with behind the path of a key
          | (?<=key:\ ) (?-i: (?: file | credential | environment\ variable
                                | a\ secret\ is\ never\ written | must\ (?:have|be) ) \ ) )
        [^\s"',;&}]+
  | (?P<userinfo> ://) [^\s/@]+ @
  | (?P<named> \b[\w-]{0,40}(?:tsid|csid) ["']? \s* [:=] \s*)
        (?: "(?:\\.|[^"\\])*" | '(?:\\.|[^'\\])*' | \\"[^"]*" | [^\s,}"'][^,}\n]* )
    """,
    re.IGNORECASE | re.VERBOSE,
)

_BETWEEN: Final = r"(?:[\s+\-()\u2010-\u2015\u2212\u00a0]|%2[0BD89b]){0,4}"
_NUMBERS: Final = re.compile(
    rf"""
    (?P<keep>
        …\d{{0,4}}\#[0-9a-f]{{8}}(?![0-9a-f])
      | (?<!\d)(?:19|20|21)\d\d-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])(?!\d)
            (?:[T\s]\d\d(?::|%3A)\d\d(?:(?::|%3A)\d\d(?:[.,]\d{{1,9}})?)?
               (?:Z|(?:[+-]|%2B)\d\d:?\d\d(?!\d))?(?![\d]))?
      | (?<![0-9a-z])[0-9a-f]{{8}}-(?:[0-9a-f]{{4}}-){{3}}[0-9a-f]{{12}}(?![0-9a-z])
      | (?<![0-9a-z])(?=[0-9]*[a-f])(?:[0-9a-f]{{64}}|[0-9a-f]{{40}}|[0-9a-f]{{32}})(?![0-9a-z])
      | (?<![\d.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){{3}}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\d.])
    )
  | (?P<number>
        (?:\+|%2B)?\(?\d(?:{_BETWEEN}\d){{6,}}
      | (?:\+|%2B)?\(?\d{{1,4}}\)?(?:\.\d{{2,4}}){{2,}}
    )
    """,
    re.VERBOSE | re.IGNORECASE,
)
_MASKED: Final = re.compile(r"…\d{0,4}#[0-9a-f]{8}")
_SURROGATES: Final = re.compile(r"[\ud800-\udfff]")


def _remembering(function: Callable[[str], T]) -> Callable[[str], T]:
    """Cache the results for short texts: nearly all keys, sentences and names repeat."""
    short = functools.lru_cache(_REMEMBERED)(function)
    return lambda text: short(text) if len(text) <= _SHORT else function(text)


class Redactor:
    """Knows the key for fax numbers and the secrets of this process; safe to use from any thread.

    With one key, a number always has the same code, however it is written: only its digits count.
    The code needs a key, because without one anybody could try all possible numbers.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._spellings: tuple[str, ...] = ()
        self._slots: dict[str, list[str]] = {}
        self._lock = threading.Lock()
        self._forget()

    def set_key(self, key: bytes) -> None:
        self._key = key
        self._forget()

    def _forget(self) -> None:
        """Clear the caches: the results depend on the key and the secrets."""
        self._clean_text = _remembering(lambda text: self._ends(text, self._without_numbers))
        self._clean_identity = _remembering(lambda text: self._ends(text, self._without_secrets))

    def register(self, secret: str, slot: str | None = None) -> None:
        """Hide `secret` from now on: plain, in base64 and percent-encoded.

        Secrets of one `slot`, such as an account's tokens, replace each other. Keep only the last few,
        so that a service that runs for years does not collect every token.
        """
        if not secret.strip():
            return
        with self._lock:
            kept = self._slots.setdefault(slot or secret, [])
            if secret in kept:
                kept.remove(secret)
            kept.append(secret)
            del kept[:-_KEPT_PER_SLOT]
            known = {
                spelling for some in self._slots.values() for s in some for spelling in _spell(s)
            }
            self._spellings = tuple(sorted(known, key=len, reverse=True))
            self._forget()

    def number(self, text: str) -> str:
        """Return the last four digits and a keyed code, `…1212#a1b2c3d4`; for text only the code."""
        digits = "".join(str(unicodedata.decimal(c)) for c in text if c.isdecimal())
        plain = digits or text.strip().casefold()
        code = hmac.digest(self._key, plain.encode("utf-8", "surrogatepass"), "sha256").hex()[:8]
        shown = digits[-4:] if len(digits) >= 7 else ""
        return f"…{shown}#{code}"

    def text(self, text: str) -> str:
        """Return `text` without secrets, fax numbers and senders; shorten a long one in the middle."""
        return self._clean_text(text)

    def identity(self, text: str) -> str:
        """Return an id, name or path without secrets; it may look like a fax number."""
        return self._clean_identity(text)

    def evidence(self, chunks: Iterable[bytes], *, is_text: bool) -> Iterator[bytes]:
        """Yield bytes for an operator's evidence: without secrets, but with patients' data."""
        if is_text:  # texts are short
            whole = b"".join(secret_bytes.without([b"".join(chunks)], self._spellings))
            return iter([_without_patterns(whole.decode("latin-1")).encode("latin-1")])
        return secret_bytes.without(chunks, self._spellings)

    def value(self, value: object) -> Any:
        """Return `value` as JSON types with everything private replaced; never raise."""
        return _Walk(self).value(value)

    def _ends(self, text: str, clean: Callable[[str], str]) -> str:
        text = _SURROGATES.sub("\ufffd", text)
        if len(text) <= 2 * _END:
            return clean(text)
        # Drop the text next to the cut: a secret that is cut in two would not be recognised.
        head = clean(text[:_END])[:-_MARGIN]
        tail = clean(text[-_END:])[_MARGIN:]
        return f"{head} …[{len(text) - len(head) - len(tail)} characters cut]… {tail}"

    def _without_numbers(self, text: str) -> str:
        return _NUMBERS.sub(self._one_number, self._without_secrets(text))

    def _without_secrets(self, text: str) -> str:
        for spelling in self._spellings:
            if spelling in text:
                text = text.replace(spelling, SECRET)
        return _IN_TEXT.sub(_one_pattern, text)

    def _one_number(self, found: re.Match[str]) -> str:
        text = found[0]
        if found["keep"] is not None or sum(c.isdecimal() for c in text) < 7:
            return text
        return self.number(urllib.parse.unquote(text))


class _Walk:
    """The redaction of one event, which examines only a limited amount of text.

    A log call with megabytes must not stop the event loop, and lines are limited anyway.
    """

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._left = _MOST_TEXT

    def value(self, value: object, key: str = "", depth: int = 0) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int | float):
            return self._numeric(value, key)
        if isinstance(value, str | bytes | bytearray) or not isinstance(value, Collection):
            return self._string(_as_text(value), key)
        if depth >= _DEEPEST:
            return "[nested too deeply]"
        if isinstance(value, Mapping):
            return self._mapping(value, depth + 1)
        return [self.value(item, key, depth + 1) for item in list(value)[:_MOST_ITEMS]]

    def _mapping(self, value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for name, item in list(value.items())[:_MOST_ITEMS]:
            key = name if isinstance(name, str) else str(name)
            if not _kind(key).is_name:
                shown = self._redactor.text(key)
                # ECS nests names with dots, but only this package's own names are meant that way.
                # Most values are text, and the type checks of `value` would cost more than `_string`.
                clean = (
                    self._string(item, key) if type(item) is str else self.value(item, key, depth)
                )
                result[shown if depth == 1 else shown.replace(".", "_")] = clean
        return result

    def _string(self, text: str, key: str) -> str:
        kind = _kind(key)
        if kind.is_secret:
            return SECRET
        if kind.is_number:
            return text if _MASKED.fullmatch(text) else self._redactor.number(text)
        self._left -= min(len(text), 2 * _END)
        if self._left < 0:
            return f"[{len(text)} characters cut]"
        redact = self._redactor.identity if key in _IDENTITY_KEYS else self._redactor.text
        return redact(text)

    def _numeric(self, value: float, key: str) -> Any:
        kind = _kind(key)
        if isinstance(value, enum.Enum) or kind.is_secret or kind.is_number:
            return self._string(
                _as_text(value) if isinstance(value, enum.Enum) else str(value), key
            )
        if not math.isfinite(value):
            return str(value)  # JSON has no NaN and Infinity
        if key in _MEASURE_KEYS or key.endswith(_MEASURE_ENDS) or abs(value) < 1_000_000:
            return value
        return self._redactor.number(str(int(value))) if value == int(value) else value


class _Kind(NamedTuple):
    """What a key says about its value."""

    is_name: bool
    is_secret: bool
    is_number: bool


@_remembering
def _kind(key: str) -> _Kind:
    return _Kind(
        is_name=_NAME_KEYS.search(key) is not None,
        is_secret=_SECRET_KEYS.search(key) is not None,
        is_number=_NUMBER_KEYS.search(key) is not None,
    )


def cut(text: str, limit: int) -> str:
    """Return about `limit` characters at most: the start and, of a long text, the end."""
    if len(text) <= limit:
        return text
    mark = f" …[{len(text) - limit} characters cut]… "
    head = limit // 2
    return text[:head] + mark + text[len(text) - (limit - head) :]


def _one_pattern(found: re.Match[str]) -> str:
    if found["named"] is not None:
        return f"{found['named']}[removed]"
    if found["userinfo"] is not None:
        return f"://{SECRET}@"
    return (found["scheme"] or found["assigned"] or "") + SECRET


def _without_patterns(text: str) -> str:
    """Remove text that looks like a secret, and keep the names before it."""
    return _IN_TEXT.sub(lambda one: one[0] if one["named"] is not None else _one_pattern(one), text)


def _spell(secret: str) -> set[str]:
    """Return the forms that a secret can have in a text."""
    raw = secret.encode("utf-8", "surrogatepass")
    spellings = {secret, secret.strip(), json.dumps(secret)[1:-1], repr(secret)[1:-1]}
    spellings |= {urllib.parse.quote(raw, safe=""), urllib.parse.quote_plus(raw)}
    for encoded in _base64_cores(raw):
        spellings |= {encoded, encoded.replace("+", "-").replace("/", "_")}
    spellings |= {re.sub("%..", lambda one: one[0].lower(), spelling) for spelling in spellings}
    spellings |= {spelling.replace("/", "\\/") for spelling in spellings}  # as in some JSON
    spellings.add(html.escape(secret))
    return {spelling for spelling in spellings if len(spelling) >= 4}


def _base64_cores(raw: bytes) -> list[str]:
    """Return the base64 characters that depend only on `raw`, wherever it is in the encoded text.

    Basic authentication encodes `app_id:api_key`, so the key can start at any of three alignments.
    Leave out characters that also depend on neighbouring bytes.
    """
    cores = []
    for before in range(3):
        whole = base64.b64encode(bytes(before) + raw).decode("ascii")
        first = (before * 8 + 5) // 6
        last = (before + len(raw)) * 8 // 6
        if last - first >= 8:
            cores.append(whole[first:last])
    return cores


def _as_text(value: object) -> str:  # noqa: PLR0911 - one per type
    match value:
        case enum.Enum():
            return str(value.value)
        case str() | PurePath():
            return str(value)
        case datetime():
            utc = value.astimezone(UTC) if value.tzinfo else value
            return utc.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        case timedelta():
            return f"{value.total_seconds():g} s"
        case bytes() | bytearray():
            return f"[{len(value)} bytes]"
        case BaseException():
            return f"{type(value).__name__}: {message_of(value)}"
        case _:
            # An object's repr shows its fields, and some of them may be private.
            return f"<{type(value).__name__}>"


def message_of(error: BaseException) -> str:
    """Return an exception's text; empty if its `__str__` fails."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - `__str__` may be any code
        return ""
