"""Collect everything that is wrong, each with its place, to be shown all at once."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from poller.errors import Problem


@dataclass(frozen=True, slots=True)
class Source:
    """A configuration file: its name as it was given, and what its relative paths start from."""

    name: str
    directory: Path


class Place(Protocol):
    """Where something stands: `line` counts from 1 (0: the file), `key` is the dotted path."""

    @property
    def source(self) -> Source: ...
    @property
    def line(self) -> int: ...
    @property
    def key(self) -> str: ...


class Report:
    """Problems found so far; one found twice (a default that many users inherit) counts once.

    `incomplete` says that a file could not be read: what is missing may stand there, so that
    is not reported.
    """

    def __init__(self) -> None:
        self.problems: set[Problem] = set()
        self.incomplete = False

    def add(self, place: Place, message: str) -> None:
        self.add_at(place.source, place.line, place.key, message)

    def add_at(self, source: Source, line: int, key: str, message: str) -> None:
        self.problems.add(Problem(source.name, line, masked(key), message))

    def unreadable(self, source: Source, line: int, message: str) -> None:
        self.incomplete = True
        self.add_at(source, line, "", message)


def where(place: Place) -> str:
    return f"{place.source.name}:{place.line}"


def masked(text: str) -> str:
    """Shorten runs of seven digits or more to their last four: they may be a fax number."""
    return re.sub(r"\d{3,}(\d{4})", r"…\1", text)


def quoted(text: str) -> str:
    """Show a value of the operator's in a message: one line, printable, short, no fax number.

    Not for values that are secrets, or may be ones in the wrong place.
    """
    shown = masked(text if len(text) <= 60 else text[:57] + "…")
    return repr(shown)
