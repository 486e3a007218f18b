"""Sent faxes: the list, the details of one, POST /faxes, and the notices."""

import base64
import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from . import query, replies, selection
from .mailroom import Mailroom
from .query import Arrival, Filter, MalformedError, Paging, RefusedError
from .replies import Reply, json_reply
from .state import FINAL, Course, Fax, Mailbox, SentFax
from .switches import Switches

_MOST_DESTINATIONS, _MOST_DOCUMENTS, _LARGEST = 50, 25, 100_000_000
_NUMBER = re.compile(r"1[0-9]{10}|\+[0-9]{6,20}")
_CSID = re.compile(r"[ -~]{1,20}")
_OTHER_WORDS = {"COMPLETE": "COMPLETED", "INPROGRESS": "IN PROGRESS"}
_CARRIERS_TSID = "GATEWAY 0017"
_NOTICE_PAGE = 100


def listed(efax: Mailroom, mailbox: Mailbox, values: Mapping[str, str]) -> list[SentFax]:
    """Return all sent faxes in the window that pass the filters, newest first."""
    switches, now = efax.switches, efax.now()
    if switches.sent_status_demanded == "yes" and "transmission_status" not in values:
        raise MalformedError("transmission_status", "it is needed")
    window, passes = query.parse_window(values), _passes(switches, values, now)
    found = [
        fax
        for fax in mailbox.sent
        if fax.visible_at <= now
        and selection.lies_in(switches, window, _filed_at(switches, fax, now), now)
        and (fax.is_final(now) or switches.sent_under_way_listed == "yes")
        and passes(fax)
    ]
    found.sort(key=lambda fax: (_filed_at(switches, fax, now), fax.number), reverse=True)
    return selection.ordered(switches, found, efax.random)


def _filed_at(switches: Switches, fax: SentFax, now: datetime) -> datetime:
    by_completion = switches.sent_filter_by == "completed" and fax.is_final(now)
    return fax.completed if by_completion else fax.visible_at


def _passes(switches: Switches, values: Mapping[str, str], now: datetime) -> Filter:
    common = query.parse_filters(values)
    wanted = {name: text for name, text in values.items() if name not in query.LIST_PARAMETERS}
    if switches.sent_status_demanded == "defaults-to-complete":
        wanted.setdefault("transmission_status", "COMPLETE")
    if switches.send_transaction_id_in_list == "ignored":
        wanted.pop("transaction_id", None)
    ids_known = switches.send_transaction_id_in_list == "yes"

    def passes(fax: Fax) -> bool:
        assert isinstance(fax, SentFax)
        has = {
            "transmission_status": _plain(fax.status(now)),
            "fax_status": "STORED" if fax.has_image else "NOT_STORED",
            "error_code": _error_code(fax, now),
            "transaction_id": fax.transaction_id if ids_known else "",
        }
        asked = {**wanted}
        if "transmission_status" in asked:
            asked["transmission_status"] = _plain(asked["transmission_status"])
        return common(fax) and all(has[name] == text for name, text in asked.items())

    return passes


def _plain(status: str) -> str:
    """Return a state in one spelling; a request may use either."""
    plain = "".join(status.upper().split())
    return "COMPLETE" if plain == "COMPLETED" else plain


def listed_fax(efax: Mailroom, fax: SentFax) -> dict[str, Any]:
    """Return a sent fax as in the list; `fax.fields` override the switches."""
    return _record(efax, fax, in_list=True)


def metadata_body(efax: Mailroom, fax: SentFax) -> dict[str, Any]:
    return _record(efax, fax, in_list=False) | {"direction": "OUTBOUND"}


def _record(efax: Mailroom, fax: SentFax, *, in_list: bool) -> dict[str, Any]:
    switches, now = efax.switches, efax.now()
    if not in_list:
        switches, fax = replies.as_metadata(switches, fax)
    record = replies.listed_fax(switches, fax)
    if not fax.is_final(now) and "completed_timestamp" in record:
        created = replies.timestamp(switches, fax.visible_at)
        is_missing = switches.sent_completed_while_under_way == "missing"
        record["completed_timestamp"] = None if is_missing else created
    if "fax_status" in record:
        record["fax_status"] = "STORED" if fax.has_image else "NOT_STORED"
    more: dict[str, Any] = {
        "transmission_data": _transmission_data(switches, fax, now, in_list=in_list),
        "routing_data": {"from_name": "", "to_name": "", "to_company": "", "subject": ""},
        "client_tracking_data": _tracking_data(switches, fax),
    }
    if switches.send_transaction_id_in_list == "yes" and fax.transaction_id:
        more["transaction_id"] = fax.transaction_id
    if switches.list_fields != "only-id" or not in_list:
        record = more | record
    record |= fax.fields
    return {name: value for name, value in record.items() if value is not None}


def _transmission_data(switches: Switches, fax: SentFax, now: datetime, *, in_list: bool) -> Any:
    status = fax.status(now)
    data = {
        "transmission_status": _spelled(switches, status),
        "error_code": _error_code(fax, now),
        "error_message": "",
        "billable_retries": None,
    }
    if in_list and switches.transmission_data == "missing-in-list":
        return None
    return [data] if switches.transmission_data == "array" else data


def _spelled(switches: Switches, status: str) -> str:
    other = switches.sent_status_words == "COMPLETED"
    return _OTHER_WORDS.get(status, status) if other else status


def _error_code(fax: SentFax, now: datetime) -> str:
    codes = {"COMPLETE": "SFAX", "ERROR": fax.error_code, "CANCELED": "E45"}
    return codes.get(fax.status(now), "")


def _tracking_data(switches: Switches, fax: SentFax) -> Any:
    data = {"client_code": "", "client_id": "", "client_reference_id": fax.reference}
    if switches.client_tracking_data == "missing":
        return None
    return [data] if switches.client_tracking_data == "array" else data


def details(efax: Mailroom, fax: Fax, arrival: Arrival) -> Reply:
    """Return the transmission details of a sent fax, under the path that the switch sets."""
    last = "transmission-detail" + ("s" if efax.switches.details_path == "s" else "")
    if arrival.segments[-1] != last or not isinstance(fax, SentFax):
        raise RefusedError(404, "no such resource")
    status = fax.status(efax.now())
    attempt = {"attempt_number": 1, "attempt_status": _spelled(efax.switches, status)}
    body = {
        "fax_id": fax.fax_id,
        "transmission_data": _transmission_data(efax.switches, fax, efax.now(), in_list=False),
        "attempts": [attempt | {"duration": 47}] if status != "NEW" else [],
    }
    return json_reply(efax.switches, body)


# -- POST /faxes ------------------------------------------------------------------------------------


def send(efax: Mailroom, mailbox: Mailbox, arrival: Arrival) -> Reply:
    """Accept a fax for up to 50 numbers; ignore further ones."""
    user = mailbox.app_id, mailbox.user_id
    fields = _fields(arrival)
    numbers = [_number(one) for one in _some(fields, "destinations")[:_MOST_DESTINATIONS]]
    documents = [_document(one) for one in _some(fields, "documents")]
    if len(documents) > _MOST_DOCUMENTS or len(arrival.body) > _LARGEST:
        raise MalformedError("documents", "at most 25 documents and 100 MB")
    options, client_data = fields.get("fax_options") or {}, fields.get("client_data") or {}
    csid = options.get("custom_CSID")
    if csid is not None and not (isinstance(csid, str) and _CSID.fullmatch(csid)):
        raise MalformedError("custom_CSID", "at most 20 printable ASCII characters")
    try:
        pages, content = efax.as_received(documents)
    except ValueError as error:
        raise MalformedError("documents", str(error)) from error
    accepted = []
    for number in numbers:
        fax = efax.sent(
            *user,
            course=course(efax.switches),
            destination=number,
            pages=pages,
            documents=content,
            tsid=csid or mailbox.number or "",
            transaction_id=arrival.header("transaction-id"),
            reference=str(client_data.get("client_reference_id", "")),
        )
        _arrive(efax, fax)
        accepted.append(
            {"fax_id": fax.fax_id, "destination_fax_number": _as_answered(efax.switches, number)}
        )
    alone = efax.switches.send_answer == "object" and len(accepted) == 1
    return json_reply(efax.switches, accepted[0] if alone else accepted, 201)


def course(switches: Switches) -> Course:
    """Return the course of a new sent fax."""
    takes_s = switches.send_takes_s
    return ((0.0, "NEW"), (takes_s / 2, "INPROGRESS"), (takes_s, switches.send_ends))


def _arrive(efax: Mailroom, fax: SentFax) -> None:
    """Deliver a fax to the user with its number once the transmission is complete."""
    owner = efax.owner_of_number(fax.destination)
    if owner is None or fax.course[-1][1] != "COMPLETE":
        return
    efax.receive(
        *owner,
        completed=fax.completed,
        pages=fax.pages,
        documents=dict(fax.documents),
        originating=fax.originating,
        destination=fax.destination,
        tsid=fax.tsid if efax.switches.send_csid == "kept" else _CARRIERS_TSID,
    )


def _as_answered(switches: Switches, number: str) -> str:
    return number.removeprefix("1") if switches.send_number == "without-1" else number


def _fields(arrival: Arrival) -> dict[str, Any]:
    if arrival.media_type != "application/json":
        raise MalformedError("Content-Type", "application/json is needed")
    try:
        fields = json.loads(arrival.body)
    except ValueError as error:
        raise MalformedError("body", "JSON is needed") from error
    if not isinstance(fields, dict):
        raise MalformedError("body", "a JSON object is needed")
    return fields


def _some(fields: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    entries = fields.get(name)
    if not isinstance(entries, list) or not entries or not all(map(_is_object, entries)):
        raise MalformedError(name, "an array of objects is needed")
    return entries


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _number(destination: Mapping[str, Any]) -> str:
    number = destination.get("fax_number")
    if not isinstance(number, str) or not _NUMBER.fullmatch(number):
        raise MalformedError("fax_number", "1 and ten digits, or a number that starts with +")
    return number


def _document(document: Mapping[str, Any]) -> bytes:
    if document.get("document_type") not in ("PDF", "TIFF"):
        raise MalformedError("document_type", "PDF or TIFF")
    try:
        return base64.b64decode(document["document_content"], validate=True)
    except (KeyError, ValueError, TypeError) as error:
        raise MalformedError("document_content", "base64 is needed") from error


# -- GET /notifications -----------------------------------------------------------------------------


def notifications(
    efax: Mailroom, mailbox: Mailbox, values: Mapping[str, str], paging: Paging
) -> Reply:
    """Return the notices of received faxes and of finished sent ones, newest first."""
    how = efax.switches.notifications
    if how == "404":
        raise RefusedError(404, "no such resource")
    if how == "no-filter" and values:
        raise MalformedError(next(iter(values)), "unknown parameter")
    boxes = [mailbox]
    if efax.switches.notifications_of == "account":
        boxes = list(efax.apps[mailbox.app_id].users.values())
    window = query.parse_window(values)
    entries = [] if how == "empty" else _notices(efax, boxes, window)
    for name, given in (("sent_status", "sent_status"), ("fax_direction", "fax_direction")):
        if name in values:
            entries = [one for one in entries if one[given].lower() == values[name]]
    if how == "paged":
        entries = entries[paging.offset : paging.offset + (paging.limit or _NOTICE_PAGE)]
    return json_reply(efax.switches, entries)


def _notices(efax: Mailroom, boxes: list[Mailbox], window: query.Window) -> list[dict[str, Any]]:
    now = efax.now()
    faxes = [fax for box in boxes for fax in (*box.faxes, *box.sent)]
    told = [
        fax
        for fax in faxes
        if fax.visible_at <= now
        and (not isinstance(fax, SentFax) or fax.status(now) in FINAL)
        and (window.start is None or fax.completed >= window.start)
        and (window.end is None or fax.completed <= window.end)
    ]
    told.sort(key=lambda fax: (fax.completed, fax.number), reverse=True)
    return [_notice(efax, fax) for fax in told]


def _notice(efax: Mailroom, fax: Fax) -> dict[str, Any]:
    is_sent = isinstance(fax, SentFax)
    return {
        "app_id": fax.app_id,
        "user_id": fax.user_id,
        "fax_id": fax.fax_id,
        "notify_id": str(fax.number),
        "fax_direction": "OUTBOUND" if is_sent else "INBOUND",
        "fax_completed_timestamp": replies.timestamp(efax.switches, fax.completed),
        "notify_type": "WEBHOOK",
        "notify_destination": "https://elsewhere.invalid/efax",
        "sent_status": "success",
    }
