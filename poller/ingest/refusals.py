"""Users whom eFax refuses: when to ask again, and when to report it."""

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta

from poller import events, retry
from poller.client import Client
from poller.errors import UserRefused
from poller.events import Emit
from poller.ingest.stream_state import StreamState

_FIRST, _CAP = timedelta(minutes=1), timedelta(hours=1)


class Refusals:
    """The refusals of one account's streams. `random` returns values in [0, 1)."""

    def __init__(self, client: Client, random: Callable[[], float], emit: Emit) -> None:
        self._client = client
        self._random = random
        self._emit = emit
        self._not_said: dict[int, StreamState] = {}  # the account may be the cause

    def refused(self, state: StreamState, error: UserRefused, now: datetime) -> datetime:
        """Note that eFax refused a user; return until when."""
        refusals = state.progress.refusals + 1
        state.refusal = error
        self._not_said[state.id] = state
        # One failure says nothing about the other users: ask them to find out who is the cause.
        if self._client.suspension.until is None and (refusals > 1 or self._is_only_user):
            self._say([self._not_said.pop(state.id)])
        return now + retry.growing(refusals, first=_FIRST, cap=_CAP, u=self._random())

    def accepted(self, state: StreamState) -> None:
        """Note, before it is recorded, that eFax did not refuse a user."""
        if state.refusal_said:
            self._emit(events.RefusalEnded(*state.user.names, state.progress.refusals))
        state.refusal, state.refusal_said = None, False
        if self._not_said:  # the account is well, so those users are the cause
            not_said, self._not_said = self._not_said, {}
            self._say(not_said.values())

    @property
    def _is_only_user(self) -> bool:
        return self._client.suspension.user_count < 2

    def _say(self, states: Iterable[StreamState]) -> None:
        for state in states:
            if state.refusal_said or state.refusal is None:
                continue
            state.refusal_said = True
            before = ", whom it accepted before" if state.progress.last_success_at else ""
            also = ", and whether a proxy drops or changes headers" if self._is_only_user else ""
            self._emit(events.RefusalBegan(*state.user.names, state.refusal, before, also))
