"""What this run stored lately, for a database that loses it in a failover."""

from collections.abc import Callable
from dataclasses import dataclass, field

from poller.documents import Staged
from poller.ledger import FaxRow, Ledger, failover
from poller.ledger.failover import Fact
from poller.ledger.fold import chunks
from poller.ledger.jobs import Stored
from poller.stream import Stream

_FOR_S = 600.0


@dataclass
class Facts:
    """The last fact about each fax; it stays true after a takeover. `is_on` with several nodes."""

    monotonic: Callable[[], float]
    is_on: bool = False
    _facts: dict[tuple[Stream, str], tuple[float, Fact]] = field(default_factory=dict)

    def add(self, fax: FaxRow, outcome: Staged | Stored) -> None:
        """Remember for ten minutes what was recorded of a fax."""
        if not self.is_on:
            return
        self.forget(fax)  # the newest fact is the last one
        now = self.monotonic()
        self._facts[fax.whose, fax.fax_id] = now, Fact(fax, outcome)
        while (oldest := next(iter(self._facts.items())))[1][0] < now - _FOR_S:
            del self._facts[oldest[0]]

    def forget(self, fax: FaxRow) -> None:
        """Forget a ticket that is no longer in the row."""
        self._facts.pop((fax.whose, fax.fax_id), None)

    def stored(self, fax: FaxRow) -> Stored | None:
        """Return what was recorded of a fax that is now to be fetched, if the database has lost it."""
        _, fact = self._facts.get((fax.whose, fax.fax_id), (0.0, None))
        if fact is None or fax.refetch or not isinstance(fact.outcome, Stored):
            return None
        return fact.outcome

    async def say_again(self, ledger: Ledger) -> int:
        """Record what the database has lost; return of how many faxes. Raises LedgerUnavailable."""
        facts = [fact for _, fact in self._facts.values()]
        said = 0
        for some in chunks(facts):
            said += await ledger.write(failover.record_again, some)
        return said
