"""List old windows that an operator asked for, in addition to the live ones."""

from datetime import timedelta

from poller import events, retry
from poller.errors import ApiError
from poller.ingest.fetch import Services
from poller.ingest.poll_run import PollRun
from poller.ingest.reading import Emptiness
from poller.ingest.slices import SliceLister, halved, is_of_the_slice, rules
from poller.ingest.stream_state import StreamState
from poller.ledger import Backfill, backfills
from poller.window import Slice, WindowRules, backfill_slice

_FIRST, BACKFILL_CAP = timedelta(seconds=10), timedelta(minutes=5)


class Backfills:
    """Continues the backfills of one account's streams."""

    def __init__(self, lister: SliceLister, empties: Emptiness, services: Services) -> None:
        self._lister = lister
        self._empties = empties
        self._ledger = services.ledger
        self._clock = services.clock
        self._random = services.random
        self._emit = services.emit

    async def go_on(self, state: StreamState, run: PollRun) -> None:
        """Continue the requested backfills within this poll's time."""
        too_early = self._clock.monotonic() < state.backfill_not_before
        if not state.progress.backfill_waits or too_early:
            return
        if await self._all_through(state, run):
            await state.reread()  # an operator may have requested another meanwhile

    async def _all_through(self, state: StreamState, run: PollRun) -> bool:
        for asked in await self._ledger.read(backfills.waiting, state.id):
            now = asked
            while (rest := now.rest) is not None and now.done_at is None:
                left = None  # the rest is in the future
                if planned := backfill_slice(rest, run.now, _rules(state)):
                    piece, left = planned
                    if run.is_over(self._clock.monotonic()):
                        return False
                    if not await self._list(state, asked, piece, run):
                        return False
                    await self._empties.settle()  # nothing will ask for it a second time
                now = await self._ledger.write(
                    backfills.listed, asked.id, left, run.not_listed, self._clock.now()
                )
                run.not_listed = []
            if not now.withdrawn:
                window = now.window
                self._emit(
                    events.BackfillCompleted(
                        *state.user.names, window.start, window.end, len(now.not_listed)
                    )
                )
        return True

    async def _list(self, state: StreamState, asked: Backfill, piece: Slice, run: PollRun) -> bool:
        """List one slice and note what could not be listed; return False to ask for it again."""
        try:
            through = await self._lister.list_halving(state, piece, run)
        except ApiError as error:
            if not is_of_the_slice(error, run):
                await self._ledger.write(backfills.failed, asked.id, str(error))
                raise
            if state.backfill_failures == 0 or piece.halves() is not None:
                await self._failed(state, asked, error, run)
                return False
            run.not_listed = [(piece.interval, str(error))]
            through = True
        # From now on, ask for shorter slices of what took too long for one poll.
        state.backfill_failures = max(0, state.backfill_failures + (-1 if through else 1))
        run.not_listed = run.not_listed if through else []
        return through

    async def _failed(
        self, state: StreamState, asked: Backfill, error: ApiError, run: PollRun
    ) -> None:
        state.backfill_failures += 1
        pause = retry.growing(
            state.backfill_failures, first=_FIRST, cap=BACKFILL_CAP, u=self._random()
        )
        state.backfill_not_before = self._clock.monotonic() + pause.total_seconds()
        run.outcome.trouble.append(error)
        run.not_listed = []
        await self._ledger.write(backfills.failed, asked.id, str(error))


def _rules(state: StreamState) -> WindowRules:
    """Halve the slices of a backfill after each failure, down to an hour."""
    return halved(rules(state), state.backfill_failures)
