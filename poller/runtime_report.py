"""Facts that only the running service knows; it writes them to the ledger for `poller status`."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Self

from poller.backlog import CatchUp
from poller.slowness import Slow


@dataclass(frozen=True)
class RuntimeReport:
    """`reason`: why fetching into `directory` is paused; `rejected`: why the last reload was rejected.

    `rates` holds the requests per second of accounts that eFax has slowed down, `at_war` the accounts
    whose App ID another program uses, `slow` those that eFax answers slowly.
    """

    directory: str
    reason: str | None = None
    rejected: str | None = None
    rates: Mapping[str, float] = field(default_factory=dict)
    at_war: tuple[str, ...] = ()
    slow: Mapping[str, Slow] = field(default_factory=dict)
    catching_up: Mapping[str, CatchUp] = field(default_factory=dict)

    def text(self) -> str:
        """Return the report as text; `read` is the inverse."""
        return json.dumps(asdict(self), default=datetime.isoformat)

    @classmethod
    def read(cls, text: str | None) -> Self | None:
        """Read a service's report; None if there is none, or if another version wrote it."""
        try:
            fields = json.loads(text or "null")
            return cls(
                **fields
                | {
                    "at_war": tuple(fields["at_war"]),
                    "slow": {name: Slow(**one) for name, one in fields["slow"].items()},
                    "catching_up": {
                        name: CatchUp(
                            **one
                            | {at: datetime.fromisoformat(one[at]) for at in ("since", "started")}
                        )
                        for name, one in fields["catching_up"].items()
                    },
                }
            )
        except (ValueError, TypeError, KeyError):
            return None
