"""Decode the image answer as it streams, in memory of constant size.

The answer is `{"fax_id", "file_name", "image"}` with the document as base64 text, up to 100 MB and
more. Only that one string is decoded on the way. All other bytes are kept as the *skeleton*, with
an empty string in the image's place, and a full JSON parser checks them at the end. So the scanner
only needs to know where strings begin and end, and how deep it is: anything that misleads it leaves
a skeleton that is not JSON.
"""

import binascii
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pybase64

from poller.efax.strict_json import strict_object
from poller.errors import BadAnswer
from poller.naming import fax_key

IMAGE_LIMIT = 1 << 30
SKELETON_LIMIT = 1 << 20

_STRUCTURE = re.compile(rb'["{}\[\],:]')
_STRING_STOP = re.compile(rb'["\\]')
_UNICODE_ESCAPE = re.compile(rb"\\u00([0-9A-Fa-f]{2})")
_WHITE_SPACE = (b" ", b"\t", b"\r", b"\n")


@dataclass(frozen=True)
class ImageAnswer:
    """What the answer contains besides the image; the server chose `file_name`, so nothing relies on it."""

    fax_id: str
    file_name: str | None = None


class ImageDecoder:
    """Feed the bytes of the answer as they arrive, then close; every flaw raises `BadAnswer`.

    Key order, unknown fields, white space and JSON escapes inside the base64 are all allowed.
    base64 is strict (RFC 4648: its alphabet, its padding), and a second `image` is refused. It
    decodes at most `limit` bytes, and everything except the image may have at most 1 MiB.
    """

    def __init__(self, fax_id: str, *, limit: int = IMAGE_LIMIT) -> None:
        self._fax_id = fax_id
        self._limit = limit
        self._fed = 0
        # Takes what comes next, from a position in a chunk, and returns the position after it.
        self._scan: Callable[[ImageDecoder, bytes, int], int] = ImageDecoder._structure
        self._decoded: list[bytes] = []  # of the chunk
        self._skeleton = bytearray()
        self._depth = 0
        self._in_object = False  # the outermost value is an object
        self._key_next = False
        self._string_start = 0
        self._string_is_key = False
        self._key: object = None
        self._value_of: object = None
        self._held = b""  # the beginning of an escape that the next chunk will complete
        self._base64 = _Base64()

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes of the answer; return the image bytes that they complete."""
        self._fed += len(chunk)
        if self._fed > 2 * self._limit + SKELETON_LIMIT:  # endless white space, for example
            raise BadAnswer("The image answer is larger than any fax can be.")
        self._decoded = []
        position = 0
        while position < len(chunk):
            position = self._scan(self, chunk, position)
        if self._base64.decoded > self._limit:
            raise BadAnswer("The image is larger than any fax can be.")
        return b"".join(self._decoded)

    def close(self) -> ImageAnswer:
        """Check that the answer is whole and about our fax."""
        fields = strict_object(bytes(self._skeleton), "image")
        if fields.get("errors"):
            raise BadAnswer("The image answer is an error message.")
        if fields.get("image") != "" or not self._base64.decoded:
            raise BadAnswer("The image answer contains no image.")
        self._check_fax_id(fields)
        name = fields.get("file_name")
        return ImageAnswer(self._fax_id, name if isinstance(name, str) else None)

    def _check_fax_id(self, fields: dict[str, Any]) -> None:
        theirs = fields.get("fax_id")
        if theirs is not None and fax_key(str(theirs)) != fax_key(self._fax_id):
            raise BadAnswer("The image answer is about another fax.")

    def _keep(self, piece: bytes) -> None:
        self._skeleton += piece
        if len(self._skeleton) > SKELETON_LIMIT:
            raise BadAnswer("The image answer contains too much besides the image.")

    def _structure(self, chunk: bytes, position: int) -> int:
        found = _STRUCTURE.search(chunk, position)
        if found is None:
            self._keep(chunk[position:])
            return len(chunk)
        self._keep(chunk[position : found.end()])
        if found[0] == b'"':
            self._begin_string()
        else:
            self._punctuation(found[0])
        return found.end()

    def _punctuation(self, mark: bytes) -> None:
        if mark in b"{[":
            if self._depth == 0:
                self._in_object = mark == b"{"
            self._depth += 1
        elif mark in b"}]":
            self._depth -= 1
        outermost = self._depth == 1 and self._in_object
        self._key_next = outermost and mark in b"{,"
        self._value_of = self._key if outermost and mark == b":" else None
        self._key = None

    def _begin_string(self) -> None:
        if self._value_of == "image":
            self._scan = ImageDecoder._image
        else:
            self._scan = ImageDecoder._string
            self._string_start = len(self._skeleton) - 1
            self._string_is_key = self._key_next
        self._key_next, self._value_of = False, None

    def _string(self, chunk: bytes, position: int) -> int:
        found = _STRING_STOP.search(chunk, position)
        if found is None:
            self._keep(chunk[position:])
            return len(chunk)
        self._keep(chunk[position : found.end()])
        if found[0] == b"\\":
            self._scan = ImageDecoder._escaped
        else:
            self._end_string()
        return found.end()

    def _escaped(self, chunk: bytes, position: int) -> int:
        self._keep(chunk[position : position + 1])
        self._scan = ImageDecoder._string
        return position + 1

    def _end_string(self) -> None:
        self._scan = ImageDecoder._structure
        if self._string_is_key:  # it may be written "\u0069mage"
            try:
                self._key = json.loads(self._skeleton[self._string_start :].decode())
            except ValueError:
                raise BadAnswer("The image answer is not JSON.") from None

    def _image(self, chunk: bytes, position: int) -> int:
        end = chunk.find(b'"', position)
        text = self._held + (chunk[position:] if end < 0 else chunk[position:end])
        self._held = b""
        if end < 0:
            text, self._held = _split_escape(text)
        self._decoded.append(self._base64.feed(_unescape(text) if b"\\" in text else text))
        if end < 0:
            return len(chunk)
        self._base64.close()
        self._keep(b'"')
        self._scan = ImageDecoder._structure
        return end + 1


class _Base64:
    """Strict base64 in pieces; white space is allowed everywhere."""

    def __init__(self) -> None:
        self.decoded = 0
        self._rest = b""
        self._padded = False

    def feed(self, text: bytes) -> bytes:
        if any(space in text for space in _WHITE_SPACE):
            text = text.translate(None, b"".join(_WHITE_SPACE))
        text = self._rest + text
        whole = len(text) & ~3
        text, self._rest = text[:whole], text[whole:]
        if not text:
            return b""
        if self._padded:
            raise BadAnswer("The image continues after its end.")
        try:
            piece = pybase64.b64decode(text, validate=True)
        except binascii.Error:
            raise BadAnswer("The image is not strict base64.") from None
        self._padded = text.endswith(b"=")
        self.decoded += len(piece)
        return piece

    def close(self) -> None:
        if self._rest:
            raise BadAnswer("The image's base64 is cut off.")


def _split_escape(text: bytes) -> tuple[bytes, bytes]:
    """Cut off an incomplete escape at the end."""
    start = text.rfind(b"\\", max(0, len(text) - 5))
    tail = text[start:] if start >= 0 else b""
    incomplete = tail == b"\\" or (tail.startswith(b"\\u") and len(tail) < 6)
    return (text[:start], tail) if incomplete else (text, b"")


def _unescape(text: bytes) -> bytes:
    """Undo the escapes that base64 can contain; any other leaves a backslash, which is not base64."""
    if b"\\\\" in text:  # otherwise `\\nr` would pass for white space
        raise BadAnswer("The image is not strict base64.")
    text = text.replace(b"\\/", b"/")
    for escape in (b"\\n", b"\\r", b"\\t"):
        text = text.replace(escape, b"")
    return _UNICODE_ESCAPE.sub(lambda found: bytes.fromhex(found[1].decode()), text)
