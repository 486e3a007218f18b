"""stdout and stderr as commands find them: in any locale, closed, full, or with nobody reading."""

import io
import os
import sys
from typing import Final

_HANG_TIMEOUT_S: Final = 5.0


def prepare() -> None:
    """Let what the locale has no character for be printed as an escape; it raises otherwise."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def complain(sentence: str) -> None:
    """Print a sentence on stderr; that nobody can read it is no further error.

    A terminal that was stopped gets it when it goes on within some seconds; then the command ends.
    """
    if sys.stderr is None:  # it would be stdout to LineOutput
        return
    from poller.log.output import LineOutput

    encoding = sys.stderr.encoding or "utf-8"
    output = LineOutput(sys.stderr)
    output.write(sentence.encode(encoding, "backslashreplace").decode(encoding))
    output.flush(_HANG_TIMEOUT_S)


def flush() -> None:
    """Write out what stdout holds; OSError where it cannot, or could not before."""
    if sys.stdout is not None:
        sys.stdout.flush()


def give_up() -> None:
    """Throw away what stdout holds: the interpreter would try again at its end, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
