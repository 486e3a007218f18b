"""Documents by several producers, for which `corpus` tries what can happen to a document."""

import io
import random
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import img2pdf
import pikepdf
from PIL import Image, ImageDraw

PAGES = (1, 5)
Revision = Literal[3, 4, 6]

OBJECT = rb"(\d+) \d+ obj\b(?:(?!endobj).)*?%s(?:(?!endobj).)*?endobj"
PAGE_OBJECT = re.compile(OBJECT % rb"/Type\s*/Page\b", re.DOTALL)


@dataclass(frozen=True)
class Sample:
    """A whole document; `name` says how it was made."""

    name: str
    pages: int
    data: bytes

    @property
    def is_pdf(self) -> bool:
        return self.data.startswith(b"%PDF-")


def page(number: int, mode: str = "1") -> Image.Image:
    return drawn(number).convert(mode)  # a copy, because saving leaves traces on an image


@cache
def drawn(number: int) -> Image.Image:
    """A page with lines that look like text; the same each time."""
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
    """Append an update that writes the first page again, as programs that sign or stamp do."""
    page, number = next((found[0], found[1]) for found in PAGE_OBJECT.finditer(whole))
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
