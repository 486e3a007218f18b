"""stdout and stderr in any condition: any locale, closed, full, or without a reader."""

import io
import os
import sys
from typing import Final

_HANG_TIMEOUT_S: Final = 5.0


def prepare() -> None:
    """Print characters that the locale lacks as escapes instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def complain(sentence: str) -> None:
    """Print a sentence on stderr; ignore the error if nobody can read it.

    A stopped terminal has a few seconds to continue and show it; then the command ends.
    """
    if sys.stderr is None:  # LineOutput would take None for stdout
        return
    from poller.log.output import LineOutput

    encoding = sys.stderr.encoding or "utf-8"
    output = LineOutput(sys.stderr)
    output.write(sentence.encode(encoding, "backslashreplace").decode(encoding))
    output.flush(_HANG_TIMEOUT_S)


def flush() -> None:
    """Write out what stdout holds. Raises OSError if that fails now or has failed before."""
    if sys.stdout is not None:
        sys.stdout.flush()


def give_up() -> None:
    """Throw away what stdout holds: the interpreter would try again at exit, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
