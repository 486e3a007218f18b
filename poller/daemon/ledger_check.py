"""Check the whole ledger at every start and every day, and keep a copy of it."""

from poller import events, log
from poller.clock import Clock
from poller.errors import LedgerUnavailable
from poller.ledger import Hung, Ledger, Stopped
from poller.status import damaged

_LOOK_S = 3600.0


class LedgerCheck:
    """`trouble` is what the last check found, as a sentence; None while the ledger is sound."""

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock
        self._checked = False
        self._failures = log.Episode()
        self.trouble: str | None = None

    async def run(self) -> None:
        """Look now, then look every hour whether a check is due."""
        while True:
            await self.look()
            await self._clock.sleep(_LOOK_S)

    async def look(self) -> None:
        """If a check is due, check the ledger and keep a snapshot."""
        now = self._clock.now()
        due = await self._ledger.snapshot_is_due(now)
        if self._checked and not due:
            return
        try:
            health = await self._ledger.look_after(now)
        except Stopped:
            return
        except Hung as error:
            log.say(events.Stalled("ledger copy", reason=str(error)))
            return
        except LedgerUnavailable as error:
            if self._failures.failed():
                log.say(events.SnapshotFailed(error))
            return
        self._checked = True
        failures = self._failures.recovered()
        if health.problem is not None:
            self._found(health.problem)
            return
        self.trouble = None
        if due:
            log.say(events.SnapshotMade(failures))

    def _found(self, problem: str) -> None:
        if self.trouble is None:
            log.say(events.LedgerFoundDamaged(problem))
        self.trouble = damaged(problem)
