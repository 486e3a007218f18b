"""Take secrets out of bytes of any kind, and leave all else in them, patients' data too."""

from collections.abc import Iterable, Iterator, Sequence

_PLACE = b"[secret]"
_TELLING = 8  # so many characters of a secret that is cut off are taken out as well


def without(chunks: Iterable[bytes], spellings: Iterable[str]) -> Iterator[bytes]:
    """Yield the bytes without these spellings, wherever the chunks are cut."""
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
    """Also as UTF-16, without the last byte, which is not the text's in the big-endian form."""
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
    """The limit on what is kept may go through a secret."""
    for secret in secrets:
        for length in range(min(len(secret), len(data)), _TELLING - 1, -1):
            if data.endswith(secret[:length]):
                return data[:-length] + _PLACE
    return data
