"""Poll one user: the newest slice first, then old gaps, then the two nets."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from poller import log, retry
from poller.client import Client
from poller.clock import Clock
from poller.config.model import Sweep, User
from poller.errors import (
    AccountSuspended,
    ApiError,
    BadAnswer,
    DeadlinePassed,
    LedgerUnavailable,
    PollerError,
    RateLimited,
    SignInDelayed,
    SignInRefused,
    TokenRefused,
    Unreachable,
    UserRefused,
    WindowRefused,
)
from poller.ingest.reading import ListReader, Read
from poller.ingest.user import SweepUnderWay, UserState
from poller.ledger import Backfill, FaxRow, Ledger
from poller.window import (
    Coverage,
    FailedSlice,
    Interval,
    Slice,
    SliceKind,
    WindowRules,
    backfill_slice,
    first_seen_at_server,
    gap_slices,
    is_late,
    newest_slice,
    pinned_start,
    sweep_slices,
)

HOUR = timedelta(hours=1)
_REFUSAL_FIRST, _REFUSAL_CAP = timedelta(minutes=1), timedelta(hours=1)
_GAP_FIRST, _GAP_CAP = timedelta(minutes=1), timedelta(hours=6)
_SWEEP_AGAIN_S = 300.0
_BACKFILL_FIRST, BACKFILL_CAP = timedelta(seconds=10), timedelta(minutes=5)
_LATE_AGAIN_S = 3600.0  # this often at most it is said again
_HOLD_IMAGES_S = 10.0
_PASSES = 5
_NOT_THIS_USERS_FAULT = (
    AccountSuspended,
    SignInDelayed,
    SignInRefused,
    TokenRefused,
    RateLimited,
    UserRefused,
)


@dataclass
class PollOutcome:
    """What one poll did. `error`: the newest slice failed; `trouble`: an older one or a net did."""

    discovered: list[FaxRow] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)
    skipped: str | None = None
    error: PollerError | None = None
    trouble: list[PollerError] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return self.error is not None or bool(self.trouble)


@dataclass
class _Run:
    """One poll under way: the server's now as it was read once, and what has been listed since."""

    now: datetime
    until: float | None
    outcome: PollOutcome
    covered_before: Coverage
    listed: Coverage = field(default_factory=Coverage)
    not_listed: list[tuple[Interval, str]] = field(default_factory=list)  # of a backfill


class Poller:
    """Polls the users of one account. `random` gives values in [0, 1)."""

    def __init__(
        self,
        client: Client,
        ledger: Ledger,
        reader: ListReader,
        *,
        clock: Clock,
        random: Callable[[], float],
    ) -> None:
        self._client = client
        self._ledger = ledger
        self._reader = reader
        self._clock = clock
        self._random = random
        self._agreeing = asyncio.Lock()

    async def poll(self, state: UserState, *, until: float | None = None) -> PollOutcome:
        """List what is due of `state`'s user and record it; old gaps only until monotonic `until`.

        Never raises ApiError or LedgerUnavailable: they are in the outcome, and recorded.
        """
        outcome = PollOutcome()
        if state.refused_until is not None and self._clock.now() < state.refused_until:
            outcome.skipped = "the user is refused"
            return outcome
        try:
            await self._poll(state, until, outcome)
        except (AccountSuspended, SignInDelayed) as error:
            outcome.skipped = str(error)
        except (ApiError, LedgerUnavailable) as error:
            outcome.error = error
        await self._record_outcome(state, outcome)
        return outcome

    async def _poll(self, state: UserState, until: float | None, outcome: PollOutcome) -> None:
        now = await self._server_now(state.user)
        start = await self._pin(state, now)
        run = _Run(now=now, until=until, outcome=outcome, covered_before=state.coverage)
        await self._newest(state, start, run)
        state.newest_failures = 0
        await self._gaps(state, start, run)
        await self._sweeps(state, start, run)
        await self._backfills(state, run)

    async def backfill(self, state: UserState) -> PollOutcome:
        """List old windows that an operator asked for, and nothing else; raises as `poll` does."""
        outcome = PollOutcome()
        try:
            now = await self._server_now(state.user)
            run = _Run(now=now, until=None, outcome=outcome, covered_before=state.coverage)
            await self._backfills(state, run)
        except (ApiError, LedgerUnavailable) as error:
            outcome.error = error
        return outcome

    # -- time ---------------------------------------------------------------------------------

    async def _server_now(self, user: User) -> datetime:
        """Ask /health until the server's time is known (three answers at most), for all at once."""
        async with self._agreeing:
            for _ in range(3):
                now = self._efax_now()
                if now is not None:
                    return now
                await self._ask_health(user)
        now = self._efax_now()
        if now is None:
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
        await self._ledger.pin_start(state.id, start, configured)
        state.pinned_start, state.configured_start = start, configured
        return start

    # -- newest slice and gaps ----------------------------------------------------------------

    async def _newest(self, state: UserState, start: datetime, run: _Run) -> None:
        piece = newest_slice(state.coverage, start, run.now, self._newest_rules(state))
        if piece is None:
            return
        try:
            await self._list_halving(state, piece, run)
        except _NOT_THIS_USERS_FAULT:
            raise
        except ApiError:
            state.newest_failures += 1
            raise

    def _newest_rules(self, state: UserState) -> WindowRules:
        """The newest slice is halved, down to an hour, each time that it failed twice."""
        return _halved(_rules(state), state.newest_failures // 2)

    async def _list_halving(self, state: UserState, whole: Slice, run: _Run) -> bool:
        """List `whole`; what the server will not list in one piece is listed in halves, newest first.

        False when this poll's time ended before it was through; what was not listed stays a gap.
        """
        pieces = [whole]
        while pieces:
            piece = pieces.pop()
            if piece is not whole and self._is_over(run):
                return False
            refusal: ApiError | None = None
            try:
                read = await self._read(state, piece, run)
                reason = read.halve
            except (WindowRefused, DeadlinePassed) as error:
                refusal, reason = error, str(error)
            if reason is None:
                continue
            halves = piece.halves()
            is_newest = piece.kind is SliceKind.NEWEST and piece.interval.end == run.now
            if halves is None and is_newest:
                raise _newest_unlisted(refusal, reason)
            if halves is None or await self._is_refused_throughout(state, piece, refusal, run):
                await self._leave_gap(state, piece, reason, run)
            else:
                newer, older = halves
                pieces += [older, newer]
        return True

    async def _is_refused_throughout(
        self, state: UserState, piece: Slice, refusal: ApiError | None, run: _Run
    ) -> bool:
        """Whether the first and the last hour of a refused slice are refused as well.

        Then it is not too long but too old, and halving it would only repeat that, some sixty times
        a day of it and again at every attempt.
        """
        if not isinstance(refusal, WindowRefused) or piece.interval.end == run.now:
            return False
        start, end = piece.interval.start, piece.interval.end
        for hour in (Interval(end - HOUR, end), Interval(start, start + HOUR)):
            try:
                await self._read(state, Slice(piece.kind, hour), run)
            except WindowRefused:
                continue
            return False
        return True

    async def _read(self, state: UserState, piece: Slice, run: _Run) -> Read:
        try:
            read = await self._reader.read(state, piece, run.now)
        except UserRefused as error:
            if not _is_of_the_window(state, piece, run):
                raise
            raise WindowRefused(str(error)) from error
        if read.halve is None:
            run.listed = run.listed.add(piece.interval)
        self._count(read, piece, run)
        return read

    @staticmethod
    def _count(read: Read, piece: Slice, run: _Run) -> None:
        run.outcome.discovered += read.discovered
        if piece.kind is not SliceKind.NEWEST:
            return
        for fax in read.discovered:
            if fax.received_at is not None and run.covered_before.covers(fax.received_at):
                run.outcome.late_s.append((run.now - fax.received_at).total_seconds())

    async def _gaps(self, state: UserState, start: datetime, run: _Run) -> None:
        rules = _rules(state)
        while pieces := gap_slices(state.coverage, start, run.now, rules, state.failed_slices):
            for piece in pieces:
                if self._is_over(run):
                    return
                await self._gap(state, piece, run)

    async def _gap(self, state: UserState, piece: Slice, run: _Run) -> None:
        try:
            await self._list_halving(state, piece, run)
        except _NOT_THIS_USERS_FAULT:
            raise
        except ApiError as error:
            run.outcome.trouble.append(error)
            await self._gap_failed(state, piece, str(error), run)

    async def _gap_failed(self, state: UserState, piece: Slice, reason: str, run: _Run) -> None:
        """A slice that fails twice while the account is well is halved."""
        failures = _failures(state, piece.interval)
        halves = piece.halves()
        if failures + 1 >= 2 and halves is not None:
            newer, older = halves
            await self._ledger.slice_split(
                state.id, piece.interval, (older.interval, newer.interval)
            )
            state.failed_slices = await self._ledger.failed_slices(state.id)
        else:
            await self._leave_gap(state, piece, reason, run)

    async def _leave_gap(self, state: UserState, piece: Slice, reason: str, run: _Run) -> None:
        if piece.kind is SliceKind.BACKFILL:
            run.not_listed.append((piece.interval, reason))
        if piece.kind in (SliceKind.SWEEP, SliceKind.DEEP_SWEEP, SliceKind.BACKFILL):
            return  # listed before, or a gap of its own
        failures = _failures(state, piece.interval) + 1
        pause = retry.growing(failures, first=_GAP_FIRST, cap=_GAP_CAP, u=self._random())
        held = next((f for f in state.failed_slices if f.interval == piece.interval), None)
        failed = FailedSlice(piece.interval, failures, run.now + pause, reason)
        if held is not None:  # it may have been dismissed while it was asked for
            failed = replace(failed, dismissed=held.dismissed, dismiss_reason=held.dismiss_reason)
        await self._ledger.slice_failed(
            state.id, failed.interval, next_attempt_at=failed.next_attempt_at, reason=reason
        )
        state.failed_slices = [
            *(one for one in state.failed_slices if one.interval != failed.interval),
            failed,
        ]

    # -- the two nets -------------------------------------------------------------------------

    async def _sweeps(self, state: UserState, start: datetime, run: _Run) -> None:
        """List again what a window may have missed, as far as this poll's time reaches."""
        if self._clock.monotonic() < state.sweep_not_before:
            return
        for kind in (SliceKind.SWEEP, SliceKind.DEEP_SWEEP):
            if kind not in state.sweeps and self._sweep_is_due(state, kind, run.now):
                state.sweeps[kind] = SweepUnderWay(run.now)
        state.sweep_now = False
        for kind, sweep in list(state.sweeps.items()):
            try:
                await self._sweep(state, start, run, kind, sweep)
            except ApiError as error:
                if not _is_of_the_slice(error, run):
                    raise
                run.outcome.trouble.append(error)
                state.sweep_not_before = self._clock.monotonic() + _SWEEP_AGAIN_S
                self._report_sweep_failed(state, kind, error)

    @staticmethod
    def _sweep_is_due(state: UserState, kind: SliceKind, now: datetime) -> bool:
        last_end = state.sweep_ends[kind]
        return (
            state.sweep_now or last_end is None or now >= last_end + _sweep_rule(state, kind).every
        )

    async def _sweep(
        self, state: UserState, start: datetime, run: _Run, kind: SliceKind, sweep: SweepUnderWay
    ) -> None:
        """Go on with a sweep; once completed, its end says where the next one begins."""
        last_end, back = state.sweep_ends[kind], _sweep_rule(state, kind).back
        before = len(run.outcome.discovered)
        try:
            for piece in sweep_slices(kind, last_end, back, start, sweep.end, _rules(state)):
                # A gap that could not be listed has a time of its own when it is tried again.
                refused = tuple(failed.interval for failed in state.failed_slices)
                done = Coverage(run.listed.intervals + sweep.listed.intervals + refused)
                if not done.gaps(piece.interval.start, piece.interval.end):
                    continue
                if self._is_over(run):
                    return
                if not await self._list_halving(state, piece, run):
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
        await self._ledger.sweep_done(state.id, kind, sweep.end, sweep.missed)
        state.sweep_ends[kind] = sweep.end
        state.sweeps.pop(kind, None)
        if failures := state.sweep_alarms[kind].recovered():
            log.event(
                "sweep-recovered",
                "The sweep is complete again.",
                account=state.user.account,
                user=state.user.name,
                sweep=kind,
                failures=failures,
            )

    def _is_over(self, run: _Run) -> bool:
        return run.until is not None and self._clock.monotonic() >= run.until

    # -- old windows that operators ask for ----------------------------------------------------

    async def _backfills(self, state: UserState, run: _Run) -> None:
        """Go on with what was asked for, as far as this poll's time reaches."""
        if not state.backfill or self._clock.monotonic() < state.backfill_not_before:
            return
        state.backfill = False  # one that is asked for from here on sets it again
        through = False
        try:
            through = await self._all_backfilled(state, run)
        finally:
            state.backfill = state.backfill or not through

    async def _all_backfilled(self, state: UserState, run: _Run) -> bool:
        for asked in await self._ledger.backfills(state.id):
            now = asked
            while (rest := now.rest) is not None and now.done_at is None:
                left = None  # of what lies in the future
                if planned := backfill_slice(rest, run.now, self._backfill_rules(state)):
                    piece, left = planned
                    if self._is_over(run) or not await self._backfilled(state, asked, piece, run):
                        return False
                now = await self._ledger.backfill_listed(
                    asked.id, left, run.not_listed, self._clock.now()
                )
                run.not_listed = []
            if not now.withdrawn:
                self._report_backfilled(state, now)
        return True

    async def _backfilled(self, state: UserState, asked: Backfill, piece: Slice, run: _Run) -> bool:
        """List one slice; what cannot be listed of it is noted. False: it is to be asked for again."""
        try:
            through = await self._list_halving(state, piece, run)
        except ApiError as error:
            if not _is_of_the_slice(error, run):
                await self._ledger.backfill_failed(asked.id, str(error))
                raise
            if state.backfill_failures == 0 or piece.halves() is not None:
                await self._backfill_failed(state, asked, error, run)
                return False
            run.not_listed = [(piece.interval, str(error))]
            through = True
        # What took too long for one poll is asked for in shorter slices from here on.
        state.backfill_failures = max(0, state.backfill_failures + (-1 if through else 1))
        run.not_listed = run.not_listed if through else []
        return through

    async def _backfill_failed(
        self, state: UserState, asked: Backfill, error: ApiError, run: _Run
    ) -> None:
        state.backfill_failures += 1
        pause = retry.growing(
            state.backfill_failures, first=_BACKFILL_FIRST, cap=BACKFILL_CAP, u=self._random()
        )
        state.backfill_not_before = self._clock.monotonic() + pause.total_seconds()
        run.outcome.trouble.append(error)
        run.not_listed = []
        await self._ledger.backfill_failed(asked.id, str(error))

    @staticmethod
    def _backfill_rules(state: UserState) -> WindowRules:
        """The slices of a backfill are halved, down to an hour, each time that one failed."""
        return _halved(_rules(state), state.backfill_failures)

    @staticmethod
    def _report_backfilled(state: UserState, done: Backfill) -> None:
        log.event(
            "backfill-completed",
            "An old window that was asked for is listed, but for parts that eFax did not list."
            if done.not_listed
            else "An old window that was asked for is listed.",
            level="warning" if done.not_listed else "info",
            account=state.user.account,
            user=state.user.name,
            window_from=done.window.start,
            window_to=done.window.end,
            not_listed=len(done.not_listed),
        )

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

    # -- what the poll leaves behind ----------------------------------------------------------

    async def _record_outcome(self, state: UserState, outcome: PollOutcome) -> None:
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
        try:
            await self._ledger.poll_done(
                state.id,
                now,
                error=str(error) if error is not None else None,
                refused_until=state.refused_until,
            )
        except LedgerUnavailable as unavailable:
            outcome.error = outcome.error or unavailable

    def _refuse(self, state: UserState, error: UserRefused, now: datetime) -> None:
        state.refusals += 1
        state.refused_until = now + retry.growing(
            state.refusals, first=_REFUSAL_FIRST, cap=_REFUSAL_CAP, u=self._random()
        )
        if state.refusals == 1:
            log.event(
                "user-refused",
                "eFax refuses this user; check its user_id and that it belongs to this App ID. "
                "It is asked again at growing intervals up to an hour.",
                account=state.user.account,
                user=state.user.name,
                error=error,
            )

    def _accept(self, state: UserState) -> None:
        if state.refusals:
            log.event(
                "user-accepted",
                "eFax accepts this user again.",
                account=state.user.account,
                user=state.user.name,
                refusals=state.refusals,
            )
        state.refusals, state.refused_until = 0, None

    @staticmethod
    def _report_sweep_failed(state: UserState, kind: SliceKind, error: ApiError) -> None:
        if state.sweep_alarms[kind].failed():
            log.event(
                "sweep-failed",
                "A sweep, which finds what the polls may have missed, could not be completed; it is "
                "tried again every five minutes.",
                account=state.user.account,
                user=state.user.name,
                sweep=kind,
                error=error,
            )

    def _report_late(self, state: UserState, outcome: PollOutcome) -> None:
        late = [s for s in outcome.late_s if is_late(timedelta(seconds=s), state.user.poll.overlap)]
        now = self._clock.monotonic()
        if late and now >= state.late_again_at:
            state.late_again_at = now + _LATE_AGAIN_S
            log.event(
                "late-arrivals",
                "Faxes became visible later than half the overlap allows for; raise poll.overlap.",
                account=state.user.account,
                user=state.user.name,
                count=len(late),
                latest_s=round(max(late)),
            )


def _rules(state: UserState) -> WindowRules:
    return WindowRules.configured(state.user.poll.overlap, state.user.poll.max_window)


def _halved(rules: WindowRules, times: int) -> WindowRules:
    longest = max(rules.max_window / 2 ** min(times, 16), min(HOUR, rules.max_window))
    return WindowRules(overlap=rules.overlap, max_window=longest)


def _sweep_rule(state: UserState, kind: SliceKind) -> Sweep:
    poll = state.user.poll
    return poll.deep_sweep if kind is SliceKind.DEEP_SWEEP else poll.sweep


def _is_of_the_window(state: UserState, piece: Slice, run: _Run) -> bool:
    """Whether a 403 or 404 is meant for the window: the user had a slice listed in this poll.

    A sweep must not pass over it as listed before, and a backfill not at the first time: the user
    may be refused since.
    """
    if piece.kind is SliceKind.BACKFILL and not state.backfill_failures:
        return False
    is_sweep = piece.kind in (SliceKind.SWEEP, SliceKind.DEEP_SWEEP)
    return bool(run.listed.intervals) and not is_sweep


def _is_of_the_slice(error: ApiError, run: _Run) -> bool:
    """Whether a slice is to be tried again later by itself, and not its user or account."""
    if isinstance(error, UserRefused):
        return bool(run.listed.intervals)
    return not isinstance(error, _NOT_THIS_USERS_FAULT)


def _failures(state: UserState, interval: Interval) -> int:
    return next((f.failures for f in state.failed_slices if f.interval == interval), 0)


def _newest_unlisted(refusal: ApiError | None, reason: str) -> ApiError:
    if isinstance(refusal, WindowRefused):
        return UserRefused(f"every window is refused, down to an hour: {reason}")
    return refusal or BadAnswer(f"the newest hour could not be listed: {reason}")
