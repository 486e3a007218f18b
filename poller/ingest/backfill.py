"""Old windows that an operator asked for, listed beside the live ones."""

from collections.abc import Callable
from datetime import timedelta

from poller import events, retry
from poller.clock import Clock
from poller.errors import ApiError
from poller.events import Emit
from poller.ingest.empties import EmptyLists
from poller.ingest.run import Run
from poller.ingest.slices import SliceLister, halved, is_of_the_slice, rules
from poller.ingest.user import UserState
from poller.ledger import Backfill, Ledger, backfills
from poller.window import Slice, WindowRules, backfill_slice

_FIRST, BACKFILL_CAP = timedelta(seconds=10), timedelta(minutes=5)


class Backfills:
    """Goes on with the backfills of the users of one account. `random` gives values in [0, 1)."""

    def __init__(
        self,
        lister: SliceLister,
        ledger: Ledger,
        empties: EmptyLists,
        *,
        clock: Clock,
        random: Callable[[], float],
        emit: Emit,
    ) -> None:
        self._lister = lister
        self._ledger = ledger
        self._empties = empties
        self._clock = clock
        self._random = random
        self._emit = emit

    async def go_on(self, state: UserState, run: Run) -> None:
        """Go on with what was asked for, as far as this poll's time reaches."""
        if not state.backfill or self._clock.monotonic() < state.backfill_not_before:
            return
        state.backfill = False  # one that is asked for from here on sets it again
        through = False
        try:
            through = await self._all_through(state, run)
        finally:
            state.backfill = state.backfill or not through

    async def _all_through(self, state: UserState, run: Run) -> bool:
        for asked in await self._ledger.read(backfills.waiting, state.id):
            now = asked
            while (rest := now.rest) is not None and now.done_at is None:
                left = None  # of what lies in the future
                if planned := backfill_slice(rest, run.now, self._rules(state)):
                    piece, left = planned
                    if run.is_over(self._clock.monotonic()):
                        return False
                    if not await self._list(state, asked, piece, run):
                        return False
                    await self._empties.settle()  # it is not asked for a second time
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

    async def _list(self, state: UserState, asked: Backfill, piece: Slice, run: Run) -> bool:
        """List one slice; what cannot be listed of it is noted. False: it is to be asked for again."""
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
        # What took too long for one poll is asked for in shorter slices from here on.
        state.backfill_failures = max(0, state.backfill_failures + (-1 if through else 1))
        run.not_listed = run.not_listed if through else []
        return through

    async def _failed(self, state: UserState, asked: Backfill, error: ApiError, run: Run) -> None:
        state.backfill_failures += 1
        pause = retry.growing(
            state.backfill_failures, first=_FIRST, cap=BACKFILL_CAP, u=self._random()
        )
        state.backfill_not_before = self._clock.monotonic() + pause.total_seconds()
        run.outcome.trouble.append(error)
        run.not_listed = []
        await self._ledger.write(backfills.failed, asked.id, str(error))

    @staticmethod
    def _rules(state: UserState) -> WindowRules:
        """The slices of a backfill are halved, down to an hour, each time that one failed."""
        return halved(rules(state), state.backfill_failures)
