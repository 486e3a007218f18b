"""How a format's rules say that a document is not whole, and how they read it."""

import errno
from typing import BinaryIO


class Broken(Exception):
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
