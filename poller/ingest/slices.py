"""List slices for one poll, in halves if necessary; what cannot be listed stays a gap."""

from collections.abc import Callable
from datetime import timedelta
from functools import lru_cache

from poller import retry
from poller.clock import Clock
from poller.errors import (
    OF_THE_ACCOUNT,
    ApiError,
    BadAnswer,
    DeadlinePassed,
    UserRefused,
    WindowRefused,
)
from poller.ingest.poll_run import PollRun
from poller.ingest.reading import ListReader, Read
from poller.ingest.stream_state import StreamState
from poller.progress import SliceFailed
from poller.window import Interval, Slice, SliceKind, WindowRules

HOUR = timedelta(hours=1)
_GAP_FIRST, _GAP_CAP = timedelta(minutes=1), timedelta(hours=6)
NOT_THIS_USERS_FAULT = (*OF_THE_ACCOUNT, UserRefused)


class SliceLister:
    """Lists slices of one account's users. `random` returns values in [0, 1)."""

    def __init__(self, reader: ListReader, *, clock: Clock, random: Callable[[], float]) -> None:
        self._reader = reader
        self._clock = clock
        self._random = random
        self._future_is_refused = False

    async def list_halving(self, state: StreamState, whole: Slice, run: PollRun) -> bool:
        """List `whole`; what the server refuses to list in one piece is listed in halves, newest first.

        Returns False if this poll's time ended first; what was not listed stays a gap.
        """
        pieces = [whole]
        while pieces:
            piece = pieces.pop()
            if piece is not whole and run.is_over(self._clock.monotonic()):
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
                await self.leave_gap(state, piece, reason, run)
            else:
                newer, older = halves
                pieces += [older, newer]
        return True

    async def _is_refused_throughout(
        self, state: StreamState, piece: Slice, refusal: ApiError | None, run: PollRun
    ) -> bool:
        """Whether the first and the last hour of a refused slice are refused as well.

        Then the slice is not too long but too old. Halving it would repeat the refusal some sixty
        times per day of the slice, and again at every attempt.
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

    async def _read(self, state: StreamState, piece: Slice, run: PollRun) -> Read:
        try:
            read = await self._read_ahead(state, piece, run)
        except UserRefused as error:
            if not _is_of_the_window(state, piece, run):
                raise
            raise WindowRefused(str(error)) from error
        if read.halve is None:
            run.listed = run.listed.add(piece.interval)
        self._count(read, piece, run)
        return read

    async def _read_ahead(self, state: StreamState, piece: Slice, run: PollRun) -> Read:
        """Ask for a little beyond now, or only up to now if the server refuses that.

        Try this once per poll: if that was not the reason, it is not the reason for shorter slices
        either.
        """
        up_to_now = piece.bounds(run.now, ahead=timedelta(0))
        bounds = piece.bounds(run.now)
        if self._future_is_refused or run.asked_up_to_now or bounds == up_to_now:
            return await self._reader.read(state, piece, up_to_now)
        try:
            return await self._reader.read(state, piece, bounds)
        except WindowRefused:
            run.asked_up_to_now = True
        read = await self._reader.read(state, piece, up_to_now)
        self._future_is_refused = True
        return read

    @staticmethod
    def _count(read: Read, piece: Slice, run: PollRun) -> None:
        run.outcome.discovered += read.discovered
        if piece.kind is not SliceKind.NEWEST:
            return
        for fax in read.discovered:
            if fax.received_at is not None and run.covered_before.covers(fax.received_at):
                run.outcome.late_s.append((run.now - fax.received_at).total_seconds())

    async def leave_gap(self, state: StreamState, piece: Slice, reason: str, run: PollRun) -> None:
        """Note that a slice could not be listed, and when to try it again."""
        if piece.kind is SliceKind.BACKFILL:
            run.not_listed.append((piece.interval, reason))
        if piece.kind in (SliceKind.SWEEP, SliceKind.DEEP_SWEEP, SliceKind.BACKFILL):
            return  # it was listed before, or is another gap
        count = state.progress.failures(piece.interval) + 1
        pause = retry.growing(count, first=_GAP_FIRST, cap=_GAP_CAP, u=self._random())
        await state.record(SliceFailed(piece.interval, run.now + pause, reason))


def rules(state: StreamState) -> WindowRules:
    """Return how to cut a stream's windows."""
    return _configured(state.user.poll.overlap, state.user.poll.max_window)


_configured = lru_cache(WindowRules.configured)  # few rules are configured, each for many users


def halved(whole: WindowRules, times: int) -> WindowRules:
    """Halve the longest window this many times, but not below an hour."""
    if not times:
        return whole
    longest = max(whole.max_window / 2 ** min(times, 16), min(HOUR, whole.max_window))
    return WindowRules(overlap=whole.overlap, max_window=longest)


def _is_of_the_window(state: StreamState, piece: Slice, run: PollRun) -> bool:
    """Whether a 403 or 404 is about the window: the user had a slice listed in this poll.

    A sweep must not count it as already listed, and a backfill must not give up the first time: the
    user may have been refused since.
    """
    if piece.kind is SliceKind.BACKFILL and not state.backfill_failures:
        return False
    is_sweep = piece.kind in (SliceKind.SWEEP, SliceKind.DEEP_SWEEP)
    return bool(run.listed.intervals) and not is_sweep


def is_of_the_slice(error: ApiError, run: PollRun) -> bool:
    """Whether to try the slice again later, rather than its user or account."""
    if isinstance(error, UserRefused):
        return bool(run.listed.intervals)
    return not isinstance(error, NOT_THIS_USERS_FAULT)


def _newest_unlisted(refusal: ApiError | None, reason: str) -> ApiError:
    if isinstance(refusal, WindowRefused):
        return UserRefused(f"eFax refuses every window, down to an hour: {reason}")
    return refusal or BadAnswer(f"poller could not list the newest hour: {reason}")
