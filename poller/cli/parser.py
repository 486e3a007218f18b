"""The words of the command line."""

import argparse
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from poller import VERSION
from poller.cli.times import instant

_DESCRIPTION = """\
Gets every fax received through the eFax Enterprise API onto the disk: none lost, none twice, none half.
"""

_EPILOG = """\
exit codes: 0 done · 1 it did not all work, or a fax is unknown · 2 wrong usage · 73 the ledger, the
storage directory or the port cannot be used · 75 another poller holds this state · 78 the
configuration is wrong (every problem is printed with file and line)

first steps:
  poller demo                          see it work, without an account, in half a minute
  poller -c poller.yaml check          is the configuration right?
  poller -c poller.yaml check --online does eFax accept it?
  poller -c poller.yaml once           one round, in the foreground
  poller -c poller.yaml run            the daemon
"""


def build(words: Sequence[str]) -> argparse.ArgumentParser:
    """Build the parser for these words; `-c` may stand before or after the command."""
    parser = argparse.ArgumentParser(
        prog="poller",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"poller {VERSION}")
    _add_config(parser, "config_before")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _command(commands, "run", "the daemon, in the foreground; SIGTERM drains, SIGHUP reloads")
    once = _command(commands, "once", "poll every user once, fetch all that is due, summarise")
    once.add_argument("--user", metavar="ACCOUNT/USER", help="only this user")
    _add_json(once)
    check = _command(commands, "check", "check the configuration")
    check.add_argument(
        "--online",
        action="store_true",
        help="also ask eFax: /health, sign-in, one list call per user; beside a running daemon, "
        "report what that found instead of signing in",
    )
    _add_json(_command(commands, "status", "how it is doing, from the ledger"))
    retry = _command(commands, "retry", "make quarantined faxes, or those named, due now")
    retry.add_argument(
        "fax_id",
        nargs="*",
        metavar="FAX_ID",
        help="or ACCOUNT/USER/FAX_ID; without any, all that are quarantined",
    )
    _add_gap(retry, "list this stretch of time again, also when it was dismissed")
    _add_json(retry)
    backup = _command(commands, "backup", "copy the ledger, beside a running daemon too")
    backup.add_argument(
        "path", type=Path, metavar="PATH", help="the new file; one that is there is left alone"
    )
    dismiss = _command(commands, "dismiss", "stop the alarm for a fax or gap that cannot be had")
    dismiss.add_argument("fax_id", nargs="?", metavar="FAX_ID", help="or ACCOUNT/USER/FAX_ID")
    _add_gap(dismiss, "times in ISO 8601 with offset, as `status --json` shows them")
    dismiss.add_argument("--reason", metavar="TEXT", help="why; needed for a fax")
    _add_json(dismiss)
    verify = _command(commands, "verify", "hash what is on the disk against the ledger")
    verify.add_argument("--repair", action="store_true", help="fetch damaged faxes again")
    verify.add_argument(
        "--taken",
        nargs="+",
        default=[],
        metavar="FAX_ID",
        help="fetch these again, which consumers have taken away",
    )
    _add_json(verify)
    backfill = _command(
        commands, "backfill", "list an old window of a user once more, and fetch what is new in it"
    )
    backfill.add_argument("user", metavar="ACCOUNT/USER")
    for name, where in (("--from", "from_"), ("--to", "to")):
        backfill.add_argument(
            name,
            dest=where,
            type=_instant,
            metavar="TIME",
            help="with offset, such as 2026-03-01T00:00:00Z",
        )
    backfill.add_argument(
        "--cancel", action="store_true", help="end what this user still has to be backfilled"
    )
    _add_json(backfill)
    explain = _command(
        commands, "explain", "one fax as a timeline: windows, attempts, file, evidence"
    )
    explain.add_argument("fax_id", metavar="FAX_ID", help="or ACCOUNT/USER/FAX_ID")
    _add_json(explain)
    plan = _command(
        commands, "plan", "next polls, requests per hour against each limit, and warnings"
    )
    _add_json(plan)
    rebuild = _command(
        commands, "rebuild", "a new ledger from the newest snapshot and the files in the storage"
    )
    rebuild.add_argument(
        "--since",
        type=_instant,
        metavar="TIME",
        help="list again from this time at the latest, such as 2026-03-01T00:00:00Z",
    )
    _add_json(rebuild)
    simulate = _command(commands, "simulate", "the eFax API on loopback, to try with")
    if "simulate" in words:  # whose options take longer to load than the other commands to run
        from poller.simulator.simulate import add_arguments

        add_arguments(simulate)
    _command(commands, "demo", "a simulated eFax and the daemon in a temporary directory")
    return parser


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    _add_config(parser, "config_after")
    return parser


def _add_config(parser: argparse.ArgumentParser, destination: str) -> None:
    parser.add_argument(
        "-c",
        "--config",
        dest=destination,
        action="append",
        default=[],
        type=Path,
        metavar="PATH",
        help="a YAML file, or a directory of *.yaml; may be given several times (/etc/poller)",
    )


def _add_gap(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--gap", nargs=3, metavar=("ACCOUNT/USER", "FROM", "TO"), help=text)


def _instant(text: str) -> datetime:
    try:
        return instant(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
