"""A page of ours, as a PDF, which a self-test or canary sends."""

from collections.abc import Sequence
from typing import Final

_LETTER: Final = b"[0 0 612 792]"
_LINE: Final = 28


def page(code: str, lines: Sequence[str]) -> bytes:
    """Draw one page with the code in large letters, lines below it, and a bar at both ends."""
    shown = [f"BT /F 54 Tf 72 600 Td ({_escaped(code)}) Tj ET"]
    shown += [
        f"BT /F 18 Tf 72 {540 - _LINE * place} Td ({_escaped(line)}) Tj ET"
        for place, line in enumerate(lines)
    ]
    shown += ["72 690 468 18 re f", "72 84 468 18 re f"]
    content = "\n".join(shown).encode("ascii", "replace")
    return _document(
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox " + _LETTER + b" /Contents 4 0 R "
        b"/Resources << /Font << /F 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%b\nendstream" % (len(content), content),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    )


def _document(*objects: bytes) -> bytes:
    made = bytearray(b"%PDF-1.4\n")
    places = []
    for number, content in enumerate(objects, 1):
        places.append(len(made))
        made += b"%d 0 obj\n%b\nendobj\n" % (number, content)
    table = len(made)
    made += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    made += b"".join(b"%010d 00000 n \n" % place for place in places)
    made += b"trailer\n<< /Size %d /Root 1 0 R >>\n" % (len(objects) + 1)
    made += b"startxref\n%d\n%%%%EOF\n" % table
    return bytes(made)


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
