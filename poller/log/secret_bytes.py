"""Remove secrets from any bytes, and keep everything else, including patients' data."""

from collections.abc import Iterable, Iterator, Sequence

_PLACE = b"[secret]"
_TELLING = 8  # remove also a cut-off secret of at least this many characters


def without(chunks: Iterable[bytes], spellings: Iterable[str]) -> Iterator[bytes]:
    """Yield the bytes without these spellings, also where one spans two chunks."""
    secrets = _as_bytes(spellings)
    overlap = max(map(len, secrets), default=1) - 1
    held = b""
    for chunk in chunks:
        held = _replaced(held + chunk, secrets)
        cut = max(0, len(held) - overlap)
        yield held[:cut]
        held = held[cut:]
    yield _without_cut_off(held, secrets)


def _as_bytes(spellings: Iterable[str]) -> list[bytes]:
    """Return the spellings in UTF-8 and UTF-16; without the last byte, which differs in big-endian."""
    known = set()
    for spelling in spellings:
        known.add(spelling.encode("utf-8", "surrogatepass"))
        known.add(spelling.encode("utf-16-le", "surrogatepass")[:-1])
    return sorted(known, key=len, reverse=True)


def _replaced(data: bytes, secrets: Sequence[bytes]) -> bytes:
    for secret in secrets:
        if secret in data:
            data = data.replace(secret, _PLACE)
    return data


def _without_cut_off(data: bytes, secrets: Sequence[bytes]) -> bytes:
    """Remove a secret's start at the end of the data: the size limit may cut a secret."""
    for secret in secrets:
        if len(secret) < _TELLING:
            continue
        start, at = secret[:_TELLING], max(0, len(data) - len(secret)) - 1
        while (at := data.find(start, at + 1)) >= 0:
            if secret.startswith(data[at:]):
                return data[:at] + _PLACE
    return data
