"""Is this PDF or TIFF whole, and how many pages has it."""

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from poller.documents import pdf, tiff
from poller.documents.broken import Broken, exactly
from poller.errors import BadAnswer

DocumentFormat = Literal["pdf", "tiff"]

_SMALL = 1 << 20  # read at once: qpdf takes a file in some hundred very small steps

# Constant sentences: two downloads are broken in the same way when they are equal, so no offsets.
PROBLEMS = {
    "pdf-no-eof": "the PDF does not end with %%EOF",
    "pdf-encrypted": "the PDF is encrypted",
    "pdf-unreadable": "the PDF cannot be read without repairing it",
    "pdf-no-pages": "the PDF has no page",
    "tiff-cut": "the TIFF refers to bytes beyond its end",
    "tiff-loop": "the TIFF's pages run in a loop",
    "tiff-no-pages": "the TIFF has no page",
    "tiff-no-image": "a page of the TIFF has no image data",
    "tiff-bad-tag": "a page of the TIFF is described wrongly",
    "tiff-too-many-pages": "the TIFF has more pages than a fax can have",
}


class NotADocument(BadAnswer):
    """The bytes are neither PDF nor TIFF."""


@dataclass(frozen=True)
class Document:
    """`pages` is None when they cannot be counted; `problem` is `code: sentence` when not whole."""

    format: DocumentFormat
    pages: int | None
    problem: str | None = None


def inspect(source: str | Path | BinaryIO) -> Document:
    """Prove a document whole and count its pages, in memory that does not grow with the file.

    Blocks: call it off the event loop. Raises NotADocument for other bytes, and OSError when the
    file cannot be read; whatever the bytes are, nothing else.
    """
    if isinstance(source, str | Path):
        with Path(source).open("rb") as file:
            return _inspect(file)
    return _inspect(source)


def _inspect(file: BinaryIO) -> Document:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size <= _SMALL:
        file = io.BytesIO(exactly(file, size))
    head = file.read(pdf.MAGIC_WITHIN)
    kind = _format(head, size)
    try:
        count = pdf.pages(file, size) if kind == "pdf" else tiff.pages(file, size, head)
    except Broken as broken:
        return Document(kind, broken.pages, f"{broken.code}: {PROBLEMS[broken.code]}")
    return Document(kind, count)


def _format(head: bytes, size: int) -> DocumentFormat:
    if head[:4] in tiff.MAGIC:
        return "tiff"
    if pdf.MAGIC in head:
        return "pdf"
    raise NotADocument("the image is neither a PDF nor a TIFF" if size else "the image is empty")
