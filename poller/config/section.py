"""Read a map key by key: a wrong value is reported and its default used, an unknown key refused."""

from typing import TypeVar

from poller.config.document import Node, given_twice, joined
from poller.config.report import Report, where
from poller.config.values import Parser, WrongValueError, kind, suggestion

T = TypeVar("T")


class Section:
    """One map of the configuration, read inside a `with` statement whose end refuses unknown keys.

    `sound` says that every key read so far was usable, so that checks across keys make sense.
    """

    def __init__(self, node: Node, report: Report) -> None:
        self.node = node
        self.report = report
        self.sound = True
        self._known: list[str] = []
        self._entries: dict[str, Node] = {}
        if isinstance(node.value, dict):
            self._entries = node.value
        else:
            self.wrong(
                node, f"must be a map of keys, and is {kind(node.value)}; give it keys or remove it"
            )

    def __enter__(self) -> "Section":
        return self

    def __exit__(self, *_: object) -> None:
        for key, node in self._entries.items():
            if key not in self._known:
                hint = suggestion(key, self._known) or f"; known here: {', '.join(self._known)}"
                self.report.add(node, f"unknown key{hint}")

    def wrong(self, place: Node, message: str) -> None:
        self.sound = False
        self.report.add(place, message)

    def find(self, key: str) -> Node | None:
        """Give the node of a key that may be there, which makes the key a known one."""
        self._known.append(key)
        return self._entries.get(key)

    def get(self, key: str, parser: Parser[T], default: T) -> T:
        """Read a key that may be missing."""
        node = self.find(key)
        return default if node is None else self._read(node, parser, default)

    def require(self, key: str, parser: Parser[T], example: str) -> T | None:
        """Read a key that must be there; None (and a report) otherwise."""
        node = self.find(key)
        if node is not None:
            return self._read(node, parser, None)
        self.missing(key, f"is missing; write {key}: {example}")
        return None

    def missing(self, key: str, message: str) -> None:
        """Report what is not there, unless it may stand in a file that could not be read."""
        self.sound = False
        if isinstance(self.node.value, dict) and not self.report.incomplete:
            self.report.add_at(
                self.node.source, self.node.line, joined(self.node.key, key), message
            )

    def sub(self, key: str) -> "Section":
        """Give the map under a key; an empty one when it is missing."""
        node = self.find(key)
        if node is None:
            node = Node(self.node.source, self.node.line, joined(self.node.key, key), {})
        return Section(node, self.report)

    def place(self, *paths: str) -> Node:
        """Give the first of these dotted paths that is written down, else the map itself."""
        return next((node for path in paths if (node := self._at(path))), self.node)

    def _at(self, path: str) -> Node | None:
        node: Node | None = self.node
        for key in path.split("."):
            node = node.value.get(key) if node and isinstance(node.value, dict) else None
        return node

    def written(self, key: str, default: str) -> str:
        """Say where a key is written down, or what it is by default."""
        node = self._entries.get(key)
        return f"at {where(node)}" if node else f"by default {default}"

    def _read(self, node: Node, parser: Parser[T], default: T) -> T:
        try:
            return parser(node)
        except WrongValueError as wrong:
            self.wrong(wrong.node or node, str(wrong))
            return default


def merged(first: Node, second: Node, report: Report) -> Node:
    """Put the maps of two files together; any other key that both give is an error."""
    if not isinstance(first.value, dict) or not isinstance(second.value, dict):
        report.add(second, given_twice(first))
        return first
    entries = dict(first.value)
    for key, node in second.value.items():
        entries[key] = merged(entries[key], node, report) if key in entries else node
    return Node(first.source, first.line, first.key, entries)


def overlaid(lower: Node | None, upper: Node | None) -> Node | None:
    """Lay a nearer level over a farther one, key by key to any depth; values keep their place."""
    if lower is None or upper is None:
        return lower if upper is None else upper
    if not isinstance(lower.value, dict) or not isinstance(upper.value, dict):
        return upper
    entries = dict(lower.value)
    for key, node in upper.value.items():
        entries[key] = overlaid(entries.get(key), node) or node
    return Node(upper.source, upper.line, upper.key, entries)


def also_at(first: Node) -> str:
    return f"{first.key} at {where(first)}"
