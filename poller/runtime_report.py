"""What only the running service knows of itself; it keeps that in the ledger, for `poller status`."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Self

from poller.backlog import CatchUp
from poller.slowness import Slow


@dataclass(frozen=True)
class RuntimeReport:
    """`reason`: why nothing is fetched into `directory`; `rejected`: why the last reload was not taken.

    `rates` are the requests per second of accounts that eFax has slowed, `at_war` the accounts
    whose App ID another program uses; `slow` those that eFax answers slowly.
    """

    directory: str
    reason: str | None = None
    rejected: str | None = None
    rates: Mapping[str, float] = field(default_factory=dict)
    at_war: tuple[str, ...] = ()
    slow: Mapping[str, Slow] = field(default_factory=dict)
    catching_up: Mapping[str, CatchUp] = field(default_factory=dict)

    def text(self) -> str:
        """Write it down; `read` undoes that."""
        return json.dumps(asdict(self), default=datetime.isoformat)

    @classmethod
    def read(cls, text: str | None) -> Self | None:
        """Read what a service has written down; None where none has, or one of another version."""
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
