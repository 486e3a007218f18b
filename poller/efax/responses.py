"""Read answers: the values in a good one, the one error for each bad one."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from poller.efax.requests import Call
from poller.efax.strict_json import strict_object
from poller.efax.timestamps import parse_timestamp
from poller.errors import (
    ApiError,
    BadAnswer,
    Evidence,
    NotYet,
    RateLimited,
    Rejected,
    SignInRefused,
    TokenRefused,
    Unreachable,
    UserRefused,
    WindowRefused,
)
from poller.naming import fax_key
from poller.retry import parse_retry_after

BODY_LIMIT = 32 << 20
EVIDENCE_LIMIT = 64 << 10
FAX_ID_LIMIT = 1024
DEEPEST_FIELD = 64
TOKEN_LIMIT = 16 << 10  # every request has it in a header, and servers accept no more

_SECRET_HEADERS = frozenset(
    {"authorization", "proxy-authorization", "cookie", "set-cookie", "set-cookie2"}
)
_TOKEN = re.compile(r"[!-~]+")  # visible ASCII: nothing that could end a header line
_ERROR_CODE = re.compile(rb'"error(?:_code)?"\s*:\s*"([A-Za-z_]{1,40})"')
_TOLD = ("completed_timestamp", "pages", "originating_fax_number", "destination_fax_number")
_DEFAULT_LIFE_S = 3600.0  # for a token that does not say how long it lives
_LONGEST_LIFE_S = 7 * 86400.0


@dataclass(frozen=True)
class Token:
    """A token; `expires_in_s` counts from the answer."""

    value: str = field(repr=False)
    expires_in_s: float


@dataclass(frozen=True)
class ListedFax:
    """One record of a list; `raw` is everything that the API said, including unknown fields."""

    fax_id: str
    received_at: datetime | None
    pages: int | None
    raw: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Page:
    """One page of a list; `unusable` counts records without a usable fax id.

    `marks` identify all its records, in order: the key of the fax id, or a substitute. `shape` says
    how the server wrote a page without records.
    """

    faxes: tuple[ListedFax, ...]
    unusable: int = 0
    marks: tuple[str, ...] = field(default=(), compare=False, repr=False)
    shape: str = field(default="", compare=False, repr=False)


def succeeded(status: int) -> bool:
    """Tell whether a status means success.

    206 does not: nobody asked for a part, and an empty part of a list would pass for an empty list.
    """
    return 200 <= status < 300 and status != 206


def parse_token(body: bytes) -> Token:
    """Read the answer to a sign-in."""
    fields = strict_object(body, "sign-in")
    value = fields.get("access_token")
    if not isinstance(value, str) or _TOKEN.fullmatch(value) is None or len(value) > TOKEN_LIMIT:
        raise BadAnswer("The sign-in answer contains no token.")
    return Token(value, _life(fields.get("expires_in")))


def _life(expires_in: object) -> float:
    try:
        seconds = float(expires_in)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return _DEFAULT_LIFE_S
    if math.isnan(seconds) or seconds <= 0:
        return _DEFAULT_LIFE_S
    return min(seconds, _LONGEST_LIFE_S)


def parse_health(body: bytes) -> None:
    """Check that the API says it is up."""
    if strict_object(body, "health").get("status") != "UP":
        raise Unreachable("eFax says that it is not available.")


def parse_fields(body: bytes) -> dict[str, Any]:
    """Read an answer that contains one fax's metadata."""
    fields = strict_object(body, "metadata")
    if fields.get("errors"):
        raise BadAnswer("The metadata answer is an error message.")
    kept: dict[str, Any] = no_deeper(fields)
    return kept


def parse_done(body: bytes) -> None:
    """Check that eFax did a deletion or a mark: the body is empty or an object, not a web page.

    A proxy may answer instead, with a good status.
    """
    if body.strip() and strict_object(body, "deletion or mark").get("errors"):
        raise BadAnswer("The answer to the deletion or mark is an error message.")


def parse_page(body: bytes) -> Page:
    """Read one page of a list.

    An empty list may come as `faxes: []`, without `faxes`, or as `{}`; an object with only other
    things is not a list. The caller decides by `shape` which spelling this server uses.
    """
    fields = strict_object(body, "list")
    if fields.get("errors"):
        raise BadAnswer("The list answer is an error message.")
    records = fields.get("faxes")
    if records is None:
        _check_empty(fields)
        return Page((), shape=_shape(fields))
    if not isinstance(records, list):
        raise BadAnswer("The list answer contains no list of faxes.")
    records = [no_deeper(record) for record in records]
    listed = [(listed_fax(record), record) for record in records]
    faxes = tuple(fax for fax, _ in listed if fax is not None)
    marks = tuple(fax_key(fax.fax_id) if fax else _stand_in(record) for fax, record in listed)
    return Page(faxes, len(records) - len(faxes), marks, "" if records else _shape(fields))


def _shape(fields: dict[str, Any]) -> str:
    """Return the keys of an empty list without their values, as positions may differ by page."""
    keys: list[str] = [name for name in ("first_record", "last_record") if name in fields]
    if "faxes" in fields:
        keys.append("faxes: null" if fields["faxes"] is None else "faxes: []")
    return "{" + ", ".join(keys) + "}"


def no_deeper(value: Any, levels: int = DEEPEST_FIELD) -> Any:
    """Keep values nested deeper than `levels` as their JSON text.

    A value that we could just read might be too deep to write: from a deeper stack, or by the
    encoder that indents, which is written in Python and has its own limit since 3.12. Then this fax
    could never be stored.
    """
    if not isinstance(value, dict | list):
        return value
    if levels == 0:
        try:
            return json.dumps(value)
        except RecursionError:
            return "[nested too deeply]"
    if isinstance(value, list):
        return [no_deeper(one, levels - 1) for one in value]
    return {name: no_deeper(one, levels - 1) for name, one in value.items()}


def _stand_in(record: object) -> str:
    """Return a substitute key for a record; no usable fax id begins like it."""
    text = json.dumps(record, sort_keys=True, default=str)
    return "\0" + hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _check_empty(fields: dict[str, Any]) -> None:
    if not fields:
        return
    if not fields.keys() & {"first_record", "last_record"}:
        raise BadAnswer("The list answer contains no list of faxes.")
    first, last = _count(fields.get("first_record")), _count(fields.get("last_record"))
    if first and last and last >= first:
        raise BadAnswer("The list answer counts faxes and contains none.")


def listed_fax(record: object) -> ListedFax | None:
    """Read a record of a list; return None if it has no usable fax id."""
    if not isinstance(record, dict):
        return None
    fax_id = usable_fax_id(record.get("fax_id"))
    if fax_id is None:
        return None
    return ListedFax(fax_id, completed_at(record), _count(record.get("pages")), record)


def usable_fax_id(value: object) -> str | None:
    """Read a fax id; return None if we could not request a fax with it."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value or len(value) > FAX_ID_LIMIT:
        return None
    # Half a surrogate pair can be neither requested nor recorded.
    return None if any("\ud800" <= character <= "\udfff" for character in value) else value


def _count(value: object) -> int | None:
    """Read a number that may come as text; return None if it is not a count."""
    if isinstance(value, str) and re.fullmatch(r"\s*[0-9]{1,9}\s*", value):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value < 10**9 else None


def listed_pages(raw: Mapping[str, Any]) -> int | None:
    """Read the page count of a record as listed; return None if there is none."""
    return _count(raw.get("pages")) or None


def completed_at(raw: Mapping[str, Any]) -> datetime | None:
    """Read when a fax was completed; return None if its record does not say."""
    said = raw.get("completed_timestamp")
    return parse_timestamp(said) if isinstance(said, str) else None


def lacks_something(raw: Mapping[str, Any]) -> bool:
    """Whether a record lacks what a sidecar should contain: when, how many pages, from and to whom."""
    return any(raw.get(name) is None for name in _TOLD)


def completed(raw: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """Add to a record what the fax's metadata say in addition; listed values stay.

    Do not add whether it was downloaded: by then we may have done so.
    """
    more = {name: value for name, value in said.items() if name != "image_downloaded"}
    return {**raw, **more, **{name: value for name, value in raw.items() if value is not None}}


def listed_as_new(raw: Mapping[str, Any]) -> bool:
    """Whether a record says that nobody had downloaded the fax when it was listed."""
    return raw.get("image_downloaded") in (False, "false")


def evidence(call: Call, status: int, headers: Mapping[str, str], body: bytes) -> Evidence:
    """Keep what may be kept of an answer: no secret headers, no token, the first 64 KiB."""
    kept = {name: value for name, value in headers.items() if name.lower() not in _SECRET_HEADERS}
    holds_token = call is Call.TOKEN and status < 400
    return Evidence(status, kept, b"" if holds_token else body[:EVIDENCE_LIMIT])


def failure(
    call: Call, status: int, headers: Mapping[str, str], body: bytes, now: datetime
) -> ApiError:
    """Map a failed answer to its error; `now` (UTC) is for `Retry-After`."""
    seen = evidence(call, status, headers, body)
    sentence = _sentence(call, status, body)
    if status == 429 or status >= 500:
        kind = RateLimited if status == 429 else Unreachable
        return kind(sentence, retry_after_s=_retry_after(headers, now), evidence=seen)
    if 300 <= status < 400:
        return Rejected(
            f"eFax answered the {call} call with a redirect (HTTP {status}). poller never follows"
            " redirects: check base_url and any proxy.",
            evidence=seen,
        )
    if status < 300:
        return BadAnswer(sentence, evidence=seen)
    return _refusal(call, status)(sentence, evidence=seen)


_REFUSALS: dict[tuple[Call, int], type[ApiError]] = {
    (Call.TOKEN, 400): SignInRefused,
    (Call.TOKEN, 401): SignInRefused,
    (Call.TOKEN, 403): SignInRefused,
    (Call.LIST, 400): WindowRefused,
    (Call.LIST, 403): UserRefused,
    (Call.LIST, 404): UserRefused,
    (Call.SENT_LIST, 400): WindowRefused,
    (Call.SENT_LIST, 403): UserRefused,
    (Call.SENT_LIST, 404): UserRefused,
    (Call.IMAGE, 404): NotYet,
    (Call.IMAGE, 410): NotYet,
}


def _refusal(call: Call, status: int) -> type[ApiError]:
    return _REFUSALS.get((call, status), TokenRefused if status == 401 else Rejected)


def _sentence(call: Call, status: int, body: bytes) -> str:
    """Say which answer came, without the server's words: they may contain numbers and names."""
    found = _ERROR_CODE.search(body[:EVIDENCE_LIMIT])
    code = f", {found[1].decode()}" if found else ""
    said = f"eFax answered the {call} call with HTTP {status}{code}"
    if _refusal(call, status) is SignInRefused:
        return f"{said}: check app_id and the key."
    return f"{said}."


def _retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    for name, value in headers.items():
        if name.lower() == "retry-after":
            return parse_retry_after(value, now)
    return None
