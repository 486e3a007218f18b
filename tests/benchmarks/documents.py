"""Documents of a given size, valid in every byte that poller checks."""

import base64
import random
import zlib
from pathlib import Path

_PAGE = zlib.compress(b"0 0 m 612 792 l S")


def pdf(size: int) -> bytes:
    """Return a whole PDF of one page, padded to `size` bytes by a stream to which nothing refers."""
    empty = _assembled(0)
    return _assembled(size - len(_assembled(size - len(empty))) + size - len(empty))


def _assembled(padding: int) -> bytes:
    filling = random.Random(1).randbytes(padding)
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 4 0 R>>",
        b"<</Length %d/Filter/FlateDecode>>stream\n%s\nendstream" % (len(_PAGE), _PAGE),
        b"<</Length %d>>stream\n%s\nendstream" % (padding, filling),
    ]
    out, offsets = bytearray(b"%PDF-1.7\n"), list[int]()
    for number, content in enumerate(objects, start=1):
        offsets.append(len(out))
        out += b"%d 0 obj" % number + content + b"endobj\n"
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += b"trailer<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start)
    return bytes(out)


def write_encoded(path: Path, size: int) -> int:
    """Write a PDF of that size as base64, as in an image answer; return its size in bytes."""
    document = pdf(size)
    path.write_bytes(base64.b64encode(document))
    return len(document)
