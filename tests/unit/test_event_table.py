"""The README's table of log events: all that the code says, and nothing else."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import poller
from poller.log.actions import ACTIONS, RANKS, default_level

SOURCE = Path(poller.__file__).parent
README = SOURCE.parent / "README.md"
LEVELS = set(RANKS)


@dataclass(frozen=True)
class Row:
    """One event of the table: its levels, the fields of its row, and what an operator does."""

    events: list[str]
    levels: list[str]
    fields: set[str]
    meaning: str
    to_do: str


def in_table() -> dict[str, Row]:
    section = README.read_text("utf-8").split("\n## Log events\n")[1].split("\n## ")[0]
    rows: dict[str, Row] = {}
    for line in section.splitlines():
        if not line.startswith("| `"):
            continue
        names, levels, fields, meaning, to_do = [
            cell.strip() for cell in line.strip("|").split(" | ")
        ]
        actions = re.findall(r"`([a-z-]+)`", names)
        for at, action in enumerate(actions):
            assert action not in rows, f"{action} is twice in the table"
            own = [level for level in re.findall(r"[a-z]+", levels) if level in LEVELS]
            # As many levels as events: one for each, in this order.
            if len(actions) > 1 and len(own) == len(actions):
                own = [own[at]]
            rows[action] = Row(actions, own, set(re.findall(r"`(\w+)`", fields)), meaning, to_do)
    return rows


def strings(node: ast.AST | None) -> set[str]:
    """The words in an expression, whichever of them it comes to."""
    if node is None:
        return set()
    return {
        one.value
        for one in ast.walk(node)
        if isinstance(one, ast.Constant) and isinstance(one.value, str)
    }


# The log itself passes on what libraries say, by their levels.
OF_LIBRARIES = ("library-message", {"warning", "error"}, set[str]())
# What an event is about, and its failure: said of all of them above the table.
OF_MANY = {"account", "user", "fax_id", "error", "level"}


def said() -> Iterator[tuple[str, set[str], set[str]]]:
    """Every event that some line of the code says, with its levels and fields there."""
    yield OF_LIBRARIES
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", None))
            if name != "event" or not node.args:
                continue
            level = next((one.value for one in node.keywords if one.arg == "level"), None)
            fields = {one.arg for one in node.keywords if one.arg is not None} - OF_MANY
            for action in strings(node.args[0]) & ACTIONS:
                yield action, (strings(level) & LEVELS) or {default_level(action)}, fields


def test_every_event_that_is_said_is_in_the_table_and_none_that_is_not() -> None:
    assert {action for action, *_ in said()} == set(in_table()) == ACTIONS


def test_the_table_has_the_level_of_each_event() -> None:
    table = in_table()
    for action, levels, _ in said():
        assert levels <= set(table[action].levels), f"{action} is said as {levels}"
    for action, row in table.items():
        assert default_level(action) == row.levels[0], action


def test_the_table_has_the_fields_of_each_event_and_no_other() -> None:
    found: defaultdict[str, set[str]] = defaultdict(set)
    for action, _, fields in said():
        found[action] |= fields
    for action, row in in_table().items():
        assert row.fields == set[str]().union(*(found[one] for one in row.events)), action


def test_what_is_more_than_information_says_what_to_do() -> None:
    for action, row in in_table().items():
        assert row.meaning, action
        assert row.to_do or row.levels[0] in {"info", "debug"}, action
