"""Sweeps, which list again, and the list of faxes that nobody has downloaded."""

from datetime import datetime

from poller import events
from poller.clock import Clock
from poller.config.model import Sweep
from poller.errors import ApiError, WindowRefused
from poller.events import Emit
from poller.ingest.poll_run import PollRun
from poller.ingest.reading import ListReader, Read
from poller.ingest.slices import SliceLister, is_of_the_slice, rules
from poller.ingest.stream_state import StreamState, SweepUnderWay
from poller.ledger import FaxRow
from poller.progress import Swept
from poller.window import Coverage, Interval, SliceKind, sweep_slices

_SWEEP_AGAIN_S = 300.0
_HOLD_IMAGES_S = 10.0
_PASSES = 5


class Sweeps:
    """Finds what the windows of one account's users have missed."""

    def __init__(self, lister: SliceLister, reader: ListReader, clock: Clock, emit: Emit) -> None:
        self._lister = lister
        self._reader = reader
        self._clock = clock
        self._emit = emit

    async def sweep(self, state: StreamState, start: datetime, run: PollRun) -> None:
        """List again what a window may have missed, within this poll's time."""
        if self._clock.monotonic() < state.sweep_not_before:
            return
        for kind in (SliceKind.SWEEP, SliceKind.DEEP_SWEEP):
            if kind not in state.sweeps and self._is_due(state, kind, run.now):
                state.sweeps[kind] = SweepUnderWay(kind, run.now)
        state.sweep_now = False
        for kind, sweep in list(state.sweeps.items()):
            try:
                await self._go_on(state, start, run, sweep)
            except ApiError as error:
                if not is_of_the_slice(error, run):
                    raise
                run.outcome.trouble.append(error)
                state.sweep_not_before = self._clock.monotonic() + _SWEEP_AGAIN_S
                if state.sweep_alarms[kind].failed():
                    self._emit(events.SweepFailed(*state.user.names, kind, error))

    @staticmethod
    def _is_due(state: StreamState, kind: SliceKind, now: datetime) -> bool:
        last_end = state.progress.swept_to(kind)
        return (
            state.sweep_now or last_end is None or now >= last_end + _sweep_rule(state, kind).every
        )

    async def _go_on(
        self, state: StreamState, start: datetime, run: PollRun, sweep: SweepUnderWay
    ) -> None:
        """Continue a sweep; when it is complete, its end is where the next one begins."""
        kind = sweep.kind
        before = len(run.outcome.discovered)
        try:
            through = await self._list_again(state, start, run, sweep)
            if through and kind is SliceKind.DEEP_SWEEP and start < run.now:
                through = await self._not_downloaded(state, Interval(start, run.now), run)
        finally:
            sweep.missed += sum(
                fax.received_at is None or run.covered_before.covers(fax.received_at)
                for fax in run.outcome.discovered[before:]
            )
        if not through or state.sweeps.get(kind) is not sweep:  # or everything must be listed again
            return
        await record_sweep(state, Swept(kind, sweep.end, sweep.missed))
        state.sweeps.pop(kind, None)
        alarm = state.sweep_alarms.pop(kind, None)
        if alarm is not None:
            self._emit(events.SweepRecovered(*state.user.names, kind, alarm.failures))

    async def _list_again(
        self, state: StreamState, start: datetime, run: PollRun, sweep: SweepUnderWay
    ) -> bool:
        """List the parts of a sweep that this poll has not listed; return False if its time is over."""
        last_end, back = state.progress.swept_to(sweep.kind), _sweep_rule(state, sweep.kind).back
        for piece in sweep_slices(sweep.kind, last_end, back, start, sweep.end, rules(state)):
            # A gap that could not be listed is tried again at its own time.
            refused = tuple(failed.interval for failed in state.progress.failed_slices)
            done = Coverage(run.listed.intervals + sweep.listed.intervals + refused)
            if not done.gaps(piece.interval.start, piece.interval.end):
                continue
            if run.is_over(self._clock.monotonic()):
                return False
            if not await self._lister.list_halving(state, piece, run):
                return False
            sweep.listed = sweep.listed.add(piece.interval)
        return True

    async def _not_downloaded(self, state: StreamState, bounds: Interval, run: PollRun) -> bool:
        """Read the not-downloaded list until a whole pass shows nothing unknown.

        Returns False if a slow image is in the way: the sweep must delay neither polls nor other
        images.
        """
        if not await state.images.hold(_HOLD_IMAGES_S):
            state.sweep_not_before = self._clock.monotonic() + _SWEEP_AGAIN_S
            return False
        found: list[FaxRow] = []
        try:
            for _ in range(_PASSES):
                read = await self._read_not_downloaded(state, bounds)
                found += read.discovered
                if not read.discovered and read.halve is None:
                    break
        finally:
            state.images.let_go()
        run.outcome.discovered += found
        return True

    async def _read_not_downloaded(self, state: StreamState, bounds: Interval) -> Read:
        """Read the list; if a server refuses so long a window, read what it lists by default."""
        try:
            return await self._reader.read_not_downloaded(state, bounds)
        except WindowRefused:
            return await self._reader.read_not_downloaded(state, None)


async def record_sweep(state: StreamState, swept: Swept) -> None:
    """Record a completed sweep; in a crash, one that found nothing may be lost."""
    await (state.record(swept) if swept.found else state.record_soon(swept))


def _sweep_rule(state: StreamState, kind: SliceKind) -> Sweep:
    poll = state.user.poll
    return poll.deep_sweep if kind is SliceKind.DEEP_SWEEP else poll.sweep
