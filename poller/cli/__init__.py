"""The commands; the only place that puts the parts together."""

import io
import signal
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from poller.cli import bugs, stdio
from poller.errors import PollerError

if TYPE_CHECKING:
    import argparse
    from pathlib import Path


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
    command = "poller"
    try:
        from poller.cli.parser import build

        arguments = build(words).parse_args(words)
        command = arguments.command
        if command == "run":
            # It would end the process until the loop handles it, and the imports take a while.
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        _log_to_stderr()
        return _run(arguments)
    except PollerError as error:
        stdio.complain(f"poller: {error}" if error.exit_code != 78 else str(error))
        return error.exit_code
    except BrokenPipeError:  # of stdout: every other one is met where it comes up
        raise
    except Exception as bug:  # noqa: BLE001 - the last place that can say it in a sentence
        stdio.flush()  # raises, mostly, where it was stdout that failed
        return bugs.report(bug, command)


def _log_to_stderr() -> None:
    """Redact what libraries and threads say, until the command starts a log, if it has one."""
    from poller import log

    log.configure("warning", "console", None, sys.stderr or io.StringIO())
    log.install_hooks()


def _run(arguments: "argparse.Namespace") -> int:
    """Commands are imported when they are used: `status` need not load a PDF library."""
    paths: list[Path] = [*arguments.config_before, *arguments.config_after]
    match arguments.command:
        case "run":
            from poller.cli.run_command import run

            return run(paths)
        case "once":
            from poller.cli.once_command import once

            return once(paths, user=arguments.user, as_json=arguments.json)
        case "check":
            from poller.cli.check_command import check

            return check(paths, online=arguments.online)
        case "status":
            from poller.cli.status_command import show_status

            return show_status(paths, as_json=arguments.json)
        case "retry":
            from poller.cli.retry_command import retry

            return retry(paths, arguments.fax_id, gap=arguments.gap, as_json=arguments.json)
        case "dismiss":
            from poller.cli.dismiss_command import dismiss

            asked = (arguments.fax_id, arguments.gap, arguments.reason)
            return dismiss(paths, *asked, as_json=arguments.json)
        case "verify":
            from poller.cli.verify_command import verify

            asked_for = (arguments.repair, arguments.taken)
            return verify(paths, *asked_for, as_json=arguments.json)
        case "backfill":
            from poller.cli.backfill_command import backfill, cancel

            user, window = arguments.user, (arguments.from_, arguments.to)
            if arguments.cancel:
                return cancel(paths, user, window, as_json=arguments.json)
            return backfill(paths, user, *window, as_json=arguments.json)
        case "explain":
            from poller.cli.explain_command import explain

            return explain(paths, arguments.fax_id, as_json=arguments.json)
        case "plan":
            from poller.cli.plan_command import show_plan

            return show_plan(paths, as_json=arguments.json)
        case "backup":
            from poller.cli.backup_command import backup

            return backup(paths, arguments.path)
        case "rebuild":
            from poller.cli.rebuild_command import rebuild

            return rebuild(paths, since=arguments.since, as_json=arguments.json)
        case "simulate":
            import asyncio

            from poller.simulator import simulate

            return asyncio.run(simulate.run(arguments))
        case _:
            from poller.cli.demo_command import demo

            return demo()


__all__ = ["entry", "main"]
