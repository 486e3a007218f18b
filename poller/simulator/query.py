"""Read requests as strictly as eFax documents them; anything else is a 400."""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from urllib.parse import parse_qsl, unquote_to_bytes

from aiohttp import BasicAuth

from .state import Fax

Filter = Callable[[Fax], bool]


class RefusedError(Exception):
    """The call gets an error status; `element` is the wrong field, if there is one."""

    def __init__(self, status: int, message: str, element: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.element = element


class MalformedError(RefusedError):
    def __init__(self, element: str, message: str) -> None:
        super().__init__(400, message, element)


@dataclass(frozen=True)
class Arrival:
    """One request as received; header names are in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = b""

    def header(self, name: str) -> str:
        return self.headers.get(name, "")

    @cached_property
    def segments(self) -> list[str]:
        """Return the decoded segments of the path."""
        path = self.target.partition("?")[0]
        return [
            unquote_to_bytes(segment).decode("utf-8", "surrogateescape")
            for segment in path.split("/")[1:]
        ]

    @property
    def query(self) -> str:
        return self.target.partition("?")[2]

    @property
    def media_type(self) -> str:
        return self.header("content-type").partition(";")[0].strip().lower()


@dataclass(frozen=True)
class Window:
    """The requested bounds of a list."""

    start: datetime | None = None
    end: datetime | None = None


@dataclass(frozen=True)
class Paging:
    """`limit` is None if the request has none."""

    offset: int = 0
    limit: int | None = None


_COUNT = r"[0-9]{1,9}"
# Filters of a list besides its window: the form of the value, and whether a fax passes.
_FILTERS: dict[str, tuple[str, Callable[[Fax, str], bool]]] = {
    "image_downloaded": ("true|false", lambda fax, text: fax.image_downloaded == (text == "true")),
    "search_text": (".*", lambda fax, text: text.lower() in fax.searched),
    "originating_fax_number": (".*", lambda fax, text: fax.originating == text),
    "destination_fax_number": (".*", lambda fax, text: fax.destination == text),
    "min_pages": (_COUNT, lambda fax, text: fax.pages >= int(text)),
    "max_pages": (_COUNT, lambda fax, text: fax.pages <= int(text)),
}
_BOUNDS = ("min_completed_timestamp", "max_completed_timestamp")
LIST_PARAMETERS = frozenset((*_BOUNDS, *_FILTERS))
SENT_PARAMETERS = LIST_PARAMETERS | {
    *("transmission_status", "fax_status", "error_code", "transaction_id")
}
NOTICE_PARAMETERS = frozenset((*_BOUNDS, "sent_status", "fax_direction"))

# Only unreserved characters, percent-encoded ones and, unless refused, the colon. A bare plus
# passes here because servers read it as a blank; it makes the timestamp malformed.
_TEXT = r"(?:[A-Za-z0-9\-._~:+]|%[0-9A-Fa-f]{2})*"
_QUERY = re.compile(rf"(?:{_TEXT}={_TEXT}(?:&{_TEXT}={_TEXT})*)?")
_TIMESTAMP = re.compile(
    r"\d{4}-\d\d-\d\dT(?!24)\d\d:\d\d:\d\d(?:\.\d{3})?[+-]\d\d[0-5]\d", re.ASCII
)


def parse_query(query: str, *, allowed: frozenset[str], refuse_bare_colon: bool) -> dict[str, str]:
    """Decode a query string; refuse unknown or repeated names and unencoded characters."""
    if not _QUERY.fullmatch(query):
        raise MalformedError("query", "a reserved character in the query is not percent-encoded")
    if refuse_bare_colon and ":" in query:
        raise MalformedError("query", "a colon in the query is not percent-encoded")
    pairs = parse_qsl(query, keep_blank_values=True, errors="surrogateescape")
    for name, count in Counter(name for name, _ in pairs).items():
        if name not in allowed or count > 1:
            raise MalformedError(name, "unknown or repeated parameter")
    return dict(pairs)


def parse_timestamp(name: str, text: str) -> datetime:
    """Read `yyyy-mm-ddThh:mm:ss[.fff]` and an offset of sign and four digits."""
    if not _TIMESTAMP.fullmatch(text):
        raise MalformedError(name, "a timestamp must be yyyy-mm-ddThh:mm:ss[.fff]+hhmm")
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise MalformedError(name, "there is no such date") from error


def parse_window(values: Mapping[str, str]) -> Window:
    start, end = (
        parse_timestamp(name, values[name]) if name in values else None for name in _BOUNDS
    )
    if start is not None and end is not None and start > end:
        raise MalformedError(_BOUNDS[0], "the minimum is after the maximum")
    return Window(start, end)


def parse_filters(values: Mapping[str, str]) -> Filter:
    """Return the filter for the faxes of a list, besides its window."""
    wanted = {name: text for name, text in values.items() if name in _FILTERS}
    for name, text in wanted.items():
        if not re.fullmatch(_FILTERS[name][0], text, re.DOTALL):
            raise MalformedError(name, f"{_FILTERS[name][0]} is needed")
    return lambda fax: all(_FILTERS[name][1](fax, text) for name, text in wanted.items())


def parse_paging(headers: Mapping[str, str], *, refuse_above_100: bool) -> Paging:
    offset = _count(headers, "pagination-offset")
    limit = _count(headers, "pagination-limit")
    if limit == 0 or (limit is not None and limit > 100 and refuse_above_100):
        raise MalformedError("pagination-limit", "1 to 100")
    return Paging(offset or 0, None if limit is None else min(limit, 100))


def parse_basic(header: str) -> tuple[str, str] | None:
    """Return App ID and API key of a Basic authorization; None if it is not one."""
    try:
        read = BasicAuth.decode(header, "utf-8")
    except ValueError:
        return None
    return read.login, read.password


def parse_bearer(header: str, *, strict: bool = False) -> str | None:
    """Return the token; `strict` accepts only the spelling `Bearer`."""
    scheme, _, token = header.partition(" ")
    known = scheme == "Bearer" if strict else scheme.lower() == "bearer"
    return token if known and token else None


def _count(headers: Mapping[str, str], name: str) -> int | None:
    text = headers.get(name)
    if text is not None and not re.fullmatch(_COUNT, text):
        raise MalformedError(name, "a count must consist of digits")
    return None if text is None else int(text)
