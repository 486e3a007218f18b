"""The events that a poll emits when it has ended."""

from collections.abc import Iterator

from poller import events
from poller.errors import PollerError
from poller.events import Event
from poller.ingest.stream_state import StreamState


def failed(state: StreamState, error: PollerError, *, is_suspended: bool) -> Iterator[Event]:
    """Report the first failure in a row; refusals of an account or a user have their own events."""
    state.failures_in_a_row += 1
    is_news = not (state.poll_alarm or is_suspended or state.is_refused)
    state.poll_alarm = state.poll_alarm or is_news
    yield events.PollFailed(*state.user.names, error, is_news)


def succeeded(state: StreamState, discovered: int) -> Iterator[Event]:
    names = state.user.names
    if state.poll_alarm:
        yield events.PollRecovered(*names, state.failures_in_a_row)
    state.poll_alarm = state.bug_alarm = False
    state.failures_in_a_row = 0
    yield events.PollCompleted(*names, discovered, state.progress.watermark)
    gaps = state.progress.failed_gaps
    if gaps and not state.gap_alarm:
        yield events.GapOpened(*names, len(gaps), gaps[0].start, gaps[-1].end)
    elif state.gap_alarm and not gaps:
        yield events.GapClosed(*names)
    state.gap_alarm = bool(gaps)
