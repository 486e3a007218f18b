"""How fast each account's faxes arrive, and how much work is left, from the ledger."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection

from poller import plan
from poller.backlog import (
    RECENT,
    CatchUp,
    Left,
    Throughput,
    lists_left,
    per_hour,
    still_sweeps,
)
from poller.config.model import Account, User
from poller.ledger import Ledger, StreamRow, Untried, jobs, streams
from poller.progress import Progress
from poller.stream import Direction

_HOUR: Final = timedelta(hours=1)
_UNKNOWN: Final = {
    "stored_per_hour": None,
    "discovered_per_hour": None,
    "pending_s": None,
    "catching_up": None,
}
_Count = Callable[[Connection, datetime], dict[int, int]]


@dataclass(frozen=True)
class Beginnings:
    """The service's notes of accounts that started to catch up, by name, and the configured `accounts`."""

    begun: Mapping[str, CatchUp] = field(default_factory=dict)
    accounts: Sequence[Account] = ()

    def users(self) -> dict[tuple[str, str], User]:
        """Return the users of accounts that catch up."""
        return {
            (user.app_id, user.user_id): user
            for account in self.accounts
            if account.name in self.begun
            for user in account.users
        }

    def planned_per_s(self, account: str, now: datetime) -> float:
        """Return how many lists per second an account's schedule takes."""
        for one in self.accounts:
            if one.name == account:
                polls = [user.poll for user in one.users]
                return plan.demand(polls, one.limits.requests_per_second, now).planned
        return 0.0


def received(rows: Sequence[StreamRow]) -> list[StreamRow]:
    """Return the streams of received faxes of configured users."""
    return [row for row in rows if row.direction is Direction.RECEIVED and not row.removed]


def lists_by_stream(
    beginnings: Beginnings, rows: Sequence[StreamRow], held: Mapping[int, Progress], now: datetime
) -> dict[int, int]:
    """Return the number of lists left, by stream, for accounts that catch up; omit zeros."""
    users = beginnings.users()
    left = {
        row.id: lists_left(held[row.id], user.poll, beginnings.begun[user.account].started, now)
        for row in received(rows)
        if (user := users.get((row.app_id, row.user_id))) is not None
    }
    return {stream: lists for stream, lists in left.items() if lists}


@dataclass(frozen=True)
class Speeds:
    """Works out the figures of one status: `lists` are those of `lists_by_stream`."""

    ledger: Ledger
    now: datetime
    beginnings: Beginnings
    rows: Sequence[StreamRow]
    held: Mapping[int, Progress]
    lists: Mapping[int, int]
    _counts: dict[tuple[_Count, datetime], Mapping[int, int]] = field(default_factory=dict)

    async def read(
        self, allowed_per_s: Mapping[str, float | None], *, running: bool
    ) -> dict[str, dict[str, Any]]:
        """Return the figures of these accounts, by name; None as the rate: no requests are allowed now.

        If no service runs, the duration is unknown.
        """
        mine: dict[str, dict[int, StreamRow]] = {name: {} for name in allowed_per_s}
        for row in received(self.rows):
            mine.setdefault(row.account, {})[row.id] = row
        untried = await self.ledger.read(jobs.untried) if running else {}
        shown = {}
        for name, some in mine.items():
            known = (
                await self._account(name, some, untried, allowed_per_s.get(name))
                if running
                else _UNKNOWN
            )
            shown[name] = {"pending": sum(row.pending for row in some.values()), **known}
        return shown

    async def _account(
        self,
        name: str,
        mine: Mapping[int, StreamRow],
        untried: Mapping[int, Untried],
        allowed_per_s: float | None,
    ) -> dict[str, Any]:
        waiting = [untried[stream] for stream in mine if stream in untried]
        left = Left(
            sum(self.lists.get(stream, 0) for stream in mine), sum(one.count for one in waiting)
        )
        begun = self.beginnings.begun.get(name)
        over = min(_HOUR, self.now - begun.since) if begun else _HOUR
        if begun and self._stands_still(mine, begun):  # a service that hangs cannot report it
            allowed_per_s = None
        throughput = await self._throughput(name, mine, waiting, allowed_per_s)
        seconds = throughput.seconds_for(left)
        catching_up = None
        if begun is not None and left.requests:
            done = begun.done(left, sum(row.stored for row in mine.values()))
            catching_up = {"done": done, "left": left.requests, "seconds": seconds}
        return {
            "stored_per_hour": per_hour(await self._count(streams.stored_since, mine, over), over),
            # Many faxes at once, as in the first list, are not a pace.
            "discovered_per_hour": await self._count(streams.discovered_since, mine, _HOUR),
            "pending_s": seconds if left.faxes else 0.0,
            "catching_up": catching_up,
        }

    async def _throughput(
        self,
        name: str,
        mine: Mapping[int, StreamRow],
        waiting: Sequence[Untried],
        allowed_per_s: float | None,
    ) -> Throughput:
        begun = self.beginnings.begun.get(name)
        planned = self.beginnings.planned_per_s(name, self.now) if begun else 0.0
        if begun and self._lists_go_first(mine, begun):
            return Throughput(allowed_per_s, planned)
        oldest = min((one.oldest for one in waiting if one.oldest), default=self.now)
        over = min(RECENT, self.now - oldest)
        if over <= timedelta(0):
            return Throughput(allowed_per_s, planned)
        stored = await self._count(streams.stored_since, mine, over)
        return Throughput(allowed_per_s, planned, stored, over)

    def _stands_still(self, mine: Mapping[int, StreamRow], begun: CatchUp) -> bool:
        """Return whether nothing was listed or stored lately."""
        done = (
            at for row in mine.values() for at in (row.last_success_at, row.last_stored_at) if at
        )
        return self.now - max([begun.since, *done]) > RECENT

    def _lists_go_first(self, mine: Mapping[int, StreamRow], begun: CatchUp) -> bool:
        """Return whether the present pace says little: lists take most turns, sweeps only for a while."""
        if any(stream in self.lists for stream in mine):
            return True
        progress = (self.held[stream] for stream in mine)
        return self.now - begun.since < RECENT and any(
            still_sweeps(one, begun.started) for one in progress
        )

    async def _count(self, counted: _Count, mine: Mapping[int, StreamRow], over: timedelta) -> int:
        """Count in these streams; accounts with the same period share one query."""
        asked = counted, self.now - over
        if asked not in self._counts:
            self._counts[asked] = await self.ledger.read(counted, self.now - over)
        return sum(self._counts[asked].get(stream, 0) for stream in mine)
