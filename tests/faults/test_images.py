"""Rows 39 and 40 of the fault matrix: images that are huge, and images in which bits were flipped."""

import asyncio
import base64
import io
import itertools
import json
import random
import sys
from collections import Counter
from pathlib import Path

import pikepdf
import pytest

from poller.documents.proof import inspect
from poller.efax.image import ImageDecoder
from poller.errors import BadAnswer
from poller.ledger import State
from poller.simulator import Simulator
from poller.simulator.drawing import template
from poller.simulator.state import Format
from tests.acceptance.installation import Installation, arrived, assert_stored, populated
from tests.conftest import Event
from tests.exhaustive import EXHAUSTIVE
from tests.faults.network import bench
from tests.faults.proxy import Harm, proxied

MEBIBYTE = 1 << 20

# -- row 39 -------------------------------------------------------------------------------------------

HUGE = (75 if EXHAUSTIVE else 15) * MEBIBYTE  # of the document; its base64 is a third longer
MORE_THAN_FOR_A_SMALL_ONE = 48 * MEBIBYTE
# VmHWM, because getrusage would count the memory of the forked test process.
MEASURED = """
import re, sys
from pathlib import Path
from poller.cli import main
code = main(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1], file=sys.stderr)
raise SystemExit(code)
"""


def huge_pdf(size: int) -> bytes:
    """A whole PDF whose one page has an attachment that cannot be compressed."""
    pdf = pikepdf.new()
    pdf.add_blank_page(page_size=(612, 792))
    pdf.Root.Attachment = pdf.make_stream(random.Random(1).randbytes(size))
    out = io.BytesIO()
    pdf.save(out, compress_streams=False)
    return out.getvalue()


async def peak_of_once(installation: Installation) -> int:
    """Run `poller once`, which must store everything; return its peak memory in bytes."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", MEASURED, "once", "--json", "-c", str(installation.config)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=installation.environ,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    assert json.loads(out)["stored"] == 1
    return int(err.split()[-1]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says how much memory a process had")
@pytest.mark.timeout(300)
async def test_row_39_a_huge_image_through_a_narrow_line_takes_no_more_memory_than_a_small_one(
    tmp_path: Path,
) -> None:
    async with Simulator(seed=1) as simulator, proxied(simulator.port) as proxy:
        proxy.harms = [Harm(b"/image?", bytes_per_s=40e6)]
        installation = Installation(tmp_path, proxy.url)
        arrived(populated(simulator))
        small = await peak_of_once(installation)
        (fax,) = arrived(simulator, document=huge_pdf(HUGE))
        huge = await peak_of_once(installation)
        assert installation.image_of(fax).stat().st_size > HUGE
        assert_stored(installation, simulator)
    assert huge - small < MORE_THAN_FOR_A_SMALL_ONE, f"{small >> 20} MiB, then {huge >> 20} MiB"


# -- row 40 -------------------------------------------------------------------------------------------

POSITIONS = 10**9 if EXHAUSTIVE else 150


def fate(body: bytes, pages: int) -> str:
    """What happens to an image answer: refused as an answer or as a document, or accepted as whole."""
    decoder = ImageDecoder("a")
    try:
        document = decoder.feed(body)
        decoder.close()
        found = inspect(io.BytesIO(document))
    except BadAnswer:
        return "refused"
    if found.problem is not None or found.pages != pages:
        return "broken"
    return "undetected"


@pytest.mark.timeout(3600 if EXHAUSTIVE else 300)
@pytest.mark.parametrize(("kind", "pages"), [("pdf", 2), ("tiff", 2)])
def test_row_40_of_flipped_bits_those_that_break_base64_or_structure_are_found(
    kind: Format, pages: int
) -> None:
    """The others are inside the packed pages, which only TLS protects; the runbook says so."""
    document = template(pages)[kind]
    text = base64.b64encode(document)
    before, behind = b'{"fax_id": "a", "image": "', b'"}'
    positions = random.Random(1).sample(range(len(text)), min(POSITIONS, len(text)))
    fates: Counter[str] = Counter()
    for at, bit in itertools.product(positions, range(8)):
        flipped = bytearray(text)
        flipped[at] ^= 1 << bit
        fates[fate(before + bytes(flipped) + behind, pages)] += 1
    share = {name: round(count / fates.total(), 3) for name, count in fates.items()}
    print(f"row 40, {kind} of {len(document)} bytes, {fates.total()} flips: {share}")

    assert fate(before + text + behind, pages) == "undetected"
    # 64 of 256 characters are base64: the highest bit never gives one, other bits often do not.
    assert share["refused"] > 0.4
    assert share["undetected"] < 0.6


@pytest.mark.parametrize(
    ("flipped", "failures"),
    [
        pytest.param(b'"fax_id"', 0, id="structure-had-again-at-once"),
        pytest.param(b'"image": "JVBERi', 1, id="magic-had-again-later"),
        pytest.param(b"JSVFT0Y", 0, id="end-of-the-pdf-had-again-at-once"),
    ],
)
async def test_row_40_a_bit_that_was_flipped_on_the_way_is_found_and_the_fax_had_again(
    tmp_path: Path, events: list[Event], flipped: bytes, failures: int
) -> None:
    async with bench(tmp_path) as work:
        await work.cycle()
        head = huge_pdf(1000).rstrip().removesuffix(b"%%EOF")
        fax = work.receive(document=head + b"\n" * (-len(head) % 3) + b"%%EOF\n")
        harm = Harm(f"/{fax.fax_id}/image".encode(), times=1, flip_in=flipped)
        work.proxy.harms = [harm]
        await work.cycle()
        row = await work.row(fax)
        assert (row.failures, row.state is State.STORED) == (failures, not failures)
        await work.heal()
        assert work.proxy.asked(harm.needle) == 2
