"""Read a map of keys by the dataclasses of `model`; report wrong and unknown keys."""

from dataclasses import MISSING, fields, is_dataclass, replace
from typing import Any, NamedTuple

from poller.config.position import Node, Problems
from poller.config.values import Parser, WrongValueError, kind_of, suggestion


class Leaf(NamedTuple):
    """A key: the kind of its value, and the field that it fills, such as `poll.every`.

    `needed` is an example for the message if the key is missing; `below` holds the keys of a map
    that may be null.
    """

    field: str
    kind: Parser[Any]
    needed: str
    below: "Tree | None" = None


class Given(NamedTuple):
    """The value written for a field; None if it was `wrong`."""

    value: Any
    node: Node
    wrong: bool = False


Tree = dict[str, "Leaf | Tree"]
Settings = dict[str, Given]


def tree(model: type, above: str = "") -> Tree:
    """Return the keys that fill a dataclass, nested as in the file."""
    root: Tree = {}
    for field in fields(model):
        name, key = above + field.name, field.metadata
        if is_dataclass(field.default):
            root[field.name] = tree(type(field.default), f"{name}.")
        elif key:
            at: Any = root
            *maps, last = key.get("at", field.name).split(".")
            for map_ in maps:
                at = at.setdefault(map_, {})
            kind = key["kind"]
            below = tree(kind, f"{name}.") if isinstance(kind, type) else None
            at[last] = Leaf(name, kind, key.get("needed", ""), below)
    return root


def read(node: Node, known: Tree, problems: Problems) -> Settings:
    if not isinstance(node.value, dict):
        problems.add(
            node, f"must be a map of keys, but is {kind_of(node.value)}; give it keys or remove it"
        )
        return {}
    found: Settings = {}
    for name, child in node.value.items():
        entry = known.get(name)
        if entry is None:
            hint = suggestion(name, known) or f"; known keys: {', '.join(known)}"
            problems.add(child, f"unknown key{hint}")
        elif isinstance(entry, dict):
            found |= read(child, entry, problems)
        elif entry.below is None:
            found[entry.field] = _given(child, entry.kind, problems)
        else:
            found[entry.field] = Given(child.value, child)
            if child.value is not None:
                found |= read(child, entry.below, problems)
    for name, entry in known.items():
        if isinstance(entry, Leaf) and entry.needed and name not in node.value:
            problems.missing(node, name, f"is missing; write {name}: {entry.needed}")
    return found


def _given(node: Node, parser: Parser[Any], problems: Problems) -> Given:
    try:
        return Given(parser(node), node)
    except WrongValueError as wrong:
        problems.add(wrong.node or node, str(wrong))
        return Given(None, node, wrong=True)


def is_unset(found: Settings, field: str) -> bool:
    """Return whether a field has no value in the files, or null."""
    return field not in found or found[field].node.value is None


def filled(model: type, found: Settings, above: str = "") -> dict[str, Any]:
    """Return the fields of a dataclass that have a value in the files; nested ones complete."""
    given: dict[str, Any] = {}
    for field in fields(model):
        name, default = above + field.name, field.default
        if name in found and not found[name].wrong:
            given[field.name] = found[name].value
        elif is_dataclass(default) and not isinstance(default, type):
            given[field.name] = replace(default, **filled(type(default), found, f"{name}."))
    return given


def needed(model: type) -> set[str]:
    """Return the names of a dataclass's fields that have no default."""
    return {field.name for field in fields(model) if field.default is MISSING}
