"""The commands, and the only package that puts the parts together."""

import io
import signal
import sys
import threading
from collections.abc import Sequence

from poller.cli import bugs, stdio
from poller.errors import PollerError


def entry() -> int:
    """Run the command `poller`, and end even if a thread hangs on a dead disk."""
    try:
        code = main()
    except SystemExit as usage:  # from argparse
        code = int(usage.code or 0)
    # Only the exit is left: another Ctrl-C would make Python print a traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if threading.active_count() == 1:
        return code
    from poller.cli.exit import leave

    return leave(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Print every error as one sentence on stderr."""
    stdio.prepare()
    try:
        try:
            return _answered(sys.argv[1:] if argv is None else argv)
        finally:
            stdio.flush()  # or the interpreter does it at exit, and complains
    except BrokenPipeError:  # the reader of our output has gone
        stdio.give_up()
        return 141
    except OSError as error:
        stdio.give_up()
        stdio.complain(f"poller: stdout cannot be written: {error.strerror}")
        return 1
    except KeyboardInterrupt:
        return 130


def _answered(words: Sequence[str]) -> int:
    name = "poller"
    try:
        from poller.cli import commands

        options = vars(commands.build(words).parse_args(words))
        name = options.pop("command")
        if name == "run":
            # Until the loop handles SIGHUP it would kill the process, and the imports take a while.
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        _log_to_stderr()
        return commands.run(name, options)
    except PollerError as error:
        stdio.complain(_told(error, name))
        return error.exit_code
    except BrokenPipeError:  # from stdout: all others are handled where they occur
        raise
    except Exception as bug:  # noqa: BLE001 - the last place that can turn it into a sentence
        stdio.flush()  # usually raises if stdout caused the error
        return bugs.report(bug, name)


def _told(error: PollerError, command: str) -> str:
    if error.exit_code == 78:
        return str(error)  # a line for each problem
    from poller.topic import see

    told = see(error.told, "service-does-not-start") if command == "run" else error.told
    return f"poller: {told}"


def _log_to_stderr() -> None:
    """Redact what libraries and threads log until the command starts a log, if it has one."""
    from poller import log

    log.configure("warning", "console", None, sys.stderr or io.StringIO())
    log.install_hooks()


__all__ = ["entry", "main"]
