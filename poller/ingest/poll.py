"""Poll one user: the newest slice first, then old gaps, the two nets, and what was asked for."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime, timedelta

from poller import events, retry
from poller.client import Client
from poller.config.model import User
from poller.errors import (
    AccountSuspended,
    ApiError,
    LedgerUnavailable,
    SignInDelayed,
    Unreachable,
    UserRefused,
)
from poller.ingest.backfill import Backfills
from poller.ingest.empties import EmptyLists
from poller.ingest.fetch import Workshop
from poller.ingest.nets import Nets
from poller.ingest.reading import ListReader
from poller.ingest.run import PollOutcome, Run
from poller.ingest.slices import NOT_THIS_USERS_FAULT, SliceLister, failures, halved, rules
from poller.ingest.user import UserState, read_again
from poller.ledger import coverage, streams
from poller.window import (
    Slice,
    WindowRules,
    first_seen_at_server,
    gap_slices,
    is_late,
    newest_slice,
    pinned_start,
)

_REFUSAL_FIRST, _REFUSAL_CAP = timedelta(minutes=1), timedelta(hours=1)
_LATE_AGAIN_S = 3600.0  # this often at most it is said again


class Poller:
    """Polls the users of one account."""

    def __init__(
        self, client: Client, reader: ListReader, empties: EmptyLists, shop: Workshop
    ) -> None:
        self._client = client
        self._ledger = ledger = shop.ledger
        self._empties = empties
        self._clock = clock = shop.clock
        self._random = random = shop.random
        self._emit = emit = shop.emit
        self._lister = SliceLister(reader, ledger, clock=clock, random=random)
        self._nets = Nets(self._lister, reader, ledger, clock, emit)
        self._backfills = Backfills(
            self._lister, ledger, empties, clock=clock, random=random, emit=emit
        )
        self._agreeing = asyncio.Lock()
        self._not_said: dict[int, UserState] = {}  # refused, perhaps for the account's fault

    async def poll(self, state: UserState, *, until: float | None = None) -> PollOutcome:
        """List what is due of `state`'s user and record it; old gaps only until monotonic `until`.

        Never raises ApiError or LedgerUnavailable: they are in the outcome, and recorded.
        """
        outcome = PollOutcome()
        if state.refused_until is not None and self._clock.now() < state.refused_until:
            outcome.skipped = "the user is refused"
            return outcome
        with state.being_polled():
            try:
                await self._poll(state, until, outcome)
            except (AccountSuspended, SignInDelayed) as error:
                outcome.skipped = str(error)
            except (ApiError, LedgerUnavailable) as error:
                outcome.error = error
            await self.record(state, outcome)
            await self._end_doubt(state, outcome)
        return outcome

    async def _end_doubt(self, state: UserState, outcome: PollOutcome) -> None:
        """What an operator edited meanwhile, or what a failed write left of what was said before."""
        state.in_doubt = state.in_doubt or isinstance(outcome.error, LedgerUnavailable)
        with suppress(LedgerUnavailable):  # then before the next poll
            await self._read_if_in_doubt(state)

    async def _read_if_in_doubt(self, state: UserState) -> None:
        if state.in_doubt or self._ledger.has_lost(state.id):
            await read_again(state, self._ledger)

    async def _poll(self, state: UserState, until: float | None, outcome: PollOutcome) -> None:
        await self._read_if_in_doubt(state)
        now = await self._server_now(state.user)
        start = await self._pin(state, now)
        run = Run(now=now, until=until, outcome=outcome, covered_before=state.seen)
        await self._newest(state, start, run)
        state.newest_failures = 0
        await self._gaps(state, start, run)
        await self._nets.sweep(state, start, run)
        await self._backfills.go_on(state, run)
        await self._empties.learn()

    async def backfill(self, state: UserState) -> PollOutcome:
        """List old windows that an operator asked for, and nothing else; raises as `poll` does."""
        outcome = PollOutcome()
        with state.being_polled():
            try:
                await self._read_if_in_doubt(state)
                now = await self._server_now(state.user)
                run = Run(now=now, until=None, outcome=outcome, covered_before=state.seen)
                await self._backfills.go_on(state, run)
            except (ApiError, LedgerUnavailable) as error:
                outcome.error = error
            await self._end_doubt(state, outcome)
        return outcome

    # -- time ---------------------------------------------------------------------------------

    async def _server_now(self, user: User) -> datetime:
        """Ask /health until the server's time is known (three answers at most), for all at once."""
        if (now := self._efax_now()) is not None:
            return now
        async with self._agreeing:
            for _ in range(3):
                if (now := self._efax_now()) is not None:
                    return now
                await self._ask_health(user)
        if (now := self._efax_now()) is None:
            raise Unreachable(
                "eFax's clock and ours differ by more than a minute and its answers do not agree "
                "with each other; set this machine's clock"
            )
        return now

    def _efax_now(self) -> datetime | None:
        clock = self._client.server_clock
        return clock.now(clock.our_now(self._clock.now(), self._clock.monotonic()))

    async def _ask_health(self, user: User) -> None:
        try:
            await self._client.health(user)
        except (Unreachable, AccountSuspended):
            raise
        except ApiError:
            return  # any answer bears a Date header; whether /health is served does not matter

    async def _pin(self, state: UserState, now: datetime) -> datetime:
        configured = str(state.user.poll.start)
        pinned = state.pinned_start
        if pinned is not None and pinned <= now and state.configured_start == configured:
            return pinned
        seen = first_seen_at_server(state.our_first_seen, self._clock.now(), now)
        wanted = pinned_start(state.user.poll.start, seen)
        start = wanted if pinned is None else min(wanted, pinned)
        await self._ledger.write(streams.pin_start, state.id, start, configured)
        state.pinned_start, state.configured_start = start, configured
        return start

    # -- newest slice and gaps ----------------------------------------------------------------

    async def _newest(self, state: UserState, start: datetime, run: Run) -> None:
        piece = newest_slice(state.seen, start, run.now, self._newest_rules(state))
        if piece is None:
            return
        try:
            await self._lister.list_halving(state, piece, run)
        except NOT_THIS_USERS_FAULT:
            raise
        except ApiError:
            state.newest_failures += 1
            raise

    def _newest_rules(self, state: UserState) -> WindowRules:
        """The newest slice is halved, down to an hour, each time that it failed twice."""
        return halved(rules(state), state.newest_failures // 2)

    async def _gaps(self, state: UserState, start: datetime, run: Run) -> None:
        wanted = rules(state)
        while pieces := gap_slices(state.seen, start, run.now, wanted, state.failed_slices):
            for piece in pieces:
                if run.is_over(self._clock.monotonic()):
                    break
                await self._gap(state, piece, run)
            await self._empties.settle()  # the overlap of later polls does not reach there
            if run.is_over(self._clock.monotonic()):
                return

    async def _gap(self, state: UserState, piece: Slice, run: Run) -> None:
        try:
            await self._lister.list_halving(state, piece, run)
        except NOT_THIS_USERS_FAULT:
            raise
        except ApiError as error:
            run.outcome.trouble.append(error)
            await self._gap_failed(state, piece, str(error), run)

    async def _gap_failed(self, state: UserState, piece: Slice, reason: str, run: Run) -> None:
        """A slice that fails twice while the account is well is halved."""
        halves = piece.halves()
        if failures(state, piece.interval) + 1 >= 2 and halves is not None:
            newer, older = halves
            await self._ledger.write(
                coverage.slice_split, state.id, piece.interval, (older.interval, newer.interval)
            )
            state.failed_slices = await self._ledger.read(coverage.failed, state.id)
        else:
            await self._lister.leave_gap(state, piece, reason, run)

    # -- what the poll leaves behind ----------------------------------------------------------

    async def record(self, state: UserState, outcome: PollOutcome) -> None:
        """Keep what came of a poll, in the ledger too; where that fails, it is in the outcome."""
        now = self._clock.now()
        if outcome.skipped is not None:
            return
        if isinstance(outcome.error, UserRefused):
            self._refuse(state, outcome.error, now)
        elif outcome.error is None:
            self._accept(state)
        self._report_late(state, outcome)
        error = outcome.error
        state.failed_polls = 0 if error is None else state.failed_polls + 1
        if error is None:
            state.last_success_at = now
            state.polled = True
        try:
            if error is None:
                await self._ledger.polled(state.id, now)
            else:
                await self._ledger.write(
                    streams.poll_failed,
                    state.id,
                    now,
                    error=str(error),
                    refused_until=state.refused_until,
                )
        except LedgerUnavailable as unavailable:
            outcome.error = outcome.error or unavailable

    def _refuse(self, state: UserState, error: UserRefused, now: datetime) -> None:
        state.refusals += 1
        state.refusal = error
        state.refused_until = now + retry.growing(
            state.refusals, first=_REFUSAL_FIRST, cap=_REFUSAL_CAP, u=self._random()
        )
        self._not_said[state.id] = state
        # One that fails alone says nothing of the others: who is at fault shows when they are asked.
        if self._client.suspension.until is None and (state.refusals > 1 or self._is_only_user):
            self._say_refused([self._not_said.pop(state.id)])

    @property
    def _is_only_user(self) -> bool:
        return self._client.suspension.user_count < 2

    def _say_refused(self, states: Iterable[UserState]) -> None:
        for state in states:
            if state.refusal_said or not state.refusals:
                continue
            state.refusal_said = True
            before = ", whom it accepted before" if state.last_success_at is not None else ""
            also = ", and whether a proxy drops or changes headers" if self._is_only_user else ""
            self._emit(events.RefusalBegan(*state.user.names, state.refusal, before, also))

    def _accept(self, state: UserState) -> None:
        if state.refusal_said:
            self._emit(events.RefusalEnded(*state.user.names, state.refusals))
        state.refusals, state.refused_until, state.refusal_said = 0, None, False
        if self._not_said:  # the account is well, so it is those users
            not_said, self._not_said = self._not_said, {}
            self._say_refused(not_said.values())

    def _report_late(self, state: UserState, outcome: PollOutcome) -> None:
        late = [s for s in outcome.late_s if is_late(timedelta(seconds=s), state.user.poll.overlap)]
        if not late:
            return
        now = self._clock.monotonic()
        is_news = now >= state.late_again_at
        if is_news:
            state.late_again_at = now + _LATE_AGAIN_S
        self._emit(events.LateArrivals(*state.user.names, len(late), round(max(late)), is_news))
