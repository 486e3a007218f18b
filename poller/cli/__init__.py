"""The commands; the only place that puts the parts together."""

import io
import signal
import sys
import threading
from collections.abc import Sequence

from poller.cli import bugs, stdio
from poller.errors import PollerError


def entry() -> int:
    """Run the command `poller`; it ends also when a thread hangs in a dead disk."""
    try:
        code = main()
    except SystemExit as usage:  # of argparse
        code = int(usage.code or 0)
    # What is left is to end, and Python would show where in it Ctrl-C came.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if threading.active_count() == 1:
        return code
    from poller.cli.exit import leave

    return leave(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. Whatever goes wrong is one sentence on stderr."""
    stdio.prepare()
    try:
        try:
            return _answered(sys.argv[1:] if argv is None else argv)
        finally:
            stdio.flush()  # the interpreter would do it at its end, and complain
    except BrokenPipeError:  # whoever read our output has gone
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
            # It would end the process until the loop handles it, and the imports take a while.
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        _log_to_stderr()
        return commands.run(name, options)
    except PollerError as error:
        stdio.complain(_told(error, name))
        return error.exit_code
    except BrokenPipeError:  # of stdout: every other one is met where it comes up
        raise
    except Exception as bug:  # noqa: BLE001 - the last place that can say it in a sentence
        stdio.flush()  # raises, mostly, where it was stdout that failed
        return bugs.report(bug, name)


def _told(error: PollerError, command: str) -> str:
    if error.exit_code == 78:
        return str(error)  # a line for each problem
    from poller.topic import see

    told = see(error.told, "service-does-not-start") if command == "run" else error.told
    return f"poller: {told}"


def _log_to_stderr() -> None:
    """Redact what libraries and threads say, until the command starts a log, if it has one."""
    from poller import log

    log.configure("warning", "console", None, sys.stderr or io.StringIO())
    log.install_hooks()


__all__ = ["entry", "main"]
