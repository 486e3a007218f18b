"""Every open point of the API as a switch; nobody has published which way eFax does it."""

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
    """One switch: what it decides, and the values worth testing, the default first.

    A number may have any other value `within` a range, too.
    """
    metadata = {"help": help_text, "values": values, "within": within}
    return field(default=values[0], metadata=metadata)


@dataclass(frozen=True)
class Switches:
    """How this eFax behaves where its behaviour is not published.

    Switches of text and of yes or no take only the values given; numbers take any in range.
    ValueError says what is wrong in one sentence.
    """

    lower_bound: str = _switch(
        "is a fax completed exactly at min_completed_timestamp listed", "inclusive", "exclusive"
    )
    upper_bound: str = _switch(
        "is a fax completed exactly at max_completed_timestamp listed", "inclusive", "exclusive"
    )
    page_cap: int = _switch(
        "most faxes on a page, whatever is asked for, 1 to 100", 100, 25, 3, within=_PAGE
    )
    default_page: int = _switch(
        "faxes on a page when no limit is asked for, 1 to 100", 100, 10, within=_PAGE
    )
    limit_above_100: str = _switch(
        "a pagination-limit above 100 is cut to it, or refused with 400", "cap", "refuse"
    )
    paging_headers: str = _switch(
        "ignored: a proxy drops them, so each page is the first one", "used", "ignored"
    )
    longest_window_s: float | None = _switch(
        "a longer window is refused with 400 (none: any length)",
        *(None, 86_400.0, 10_800.0),
        within=_LENGTH,
    )
    oldest_window_s: float | None = _switch(
        "a window that begins longer ago is refused with 400 (none: never)",
        *(None, 172_800.0),
        within=_LENGTH,
    )
    future_window: str = _switch(
        "is a window that ends in the server's future refused with 400", "answered", "refused"
    )
    list_fax_id: str = _switch(
        "case of the letters of a fax id that is a UUID, in lists; mixed: at each call another",
        *_LETTERS,
    )
    image_fax_id: str = _switch("the same, in image answers", *_LETTERS)
    default_window_s: float | None = _switch(
        "how far a list without a minimum reaches back (none: to the first fax)",
        *(None, 86_400.0),
        within=_LENGTH,
    )
    order: str = _switch(
        "order of a list; unstable: newest first, those of one second in another order each time",
        *("newest", "oldest", "unstable"),
    )
    empty_list: str = _switch(
        "an empty list has `faxes: []`, no `faxes`, or is `{}`", "array", "missing", "bare"
    )
    timestamp: str = _switch(
        "how completed_timestamp is spelled; none: without an offset (UTC is meant)",
        *("+0000", "Z", "+00:00", "none", "no-fraction", "-0800", "nanoseconds"),
    )
    numbers: str = _switch("size, duration and pages come as numbers or as text", "numbers", "text")
    fax_status: str = _switch("is fax_status in the list", "present", "missing")
    list_fields: str = _switch(
        "which known fields a listed fax has", "all", "no-timestamp", "only-id"
    )
    metadata_fields: str = _switch(
        "do the metadata of a fax have what its list leaves out", "all", "as-listed"
    )
    unknown_fields: bool = _switch(
        "answers have fields that nobody has described, nested ones too", *(False, True)
    )
    late_visible_s: float = _switch(
        "a fax is listed only so many seconds after its completed_timestamp",
        *(0.0, 120.0),
        within=_DELAY,
    )
    image_not_yet_s: float = _switch(
        "an image answers 404 for so many seconds after the fax became visible",
        *(0.0, 60.0),
        within=_DELAY,
    )
    pdf_bytes: str = _switch("is a PDF the same bytes at each download", "same", "differ")
    pdf_answer: str = _switch(
        "tiff: asked for PDF, the bytes are a TIFF nevertheless", "pdf", "tiff"
    )
    image_text: str = _switch(
        "how the base64 text is spelled: lines of 76 columns, blanks, \\/ or \\u002f in it",
        *("plain", "wrapped", "spaced", "escaped-slashes", "unicode-escapes"),
    )
    image_keys: str = _switch(
        "where `image` stands in the answer, or whether it is alone",
        *("image-last", "image-first", "image-middle", "only-image"),
    )
    content_type: str = _switch("Content-Type of answers", "json", "json-charset", "text", "none")
    framing: str = _switch(
        "the end of an answer: Content-Length, chunks, or closing", "length", "chunked", "close"
    )
    compression: str = _switch(
        "gzip: answers are packed for a client that accepts it", "none", "gzip"
    )
    date_header: str = _switch("do answers have a Date header", "present", "missing")
    date_skew_s: float = _switch(
        "how far the Date header alone is ahead of the server's time",
        *(0.0, 30.0, -30.0),
        within=_EITHER_WAY,
    )
    retry_after: str = _switch("how a 429 says when to come again", "seconds", "date", "none")
    error_body: str = _switch(
        "an error's body: as described, a bare object, parts missing, or no body",
        *("envelope", "bare", "partial", "empty"),
    )
    sign_in_refusal: str = _switch("status for a wrong App ID or API key", "401", "400", "403")
    scheme: str = _switch(
        "the word before the token: in any letters (RFC 9110), or `Bearer` and nothing else",
        *("any", "Bearer"),
    )
    wrong_user: str = _switch("status for a wrong User ID", "403", "404")
    expires_in_s: int = _switch("how long a token is good", 86_399, 120, within=_LENGTH)
    sent_filter_by: str = _switch(
        "the time that the window of a sent list goes by", "completed", "created"
    )
    sent_status_demanded: str = _switch(
        "without transmission_status a sent list is refused with 400, or of COMPLETE",
        *("no", "yes", "defaults-to-complete"),
    )
    sent_status_words: str = _switch(
        "how the states of a sent fax are spelled, the others accordingly",
        *("COMPLETE", "COMPLETED"),
    )
    sent_under_way_listed: str = _switch("are sent faxes under way in the list", "yes", "no")
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
    details_path: str = _switch("is it transmission-details, or -detail", "s", "no-s")
    send_number: str = _switch(
        "how the answer to a send call spells the number", "as-is", "without-1"
    )
    send_answer: str = _switch(
        "the answer to a send call: an array, or a lone object", "array", "object"
    )
    send_transaction_id_in_list: str = _switch(
        "is our transaction id in sent lists; ignored: no, and no filter",
        *("yes", "no", "ignored"),
    )
    send_takes_s: float = _switch(
        "seconds from a send call to the end of the transmission", 2.0, 60.0, within=_DELAY
    )
    send_ends: str = _switch("how that ends", "COMPLETE", "ERROR", "CANCELED")
    send_csid: str = _switch(
        "the tsid at the other end: our custom_CSID, or the carrier's own text", "kept", "carrier"
    )
    delete_status: str = _switch("status of an answer to a deletion", "204", "200")
    notifications: str = _switch(
        "GET /notifications: all at once, in pages, refusing filters, empty, or not there",
        *("paging-free", "paged", "no-filter", "empty", "404"),
    )
    notifications_of: str = _switch(
        "whose notices they are: the user's, or all of its App ID", "user", "account"
    )
    hook_fields: str = _switch(
        "how a notice to the web-hook is spelled", "snake", "camel", "nested", "form"
    )
    hook_names: str = _switch("what it names a fax by", "all", "user", "fax", "number", "nothing")
    hook_repeats: int = _switch("how often each notice is posted again", 0, 2, within=_REPEATS)
    hook_delay_s: float = _switch("seconds from the fax to its notice", 0.0, 60.0, within=_DELAY)
    hook_lost: int = _switch("3: every third notice is lost (0: none is)", *(0, 3), within=_REPEATS)
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
        """Give each switch with the values worth testing, the default first."""
        return {one.name: one.metadata["values"] for one in fields(cls)}

    @classmethod
    def parse(cls, settings: Iterable[str]) -> "Switches":
        """Read settings spelled NAME=VALUE, as on the command line; ValueError is a sentence."""
        table, read = cls.table(), {}
        for text in settings:
            name, equals, spelled = text.partition("=")
            if name not in table:
                raise ValueError(f"there is no switch {name!r}; --help lists them")
            if not equals:
                raise ValueError(f"switch {name}: give it as {name}=VALUE")
            read[name] = _value(spelled, table[name])
        return cls(**read)

    @classmethod
    def describe(cls) -> str:
        """List all switches with their values, a help text for a terminal."""
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
        raise ValueError(f"switch {name}: {value!r} is none of {allowed}")
    low, high = within
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"switch {name}: {value!r} is no number from {low:g} to {high:g}")


def _value(spelled: str, values: tuple[Any, ...]) -> Any:
    """Turn text into the switch's type; what has none of its values is left for the check."""
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
