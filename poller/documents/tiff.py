"""TIFF 6.0, section 2, and the BigTIFF design of 2004: is it whole, and how many pages has it."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from poller.documents import TIFF_MAGIC
from poller.documents.broken import Broken, exactly

# No fax comes near it; a chain that is longer was made to keep us busy.
PAGES_MAX = 100_000
_CHUNK = 1 << 20
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


def pages(file: BinaryIO, size: int, head: bytes) -> int:
    """Count the pages of a whole TIFF; raises Broken."""
    order, big = TIFF_MAGIC[head[:4]]
    return _Tiff(file, size, order, big=big).pages()


class _Tiff:
    def __init__(self, file: BinaryIO, size: int, order: str, *, big: bool) -> None:
        self._file, self._size, self._order = file, size, order
        self._word, self._count, self._entry = ("Q", "Q", 20) if big else ("I", "H", 12)
        self._first = 8 if big else 4
        # Honest structures hardly overlap, so all of them together are not much longer than the
        # file; without this bound a small file could keep us busy for days.
        self._budget = 4 * size

    def pages(self) -> int:
        """Walk the whole chain of pages; raises Broken."""
        seen: set[int] = set()
        offset = self._number(self._first, self._word)
        while offset:
            if offset in seen:
                raise Broken("tiff-loop")
            if len(seen) == PAGES_MAX:
                raise Broken("tiff-too-many-pages")
            seen.add(offset)
            offset = self._page(offset)
        if not seen:
            raise Broken("tiff-no-pages")
        return len(seen)

    def _page(self, offset: int) -> int:
        count = self._number(offset, self._count)
        if count > _TAGS_MAX:
            raise Broken("tiff-bad-tag")
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
                raise Broken("tiff-bad-tag")
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
            raise Broken("tiff-no-image")
        for offsets, lengths in there:
            if offsets is not None or lengths is not None:
                self._check_pieces(offsets, lengths)

    def _check_pieces(self, offsets: _Array | None, lengths: _Array | None) -> None:
        if offsets is None or lengths is None or offsets.count != lengths.count:
            raise Broken("tiff-bad-tag")
        if not offsets.count:
            raise Broken("tiff-no-image")
        self._spend(offsets)
        self._spend(lengths)
        for offset, length in zip(self._numbers(offsets), self._numbers(lengths), strict=True):
            if not length:
                raise Broken("tiff-no-image")
            if offset + length > self._size:
                raise Broken("tiff-cut")

    def _spend(self, array: _Array) -> None:
        if array.offset + array.bytes > self._size:
            raise Broken("tiff-cut")
        self._take(array.bytes)

    def _take(self, count: int) -> None:
        self._budget -= count
        if self._budget < 0:
            raise Broken("tiff-loop")

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
            raise Broken("tiff-cut")
        if not paid:
            self._take(count)
        self._file.seek(offset)
        return exactly(self._file, count)
