"""A fax to send: its body, the answer, and when nobody knows whether it went out."""

import base64
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poller import errors
from poller.efax import outgoing, requests
from poller.efax.outgoing import AcceptedFax, OutgoingDocument, OutgoingFax
from poller.efax.requests import Call

PDF = OutgoingDocument("PDF", b"%PDF-1.7 secret")
FAX = OutgoingFax("our-id", "13235551212", (PDF,))


def body_of(fax: OutgoingFax) -> Any:
    return json.loads(outgoing.send_body(fax))


def test_a_fax_goes_to_one_number_without_a_cover_page_and_without_retry_keys() -> None:
    assert body_of(FAX) == {
        "destinations": [{"fax_number": "13235551212"}],
        "fax_options": {"include_cover_page": False},
        "client_data": {"client_reference_id": "our-id"},
        "documents": [
            {
                "document_type": "PDF",
                "document_content": base64.b64encode(b"%PDF-1.7 secret").decode(),
            }
        ],
    }


def test_a_fax_may_have_a_csid_a_reference_and_more_documents() -> None:
    both = (PDF, OutgoingDocument("TIFF", b"II*\0"))
    body = body_of(replace(FAX, csid="POLLER 0123456789 ~!", reference='a "b"', documents=both))
    assert body["fax_options"]["custom_CSID"] == "POLLER 0123456789 ~!"
    assert body["client_data"] == {"client_reference_id": 'a "b"'}
    assert [one["document_type"] for one in body["documents"]] == ["PDF", "TIFF"]


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=25))
def test_every_document_comes_out_as_it_went_in(contents: list[bytes]) -> None:
    documents = tuple(OutgoingDocument("PDF", one) for one in contents)
    given = body_of(replace(FAX, documents=documents))["documents"]
    assert [base64.b64decode(one["document_content"]) for one in given] == contents


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        pytest.param({"documents": ()}, "1 to 25 documents", id="no document"),
        pytest.param({"documents": (PDF,) * 26}, "1 to 25 documents", id="too many documents"),
        pytest.param({"csid": "x" * 21}, "CSID", id="long CSID"),
        pytest.param({"csid": "é"}, "CSID", id="not ASCII"),
        pytest.param({"csid": "a\n"}, "CSID", id="line break"),
        pytest.param({"csid": ""}, "CSID", id="empty CSID"),
    ],
)
def test_what_efax_would_not_take_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(errors.Rejected, match=sentence) as refused:
        outgoing.send_body(replace(FAX, **changes))
    assert str(refused.value).startswith("Not sent: ")


def test_the_size_that_counts_is_that_of_all_documents_with_base64(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outgoing, "LARGEST_BYTES", 16)
    fits = (OutgoingDocument("PDF", b"123456"), OutgoingDocument("PDF", b"12345"))
    assert body_of(replace(FAX, documents=fits))
    with pytest.raises(errors.Rejected, match="100 MB"):
        outgoing.send_body(replace(FAX, documents=(*fits, OutgoingDocument("PDF", b"1"))))


def test_a_send_call_bears_our_transaction_id() -> None:
    request = requests.send_request("user-1", "tok", "our-id", b"{}")
    assert (request.call, request.method, request.target) == (Call.SEND, "POST", "/faxes")
    assert request.headers == {
        "Accept": "application/json",
        "Authorization": "Bearer tok",
        "Content-Type": "application/json",
        "transaction-id": "our-id",
        "user-id": "user-1",
    }
    assert request.body == b"{}"


@pytest.mark.parametrize(
    ("body", "accepted"),
    [
        pytest.param(
            b'[{"fax_id": "a", "destination_fax_number": "3235551212"}]',
            (AcceptedFax("a", "3235551212"),),
            id="array",
        ),
        pytest.param(b'{"fax_id": 7}', (AcceptedFax("7", None),), id="lone object"),
        pytest.param(
            b'[null, {}, {"fax_id": "a"}, {"fax_id": "b", "destination_fax_number": 1},'
            b' {"fax_id": "c", "destination_fax_number": "\\ud800"}]',
            (AcceptedFax("a", None), AcceptedFax("b", None), AcceptedFax("c", None)),
            id="with what is none",
        ),
    ],
)
def test_what_was_accepted_is_read(body: bytes, accepted: tuple[AcceptedFax, ...]) -> None:
    assert outgoing.parse_accepted(body) == accepted


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b'"a"', b'[{"fax_id": ""}]'])
def test_an_answer_without_a_fax_is_a_bad_one(body: bytes) -> None:
    with pytest.raises(errors.BadAnswer):
        outgoing.parse_accepted(body)


def never_connected() -> errors.Unreachable:
    error = errors.Unreachable("refused")
    error.was_sent = False
    return error


@pytest.mark.parametrize(
    ("error", "in_doubt"),
    [
        pytest.param(errors.Unreachable("reset"), True, id="reset, time-out or 5xx"),
        pytest.param(errors.DeadlinePassed("late"), True, id="deadline"),
        pytest.param(errors.BadAnswer("html"), True, id="unreadable"),
        pytest.param(never_connected(), False, id="no connection"),
        pytest.param(errors.Rejected("422"), False, id="4xx"),
        pytest.param(errors.RateLimited("429"), False, id="429"),
        pytest.param(errors.TokenRefused("401"), False, id="401"),
    ],
)
def test_only_what_may_have_been_taken_leaves_in_doubt(
    error: errors.ApiError, in_doubt: bool
) -> None:
    assert outgoing.leaves_in_doubt(Call.SEND, error) is in_doubt
    assert not outgoing.leaves_in_doubt(Call.TOKEN, error)


def test_neither_the_number_nor_the_documents_are_shown() -> None:
    shown = repr(FAX) + repr(AcceptedFax("a", "3235551212"))
    assert "323555" not in shown
    assert "secret" not in shown
