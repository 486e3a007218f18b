"""The commands: the name, the arguments and the function of each."""

import argparse
import platform
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

from poller import VERSION, clock
from poller.window import EARLIEST

_LATEST = datetime(2200, 1, 1, tzinfo=UTC)
_DESCRIPTION = """\
Stores every fax received through the eFax Enterprise API on disk: complete, and exactly once.
"""
_EPILOG = """\
exit codes: 0 done · 1 not all of it worked, or there is no such fax · 2 wrong usage · 3 nobody knows
whether a fax was sent · 73 the ledger, the storage directory or the port cannot be used · 75 another
poller holds this state · 78 the configuration is wrong (poller prints every mistake with file and line)

first steps:
  poller demo                          watch it work for half a minute, without an account
  poller init -o poller                write a configuration, from six questions
  poller -c poller.yaml check          is the configuration right?
  poller -c poller.yaml check --online does eFax accept it?
  poller -c poller.yaml once           poll once, in the foreground
  poller -c poller.yaml run            run the service, in the foreground
"""


class _Version(argparse._VersionAction):
    """Shows the versions of the program, of the ledger's tables and of Python."""

    def __call__(self, *words: Any) -> None:
        from poller.ledger.tables import REVISION  # slow to import

        self.version = (
            f"poller {VERSION}, ledger schema {REVISION}, Python {platform.python_version()}"
        )
        super().__call__(*words)


_Argument = tuple[tuple[str, ...], dict[str, Any]]  # the arguments of `ArgumentParser.add_argument`
_OR_WHOSE = "or ACCOUNT/USER/FAX_ID"


def instant(word: str) -> datetime:
    """Read an ISO 8601 time with offset. Raises argparse.ArgumentTypeError, saying what is wrong."""
    try:
        at = clock.instant(word)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{word!r} {error}") from None
    if not EARLIEST <= at < _LATEST:
        raise argparse.ArgumentTypeError(f"{word!r} is before 1970 or after 2199")
    return at


def duration(word: str) -> timedelta:
    """Read a duration as the configuration spells it. Raises argparse.ArgumentTypeError."""
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
    text = "a YAML file, or a directory of *.yaml files; may be repeated (default: /etc/poller)"
    names, options = _path("--config", text, action="append", default=[], dest=destination)
    return ("-c", *names), options


def _fax(name: str, count: str | None = None, text: str = _OR_WHOSE, **options: Any) -> _Argument:
    return _argument(name, nargs=count, metavar="FAX_ID", help=text, **options)


_JSON = _argument("--json", dest="as_json", action="store_true", help="print JSON")
# What each command does and takes: the keyword arguments of the function NAME in `NAME_command`.
COMMANDS: dict[str, tuple[str, tuple[_Argument, ...]]] = {
    "run": (
        "run the service in the foreground; SIGTERM finishes downloads and stops it, SIGHUP reloads",
        (),
    ),
    "once": (
        "poll every user once, fetch all faxes that are due, print a summary",
        (_argument("--user", metavar="ACCOUNT/USER", help="only this user"), _JSON),
    ),
    "check": (
        "check the configuration",
        (
            _flag(
                "--online",
                "also ask eFax: /health, sign-in, one list call per user; while the service runs, "
                "show what it found instead of signing in",
            ),
        ),
    ),
    "status": ("show problems, accounts and users", (_JSON,)),
    "retry": (
        "try quarantined faxes, or those you name, now",
        (
            _fax("fax_ids", "*", f"{_OR_WHOSE}; default: every quarantined fax"),
            _gap("list this time again, even if it was dismissed"),
            _JSON,
        ),
    ),
    "backup": (
        "copy the ledger, also while the service runs",
        (_path("target", "the new file; poller never overwrites an existing one"),),
    ),
    "dismiss": (
        "end the alert for a fax or gap that cannot be fetched",
        (
            _fax("fax_id", "?"),
            _gap("times in ISO 8601 with offset, as `status --json` shows them"),
            _argument("--reason", metavar="TEXT", help="why; required for a fax"),
            _JSON,
        ),
    ),
    "verify": (
        "check the files on disk against the hashes in the ledger",
        (
            _flag("--repair", "fetch damaged faxes again"),
            _flag("--thorough", "read every fax in a bucket again; a directory's are always read"),
            _fax(
                "--taken", "+", "fetch these again, although a program took them away", default=[]
            ),
            _JSON,
        ),
    ),
    "backfill": (
        "list an old window of a user again, and fetch the faxes that are new",
        (
            _argument("key", metavar="ACCOUNT/USER"),
            _time("--from", "start", "with offset, such as 2026-03-01T00:00:00Z"),
            _time("--to", "end", "with offset, such as 2026-03-01T00:00:00Z"),
            _flag("--cancel", "end this user's waiting backfills"),
            _JSON,
        ),
    ),
    "purge": (
        "delete faxes at eFax now, as far as the rules of `delete` allow",
        (
            _argument("key", nargs="?", metavar="ACCOUNT/USER", help="only this user"),
            _time(
                "--before", "before", "faxes stored before this time, whatever delete.after says"
            ),
            _flag(
                "--dry-run", "only list the faxes it would delete, and why it would keep the others"
            ),
            _JSON,
        ),
    ),
    "explain": (
        "show one fax as a timeline: windows, attempts, file, evidence",
        (_fax("fax_id"), _JSON),
    ),
    "plan": ("show the next polls, requests per hour against each limit, and warnings", (_JSON,)),
    "nodes": (
        "show the machines that share the accounts, or tell one to give its accounts back",
        (
            _argument("action", nargs="?", choices=("drain", "undrain")),
            _argument("name", nargs="?", metavar="NAME", help="a node"),
            _JSON,
        ),
    ),
    "rebuild": (
        "make a new ledger from the newest snapshot and the files in the storage",
        (
            _time(
                *("--since", "since"),
                "list again from this time or earlier, such as 2026-03-01T00:00:00Z",
            ),
            _path(
                "--from",
                "the configuration of the ledger to begin with, when you move to another database",
                dest="old",
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
                help="in North America 1 and ten digits, such as 13235551212; elsewhere with a +",
            ),
            _argument("files", nargs="+", type=Path, metavar="FILE", help="a PDF or TIFF"),
            _flag("--wait", "wait until eFax has transmitted the fax, or has given up"),
            _JSON,
        ),
    ),
    "selftest": (
        "send a page to the user's own number, and wait until it is stored",
        (
            _argument("key", metavar="ACCOUNT/USER"),
            _argument(
                "--within",
                type=duration,
                default=timedelta(minutes=15),
                metavar="DURATION",
                help="how long to wait, such as 15m (the default)",
            ),
            _JSON,
        ),
    ),
    "help": (
        "show the manual: pages, and what to do if something is wrong",
        (_argument("topic", nargs="?", metavar="TOPIC", help="default: list all topics"),),
    ),
    "init": (
        "write a configuration, from six questions or from these options",
        (
            _argument(
                *("-o", "--output"),
                type=Path,
                metavar="DIR",
                help="directory for the configuration; root may omit it for the service's /etc/poller",
            ),
            _argument("--app-id", metavar="ID", help="eFax's App ID"),
            _argument(
                "--api-key-file",
                type=Path,
                metavar="FILE",
                help="a file with only the API key; - for stdin",
            ),
            _argument(
                "--user",
                action="append",
                default=[],
                metavar="NAME=USER_ID",
                help="a name you choose and eFax's User ID; repeat it for each fax number",
            ),
            _argument("--every", metavar="DURATION", help="how often to look for new faxes (30s)"),
            _argument("--faxes", metavar="DIR", help="directory for the faxes"),
            _argument(
                "--status-page",
                metavar="ADDRESS",
                help="host:port on loopback, or none (127.0.0.1:9410)",
            ),
            _argument(
                "--base-url",
                metavar="URL",
                help="URL of the API, such as that of `poller simulate`",
            ),
        ),
    ),
    "completion": (
        "print a script that completes commands in your shell",
        (
            _argument(
                "what",
                choices=("bash", "zsh", "fish", "users"),
                help="the shell; or users, the names that the script completes",
            ),
        ),
    ),
    "simulate": ("run a simulated eFax API on loopback", ()),  # the simulator adds its options
    "demo": ("run a simulated eFax and the service in a temporary directory", ()),
}


def run(name: str, options: dict[str, Any]) -> int:
    """Import the command's module and call its function; `status` then loads no PDF library."""
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
    parser.add_argument("--version", action=_Version, help="show the version and exit")
    names, options = _config("config_before")
    parser.add_argument(*names, **options)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (text, arguments) in COMMANDS.items():
        its = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        for names, options in (_config("config_after"), *arguments):
            its.add_argument(*names, **options)
        if name == "simulate" and name in words:  # its options take long to load
            from poller.simulator.simulate import add_arguments

            add_arguments(its)
    return parser
