"""What polls say that may be lost: kept in memory for a moment, then folded together.

That is what an empty list covers, that a poll went well, and where a sweep ended that found nothing.
Whatever a crash takes of it is only listed again: coverage or a sweep that is missing claims
nothing, and no fax hangs on it. Rows, counts and failures are never put off.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from poller.errors import LedgerUnavailable
from poller.ledger import fold
from poller.ledger.writer import Writer
from poller.progress import StreamEvent

_FOR_S = 2.0


class WriteBehind:
    """Gives the writer what was said within two seconds as one job, in few statements.

    Where that fails it is lost, and whatever is said next is written at once, so that polls fail
    as long as the ledger takes no writes. `lost` are the streams of which something was lost.
    """

    def __init__(self, writer: Writer | None) -> None:
        self._writer = writer
        self._said: dict[int, list[StreamEvent]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._is_failing = False
        self.lost: set[int] = set()

    async def record(self, stream: int, *events: StreamEvent) -> None:
        """Have it recorded soon; returns at once while the ledger takes writes."""
        if self._writer is None or self._writer.ended:
            raise LedgerUnavailable("the ledger takes no writes")
        self._said.setdefault(stream, []).extend(events)
        if self._is_failing:
            if (written := self.write_down()) is not None:
                await written
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_FOR_S, self.write_down)

    def write_down(self) -> "asyncio.Future[Any] | None":
        """Ask for what was said so far to be written, before whatever is asked for next."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._said or self._writer is None or self._writer.ended:
            return None
        said, self._said = self._said, {}
        written = self._writer.ask(lambda connection: fold.record_all(connection, said))
        written.add_done_callback(lambda written: self._written(written, said))
        return written

    def _written(
        self, written: "asyncio.Future[Any]", said: Mapping[int, Sequence[StreamEvent]]
    ) -> None:
        self._is_failing = written.cancelled() or written.exception() is not None
        if self._is_failing:
            self.lost.update(said)
