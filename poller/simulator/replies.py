"""The API's answers, in the form that the switches set. Values in, values out."""

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime
from http import HTTPStatus
from typing import Any, TypeVar

from .query import RefusedError
from .state import Fax, Format
from .switches import Switches

F = TypeVar("F", bound=Fax)
_PACIFIC = timezone(timedelta(hours=-8))
_TIMESTAMPS = {
    "none": "{stem}{fraction}",
    "no-fraction": "{stem}+0000",
    "nanoseconds": "{stem}{fraction}000000+0000",
    "-0800": "{pacific}{fraction}-0800",
}
_CONTENT_TYPES = {
    "json": "application/json",
    "json-charset": "application/json;charset=UTF-8",
    "text": "text/plain",
}
_PROXY_PAGE = (
    "<html>\r\n<head><title>{0}</title></head>\r\n<body>\r\n<center><h1>{0}</h1></center>\r\n"
    "<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
)


@dataclass
class Reply:
    """One answer before it is sent. A header that is None is left out."""

    status: int
    body: bytes = b""
    headers: dict[str, str | None] = field(default_factory=dict)


def json_reply(switches: Switches, value: Any, status: int = 200) -> Reply:
    return Reply(status, json.dumps(value).encode(), _type_header(switches))


def html_reply(status: int, title: str) -> Reply:
    return Reply(status, _PROXY_PAGE.format(title).encode(), {"Content-Type": "text/html"})


def error_reply(switches: Switches, refused: RefusedError, transaction_id: str) -> Reply:
    """Return an error in the form that `error_body` sets, with the request's transaction id."""
    status, message = refused.status, str(refused)
    code = next((known.name for known in HTTPStatus if known == status), f"ERROR_{status}")
    if switches.error_body == "empty":
        return Reply(status)
    if switches.error_body == "bare":
        return json_reply(switches, {"message": message}, status)
    if switches.error_body == "partial":
        return json_reply(switches, {"errors": [{"error_code": code}]}, status)
    one = {
        "error_code": code,
        "element_name": refused.element,
        "developer_message": message,
        "user_message": message,
        "more_info": "",
    }
    return json_reply(switches, {"errors": [one], "transaction_id": transaction_id}, status)


def retry_after(switches: Switches, seconds: int, now: datetime) -> str | None:
    """Return a Retry-After header, or None if the switch turns it off."""
    if switches.retry_after == "none":
        return None
    if switches.retry_after == "date":
        return http_date(now + timedelta(seconds=seconds + 1))  # a date has only whole seconds
    return str(seconds)


def http_date(instant: datetime) -> str:
    return format_datetime(instant.astimezone(UTC), usegmt=True)


def list_body(switches: Switches, page: Sequence[dict[str, Any]], offset: int) -> dict[str, Any]:
    """Return a page of a list from its records; `offset` is the first one's position, from 0."""
    if not page and switches.empty_list == "bare":
        return {}
    first, last = (offset + 1, offset + len(page)) if page else (0, 0)
    body: dict[str, Any] = {"first_record": first, "last_record": last}
    if page or switches.empty_list == "array":
        body["faxes"] = page
    return body | _unknown(switches)


def listed_fax(switches: Switches, fax: Fax) -> dict[str, Any]:
    """Return a fax as in the list; `fax.fields` override the switches.

    A field that is None is left out.
    """
    number = str if switches.numbers == "text" else int
    every: dict[str, Any] = {
        "fax_id": fax.fax_id,
        "size": number(24_000 * fax.pages),
        "duration": number(12 + 35 * fax.pages),  # seconds on the line
        "pages": number(fax.pages),
        "image_downloaded": fax.image_downloaded,
        "fax_status": "STORED",
        "completed_timestamp": timestamp(switches, fax.completed),
        "originating_fax_number": fax.originating,
        "destination_fax_number": fax.destination,
        "originating_fax_tsid": fax.tsid,
        "resource_url": f"https://elsewhere.invalid/faxes/{fax.number}",
    }
    if switches.list_fields == "only-id":
        every = {"fax_id": fax.fax_id}
    elif switches.list_fields == "no-timestamp":
        del every["completed_timestamp"]
    if switches.fax_status == "missing":
        every.pop("fax_status", None)
    merged = every | _unknown(switches) | fax.fields
    return {name: value for name, value in merged.items() if value is not None}


def metadata_body(switches: Switches, fax: Fax) -> dict[str, Any]:
    more = {"direction": "INBOUND", "destination_fax_csid": "eFax Enterprise"}
    return listed_fax(*as_metadata(switches, fax)) | more


def as_metadata(switches: Switches, fax: F) -> tuple[Switches, F]:
    """Return both as the metadata call shows them; it may have fields that the list lacks."""
    if switches.metadata_fields == "as-listed":
        return switches, fax
    fields = {name: value for name, value in fax.fields.items() if value is not None}
    return replace(switches, list_fields="all"), replace(fax, fields=fields)


def timestamp(switches: Switches, instant: datetime) -> str:
    """Return completed_timestamp in the switch's form; some forms are cut to whole seconds."""
    seconds = "%Y-%m-%dT%H:%M:%S"
    spelling = _TIMESTAMPS.get(switches.timestamp, "{stem}{fraction}" + switches.timestamp)
    return spelling.format(
        stem=instant.strftime(seconds),
        pacific=instant.astimezone(_PACIFIC).strftime(seconds),
        fraction=f".{instant.microsecond // 1000:03}",
    )


def image_reply(
    switches: Switches, fax: Fax, document: bytes, asked: Format, trouble: str | None
) -> Reply:
    """Return the JSON around a document; `trouble` is a fault of stage DOCUMENT."""
    fields = {
        "fax_id": f"not-{fax.fax_id}" if trouble == "wrong-fax-id" else fax.fax_id,
        "file_name": f"{fax.number}.{asked}",
        **_unknown(switches),
    }
    parts = [f'"{name}": {json.dumps(value)}' for name, value in fields.items()]
    if switches.image_keys == "only-image":
        parts = []
    image = [f'"image": {_image_text(switches, document, trouble)}']
    if trouble != "no-image":
        at = {"image-first": 0, "image-middle": 1}.get(switches.image_keys, len(parts))
        parts[at:at] = image
    if trouble == "duplicate-image":
        parts += image
    return Reply(200, ("{" + ", ".join(parts) + "}").encode(), _type_header(switches))


def _image_text(switches: Switches, document: bytes, trouble: str | None) -> str:
    """Return a document as a JSON string of base64, broken as `trouble` says."""
    if trouble == "null-image":
        return "null"
    if trouble == "cut-document":
        document = document[: len(document) // 2]
    elif trouble == "no-document":
        document = b"This is not the document that you are looking for.\n" * 20
    elif trouble == "empty-document":
        document = b""
    text = base64.b64encode(document).decode()
    if trouble == "bad-base64":
        text = text[:100] + "!" + text[101:]
    elif trouble == "bad-padding":
        text = text.rstrip("=")[:-1]
    if switches.image_text == "wrapped":
        text = re.sub("(.{1,76})", r"\1\\r\\n", text)
    elif switches.image_text == "spaced":
        text = " ".join(re.findall(".{1,1000}", text))
    elif switches.image_text == "escaped-slashes":
        text = text.replace("/", "\\/")
    elif switches.image_text == "unicode-escapes":
        text = re.sub("[+/=]", lambda found: f"\\u{ord(found[0]):04x}", text)
    return f'"{text}"'


def _unknown(switches: Switches) -> dict[str, Any]:
    if not switches.unknown_fields:
        return {}
    return {
        "x_region": "us-west",
        "x_labels": [{"name": 'caf\u00e9 "\\ {', "image": "nothing"}, None, 1.5e3],
    }


def _type_header(switches: Switches) -> dict[str, str | None]:
    return {"Content-Type": _CONTENT_TYPES.get(switches.content_type)}
