"""Reading what a client sent, as strictly as efax-api.md words it; anything else is a 400."""

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote_to_bytes


class MalformedError(Exception):
    """The request is not what the API takes; `element` is the field to blame."""

    def __init__(self, element: str, message: str) -> None:
        super().__init__(message)
        self.element = element


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


LIST_PARAMETERS = frozenset(
    {
        "min_completed_timestamp",
        "max_completed_timestamp",
        "image_downloaded",
        "search_text",
        "originating_fax_number",
        "destination_fax_number",
        "min_pages",
        "max_pages",
    }
)

# Only unreserved characters, percent-encoded ones and, where it is not refused, the colon. A bare
# plus is let through here because servers read it as a blank; the timestamp then is malformed.
_QUERY_TEXT = re.compile(r"(?:[A-Za-z0-9\-._~:+]|%[0-9A-Fa-f]{2})*")
_TIMESTAMP = re.compile(
    r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d{3})?([+-])([01]\d|2[0-3])([0-5]\d)", re.ASCII
)


def split_target(target: str) -> tuple[list[str], str]:
    """Give the decoded path segments and the raw query of a request target."""
    path, _, query = target.partition("?")
    return [_decoded(segment) for segment in path.split("/")[1:]], query


def parse_query(query: str, *, allowed: frozenset[str], refuse_bare_colon: bool) -> dict[str, str]:
    """Decode a query string; refuses unknown or repeated names and characters left bare."""
    values: dict[str, str] = {}
    for part in query.split("&") if query else ():
        if not all(_QUERY_TEXT.fullmatch(side) for side in part.split("=", 1)) or "=" not in part:
            raise MalformedError(
                "query", "a reserved character in the query is not percent-encoded"
            )
        if refuse_bare_colon and ":" in part:
            raise MalformedError("query", "a colon in the query is not percent-encoded")
        name, value = (_decoded(side.replace("+", " ")) for side in part.split("=", 1))
        if name not in allowed or name in values:
            raise MalformedError(name, "unknown or repeated parameter")
        values[name] = value
    return values


def parse_timestamp(name: str, text: str) -> datetime:
    """Read `yyyy-mm-ddThh:mm:ss[.fff]` and an offset of sign and four digits."""
    match = _TIMESTAMP.fullmatch(text)
    if not match:
        raise MalformedError(name, "a timestamp is yyyy-mm-ddThh:mm:ss[.fff]+hhmm")
    stem, fraction, sign, hours, minutes = match.groups()
    try:
        local = datetime.fromisoformat(stem + (fraction or "")).replace(tzinfo=UTC)
        offset = timedelta(hours=int(hours), minutes=int(minutes))
        return local - offset if sign == "+" else local + offset
    except (ValueError, OverflowError) as error:
        raise MalformedError(name, "there is no such date") from error


def parse_window(values: Mapping[str, str]) -> Window:
    bounds = [
        parse_timestamp(name, values[name]) if name in values else None
        for name in ("min_completed_timestamp", "max_completed_timestamp")
    ]
    start, end = bounds
    if start is not None and end is not None and start > end:
        raise MalformedError("min_completed_timestamp", "the minimum is after the maximum")
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
    scheme, _, text = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(text, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return (user, password) if colon else None


def parse_bearer(header: str, *, strict: bool = False) -> str | None:
    """Give the token; `strict` knows only `Bearer`, spelled so."""
    scheme, _, token = header.partition(" ")
    known = scheme == "Bearer" if strict else scheme.lower() == "bearer"
    return token if known and token else None


def _decoded(text: str) -> str:
    return unquote_to_bytes(text).decode("utf-8", "surrogateescape")


def _count(values: Mapping[str, str], name: str) -> int | None:
    text = values.get(name)
    if text is None:
        return None
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise MalformedError(name, "a count of digits only")
    return int(text)
