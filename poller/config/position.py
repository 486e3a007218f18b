"""Where something stands in the files, and everything that is wrong there, to be shown all at once."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from poller.errors import Problem


@dataclass(frozen=True, slots=True)
class Source:
    """A configuration file: its name as it was given, and what its relative paths start from."""

    name: str
    directory: Path


@dataclass(frozen=True, slots=True)
class Node:
    """A value and where it stands: `line` counts from 1 (0: the file), `key` is the dotted path.

    The value of a key has the line of the key.
    """

    source: Source
    line: int = 0
    key: str = ""
    value: "Value" = None

    @property
    def where(self) -> str:
        return f"{self.source.name}:{self.line}"

    def below(self, key: str) -> str:
        """The dotted path of a key in this map."""
        return f"{self.key}.{key}" if self.key else key

    def entry(self, key: str) -> "Node | None":
        return self.value.get(key) if isinstance(self.value, dict) else None


Value: TypeAlias = bool | int | float | str | dict[str, Node] | list[Node] | None


class Problems:
    """Problems found so far; one found twice (an alias that many users repeat) counts once.

    `incomplete` says that a file could not be read: what is missing may stand there, so that
    is not reported.
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
    """Show a value of the operator's in a message: one line, printable, short, no fax number.

    Not for values that are secrets, or may be ones in the wrong place.
    """
    shown = masked(text if len(text) <= 60 else text[:57] + "…")
    return repr(shown)
