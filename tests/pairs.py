"""Every pair of values of several parameters in few rows, and which switches of eFax belong together."""

from collections.abc import Iterator
from itertools import combinations
from typing import Any

from poller.simulator import Switches

Row = dict[str, Any]
_Choice = tuple[str, int]

# They decide nothing about what is received.
_OTHER = (
    *("sent_", "send_", "hook_", "notifications", "transmission_data", "client_tracking_data"),
    *("details_path", "delete_status"),
)


def of_receiving() -> dict[str, tuple[Any, ...]]:
    """Return the switches that decide about receiving, with the values worth testing."""
    return {name: of for name, of in Switches.table().items() if not name.startswith(_OTHER)}


def of_the_rest() -> dict[str, tuple[Any, ...]]:
    """Return all other switches: sent faxes, sending, deleting, notices."""
    return {name: of for name, of in Switches.table().items() if name.startswith(_OTHER)}


def pairwise(parameters: dict[str, tuple[Any, ...]]) -> Iterator[Row]:
    """Return rows in which every two values of different parameters meet at least once; greedy."""
    missing = {
        frozenset(((one, a), (other, b)))
        for one, other in combinations(parameters, 2)
        for a in range(len(parameters[one]))
        for b in range(len(parameters[other]))
    }
    order = sorted(parameters, key=lambda name: (-len(parameters[name]), name))
    while missing:
        chosen: dict[str, int] = dict(sorted(min(missing, key=sorted)))
        for name in order:
            if name not in chosen:
                chosen[name] = _best(name, len(parameters[name]), chosen, missing)
        missing -= {frozenset(pair) for pair in combinations(chosen.items(), 2)}
        yield {name: parameters[name][index] for name, index in chosen.items()}


def _best(name: str, count: int, chosen: dict[str, int], missing: set[frozenset[_Choice]]) -> int:
    def gain(index: int) -> int:
        return sum(frozenset(((name, index), other)) in missing for other in chosen.items())

    return max(range(count), key=lambda index: (gain(index), -index))
