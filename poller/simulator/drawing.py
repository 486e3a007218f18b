"""Fax documents as fax machines send them: black and white, 1728 pixels wide, CCITT Group 4."""

import hashlib
import io
import re
import textwrap
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Literal

import img2pdf
from PIL import Image, ImageDraw, ImageFont
from PIL.ImageFont import FreeTypeFont
from PIL.ImageFont import ImageFont as BitmapFont

Format = Literal["pdf", "tiff"]

WIDTH, HEIGHT = 1728, 2200
FINE_DPI = (204, 196)
MARK_LENGTH = 64
# Both formats carry this text; putting another of the same length in its place gives a whole
# document with bytes of its own, without drawing or packing anything again.
_PLACEHOLDER = "x" * MARK_LENGTH
_MARGIN = 110
_IMAGE_DESCRIPTION, _ROWS_PER_STRIP = 270, 278
_BLACK, _WHITE = 0, 1
# What img2pdf draws anew each second.
_ID_LENGTH = 32
_FILE_ID = re.compile(rb"(/ID \[<)[0-9a-f]{32}(><)[0-9a-f]{32}(>\])")

_PARAGRAPHS = (
    "Thank you for your order. We confirm the items below and will ship them with our next regular "
    "delivery. Please compare the list with your own records and let us know by return fax if "
    "anything is missing or was entered twice.",
    "This page was drawn by the simulator of poller. It holds the data of no real person or "
    "company, so it may be printed, shown and thrown away. What matters is that every page which "
    "was sent is found again on disk: none lost, none twice, none half.",
    "If a page cannot be read, ask the sender to send it again in fine resolution. Keep the fax id "
    "in the line at the top of each page at hand; it is the same in the list, in the file name and "
    "in the file that lies beside the document.",
)
_ITEMS = (
    ("4401", "Examination gloves, size M", "12"),
    ("4417", "Paper rolls, 50 cm x 50 m", "6"),
    ("5120", "Envelopes C4, window left", "500"),
    ("7002", "Toner cartridge, black", "2"),
)


@dataclass(frozen=True)
class Letter:
    """What is drawn on the pages of one fax."""

    sender: str
    recipient: str
    fax_id: str
    completed: datetime
    pages: int


def render(letter: Letter) -> list[Image.Image]:
    """Draw all pages, mode "1", 1728 x 2200 pixels, 204 x 196 dpi."""
    return [_page(letter, number) for number in range(1, letter.pages + 1)]


def encode_tiff(pages: list[Image.Image]) -> bytes:
    """Pack pages as a multi-page TIFF, Group 4, one strip a page."""
    # One strip a page is what lets img2pdf take the Group 4 data over as it is.
    tags = {_IMAGE_DESCRIPTION: _PLACEHOLDER, _ROWS_PER_STRIP: HEIGHT}
    out = io.BytesIO()
    pages[0].save(
        out,
        "TIFF",
        compression="group4",
        dpi=FINE_DPI,
        tiffinfo=tags,
        save_all=True,
        append_images=pages[1:],
    )
    return out.getvalue()


def encode_pdf(tiff: bytes) -> bytes:
    """Wrap the Group 4 data of a TIFF as a PDF; the same input gives the same bytes."""
    pdf: bytes = img2pdf.convert(tiff, nodate=True, subject=_PLACEHOLDER)
    own = hashlib.sha256(tiff).hexdigest()[:_ID_LENGTH].encode()
    return _FILE_ID.sub(lambda found: found[1] + own + found[2] + own + found[3], pdf)


def stamp(document: bytes, mark: str) -> bytes:
    """Make the bytes of a document unique by a mark of 64 characters; it stays whole."""
    if len(mark) != MARK_LENGTH:
        raise ValueError(f"a mark has {MARK_LENGTH} characters")
    return document.replace(_PLACEHOLDER.encode(), mark.encode())


@lru_cache(maxsize=64)
def template(pages: int) -> tuple[bytes, bytes]:
    """Give a TIFF and a PDF of that many pages whose drawn header names no fax in particular."""
    letter = Letter("13235550000", "18005550000", "template", datetime(2024, 5, 21, 4, 27), pages)  # noqa: DTZ001 (only drawn)
    return documents(letter)


def documents(letter: Letter) -> tuple[bytes, bytes]:
    """Draw a letter and give it as TIFF and as PDF."""
    tiff = encode_tiff(render(letter))
    return tiff, encode_pdf(tiff)


@lru_cache(maxsize=8)
def _font(size: int) -> FreeTypeFont | BitmapFont:
    return ImageFont.load_default(size)


def _page(letter: Letter, number: int) -> Image.Image:
    page = (_first_sheet() if number == 1 else _later_sheet(number % 3)).copy()
    draw = ImageDraw.Draw(page)
    _draw_header_line(draw, letter, number)
    if number == 1:
        _draw_fields(draw, letter)
    draw.text(
        (WIDTH - _MARGIN, HEIGHT - 90),
        f"page {number} of {letter.pages}",
        font=_font(36),
        fill=_BLACK,
        anchor="ra",
    )
    return page


def _draw_header_line(draw: ImageDraw.ImageDraw, letter: Letter, number: int) -> None:
    """The line that the sending machine prints at the upper edge of each page."""
    sender, recipient = _printable(letter.sender, 24), _printable(letter.recipient, 24)
    left = f"{letter.completed:%Y-%m-%d %H:%M}   FROM {sender}   TO {recipient}"
    right = f"P.{number:03}/{letter.pages:03}"
    draw.text((40, 24), left, font=_font(32), fill=_BLACK)
    draw.text((WIDTH - 40, 24), right, font=_font(32), fill=_BLACK, anchor="ra")
    draw.text((40, 64), f"FAX ID {_printable(letter.fax_id, 80)}", font=_font(32), fill=_BLACK)
    draw.line((0, 112, WIDTH, 112), fill=_BLACK, width=2)


def _printable(text: str, length: int) -> str:
    """Cut text to what the font can draw and the line can hold."""
    return "".join(one if " " <= one <= "~" else "?" for one in text[:length])


def _draw_fields(draw: ImageDraw.ImageDraw, letter: Letter) -> None:
    fields = (
        ("To:", _printable(letter.recipient, 48)),
        ("From:", _printable(letter.sender, 48)),
        ("Date:", f"{letter.completed:%d %B %Y, %H:%M}"),
        ("Pages:", f"{letter.pages}, this one included"),
        ("Fax id:", _printable(letter.fax_id, 48)),
    )
    for row, (name, value) in enumerate(fields):
        top = 420 + row * 62
        draw.text((_MARGIN, top), name, font=_font(42), fill=_BLACK)
        draw.text((_MARGIN + 220, top), value, font=_font(42), fill=_BLACK)


@lru_cache(maxsize=1)
def _first_sheet() -> Image.Image:
    page, draw = _blank()
    draw.text((_MARGIN, 190), "FAX", font=_font(170), fill=_BLACK)
    draw.text(
        (WIDTH - _MARGIN, 200),
        "Northside Medical Supplies",
        font=_font(52),
        fill=_BLACK,
        anchor="ra",
    )
    draw.text(
        (WIDTH - _MARGIN, 270), "Order confirmation", font=_font(42), fill=_BLACK, anchor="ra"
    )
    draw.line((_MARGIN, 395, WIDTH - _MARGIN, 395), fill=_BLACK, width=6)
    draw.line((_MARGIN, 750, WIDTH - _MARGIN, 750), fill=_BLACK, width=6)
    _draw_table(draw, 1130)
    _draw_paragraph(draw, 810, _PARAGRAPHS[0])
    below = _draw_paragraph(draw, 1540, _PARAGRAPHS[1])
    _draw_signature(draw, below + 60)
    return page


@lru_cache(maxsize=3)
def _later_sheet(variant: int) -> Image.Image:
    page, draw = _blank()
    draw.text((_MARGIN, 190), "Continued", font=_font(72), fill=_BLACK)
    top = 330
    for step in range(4):
        top = _draw_paragraph(draw, top, _PARAGRAPHS[(variant + step) % len(_PARAGRAPHS)]) + 50
    _draw_table(draw, top)
    return page


def _blank() -> tuple[Image.Image, ImageDraw.ImageDraw]:
    page = Image.new("1", (WIDTH, HEIGHT), _WHITE)
    return page, ImageDraw.Draw(page)


def _draw_paragraph(draw: ImageDraw.ImageDraw, top: int, text: str) -> int:
    """Draw wrapped text; gives where the next line would begin."""
    for line in textwrap.wrap(text, 70):
        draw.text((_MARGIN, top), line, font=_font(42), fill=_BLACK)
        top += 62
    return top


def _draw_table(draw: ImageDraw.ImageDraw, top: int) -> None:
    columns = (_MARGIN, 360, 1380, WIDTH - _MARGIN)
    rows = (("No.", "Item", "Quantity"), *_ITEMS)
    bottom = top + 66 * len(rows)
    for column in columns:
        draw.line((column, top, column, bottom), fill=_BLACK, width=3)
    for index, cells in enumerate(rows):
        y = top + 66 * index
        draw.line((columns[0], y, columns[-1], y), fill=_BLACK, width=3)
        for column, cell in zip(columns, cells, strict=False):
            draw.text((column + 18, y + 8), cell, font=_font(40), fill=_BLACK)
    draw.line((columns[0], bottom, columns[-1], bottom), fill=_BLACK, width=3)


def _draw_signature(draw: ImageDraw.ImageDraw, top: int) -> None:
    draw.text((_MARGIN, top), "Kind regards,", font=_font(42), fill=_BLACK)
    for x, y, width in (
        (170, 90, 90),
        (240, 70, 60),
        (285, 95, 150),
        (400, 80, 70),
        (450, 100, 190),
    ):
        draw.arc(
            (_MARGIN + x - 60, top + y, _MARGIN + x - 60 + width, top + y + 70),
            150,
            400,
            fill=_BLACK,
            width=5,
        )
