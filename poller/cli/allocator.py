"""How the C library's allocator serves a process that runs for months."""

import ctypes
from contextlib import suppress

_M_ARENA_MAX = -8  # glibc's malloc.h
_ARENAS = 2


def share_arenas() -> None:
    """Let all threads allocate from two arenas, where glibc is told so before it makes more.

    It makes up to eight per core, and each keeps what its threads once needed at their busiest.
    """
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)
