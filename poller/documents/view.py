"""The view of a PDF file that qpdf reads."""

import io
import os
import re
from bisect import bisect_left
from collections.abc import Iterator
from typing import BinaryIO

_START = b"startxref"
_TAIL = 1024  # bytes at the end of the PDF that hold its last startxref
_CHUNK = 1 << 16

# Some scanners number the first section from 1, although its first entry is object 0's.
_FROM_ONE = re.compile(rb"xref\s{1,4}1(?= \d{1,10}\s{1,4}0000000000 65535 f)")
_FROM_ONE_MAX = 64
# From version 12, qpdf ignores objects whose number exceeds a third of the file's bytes.
_ROOM = 3 << 31
_QPDF_TAIL = 2048  # more than qpdf searches for startxref


class View(io.RawIOBase):
    """A reader that ends where the PDF ends, and remembers a failed read.

    qpdf takes a failed read for a broken PDF, or silently leaves out a page.
    """

    def __init__(self, file: BinaryIO, end: int) -> None:
        super().__init__()
        self._file, self._end, self._at = file, end, 0
        self._size = end
        self.failure: OSError | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # any buffer
        data = self._read(self._at, len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _read(self, at: int, count: int) -> bytes:
        try:
            self._file.seek(at)
            return self._file.read(max(0, min(count, self._end - at)))
        except OSError as error:
            self.failure = error
            raise


class MendedView(View):
    """A view that shows the PDF as other readers take it: numbered from 0, any object numbers.

    It appends empty space, which nobody reads, and a second copy of the PDF's startxref.
    """

    def __init__(self, file: BinaryIO, end: int) -> None:
        super().__init__(file, end)
        last = super()._read(max(0, end - _TAIL), _TAIL)
        self._last = bytes(_QPDF_TAIL) + last[max(0, last.rfind(_START)) :]
        self._size = end + _ROOM + len(self._last)
        self._ones = list(self._find_ones())

    def _find_ones(self) -> Iterator[int]:
        for start in range(0, self._end, _CHUNK):
            data = super()._read(start, _CHUNK + _FROM_ONE_MAX)
            found = (m for m in _FROM_ONE.finditer(data) if m.start() < _CHUNK)
            yield from (start + match.end() - 1 for match in found)

    def _read(self, at: int, count: int) -> bytes:
        behind = at - self._end - _ROOM
        if behind >= 0:
            return self._last[behind : behind + count]
        data = bytearray(super()._read(at, count))
        ones = self._ones
        for one in ones[bisect_left(ones, at) : bisect_left(ones, at + len(data))]:
            data[one - at] = ord("0")
        return bytes(data)
