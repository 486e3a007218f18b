"""What only the running service knows of itself; it keeps that in the ledger, for `poller status`."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Self


@dataclass(frozen=True)
class RuntimeReport:
    """`reason`: why nothing is fetched into `directory`; `rejected`: why the last reload was not taken.

    `rates` are the requests per second of accounts that eFax has slowed, `at_war` the accounts
    whose App ID another program uses.
    """

    directory: str
    reason: str | None = None
    rejected: str | None = None
    rates: Mapping[str, float] = field(default_factory=dict)
    at_war: tuple[str, ...] = ()

    def text(self) -> str:
        """Write it down; `read` undoes that."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str | None) -> Self | None:
        """Read what a service has written down; None where none has, or one of another version."""
        try:
            fields = json.loads(text or "null")
            return cls(**fields | {"at_war": tuple(fields["at_war"])})
        except (ValueError, TypeError, KeyError):
            return None
