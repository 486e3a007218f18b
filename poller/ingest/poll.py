"""Poll one stream: the newest slice first, then old gaps, sweeps, and requested backfills."""

from contextlib import suppress
from datetime import datetime, timedelta

from poller import events
from poller.client import Client
from poller.errors import (
    AccountSuspended,
    ApiError,
    LedgerUnavailable,
    SignInDelayed,
    UserRefused,
)
from poller.ingest.agreed_time import AgreedTime
from poller.ingest.backfill import Backfills
from poller.ingest.fetch import Services
from poller.ingest.poll_run import PollOutcome, PollRun
from poller.ingest.reading import Emptiness, ListReader
from poller.ingest.refusals import Refusals
from poller.ingest.slices import NOT_THIS_USERS_FAULT, SliceLister, halved, rules
from poller.ingest.stream_state import StreamState
from poller.ingest.sweeps import Sweeps
from poller.progress import NotPolled, Pinned, Polled, SliceSplit
from poller.window import (
    Slice,
    first_seen_at_server,
    gap_slices,
    is_late,
    newest_slice,
    pinned_start,
)

_LATE_AGAIN_S = 3600.0  # report it at most this often


class Poller:
    """Polls the streams of one account."""

    def __init__(
        self, client: Client, reader: ListReader, empties: Emptiness, services: Services
    ) -> None:
        self._empties = empties
        self._clock = services.clock
        self._emit = services.emit
        self._time = AgreedTime(client, services.clock)
        self._refusals = Refusals(client, services.random, services.emit)
        self._lister = SliceLister(reader, clock=services.clock, random=services.random)
        self._sweeps = Sweeps(self._lister, reader, services.clock, services.emit)
        self._backfills = Backfills(self._lister, empties, services)

    async def poll(self, state: StreamState, *, until: float | None = None) -> PollOutcome:
        """List what is due of `state` and record it; list old gaps only until monotonic `until`.

        Never raises ApiError or LedgerUnavailable: they are in the outcome, and recorded.
        """
        outcome = PollOutcome()
        refused_until, anyway = state.progress.refused_until, state.ask_anyway
        state.ask_anyway = False
        if refused_until is not None and self._clock.now() < refused_until and not anyway:
            outcome.skipped = "eFax refuses the user"
            return outcome
        try:
            await self._poll(state, until, outcome)
        except (AccountSuspended, SignInDelayed) as error:
            outcome.skipped = str(error)
        except (ApiError, LedgerUnavailable) as error:
            outcome.error = error
        await self.record(state, outcome)
        with suppress(LedgerUnavailable):  # the next poll will do it
            await state.refresh()
        return outcome

    async def _poll(self, state: StreamState, until: float | None, outcome: PollOutcome) -> None:
        run = await self._begin(state, until, outcome)
        start = await self._pin(state, run.now)
        await self._newest(state, start, run)
        state.newest_failures = 0
        await self._gaps(state, start, run)
        await self._sweeps.sweep(state, start, run)
        await self._backfills.go_on(state, run)
        await self._empties.learn()

    async def backfill(self, state: StreamState) -> PollOutcome:
        """List old windows that an operator asked for, and nothing else; raises what `poll` raises."""
        outcome = PollOutcome()
        try:
            await self._backfills.go_on(state, await self._begin(state, None, outcome))
        except (ApiError, LedgerUnavailable) as error:
            outcome.error = error
        return outcome

    async def _begin(
        self, state: StreamState, until: float | None, outcome: PollOutcome
    ) -> PollRun:
        await state.refresh()
        now = await self._time.now(state.user)
        return PollRun(now=now, until=until, outcome=outcome, covered_before=state.seen)

    async def _pin(self, state: StreamState, now: datetime) -> datetime:
        configured = str(state.user.poll.start)
        pinned = state.progress.pinned_start
        if pinned is None or pinned > now or state.progress.configured_start != configured:
            seen = first_seen_at_server(state.progress.our_first_seen, self._clock.now(), now)
            await state.record(Pinned(pinned_start(state.user.poll.start, seen), configured))
            pinned = state.progress.pinned_start
            assert pinned is not None  # since the call just before
        return pinned

    # -- newest slice and gaps ----------------------------------------------------------------

    async def _newest(self, state: StreamState, start: datetime, run: PollRun) -> None:
        # Each slice that failed twice is halved, down to an hour.
        shortened = halved(rules(state), state.newest_failures // 2)
        piece = newest_slice(state.seen, start, run.now, shortened)
        if piece is None:
            return
        try:
            await self._lister.list_halving(state, piece, run)
        except NOT_THIS_USERS_FAULT:
            raise
        except ApiError:
            state.newest_failures += 1
            raise

    async def _gaps(self, state: StreamState, start: datetime, run: PollRun) -> None:
        wanted = rules(state)
        while pieces := gap_slices(
            state.seen, start, run.now, wanted, state.progress.failed_slices
        ):
            for piece in pieces:
                if run.is_over(self._clock.monotonic()):
                    break
                await self._gap(state, piece, run)
            await self._empties.settle()  # later polls' overlap does not reach this far back
            if run.is_over(self._clock.monotonic()):
                return

    async def _gap(self, state: StreamState, piece: Slice, run: PollRun) -> None:
        """List a gap; halve a slice that fails twice while the account is well."""
        try:
            await self._lister.list_halving(state, piece, run)
        except NOT_THIS_USERS_FAULT:
            raise
        except ApiError as error:
            run.outcome.trouble.append(error)
            halves = piece.halves()
            if halves is None or not state.progress.failures(piece.interval):
                await self._lister.leave_gap(state, piece, str(error), run)
            else:
                older_and_newer = tuple(half.interval for half in reversed(halves))
                await state.record(SliceSplit(piece.interval, older_and_newer))

    # -- results ------------------------------------------------------------------------------

    async def record(self, state: StreamState, outcome: PollOutcome) -> None:
        """Record the outcome of a poll; if the ledger refuses it, put that into the outcome."""
        if outcome.skipped is not None:
            return
        now, error, refused_until = self._clock.now(), outcome.error, None
        if error is None:
            self._refusals.accepted(state)
            state.polled = True
        elif isinstance(error, UserRefused):
            refused_until = self._refusals.refused(state, error, now)
        self._report_late(state, outcome)
        try:
            if error is None:
                await state.record_soon(Polled(now))
            else:
                await state.record(NotPolled(now, str(error), refused_until))
        except LedgerUnavailable as unavailable:
            outcome.error = error or unavailable

    def _report_late(self, state: StreamState, outcome: PollOutcome) -> None:
        late = [s for s in outcome.late_s if is_late(timedelta(seconds=s), state.user.poll.overlap)]
        if not late:
            return
        now = self._clock.monotonic()
        is_news = now >= state.late_again_at
        if is_news:
            state.late_again_at = now + _LATE_AGAIN_S
        self._emit(events.LateArrivals(*state.user.names, len(late), round(max(late)), is_news))
