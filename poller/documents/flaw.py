"""How a format's rules say that a document is not whole, and how they read it."""

import errno
from typing import BinaryIO

# Group 4 has no code of more than a dozen zero bits in a row; a lost sector is 512 bytes of them.
_HOLE = bytes(256)


class Flaw(Exception):
    """`code` is a key of PROBLEMS."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def exactly(file: BinaryIO, count: int) -> bytes:
    """Read `count` bytes that are known to be there; raises OSError when they are not."""
    data = file.read(count)
    if len(data) != count:
        raise OSError(errno.EIO, "the file became shorter while it was read")
    return data


def has_hole(group_4: bytes) -> bool:
    """Say whether a part of an image in Group 4 was lost to zeros; behind its end they are padding.

    Only there: a blank area is zeros in Deflate and in JPEG as well, and Group 3 fills with them.
    """
    return _HOLE in group_4.rstrip(b"\0")
