"""Seal a token under its API key, so that a copy of the ledger shows no token.

Encrypt-then-MAC from HMAC-SHA256 alone, as the standard library has no AES-GCM and the base install
must not grow for one short text per account: HKDF (RFC 5869) gives two keys, HMAC in counter mode the
key stream, and another HMAC the proof that nobody changed anything.
"""

import binascii
import hmac
from base64 import b64decode, b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

NONCE_BYTES: Final = 16
_DIGEST: Final = "sha256"
_BLOCK: Final = 32
_PURPOSE: Final = b"poller token 1"  # another format needs another number


@dataclass(frozen=True)
class SealedToken:
    """A token as the ledger keeps it; the times are those of the clock of its sign-in."""

    sealed: str = field(repr=False)
    obtained_at: datetime
    ends_at: datetime

    @property
    def life_s(self) -> float:
        return (self.ends_at - self.obtained_at).total_seconds()

    def left_s(self, now: datetime) -> float:
        """Return the seconds until its end, but at most its life: the clock may have been set back."""
        return min((self.ends_at - now).total_seconds(), self.life_s)


def seal(text: str, *, api_key: str, app_id: str, nonce: bytes) -> str:
    """Seal a text of an account; never use a nonce (16 random bytes) twice."""
    encrypting, proving = _keys(api_key, app_id)
    hidden = nonce + _xor(text.encode(), encrypting, nonce)
    return b64encode(hidden + _proof(proving, app_id, hidden)).decode()


def unseal(sealed: str, *, api_key: str, app_id: str) -> str | None:
    """Return the text; None if another key or account sealed it, or if it was changed."""
    try:
        found = b64decode(sealed, validate=True)
    except (binascii.Error, ValueError):
        return None
    encrypting, proving = _keys(api_key, app_id)
    hidden, proof = found[:-_BLOCK], found[-_BLOCK:]
    if not hmac.compare_digest(proof, _proof(proving, app_id, hidden)):
        return None
    nonce, ciphertext = hidden[:NONCE_BYTES], hidden[NONCE_BYTES:]
    return _xor(ciphertext, encrypting, nonce).decode()


def hkdf(secret: bytes, *, salt: bytes, info: bytes, length: int) -> bytes:
    """Derive a key (HKDF with SHA-256, RFC 5869)."""
    extracted = hmac.digest(salt, secret, _DIGEST)
    derived = block = b""
    for number in range(1, -(-length // _BLOCK) + 1):
        block = hmac.digest(extracted, block + info + bytes([number]), _DIGEST)
        derived += block
    return derived[:length]


def _keys(api_key: str, app_id: str) -> tuple[bytes, bytes]:
    both = hkdf(api_key.encode(), salt=app_id.encode(), info=_PURPOSE, length=2 * _BLOCK)
    return both[:_BLOCK], both[_BLOCK:]


def _xor(data: bytes, key: bytes, nonce: bytes) -> bytes:
    return bytes(one ^ other for one, other in zip(data, _stream(key, nonce), strict=False))


def _stream(key: bytes, nonce: bytes) -> Iterator[int]:
    number = 0
    while True:
        yield from hmac.digest(key, nonce + number.to_bytes(8), _DIGEST)
        number += 1


def _proof(key: bytes, app_id: str, hidden: bytes) -> bytes:
    about = app_id.encode()
    return hmac.digest(key, len(about).to_bytes(8) + about + hidden, _DIGEST)
