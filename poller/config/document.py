"""Parse YAML text into a tree of nodes that know their file, line and key path.

The tree is built from ruamel's events, not by its constructors: the safe one loses the lines and
the round-trip one takes ten times as long. Working on events also limits depth, aliases and tags
before anything is built from them. Scalars follow the core schema of YAML 1.2: `no` is text, `0123`
is the number 123, a date is text.
No message of this module shows a value: it might be a secret in the wrong place.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    DocumentStartEvent,
    MappingStartEvent,
    ScalarEvent,
)
from ruamel.yaml.reader import ReaderError

from poller.config.position import Node, Problems, Source, Value

MAX_DEPTH = 32
MAX_KEY = 200
MAX_ALIASED_NODES = 100_000  # far above any real use, far below a "billion laughs" attack


def parse(data: bytes, source: Source, problems: Problems) -> Node | None:
    """Return the tree of one file, a map; an empty map for an empty file; None if it is unusable.

    Two parsers share the work. libyaml takes a fifth of the time, which matters for each command
    with 10,000 users, but it knows only YAML 1.1: `{start: 2024-05-21T00:00:00Z}` is an error to it.
    libyaml reads a file if it finds no error and the file has nothing that YAML 1.2 reads
    differently. ruamel's own parser, which follows YAML 1.2, reads all others.
    """
    return quickly(data, source) or exactly(data, source, problems)


# libyaml and ruamel's own parser differ on these: tabs, unusual line ends, byte order marks,
# document ends, directives, anchors, block scalars of blank lines, a quoted key directly followed
# by its value.
_TAKEN_OTHERWISE = re.compile(r"[\t\r\x85\u2028\u2029\ufeff|>%&]|\.\.\.|[\"']:\S")


def quickly(data: bytes, source: Source) -> Node | None:
    problems, root = Problems(), None
    with suppress(YAMLError, ValueError, OverflowError, _UnusableError):
        text = data.decode("utf-8-sig")
        if not _TAKEN_OTHERWISE.search(text):
            root = _composed(text, source, problems, pure=False)
    return None if problems.found else root


def exactly(data: bytes, source: Source, problems: Problems) -> Node | None:
    try:
        text = data.decode("utf-8-sig")
        return _composed(text, source, problems, pure=True)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        wrong = "this is not UTF-8 text; save the file as UTF-8"
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        wrong = "there is a control character here; remove it"
    except MarkedYAMLError as error:
        line, wrong = _line(error), _sentence(error)
    except (ValueError, OverflowError):  # such as "\UFFFFFFFF", for which ruamel reports no line
        line, wrong = 0, "an escape (\\x, \\u, \\U) names a character that does not exist"
    except _UnusableError as error:
        line, wrong = error.line, str(error)
    problems.unreadable(Node(source, line), wrong)
    return None


def _composed(text: str, source: Source, problems: Problems, *, pure: bool) -> Node:
    return _Composer(source, problems, YAML(typ="safe", pure=pure).parse(text)).document()


class _UnusableError(Exception):
    def __init__(self, event: Any, message: str) -> None:
        super().__init__(message)
        self.line: int = event.start_mark.line + 1


_QUOTED = "while scanning a quoted scalar"
_BRACKETS = ("while parsing a flow mapping", "while parsing a flow sequence")


def _line(error: MarkedYAMLError) -> int:
    """Return the line where a quote was opened, not the end of the file, where ruamel misses it."""
    mark = error.context_mark if error.context == _QUOTED else error.problem_mark
    return int(mark.line) + 1


_SENTENCES = {
    r"'\t' that cannot start": "a tab is used to indent; use spaces",
    "cannot start any token": "a value cannot start with this character; put the value in quotes",
    "could not find expected ':'": "a key without ':' or a wrong indentation; write 'key: value'",
    "mapping values are not allowed": "there is an unexpected ':'; check the indentation and the line above, "
    "and put a value that contains ': ' in quotes",
    "expected <block end>": "the indentation does not fit the lines above; align it with them",
    "unexpected end of stream": "a quote opens here and is never closed; close it",
    "unknown escape": "an unknown escape in double quotes; write '\\\\' or use single quotes",
    "version 1.* is required": "this is not YAML 1.2; remove the %YAML line",
}


def _sentence(error: MarkedYAMLError) -> str:
    """Return the error in our own words: ruamel's may quote the text, and they speak of tokens."""
    if error.context in _BRACKETS:
        opened = error.context_mark.line + 1
        return f"the bracket opened in line {opened} is not closed, or a comma is missing; add it"
    for part, sentence in _SENTENCES.items():
        if part in str(error.problem):
            return sentence
    return "this is not valid YAML; check quotes, brackets and indentation"


class _Composer:
    def __init__(self, source: Source, problems: Problems, events: Iterator[Any]) -> None:
        self._source = source
        self._problems = problems
        self._events = events
        self._anchors: dict[str, Node | None] = {}  # None: still being built
        self._aliased = 0

    def document(self) -> Node:
        empty = Node(self._source, 1, "", {})
        start = self._next_document()
        if start is None:
            return empty
        if start.version not in {None, (1, 2)}:
            raise _UnusableError(start, "this is not YAML 1.2; remove the %YAML line")
        root = self._node(next(self._events), "", 0)
        if second := self._next_document():
            raise _UnusableError(
                second, "a second document begins here ('---'); use one file for each"
            )
        if root.value is not None and not isinstance(root.value, dict):
            self._problems.unreadable(root, "the file must be a map of keys, such as 'accounts:'")
        return root if isinstance(root.value, dict) else empty

    def _next_document(self) -> DocumentStartEvent | None:
        return next((e for e in self._events if isinstance(e, DocumentStartEvent)), None)

    def _node(self, event: Any, key: str, depth: int, line: int = 0) -> Node:
        """Build the node that starts with `event`; `line` is the line of its key, 0 if it has none."""
        if isinstance(event, AliasEvent):
            return self._alias(event, key)
        place = Node(self._source, line or event.start_mark.line + 1, key)
        if event.tag is not None:
            self._problems.add(
                place, "tags ('!…') are not supported; remove it, and put text in quotes"
            )
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        node = Node(place.source, place.line, key, self._value(event, place, depth))
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _value(self, event: Any, place: Node, depth: int) -> Value:
        if isinstance(event, ScalarEvent):
            return _plain(event.value) if not event.style else str(event.value)
        if depth == MAX_DEPTH:
            raise _UnusableError(event, f"maps and lists are nested more than {MAX_DEPTH} deep")
        if isinstance(event, MappingStartEvent):
            return self._map(place, depth)
        items: list[Node] = []
        while not isinstance(event := next(self._events), CollectionEndEvent):
            items.append(self._node(event, f"{place.key}[{len(items)}]", depth + 1))
        return items

    def _map(self, place: Node, depth: int) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        while not isinstance(event := next(self._events), CollectionEndEvent):
            at = Node(self._source, event.start_mark.line + 1, place.key)
            name = self._name(event, at, depth)
            node = self._node(next(self._events), at.below(name or "?"), depth + 1, at.line)
            if name in entries:
                at = Node(self._source, at.line, node.key)
                self._problems.add(at, given_twice(entries[name]))
            elif name is not None:
                entries[name] = node
        return entries

    def _name(self, event: Any, at: Node, depth: int) -> str | None:
        """Return a key's text; if it is unusable, report it and return None."""
        key = self._node(event, at.key, depth + 1, at.line).value
        if not isinstance(key, str):
            wrong = "a key must be text; put it in quotes"
        elif not key.isprintable() or len(key) > MAX_KEY:
            wrong = "a key is too long or contains a control character; correct it"
        elif key == "<<" and not event.style:
            wrong = (
                "merge keys ('<<') are not supported; accounts and users inherit what is set above"
            )
        else:
            return key
        self._problems.unreadable(at, wrong)
        return None

    def _alias(self, event: Any, key: str) -> Node:
        if event.anchor not in self._anchors:
            raise _UnusableError(
                event, "this alias ('*…') has no anchor ('&…') above; put text in quotes"
            )
        node = self._anchors[event.anchor]
        if node is None:
            raise _UnusableError(event, "this alias ('*…') is inside its own anchor; remove it")
        return self._copy(event, node, key)

    def _copy(self, event: Any, node: Node, key: str) -> Node:
        self._aliased += 1
        if self._aliased > MAX_ALIASED_NODES:
            raise _UnusableError(
                event, f"aliases ('*…') add more than {MAX_ALIASED_NODES} values; use fewer"
            )
        value = node.value
        if isinstance(value, dict):
            value = {k: self._copy(event, v, f"{key}.{k}") for k, v in value.items()}
        elif isinstance(value, list):
            value = [self._copy(event, v, f"{key}[{i}]") for i, v in enumerate(value)]
        return Node(node.source, node.line, key, value)


def given_twice(first: Node) -> str:
    return f"is given twice, first at {first.where}; remove one of them"


_WORDS: dict[str, bool | None] = dict.fromkeys(("", "~", "null", "Null", "NULL"))
_WORDS |= dict.fromkeys(("true", "True", "TRUE"), True)
_WORDS |= dict.fromkeys(("false", "False", "FALSE"), False)
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL_FLOAT = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


def _plain(text: str) -> Value:
    """Resolve an unquoted scalar by the core schema (YAML 1.2.2, section 10.3.2)."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text) and len(text) < 100:  # int() raises on thousands of digits
        return int(text, 0 if text[:2] in {"0o", "0x"} else 10)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _SPECIAL_FLOAT.fullmatch(text):
        return float(text.replace(".", ""))
    return text
