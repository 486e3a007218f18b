"""A sealed token: only the key and the account that sealed it open it."""

from base64 import b64decode, b64encode
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poller.sealing import NONCE_BYTES, SealedToken, hkdf, seal, unseal

NONCE = bytes(range(NONCE_BYTES))
TOKENS = st.text(st.characters(codec="ascii"), min_size=1, max_size=200)
BORN = datetime(2024, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def sealed(text: str, api_key: str = "key", app_id: str = "app", nonce: bytes = NONCE) -> str:
    return seal(text, api_key=api_key, app_id=app_id, nonce=nonce)


def opened(text: str, api_key: str = "key", app_id: str = "app") -> str | None:
    return unseal(text, api_key=api_key, app_id=app_id)


# RFC 5869, appendix A, the three with SHA-256: secret, salt, info, result
VECTORS = {
    "basic": (
        "0b" * 22,
        "000102030405060708090a0b0c",
        "f0f1f2f3f4f5f6f7f8f9",
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
    ),
    "longer inputs": (
        bytes(range(0x50)).hex(),
        bytes(range(0x60, 0xB0)).hex(),
        bytes(range(0xB0, 0x100)).hex(),
        "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c6"
        "5e590e09da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87",
    ),
    "no salt": (
        "0b" * 22,
        "",
        "",
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
    ),
}


@pytest.mark.parametrize("case", VECTORS)
def test_keys_are_derived_as_rfc_5869_says(case: str) -> None:
    secret, salt, info, result = map(bytes.fromhex, VECTORS[case])
    assert hkdf(secret, salt=salt, info=info, length=len(result)) == result


@given(TOKENS, st.text(min_size=1), st.text(min_size=1), st.binary(min_size=16, max_size=16))
def test_what_was_sealed_opens(text: str, api_key: str, app_id: str, nonce: bytes) -> None:
    hidden = sealed(text, api_key, app_id, nonce)
    assert opened(hidden, api_key, app_id) == text
    assert opened(hidden, api_key + "x", app_id) is None
    assert opened(hidden, api_key, app_id + "x") is None


@given(TOKENS, st.data())
def test_a_change_of_any_bit_is_noticed(text: str, data: st.DataObject) -> None:
    raw = bytearray(b64decode(sealed(text)))
    place = data.draw(st.integers(0, 8 * len(raw) - 1))
    raw[place // 8] ^= 1 << place % 8
    assert opened(b64encode(raw).decode()) is None


@given(st.text() | st.binary().map(lambda raw: b64encode(raw).decode()))
def test_what_was_never_sealed_does_not_open(text: str) -> None:
    assert opened(text) is None


def test_a_seal_that_was_cut_short_does_not_open() -> None:
    whole = b64decode(sealed("token"))
    for length in range(len(whole)):
        assert opened(b64encode(whole[:length]).decode()) is None


def test_the_same_token_never_looks_the_same() -> None:
    one, other = (b64decode(sealed("t" * 100, nonce=bytes([first]) * 16)) for first in (1, 2))
    assert all(one[at : at + 8] not in other for at in range(len(one) - 8))
    assert b"tttt" not in one


@pytest.mark.parametrize(
    ("later", "left"),
    [
        (timedelta(0), DAY),
        (timedelta(hours=23), timedelta(hours=1)),
        (DAY, timedelta(0)),
        (timedelta(days=400), timedelta(days=-399)),
        (timedelta(days=-400), DAY),
    ],
    ids=["at once", "an hour left", "at its end", "clock set forward", "clock set back"],
)
def test_a_token_lives_until_its_end_and_never_longer_than_its_life(
    later: timedelta, left: timedelta
) -> None:
    kept = SealedToken("…", BORN, BORN + DAY)
    assert kept.left_s(BORN + later) == left.total_seconds()
    assert "…" not in repr(kept)
