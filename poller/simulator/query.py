"""Reading what a client sent, as strictly as efax-api.md words it; anything else is a 400."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from urllib.parse import parse_qsl, unquote_to_bytes

from aiohttp import BasicAuth


class RefusedError(Exception):
    """The call is answered with an error status; `element` is the field to blame, if one is."""

    def __init__(self, status: int, message: str, element: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.element = element


class MalformedError(RefusedError):
    """The request is not what the API takes."""

    def __init__(self, element: str, message: str) -> None:
        super().__init__(400, message, element)


@dataclass(frozen=True)
class Arrival:
    """One request off the wire; header names are lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = b""

    def header(self, name: str) -> str:
        return self.headers.get(name, "")

    @cached_property
    def segments(self) -> list[str]:
        """The decoded segments of the path."""
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
    """The bounds of a list as they were asked for."""

    start: datetime | None = None
    end: datetime | None = None


@dataclass(frozen=True)
class Paging:
    """`limit` is None when none was asked for."""

    offset: int = 0
    limit: int | None = None


@dataclass(frozen=True)
class Filters:
    """What a list is narrowed down to beside its window; None is no wish."""

    image_downloaded: bool | None = None
    search_text: str | None = None
    originating: str | None = None
    destination: str | None = None
    min_pages: int | None = None
    max_pages: int | None = None


_BOUNDS = ("min_completed_timestamp", "max_completed_timestamp")
LIST_PARAMETERS = frozenset(_BOUNDS) | {
    *("image_downloaded", "search_text", "min_pages", "max_pages"),
    *("originating_fax_number", "destination_fax_number"),
}

# Only unreserved characters, percent-encoded ones and, where it is not refused, the colon. A bare
# plus is let through here because servers read it as a blank; the timestamp then is malformed.
_TEXT = r"(?:[A-Za-z0-9\-._~:+]|%[0-9A-Fa-f]{2})*"
_QUERY = re.compile(rf"(?:{_TEXT}={_TEXT}(?:&{_TEXT}={_TEXT})*)?")
_TIMESTAMP = re.compile(
    r"\d{4}-\d\d-\d\dT(?!24)\d\d:\d\d:\d\d(?:\.\d{3})?[+-]\d\d[0-5]\d", re.ASCII
)


def parse_query(query: str, *, allowed: frozenset[str], refuse_bare_colon: bool) -> dict[str, str]:
    """Decode a query string; refuses unknown or repeated names and characters left bare."""
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
        raise MalformedError(name, "a timestamp is yyyy-mm-ddThh:mm:ss[.fff]+hhmm")
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


def parse_filters(values: Mapping[str, str]) -> Filters:
    downloaded = values.get("image_downloaded")
    if downloaded not in (None, "true", "false"):
        raise MalformedError("image_downloaded", "true or false")
    return Filters(
        image_downloaded=None if downloaded is None else downloaded == "true",
        search_text=values.get("search_text"),
        originating=values.get("originating_fax_number"),
        destination=values.get("destination_fax_number"),
        min_pages=_count(values, "min_pages"),
        max_pages=_count(values, "max_pages"),
    )


def parse_paging(headers: Mapping[str, str], *, refuse_above_100: bool) -> Paging:
    offset = _count(headers, "pagination-offset")
    limit = _count(headers, "pagination-limit")
    if limit == 0 or (limit is not None and limit > 100 and refuse_above_100):
        raise MalformedError("pagination-limit", "1 to 100")
    return Paging(offset or 0, None if limit is None else min(limit, 100))


def parse_basic(header: str) -> tuple[str, str] | None:
    """Give App ID and API key of a Basic authorization, None when it is none."""
    try:
        read = BasicAuth.decode(header, "utf-8")
    except ValueError:
        return None
    return read.login, read.password


def parse_bearer(header: str, *, strict: bool = False) -> str | None:
    """Give the token; `strict` knows only `Bearer`, spelled so."""
    scheme, _, token = header.partition(" ")
    known = scheme == "Bearer" if strict else scheme.lower() == "bearer"
    return token if known and token else None


def _count(values: Mapping[str, str], name: str) -> int | None:
    text = values.get(name)
    if text is None:
        return None
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise MalformedError(name, "a count of digits only")
    return int(text)
