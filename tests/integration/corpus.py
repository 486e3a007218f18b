"""Documents by several producers, whole and harmed, and how many of each poller judges right.

`python -m tests.integration.corpus` prints the table for all producers that are installed.
"""

import io
import re
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from poller.documents import Document, NotADocument
from poller.documents.proof import inspect
from tests.integration.produced import OBJECT, PAGE_OBJECT, PRODUCERS, Producer, Sample

TAILS = {"zeros": bytes(4096), "boundary": b"\r\n--4f2a9c--\r\n"}
SECTOR = 512
HEAD = b"X-Leading: bytes\r\n\r\n"


@dataclass(frozen=True)
class Harmed:
    """What was done to a sample; `whole`: nothing was lost, or nobody can tell."""

    harm: str
    data: bytes
    whole: bool


# -- harms -----------------------------------------------------------------------------------------


def harmed(sample: Sample) -> Iterator[Harmed]:
    yield Harmed("whole", sample.data, whole=True)
    yield from _cut(sample)
    yield from _holed(sample)
    # Readers look for %PDF- in the first kilobyte; a TIFF begins where it begins.
    yield Harmed("head", HEAD + sample.data, whole=sample.is_pdf)
    for name, tail in TAILS.items():
        yield Harmed(f"tail: {name}", sample.data + tail, whole=True)


def _cut(sample: Sample) -> Iterator[Harmed]:
    size = len(sample.data)
    left = {"cut 50 %": size // 2, "cut 99.9 %": size * 999 // 1000}
    left |= {f"cut -{count}": size - count for count in (1, 2, 16, 512)}
    for name, length in left.items():
        whole = not lost(sample, length)
        harm = f"{name} (nothing lost)" if whole else name
        yield Harmed(harm, sample.data[:length], whole=whole)


def _holed(sample: Sample) -> Iterator[Harmed]:
    for name, (start, end) in holes(sample):
        holed = sample.data[:start] + bytes(end - start) + sample.data[end:]
        untold = name in {"strip", "image"} and zeros_make_sense(sample)
        harm = f"hole: {name} (cannot be told)" if untold else f"hole: {name}"
        yield Harmed(harm, holed, whole=untold)
    name, (start, end) = next(hole for hole in holes(sample) if hole[0] in {"strip", "image"})
    if is_group_4(sample) and end - start > 3 * SECTOR:
        start = (start + end) // 2
        holed = sample.data[:start] + bytes(SECTOR) + sample.data[start + SECTOR :]
        yield Harmed("hole: sector of Group 4", holed, whole=False)


def zeros_make_sense(sample: Sample) -> bool:
    """Say whether zeros in place of an image look like one: black, white, or noise when decrypted.

    If they do not, a hole in the whole image is visible. A hole that leaves the beginning is
    visible only in Group 4, because the other encodings contain zeros themselves.
    """
    if sample.is_pdf:
        return b"/Encrypt" in sample.data
    return compression(sample) in {1, 32773}


def is_group_4(sample: Sample) -> bool:
    if sample.is_pdf:
        return b"/Encrypt" not in sample.data and bool(re.search(rb"/K -1\b", sample.data))
    return compression(sample) == 4


def compression(sample: Sample) -> int:
    _, tags = next(walk(sample.data))
    return next(tag.values[0] for tag in tags if tag.number == 259)


def lost(sample: Sample, length: int) -> bool:
    """Say whether a cut there removes anything.

    It does not, and nobody can tell, if it removes the line's end after a PDF's last %%EOF, or
    bytes of a TIFF that nothing refers to: Pillow rounds a page up to 16 bytes, others to two.
    """
    if sample.is_pdf:
        return length < len(sample.data.rstrip())
    return any(end > length for _, end in pieces(sample.data))


_OBJECT_STREAM = re.compile(OBJECT % rb"/Type\s*/ObjStm\b", re.DOTALL)
_IMAGE = re.compile(
    rb"/Subtype\s*/Image\b(?:(?!endobj).)*?stream\r?\n(.*?)\r?\nendstream", re.DOTALL
)


def holes(sample: Sample) -> Iterator[tuple[str, tuple[int, int]]]:
    """Return spans that show or refer to a page; the middle one of each kind."""
    if not sample.is_pdf:
        for name, spans in (
            ("directory", directories(sample.data)),
            ("strip", strips(sample.data)),
        ):
            yield name, spans[len(spans) // 2]
        yield "last directory", directories(sample.data)[-1]
        return
    objects = list(
        (PAGE_OBJECT if PAGE_OBJECT.search(sample.data) else _OBJECT_STREAM).finditer(sample.data)
    )
    yield "page object", objects[len(objects) // 2].span()
    images = list(_IMAGE.finditer(sample.data))
    yield "image", images[len(images) // 2].span(1)


# -- a TIFF's structure, read without the program's code -------------------------------------------

_WIDTH = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}


@dataclass(frozen=True)
class Tag:
    number: int
    span: tuple[int, int]
    values: list[int]


def walk(data: bytes) -> Iterator[tuple[tuple[int, int], list[Tag]]]:
    """Yield each directory's span and tags, in the order of the pages."""
    order = "<" if data[:2] == b"II" else ">"
    big = 43 in data[2:4]
    word, few, first = ("Q", "Q", 8) if big else ("I", "H", 4)

    def read(letter: str, at: int) -> int:
        return int(struct.unpack_from(order + letter, data, at)[0])

    at = read(word, first)
    while at:
        start = at + struct.calcsize("=" + few)
        size = struct.calcsize("=HH" + 2 * word)
        end = start + read(few, at) * size
        after = end + struct.calcsize("=" + word)
        yield (at, after), [_tag(data, order, word, entry) for entry in range(start, end, size)]
        at = read(word, end)


def _tag(data: bytes, order: str, word: str, entry: int) -> Tag:
    number, kind, count, there = struct.unpack_from(f"{order}HH{word}{word}", data, entry)
    room = struct.calcsize("=" + word)
    length = count * _WIDTH[kind]
    start = there if length > room else entry + struct.calcsize("=HH" + word)
    letter = {3: "H", 4: "I", 16: "Q"}.get(kind)
    values = struct.unpack_from(f"{order}{count}{letter}", data, start) if letter else ()
    return Tag(number, (start, start + length), list(values))


def directories(data: bytes) -> list[tuple[int, int]]:
    return [span for span, _ in walk(data)]


def strips(data: bytes) -> list[tuple[int, int]]:
    found = []
    for _, tags in walk(data):
        offsets, lengths = (
            next(tag.values for tag in tags if tag.number in numbers)
            for numbers in ((273, 324), (279, 325))
        )
        found += [(at, at + length) for at, length in zip(offsets, lengths, strict=True)]
    return found


def pieces(data: bytes) -> list[tuple[int, int]]:
    """Return the spans of everything that something refers to."""
    values = [tag.span for _, tags in walk(data) for tag in tags]
    return directories(data) + strips(data) + values


# -- judging ---------------------------------------------------------------------------------------


def judged_right(sample: Sample, harm: Harmed) -> bool:
    try:
        document = inspect(io.BytesIO(harm.data))
    except NotADocument:
        return not harm.whole
    if harm.whole:
        return document == Document("pdf" if sample.is_pdf else "tiff", sample.pages)
    return document.problem is not None


@dataclass(frozen=True)
class Judged:
    sample: Sample
    harm: Harmed
    right: bool


def judged(producer: Producer) -> list[Judged]:
    return [
        Judged(sample, harm, judged_right(sample, harm))
        for sample in producer.samples()
        for harm in harmed(sample)
    ]


def table(judgements: dict[str, list[Judged]]) -> str:
    """Return for each harm and producer how many were judged right, of how many."""
    of, right = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for name, some in judgements.items():
        of.update((one.harm.harm, name) for one in some)
        right.update((one.harm.harm, name) for one in some if one.right)
    lines = [f"{'':31}" + "".join(f"{name:>13}" for name in judgements)]
    for kind in sorted({kind for kind, _ in of}):
        cells = (
            f"{right[kind, name]}/{of[kind, name]}" if of[kind, name] else "" for name in judgements
        )
        lines.append(f"{kind:31}" + "".join(f"{cell:>13}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    found = {name: judged(one) for name, one in PRODUCERS.items() if not one.missing()}
    print(table(found))
    for name, some in found.items():
        for one in some:
            if not one.right:
                print(name, one.sample.name, one.sample.pages, one.harm.harm, file=sys.stderr)


if __name__ == "__main__":
    main()
