"""Positions in the files, and the list of all problems, which are shown together."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from poller.errors import Problem


@dataclass(frozen=True, slots=True)
class Source:
    """A configuration file: its name as given, and the directory that its relative paths start from."""

    name: str
    directory: Path


@dataclass(frozen=True, slots=True)
class Node:
    """A value and its position: `line` counts from 1 (0: the whole file), `key` is the dotted path.

    A value has the line of its key.
    """

    source: Source
    line: int = 0
    key: str = ""
    value: "Value" = None

    @property
    def where(self) -> str:
        return f"{self.source.name}:{self.line}"

    def below(self, key: str) -> str:
        """Return the dotted path of a key in this map."""
        return f"{self.key}.{key}" if self.key else key

    def entry(self, key: str) -> "Node | None":
        return self.value.get(key) if isinstance(self.value, dict) else None


Value: TypeAlias = bool | int | float | str | dict[str, Node] | list[Node] | None


class Problems:
    """Problems found so far; one found twice, as in an alias that users share, counts once.

    `incomplete`: a file could not be read. Missing keys may be in it, so they are not reported.
    """

    def __init__(self) -> None:
        self.found: set[Problem] = set()
        self.incomplete = False

    def add(self, at: Node, message: str) -> None:
        self.found.add(Problem(at.source.name, at.line, masked(at.key), message))

    def unreadable(self, at: Node, message: str) -> None:
        self.incomplete = True
        self.add(at, message)

    def missing(self, map_: Node, key: str, message: str) -> None:
        if isinstance(map_.value, dict) and not self.incomplete:
            self.add(Node(map_.source, map_.line, map_.below(key)), message)


def masked(text: str) -> str:
    """Shorten runs of seven digits or more to their last four: they may be a fax number."""
    return re.sub(r"\d{3,}(\d{4})", r"…\1", text)


def quoted(text: str) -> str:
    """Return an operator's value for a message: one line, printable, short, without fax numbers.

    Never use it for a value that is or may be a secret.
    """
    shown = masked(text if len(text) <= 60 else text[:57] + "…")
    return repr(shown)
