"""The manual's table of log events: all that the code says, and nothing else."""

import ast
import inspect
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from string import Formatter

import poller
from poller.events import Event
from poller.log.rendering import RANKS

SOURCE = Path(poller.__file__).parent
PAGE = SOURCE.parent / "config/MONITORING.md"
LEVELS = set(RANKS)

CONTRACT = [
    "service-started",
    "service-ready",
    "service-reloaded",
    "service-stopping",
    "service-stopped",
    "config-rejected",
    "poll-completed",
    "poll-failed",
    "poll-recovered",
    "fax-discovered",
    "fax-stored",
    "fax-retry",
    "fax-quarantined",
    "fax-damaged",
    "token-refreshed",
    "token-war",
    "rate-limited",
    "account-summary",
    "account-suspended",
    "account-resumed",
    "user-refused",
    "user-accepted",
    "gap-opened",
    "gap-closed",
    "late-arrivals",
    "storage-unusable",
    "storage-usable",
    "disk-low",
    "disk-ok",
    "clock-stepped",
    "stalled",
    "silence",
]


@dataclass(frozen=True)
class Row:
    """One event of the table: its levels, the fields of its row, and what an operator does."""

    events: list[str]
    levels: list[str]
    fields: set[str]
    meaning: str
    to_do: str


def in_table() -> dict[str, Row]:
    section = PAGE.read_text("utf-8").split("\n## Log events\n")[1].split("\n## ")[0]
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


def kinds(of: type[Event] = Event) -> Iterator[type[Event]]:
    """Every event that has a sentence; the others are what these have in common."""
    for kind in of.__subclasses__():
        if hasattr(kind, "sentence"):
            yield kind
        yield from kinds(kind)


def levels(kind: type[Event]) -> set[str]:
    both = kind.severity if isinstance(kind.severity, tuple) else (kind.severity,)
    return {level for level in both if level is not None}


def made() -> set[str]:
    """The names of the classes of which some line of the code makes a value, or takes the action."""
    return {
        node.attr
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "events"
    }


# the subject of an event, and its failure: the text above the table covers all of them
OF_MANY = {"account", "user", "fax_id", "error"}


def test_every_action_of_the_contract_can_be_said() -> None:
    assert set(CONTRACT) <= {kind.action for kind in kinds()}


def test_every_event_that_is_said_is_in_the_table_and_none_that_is_not() -> None:
    assert {kind.action for kind in kinds()} == set(in_table())
    assert {kind.__name__ for kind in kinds()} <= made()


def test_the_table_has_the_levels_of_each_event_and_its_usual_one_first() -> None:
    said: defaultdict[str, set[str]] = defaultdict(set)
    for kind in kinds():
        said[kind.action] |= levels(kind)
    for action, row in in_table().items():
        assert set(row.levels) == said[action], action


def test_the_table_has_the_fields_of_each_event_and_no_other() -> None:
    found: defaultdict[str, set[str]] = defaultdict(set)
    for kind in kinds():
        found[kind.action] |= set(kind.fields) - OF_MANY
    for action, row in in_table().items():
        assert row.fields == set[str]().union(*(found[one] for one in row.events)), action


def test_the_sentence_of_each_event_names_only_fields_that_it_has() -> None:
    for kind in kinds():
        both = kind.sentence if isinstance(kind.sentence, tuple) else (kind.sentence,)
        for sentence in both:
            named = {name for _, name, _, _ in Formatter().parse(sentence) if name is not None}
            assert named <= set(inspect.signature(kind).parameters), kind


def test_events_above_info_say_what_to_do() -> None:
    for action, row in in_table().items():
        assert row.meaning, action
        assert row.to_do or row.levels[0] in {"info", "debug"}, action
