"""What this run stored lately, to record it again in a database that lost it in a failover."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from poller.ledger import FaxRow, Ledger, faxes, jobs

_FOR_S = 600.0
Command = Callable[[Connection, list[Any]], None]


@dataclass(frozen=True)
class _Fact:
    at: float
    fax: FaxRow
    command: Command
    item: Any


@dataclass
class Facts:
    """Facts stay true after a takeover, so they need no lease; `is_on` with several nodes."""

    monotonic: Callable[[], float]
    is_on: bool = False
    _facts: deque[_Fact] = field(default_factory=deque)

    def add(self, fax: FaxRow, command: Command, item: Any) -> None:
        """Remember for ten minutes what `command` recorded of a fax."""
        if not self.is_on:
            return
        now = self.monotonic()
        self._facts.append(_Fact(now, fax, command, item))
        while self._facts[0].at < now - _FOR_S:
            self._facts.popleft()

    async def say_again(self, ledger: Ledger) -> int:
        """Record all facts again; return how many faxes they are about. Raises LedgerUnavailable."""
        return await ledger.write(_say_again, list(self._facts))


def _say_again(connection: Connection, facts: Sequence[_Fact]) -> int:
    """Record each in order, if the row is still that fax's: another may have its id by now."""
    known = {row.id: row for row in faxes.some(connection, [fact.fax.id for fact in facts])}
    said = set()
    for fact in facts:
        row, fax = known.get(fact.fax.id), fact.fax
        if row is None or (row.stream, row.fax_id) != (fax.stream, fax.fax_id):
            continue
        if fact.command is jobs.staged and (row.staged is not None or row.stored_at is not None):
            continue  # the row already says more
        fact.command(connection, [fact.item])
        said.add(fax.id)
    return len(said)
