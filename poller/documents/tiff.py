"""TIFF 6.0, section 2, and BigTIFF (2004): prove that it is whole, and count its pages."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from poller.documents import TIFF_MAGIC
from poller.documents.flaw import Flaw, exactly, has_hole

# No fax comes near this; a longer chain was made to keep us busy.
PAGES_MAX = 100_000
_CHUNK = 1 << 20
_LOOK = 64  # an honest compressed strip has a byte other than zero by then
_TAGS_MAX = 0xFFFF  # all there are; a BigTIFF could claim more than memory holds

_COMPRESSION = 259
_STRIP_OFFSETS, _STRIP_LENGTHS, _TILE_OFFSETS, _TILE_LENGTHS = 273, 279, 324, 325
# Directories outside the chain: SubIFDs (a preview, or the layers of a colour fax), Exif, GPS. They
# are not pages, but a file that ends inside one was cut.
_DIRECTORIES = (330, 34665, 34853)
_WANTED = {_COMPRESSION, _STRIP_OFFSETS, _STRIP_LENGTHS, _TILE_OFFSETS, _TILE_LENGTHS}
_WANTED |= set(_DIRECTORIES)

# Bytes of one value, by field type. Readers ignore tags of other types, as their length is unknown.
_WIDTHS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
_WIDTHS |= {13: 4, 16: 8, 17: 8, 18: 8}
_NUMBERS = {3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}

# Group 3 and Group 4. Old fax boards do not give the length of such a strip; all readers decode
# until they have all rows.
_GROUP_4 = 4
_FAX = {2, 3, _GROUP_4}
# Compressions in which no strip is all zeros: CCITT has no such code, LZW begins with 256, JPEG and
# Deflate begin with a header.
_NEVER_ZEROS = _FAX | {5, 7, 8, 32946}


@dataclass(frozen=True)
class _Values:
    """Where the values of a tag are; `kind` is their field type."""

    kind: int
    count: int
    offset: int

    @property
    def bytes(self) -> int:
        return self.count * _WIDTHS[self.kind]


@dataclass(frozen=True)
class _Directory:
    tags: dict[int, _Values]  # only those we need
    empty: bool
    end: int
    next: int


def pages(file: BinaryIO, size: int, head: bytes) -> int:
    """Count the pages of a whole TIFF; raises Flaw."""
    order, big = TIFF_MAGIC[head[:4]]
    return _Tiff(file, size, order, big=big).pages()


class _Tiff:
    def __init__(self, file: BinaryIO, size: int, order: str, *, big: bool) -> None:
        self._file, self._size, self._order = file, size, order
        self._word, self._count, self._entry = ("Q", "Q", 20) if big else ("I", "H", 12)
        self._first = 8 if big else 4
        # Honest structures hardly overlap, so together they are not much longer than the file.
        # Without this limit, a small file could keep us busy for days.
        self._budget = 4 * size

    def pages(self) -> int:
        """Walk all pages; raises Flaw."""
        seen: set[int] = set()
        offset = self._number(self._first, self._word)
        while offset:
            if offset in seen:
                raise Flaw("tiff-loop")
            if len(seen) == PAGES_MAX:
                raise Flaw("tiff-too-many-pages")
            directory = self._directory(offset)
            if seen and self._ends_the_chain(directory):
                break
            self._check_page(directory)
            seen.add(offset)
            offset = directory.next
        if not seen:
            raise Flaw("tiff-no-pages")
        return len(seen)

    def _ends_the_chain(self, directory: _Directory) -> bool:
        """Tell whether this is the empty directory that some writers put at the end of a file.

        If there is room for a tag after it, it is a page whose directory was lost to zeros.
        """
        behind = self._size - directory.end
        return directory.empty and not directory.next and behind < self._entry

    def _check_page(self, directory: _Directory) -> None:
        tags = directory.tags
        if _STRIP_OFFSETS not in tags and _TILE_OFFSETS not in tags:
            raise Flaw("tiff-no-image")
        self._check_image(tags)
        for pointers in (tags[tag] for tag in _DIRECTORIES if tag in tags):
            for offset in self._numbers(pointers):
                self._check_image(self._directory(offset).tags)

    def _directory(self, offset: int) -> _Directory:
        count = self._number(offset, self._count)
        if count > _TAGS_MAX:
            raise Flaw("tiff-bad-tag")
        start = offset + struct.calcsize("=" + self._count)
        end = start + count * self._entry
        tags = self._tags(self._bytes(start, end - start), start)
        after = end + struct.calcsize("=" + self._word)
        return _Directory(tags, not count, after, self._number(end, self._word))

    def _tags(self, entries: bytes, start: int) -> dict[int, _Values]:
        found: dict[int, _Values] = {}
        layout = struct.Struct(f"{self._order}HH{self._word}{self._word}")
        room = struct.calcsize("=" + self._word)
        for at, (tag, kind, count, there) in enumerate(layout.iter_unpack(entries), start=1):
            if kind not in _WIDTHS:
                if tag in _WANTED:
                    raise Flaw("tiff-bad-tag")
                continue
            values = _Values(kind, count, there)
            if values.bytes <= room:
                values = _Values(kind, count, start + at * self._entry - room)
            elif there + values.bytes > self._size:
                raise Flaw("tiff-cut")
            if tag in _WANTED and tag in found:
                raise Flaw("tiff-bad-tag")
            if tag in _WANTED:
                found[tag] = values
        return found

    def _check_image(self, tags: dict[int, _Values]) -> None:
        known = tags.get(_COMPRESSION)
        compression = next(self._numbers(known), 1) if known else 1
        for offsets, lengths in ((_STRIP_OFFSETS, _STRIP_LENGTHS), (_TILE_OFFSETS, _TILE_LENGTHS)):
            if offsets in tags or lengths in tags:
                self._check_pieces(tags.get(offsets), tags.get(lengths), compression)

    def _check_pieces(
        self, offsets: _Values | None, lengths: _Values | None, compression: int
    ) -> None:
        if offsets is None:
            raise Flaw("tiff-bad-tag")
        for offset, length in self._pieces(offsets, lengths, compression):
            if not length and (compression not in _FAX or not offset):
                raise Flaw("tiff-no-image")
            # Without a length, at least one byte must be there.
            if offset + max(length, 1) > self._size:
                raise Flaw("tiff-cut")
            if compression in _NEVER_ZEROS and self._is_zeros(offset, length):
                raise Flaw("tiff-no-image")
            if compression == _GROUP_4 and self._has_hole(offset, length):
                raise Flaw("tiff-hole")

    def _pieces(
        self, offsets: _Values, lengths: _Values | None, compression: int
    ) -> Iterator[tuple[int, int]]:
        if not offsets.count:
            raise Flaw("tiff-no-image")
        if lengths is None and compression in _FAX:
            return ((offset, 0) for offset in self._numbers(offsets))
        if lengths is None or offsets.count != lengths.count:
            raise Flaw("tiff-bad-tag")
        return zip(self._numbers(offsets), self._numbers(lengths), strict=True)

    def _is_zeros(self, offset: int, length: int) -> bool:
        end, some = offset + (length or self._size - offset), _LOOK
        while offset < end:
            data = self._bytes(offset, min(some, end - offset))
            if any(data):
                return False
            offset, some = offset + len(data), _CHUNK
        return True

    def _has_hole(self, offset: int, length: int) -> bool:
        """Search a whole strip for a hole; a strip without a length is not searched."""
        parts = range(offset, offset + length, _CHUNK)
        end = offset + length
        return any(has_hole(self._bytes(at, min(_CHUNK, end - at))) for at in parts)

    def _numbers(self, values: _Values) -> Iterator[int]:
        if values.kind not in _NUMBERS:
            raise Flaw("tiff-bad-tag")
        width = _WIDTHS[values.kind]
        per_read = _CHUNK // width
        for first in range(0, values.count, per_read):
            some = min(per_read, values.count - first)
            data = self._bytes(values.offset + first * width, some * width)
            yield from struct.unpack(f"{self._order}{some}{_NUMBERS[values.kind]}", data)

    def _number(self, offset: int, letter: str) -> int:
        data = self._bytes(offset, struct.calcsize("=" + letter))
        number: int = struct.unpack(self._order + letter, data)[0]
        return number

    def _bytes(self, offset: int, count: int) -> bytes:
        if offset + count > self._size:
            raise Flaw("tiff-cut")
        self._budget -= count
        if self._budget < 0:
            raise Flaw("tiff-loop")
        self._file.seek(offset)
        return exactly(self._file, count)
