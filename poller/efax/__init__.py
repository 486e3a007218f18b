"""The eFax Enterprise API without I/O: what to send, and what an answer means."""

from poller.efax.image import ImageAnswer, ImageDecoder
from poller.efax.requests import (
    Call,
    Request,
    health_request,
    image_request,
    list_request,
    metadata_request,
    token_request,
)
from poller.efax.responses import (
    BODY_LIMIT,
    EVIDENCE_LIMIT,
    ListedFax,
    Page,
    Token,
    evidence,
    failure,
    listed_pages,
    parse_fields,
    parse_health,
    parse_page,
    parse_token,
    succeeded,
)
from poller.efax.timestamps import format_timestamp, parse_timestamp

__all__ = [
    "BODY_LIMIT",
    "EVIDENCE_LIMIT",
    "Call",
    "ImageAnswer",
    "ImageDecoder",
    "ListedFax",
    "Page",
    "Request",
    "Token",
    "evidence",
    "failure",
    "format_timestamp",
    "health_request",
    "image_request",
    "list_request",
    "listed_pages",
    "metadata_request",
    "parse_fields",
    "parse_health",
    "parse_page",
    "parse_timestamp",
    "parse_token",
    "succeeded",
    "token_request",
]
