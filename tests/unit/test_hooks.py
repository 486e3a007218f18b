"""How poller reads a notice of the web-hook."""

import hashlib
import hmac
import json
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poller.config.model import User
from poller.hooks import KnownNames, is_signed, names_of, read

DESK = "0F8A3C1E-1111-4222-8333-444455556666"
BODY = b'{"fax_id": "1"}'
GOOD = hmac.new(b"secret", BODY, hashlib.sha256).hexdigest()


def user(user_id: str, number: str | None = None) -> User:
    return User("main", user_id[:4], "app", user_id, number=number)


NAMES = names_of([user(DESK, "13235551212"), user("billing 7", "+493012345678"), user("u-3")])


@pytest.mark.parametrize(
    ("signature", "is_good"),
    [
        pytest.param(GOOD, True, id="hex"),
        pytest.param(GOOD.upper(), True, id="upper case"),
        pytest.param(f"sha256={GOOD}", True, id="with the prefix"),
        pytest.param(f" SHA256={GOOD.upper()} ", True, id="blanks around"),
        pytest.param("", False, id="empty"),
        pytest.param("sha256=", False, id="prefix alone"),
        pytest.param(GOOD[:-1], False, id="too short"),
        pytest.param(GOOD[:-1] + ("0" if GOOD[-1] != "0" else "1"), False, id="one digit"),
        pytest.param(f"sha1={GOOD}", False, id="another hash"),
        pytest.param(GOOD[:-1] + "ü", False, id="not ascii"),
    ],
)
def test_a_signature_is_the_hmac_of_the_body(signature: str, is_good: bool) -> None:
    assert is_signed(BODY, "secret", signature) is is_good


def test_a_signature_of_another_body_or_secret_is_wrong() -> None:
    assert not is_signed(BODY + b" ", "secret", GOOD)
    assert not is_signed(BODY, "other", GOOD)


@pytest.mark.parametrize(
    ("notice", "named"),
    [
        pytest.param({"user_id": DESK}, {DESK}, id="user id"),
        pytest.param({"userId": DESK.lower()}, {DESK}, id="the same UUID in lower case"),
        pytest.param({"a": [{"b": {"c": ["billing 7"]}}]}, {"billing 7"}, id="deep, with a blank"),
        pytest.param({DESK: {"count": 1}}, {DESK}, id="as a key"),
        pytest.param([DESK, "u-3"], {DESK, "u-3"}, id="two"),
        pytest.param({"link": f"https://x.example/u/{DESK}/f?u=1"}, {DESK}, id="in an address"),
        pytest.param({"to": "13235551212"}, {DESK}, id="number"),
        pytest.param({"to": "3235551212"}, {DESK}, id="without the leading 1"),
        pytest.param({"to": 13235551212}, {DESK}, id="number as a number"),
        pytest.param({"to": "+1 (323) 555-1212"}, {DESK}, id="number as people write it"),
        pytest.param({"to": "13235550000 13235551212"}, {DESK}, id="two numbers in a text"),
        pytest.param({"to": "004930 12345678"}, {"billing 7"}, id="with 00 for +"),
        pytest.param({"to": "493012345678"}, {"billing 7"}, id="without +"),
        pytest.param({"to": "13235551213", "n": 5, "b": True}, set(), id="a stranger's number"),
        pytest.param({"user_id": "u-33", "x": None}, set(), id="a stranger's id"),
        pytest.param("u-3", {"u-3"}, id="a text alone"),
        pytest.param({}, set(), id="nothing"),
    ],
)
def test_users_are_found_wherever_they_stand(notice: Any, named: set[str]) -> None:
    assert read(json.dumps(notice).encode(), NAMES).user_ids == named


def test_a_key_that_comes_twice_names_two_users() -> None:
    body = f'{{"user_id": "u-3", "user_id": "{DESK}"}}'.encode()
    assert read(body, NAMES).user_ids == {"u-3", DESK}


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(urlencode({"id": "billing 7", "n": "1"}).encode(), id="form"),
        pytest.param(
            urlencode({"payload": '{"to": "+493012345678"}'}).encode(), id="JSON in a form"
        ),
        pytest.param(b"<fax><to>+493012345678</to></fax>", id="XML"),
        pytest.param(b"\xff\xfe 493012345678", id="no UTF-8"),
        pytest.param(b"[" * 50_000 + b"493012345678", id="nested too deeply"),
        pytest.param(b"billing 7", id="text"),
    ],
)
def test_a_body_that_is_not_json_is_searched_as_text(body: bytes) -> None:
    assert read(body, NAMES).user_ids == {"billing 7"}


def test_words_that_may_be_fax_ids_are_given_in_their_order_and_once() -> None:
    found = read(b'{"fax_id": "A-1", "again": "A-1", "url": "/faxes/b.2/image"}', NAMES)
    assert [word for word in found.words if word[-1].isdigit()] == ["A-1", "b.2"]


@pytest.mark.parametrize(
    ("notice", "of_sent"),
    [
        ({"fax_direction": "OUTBOUND"}, True),
        ({"direction": "sent"}, True),
        ({"fax_direction": "INBOUND"}, False),
    ],
)
def test_a_notice_of_a_sent_fax_says_so(notice: dict[str, str], of_sent: bool) -> None:
    assert read(json.dumps(notice).encode(), NAMES).of_sent is of_sent


def test_two_users_may_have_one_number() -> None:
    names = names_of([user("a", "13235551212"), user("b", "3235551212")])
    assert read(b'["13235551212"]', names).user_ids == {"a", "b"}


def test_only_so_much_of_a_notice_is_looked_at() -> None:
    body = json.dumps([*map(str, range(30_000)), "u-3"]).encode()
    found = read(body, NAMES)
    assert found.user_ids == frozenset()
    assert len(found.words) == 200
    assert read(json.dumps(["x" * 2000, "y" * 2000 + " u-3"]).encode(), NAMES).user_ids == {"u-3"}


@given(st.binary(max_size=300))
def test_any_bytes_can_be_read(body: bytes) -> None:
    assert read(body, KnownNames({}, {})).user_ids == frozenset()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=12,
)


@given(VALUES, VALUES)
def test_a_user_id_is_found_in_any_json(before: Any, behind: Any) -> None:
    assert (
        "billing 7" in read(json.dumps([before, [["billing 7"], behind]]).encode(), NAMES).user_ids
    )
