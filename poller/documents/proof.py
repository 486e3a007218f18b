"""Prove that a PDF or TIFF is whole, and count its pages."""

import io
import os
from typing import BinaryIO

from poller.documents import HEAD, Document, format_of, not_whole, pdf, tiff
from poller.documents.flaw import Flaw, exactly

_SMALL = 1 << 20  # read at once: qpdf reads a file in hundreds of very small steps


def inspect(file: BinaryIO) -> Document:
    """Prove that a document is whole and count its pages, in memory of constant size.

    Raises only NotADocument, OSError if the file cannot be read, and MemoryError. Malicious bytes
    can end the process, so call this in one that may end.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size <= _SMALL:
        file = io.BytesIO(exactly(file, size))
    head = file.read(HEAD)
    kind = format_of(head)
    try:
        count = pdf.pages(file, size) if kind == "pdf" else tiff.pages(file, size, head)
    except Flaw as flaw:
        return not_whole(kind, flaw.code)
    return Document(kind, count)
