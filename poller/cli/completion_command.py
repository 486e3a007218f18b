"""`poller completion`: completion scripts for shells, and the user names that they ask for."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import shtab

from poller.cli import bootstrap, commands

_USERS = shtab.cmd("poller completion users 2>/dev/null")
_OF_METAVAR = {
    "ACCOUNT/USER": _USERS,
    "PATH": shtab.FILE,
    "FILE": shtab.FILE,
    "DIR": shtab.DIRECTORY,
}


def completion(paths: Sequence[Path], *, what: str) -> int:
    """Print the script for the shell `what`, or the configured users. Raises ConfigError, CannotStart."""
    if what == "users":
        print(*("/".join(user.names) for user in bootstrap.load(paths).users), sep="\n")
        return 0
    parser = commands.build(["simulate"])  # with the options that take long to load
    for action in _actions(parser):
        if isinstance(action.metavar, str) and action.metavar in _OF_METAVAR:
            action.complete = _OF_METAVAR[action.metavar]  # type: ignore[attr-defined]
    print(shtab.complete(parser, shell=what))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _actions(below)
