"""How the C library's allocator serves a process that runs for months."""

import ctypes
from contextlib import suppress

# glibc's malloc.h
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
_LARGE = 1 << 20  # bytes; with 128 KiB, where glibc begins, faxes came an eighth more slowly
_ARENAS = 2


def keep_little() -> None:
    """Have glibc give back what was needed at the busiest moment; before there are threads.

    It makes up to eight arenas per core, and each keeps what its threads once needed; and it comes to
    take large blocks, such as those of an image of many MiB, out of them, which leaves holes.
    """
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_ARENA_MAX, _ARENAS)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE)
