"""PDF and TIFF documents: their formats, and what can be wrong with them.

Nothing here parses a document. `proof` does, in a process of its own.
"""

from dataclasses import dataclass
from typing import Literal

from poller.errors import BadAnswer

DocumentFormat = Literal["pdf", "tiff"]
StoredFormat = Literal["pdf", "tiff", "json"]

PDF_MAGIC = b"%PDF-"
# the byte order, and whether it is a BigTIFF
TIFF_MAGIC = {b"II*\0": ("<", False), b"MM\0*": (">", False)} | {
    b"II+\0": ("<", True),
    b"MM\0+": (">", True),
}
HEAD = 1024  # bytes that tell the format: readers and qpdf allow some before a PDF's magic

# Keep these constant (no offsets): two downloads with equal problems are broken in the same way.
PROBLEMS = {
    "pdf-no-eof": "the PDF does not end with %%EOF",
    "pdf-encrypted": "the PDF needs a password",
    "pdf-unreadable": "the PDF cannot be read without repairing it",
    "pdf-page-tree": "the PDF does not have as many pages as it says",
    "pdf-object-lost": "something that a page of the PDF shows is missing",
    "pdf-hole": "part of an image in the PDF is missing",
    "pdf-no-pages": "the PDF has no page",
    "tiff-cut": "the TIFF refers to bytes beyond its end",
    "tiff-loop": "the TIFF's pages run in a loop",
    "tiff-no-pages": "the TIFF has no page",
    "tiff-no-image": "a page of the TIFF has no image data",
    "tiff-hole": "part of a page of the TIFF is missing",
    "tiff-bad-tag": "the TIFF describes a page wrongly",
    "tiff-too-many-pages": "the TIFF has more pages than a fax can have",
    "unchecked-crash": "the document could not be checked: it crashes the process that checks it",
    "unchecked-memory": "the document could not be checked: it needs too much memory",
    "unchecked-time": "the document could not be checked: the check takes too long",
}


class NotADocument(BadAnswer):
    """The bytes are neither PDF nor TIFF."""


@dataclass(frozen=True)
class Document:
    """`pages` is None when nobody can count them; `problem` is `code: sentence` when not whole."""

    format: DocumentFormat
    pages: int | None
    problem: str | None = None


@dataclass(frozen=True)
class StoredFile:
    """An image in the store: `file` is its path there, with the extension; `bytes` is its size.

    A `damaged` image arrived broken in the same way twice and is kept as it arrived. A fax without
    an image has only its sidecar: then `format` is json, and file, bytes and hash are the
    sidecar's.
    """

    file: str
    format: StoredFormat
    bytes: int
    sha256: str
    pages: int | None
    damaged: bool


@dataclass(frozen=True)
class Staged:
    """A fax that is ready to be published: its image has its name, its sidecar is still hidden.

    The store chooses the `ticket`, which identifies the sidecar. `problem` says how the image is
    damaged.
    """

    file: StoredFile
    ticket: str
    problem: str | None = None


def not_whole(kind: DocumentFormat, code: str, pages: int | None = None) -> Document:
    """Describe a document that is not whole; `code` is a key of PROBLEMS."""
    return Document(kind, pages, f"{code}: {PROBLEMS[code]}")


def format_of(head: bytes) -> DocumentFormat:
    """Tell the format from the first `HEAD` bytes; raises NotADocument."""
    if head[:4] in TIFF_MAGIC:
        return "tiff"
    if PDF_MAGIC in head:
        return "pdf"
    raise NotADocument("the image is neither a PDF nor a TIFF" if head else "the image is empty")
