"""PDF: is it whole, and how many pages has it."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import pikepdf

from poller.documents.broken import Broken

_END = b"%%EOF"
_PADDING = b"\0\t\n\f\r "
_PADDING_MAX = 1024


def pages(file: BinaryIO, size: int) -> int:
    """Count the pages of a whole PDF; raises Broken."""
    if not _has_end(file, size):
        raise Broken("pdf-no-eof")
    if isinstance(file, io.BytesIO):
        return _read(file)
    reader = _Reader(file)
    try:
        return _read(reader)
    finally:
        if reader.failure is not None:
            raise reader.failure


def _has_end(file: BinaryIO, size: int) -> bool:
    file.seek(max(0, size - _PADDING_MAX - len(_END)))
    return file.read().rstrip(_PADDING).endswith(_END)


def _read(reader: io.IOBase) -> int:
    try:
        with _open(reader) as pdf:
            return _counted(len(pdf.pages), encrypted=pdf.is_encrypted)
    except Broken:
        raise
    except pikepdf.PasswordError:
        raise Broken("pdf-encrypted") from None
    except Exception:  # noqa: BLE001  # qpdf raises whatever it likes over malformed bytes
        raise Broken("pdf-unreadable") from None


def _open(reader: io.IOBase) -> pikepdf.Pdf:
    # Not mmap: an I/O error behind a mapping is a SIGBUS, and ends the process.
    return pikepdf.open(
        reader,  # type: ignore[arg-type]  # it needs no more than a reader gives
        attempt_recovery=False,
        suppress_warnings=True,
        access_mode=pikepdf.AccessMode.stream,
    )


def _counted(pages: int, *, encrypted: bool) -> int:
    if encrypted:
        raise Broken("pdf-encrypted", pages)
    if not pages:
        raise Broken("pdf-no-pages")
    return pages


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
