"""PDF: prove that it is whole, and count its pages.

qpdf reads the objects; this module judges them. qpdf's own list of pages is no use: it rewrites
/Count, silently leaves out what is not a page, and crashes on some loops. Only one of its warnings
means that something is lost, see `_LOST`.
"""

import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import pikepdf

from poller.documents.flaw import Flaw, has_hole
from poller.documents.view import MendedView, View

_END = b"%%EOF"
_PADDING = b"\0\t\n\f\r "
_TAIL_MAX = 1024  # pdf.js and Acrobat look this far before the end for %%EOF
_CHUNK = 1 << 16

# The cross-reference table points to bytes that are not the object. We tried 947 public PDFs whose
# pages all show elsewhere (most are test cases of pdf.js, strange on purpose): none causes this
# warning about an object that a page shows, while each overwritten page or image does. Whole PDFs
# cause the other warnings too: "reported number of objects" (66 files), "expected endstream" and
# "lacks /Length" (6: qpdf finds the end itself), white space, duplicate keys, carriage returns.
_LOST = re.compile(r"expected (\d+ \d+|n n) obj")

_STREAM_MAX = 16 << 20  # longer than a fax page; each stream is read at once


def pages(file: BinaryIO, size: int) -> int:
    """Count the pages of a whole PDF; raises Flaw."""
    end = _end(file, size)
    try:
        return _look(View(file, end))
    except Flaw as flaw:
        if flaw.code == "pdf-encrypted":
            raise
    return _look(MendedView(file, end))


def _end(file: BinaryIO, size: int) -> int:
    """Find the end of the last %%EOF; raises Flaw.

    Any amount of padding may follow it, and up to a kilobyte of other bytes.
    """
    size = _without_padding(file, size)
    start = max(0, size - _TAIL_MAX - len(_END))
    file.seek(start)
    last = file.read(size - start)
    at = last.rfind(_END)
    if at < 0 or _begins_update(last[at + len(_END) :].lstrip(_PADDING)):
        raise Flaw("pdf-no-eof")
    return start + at + len(_END)


def _without_padding(file: BinaryIO, size: int) -> int:
    left = 0
    while size and not left:
        start = max(0, size - _CHUNK)
        file.seek(start)
        left = len(file.read(size - start).rstrip(_PADDING))
        size = start + left
    return size


def _begins_update(tail: bytes) -> bool:
    """Tell whether these bytes begin more PDF that was cut off: an object, a comment or a table."""
    return tail[:1].isdigit() or tail[:1] == b"%" or (bool(tail) and b"xref".startswith(tail[:4]))


def _look(view: View) -> int:
    try:
        with _open(view) as pdf:
            return _count(pdf)
    except (Flaw, MemoryError):
        raise
    except pikepdf.PasswordError:
        raise Flaw("pdf-encrypted") from None
    except Exception:  # noqa: BLE001  # qpdf raises all kinds of errors over malformed bytes
        raise Flaw("pdf-unreadable") from None
    finally:
        if view.failure is not None:
            raise view.failure


def _open(view: View) -> pikepdf.Pdf:
    # No mmap: an I/O error in a mapping raises SIGBUS, which ends the process.
    # No inherit_page_attributes: it makes qpdf build its list of pages.
    return pikepdf.open(
        view,  # type: ignore[arg-type]  # qpdf needs only what a reader has
        attempt_recovery=False,
        suppress_warnings=True,
        inherit_page_attributes=False,
        access_mode=pikepdf.AccessMode.stream,
    )


def _count(pdf: pikepdf.Pdf) -> int:
    root: Any = pdf.Root.get("/Pages")
    count, shown = 0, set[tuple[int, int]]()
    for node in _nodes(root):
        count += "/Kids" not in node
        for thing in _shown(node, shown):
            _check_shown(thing)
    if count != root.get("/Count"):
        raise Flaw("pdf-page-tree")
    if any(_LOST.search(str(warning)) for warning in pdf.get_warnings()):
        raise Flaw("pdf-object-lost")
    if not count:
        raise Flaw("pdf-no-pages")
    return count


def _nodes(root: Any) -> Iterator[pikepdf.Dictionary]:
    """Walk the page tree; raises Flaw if it is not a tree.

    A missing kid is null. A kid that occurs twice means that a damaged entry bears another's
    number.
    """
    seen: set[tuple[int, int]] = set()
    todo = [root]
    while todo:
        node = todo.pop()
        if not isinstance(node, pikepdf.Dictionary) or node.objgen in seen or not node.is_indirect:
            raise Flaw("pdf-page-tree")
        seen.add(node.objgen)
        kids = node.get("/Kids")
        if isinstance(kids, pikepdf.Array):
            todo.extend(kids)
        elif kids is not None or node.get("/Type") == "/Pages" or node is root:
            raise Flaw("pdf-page-tree")
        yield node


def _shown(node: pikepdf.Dictionary, seen: set[tuple[int, int]]) -> Iterator[Any]:
    """Yield what a page shows, each object once: its contents, images and forms."""
    contents = node.get("/Contents")
    things = list[Any](contents) if isinstance(contents, pikepdf.Array) else [contents]
    resources = node.get("/Resources")
    if _is_new(resources, seen) and isinstance(resources, pikepdf.Dictionary):
        images = resources.get("/XObject")
        if _is_new(images, seen) and isinstance(images, pikepdf.Dictionary):
            things += [image for _, image in images.items()]
    yield from (thing for thing in things if _is_new(thing, seen))


def _is_new(thing: Any, seen: set[tuple[int, int]]) -> bool:
    if not isinstance(thing, pikepdf.Object) or not thing.is_indirect:
        return True
    new = thing.objgen not in seen
    seen.add(thing.objgen)
    return new


def _check_shown(thing: Any) -> None:
    """Raise Flaw if all bytes of a stream are zeros: no encoding writes only zeros."""
    if not isinstance(thing, pikepdf.Stream) or not 0 < int(thing.get("/Length", 0)) <= _STREAM_MAX:
        return
    encoding = _first(thing.get("/Filter"))
    if encoding is None or encoding == "/RunLengthDecode":
        return
    data = bytes(thing.get_raw_stream_buffer())
    if data and not any(data[:64]) and not any(data):
        raise Flaw("pdf-object-lost")
    parameters = _first(thing.get("/DecodeParms"))
    group_4 = isinstance(parameters, pikepdf.Dictionary) and parameters.get("/K", 0) < 0
    if encoding == "/CCITTFaxDecode" and group_4 and has_hole(data):
        raise Flaw("pdf-hole")


def _first(value: Any) -> Any:
    """Return the only value, or the first of an array: the last encoding that was applied."""
    return next(iter(value), None) if isinstance(value, pikepdf.Array) else value
