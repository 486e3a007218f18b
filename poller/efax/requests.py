"""What to send: method, target and headers of every call; `outgoing` makes the body of a send call.

The rules come from the vendor's quick start guide: paging by headers, time offsets without a colon,
every reserved character percent-encoded.
"""

import base64
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from urllib.parse import quote

from poller.efax.timestamps import format_timestamp
from poller.window import Interval

PAGE_LIMIT = 100


class Call(StrEnum):
    """A kind of call; its value is its label in metrics."""

    TOKEN = "token"  # noqa: S105
    HEALTH = "health"
    LIST = "list"
    METADATA = "metadata"
    IMAGE = "image"
    SENT_LIST = "sent-list"
    SEND = "send"
    DETAILS = "details"
    DELETE = "delete"
    MARK = "mark"
    NOTIFICATIONS = "notifications"


@dataclass(frozen=True)
class Request:
    """A request; `target` is path and query, already percent-encoded."""

    call: Call
    method: str
    target: str
    headers: dict[str, str] = field(repr=False)
    body: bytes | None = field(default=None, repr=False)


def token_request(app_id: str, api_key: str) -> Request:
    """Sign in; this ends the previous token."""
    credentials = base64.b64encode(f"{app_id}:{api_key}".encode()).decode()
    headers = {
        "Accept": "application/json",
        "Authorization": f"Basic {credentials}",
        "Content-Type": "application/x-www-form-urlencoded",
    }
    return Request(Call.TOKEN, "POST", "/tokens", headers, b"grant_type=client_credentials")


def health_request() -> Request:
    """Ask whether the API is up; this needs no token."""
    return Request(Call.HEALTH, "GET", "/health", {"Accept": "application/json"})


def list_request(
    user_id: str,
    token: str,
    bounds: Interval | None,
    *,
    offset: int,
    image_downloaded: bool | None = None,
) -> Request:
    """List received faxes, beginning with record `offset` (from 0); without bounds, of all time."""
    query = _bounds(bounds)
    if image_downloaded is not None:
        query["image_downloaded"] = "true" if image_downloaded else "false"
    headers = _paged(user_id, token, offset)
    return Request(Call.LIST, "GET", "/faxes/received" + _query(query), headers)


def sent_list_request(  # six: the user, the window and two filters
    user_id: str,
    token: str,
    bounds: Interval | None,
    *,
    offset: int,
    transmission_status: str | None = None,
    transaction_id: str | None = None,
) -> Request:
    """List sent faxes, beginning with record `offset` (from 0); without bounds, of all time."""
    query = _bounds(bounds)
    if transmission_status is not None:
        query["transmission_status"] = quote(transmission_status, safe="")
    if transaction_id is not None:
        query["transaction_id"] = quote(transaction_id, safe="")
    headers = _paged(user_id, token, offset)
    return Request(Call.SENT_LIST, "GET", "/faxes/sent" + _query(query), headers)


def _bounds(bounds: Interval | None) -> dict[str, str]:
    if bounds is None:
        return {}
    return {
        "min_completed_timestamp": _encoded(bounds.start),
        "max_completed_timestamp": _encoded(bounds.end),
    }


def _paged(user_id: str, token: str, offset: int) -> dict[str, str]:
    return _headers(user_id, token) | {
        "pagination-offset": str(offset),
        "pagination-limit": str(PAGE_LIMIT),
    }


def _encoded(instant: datetime) -> str:
    """Encode what is reserved in a timestamp; `quote` is ten times slower, and each poll has two."""
    return format_timestamp(instant).replace(":", "%3A").replace("+", "%2B")


def image_request(user_id: str, token: str, fax_id: str, image_format: str) -> Request:
    """Ask for a fax's image, `pdf` or `tiff`; eFax marks it downloaded at once."""
    target = _fax_path(fax_id) + "/image" + _query({"desired_format": image_format.upper()})
    return Request(Call.IMAGE, "GET", target, _headers(user_id, token))


def metadata_request(user_id: str, token: str, fax_id: str) -> Request:
    """Ask for a fax's metadata."""
    target = _fax_path(fax_id) + "/metadata"
    return Request(Call.METADATA, "GET", target, _headers(user_id, token))


def details_request(user_id: str, token: str, fax_id: str, *, last: str = "details") -> Request:
    """Ask about a fax's transmission; one page of the guide spells `last` without its s."""
    target = f"{_fax_path(fax_id)}/transmission-{last}"
    return Request(Call.DETAILS, "GET", target, _headers(user_id, token))


def delete_request(user_id: str, token: str, fax_id: str) -> Request:
    """Delete a fax at eFax, permanently and for everybody."""
    return Request(Call.DELETE, "DELETE", _fax_path(fax_id), _headers(user_id, token))


def mark_request(user_id: str, token: str, fax_id: str, *, downloaded: bool) -> Request:
    """Set eFax's mark on a fax that says whether somebody downloaded its image."""
    headers = _headers(user_id, token) | {"Content-Type": "application/json"}
    body = b'{"image_downloaded": true}' if downloaded else b'{"image_downloaded": false}'
    return Request(Call.MARK, "PATCH", _fax_path(fax_id) + "/metadata", headers, body)


def notifications_request(
    user_id: str, token: str, since: datetime | None, *, offset: int
) -> Request:
    """Ask for what eFax has told the web-hook; paging and filter names are those of lists."""
    query = {} if since is None else {"min_completed_timestamp": _encoded(since)}
    headers = _paged(user_id, token, offset)
    return Request(Call.NOTIFICATIONS, "GET", "/notifications" + _query(query), headers)


def send_request(user_id: str, token: str, transaction_id: str, body: bytes) -> Request:
    """Send a fax; our transaction id comes back in errors and perhaps in the sent list."""
    headers = _headers(user_id, token) | {
        "Content-Type": "application/json",
        "transaction-id": transaction_id,
    }
    return Request(Call.SEND, "POST", "/faxes", headers, body)


def _headers(user_id: str, token: str) -> dict[str, str]:
    return {
        "Accept": "application/json",
        # The guide writes `bearer`. Case does not matter here (RFC 9110, 11.1), but some servers
        # compare it with this spelling, which RFC 6750 uses.
        "Authorization": f"Bearer {token}",
        "user-id": user_id,
    }


def _query(parameters: dict[str, str]) -> str:
    """Join values that are already percent-encoded."""
    pairs = [f"{name}={value}" for name, value in parameters.items()]
    return "?" + "&".join(pairs) if pairs else ""


def _fax_path(fax_id: str) -> str:
    encoded = quote(fax_id, safe="")
    if not encoded.strip("."):  # a bare `..` would lead out of /faxes
        encoded = encoded.replace(".", "%2E")
    return f"/faxes/{encoded}"
