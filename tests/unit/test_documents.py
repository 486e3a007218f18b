"""documents: what is whole, and what is broken in which way; nothing else is ever raised."""

import errno
import io
import logging
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pikepdf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poller.documents import Document, NotADocument, proof, tiff, view
from poller.documents.proof import inspect
from poller.errors import BadAnswer
from tests.exhaustive import often

DATA = Path(__file__).parent.parent / "data" / "documents"


def _pdf(pages: int = 1, **save: Any) -> bytes:
    pdf = pikepdf.new()
    for _ in range(pages):
        pdf.add_blank_page(page_size=(612, 792))
    out = io.BytesIO()
    pdf.save(out, **save)
    return out.getvalue()


def _plain_pdf(pages: int = 1) -> bytes:
    """A PDF with a plain cross-reference table, so that tests can edit it."""
    return _pdf(pages, object_stream_mode=pikepdf.ObjectStreamMode.disable)


class Tiff:
    """Writes TIFFs field by field, so that each field can be wrong."""

    def __init__(self, order: str = "<", *, big: bool = False) -> None:
        self.order, self.big = order, big
        self.word, self.count = ("Q", "Q") if big else ("I", "H")
        magic = {("<", False): b"II*\0", (">", False): b"MM\0*"}
        magic |= {("<", True): b"II+\0", (">", True): b"MM\0+"}
        self.out = bytearray(magic[order, big])
        if big:
            self.out += self.pack("HH", 8, 0)
        self.next_at = len(self.out)
        self.out += self.pack(self.word, 0)

    def pack(self, letters: str, *values: int) -> bytes:
        return struct.pack(self.order + letters, *values)

    def put(self, data: bytes) -> int:
        at = len(self.out)
        self.out += data
        return at

    def entry(self, tag: int, kind: int, values: list[int]) -> bytes:
        data = self.pack(f"{len(values)}{ {3: 'H', 4: 'I', 16: 'Q'}.get(kind, 'B') }", *values)
        room = struct.calcsize("=" + self.word)
        value = data.ljust(room, b"\0")
        if len(data) > room:
            value = self.pack(self.word, self.put(data))
        return self.pack("HH" + self.word, tag, kind, len(values)) + value

    def page(self, *entries: bytes) -> int:
        at = self.put(self.pack(self.count, len(entries)) + b"".join(entries))
        self.link(at)
        self.next_at = self.put(self.pack(self.word, 0))
        return at

    def link(self, at: int) -> None:
        word = self.pack(self.word, at)
        self.out[self.next_at : self.next_at + len(word)] = word

    def good_page(self, strips: int = 1, kind: int = 4, *, tiles: bool = False) -> int:
        offsets = [self.put(b"fax image") for _ in range(strips)]
        tag = 324 if tiles else 273
        lengths = self.entry(tag + (1 if tiles else 6), 3, [9] * strips)
        return self.page(self.entry(256, 3, [1728]), self.entry(tag, kind, offsets), lengths)


def _tiff(pages: int = 1, order: str = "<", *, big: bool = False, **page: Any) -> bytes:
    tiff = Tiff(order, big=big)
    for _ in range(pages):
        tiff.good_page(**page)
    return bytes(tiff.out)


def _tiff_of(*entries: tuple[int, int, list[int]]) -> bytes:
    tiff = Tiff()
    tiff.page(*[tiff.entry(*entry) for entry in entries])
    return bytes(tiff.out)


def _inspect(data: bytes) -> Document:
    return inspect(io.BytesIO(data))


def _code(document: Document) -> str | None:
    return document.problem and document.problem.partition(":")[0]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(_pdf(), Document("pdf", 1), id="pdf"),
        pytest.param(_pdf(300), Document("pdf", 300), id="pdf-of-many-pages"),
        pytest.param(_pdf(3, linearize=True), Document("pdf", 3), id="linearized-pdf"),
        pytest.param(_plain_pdf(2), Document("pdf", 2), id="pdf-with-plain-xref"),
        pytest.param(_pdf() + b"\r\n\0\0 \t\f", Document("pdf", 1), id="pdf-padded"),
        pytest.param(_pdf().rstrip() + bytes(200_000), Document("pdf", 1), id="pdf-padded-far"),
        pytest.param(
            _pdf(2, encryption=pikepdf.Encryption(owner="o", user="")),
            Document("pdf", 2),
            id="pdf-that-opens-without-a-password",
        ),
        pytest.param(_tiff(), Document("tiff", 1), id="tiff"),
        pytest.param(_tiff(7, ">"), Document("tiff", 7), id="tiff-big-endian"),
        pytest.param(_tiff(2, big=True), Document("tiff", 2), id="bigtiff"),
        pytest.param(_tiff(2, ">", big=True, kind=16), Document("tiff", 2), id="bigtiff-long8"),
        pytest.param(_tiff(strips=50), Document("tiff", 1), id="tiff-of-many-strips"),
        pytest.param(_tiff(tiles=True, strips=4), Document("tiff", 1), id="tiff-of-tiles"),
    ],
)
def test_whole_documents_are_whole_and_their_pages_counted(data: bytes, expected: Document) -> None:
    assert _inspect(data) == expected


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"<html>no</html>", id="html"),
        pytest.param(b"II", id="half-a-magic"),
        pytest.param(b" " * 1024 + _pdf(), id="pdf-that-begins-late"),
        pytest.param(b"\xff\xd8\xff\xe0JFIF", id="jpeg"),
    ],
)
def test_other_bytes_are_no_document(data: bytes) -> None:
    with pytest.raises(NotADocument) as caught:
        _inspect(data)
    assert isinstance(caught.value, BadAnswer)


def _looped() -> bytes:
    tiff = Tiff()
    first = tiff.good_page()
    tiff.good_page()
    tiff.link(first)
    return bytes(tiff.out)


def _cut_chain() -> bytes:
    tiff = Tiff()
    tiff.good_page()
    tiff.link(10_000)
    return bytes(tiff.out)


def _claims(count: int, *, big: bool = False) -> bytes:
    tiff = Tiff(big=big)
    tiff.link(tiff.put(tiff.pack(tiff.count, count) + b"\0" * 40))
    return bytes(tiff.out)


def _shared_table() -> bytes:
    """Many pages that all use one long table: quadratic work in a small file."""
    tiff = Tiff()
    at = tiff.put(b"\1\0\0\0" * 2_000)
    for _ in range(50):
        entries = [tiff.pack("HHII", tag, 4, 2_000, at) for tag in (273, 279)]
        tiff.page(*entries)
    return bytes(tiff.out)


@pytest.mark.parametrize(
    ("data", "code", "pages"),
    [
        pytest.param(_pdf()[:-8], "pdf-no-eof", None, id="pdf-cut"),
        pytest.param(_pdf() + b"y" * 1025, "pdf-no-eof", None, id="pdf-with-much-rubbish-behind"),
        pytest.param(b"%PDF-1.4\n%%EOF", "pdf-unreadable", None, id="pdf-of-nothing"),
        pytest.param(_pdf()[:200] + b"%%EOF\n", "pdf-unreadable", None, id="pdf-cut-with-an-end"),
        pytest.param(
            _plain_pdf().replace(b"/Kids", b"/Kidz"), "pdf-page-tree", None, id="no-page-tree"
        ),
        pytest.param(
            b"%PDF-1.4\nstartxref\n" + b"9" * 30 + b"\n%%EOF", "pdf-unreadable", None, id="overflow"
        ),
        pytest.param(_pdf(0), "pdf-no-pages", None, id="pdf-without-pages"),
        pytest.param(
            _pdf(encryption=pikepdf.Encryption(owner="o", user="u")),
            "pdf-encrypted",
            None,
            id="pdf-with-a-password",
        ),
        pytest.param(b"II*\0", "tiff-cut", None, id="tiff-magic-alone"),
        pytest.param(bytes(Tiff().out), "tiff-no-pages", None, id="tiff-without-pages"),
        pytest.param(_tiff()[:-1], "tiff-cut", None, id="tiff-cut-in-its-chain"),
        pytest.param(_cut_chain(), "tiff-cut", None, id="tiff-next-page-outside"),
        pytest.param(_looped(), "tiff-loop", None, id="tiff-loop"),
        pytest.param(
            _tiff_of((273, 4, [8]), (279, 4, [10_000])), "tiff-cut", None, id="strip-outside"
        ),
        pytest.param(
            _tiff_of((324, 4, [8, 8]), (325, 4, [1, 10_000])), "tiff-cut", None, id="tile-outside"
        ),
        pytest.param(_tiff_of((256, 3, [1728])), "tiff-no-image", None, id="no-strips"),
        pytest.param(_tiff_of((273, 4, [8])), "tiff-bad-tag", None, id="no-lengths"),
        pytest.param(_tiff_of((279, 4, [8]), (324, 4, [8])), "tiff-bad-tag", None, id="no-offsets"),
        pytest.param(
            _tiff_of((273, 4, [8]), (325, 4, [1])), "tiff-bad-tag", None, id="lengths-of-tiles"
        ),
        pytest.param(
            _tiff_of((273, 4, []), (279, 4, [])), "tiff-no-image", None, id="no-strip-in-strips"
        ),
        pytest.param(
            _tiff_of((273, 4, [8]), (279, 4, [0])), "tiff-no-image", None, id="empty-strip"
        ),
        pytest.param(
            _tiff_of((273, 4, [8, 8]), (279, 4, [1])), "tiff-bad-tag", None, id="lengths-missing"
        ),
        pytest.param(
            _tiff_of((273, 1, [8]), (279, 4, [1])), "tiff-bad-tag", None, id="offsets-of-bytes"
        ),
        pytest.param(
            _tiff_of((273, 4, [8]), (273, 4, [8])), "tiff-bad-tag", None, id="offsets-twice"
        ),
        pytest.param(_claims(3_000), "tiff-cut", None, id="more-tags-than-bytes"),
        pytest.param(_claims(1 << 60, big=True), "tiff-bad-tag", None, id="bigtiff-countless-tags"),
        pytest.param(
            bytes(
                Tiff().out[:4]
                + struct.pack("<IH", 8, 1)
                + struct.pack("<HHII", 273, 4, 1 << 31, 8)
                + struct.pack("<I", 0)
            ),
            "tiff-cut",
            None,
            id="countless-strips-without-lengths",
        ),
        pytest.param(
            _tiff_of()[:4]
            + struct.pack("<IH", 8, 2)
            + struct.pack("<HHII", 273, 4, 1 << 31, 8)
            + struct.pack("<HHII", 279, 4, 1 << 31, 8)
            + struct.pack("<I", 0),
            "tiff-cut",
            None,
            id="countless-strips",
        ),
        pytest.param(_shared_table(), "tiff-loop", None, id="tables-shared-by-many-pages"),
    ],
)
def test_broken_documents_have_a_stable_problem(data: bytes, code: str, pages: int | None) -> None:
    document = _inspect(data)
    assert (_code(document), document.pages) == (code, pages)
    assert document.format == code.partition("-")[0]
    assert _inspect(data) == document


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pdf_segfault_a.pdf", "pdf-page-tree"),
        ("pdf_page_object_whole.pdf", 3),
        ("pdf_page_object_zeroed.pdf", "pdf-page-tree"),
        ("pdf_null_kid.pdf", "pdf-page-tree"),
        ("pdf_scanner_xref_1.pdf", 1),
        ("pdf_scanner_xref_1_appended.pdf", 2),
        ("pdf_tail_zeros.pdf", 1),
        ("pdf_tail_boundary.pdf", 1),
        ("tiff_tail_values_whole.tif", 1),
        ("tiff_tail_values_cut.tif", "tiff-cut"),
        ("tiff_tail_values_cut1.tif", "tiff-cut"),
        ("tiff_g4_stripbytecounts0.tif", 1),
        ("tiff_trailing_empty_ifd.tif", 1),
    ],
)
def test_documents_as_they_were_met_are_judged_as_viewers_show_them(
    name: str, expected: str | int, capfd: pytest.CaptureFixture[str]
) -> None:
    document = _inspect((DATA / name).read_bytes())
    assert (_code(document) or document.pages) == expected
    assert capfd.readouterr() == ("", "")


# -- PDF: tails ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tail",
    [
        pytest.param(b"\r\n--4f2a--\r\n", id="boundary"),
        pytest.param(b"\n--4f2a--" + bytes(70_000), id="boundary-and-zeros"),
        pytest.param(b"\x1a", id="end-of-file-of-dos"),
        pytest.param(b"\x1b%-12345X", id="end-of-a-printers-job"),
        pytest.param(b"\n<!-- 0.3 s -->", id="html"),
    ],
)
def test_bytes_after_the_end_of_a_pdf_do_not_harm_it(tail: bytes) -> None:
    assert _inspect(_plain_pdf(2).rstrip() + tail) == Document("pdf", 2)


def _updated() -> tuple[bytes, bytes]:
    """A PDF of one page, and the update that adds a second."""
    whole = _written(1)
    offset = len(whole)
    objects = [b"2 0 obj\n<</Type/Pages/Kids[3 0 R 4 0 R]/Count 2>>\nendobj\n", _page_object(4)]
    xref = offset + len(b"".join(objects))
    update = b"".join(objects) + b"xref\n2 1\n%010d 00000 n \n4 1\n%010d 00000 n \n" % (
        offset,
        offset + len(objects[0]),
    )
    update += b"trailer\n<</Size 5/Root 1 0 R/Prev %d>>\n" % whole.index(b"xref\n")
    return whole, update + b"startxref\n%d\n%%%%EOF\n" % xref


def _page_object(number: int, more: bytes = b"") -> bytes:
    page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]%s>>" % more
    return b"%d 0 obj\n%s\nendobj\n" % (number, page)


def _written(
    pages: int = 1, *, root: bytes = b"", page: bytes = b"", others: tuple[bytes, ...] = ()
) -> bytes:
    """A PDF with this root of the page tree; the pages are 3, 4, …, followed by the others."""
    kids = b" ".join(b"%d 0 R" % (3 + number) for number in range(pages))
    root = root or b"/Kids[%s]/Count %d" % (kids, pages)
    out, offsets = b"%PDF-1.4\n", []
    objects = [b"1 0 obj\n<</Type/Catalog/Pages 2 0 R>>\nendobj\n"]
    objects += [b"2 0 obj\n<</Type/Pages%s>>\nendobj\n" % root]
    objects += [_page_object(3 + number, page) for number in range(pages)]
    for number, content in enumerate(others, start=3 + pages):
        objects.append(b"%d 0 obj\n%s\nendobj\n" % (number, content))
    for content in objects:
        offsets.append(len(out))
        out += content
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    table = b"xref\n0 %d\n0000000000 65535 f \n" % (len(offsets) + 1) + table
    trailer = b"trailer\n<</Size %d/Root 1 0 R>>\n" % (len(offsets) + 1)
    return out + table + trailer + b"startxref\n%d\n%%%%EOF\n" % len(out)


def test_pdf_whose_update_was_cut_is_not_taken_for_the_one_before_it() -> None:
    whole, update = _updated()
    assert _inspect(whole + update) == Document("pdf", 2)
    assert _inspect(whole) == Document("pdf", 1)
    for length in range(1, len(update.rstrip())):
        assert _inspect(whole + update[:length]).problem, length


# -- PDF: the page tree ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("root", "page"),
    [
        pytest.param(b"/Kids[3 0 R null]/Count 2", b"", id="null"),
        pytest.param(b"/Kids[3 0 R null]/Count 1", b"", id="null-and-not-counted"),
        pytest.param(b"/Kids[3 0 R 99 0 R]/Count 2", b"", id="missing"),
        pytest.param(b"/Kids[3 0 R<</Type/Page>>]/Count 2", b"", id="direct"),
        pytest.param(b"/Kids[3 0 R 7]/Count 2", b"", id="number"),
        pytest.param(b"/Kids[3 0 R 3 0 R]/Count 2", b"", id="twice"),
        pytest.param(b"/Kids[3 0 R 2 0 R]/Count 2", b"", id="the-root-itself"),
        pytest.param(b"/Kids[3 0 R]/Count 1", b"/Kids[2 0 R]", id="loop"),
        pytest.param(b"/Kids[3 0 R]/Count 1", b"/Kids 3 0 R", id="kids-that-are-none"),
        pytest.param(b"/Kids[3 0 R]/Count 1", b"/Type/Pages", id="node-without-kids"),
        pytest.param(b"/Kids[3 0 R]/Count 2", b"", id="counts-more"),
        pytest.param(b"/Kids[3 0 R 4 0 R]/Count 1", b"", id="counts-fewer"),
        pytest.param(b"/Kids[3 0 R]", b"", id="counts-nothing"),
        pytest.param(b"/Kids[3 0 R]/Count/One", b"", id="counts-in-words"),
        pytest.param(b"/Count 1", b"", id="no-kids"),
    ],
)
def test_pdf_that_does_not_have_the_pages_it_counts_is_damaged(root: bytes, page: bytes) -> None:
    document = _inspect(_written(2, root=root, page=page))
    assert (_code(document), document.pages) == ("pdf-page-tree", None)


def test_nested_page_tree_is_counted_to_its_leaves() -> None:
    inner = b"<</Type/Pages/Parent 2 0 R/Kids[3 0 R 4 0 R]/Count 2>>"
    assert _inspect(_written(2, root=b"/Kids[5 0 R]/Count 2", others=(inner,))).pages == 2


@pytest.mark.parametrize("number", [5_000, 8_388_607, 1 << 30])
def test_object_may_bear_a_high_number(number: int) -> None:
    data = _written(root=b"/Kids[%d 0 R]/Count 1" % number)
    data = data.replace(b"3 0 obj", b"%d 0 obj" % number).replace(b"xref\n0 4", b"xref\n0 3", 1)
    at = data.rindex(b"\n", 0, data.index(b"trailer") - 1) + 1
    data = data[:at] + b"%d 1\n" % number + data[at:]
    start = data.index(b"xref\n")
    data = data[: data.index(b"startxref")] + b"startxref\n%d\n%%%%EOF" % start
    shift = len(b"%d" % number) - 1  # the catalog and the tree's root come before the page
    assert data[int(data[at + len(b"%d 1\n" % number) :][:10]) :].startswith(b"%d 0" % number), (
        shift
    )
    assert _inspect(data) == Document("pdf", 1)


@pytest.mark.parametrize("before", range(0, 45, 3))
def test_numbering_from_one_is_seen_wherever_it_is(before: int) -> None:
    """It is looked for in parts of the file; here it lies across the border of two."""

    def numbered(filling: int) -> bytes:
        stream = b"<</Length %d>>stream\n%s\nendstream" % (filling, b"x" * filling)
        return _written(others=(stream,)).replace(b"xref\n0 5", b"xref\n1 5")

    without = numbered(60_000).index(b"xref\n1 5") - 60_000
    data = numbered(view._CHUNK - before - without)
    assert data.index(b"xref\n1 5") == view._CHUNK - before
    assert _inspect(data) == Document("pdf", 1)


IMAGE = b"<</Subtype/Image/Filter/CCITTFaxDecode/Length 99>>stream\n%s\nendstream"
SHOWS_IMAGE = b"/Resources<</XObject<</A 4 0 R>>>>"


@pytest.mark.parametrize(
    ("page", "thing"),
    [
        pytest.param(SHOWS_IMAGE, IMAGE % (b"x" * 99), id="image"),
        pytest.param(
            b"/Contents 4 0 R", b"<</Length 9>>stream\n0 0 9 9 n\nendstream", id="contents"
        ),
        pytest.param(b"/Contents[4 0 R]", b"<</Length 9>>stream\n0 0 9 9 n\nendstream", id="array"),
    ],
)
def test_pdf_with_a_hole_where_a_page_shows_something_is_damaged(page: bytes, thing: bytes) -> None:
    data = _written(page=page, others=(thing,))
    assert _inspect(data) == Document("pdf", 1)
    holed = data.replace(b"4 0 obj\n" + thing, bytes(8 + len(thing)))
    assert len(holed) == len(data)
    assert _code(_inspect(holed)) == "pdf-object-lost"


def test_pdf_with_an_image_of_nothing_but_zeros_is_damaged() -> None:
    zeros = IMAGE % bytes(99)
    assert _code(_inspect(_written(page=SHOWS_IMAGE, others=(zeros,)))) == "pdf-object-lost"
    white = zeros.replace(b"/Filter/CCITTFaxDecode", b"")
    assert _inspect(_written(page=SHOWS_IMAGE, others=(white,))) == Document("pdf", 1)


# -- TIFF ------------------------------------------------------------------------------------------

FAX = [(259, 3, [4]), (273, 4, [8])]
WIDTHS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
WIDTHS |= {16: 8, 17: 8, 18: 8}


@pytest.mark.parametrize("big", [False, True], ids=["classic", "big"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", WIDTHS)
def test_values_of_every_type_must_be_inside_the_file(kind: int, order: str, big: bool) -> None:
    def with_values_at(shift: int) -> Document:
        tiff = Tiff(order, big=big)
        image = [tiff.entry(273, 4, [tiff.put(b"fax")]), tiff.entry(279, 4, [3])]
        tiff.page(*image, tiff.pack("HH" + tiff.word * 2, 65_000, kind, 3, 0))
        word = tiff.pack(tiff.word, len(tiff.out) + shift)
        tiff.out[-2 * len(word) : -len(word)] = word  # before the next page's offset
        tiff.put(bytes(3 * WIDTHS[kind]))
        return _inspect(bytes(tiff.out))

    assert with_values_at(0) == Document("tiff", 1)
    inline = 3 * WIDTHS[kind] <= (8 if big else 4)
    assert _code(with_values_at(1)) == (None if inline else "tiff-cut")


@pytest.mark.parametrize("compression", [2, 3, 4])
@pytest.mark.parametrize("lengths", [[], [(279, 4, [0])]], ids=["absent", "zero"])
def test_fax_strip_whose_length_is_not_said_goes_as_far_as_it_goes(
    compression: int, lengths: list[tuple[int, int, list[int]]]
) -> None:
    fax = [(259, 3, [compression])]
    assert _inspect(_tiff_of(*fax, (273, 4, [8]), *lengths)) == Document("tiff", 1)
    for beyond, code in (100_000, "tiff-cut"), (0, "tiff-no-image"):
        assert _code(_inspect(_tiff_of(*fax, (273, 4, [beyond]), *lengths))) == code


def test_strip_whose_length_is_not_said_begins_inside_the_file() -> None:
    size = len(_tiff_of(*FAX))
    assert _inspect(_tiff_of((259, 3, [4]), (273, 4, [size - 1]))).problem  # the last zero
    assert _code(_inspect(_tiff_of((259, 3, [4]), (273, 4, [size])))) == "tiff-cut"


@pytest.mark.parametrize("compression", [1, 5, 7, 32773])
def test_length_of_a_strip_that_is_no_fax_must_be_said(compression: int) -> None:
    strip = [(259, 3, [compression]), (273, 4, [8])]
    assert _code(_inspect(_tiff_of(*strip))) == "tiff-bad-tag"
    assert _code(_inspect(_tiff_of(*strip, (279, 4, [0])))) == "tiff-no-image"


@pytest.mark.parametrize("big", [False, True])
def test_empty_directory_ends_the_chain_and_is_no_page(big: bool) -> None:
    tiff = Tiff(big=big)
    tiff.good_page()
    tiff.page()
    assert _inspect(bytes(tiff.out)) == Document("tiff", 1)


def test_directory_that_was_lost_to_zeros_is_not_taken_for_an_empty_one() -> None:
    tiff = Tiff()
    for _ in range(2):
        tiff.good_page()
    at = tiff.good_page()
    after = len(tiff.out)
    assert _inspect(bytes(tiff.out)) == Document("tiff", 3)
    for hole in range(1, after - at + 1):
        holed = tiff.out[:at] + bytes(hole) + tiff.out[at + hole :]
        document = _inspect(bytes(holed))
        assert document.problem or document.pages == 3, hole
    assert _inspect(bytes(tiff.out[:at] + bytes(after - at))).problem


def test_empty_directory_with_another_behind_it_or_alone_is_damaged() -> None:
    tiff = Tiff()
    tiff.page()
    assert _code(_inspect(bytes(tiff.out))) == "tiff-no-image"
    tiff = Tiff()
    tiff.good_page()
    tiff.page()
    tiff.good_page()
    assert _code(_inspect(bytes(tiff.out))) == "tiff-no-image"


@pytest.mark.parametrize("compression", [2, 3, 4, 5, 7, 8, 32946])
def test_strip_of_nothing_but_zeros_is_lost(compression: int) -> None:
    tiff = Tiff()
    zeros = [tiff.put(bytes(200)), tiff.put(bytes(199) + b"x")]
    more = [tiff.entry(259, 3, [compression]), tiff.entry(279, 4, [200])]
    tiff.page(tiff.entry(273, 4, zeros[1:]), *more)
    assert _inspect(bytes(tiff.out)) == Document("tiff", 1)
    tiff.page(tiff.entry(273, 4, zeros[:1]), *more)
    assert _code(_inspect(bytes(tiff.out))) == "tiff-no-image"


@pytest.mark.parametrize("compression", [1, 32773])
def test_strip_of_nothing_but_zeros_is_one_colour_where_it_is_not_compressed(
    compression: int,
) -> None:
    tiff = Tiff()
    strip = [tiff.entry(273, 4, [tiff.put(bytes(300))]), tiff.entry(279, 4, [300])]
    tiff.page(tiff.entry(259, 3, [compression]), *strip)
    assert _inspect(bytes(tiff.out)) == Document("tiff", 1)


@pytest.mark.parametrize(
    ("compression", "between", "behind", "code"),
    [
        pytest.param(4, 256, 0, "tiff-hole", id="hole"),
        pytest.param(4, 255, 0, None, id="none"),
        pytest.param(4, 0, 5_000, None, id="padding"),
        pytest.param(3, 5_000, 0, None, id="fill-bits"),
        pytest.param(8, 5_000, 0, None, id="deflated-white"),
    ],
)
def test_zeros_within_a_strip_are_a_hole_in_group_4_only(
    compression: int, between: int, behind: int, code: str | None
) -> None:
    tiff = Tiff()
    data = b"fax" + bytes(between) + b"fax" + bytes(behind)
    strip = [tiff.entry(273, 4, [tiff.put(data)]), tiff.entry(279, 4, [len(data)])]
    tiff.page(tiff.entry(259, 3, [compression]), *strip)
    assert _code(_inspect(bytes(tiff.out))) == code


@pytest.mark.parametrize(
    ("encoding", "code"),
    [
        (b"/Filter/CCITTFaxDecode/DecodeParms<</K -1>>", "pdf-hole"),
        (b"/Filter[/CCITTFaxDecode]/DecodeParms[<</K -1>>]", "pdf-hole"),
        (b"/Filter/CCITTFaxDecode/DecodeParms<</K 4>>", None),
        (b"/Filter/CCITTFaxDecode", None),
        (b"/Filter/FlateDecode/DecodeParms<</K -1>>", None),
        (b"", None),
    ],
)
def test_zeros_within_an_image_of_a_pdf_are_a_hole_in_group_4_only(
    encoding: bytes, code: str | None
) -> None:
    image = b"<</Subtype/Image%s/Length 606>>stream\nfax%sfax\nendstream" % (encoding, bytes(600))
    assert _code(_inspect(_written(page=SHOWS_IMAGE, others=(image,)))) == code


@pytest.mark.parametrize("tag", [330, 34665, 34853])
def test_directory_outside_the_chain_is_not_a_page_but_must_be_there(tag: int) -> None:
    tiff = Tiff()
    image = [tiff.entry(273, 4, [tiff.put(b"fax")]), tiff.entry(279, 4, [3])]
    page = tiff.page(*image, tiff.entry(tag, 4, [0]))
    at = tiff.put(tiff.pack("H", 1) + tiff.pack("HHII", 282, 5, 1, len(tiff.out) + 18))
    tiff.out[tiff.next_at - 4 : tiff.next_at] = tiff.pack("I", at)
    tiff.put(bytes(4) + bytes(8))
    assert page < at
    assert _inspect(bytes(tiff.out)) == Document("tiff", 1)
    for length in range(at, len(tiff.out)):
        assert _code(_inspect(bytes(tiff.out[:length]))) == "tiff-cut"


def test_directory_outside_the_chain_may_be_a_page_or_the_one_that_names_it() -> None:
    tiff = Tiff()
    image = [tiff.entry(273, 4, [tiff.put(b"fax")]), tiff.entry(279, 4, [3])]
    tiff.page(*image, tiff.entry(330, 4, [len(tiff.out)]))
    tiff.page(*image, tiff.entry(330, 4, [len(tiff.out) + 42 + len(b"fax image")]))
    tiff.good_page()
    assert _inspect(bytes(tiff.out)) == Document("tiff", 3)


def test_tag_of_an_unknown_type_is_ignored_unless_the_image_hangs_on_it() -> None:
    strip = [(273, 4, [8]), (279, 4, [4])]
    assert _inspect(_tiff_of(*strip, (65_000, 99, [1]))) == Document("tiff", 1)
    assert _code(_inspect(_tiff_of((259, 99, [4]), *strip))) == "tiff-bad-tag"


def test_zeros_that_many_strips_share_are_not_read_for_ever() -> None:
    tiff = Tiff()
    at = tiff.put(bytes(200_000) + b"x")
    strips = tiff.entry(273, 4, [at] * 5_000), tiff.entry(279, 4, [200_001] * 5_000)
    tiff.page(tiff.entry(259, 3, [3]), *strips)
    assert _code(_inspect(bytes(tiff.out))) == "tiff-loop"


def test_tiff_with_more_pages_than_a_fax_has_is_not_walked_to_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tiff, "PAGES_MAX", 3)
    assert _inspect(_tiff(3)).pages == 3
    assert _code(_inspect(_tiff(4))) == "tiff-too-many-pages"


def test_long_strip_tables_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiff, "_CHUNK", 16)
    assert _inspect(_tiff(strips=33)) == Document("tiff", 1)


@pytest.mark.parametrize("whole", [_plain_pdf(2), _pdf(2), _tiff(2), _tiff(2, big=True)])
@settings(max_examples=often(75))
@given(data=st.data())
def test_malformed_bytes_raise_nothing_but_not_a_document(
    whole: bytes, data: st.DataObject
) -> None:
    mutated = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(mutated) - 1))
        mutated[at] = data.draw(st.integers(0, 255))
    with suppress(NotADocument):
        _inspect(bytes(mutated))


@pytest.mark.parametrize("small", [proof._SMALL, 0], ids=["at-once", "in-parts"])
@pytest.mark.parametrize("whole", [_plain_pdf(2), _tiff(2), _tiff(2, ">", big=True)])
def test_no_document_that_was_cut_anywhere_is_whole(
    whole: bytes, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "_SMALL", small)
    for length in range(len(whole.rstrip())):
        try:
            assert _inspect(whole[:length]).problem
        except NotADocument:
            assert length < 8


class _FailingFile(io.BytesIO):
    """Reads well until `fails_after` bytes were read."""

    def __init__(self, data: bytes, fails_after: int) -> None:
        super().__init__(data)
        self.left = fails_after

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.left -= len(data)
        if self.left < 0:
            raise OSError(errno.EIO, "disk")
        return data


@pytest.mark.parametrize("small", [proof._SMALL, 0], ids=["at-once", "in-parts"])
@pytest.mark.parametrize("whole", [_pdf(2), _tiff(2)])
def test_failing_disk_is_not_taken_for_a_broken_document(
    whole: bytes, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "_SMALL", small)
    read = _FailingFile(whole, 1 << 30)
    inspect(read)
    for fails_after in range(0, (1 << 30) - read.left, 97):
        with pytest.raises(OSError, match="disk"):
            inspect(_FailingFile(whole, fails_after))


@pytest.mark.parametrize("beyond", [0, 2 << 20])  # a small one is read at once
def test_file_that_becomes_shorter_is_no_broken_document(beyond: int) -> None:
    class Shrinking(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(size)[: 1 << 10][:-1]

    with pytest.raises(OSError, match="shorter"):
        inspect(Shrinking(_tiff() + bytes(beyond)))


def test_recursion_errors_are_the_document_s_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (RecursionError(), ValueError(), OverflowError()):

        def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(pikepdf, "open", fail)
        assert _code(_inspect(_pdf())) == "pdf-unreadable"


def test_a_lack_of_memory_says_nothing_about_the_document(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(pikepdf, "open", fail)
    with pytest.raises(MemoryError):
        _inspect(_pdf())


def test_nothing_is_printed_or_logged_about_a_broken_pdf(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    _inspect(_plain_pdf(2).replace(b"/Type /Pages", b"/Type /Pagex"))
    _inspect(_plain_pdf(2).replace(b"/Kids", b"/Kidz"))
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
