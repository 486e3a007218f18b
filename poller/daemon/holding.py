"""Share the accounts among nodes: take free ones, keep them, give them back, drop what was lost.

Every node decides for itself, from the same rows of the ledger; there is no leader.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from contextlib import suppress
from typing import Any

from sqlalchemy import Connection

from poller import events
from poller.config.model import Account
from poller.errors import CannotStart, ConfigError, LedgerUnavailable, NoThread
from poller.ingest.account import AccountRunner
from poller.ingest.hang_timeout import cut_off_if_hung
from poller.ingest.lease_keeper import LeaseKeeper, Renewal
from poller.ingest.runtime import Runtime
from poller.ledger import leases, nodes, streams
from poller.ledger.leases import LeaseRow
from poller.ledger.nodes import NodeRow
from poller.stream import Direction

_LOOK_S = 2.0
_RANK_S = 1.0  # how long each further node leaves a free account to those before it
_BALANCE_S = 60.0
_REMOVED_AFTER_S = 60.0
_UNUSABLE_S = (
    30.0  # how long a node that cannot store faxes keeps an account that another node could take
)
_NOT_RENEWED = "the ledger does not answer: it has not renewed the leases of this node"
_NOT_AGAIN_S = 30.0  # after an account was given back, or could not be started here


class Holding:
    """Decides which accounts this node works on; `start` and `close` begin and end an account's work."""

    def __init__(
        self,
        runtime: Runtime,
        keeper: LeaseKeeper,
        *,
        start: Callable[[AccountRunner], None],
        close: Callable[[AccountRunner], Awaitable[None]],
    ) -> None:
        self._runtime = runtime
        self._keeper = keeper
        self._start = start
        self._close = close
        self._ledger = runtime.services.ledger
        self._clock = runtime.services.clock
        self._emit = runtime.services.emit
        self._free_since: dict[str, float] = {}
        self._not_before: dict[str, float] = {}
        self._balanced_at = self._clock.monotonic()
        self._fenced: dict[str, int] = {}
        self._told_differs: set[str] = set()
        self._wait_until = -math.inf
        self._is_unsaid = False
        self._unconfigured: dict[str, float] = {}
        self._useless_since = self._clock.monotonic()
        self._stopping = False

    def loops(self) -> dict[str, Coroutine[Any, Any, None]]:
        """Return the background work by name; each runs until it is cancelled."""
        return {"leases": self.renew_in_time(), "accounts": self.watch()}

    async def stop(self) -> None:
        """Give each account back as soon as its work has ended."""
        self._stopping = True
        async with self._runtime.changing:
            held = list(self._keeper.held)
        self._keeper.leave()
        await self._keeper.renew()
        with suppress(LedgerUnavailable):  # then the leases end by themselves
            await asyncio.gather(*(self.give_back(app_id) for app_id in held))

    async def renew_in_time(self) -> None:
        """Renew the leases until cancelled; what follows from it must not delay the next renewal."""
        async with asyncio.TaskGroup() as following:
            while True:
                renewal, works = await self._renew()
                for work in works:
                    following.create_task(work, name="after a renewal")
                await self._clock.sleep(renewal.pause_s)

    async def watch(self) -> None:
        """Take, hand over and give back accounts until cancelled."""
        while True:
            async with cut_off_if_hung("accounts"):
                with suppress(LedgerUnavailable):  # the gate reports it
                    await self.look()
            await self._clock.sleep(_LOOK_S)

    async def renew(self) -> None:
        """Renew the leases once, and drop the accounts that are lost."""
        _, works = await self._renew()
        await asyncio.gather(*works)

    async def _renew(self) -> tuple[Renewal, list[Coroutine[Any, Any, None]]]:
        """Renew the leases once; return what that found out, and the work that follows."""
        self._say_fenced()
        users = sum(len(one.account.users) for one in self._runtime.accounts.values())
        renewal = await self._keeper.renew(users, stores=self._runtime.services.gate.usable)
        if self._keeper.is_in_doubt:
            self._runtime.services.gate.blame(LedgerUnavailable(_NOT_RENEWED))
        for at_work in self._runtime.accounts.values():
            if not at_work.services.may_ask():
                at_work.client.cut_off()
        works = [self._drop(lease.app_id) for lease in renewal.lost]
        return renewal, [*works, self._start_over()] if renewal.is_rolled_back else works

    async def look(self) -> None:
        """Look once at who holds what, and do what follows; raises LedgerUnavailable."""
        held, known = await self._ledger.read(_rows)
        if missing := {one.app_id for one in self._runtime.config.accounts} - held.keys():
            await self._ledger.aside(leases.add, missing)
        self._runtime.services.storage.runs.ended = {
            row.report.run for row in known if not row.is_live
        }
        self._say_differences(known)
        await self._say_again()
        if self._clock.monotonic() < self._wait_until:
            return
        await self._remove_unconfigured(held, known)
        configured = {one.app_id for one in self._runtime.config.accounts}
        for app_id in self._keeper.held.keys() - (configured & self._runtime.accounts.keys()):
            await self.give_back(app_id)
        if self._stopping:
            return
        live = [row for row in known if row.is_live and not row.draining]
        elsewhere = (
            set(self._keeper.held) if self._keeper.draining else self._stored_elsewhere(live)
        )
        for app_id in sorted(elsewhere)[:1]:  # one by one
            await self.give_back(app_id)
        if elsewhere or self._keeper.draining:
            return
        for account in self._mine_to_take(held, live):
            await self._take(account)
        await self._balance(held, live)

    # -- taking ------------------------------------------------------------------------------------

    def _mine_to_take(
        self, held: Mapping[str, LeaseRow], live: Collection[NodeRow]
    ) -> list[Account]:
        """Return the free accounts that it is this node's turn to take."""
        now, mine = self._clock.monotonic(), []
        loads = _loads(self._runtime.config.accounts, held, live)
        for account in self._runtime.config.accounts:
            app_id = account.app_id
            row = held.get(app_id)
            if app_id in self._keeper.held or (row is not None and row.is_live):
                self._free_since.pop(app_id, None)
                continue
            able = _able(app_id, live)
            able.sort(key=lambda run: (loads[run], run))
            since = self._free_since.setdefault(app_id, now)
            rank = able.index(self._keeper.run) if self._keeper.run in able else math.inf
            if able:  # all nodes count alike
                loads[able[0]] += len(account.users)
            if now - since >= rank * _RANK_S and now >= self._not_before.get(app_id, now):
                mine.append(account)
        return mine

    async def _take(self, account: Account) -> None:
        async with self._runtime.changing:
            if self._stopping or account.app_id in self._runtime.accounts:
                return  # a lost account is dropped first
            taken = await self._keeper.take(account.app_id)
            if taken is None:
                return
            self._free_since.pop(account.app_id, None)
            try:
                at_work = await self._runtime.take_account(account, taken)
            except BaseException as error:
                self._not_before[account.app_id] = self._clock.monotonic() + _NOT_AGAIN_S
                with suppress(LedgerUnavailable):
                    await self._keeper.release(account.app_id)
                if not isinstance(error, CannotStart | ConfigError | LedgerUnavailable | NoThread):
                    raise
                self._emit(events.AccountNotTaken(account.name, error))
                return
            self._emit(
                events.LeaseTaken(account.name, taken.lease.term, is_takeover=taken.was_working)
            )
            self._start(at_work)

    async def _remove_unconfigured(
        self, held: Mapping[str, LeaseRow], known: Collection[NodeRow]
    ) -> None:
        """Mark users as removed if no live node has had their account for a minute."""
        if self._keeper.is_in_doubt:  # the other nodes may not be able to report either
            self._unconfigured.clear()
            return
        now = self._clock.monotonic()
        configured = {one for row in known if row.is_live for one in row.report.accounts}
        configured |= {one.app_id for one in self._runtime.config.accounts}
        for app_id in configured & self._unconfigured.keys():
            del self._unconfigured[app_id]
        for app_id in held.keys() - configured:
            since = self._unconfigured.setdefault(app_id, now)
            if now - since < _REMOVED_AFTER_S or (taken := await self._keeper.take(app_id)) is None:
                continue
            ledger = self._ledger.under(taken.lease)
            for direction in Direction:
                await ledger.write(streams.sync, [], self._clock.now(), direction, of=app_id)
            await self._keeper.release(app_id)
            self._unconfigured[app_id] = math.inf  # done

    # -- losing and giving back ----------------------------------------------------------------------

    async def _drop(self, app_id: str) -> None:
        """Forget an account that another node may have: write nothing, undo nothing."""
        async with self._runtime.changing:
            at_work = self._runtime.accounts.pop(app_id, None)
        if at_work is not None:
            self._emit(events.LeaseWasLost(at_work.account.name))
            await self._close(at_work)

    async def give_back(self, app_id: str) -> None:
        """End the work on an account, as a stop does, and let another node take it."""
        async with self._runtime.changing:
            at_work = self._runtime.accounts.pop(app_id, None)
        if at_work is not None:
            await self._close(at_work)
            self._emit(events.LeaseReleased(at_work.account.name))
            # Leave it to another node; take it again if none does.
            self._not_before[app_id] = self._clock.monotonic() + _NOT_AGAIN_S
        await self._keeper.release(app_id)

    def _stored_elsewhere(self, live: Collection[NodeRow]) -> set[str]:
        """Return the accounts whose faxes another node could store, and this one not for a while."""
        others = [row for row in live if row.report.stores and row.report.run != self._keeper.run]
        found = {one for row in others for one in row.report.accounts} & self._keeper.held.keys()
        now = self._clock.monotonic()
        if self._runtime.services.gate.usable or not found:
            self._useless_since = now
        return found if now - self._useless_since >= _UNUSABLE_S else set()

    async def _balance(self, held: Mapping[str, LeaseRow], live: Collection[NodeRow]) -> None:
        """Hand the smallest account to a node with fewer users, once a minute, while all is well."""
        now = self._clock.monotonic()
        mine = list(self._runtime.accounts.values())
        if now - self._balanced_at < _BALANCE_S or len(mine) < 2:
            return
        loads = _loads(self._runtime.config.accounts, held, live)
        for at_work in sorted(mine, key=lambda one: len(one.account.users)):
            able = _able(at_work.account.app_id, live)
            least = min((loads[run] for run in able), default=math.inf)
            is_better = least + len(at_work.account.users) < loads.get(self._keeper.run, 0)
            is_well = self._runtime.services.gate.usable and not at_work.is_suspended
            if is_better and is_well:
                self._balanced_at = now
                await self.give_back(at_work.account.app_id)
                return

    async def _start_over(self) -> None:
        """Forget everything that came from a database that has lost what it had confirmed.

        Keep the leases for as long as one lasts, so that all nodes can first record again what they know.
        """
        self._wait_until = self._clock.monotonic() + leases.TTL.total_seconds()
        self._is_unsaid = True
        for app_id in list(self._runtime.accounts):
            await self._drop(app_id)
        with suppress(LedgerUnavailable):  # `look` does it later
            await self._say_again()

    async def _say_again(self) -> None:
        if self._is_unsaid:
            said = await self._runtime.services.facts.say_again(self._ledger)
            self._is_unsaid = False
            self._emit(events.LedgerRolledBack(said))

    # -- what operators should know -------------------------------------------------------------------

    def _say_fenced(self) -> None:
        for app_id, count in self._ledger.fenced.items():
            if count != self._fenced.get(app_id, 0):
                self._emit(
                    events.Fenced(self._name_of(app_id), count - self._fenced.get(app_id, 0))
                )
                self._fenced[app_id] = count

    def _say_differences(self, known: Collection[NodeRow]) -> None:
        """Report accounts that another live node has configured differently."""
        mine = self._keeper.report
        for row in known:
            if not row.is_live or row.report.run == mine.run:
                continue
            for app_id, digest in row.report.accounts.items():
                differs = f"{row.report.run} {app_id} {digest}"
                if (
                    mine.accounts.get(app_id, digest) != digest
                    and differs not in self._told_differs
                ):
                    self._told_differs.add(differs)
                    self._emit(events.ConfigDiffers(self._name_of(app_id), row.report.name))

    def _name_of(self, app_id: str) -> str:
        names = {one.app_id: one.name for one in self._runtime.config.accounts}
        return names.get(app_id, app_id)


def _loads(
    accounts: Collection[Account], held: Mapping[str, LeaseRow], live: Collection[NodeRow]
) -> dict[str, int]:
    """Return how many users' accounts each live node holds."""
    users = {one.app_id: len(one.users) for one in accounts}
    loads = {row.report.run: 0 for row in live}
    for row in held.values():
        if row.is_live and row.holder in loads:
            loads[row.holder] += users.get(row.app_id, 0)
    return loads


def _able(app_id: str, live: Collection[NodeRow]) -> list[str]:
    """Return the runs that have the account: those that can store its faxes; all, if none can."""
    having = [row.report for row in live if app_id in row.report.accounts]
    return [one.run for one in having if one.stores] or [one.run for one in having]


def _rows(connection: Connection) -> tuple[dict[str, LeaseRow], list[NodeRow]]:
    return leases.all_leases(connection), nodes.all_nodes(connection)
