"""Documents by several producers, whole and harmed, and how many of each are judged right.

`python -m tests.integration.corpus` prints the table for all producers that are installed.
"""

import io
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import img2pdf
import pikepdf
from PIL import Image, ImageDraw

from poller.documents import Document, NotADocument
from poller.documents.proof import inspect

PAGES = (1, 5)
Revision = Literal[3, 4, 6]
TAILS = {"zeros": bytes(4096), "boundary": b"\r\n--4f2a9c--\r\n"}
SECTOR = 512
HEAD = b"X-Leading: bytes\r\n\r\n"


@dataclass(frozen=True)
class Sample:
    """A whole document; `name` says how it was made."""

    name: str
    pages: int
    data: bytes

    @property
    def is_pdf(self) -> bool:
        return self.data.startswith(b"%PDF-")


@dataclass(frozen=True)
class Harmed:
    """What was done to a sample; `whole`: nothing was lost, or nobody could tell."""

    harm: str
    data: bytes
    whole: bool


# -- producers -------------------------------------------------------------------------------------


def page(number: int, mode: str = "1") -> Image.Image:
    return drawn(number).convert(mode)  # one of its own: saving leaves traces on an image


@cache
def drawn(number: int) -> Image.Image:
    """A page with lines of something like text; the same each time."""
    chance = random.Random(number)
    image = Image.new("L", (864, 1100), 255)
    draw = ImageDraw.Draw(image)
    for top in range(60, 1040, 24):
        left = 60
        while left < 780:
            width = chance.randint(4, 14)
            draw.rectangle((left, top, left + width, top + chance.randint(4, 14)), fill=0)
            left += width + chance.randint(2, 12)
    return image


def pillow_tiff(pages: int, compression: str | None, mode: str = "1", **more: bool) -> bytes:
    first, *rest = [page(number, mode) for number in range(pages)]
    out = io.BytesIO()
    first.save(
        out,
        "TIFF",
        compression=compression,
        save_all=True,
        append_images=rest,
        dpi=(204, 196),
        **more,
    )
    return out.getvalue()


def jpegs(pages: int) -> list[bytes]:
    return [_saved(page(number, "L"), "JPEG") for number in range(pages)]


def pngs(pages: int) -> list[bytes]:
    return [_saved(page(number, "L"), "PNG") for number in range(pages)]


def _saved(image: Image.Image, kind: str) -> bytes:
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def pdf(pages: int) -> bytes:
    return _img2pdf([pillow_tiff(pages, "group4")])


def _img2pdf(images: list[bytes]) -> bytes:
    made = img2pdf.convert(images, nodate=True, rotation=img2pdf.Rotation.ifvalid)
    assert isinstance(made, bytes)
    return made


def ran(command: list[str], source: bytes) -> bytes:
    """Run a program that reads the file IN and writes the file OUT."""
    with tempfile.TemporaryDirectory() as directory:
        paths = {name: str(Path(directory, name.lower())) for name in ("IN", "OUT")}
        Path(paths["IN"]).write_bytes(source)
        words = [re.sub("IN$|OUT$", lambda found: paths[found[0]], word) for word in command]
        subprocess.run(words, check=True, capture_output=True, timeout=60)
        return Path(paths["OUT"]).read_bytes()


def by_pillow(pages: int) -> Iterator[tuple[str, bytes]]:
    for compression in (None, "group3", "group4", "tiff_lzw", "tiff_adobe_deflate", "packbits"):
        yield f"tiff {compression}", pillow_tiff(pages, compression)
    yield "tiff jpeg", pillow_tiff(pages, "jpeg", "L")
    yield "tiff big", pillow_tiff(pages, "group4", big_tiff=True)
    out = io.BytesIO()
    first, *rest = [page(number) for number in range(pages)]
    first.save(out, "PDF", save_all=True, append_images=rest)
    yield "pdf", out.getvalue()


def by_img2pdf(pages: int) -> Iterator[tuple[str, bytes]]:
    yield "pdf of G4", pdf(pages)
    yield "pdf of JPEG", _img2pdf(jpegs(pages))
    yield "pdf of PNG", _img2pdf(pngs(pages))


def by_pikepdf(pages: int) -> Iterator[tuple[str, bytes]]:
    modes = pikepdf.ObjectStreamMode
    ways: dict[str, dict[str, Any]] = {
        "pdf plain": {"object_stream_mode": modes.disable},
        "pdf object streams": {"object_stream_mode": modes.generate},
        "pdf linearized": {"linearize": True, "object_stream_mode": modes.disable},
        "pdf linearized object streams": {"linearize": True, "object_stream_mode": modes.generate},
    }
    for revision in get_args(Revision):
        newer = revision > 3
        encryption = pikepdf.Encryption(owner="o", user="", R=revision, aes=newer, metadata=newer)
        ways[f"pdf encrypted R{revision}"] = {"encryption": encryption}
    yield from ((name, _saved_again(pages, way)) for name, way in ways.items())
    yield "pdf updated", updated(_saved_again(pages, ways["pdf plain"]))


def _saved_again(pages: int, way: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    with pikepdf.open(io.BytesIO(pdf(pages))) as opened:
        opened.save(out, **way)
    return out.getvalue()


def updated(whole: bytes) -> bytes:
    """Append an update that writes the first page once more, as signing and stamping programs do."""
    page, number = next((found[0], found[1]) for found in _PAGE.finditer(whole))
    size, root, start = (
        re.findall(pattern, whole)[-1]
        for pattern in (rb"/Size (\d+)", rb"/Root (\d+ \d+ R)", rb"startxref\s+(\d+)")
    )
    table = b"\nxref\n%s 1\n%010d 00000 n \n" % (number, len(whole))
    trailer = b"trailer\n<</Size %s/Root %s/Prev %s>>\n" % (size, root, start)
    return whole + page + table + trailer + b"startxref\n%d\n%%%%EOF\n" % (len(whole + page) + 1)


def by_libtiff(pages: int) -> Iterator[tuple[str, bytes]]:
    source = pillow_tiff(pages, "group4")
    ways = {
        kind: ["-c", kind]
        for kind in ("none", "g3:1d", "g3:2d:fill", "g4", "lzw", "zip", "packbits")
    }
    ways |= {
        "strips": ["-c", "g4", "-r", "16"],
        "tiles": ["-c", "lzw", "-t", "-w", "256", "-l", "256"],
        "big-endian": ["-B", "-c", "g4"],
        "BigTIFF": ["-8", "-c", "g4"],
        "big-endian BigTIFF": ["-8", "-B", "-c", "g4", "-r", "64"],
    }
    for name, way in ways.items():
        yield f"tiff {name}", ran(["tiffcp", *way, "IN", "OUT"], source)
    yield "pdf of G4", ran(["tiff2pdf", "-o", "OUT", "IN"], source)
    yield (
        "pdf of LZW",
        ran(
            ["tiff2pdf", "-z", "-o", "OUT", "IN"], ran(["tiffcp", "-c", "lzw", "IN", "OUT"], source)
        ),
    )


def by_ghostscript(pages: int) -> Iterator[tuple[str, bytes]]:
    gs = ["gs", "-q", "-dSAFER", "-dBATCH", "-dNOPAUSE", "-r100", "-o", "OUT"]
    for device in ("tiffg3", "tiffg32d", "tiffg4", "tiffcrle", "tifflzw", "tiffpack", "tiffgray"):
        yield f"tiff {device}", ran([*gs, f"-sDEVICE={device}", "IN"], pdf(pages))
    for level in ("1.4", "1.7"):
        made = [*gs, "-sDEVICE=pdfwrite", f"-dCompatibilityLevel={level}", "IN"]
        yield f"pdf {level}", ran(made, pdf(pages))


@dataclass(frozen=True)
class Producer:
    make: Callable[[int], Iterator[tuple[str, bytes]]]
    programs: tuple[str, ...] = ()

    def missing(self) -> list[str]:
        return [program for program in self.programs if not shutil.which(program)]

    def samples(self) -> list[Sample]:
        made = ((pages, name, data) for pages in PAGES for name, data in self.make(pages))
        return [Sample(name, pages, data) for pages, name, data in made]


PRODUCERS = {
    "Pillow": Producer(by_pillow),
    "img2pdf": Producer(by_img2pdf),
    "pikepdf": Producer(by_pikepdf),
    "libtiff": Producer(by_libtiff, ("tiffcp", "tiff2pdf")),
    "Ghostscript": Producer(by_ghostscript, ("gs",)),
}


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
    """Say whether zeros in the place of an image are one: black, white, or noise when decrypted.

    Where they are not, a hole of the whole image can be seen. One that leaves its beginning can in
    Group 4 alone, as the other encodings have zeros themselves.
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
    """Say whether a cut there takes anything away.

    It does not, and nobody could tell, where it takes the line's end behind a PDF's last %%EOF, or
    bytes of a TIFF to which nothing leads: Pillow rounds a page up to 16 bytes, others to two.
    """
    if sample.is_pdf:
        return length < len(sample.data.rstrip())
    return any(end > length for _, end in pieces(sample.data))


_OBJECT = rb"(\d+) \d+ obj\b(?:(?!endobj).)*?%s(?:(?!endobj).)*?endobj"
_PAGE = re.compile(_OBJECT % rb"/Type\s*/Page\b", re.DOTALL)
_OBJECT_STREAM = re.compile(_OBJECT % rb"/Type\s*/ObjStm\b", re.DOTALL)
_IMAGE = re.compile(
    rb"/Subtype\s*/Image\b(?:(?!endobj).)*?stream\r?\n(.*?)\r?\nendstream", re.DOTALL
)


def holes(sample: Sample) -> Iterator[tuple[str, tuple[int, int]]]:
    """Give spans that show or lead to a page; the middle one of each kind."""
    if not sample.is_pdf:
        for name, spans in (
            ("directory", directories(sample.data)),
            ("strip", strips(sample.data)),
        ):
            yield name, spans[len(spans) // 2]
        yield "last directory", directories(sample.data)[-1]
        return
    objects = list((_PAGE if _PAGE.search(sample.data) else _OBJECT_STREAM).finditer(sample.data))
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
    """Give each directory's span and tags, in the order of the pages."""
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
    """Give the spans of all that something leads to."""
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
    """Say of each harm and producer how many were judged right, of how many."""
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
