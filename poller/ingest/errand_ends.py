"""How an unfinished errand ends: postponed, tried again at growing intervals, or left."""

import asyncio
from dataclasses import dataclass
from datetime import timedelta

from poller import deletion, retry
from poller.errors import OF_THE_ACCOUNT, PollerError, Rejected, UserRefused
from poller.ingest.fetch import Services
from poller.ledger import Errand, errands, jobs

_FIRST, _CAP = timedelta(minutes=1), timedelta(hours=6)
_PUT_OFF = timedelta(seconds=30)
_SHORTLY_S = 3.0


@dataclass(frozen=True)
class Refused:
    """eFax refused the errand; `is_left`: for so long that poller stops trying."""

    is_left: bool


class Ends:
    """Records the ends of one account's errands."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def put_off(self, errand: Errand, *, shortly: bool = False) -> None:
        """Make the errand due again soon, without counting a failure: the fax is not to blame.

        `shortly`: other work was in the way. The pause varies, or it could coincide with each poll.
        """
        pause_s = _SHORTLY_S * (1 + self._services.random())
        due = self._services.clock.now() + (timedelta(seconds=pause_s) if shortly else _PUT_OFF)
        job = (errand.fax.id, errand.fence, due, errand.kind)
        await self._services.ledger.write(jobs.postpone, *job)

    async def failed(self, errand: Errand, error: PollerError) -> Refused | None:
        """Record a failure; return Refused if eFax refused it, None if it may just be unreachable."""
        if isinstance(error, OF_THE_ACCOUNT):
            await self.put_off(errand)
            return None
        now, refused = self._services.clock.now(), isinstance(error, Rejected | UserRefused)
        is_left = refused and deletion.is_given_up(now, errand.first_failed_at)
        pause = retry.growing(
            errand.failures + 1, first=_FIRST, cap=_CAP, u=self._services.random()
        )
        await asyncio.shield(
            self._services.ledger.write(
                errands.failed,
                errand,
                str(error),
                None if is_left else now + pause,
                refused_at=now if refused else None,
            )
        )
        return Refused(is_left) if refused else None
