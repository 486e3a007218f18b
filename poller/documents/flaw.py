"""The error that says why a document is not whole, and what the checks of both formats share."""

import errno
from typing import BinaryIO

# Group 4 has no code with more than a dozen zero bits in a row; a lost sector has 512 zero bytes.
_HOLE = bytes(256)


class Flaw(Exception):
    """`code` is a key of PROBLEMS."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def exactly(file: BinaryIO, count: int) -> bytes:
    """Read `count` bytes that must be there; raises OSError if they are not."""
    data = file.read(count)
    if len(data) != count:
        raise OSError(errno.EIO, "the file became shorter during the read")
    return data


def has_hole(group_4: bytes) -> bool:
    """Tell whether part of a Group 4 image was lost to zeros; zeros after its end are padding.

    Do not use this for others: Deflate and JPEG also write blank areas as zeros, and Group 3 pads
    with zeros.
    """
    return _HOLE in group_4.rstrip(b"\0")
