"""Fax documents as fax machines send them: black and white, 1728 pixels wide, CCITT Group 4.

The only module of the simulator that needs the packages of the extra.
"""

import hashlib
import io
import re
import textwrap
from datetime import datetime
from functools import lru_cache

import img2pdf
import pikepdf
from PIL import Image, ImageDraw, ImageFont

from .state import Fax, Format

WIDTH, HEIGHT = 1728, 2200
FINE_DPI = (204, 196)
MARK_LENGTH = 64
# Both formats contain this text. Replacing it by another of the same length makes a whole document
# with different bytes, without drawing or packing again.
_PLACEHOLDER = "x" * MARK_LENGTH
_MARGIN = 110
_RIGHT = WIDTH - _MARGIN
_IMAGE_DESCRIPTION, _ROWS_PER_STRIP = 270, 278
_BLACK, _WHITE = 0, 1
_font = lru_cache(maxsize=8)(ImageFont.load_default)
# The parts of a PDF that img2pdf changes every second.
_ID_LENGTH = 32
_FILE_ID = re.compile(rb"(/ID \[<)[0-9a-f]{32}(><)[0-9a-f]{32}(>\])")

_PARAGRAPHS = (
    "Thank you for your order. We confirm the items below and will ship them with our next regular "
    "delivery. Please compare the list with your own records and let us know by return fax if "
    "anything is missing or was entered twice.",
    "This page was drawn by the simulator of poller. It holds the data of no real person or "
    "company, so you may print it, show it and throw it away. What matters is that every page "
    "that was sent arrives on disk: complete, and exactly once.",
    "If a page cannot be read, ask the sender to send it again in fine resolution. Keep the fax id "
    "in the line at the top of each page at hand; it is the same in the list, in the file name and "
    "in the file next to the document.",
)
_TABLE = (
    ("No.", "Item", "Quantity"),
    ("4401", "Examination gloves, size M", "12"),
    ("4417", "Paper rolls, 50 cm x 50 m", "6"),
    ("5120", "Envelopes C4, window left", "500"),
    ("7002", "Toner cartridge, black", "2"),
)
_SIGNATURE = ((220, 150, 90), (290, 130, 60), (335, 155, 150), (450, 140, 70), (500, 160, 190))


def document(fax: Fax, fmt: Format, variant: int = 0) -> bytes:
    """Return the bytes of a fax's document; a variant above 0 is the same fax, made again."""
    if not fax.documents and fax.distinct:
        fax.documents = documents(fax)
    plain = fax.documents[fmt] if fmt in fax.documents else template(fax.pages)[fmt]
    identity = "\0".join((fax.app_id, fax.user_id, fax.fax_id, str(variant)))
    return stamp(plain, hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest())


def stamp(document: bytes, mark: str) -> bytes:
    """Make the bytes of a document unique with a mark of 64 characters; it stays whole."""
    if len(mark) != MARK_LENGTH:
        raise ValueError(f"a mark must have {MARK_LENGTH} characters")
    return document.replace(_PLACEHOLDER.encode(), mark.encode())


@lru_cache(maxsize=64)
def template(pages: int) -> dict[Format, bytes]:
    """Return documents of that many pages whose drawn header names no particular fax."""
    drawn = datetime(2024, 5, 21, 4, 27)  # noqa: DTZ001 (only drawn)
    fax = Fax("", "", "template", drawn, drawn, number=0, pages=pages)
    fax.originating, fax.destination = "13235550000", "18005550000"
    return documents(fax)


def documents(fax: Fax) -> dict[Format, bytes]:
    tiff = encode_tiff(render(fax))
    return {"tiff": tiff, "pdf": encode_pdf(tiff)}


def render(fax: Fax) -> list[Image.Image]:
    """Draw all pages, mode "1", 1728 x 2200 pixels, 204 x 196 dpi."""
    return [_page(fax, number) for number in range(1, fax.pages + 1)]


def encode_tiff(pages: list[Image.Image]) -> bytes:
    """Pack pages as a multi-page TIFF, Group 4, one strip per page."""
    # With one strip per page img2pdf copies the Group 4 data unchanged.
    tags = {_IMAGE_DESCRIPTION: _PLACEHOLDER, _ROWS_PER_STRIP: HEIGHT}
    out = io.BytesIO()
    how = {"compression": "group4", "dpi": FINE_DPI, "tiffinfo": tags}
    pages[0].save(out, "TIFF", save_all=True, append_images=pages[1:], **how)
    return out.getvalue()


def encode_pdf(tiff: bytes) -> bytes:
    """Wrap the Group 4 data of a TIFF as a PDF; the same input gives the same bytes."""
    pdf: bytes = img2pdf.convert(tiff, nodate=True, subject=_PLACEHOLDER)
    own = hashlib.sha256(tiff).hexdigest()[:_ID_LENGTH].encode()
    return _FILE_ID.sub(lambda found: found[1] + own + found[2] + own + found[3], pdf)


def as_received(contents: list[bytes]) -> tuple[int, dict[Format, bytes]]:
    """Return the number of pages and the documents that arrive if these are sent as one fax.

    Raises ValueError if one of them is neither a PDF nor a TIFF, or is broken.
    """
    if len(contents) == 1 and contents[0][:2] in (b"II", b"MM"):
        tiff = contents[0]
        return _pages_of_tiff(tiff), {"tiff": tiff, "pdf": encode_pdf(tiff)}
    pdfs = [encode_pdf(one) if one[:2] in (b"II", b"MM") else one for one in contents]
    try:
        with pikepdf.new() as joined:
            for one in pdfs:
                with pikepdf.open(io.BytesIO(one)) as part:
                    joined.pages.extend(part.pages)
            pages = len(joined.pages)
            out = io.BytesIO()
            joined.save(out)
    except pikepdf.PdfError as error:
        raise ValueError("a document is not a PDF") from error
    pdf = pdfs[0] if len(pdfs) == 1 else out.getvalue()
    return pages, {"tiff": pdf, "pdf": pdf}


def _pages_of_tiff(tiff: bytes) -> int:
    with Image.open(io.BytesIO(tiff)) as opened:
        return int(getattr(opened, "n_frames", 1))


def _page(fax: Fax, number: int) -> Image.Image:
    page = (_first_sheet() if number == 1 else _later_sheet(number % 3)).copy()
    draw = ImageDraw.Draw(page)
    sender, recipient, fax_id = map(_printable, (fax.originating, fax.destination, fax.fax_id))
    # The line that the sending machine prints at the top of each page.
    line = f"{fax.completed:%Y-%m-%d %H:%M}   FROM {sender[:24]}   TO {recipient[:24]}"
    _text(draw, 40, 24, line, 32)
    _text(draw, WIDTH - 40, 24, f"P.{number:03}/{fax.pages:03}", 32, "ra")
    _text(draw, 40, 64, f"FAX ID {fax_id}", 32)
    draw.line((0, 112, WIDTH, 112), fill=_BLACK, width=2)
    _text(draw, _RIGHT, HEIGHT - 90, f"page {number} of {fax.pages}", 36, "ra")
    if number > 1:
        return page
    fields = {
        "To:": recipient[:48],
        "From:": sender[:48],
        "Date:": f"{fax.completed:%d %B %Y, %H:%M}",
        "Pages:": f"{fax.pages}, including this one",
        "Fax id:": fax_id[:48],
    }
    for top, (name, value) in zip(range(420, 750, 62), fields.items(), strict=False):
        _text(draw, _MARGIN, top, name)
        _text(draw, _MARGIN + 220, top, value)
    return page


def _printable(text: str) -> str:
    """Return the part of a text that the font can draw and that fits on the line."""
    return "".join(one if " " <= one <= "~" else "?" for one in text[:80])


@lru_cache(maxsize=1)
def _first_sheet() -> Image.Image:
    page, draw = _blank()
    _text(draw, _MARGIN, 190, "FAX", 170)
    _text(draw, _RIGHT, 200, "Northside Medical Supplies", 52, "ra")
    _text(draw, _RIGHT, 270, "Order confirmation", anchor="ra")
    for top in (395, 750):
        draw.line((_MARGIN, top, _RIGHT, top), fill=_BLACK, width=6)
    _draw_paragraph(draw, 810, _PARAGRAPHS[0])
    _draw_table(draw, 1130)
    below = _draw_paragraph(draw, 1540, _PARAGRAPHS[1])
    _text(draw, _MARGIN, below + 60, "Kind regards,")
    for left, top, width in _SIGNATURE:
        stroke = (left, below + top, left + width, below + top + 70)
        draw.arc(stroke, 150, 400, fill=_BLACK, width=5)
    return page


@lru_cache(maxsize=3)
def _later_sheet(variant: int) -> Image.Image:
    page, draw = _blank()
    _text(draw, _MARGIN, 190, "Continued", 72)
    top = 330
    for step in range(4):
        top = _draw_paragraph(draw, top, _PARAGRAPHS[(variant + step) % len(_PARAGRAPHS)]) + 50
    _draw_table(draw, top)
    return page


def _blank() -> tuple[Image.Image, ImageDraw.ImageDraw]:
    page = Image.new("1", (WIDTH, HEIGHT), _WHITE)
    return page, ImageDraw.Draw(page)


def _draw_paragraph(draw: ImageDraw.ImageDraw, top: int, text: str) -> int:
    """Draw wrapped text; return where the next line starts."""
    for line in textwrap.wrap(text, 70):
        _text(draw, _MARGIN, top, line)
        top += 62
    return top


def _draw_table(draw: ImageDraw.ImageDraw, top: int) -> None:
    columns = (_MARGIN, 360, 1380, _RIGHT)
    bottom = top + 66 * len(_TABLE)
    for column in columns:
        draw.line((column, top, column, bottom), fill=_BLACK, width=3)
    for y in range(top, bottom + 1, 66):
        draw.line((_MARGIN, y, _RIGHT, y), fill=_BLACK, width=3)
    for row, cells in enumerate(_TABLE):
        for column, cell in zip(columns, cells, strict=False):
            _text(draw, column + 18, top + 66 * row + 8, cell, 40)


def _text(  # six parameters: where, what and how to draw
    draw: ImageDraw.ImageDraw, x: int, y: int, text: str, size: int = 42, anchor: str = "la"
) -> None:
    draw.text((x, y), text, font=_font(size), fill=_BLACK, anchor=anchor)
