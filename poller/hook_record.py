"""How an account's web-hook works: whether faxes arrived after a notice, or without one."""

import json
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Self

_DAY = timedelta(days=1)
_TIMES = ("last_at", "proven_since", "silent_since")


@dataclass(frozen=True)
class HookRecord:
    """Counts of correctly signed notices (`accepted`, the last at `last_at`) and `refused` ones.

    `proven_since`: the first notice since a fax last arrived without one. `silent_since`: the first
    fax without a notice since the last notice. `found`: faxes that only eFax's list of notices had.
    """

    last_at: datetime | None = None
    accepted: int = 0
    refused: int = 0
    proven_since: datetime | None = None
    silent_since: datetime | None = None
    found: int = 0

    def after_notice(self, now: datetime) -> Self:
        return replace(
            self,
            last_at=now,
            accepted=self.accepted + 1,
            proven_since=self.proven_since or now,
            silent_since=None,
        )

    def after_refused(self) -> Self:
        return replace(self, refused=self.refused + 1)

    def after_found(self, count: int) -> Self:
        return replace(self, found=self.found + count)

    def after_missing(self, now: datetime) -> Self:
        """Return the record after a fax that no notice announced."""
        return replace(self, proven_since=None, silent_since=self.silent_since or now)

    def has_worked(self, now: datetime) -> bool:
        """Return whether for a day, with at least one fax, a notice announced each fax."""
        proven, last = self.proven_since, self.last_at
        return proven is not None and last is not None and proven <= now - _DAY < last

    def is_silent(self, now: datetime) -> bool:
        """Return whether for a day faxes have arrived but no notice."""
        return self.silent_since is not None and self.silent_since <= now - _DAY

    def text(self) -> str:
        """Return the record as text; `read` is the inverse."""
        return json.dumps(asdict(self), default=datetime.isoformat)

    @classmethod
    def read(cls, text: str | None) -> Self:
        """Read a record; return an empty one if there is none, or if another version wrote it."""
        try:
            kept = json.loads(text or "{}")
            return cls(**kept | {name: _instant(kept[name]) for name in _TIMES if name in kept})
        except (ValueError, TypeError):
            return cls()


def _instant(at: str | None) -> datetime | None:
    return None if at is None else datetime.fromisoformat(at)
