"""Report a bug in one sentence that shows where it is and nothing private.

Python's traceback may quote a patient's data, and it does not help an operator.
"""

import errno
import platform
import sys
import traceback
from pathlib import Path

from poller.cli import stdio

_PACKAGE = Path(__file__).parents[1]
_FRAMES = 12
_HAVE_A_LOG = ("run", "once", "backfill", "verify")


def report(bug: Exception, command: str) -> int:
    """Print that `command` met a bug or ran out of memory, and return the exit code."""
    try:
        if _is_lack(bug):
            stdio.complain(f"poller: the limits on memory and threads are too low for `{command}`.")
        elif isinstance(bug, UnicodeEncodeError) and sys.getfilesystemencoding() != "utf-8":
            stdio.complain("poller: this locale cannot name a file; start with LC_ALL=C.UTF-8.")
        else:
            _report(bug, command)
    except Exception:  # noqa: BLE001 - memory may be short; this sentence needs none
        stdio.complain("poller: an unexpected error ended the command.")
    return 1


def _report(bug: Exception, command: str) -> None:
    # Imported here so that `--help` does not wait for them.
    from poller import VERSION, events, log
    from poller.log.redaction import message_of

    if command in _HAVE_A_LOG:
        what = "An unexpected error ended a command."
        log.say(events.InternalError(what, bug))
    what = " ".join(log.redact(f"{type(bug).__name__}: {message_of(bug)}").split())
    stdio.complain(
        f"poller: `{command}` met a bug and ended. Please report this line, which holds no secret "
        f"and no whole number: {what} (poller {VERSION}, Python {platform.python_version()}, "
        f"{platform.system()}, {_where(bug)})"
    )


def _where(bug: Exception) -> str:
    """Return the path to the error, innermost first: files, lines and functions, no values."""
    frames = traceback.extract_tb(bug.__traceback__)[-_FRAMES:]
    return " < ".join(f"{_file(one.filename)}:{one.lineno} {one.name}" for one in reversed(frames))


def _file(name: str) -> str:
    path = Path(name)
    if path.is_relative_to(_PACKAGE):
        return str(path.relative_to(_PACKAGE))
    return "/".join(path.parts[-2:])


def _is_lack(bug: Exception) -> bool:
    """Return whether memory or threads ran out; Python has no error class for two of the cases."""
    return (
        isinstance(bug, MemoryError)
        or (isinstance(bug, OSError) and bug.errno == errno.ENOMEM)
        or (isinstance(bug, ImportError) and "failed to map segment" in str(bug))
        or (isinstance(bug, RuntimeError) and "can't start new thread" in str(bug))
    )
