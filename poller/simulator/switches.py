"""Switches for the points that eFax does not document."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import Any

_Range = tuple[float, float]
_PAGE: _Range = (1, 100)
_LENGTH: _Range = (1, 1e9)
_DELAY: _Range = (0, 1e9)
_REPEATS: _Range = (0, 100)
_EITHER_WAY: _Range = (-1e9, 1e9)
_LETTERS = ("same", "lower", "upper", "mixed")


def _switch(help_text: str, *values: Any, within: _Range | None = None) -> Any:
    """Make one switch: what it decides, and the values worth testing, the default first.

    A number may also have any other value `within` a range.
    """
    metadata = {"help": help_text, "values": values, "within": within}
    return field(default=values[0], metadata=metadata)


@dataclass(frozen=True)
class Switches:
    """How this eFax behaves where eFax's behaviour is undocumented.

    Text and boolean switches take only the values given; numbers take any value in range. Raises
    ValueError with one sentence.
    """

    lower_bound: str = _switch(
        "is a fax completed exactly at min_completed_timestamp listed", "inclusive", "exclusive"
    )
    upper_bound: str = _switch(
        "is a fax completed exactly at max_completed_timestamp listed", "inclusive", "exclusive"
    )
    page_cap: int = _switch(
        "most faxes on a page, whatever the request asks for, 1 to 100", 100, 25, 3, within=_PAGE
    )
    default_page: int = _switch(
        "faxes on a page if the request has no limit, 1 to 100", 100, 10, within=_PAGE
    )
    limit_above_100: str = _switch(
        "a pagination-limit above 100 is cut to 100, or refused with 400", "cap", "refuse"
    )
    paging_headers: str = _switch(
        "ignored: a proxy drops these headers, so each page is the first one", "used", "ignored"
    )
    longest_window_s: float | None = _switch(
        "a longer window is refused with 400 (none: any length)",
        *(None, 86_400.0, 10_800.0),
        within=_LENGTH,
    )
    oldest_window_s: float | None = _switch(
        "a window that starts longer ago is refused with 400 (none: never)",
        *(None, 172_800.0),
        within=_LENGTH,
    )
    future_window: str = _switch(
        "is a window that ends in the server's future refused with 400", "answered", "refused"
    )
    list_fax_id: str = _switch(
        "case of a UUID's letters in fax ids, in lists; mixed: different in each call",
        *_LETTERS,
    )
    image_fax_id: str = _switch("the same, in image answers", *_LETTERS)
    default_window_s: float | None = _switch(
        "how far back a list without a minimum goes (none: to the first fax)",
        *(None, 86_400.0),
        within=_LENGTH,
    )
    order: str = _switch(
        "order of a list; unstable: newest first, and within a second the order changes each time",
        *("newest", "oldest", "unstable"),
    )
    empty_list: str = _switch(
        "an empty list has `faxes: []`, no `faxes`, or is `{}`", "array", "missing", "bare"
    )
    timestamp: str = _switch(
        "how completed_timestamp is spelled; none: without an offset (UTC is meant)",
        *("+0000", "Z", "+00:00", "none", "no-fraction", "-0800", "nanoseconds"),
    )
    numbers: str = _switch("size, duration and pages are numbers or text", "numbers", "text")
    fax_status: str = _switch("is fax_status in the list", "present", "missing")
    list_fields: str = _switch(
        "which known fields a listed fax has", "all", "no-timestamp", "only-id"
    )
    metadata_fields: str = _switch(
        "does a fax's metadata have the fields that the list lacks", "all", "as-listed"
    )
    unknown_fields: bool = _switch(
        "answers have undocumented fields, also nested ones", *(False, True)
    )
    late_visible_s: float = _switch(
        "a fax is listed only this many seconds after its completed_timestamp",
        *(0.0, 120.0),
        within=_DELAY,
    )
    image_not_yet_s: float = _switch(
        "an image call gets 404 for this many seconds after the fax became visible",
        *(0.0, 60.0),
        within=_DELAY,
    )
    pdf_bytes: str = _switch("does each download of a PDF give the same bytes", "same", "differ")
    pdf_answer: str = _switch("tiff: a request for PDF gets a TIFF", "pdf", "tiff")
    image_text: str = _switch(
        "how the base64 text is spelled: lines of 76 columns, blanks, \\/ or \\u002f in it",
        *("plain", "wrapped", "spaced", "escaped-slashes", "unicode-escapes"),
    )
    image_keys: str = _switch(
        "position of `image` in the answer, or whether it is alone",
        *("image-last", "image-first", "image-middle", "only-image"),
    )
    content_type: str = _switch("Content-Type of answers", "json", "json-charset", "text", "none")
    framing: str = _switch(
        "how an answer ends: Content-Length, chunks, or closing", "length", "chunked", "close"
    )
    compression: str = _switch(
        "gzip: answers are compressed for a client that accepts it", "none", "gzip"
    )
    date_header: str = _switch("do answers have a Date header", "present", "missing")
    date_skew_s: float = _switch(
        "how far the Date header alone is ahead of the server's time",
        *(0.0, 30.0, -30.0),
        within=_EITHER_WAY,
    )
    retry_after: str = _switch("how a 429 says when to try again", "seconds", "date", "none")
    error_body: str = _switch(
        "an error's body: as described, a bare object, parts missing, or no body",
        *("envelope", "bare", "partial", "empty"),
    )
    sign_in_refusal: str = _switch("status for a wrong App ID or API key", "401", "400", "403")
    scheme: str = _switch(
        "the word before the token: in any case (RFC 9110), or only `Bearer`",
        *("any", "Bearer"),
    )
    wrong_user: str = _switch("status for a wrong User ID", "403", "404")
    expires_in_s: int = _switch(
        "how long a token is valid, in seconds", 86_399, 120, within=_LENGTH
    )
    sent_filter_by: str = _switch(
        "which time of a sent fax the window of a list applies to", "completed", "created"
    )
    sent_status_demanded: str = _switch(
        "without transmission_status a sent list gets 400, or shows COMPLETE",
        *("no", "yes", "defaults-to-complete"),
    )
    sent_status_words: str = _switch(
        "spelling of a sent fax's states, shown for COMPLETE",
        *("COMPLETE", "COMPLETED"),
    )
    sent_under_way_listed: str = _switch("does the list show sent faxes under way", "yes", "no")
    sent_completed_while_under_way: str = _switch(
        "the completed_timestamp of a sent fax under way", "missing", "created"
    )
    transmission_data: str = _switch(
        "transmission_data of a sent fax; only the list may lack it",
        *("object", "array", "missing-in-list"),
    )
    client_tracking_data: str = _switch(
        "client_tracking_data of a sent fax", "object", "array", "missing"
    )
    details_path: str = _switch("is the path transmission-details or -detail", "s", "no-s")
    send_number: str = _switch(
        "spelling of the number in the answer to a send call", "as-is", "without-1"
    )
    send_answer: str = _switch(
        "the answer to a send call: an array, or one object", "array", "object"
    )
    send_transaction_id_in_list: str = _switch(
        "is our transaction id in sent lists; ignored: no, nor a filter",
        *("yes", "no", "ignored"),
    )
    send_takes_s: float = _switch(
        "seconds from a send call to the end of the transmission", 2.0, 60.0, within=_DELAY
    )
    send_ends: str = _switch("how the transmission ends", "COMPLETE", "ERROR", "CANCELED")
    send_csid: str = _switch(
        "the tsid that the recipient sees: our custom_CSID, or the carrier's text",
        "kept",
        "carrier",
    )
    delete_status: str = _switch("status of the answer to a deletion", "204", "200")
    notifications: str = _switch(
        "GET /notifications: all at once, in pages, refusing filters, empty, or missing",
        *("paging-free", "paged", "no-filter", "empty", "404"),
    )
    notifications_of: str = _switch(
        "which notices it shows: the user's, or all of the App ID", "user", "account"
    )
    hook_fields: str = _switch(
        "form of a notice to the web-hook", "snake", "camel", "nested", "form"
    )
    hook_names: str = _switch(
        "how a notice identifies the fax", "all", "user", "fax", "number", "nothing"
    )
    hook_repeats: int = _switch("how often each notice is repeated", 0, 2, within=_REPEATS)
    hook_delay_s: float = _switch("seconds from the fax to its notice", 0.0, 60.0, within=_DELAY)
    hook_lost: int = _switch("3: every third notice is lost (0: none)", *(0, 3), within=_REPEATS)
    hook_signature: str = _switch(
        "the signature of a notice", "present", "missing", "wrong", "prefixed"
    )
    refuse_bare_colon: bool = _switch(
        "a colon in the query that is not percent-encoded is refused with 400", *(True, False)
    )

    def __post_init__(self) -> None:
        for one in fields(self):
            _check(one.name, getattr(self, one.name), **one.metadata)

    @classmethod
    def table(cls) -> dict[str, tuple[Any, ...]]:
        """Return each switch with the values worth testing, the default first."""
        return {one.name: one.metadata["values"] for one in fields(cls)}

    @classmethod
    def parse(cls, settings: Iterable[str]) -> "Switches":
        """Read settings of the form NAME=VALUE. Raises ValueError with one sentence."""
        table, read = cls.table(), {}
        for text in settings:
            name, equals, spelled = text.partition("=")
            if name not in table:
                raise ValueError(f"there is no switch {name!r}; --help lists them")
            if not equals:
                raise ValueError(f"switch {name}: write {name}=VALUE")
            read[name] = _value(spelled, table[name])
        return cls(**read)

    @classmethod
    def describe(cls) -> str:
        """Return a help text with all switches and their values."""
        lines = []
        for one in fields(cls):
            any_number = "any number, e.g. " if one.metadata["within"] else ""
            values = " | ".join(map(_spell, one.metadata["values"]))
            lines += [f"  {one.name}: {one.metadata['help']}", f"      {any_number}{values}"]
        return "\n".join(lines)


def _check(
    name: str, value: Any, *, values: tuple[Any, ...], within: _Range | None, **_: Any
) -> None:
    if any(value is one or (value == one and type(value) is type(one)) for one in values):
        return
    if within is None:
        allowed = ", ".join(map(_spell, values))
        raise ValueError(f"switch {name}: {value!r} is not one of {allowed}")
    low, high = within
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"switch {name}: {value!r} is not a number from {low:g} to {high:g}")


def _value(spelled: str, values: tuple[Any, ...]) -> Any:
    """Convert text to the switch's type; leave an invalid value to the check."""
    for value in values:
        if spelled in (_spell(value), str(value).lower()):
            return value
    kind = type(values[-1])
    if kind in (int, float):
        with suppress(ValueError):
            return kind(spelled)
    return spelled


def _spell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
