"""The commands; the only place that puts the parts together."""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from poller import VERSION
from poller.cli.parser import build
from poller.errors import PollerError


def entry() -> int:
    """Run the command `poller`; it ends also when a thread hangs in a dead disk."""
    from poller.cli.leaving import leave

    try:
        return leave(main())
    except SystemExit as usage:  # of argparse
        return leave(int(usage.code or 0))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. Every error that poller expects is one sentence on stderr."""
    try:
        try:
            return _answered(argv)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # the interpreter would do it at its end, and complain
    except BrokenPipeError:
        # Whoever read our output has gone; what is left of it must not be flushed again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _answered(argv: Sequence[str] | None) -> int:
    words = sys.argv[1:] if argv is None else argv
    arguments = build(words).parse_args(words)
    try:
        return _run(arguments)
    except PollerError as error:
        print(f"poller: {error}" if error.exit_code != 78 else str(error), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _run(arguments: argparse.Namespace) -> int:
    """Commands are imported when they are used: `status` need not load a PDF library."""
    paths: list[Path] = [*arguments.config_before, *arguments.config_after]
    match arguments.command:
        case "run":
            # It would end the process until the loop handles it, and the import takes a while.
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            from poller.cli.run import run

            return run(paths)
        case "once":
            from poller.cli.once import once

            return once(paths, user=arguments.user, as_json=arguments.json)
        case "check":
            from poller.cli.check import check

            return check(paths, online=arguments.online)
        case "status":
            from poller.cli.show import show_status

            return show_status(paths, as_json=arguments.json)
        case "retry":
            from poller.cli.retry import retry

            return retry(paths, arguments.fax_id, gap=arguments.gap, as_json=arguments.json)
        case "dismiss":
            from poller.cli.dismiss import dismiss

            asked = (arguments.fax_id, arguments.gap, arguments.reason)
            return dismiss(paths, *asked, as_json=arguments.json)
        case "verify":
            from poller.cli.verify import verify

            asked_for = (arguments.repair, arguments.taken)
            return verify(paths, *asked_for, as_json=arguments.json)
        case "backfill":
            from poller.cli.backfill import backfill, cancel

            user, window = arguments.user, (arguments.from_, arguments.to)
            if arguments.cancel:
                return cancel(paths, user, window, as_json=arguments.json)
            return backfill(paths, user, *window, as_json=arguments.json)
        case "explain":
            from poller.cli.explain import explain

            return explain(paths, arguments.fax_id, as_json=arguments.json)
        case "plan":
            from poller.cli.plan import show_plan

            return show_plan(paths, as_json=arguments.json)
        case "backup":
            from poller.cli.backup import backup

            return backup(paths, arguments.path)
        case "rebuild":
            from poller.cli.rebuild import rebuild

            return rebuild(paths, since=arguments.since, as_json=arguments.json)
        case "simulate":
            from poller.simulator import cli as simulator

            return asyncio.run(simulator.run(arguments))
        case _:
            from poller.cli.demo import demo

            return demo()


__all__ = ["VERSION", "entry", "main"]
