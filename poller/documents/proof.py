"""Is this PDF or TIFF whole, and how many pages has it."""

import io
import os
from typing import BinaryIO

from poller.documents import HEAD, Document, format_of, not_whole, pdf, tiff
from poller.documents.flaw import Flaw, exactly

_SMALL = 1 << 20  # read at once: qpdf takes a file in some hundred very small steps


def inspect(file: BinaryIO) -> Document:
    """Prove a document whole and count its pages, in memory that does not grow with the file.

    Raises NotADocument for other bytes, OSError when the file cannot be read, and MemoryError;
    whatever the bytes are, nothing else. They can end the process in which this runs.
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
