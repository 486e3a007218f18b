"""Carry out the calls of the API, except those about sent faxes, which are in `outbound`."""

import hashlib
import json
from dataclasses import replace
from datetime import timedelta
from typing import TypeVar

from . import outbound, query, replies, selection
from .mailroom import Mailroom
from .query import Arrival, MalformedError, RefusedError
from .replies import Reply, json_reply
from .state import Fax, Format, Mailbox, SentFax, is_uuid

F = TypeVar("F", bound=Fax)

_TOKEN_BODY = b"grant_type=client_credentials"
_FORMATS: dict[str, Format] = {"PDF": "pdf", "TIFF": "tiff"}
_FIXED_ROUTES = {
    ("POST", "tokens"): "token",
    ("GET", "health"): "health",
    ("GET", "faxes/received"): "list",
    ("GET", "faxes/sent"): "sent-list",
    ("POST", "faxes"): "send",
    ("GET", "notifications"): "notifications",
}
# The part of the path after /faxes/{fax_id}.
_FAX_ROUTES = {
    ("DELETE", ""): "delete",
    ("GET", "image"): "image",
    ("GET", "metadata"): "metadata",
    ("PATCH", "metadata"): "mark",
    ("GET", "transmission-details"): "details",
    ("GET", "transmission-detail"): "details",
}


def route(arrival: Arrival) -> tuple[str | None, str | None]:
    """Return the call that a path names, or None, and the fax id in the path."""
    segments = arrival.segments
    fixed = _FIXED_ROUTES.get((arrival.method, "/".join(segments)))
    if fixed or len(segments) < 2 or segments[0] != "faxes":
        return fixed, None
    call = _FAX_ROUTES.get((arrival.method, "/".join(segments[2:])))
    return call, segments[1] if call else None


def carry_out(efax: Mailroom, arrival: Arrival, trouble: str | None) -> Reply:
    """Carry out a call; `trouble` is a fault of stage DOCUMENT. Raises RefusedError for the client."""
    call, fax_id = route(arrival)
    if call is None:
        raise RefusedError(404, "no such resource")
    if call == "health":
        return json_reply(efax.switches, {"status": "UP"})
    if call == "token":
        return _sign_in(efax, arrival)
    mailbox = efax.authorized(arrival)
    if fax_id is None:
        return _OF_A_USER[call](efax, mailbox, arrival)
    return _of_a_fax(efax, mailbox, arrival, trouble)


def _of_a_fax(efax: Mailroom, mailbox: Mailbox, arrival: Arrival, trouble: str | None) -> Reply:
    call, fax_id = route(arrival)
    allowed = frozenset({"desired_format"} if call == "image" else ())
    values = _query(efax, arrival, allowed)
    fax = mailbox.find(fax_id or "")
    if fax is None or fax.visible_at > efax.now():
        raise RefusedError(404, "no such fax")
    if call == "image":
        return _image(efax, fax, values.get("desired_format", "PDF"), trouble)
    if call == "details":
        return outbound.details(efax, fax, arrival)
    if call == "delete":
        mailbox.remove(fax)
        deleted = efax.switches.delete_status == "200"
        return json_reply(efax.switches, {"fax_id": fax.fax_id}) if deleted else Reply(204)
    if call == "mark":
        fax.image_downloaded = _wanted_mark(arrival)
    if isinstance(fax, SentFax):
        return json_reply(efax.switches, outbound.metadata_body(efax, fax))
    return json_reply(efax.switches, replies.metadata_body(efax.switches, fax))


def listed(efax: Mailroom, mailbox: Mailbox, arrival: Arrival) -> tuple[query.Window, list[Fax]]:
    """Return the window of a list call and all faxes in it, newest first."""
    values = _query(efax, arrival, query.LIST_PARAMETERS)
    window, passes = query.parse_window(values), query.parse_filters(values)
    return window, selection.matching(efax.switches, mailbox, window, passes, efax.now())


def _sign_in(efax: Mailroom, arrival: Arrival) -> Reply:
    if arrival.media_type != "application/x-www-form-urlencoded":
        raise MalformedError("Content-Type", "application/x-www-form-urlencoded is needed")
    if arrival.body != _TOKEN_BODY:
        raise MalformedError("grant_type", "client_credentials is needed")
    app_id, key = query.parse_basic(arrival.header("authorization")) or ("", None)
    app = efax.apps.get(app_id)
    if app is None or app.api_key != key:
        refusal = {"error": "invalid_client", "error_description": "Bad client credentials"}
        return json_reply(efax.switches, refusal, int(efax.switches.sign_in_refusal))
    efax.sign_ins[app_id] += 1
    body = {
        "access_token": efax.issue_token(app),
        "token_type": "bearer",
        "expires_in": efax.switches.expires_in_s,
        "scope": "fax",
        "jti": efax.new_uuid(),
    }
    return json_reply(efax.switches, body)


def _received_list(efax: Mailroom, mailbox: Mailbox, arrival: Arrival) -> Reply:
    window, faxes = listed(efax, mailbox, arrival)
    selection.check_window(efax.switches, window, efax.said_now())
    in_order = selection.ordered(efax.switches, faxes, efax.random)
    page, offset = _page(efax, in_order, arrival)
    records = [replies.listed_fax(efax.switches, fax) for fax in page]
    return json_reply(efax.switches, replies.list_body(efax.switches, records, offset))


def _sent_list(efax: Mailroom, mailbox: Mailbox, arrival: Arrival) -> Reply:
    values = _query(efax, arrival, query.SENT_PARAMETERS)
    selection.check_window(efax.switches, query.parse_window(values), efax.said_now())
    page, offset = _page(efax, outbound.listed(efax, mailbox, values), arrival)
    records = [outbound.listed_fax(efax, fax) for fax in page]
    return json_reply(efax.switches, replies.list_body(efax.switches, records, offset))


def _notifications(efax: Mailroom, mailbox: Mailbox, arrival: Arrival) -> Reply:
    values = _query(efax, arrival, query.NOTICE_PARAMETERS)
    paging = query.parse_paging(arrival.headers, refuse_above_100=False)
    return outbound.notifications(efax, mailbox, values, paging)


def _send(efax: Mailroom, mailbox: Mailbox, arrival: Arrival) -> Reply:
    _query(efax, arrival, frozenset())
    return outbound.send(efax, mailbox, arrival)


# A user's calls that name no fax.
_OF_A_USER = {
    "list": _received_list,
    "sent-list": _sent_list,
    "notifications": _notifications,
    "send": _send,
}


def _page(efax: Mailroom, faxes: list[F], arrival: Arrival) -> tuple[list[F], int]:
    """Return a page of a list, with fax ids in the spelling that the switches set."""
    refuse = efax.switches.limit_above_100 == "refuse"
    paging = query.parse_paging(arrival.headers, refuse_above_100=refuse)
    page, offset = selection.page_of(efax.switches, faxes, paging)
    letters = _letters(efax, efax.switches.list_fax_id)
    return [_spelled(fax, letters) for fax in page], offset


def _image(efax: Mailroom, fax: Fax, wanted: str, trouble: str | None) -> Reply:
    if wanted not in _FORMATS:
        raise MalformedError("desired_format", "PDF or TIFF")
    if isinstance(fax, SentFax) and not fax.has_image:
        raise RefusedError(404, "there is no image")
    if efax.now() < fax.visible_at + timedelta(seconds=efax.switches.image_not_yet_s):
        raise RefusedError(404, "there is no image")
    fax.image_downloaded = True
    efax.downloads[fax] += 1
    fmt = _FORMATS[wanted]
    document = efax.image_bytes(fax, fmt)
    efax.served.setdefault(fax, []).append(hashlib.sha256(document).hexdigest())
    spelled = _spelled(fax, _letters(efax, efax.switches.image_fax_id))
    return replies.image_reply(efax.switches, spelled, document, fmt, trouble)


def _query(efax: Mailroom, arrival: Arrival, allowed: frozenset[str]) -> dict[str, str]:
    refuse = efax.switches.refuse_bare_colon
    return query.parse_query(arrival.query, allowed=allowed, refuse_bare_colon=refuse)


def _letters(efax: Mailroom, how: str) -> str:
    return efax.random.choice(("lower", "upper")) if how == "mixed" else how


def _spelled(fax: F, letters: str) -> F:
    """Return the fax with its id in the spelling of an answer."""
    if letters == "same" or not is_uuid(fax.fax_id):
        return fax
    return replace(fax, fax_id=fax.fax_id.lower() if letters == "lower" else fax.fax_id.upper())


def _wanted_mark(arrival: Arrival) -> bool:
    if arrival.media_type != "application/json":
        raise MalformedError("Content-Type", "application/json is needed")
    try:
        wanted = json.loads(arrival.body)["image_downloaded"]
    except (ValueError, KeyError, TypeError) as error:
        raise MalformedError("image_downloaded", "a JSON object with it is needed") from error
    if not isinstance(wanted, bool):
        raise MalformedError("image_downloaded", "true or false")
    return wanted
