"""Other people's readers open the documents, and each fax has its own bytes."""

import io
import re
from datetime import UTC, datetime

import img2pdf
import pikepdf
import pytest
from PIL import Image

from poller.simulator import drawing
from poller.simulator.state import Fax, Format

COMPLETED = datetime(2024, 5, 21, 4, 27, 56, tzinfo=UTC)


def fax(fax_id: str = "f-1", *, pages: int = 2, distinct: bool = True, user: str = "u") -> Fax:
    return Fax("a", user, fax_id, COMPLETED, COMPLETED, 1, pages=pages, distinct=distinct)


def frames_of(image: Image.Image) -> int:
    return int(image.n_frames)  # type: ignore[attr-defined]  # only formats with frames have it


@pytest.mark.parametrize("pages", [1, 3])
def test_the_tiff_is_group_4_in_fine_resolution_with_every_page(pages: int) -> None:
    tiff = drawing.documents(fax(pages=pages))["tiff"]
    with Image.open(io.BytesIO(tiff)) as image:
        assert frames_of(image) == pages
        for frame in range(pages):
            image.seek(frame)
            image.load()
            assert (image.mode, image.size) == ("1", (1728, 2200))
            assert image.info["compression"] == "group4"
            assert image.info["dpi"] == (204, 196)


@pytest.mark.parametrize("pages", [1, 3])
def test_the_pdf_holds_the_same_group_4_data_and_is_whole(pages: int) -> None:
    made = drawing.documents(fax(pages=pages))
    tiff, pdf = made["tiff"], made["pdf"]
    assert pdf.rstrip().endswith(b"%%EOF")
    with pikepdf.open(io.BytesIO(pdf), attempt_recovery=False) as opened:
        assert len(opened.pages) == pages
        assert opened.check_pdf_syntax() == []
        image = next(iter(opened.pages[0].Resources.XObject.values()))
        assert image.Filter[0] == "/CCITTFaxDecode"
        assert image.DecodeParms[0].K == -1
        assert image.read_raw_bytes() in tiff
        width, height = (float(side) for side in opened.pages[0].mediabox[2:])
        assert (width, height) == pytest.approx((1728 / 204 * 72, 2200 / 196 * 72), abs=0.1)


def test_pages_show_dark_text_on_mostly_white_paper() -> None:
    for page in drawing.render(fax(pages=4)):
        black = page.histogram()[0] / (1728 * 2200)
        assert 0.01 < black < 0.15


def test_every_page_differs_and_so_does_every_fax() -> None:
    pages = [page.tobytes() for one in ("f-1", "f-2") for page in drawing.render(fax(one, pages=4))]
    assert len(set(pages)) == 8


def test_an_odd_fax_id_can_be_drawn() -> None:
    assert drawing.render(fax("\ud800\0é/" + "x" * 300))


@pytest.mark.parametrize("distinct", [True, False])
@pytest.mark.parametrize("fmt", ["pdf", "tiff"])
def test_bytes_of_a_fax_are_its_own_and_always_the_same(fmt: Format, distinct: bool) -> None:
    ours, again, other, other_user = (
        drawing.document(fax(distinct=distinct), fmt),
        drawing.document(fax(distinct=distinct), fmt),
        drawing.document(fax("f-2", distinct=distinct), fmt),
        drawing.document(fax(user="v", distinct=distinct), fmt),
    )
    assert ours == again
    assert len({ours, other, other_user}) == 3


def test_the_same_tiff_gives_the_same_pdf_whenever_it_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = drawing.template(1)
    tiff, pdf = made["tiff"], made["pdf"]
    convert = img2pdf.convert
    later = re.compile(rb"(?<=<)[0-9a-f]{32}(?=>)")
    monkeypatch.setattr(img2pdf, "convert", lambda *a, **k: later.sub(b"f" * 32, convert(*a, **k)))
    assert drawing.encode_pdf(tiff) == pdf
    assert b"f" * 32 not in pdf


@pytest.mark.parametrize("variant", [0, 1])
def test_a_stamped_template_is_still_whole(variant: int) -> None:
    one = fax(distinct=False, pages=3)
    with pikepdf.open(
        io.BytesIO(drawing.document(one, "pdf", variant)), attempt_recovery=False
    ) as opened:
        assert len(opened.pages) == 3
        assert opened.check_pdf_syntax() == []
    with Image.open(io.BytesIO(drawing.document(one, "tiff", variant))) as image:
        assert frames_of(image) == 3
        image.seek(2)
        image.load()


def test_a_variant_of_a_pdf_has_other_bytes_of_the_same_length() -> None:
    one = fax(distinct=False)
    assert drawing.document(one, "pdf", 1) != drawing.document(one, "pdf", 2)
    assert len(drawing.document(one, "pdf", 1)) == len(drawing.document(one, "pdf", 2))


def test_a_mark_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="64 characters"):
        drawing.stamp(b"", "short")
