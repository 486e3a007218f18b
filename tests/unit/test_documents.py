"""documents: what is whole, what is broken and in which way; nothing else is ever raised."""

import errno
import io
import logging
import struct
from contextlib import suppress
from typing import Any

import pikepdf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poller.documents import Document, NotADocument, proof, tiff
from poller.documents.proof import inspect
from poller.errors import BadAnswer


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
        pytest.param(_pdf().rstrip() + b"\0" * 1024, Document("pdf", 1), id="pdf-padded-1-KiB"),
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
        pytest.param(_pdf() + b"x", "pdf-no-eof", None, id="pdf-with-rubbish-behind"),
        pytest.param(_pdf().rstrip() + b"\0" * 1025, "pdf-no-eof", None, id="pdf-padded-too-far"),
        pytest.param(b"%PDF-1.4\n%%EOF", "pdf-unreadable", None, id="pdf-of-nothing"),
        pytest.param(_pdf()[:200] + b"%%EOF\n", "pdf-unreadable", None, id="pdf-cut-with-an-end"),
        pytest.param(
            _plain_pdf().replace(b"/Kids", b"/Kidz"), "pdf-unreadable", None, id="no-page-tree"
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
        pytest.param(
            _pdf(2, encryption=pikepdf.Encryption(owner="o", user="")),
            "pdf-encrypted",
            2,
            id="pdf-with-an-owner",
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
        pytest.param(_tiff_of((273, 4, [])), "tiff-bad-tag", None, id="no-lengths"),
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
            "tiff-bad-tag",
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
@settings(max_examples=150)
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


def test_recursion_and_memory_errors_are_the_document_s_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for error in (RecursionError(), MemoryError(), ValueError(), OverflowError()):

        def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(pikepdf, "open", fail)
        assert _code(_inspect(_pdf())) == "pdf-unreadable"


def test_nothing_is_printed_or_logged_about_a_broken_pdf(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    _inspect(_plain_pdf(2).replace(b"/Type /Pages", b"/Type /Pagex"))
    _inspect(_plain_pdf(2).replace(b"/Kids", b"/Kidz"))
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
