"""The runs of poller that write in a store: hidden files bear the id of the run that made them."""

import uuid
from collections.abc import Callable, Set
from dataclasses import dataclass, field

_DAY_S = 86_400.0


@dataclass
class Runs:
    """`own` is this run's id. `shared`: other runs may be at work in the store; `ended` are over."""

    own: str = field(default_factory=lambda: uuid.uuid4().hex)
    shared: bool = False
    ended: Set[str] = frozenset()

    @property
    def mark(self) -> str:
        """The part of the run's id that is in the names of its hidden files."""
        return _mark(self.own)

    def is_over(self, mark: str, age_s: Callable[[], float]) -> bool:
        """Whether nobody will use a hidden file with this mark any more, which is this old."""
        if mark == self.mark:
            return False
        return not self.shared or mark in map(_mark, self.ended) or age_s() > _DAY_S


def _mark(run: str) -> str:
    return run[:8]
