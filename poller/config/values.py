"""Parse single values: a node to a duration, size, name or time.

Each parser raises `WrongValueError`, which says what to write instead. It shows a value only
shortened, and never a fax number.
"""

import difflib
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar, get_args
from zoneinfo import ZoneInfo, available_timezones

from poller import clock, naming
from poller.config.position import Node, Value, quoted
from poller.cron import cron_problem

T = TypeVar("T")
Parser = Callable[[Node], T]


class WrongValueError(Exception):
    """`str()` says what to write instead; `node` is the wrong part of the value, if only a part is."""

    def __init__(self, message: str, node: Node | None = None) -> None:
        super().__init__(message)
        self.node = node


def kind_of(value: Value) -> str:
    """Return the kind of a value, without showing it."""
    names = {dict: "a map", list: "a list", bool: "true or false", str: "text", type(None): "empty"}
    return names.get(type(value), "a number")


def suggestion(word: str, known: Collection[str], cutoff: float = 0.6) -> str:
    """Return `; did you mean '…'?` with the nearest known word, or an empty string."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=cutoff)
    return f"; did you mean '{near[0]}'?" if near else ""


def nullable(parser: Parser[T]) -> Parser[T | None]:
    return lambda node: None if node.value is None else parser(node)


def text(node: Node) -> str:
    """Parse text: one line, without control characters, not empty."""
    value = node.value
    if not isinstance(value, str):
        raise WrongValueError(f"must be text in quotes, but is {kind_of(value)}")
    if not value:
        raise WrongValueError("must not be empty")
    if not value.isprintable():
        raise WrongValueError("must be one line without control characters")
    return value


def choice(literal: Any) -> Parser[Any]:
    """Return a parser for one of the words of a `Literal`, spelled exactly."""
    words = get_args(literal)

    def parser(node: Node) -> str:
        value, wanted = node.value, f"must be one of {', '.join(words)}"
        if not isinstance(value, str):
            raise WrongValueError(f"{wanted}, but is {kind_of(value)}")
        if value not in words:
            raise WrongValueError(f"{wanted}, but is {quoted(value)}{suggestion(value, words)}")
        return value

    return parser


def _amount(node: Node, units: Mapping[str, int], form: str) -> int:
    """Parse a whole number with a unit; return the amount in the smallest unit."""
    value = node.value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise WrongValueError(f"is a number without a unit; write {form}")
    if not isinstance(value, str):
        raise WrongValueError(f"must be {form}, but is {kind_of(value)}")
    match = re.fullmatch(f"([0-9]{{1,12}})({'|'.join(units)})", value)
    if match is None:
        raise WrongValueError(f"must be {form}, but is {quoted(value)}")
    return int(match[1]) * units[match[2]]


_MS = timedelta(milliseconds=1)
_LENGTHS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SIZES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_LONGEST_MS = 3650 * _LENGTHS["d"]


def duration(unit: str = "ms") -> Parser[timedelta]:
    """Return a parser for a duration of at least one `unit` and at most ten years."""

    def parser(node: Node) -> timedelta:
        length_ms = _amount(node, _LENGTHS, "a duration such as 500ms, 30s, 15m, 24h or 7d")
        if length_ms < _LENGTHS[unit]:
            raise WrongValueError(f"must be at least 1{unit}, but is {node.value}")
        if length_ms > _LONGEST_MS:
            raise WrongValueError(f"must be at most 3650d, but is {node.value}")
        return length_ms * _MS

    return parser


def size(node: Node) -> int:
    """Parse a number of bytes."""
    return _amount(node, _SIZES, "a size such as 512MiB or 1GiB (B, KiB, MiB, GiB, TiB)")


def size_text(count: int) -> str:
    """Return a number of bytes in a unit that people read easily."""
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >= 1 << shift:
            return f"{count / (1 << shift):.1f} {unit}"
    return f"{count} B"


def number(least: float, most: float, *, whole: bool = False) -> Parser[Any]:
    def parser(node: Node) -> float:
        value = node.value
        if not isinstance(value, int if whole else (int, float)) or isinstance(value, bool):
            what = "a whole number" if whole else "a number"
            found = f"the text {quoted(value)}" if isinstance(value, str) else kind_of(value)
            shown = value if isinstance(value, float) else found
            raise WrongValueError(f"must be {what} from {least:g} to {most:g}, but is {shown}")
        if not least <= value <= most:  # also false for NaN
            raise WrongValueError(f"must be from {least:g} to {most:g}, but is {value:g}")
        return value if whole else float(value)

    return parser


def whole(least: int, most: int) -> Parser[int]:
    return number(least, most, whole=True)


def name_problem(name: str) -> str | None:
    """Return why this name is not allowed, or None; names appear in paths, logs and metrics."""
    if re.search(r"[0-9]{7}", name):
        return "a name must not contain seven digits in a row: they may be a fax number, and logs show names"
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,62}", name):
        return (
            "a name must be 1 to 63 of a-z, 0-9, '.', '_' and '-', and start with a letter or digit"
        )
    return None


def node_name(node: Node) -> str:
    value = text(node)
    if (problem := name_problem(value)) is not None:
        raise WrongValueError(problem)
    return value


_LONGEST_ID = 256


def app_id(node: Node) -> str:
    value = identifier(node)
    if ":" in value:  # HTTP Basic ends the name at the first colon
        raise WrongValueError("must not contain ':'; write only the App ID, without the API Key")
    return value


def identifier(node: Node) -> str:
    """Parse opaque text that goes into a request header."""
    if isinstance(node.value, (int, float)) and not isinstance(node.value, bool):
        raise WrongValueError('is a bare number, which loses leading zeros; put it in quotes: "…"')
    value = text(node)
    if not value.isascii() or value != value.strip() or len(value) > _LONGEST_ID:
        raise WrongValueError(
            f"must be at most {_LONGEST_ID} ASCII characters, without surrounding spaces; copy it again"
        )
    return value


def zone(node: Node) -> ZoneInfo:
    value = text(node)
    try:
        return ZoneInfo(value)
    except (ValueError, OSError, LookupError):  # no such zone, '../x', a folder such as 'America'
        near = suggestion(value, available_timezones(), cutoff=0.8)
        raise WrongValueError(
            f"{quoted(value)} is not a time zone; write one such as America/Los_Angeles or UTC{near}"
        ) from None


def checked(problem_of: Callable[[str], str | None], hint: str = "") -> Parser[str]:
    """Return a parser for text in which `problem_of` finds no problem."""

    def parser(node: Node) -> str:
        value = text(node)
        if problem := problem_of(value):
            raise WrongValueError(problem + hint)
        return value

    return parser


cron = checked(cron_problem, "; write it such as '0 8,12,16 * * mon-fri'")
path_template = checked(naming.path_template_problem)
sent_path_template = checked(lambda text: naming.path_template_problem(text, "completed"))


def yes_or_no(node: Node) -> bool:
    if not isinstance(node.value, bool):
        raise WrongValueError(f"must be true or false, but is {kind_of(node.value)}")
    return node.value


def fax_number(node: Node) -> str:
    """Parse a number as eFax writes it (1 and ten digits in North America, else `+`); never show it."""
    value = identifier(node)
    if not re.fullmatch(r"1[0-9]{10}|\+[1-9][0-9]{5,14}", value):
        raise WrongValueError(
            "must be eleven digits starting with 1; outside North America '+' and digits"
        )
    return value


_EARLIEST = datetime(1990, 1, 1, tzinfo=UTC)
# Starts with a year and a month. Digits and one word are a duration, or meant to be one.
_INSTANT = re.compile(r"(?![0-9.]+ *[A-Za-z]+$)[0-9]{4}-?[0-9]{2}")


def start(node: Node) -> timedelta | datetime:
    """Parse a look-back, or an instant (ISO 8601 with offset)."""
    value = node.value
    if not isinstance(value, str) or not _INSTANT.match(value):
        return duration("s")(node)
    try:
        instant = clock.instant(value)
    except clock.NoOffsetError as error:
        raise WrongValueError(str(error)) from None
    except ValueError as error:
        raise WrongValueError(f"{quoted(value)} {error}") from None
    if instant < _EARLIEST:
        raise WrongValueError("is before 1990; write the time of the oldest fax you want")
    return instant


_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY = f"(?:{'|'.join(_DAYS)})"
_DAYS_AND_HOURS = re.compile(
    rf"({_DAY}(?:-{_DAY})?(?:,{_DAY}(?:-{_DAY})?)*) +"
    r"([01][0-9]|2[0-3]):([0-5][0-9])-([01][0-9]|2[0-4]):([0-5][0-9])"
)


@dataclass(frozen=True)
class During:
    """Weekly office hours: weekdays (Monday is 0) and minutes of the day, end exclusive."""

    weekdays: frozenset[int]
    start_minute: int
    end_minute: int


def during(node: Node) -> During:
    """Parse weekdays and hours, such as `mon-fri,sun 08:00-18:00`.

    `24:00` is the end of the day; an end before the start is on the next day.
    """
    value = text(node)
    match = _DAYS_AND_HOURS.fullmatch(value.lower())
    first, last = (int(match[i]) * 60 + int(match[i + 1]) for i in (2, 4)) if match else (0, 0)
    if match is None or last > 24 * 60:
        raise WrongValueError(
            f"is {quoted(value)}; write days and hours such as 'mon-fri 08:00-18:00'"
        )
    if first == last:
        raise WrongValueError("ends when it starts; write 00:00-24:00 for the whole day")
    weekdays = (_weekdays(part) for part in match[1].split(","))
    return During(frozenset().union(*weekdays), first, last)


def _weekdays(part: str) -> set[int]:
    """Parse `fri` or `mon-fri`; `fri-mon` spans the weekend."""
    first, last = (_DAYS.index(end) for end in (part[:3], part[-3:]))
    return {(first + i) % 7 for i in range((last - first) % 7 + 1)}
