"""Faxes to send: what goes out, what eFax accepts, and when the result is unknown.

Source: the vendor's guide (fields, 25 documents, 100 MB with base64). The guide spells retry keys
in two ways, so we send none.
"""

import base64
import json
import re
from dataclasses import dataclass, field
from typing import Literal

from poller.efax.requests import Call
from poller.efax.responses import usable_fax_id
from poller.efax.strict_json import strict_value
from poller.errors import ApiError, BadAnswer, Rejected, Unreachable

MOST_DOCUMENTS = 25
LARGEST_BYTES = 100_000_000

_NUMBER = re.compile(r"[-+() .0-9]{1,40}")
_CSID = re.compile(r"[ -~]{1,20}")


@dataclass(frozen=True)
class OutgoingDocument:
    kind: Literal["PDF", "TIFF"]
    content: bytes = field(repr=False)


@dataclass(frozen=True)
class OutgoingFax:
    """One fax to one number; without a `reference`, client_reference_id is the transaction id."""

    transaction_id: str
    destination: str = field(repr=False)
    documents: tuple[OutgoingDocument, ...]
    csid: str | None = None
    reference: str | None = None


@dataclass(frozen=True)
class AcceptedFax:
    """A fax that eFax accepted; `destination` as it spells the number, perhaps without the leading 1."""

    fax_id: str
    destination: str | None = field(repr=False)


def send_body(fax: OutgoingFax) -> bytes:
    """Write the body of a send call; raises Rejected if eFax would not accept it."""
    if not 1 <= len(fax.documents) <= MOST_DOCUMENTS:
        raise Rejected(f"Not sent: a fax has 1 to {MOST_DOCUMENTS} documents.")
    if fax.csid is not None and not _CSID.fullmatch(fax.csid):
        raise Rejected("Not sent: a CSID is 1 to 20 printable ASCII characters.")
    if 4 * sum(-(-len(one.content) // 3) for one in fax.documents) > LARGEST_BYTES:
        raise Rejected("Not sent: the documents exceed the 100 MB (base64) that a fax may have.")
    documents = b",".join(
        b'{"document_type":"%b","document_content":"%b"}'
        % (one.kind.encode(), base64.b64encode(one.content))
        for one in fax.documents
    )
    options: dict[str, object] = {"include_cover_page": False}
    if fax.csid is not None:
        options["custom_CSID"] = fax.csid
    others = {
        "destinations": [{"fax_number": fax.destination}],
        "fax_options": options,
        "client_data": {"client_reference_id": fax.reference or fax.transaction_id},
    }
    # Not json.dumps: it would copy 100 MB of base64 character by character.
    return json.dumps(others).encode()[:-1] + b',"documents":[' + documents + b"]}"


def parse_accepted(body: bytes) -> tuple[AcceptedFax, ...]:
    """Read the answer to a send call, an array with one entry per number; raises BadAnswer."""
    value = strict_value(body, "send")
    entries = value if isinstance(value, list) else [value]
    found = []
    for entry in entries:
        fax_id = usable_fax_id(entry.get("fax_id")) if isinstance(entry, dict) else None
        if fax_id is not None:
            found.append(AcceptedFax(fax_id, _number(entry.get("destination_fax_number"))))
    if not found:
        raise BadAnswer("The send answer names no fax.")
    return tuple(found)


def _number(value: object) -> str | None:
    return value if isinstance(value, str) and _NUMBER.fullmatch(value) else None


def leaves_in_doubt(call: Call, error: ApiError) -> bool:
    """Tell whether a call that failed like this may have sent a fax.

    It certainly has not if there was no connection, or if eFax refused it with a 4xx.
    """
    if call is not Call.SEND:
        return False
    return isinstance(error, BadAnswer) or (isinstance(error, Unreachable) and error.was_sent)
