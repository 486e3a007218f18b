"""The commands: how each is called, what it takes, and the function that does it."""

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

from poller import VERSION, clock
from poller.window import EARLIEST

_LATEST = datetime(2200, 1, 1, tzinfo=UTC)
_DESCRIPTION = """\
Gets every fax received through the eFax Enterprise API onto the disk: none lost, none twice, none half.
"""
_EPILOG = """\
exit codes: 0 done · 1 it did not all work, or a fax is unknown · 2 wrong usage · 3 nobody knows
whether a fax was sent · 73 the ledger, the storage directory or the port cannot be used · 75 another
poller holds this state · 78 the configuration is wrong (every problem is printed with file and line)

first steps:
  poller demo                          see it work, without an account, in half a minute
  poller -c poller.yaml check          is the configuration right?
  poller -c poller.yaml check --online does eFax accept it?
  poller -c poller.yaml once           one round, in the foreground
  poller -c poller.yaml run            the daemon
"""
_Argument = tuple[tuple[str, ...], dict[str, Any]]  # of `ArgumentParser.add_argument`
_OR_WHOSE = "or ACCOUNT/USER/FAX_ID"


def instant(word: str) -> datetime:
    """Read an ISO 8601 time with offset; argparse.ArgumentTypeError says what is wrong with it."""
    try:
        at = clock.instant(word)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{word!r} {error}") from None
    if not EARLIEST <= at < _LATEST:
        raise argparse.ArgumentTypeError(f"{word!r} is before 1970 or after 2199")
    return at


def duration(word: str) -> timedelta:
    """Read a length of time as the configuration has it; argparse.ArgumentTypeError says what is wrong."""
    from poller.config import values
    from poller.config.position import Node, Source

    try:
        return values.duration("s")(Node(Source("", Path()), value=word))
    except values.WrongValueError as error:
        raise argparse.ArgumentTypeError(f"{word!r} {error}") from None


def _argument(*names: str, **options: Any) -> _Argument:
    return names, options


def _flag(name: str, text: str) -> _Argument:
    return _argument(name, action="store_true", help=text)


def _time(name: str, destination: str, text: str) -> _Argument:
    return _argument(name, dest=destination, type=instant, metavar="TIME", help=text)


def _gap(text: str) -> _Argument:
    return _argument("--gap", nargs=3, metavar=("ACCOUNT/USER", "FROM", "TO"), help=text)


def _path(name: str, text: str, **options: Any) -> _Argument:
    return _argument(name, type=Path, metavar="PATH", help=text, **options)


def _config(destination: str) -> _Argument:
    text = "a YAML file, or a directory of *.yaml; may be given several times (/etc/poller)"
    names, options = _path("--config", text, action="append", default=[], dest=destination)
    return ("-c", *names), options


def _fax(name: str, count: str | None = None, text: str = _OR_WHOSE, **options: Any) -> _Argument:
    return _argument(name, nargs=count, metavar="FAX_ID", help=text, **options)


_JSON = _argument("--json", dest="as_json", action="store_true", help="print JSON")
# What each does, and what it takes: the keyword arguments of the function NAME in `NAME_command`.
COMMANDS: dict[str, tuple[str, tuple[_Argument, ...]]] = {
    "run": ("the daemon, in the foreground; SIGTERM drains, SIGHUP reloads", ()),
    "once": (
        "poll every user once, fetch all that is due, summarise",
        (_argument("--user", metavar="ACCOUNT/USER", help="only this user"), _JSON),
    ),
    "check": (
        "check the configuration",
        (
            _flag(
                "--online",
                "also ask eFax: /health, sign-in, one list call per user; beside a running daemon, "
                "report what that found instead of signing in",
            ),
        ),
    ),
    "status": ("how it is doing, from the ledger", (_JSON,)),
    "retry": (
        "make quarantined faxes, or those named, due now",
        (
            _fax("fax_ids", "*", f"{_OR_WHOSE}; without any, all that are quarantined"),
            _gap("list this time again, even if it was dismissed"),
            _JSON,
        ),
    ),
    "backup": (
        "copy the ledger, beside a running daemon too",
        (_path("target", "the new file; an existing one is not overwritten"),),
    ),
    "dismiss": (
        "stop the alarm for a fax or gap that cannot be had",
        (
            _fax("fax_id", "?"),
            _gap("times in ISO 8601 with offset, as `status --json` shows them"),
            _argument("--reason", metavar="TEXT", help="why; needed for a fax"),
            _JSON,
        ),
    ),
    "verify": (
        "hash what is on the disk against the ledger",
        (
            _flag("--repair", "fetch damaged faxes again"),
            _fax("--taken", "+", "fetch these again although consumers took them away", default=[]),
            _JSON,
        ),
    ),
    "backfill": (
        "list an old window of a user once more, and fetch what is new in it",
        (
            _argument("key", metavar="ACCOUNT/USER"),
            _time("--from", "start", "with offset, such as 2026-03-01T00:00:00Z"),
            _time("--to", "end", "with offset, such as 2026-03-01T00:00:00Z"),
            _flag("--cancel", "end this user's waiting backfills"),
            _JSON,
        ),
    ),
    "purge": (
        "delete at eFax, now, what the rules of `delete` allow",
        (
            _argument("key", nargs="?", metavar="ACCOUNT/USER", help="only this user"),
            _time("--before", "before", "what was stored before this, whatever delete.after says"),
            _flag("--dry-run", "only say what would go, and why the rest would not"),
            _JSON,
        ),
    ),
    "explain": (
        "one fax as a timeline: windows, attempts, file, evidence",
        (_fax("fax_id"), _JSON),
    ),
    "plan": ("next polls, requests per hour against each limit, and warnings", (_JSON,)),
    "rebuild": (
        "a new ledger from the newest snapshot and the files in the storage",
        (
            _time(
                *("--since", "since"),
                "list again from this time or earlier, such as 2026-03-01T00:00:00Z",
            ),
            _JSON,
        ),
    ),
    "send": (
        "send PDFs or TIFFs as one fax",
        (
            _argument("key", metavar="ACCOUNT/USER"),
            _argument(
                "--to",
                metavar="NUMBER",
                required=True,
                help="1 and ten digits in North America, such as 13235551212; else with +",
            ),
            _argument("files", nargs="+", type=Path, metavar="FILE", help="a PDF or TIFF"),
            _flag("--wait", "until it has come to its number, or cannot"),
            _JSON,
        ),
    ),
    "selftest": (
        "send a page to the user's own number, and see that it becomes a file",
        (
            _argument("key", metavar="ACCOUNT/USER"),
            _argument(
                "--within",
                type=duration,
                default=timedelta(minutes=15),
                metavar="DURATION",
                help="such as 15m, which is the default",
            ),
            _JSON,
        ),
    ),
    "help": (
        "the manual: pages, and what to do when something is wrong",
        (_argument("topic", nargs="?", metavar="TOPIC", help="without one, list all topics"),),
    ),
    "simulate": ("the eFax API on loopback, to try with", ()),  # its options are the simulator's
    "demo": ("a simulated eFax and the daemon in a temporary directory", ()),
}


def run(name: str, options: dict[str, Any]) -> int:
    """Call the command's function, from a module that is imported now: `status` needs no PDF library."""
    paths = [*options.pop("config_before"), *options.pop("config_after")]
    module = import_module(f"poller.cli.{name}_command")
    exit_code: int = getattr(module, name)(paths, **options)
    return exit_code


def build(words: Sequence[str]) -> argparse.ArgumentParser:
    """Build the parser for these words; `-c` may stand before or after the command."""
    parser = argparse.ArgumentParser(
        prog="poller",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"poller {VERSION}")
    names, options = _config("config_before")
    parser.add_argument(*names, **options)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (text, arguments) in COMMANDS.items():
        its = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        for names, options in (_config("config_after"), *arguments):
            its.add_argument(*names, **options)
        if name == "simulate" and name in words:  # whose options take long to load
            from poller.simulator.simulate import add_arguments

            add_arguments(its)
    return parser
