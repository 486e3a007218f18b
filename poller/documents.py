"""Is this PDF or TIFF whole, and how many pages has it."""

import errno
import io
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import pikepdf

from poller.errors import BadAnswer

DocumentFormat = Literal["pdf", "tiff"]

_PDF_MAGIC = b"%PDF-"
_PDF_MAGIC_WITHIN = 1024  # readers allow leading bytes, and qpdf does
_PDF_END = b"%%EOF"
_PDF_PADDING = b"\0\t\n\f\r "
_PDF_PADDING_MAX = 1024
_TIFF_MAGIC = {b"II*\0": ("<", False), b"MM\0*": (">", False)} | {
    b"II+\0": ("<", True),
    b"MM\0+": (">", True),
}
# No fax comes near it; a chain that is longer was made to keep us busy.
TIFF_PAGES_MAX = 100_000
_CHUNK = 1 << 20
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
        file = io.BytesIO(_exactly(file, size))
    head = file.read(_PDF_MAGIC_WITHIN)
    if head[:4] in _TIFF_MAGIC:
        return _tiff(file, size, *_TIFF_MAGIC[head[:4]])
    if _PDF_MAGIC in head:
        return _pdf(file, size)
    raise NotADocument("the image is neither a PDF nor a TIFF" if size else "the image is empty")


def _exactly(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise OSError(errno.EIO, "the file became shorter while it was read")
    return data


def _broken(code: str, pages: int | None = None) -> Document:
    kind: DocumentFormat = "pdf" if code.startswith("pdf") else "tiff"
    return Document(kind, pages, f"{code}: {PROBLEMS[code]}")


# PDF


def _pdf(file: BinaryIO, size: int) -> Document:
    if not _has_pdf_end(file, size):
        return _broken("pdf-no-eof")
    if isinstance(file, io.BytesIO):
        return _read_pdf(file)
    reader = _Reader(file)
    document = _read_pdf(reader)
    if reader.failure is not None:
        raise reader.failure
    return document


def _read_pdf(reader: io.IOBase) -> Document:
    try:
        with _open_pdf(reader) as pdf:
            return _counted(len(pdf.pages), encrypted=pdf.is_encrypted)
    except pikepdf.PasswordError:
        return _broken("pdf-encrypted")
    except Exception:  # noqa: BLE001  # qpdf raises whatever it likes over malformed bytes
        return _broken("pdf-unreadable")


def _has_pdf_end(file: BinaryIO, size: int) -> bool:
    file.seek(max(0, size - _PDF_PADDING_MAX - len(_PDF_END)))
    return file.read().rstrip(_PDF_PADDING).endswith(_PDF_END)


def _open_pdf(reader: io.IOBase) -> pikepdf.Pdf:
    # Not mmap: an I/O error behind a mapping is a SIGBUS, and ends the process.
    return pikepdf.open(
        reader,  # type: ignore[arg-type]  # it needs no more than a reader gives
        attempt_recovery=False,
        suppress_warnings=True,
        access_mode=pikepdf.AccessMode.stream,
    )


def _counted(pages: int, *, encrypted: bool) -> Document:
    if encrypted:
        return _broken("pdf-encrypted", pages)
    return Document("pdf", pages) if pages else _broken("pdf-no-pages")


class _Reader(io.RawIOBase):
    """Hands a file to qpdf and remembers that a read failed.

    qpdf takes that for a broken PDF, or leaves out a page as if it had never been there.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self.failure: OSError | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # any buffer
        with self._remembered():
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    @contextmanager
    def _remembered(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failure = error
            raise


# TIFF 6.0, section 2, and the BigTIFF design of 2004


class _Broken(Exception):
    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


_STRIP_OFFSETS, _STRIP_LENGTHS, _TILE_OFFSETS, _TILE_LENGTHS = 273, 279, 324, 325
_TAGS_MAX = 0xFFFF  # all there are; a BigTIFF could claim more than fits into memory
_WANTED = {_STRIP_OFFSETS, _STRIP_LENGTHS, _TILE_OFFSETS, _TILE_LENGTHS}
_NUMBER_FORMATS = {3: "H", 4: "I", 16: "Q"}


@dataclass(frozen=True)
class _Array:
    """Where a tag's numbers are: `letter` as in struct."""

    letter: str
    count: int
    offset: int

    @property
    def bytes(self) -> int:
        return self.count * struct.calcsize("=" + self.letter)


def _tiff(file: BinaryIO, size: int, order: str, big: bool) -> Document:  # noqa: FBT001
    try:
        return Document("tiff", _Tiff(file, size, order, big=big).pages())
    except _Broken as broken:
        return _broken(broken.code)


class _Tiff:
    def __init__(self, file: BinaryIO, size: int, order: str, *, big: bool) -> None:
        self._file, self._size, self._order = file, size, order
        self._word, self._count, self._entry = ("Q", "Q", 20) if big else ("I", "H", 12)
        self._first = 8 if big else 4
        # Honest structures hardly overlap, so all of them together are not much longer than the
        # file; without this bound a small file could keep us busy for days.
        self._budget = 4 * size

    def pages(self) -> int:
        """Walk the whole chain of pages; raises _Broken."""
        seen: set[int] = set()
        offset = self._number(self._first, self._word)
        while offset:
            if offset in seen:
                raise _Broken("tiff-loop")
            if len(seen) == TIFF_PAGES_MAX:
                raise _Broken("tiff-too-many-pages")
            seen.add(offset)
            offset = self._page(offset)
        if not seen:
            raise _Broken("tiff-no-pages")
        return len(seen)

    def _page(self, offset: int) -> int:
        count = self._number(offset, self._count)
        if count > _TAGS_MAX:
            raise _Broken("tiff-bad-tag")
        start = offset + struct.calcsize("=" + self._count)
        entries = self._bytes(start, count * self._entry)
        self._check_image(self._wanted(entries, start))
        return self._number(start + count * self._entry, self._word)

    def _wanted(self, entries: bytes, start: int) -> dict[int, _Array]:
        found: dict[int, _Array] = {}
        layout = struct.Struct(f"{self._order}HH{self._word}")
        value_bytes = self._entry - layout.size
        for at in range(0, len(entries), self._entry):
            tag, kind, count = layout.unpack_from(entries, at)
            if tag not in _WANTED:
                continue
            if kind not in _NUMBER_FORMATS or tag in found:
                raise _Broken("tiff-bad-tag")
            array = _Array(_NUMBER_FORMATS[kind], count, start + at + layout.size)
            if array.bytes > value_bytes:
                (there,) = struct.unpack_from(self._order + self._word, entries, at + layout.size)
                array = _Array(array.letter, count, there)
            found[tag] = array
        return found

    def _check_image(self, tags: dict[int, _Array]) -> None:
        pairs = [(_STRIP_OFFSETS, _STRIP_LENGTHS), (_TILE_OFFSETS, _TILE_LENGTHS)]
        there = [(tags.get(offsets), tags.get(lengths)) for offsets, lengths in pairs]
        if not any(offsets for offsets, _ in there):
            raise _Broken("tiff-no-image")
        for offsets, lengths in there:
            if offsets is not None or lengths is not None:
                self._check_pieces(offsets, lengths)

    def _check_pieces(self, offsets: _Array | None, lengths: _Array | None) -> None:
        if offsets is None or lengths is None or offsets.count != lengths.count:
            raise _Broken("tiff-bad-tag")
        if not offsets.count:
            raise _Broken("tiff-no-image")
        self._spend(offsets)
        self._spend(lengths)
        for offset, length in zip(self._numbers(offsets), self._numbers(lengths), strict=True):
            if not length:
                raise _Broken("tiff-no-image")
            if offset + length > self._size:
                raise _Broken("tiff-cut")

    def _spend(self, array: _Array) -> None:
        if array.offset + array.bytes > self._size:
            raise _Broken("tiff-cut")
        self._take(array.bytes)

    def _take(self, count: int) -> None:
        self._budget -= count
        if self._budget < 0:
            raise _Broken("tiff-loop")

    def _numbers(self, array: _Array) -> Iterator[int]:
        width = struct.calcsize("=" + array.letter)
        per_read = _CHUNK // width
        for first in range(0, array.count, per_read):
            some = min(per_read, array.count - first)
            data = self._bytes(array.offset + first * width, some * width, paid=True)
            yield from struct.unpack(f"{self._order}{some}{array.letter}", data)

    def _number(self, offset: int, letter: str) -> int:
        data = self._bytes(offset, struct.calcsize("=" + letter))
        number: int = struct.unpack(self._order + letter, data)[0]
        return number

    def _bytes(self, offset: int, count: int, *, paid: bool = False) -> bytes:
        if offset + count > self._size:
            raise _Broken("tiff-cut")
        if not paid:
            self._take(count)
        self._file.seek(offset)
        return _exactly(self._file, count)
