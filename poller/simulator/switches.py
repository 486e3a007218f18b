"""Every open point of the API as a switch; nobody has published which way eFax does it."""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any, Literal


def _switch(default: Any, help_text: str, *others: Any) -> Any:
    """One switch: its default, what it decides, and the other values worth testing."""
    return field(default=default, metadata={"values": (default, *others), "help": help_text})


def _flag(help_text: str, *, default: bool) -> Any:
    return _switch(default, help_text, not default)


@dataclass(frozen=True)
class Switches:
    """How this eFax behaves where its behaviour is not published.

    `table()` gives for each switch the values worth testing. Switches of text and of yes or no take
    only these; numbers take any in range. ValueError says what is wrong in one sentence.
    """

    lower_bound: Literal["inclusive", "exclusive"] = _switch(
        "inclusive", "is a fax completed exactly at min_completed_timestamp listed", "exclusive"
    )
    upper_bound: Literal["inclusive", "exclusive"] = _switch(
        "inclusive", "is a fax completed exactly at max_completed_timestamp listed", "exclusive"
    )
    page_cap: int = _switch(100, "most faxes on a page, whatever is asked for, 1 to 100", 25, 3)
    default_page: int = _switch(100, "faxes on a page when no limit is asked for, 1 to 100", 10)
    limit_above_100: Literal["cap", "refuse"] = _switch(
        "cap", "a pagination-limit above 100 is cut to it, or refused with 400", "refuse"
    )
    paging_headers: Literal["used", "ignored"] = _switch(
        "used", "ignored: a proxy drops them, so each page is the first one", "ignored"
    )
    longest_window_s: float | None = _switch(
        None, "a longer window is refused with 400 (none: any length)", 86_400.0, 10_800.0
    )
    oldest_window_s: float | None = _switch(
        None, "a window that begins longer ago is refused with 400 (none: never)", 172_800.0
    )
    future_window: Literal["answered", "refused"] = _switch(
        "answered", "is a window that ends in the server's future refused with 400", "refused"
    )
    list_fax_id: Literal["same", "lower", "upper", "mixed"] = _switch(
        "same",
        "case of the letters of a fax id that is a UUID, in lists; mixed: at each call another",
        "lower",
        "upper",
        "mixed",
    )
    image_fax_id: Literal["same", "lower", "upper", "mixed"] = _switch(
        "same", "the same, in image answers", "lower", "upper", "mixed"
    )
    default_window_s: float | None = _switch(
        None, "how far a list without a minimum reaches back (none: to the first fax)", 86_400.0
    )
    order: Literal["newest", "oldest", "unstable"] = _switch(
        "newest",
        "order of a list; unstable: newest first, those of one second in another order each time",
        "oldest",
        "unstable",
    )
    empty_list: Literal["array", "missing", "bare"] = _switch(
        "array", "an empty list has `faxes: []`, no `faxes`, or is `{}`", "missing", "bare"
    )
    timestamp: Literal["+0000", "Z", "+00:00", "none", "no-fraction", "-0800", "nanoseconds"] = (
        _switch(
            "+0000",
            "how completed_timestamp is spelled; none: without an offset (UTC is meant)",
            "Z",
            "+00:00",
            "none",
            "no-fraction",
            "-0800",
            "nanoseconds",
        )
    )
    numbers: Literal["numbers", "text"] = _switch(
        "numbers", "size, duration and pages come as numbers or as text", "text"
    )
    fax_status: Literal["present", "missing"] = _switch(
        "present", "is fax_status in the list", "missing"
    )
    list_fields: Literal["all", "no-timestamp", "only-id"] = _switch(
        "all", "which known fields a listed fax has", "no-timestamp", "only-id"
    )
    unknown_fields: bool = _flag(
        "answers have fields that nobody has described, nested ones too", default=False
    )
    late_visible_s: float = _switch(
        0.0, "a fax is listed only so many seconds after its completed_timestamp", 120.0
    )
    image_not_yet_s: float = _switch(
        0.0, "an image answers 404 for so many seconds after the fax became visible", 60.0
    )
    pdf_bytes: Literal["same", "differ"] = _switch(
        "same", "is a PDF the same bytes at each download", "differ"
    )
    pdf_answer: Literal["pdf", "tiff"] = _switch(
        "pdf", "tiff: asked for PDF, the bytes are a TIFF nevertheless", "tiff"
    )
    image_text: Literal["plain", "wrapped", "spaced", "escaped-slashes", "unicode-escapes"] = (
        _switch(
            "plain",
            "how the base64 text is spelled: lines of 76 columns, blanks, \\/ or \\u002f in it",
            "wrapped",
            "spaced",
            "escaped-slashes",
            "unicode-escapes",
        )
    )
    image_keys: Literal["image-last", "image-first", "image-middle", "only-image"] = _switch(
        "image-last",
        "where `image` stands in the answer, or whether it is alone",
        "image-first",
        "image-middle",
        "only-image",
    )
    content_type: Literal["json", "json-charset", "text", "none"] = _switch(
        "json", "Content-Type of answers", "json-charset", "text", "none"
    )
    framing: Literal["length", "chunked", "close"] = _switch(
        "length", "the end of an answer: Content-Length, chunks, or closing", "chunked", "close"
    )
    compression: Literal["none", "gzip"] = _switch(
        "none", "gzip: answers are packed for a client that accepts it", "gzip"
    )
    date_header: Literal["present", "missing"] = _switch(
        "present", "do answers have a Date header", "missing"
    )
    date_skew_s: float = _switch(
        0.0, "how far the Date header alone is ahead of the server's time", 30.0, -30.0
    )
    retry_after: Literal["seconds", "date", "none"] = _switch(
        "seconds", "how a 429 says when to come again", "date", "none"
    )
    error_body: Literal["envelope", "bare", "partial", "empty"] = _switch(
        "envelope",
        "an error's body: as described, a bare object, parts missing, or no body",
        "bare",
        "partial",
        "empty",
    )
    sign_in_refusal: Literal["401", "400", "403"] = _switch(
        "401", "status for a wrong App ID or API key", "400", "403"
    )
    scheme: Literal["any", "Bearer"] = _switch(
        "any",
        "the word before the token: in any letters (RFC 9110), or `Bearer` and nothing else",
        "Bearer",
    )
    wrong_user: Literal["403", "404"] = _switch("403", "status for a wrong User ID", "404")
    expires_in_s: int = _switch(86_399, "how long a token is good", 120)
    refuse_bare_colon: bool = _flag(
        "a colon in the query that is not percent-encoded is refused with 400", default=True
    )

    def __post_init__(self) -> None:
        for one in fields(self):
            problem = _problem(one.name, getattr(self, one.name), one.metadata["values"])
            if problem:
                raise ValueError(problem)

    @classmethod
    def table(cls) -> dict[str, tuple[Any, ...]]:
        """Give each switch with the values worth testing, the default first."""
        return {one.name: one.metadata["values"] for one in fields(cls)}

    @classmethod
    def parse(cls, settings: Iterable[str]) -> "Switches":
        """Read settings spelled NAME=VALUE, as on the command line; ValueError is a sentence."""
        return cls(**dict(_setting(text, cls.table()) for text in settings))

    @classmethod
    def describe(cls) -> str:
        """List all switches with their values, a help text for a terminal."""
        return "\n".join(_described(one) for one in fields(cls))


_RANGES: dict[str, tuple[float, float]] = {
    "page_cap": (1, 100),
    "default_page": (1, 100),
    "longest_window_s": (1, 1e9),
    "oldest_window_s": (1, 1e9),
    "default_window_s": (1, 1e9),
    "late_visible_s": (0, 1e9),
    "image_not_yet_s": (0, 1e9),
    "date_skew_s": (-1e9, 1e9),
    "expires_in_s": (1, 1e9),
}


def _problem(name: str, value: Any, values: tuple[Any, ...]) -> str | None:
    if name not in _RANGES:
        if value in values and type(value) is type(values[0]):
            return None
        return f"switch {name}: {value!r} is none of {_spelled(values)}"
    if value is None and None in values:
        return None
    low, high = _RANGES[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        return f"switch {name}: {value!r} is no number from {low:g} to {high:g}"
    return None


def _setting(text: str, table: dict[str, tuple[Any, ...]]) -> tuple[str, Any]:
    name, equals, spelled = text.partition("=")
    if name not in table:
        raise ValueError(f"there is no switch {name!r}; --help lists them")
    if not equals:
        raise ValueError(f"switch {name}: give it as {name}=VALUE")
    return name, _value(name, spelled, table[name])


def _value(name: str, spelled: str, values: tuple[Any, ...]) -> Any:
    """Turn text into the switch's type; what is no number is left for the range check to refuse."""
    for value in values:
        if spelled in (_spell(value), str(value).lower()):
            return value
    if name in _RANGES:
        try:
            return int(spelled) if isinstance(values[0], int) else float(spelled)
        except ValueError:
            pass
    return spelled


def _spell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _spelled(values: tuple[Any, ...]) -> str:
    return ", ".join(_spell(value) for value in values)


def _described(one: Any) -> str:
    values = [_spell(value) for value in one.metadata["values"]]
    shown = ("any number, e.g. " if one.name in _RANGES else "") + " | ".join(values)
    return f"  {one.name}: {one.metadata['help']}\n      {shown}"
