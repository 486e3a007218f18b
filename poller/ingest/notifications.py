"""Read which notices eFax sent to the web-hook, and fetch faxes that no list shows."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from poller.clock import Clock
from poller.efax.notices import Notice, direction_of
from poller.efax.responses import listed_fax
from poller.errors import BadAnswer, Rejected
from poller.ingest.account import AccountRunner
from poller.ingest.stream_state import StreamState
from poller.ledger import Ledger, faxes
from poller.recognition import is_same_number
from poller.stream import Direction

_BACK = timedelta(days=1)
_OVERLAP = timedelta(minutes=10)
_WAIT = timedelta(days=1)
_MOST_ASKED_FOR = 100  # per answer


class NoticeReader:
    """Reads `GET /notifications` of one account, to find what polls and sweeps have missed.

    `is_of_all`: an answer contains notices of all users, so it is enough to ask for one of them.
    """

    def __init__(self, account: AccountRunner, ledger: Ledger, clock: Clock) -> None:
        self.is_of_all = False
        self._account = account
        self._ledger = ledger
        self._clock = clock
        self._read_at: dict[str, datetime] = {}  # by User ID; "" if an answer is about all users
        # User ID and fax id of faxes that are nowhere yet, and since when.
        self._waiting: dict[tuple[str, str], datetime] = {}

    async def read(self, state: StreamState, *, shortly: bool = False) -> int:
        """Ask on behalf of a user; return how many faxes only this has found.

        With `shortly`, ask for what is new since the last time. Otherwise ask for a day: eFax may
        send a notice long after it completed the fax, and may filter by that time. Raises the
        ApiError of a failed call, and LedgerUnavailable.
        """
        now = self._clock.now()
        since = now - _BACK
        if shortly:
            since = max(since, self._read_at.get(self._whose(state), since) - _OVERLAP)
        notices = await self._account.client.notifications(state.user, since)
        self.is_of_all = self.is_of_all or any(
            one.user_id not in (None, state.user.user_id) for one in notices
        )
        found = await self._record(state, notices)
        self._read_at[self._whose(state)] = now
        return found

    def _whose(self, state: StreamState) -> str:
        return "" if self.is_of_all else state.user.user_id

    async def _record(self, asked: StreamState, notices: Iterable[Notice]) -> int:
        states = {state.user.user_id: state for state in self._account.states.values()}
        waiting, self._waiting = self._waiting, {}
        noticed = defaultdict(list)
        for user_id, fax_id in waiting:
            noticed[user_id].append(fax_id)
        for one in notices:
            if one.direction is not Direction.SENT:
                noticed[one.user_id or asked.user.user_id].append(one.fax_id)
        found = asked_for = 0
        for user_id in noticed.keys() & states.keys():
            state = states[user_id]
            for fax_id in await self._ledger.read(faxes.unknown, state.id, noticed[user_id]):
                since = waiting.get((user_id, fax_id), self._clock.now())
                if not state.polled or asked_for >= _MOST_ASKED_FOR:  # let a poll list it first
                    self._waiting[user_id, fax_id] = since
                    continue
                asked_for += 1
                found += await self._is_there(state, fax_id, since)
        return found

    async def _is_there(self, state: StreamState, fax_id: str, since: datetime) -> bool:
        """Record a fax that no list has shown; ask for a day again if it is not there yet."""
        try:
            fields = await self._account.client.metadata(state.user, fax_id)
        except (Rejected, BadAnswer):
            if self._clock.now() - since < _WAIT:
                self._waiting[state.user.user_id, fax_id] = since
            return False
        fax = listed_fax({"fax_id": fax_id} | fields)
        if fax is None or not _is_received(fields, state.user.number):
            return False
        return await self._account.reader.record_noticed(state, fax)


def _is_received(fields: Mapping[str, Any], number: str | None) -> bool:
    """Tell whether a fax of unknown direction came to the user's number, if that is known."""
    direction = direction_of(fields)
    if direction is not None:
        return direction is Direction.RECEIVED
    to = fields.get("destination_fax_number")
    return number is None or not isinstance(to, str) or is_same_number(to, number)
