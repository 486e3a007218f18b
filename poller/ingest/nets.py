"""The two nets: sweeps, which list again, and the list of what nobody has downloaded."""

from datetime import datetime

from poller import events
from poller.clock import Clock
from poller.config.model import Sweep
from poller.errors import ApiError, WindowRefused
from poller.events import Emit
from poller.ingest.reading import ListReader, Read
from poller.ingest.run import Run
from poller.ingest.slices import SliceLister, is_of_the_slice, rules
from poller.ingest.user import SweepUnderWay, UserState
from poller.ledger import FaxRow, Ledger
from poller.window import Coverage, Interval, SliceKind, sweep_slices

_SWEEP_AGAIN_S = 300.0
_HOLD_IMAGES_S = 10.0
_PASSES = 5


class Nets:
    """Finds for the users of one account what their windows have missed."""

    def __init__(
        self,
        lister: SliceLister,
        reader: ListReader,
        ledger: Ledger,
        clock: Clock,
        emit: Emit,
    ) -> None:
        self._lister = lister
        self._reader = reader
        self._ledger = ledger
        self._clock = clock
        self._emit = emit

    async def sweep(self, state: UserState, start: datetime, run: Run) -> None:
        """List again what a window may have missed, as far as this poll's time reaches."""
        if self._clock.monotonic() < state.sweep_not_before:
            return
        for kind in (SliceKind.SWEEP, SliceKind.DEEP_SWEEP):
            if kind not in state.sweeps and self._sweep_is_due(state, kind, run.now):
                state.sweeps[kind] = SweepUnderWay(run.now)
        state.sweep_now = False
        for kind, sweep in list(state.sweeps.items()):
            try:
                await self._go_on(state, start, run, kind, sweep)
            except ApiError as error:
                if not is_of_the_slice(error, run):
                    raise
                run.outcome.trouble.append(error)
                state.sweep_not_before = self._clock.monotonic() + _SWEEP_AGAIN_S
                if state.sweep_alarms[kind].failed():
                    self._emit(events.SweepFailed(*state.user.names, kind, error))

    @staticmethod
    def _sweep_is_due(state: UserState, kind: SliceKind, now: datetime) -> bool:
        last_end = state.sweep_ends[kind]
        return (
            state.sweep_now or last_end is None or now >= last_end + _sweep_rule(state, kind).every
        )

    async def _go_on(
        self, state: UserState, start: datetime, run: Run, kind: SliceKind, sweep: SweepUnderWay
    ) -> None:
        """Go on with a sweep; once completed, its end says where the next one begins."""
        last_end, back = state.sweep_ends[kind], _sweep_rule(state, kind).back
        before = len(run.outcome.discovered)
        try:
            for piece in sweep_slices(kind, last_end, back, start, sweep.end, rules(state)):
                # A gap that could not be listed has a time of its own when it is tried again.
                refused = tuple(failed.interval for failed in state.failed_slices)
                done = Coverage(run.listed.intervals + sweep.listed.intervals + refused)
                if not done.gaps(piece.interval.start, piece.interval.end):
                    continue
                if run.is_over(self._clock.monotonic()):
                    return
                if not await self._lister.list_halving(state, piece, run):
                    return
                sweep.listed = sweep.listed.add(piece.interval)
            if kind is SliceKind.DEEP_SWEEP and start < run.now:
                found = await self._not_downloaded(state, start, run.now)
                if found is None:
                    state.sweep_not_before = self._clock.monotonic() + _SWEEP_AGAIN_S
                    return
                run.outcome.discovered += found
        finally:
            sweep.missed += sum(
                fax.received_at is None or run.covered_before.covers(fax.received_at)
                for fax in run.outcome.discovered[before:]
            )
        if state.sweeps.get(kind) is not sweep:
            return  # all is to be listed again
        await self._ledger.sweep_done(state.id, kind, sweep.end, sweep.missed)
        state.sweep_ends[kind] = sweep.end
        state.sweeps.pop(kind, None)
        alarm = state.sweep_alarms.pop(kind, None)
        if alarm is not None:
            self._emit(events.SweepRecovered(*state.user.names, kind, alarm.failures))

    async def _not_downloaded(
        self, state: UserState, start: datetime, now: datetime
    ) -> list[FaxRow] | None:
        """Read the not-downloaded list until a whole pass shows nothing unknown.

        None when a slow image stands in the way: it must hold up neither polls nor other images.
        """
        if not await state.images.hold(_HOLD_IMAGES_S):
            return None
        found: list[FaxRow] = []
        try:
            for _ in range(_PASSES):
                read = await self._read_not_downloaded(state, Interval(start, now))
                found += read.discovered
                if not read.discovered and read.halve is None:
                    break
        finally:
            state.images.let_go()
        return found

    async def _read_not_downloaded(self, state: UserState, bounds: Interval) -> Read:
        """Some servers may refuse so long a window; their own default is better than nothing."""
        try:
            return await self._reader.read_not_downloaded(state, bounds)
        except WindowRefused:
            return await self._reader.read_not_downloaded(state, None)


def _sweep_rule(state: UserState, kind: SliceKind) -> Sweep:
    poll = state.user.poll
    return poll.deep_sweep if kind is SliceKind.DEEP_SWEEP else poll.sweep
