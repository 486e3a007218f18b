"""stdout and stderr as commands find them: in any locale, closed, full, or with nobody reading."""

import io
import os
import sys
from contextlib import suppress


def prepare() -> None:
    """Let what the locale has no character for be printed as an escape; it raises otherwise."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def complain(sentence: str) -> None:
    """Print a sentence on stderr; that nobody can read it is no further error."""
    if sys.stderr is not None:  # None would be stdout to `print`
        with suppress(OSError, ValueError):
            print(sentence, file=sys.stderr, flush=True)


def flush() -> None:
    """Write out what stdout holds; OSError where it cannot, or could not before."""
    if sys.stdout is not None:
        sys.stdout.flush()


def give_up() -> None:
    """Throw away what stdout holds: the interpreter would try again at its end, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
