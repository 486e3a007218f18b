"""Events that may be lost: kept in memory for a moment, then recorded together.

These are the coverage of an empty list, the success of a poll, and the end of a sweep that found
nothing. If a crash loses one, the time is only listed again: missing coverage or a missing sweep
claims nothing, and no fax depends on it. Rows, counts and failures are never delayed.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from poller.errors import LeaseLost, LedgerUnavailable
from poller.ledger import fold
from poller.ledger.leases import Lease
from poller.ledger.writer import Writer
from poller.progress import StreamEvent

_FOR_S = 2.0


class WriteBehind:
    """Gives the writer the events of two seconds as one job, in few statements.

    If that fails, they are lost and the next event is written at once, so that polls fail as long
    as the ledger takes no writes. `lost` are the streams that lost an event.
    """

    def __init__(self, writer: Writer | None) -> None:
        self._writer = writer
        self._said: dict[Lease | None, dict[int, list[StreamEvent]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._is_failing = False
        self.lost: set[int] = set()

    async def record(self, stream: int, *events: StreamEvent, lease: Lease | None = None) -> None:
        """Record events soon; return at once while the ledger takes writes."""
        if self._writer is None or self._writer.ended:
            raise LedgerUnavailable("the ledger takes no writes")
        self._said.setdefault(lease, {}).setdefault(stream, []).extend(events)
        if self._is_failing:
            await asyncio.gather(*self.write_down())
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_FOR_S, self.write_down)

    def write_down(self) -> "list[asyncio.Future[Any]]":
        """Have all events so far written, before the writes that are requested next."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._said or self._writer is None or self._writer.ended:
            return []
        said, self._said = self._said, {}
        return [self._write(self._writer, lease, events) for lease, events in said.items()]

    def _write(
        self, writer: Writer, lease: Lease | None, said: Mapping[int, Sequence[StreamEvent]]
    ) -> "asyncio.Future[Any]":
        written = writer.ask(lambda connection: fold.record_all(connection, said), lease)
        written.add_done_callback(lambda written: self._written(written, said))
        return written

    def _written(
        self, written: "asyncio.Future[Any]", said: Mapping[int, Sequence[StreamEvent]]
    ) -> None:
        error = None if written.cancelled() else written.exception()
        if written.cancelled() or error is not None:
            self.lost.update(said)
        if not isinstance(error, LeaseLost):  # which is about one account
            self._is_failing = written.cancelled() or error is not None
