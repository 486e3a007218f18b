"""PDF and TIFF: what can be said of one, and which of the two it is.

Nothing here parses: whether a document is whole is worked out by `proof`, in a process of its own.
"""

from dataclasses import dataclass
from typing import Literal

from poller.errors import BadAnswer

DocumentFormat = Literal["pdf", "tiff"]
StoredFormat = Literal["pdf", "tiff", "json"]

PDF_MAGIC = b"%PDF-"
# Byte order, and whether it is a BigTIFF.
TIFF_MAGIC = {b"II*\0": ("<", False), b"MM\0*": (">", False)} | {
    b"II+\0": ("<", True),
    b"MM\0+": (">", True),
}
HEAD = (
    1024  # of the bytes, to know the format: readers allow some before a PDF's magic, and qpdf does
)

# Constant sentences: two downloads are broken in the same way when they are equal, so no offsets.
PROBLEMS = {
    "pdf-no-eof": "the PDF does not end with %%EOF",
    "pdf-encrypted": "the PDF needs a password",
    "pdf-unreadable": "the PDF cannot be read without repairing it",
    "pdf-page-tree": "the PDF does not have the pages that it counts",
    "pdf-object-lost": "what a page of the PDF shows is not there",
    "pdf-hole": "a part of an image of the PDF is not there",
    "pdf-no-pages": "the PDF has no page",
    "tiff-cut": "the TIFF refers to bytes beyond its end",
    "tiff-loop": "the TIFF's pages run in a loop",
    "tiff-no-pages": "the TIFF has no page",
    "tiff-no-image": "a page of the TIFF has no image data",
    "tiff-hole": "a part of a page of the TIFF is not there",
    "tiff-bad-tag": "a page of the TIFF is described wrongly",
    "tiff-too-many-pages": "the TIFF has more pages than a fax can have",
    "unchecked-crash": "the document could not be checked: it ends the process that checks it",
    "unchecked-memory": "the document could not be checked: it takes too much memory",
    "unchecked-time": "the document could not be checked: it takes too long",
}


class NotADocument(BadAnswer):
    """The bytes are neither PDF nor TIFF."""


@dataclass(frozen=True)
class Document:
    """`pages` is None when they cannot be counted; `problem` is `code: sentence` when not whole."""

    format: DocumentFormat
    pages: int | None
    problem: str | None = None


@dataclass(frozen=True)
class StoredFile:
    """An image in the store: `file` is its path there, with the extension; `bytes` its size.

    `damaged`: it came broken in the same way twice, and is kept as it came. A fax without an image is
    its sidecar alone: the `format` is json, and file, bytes and hash are the sidecar's own.
    """

    file: str
    format: StoredFormat
    bytes: int
    sha256: str
    pages: int | None
    damaged: bool


@dataclass(frozen=True)
class Staged:
    """A fax that is about to be published: its image has its name, its sidecar waits for it.

    `ticket` is the store's own word for that; `problem` names how the document came damaged.
    """

    file: StoredFile
    ticket: str
    problem: str | None = None


def not_whole(kind: DocumentFormat, code: str, pages: int | None = None) -> Document:
    """Say of a document that it is not whole; `code` is a key of PROBLEMS."""
    return Document(kind, pages, f"{code}: {PROBLEMS[code]}")


def format_of(head: bytes) -> DocumentFormat:
    """Tell the format from the first `HEAD` bytes; raises NotADocument."""
    if head[:4] in TIFF_MAGIC:
        return "tiff"
    if PDF_MAGIC in head:
        return "pdf"
    raise NotADocument("the image is neither a PDF nor a TIFF" if head else "the image is empty")
