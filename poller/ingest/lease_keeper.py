"""Keep the leases of this run: renew them in time, and tell whether one can still be trusted.

A lease lasts 15 seconds by the database's clock. This run trusts it for 10 seconds after it sent the
last successful renewal, by a clock that also counts while the machine sleeps. So no two nodes ask
eFax for an account at the same time. That saves requests; what keeps records and files right is the
fence in the ledger and the ticket in the store, which need no clock.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NoReturn

from poller import VERSION
from poller.cluster import own_name
from poller.config.model import Account, Config, SecretRef
from poller.errors import LeaseLost, LedgerUnavailable
from poller.ledger import Ledger, leases, nodes, schema
from poller.ledger.leases import Lease, Taken
from poller.ledger.nodes import NodeReport
from poller.ledger.tables import REVISION

RENEW_EVERY_S = 5.0
_AGAIN_AFTER_S = 1.0
_RENEW_WITHIN_S = 2.0
_TRUSTED_FOR_S = leases.TRUSTED_FOR.total_seconds()
_PATIENCE_S = 60.0  # of a command
_SOMEWHERE = SecretRef("file", "")


def boot_time() -> float:
    """Return seconds since the machine's start, including those that it slept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass
class HeldLease:
    """A lease of this run; `renewed` is the count of its renewals that the database confirmed last."""

    lease: Lease
    trusted_until: float
    renewed: int = 0


@dataclass(frozen=True)
class Renewal:
    """What a renewal found out. `lost` leases are no longer held.

    `is_rolled_back`: the database has lost renewals that it had confirmed, and so other writes too.
    """

    is_answered: bool = True
    lost: tuple[Lease, ...] = ()
    is_rolled_back: bool = False

    @property
    def pause_s(self) -> float:
        """How long to wait before the next one: with one slow answer, trust must not end."""
        return RENEW_EVERY_S if self.is_answered else _AGAIN_AFTER_S


@dataclass
class _Asked:
    """A renewal that was sent, for the leases held then."""

    sent_at: float
    held: list[HeldLease]
    answer: "asyncio.Task[tuple[dict[Lease, int], bool, str] | None]"


def report_of(settings: Config, run: str, *, serves: bool = True) -> NodeReport:
    """Return what other nodes are told of this run; a command `serves` no accounts."""
    return NodeReport(
        run,
        own_name(settings),
        VERSION,
        schema.OLDEST,
        REVISION,
        _digests(settings) if serves else {},
    )


def _digests(settings: Config) -> dict[str, str]:
    return {one.app_id: digest(settings, one) for one in settings.accounts}


def digest(settings: Config, account: Account) -> str:
    """Return a short value that two nodes share if they would work on an account in the same way.

    Where a secret or a certificate is found may differ from node to node.
    """
    told = replace(account, api_key=_SOMEWHERE, users=(), ca_file=None)
    if account.webhook is not None:
        told = replace(told, webhook=replace(account.webhook, secret=_SOMEWHERE))
    users = sorted(map(repr, account.users))
    text = repr((told, users, settings.retry, settings.storage.path))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class LeaseKeeper:
    """Takes, renews and gives back leases of one run; `report` is what it tells other nodes.

    `draining`: an operator wants this node to give its accounts back.
    """

    def __init__(
        self, ledger: Ledger, report: NodeReport, *, now: Callable[[], float] = boot_time
    ) -> None:
        self._ledger = ledger
        self._now = now
        self.report = report
        self.held: dict[str, HeldLease] = {}
        self._history: str | None = None
        self._answered_at = now()  # when the last renewal was sent that succeeded
        self._asked: _Asked | None = None
        self.draining = False

    @property
    def run(self) -> str:
        return self.report.run

    @property
    def unanswered_s(self) -> float:
        """For how long the database has answered no renewal."""
        return self._now() - self._answered_at

    @property
    def is_in_doubt(self) -> bool:
        """Whether the database has not answered for so long that no lease can be trusted."""
        return self.unanswered_s >= _TRUSTED_FOR_S

    def may_ask(self, lease: Lease) -> bool:
        """Whether no other node can hold the account now."""
        held = self.held.get(lease.app_id)
        return held is not None and held.lease == lease and self._now() < held.trusted_until

    def configured(self, settings: Config) -> None:
        """Note another configuration."""
        self.report = replace(self.report, accounts=_digests(settings))

    def leave(self) -> None:
        """Count no longer among the nodes that can work on an account."""
        self.report = replace(self.report, accounts={})

    async def begin(self, app_ids: Collection[str]) -> None:
        """Report this run to the other nodes, and make known which accounts it has."""
        await self._ledger.aside(leases.add, app_ids)
        await self._ledger.aside(nodes.begin, self.report)
        self._history = await self._ledger.aside(self._ledger.history)

    async def end(self) -> None:
        """Give back what is held, and report the end of this run, if the ledger takes it."""
        with suppress(LedgerUnavailable):
            for app_id in list(self.held):
                await self.release(app_id)
            await self._ledger.aside(nodes.end, self.run)

    async def take(self, app_id: str) -> Taken | None:
        """Take an account if nobody holds it; raises LedgerUnavailable if that is unclear."""
        sent_at = self._now()
        taken = await self._ledger.aside(leases.take, app_id, self.run)
        if taken is not None:
            self.held[app_id] = HeldLease(taken.lease, sent_at + _TRUSTED_FOR_S)
        return taken

    async def release(self, app_id: str) -> None:
        """Give an account back; its work must have ended."""
        held = self.held.pop(app_id, None)
        if held is not None:
            await self._ledger.aside(leases.release, held.lease)

    async def renew_until_lost(self) -> NoReturn:
        """Renew in time, for a command. Raises LeaseLost, or LedgerUnavailable after a minute."""
        while True:
            renewal = await self.renew()
            if renewal.lost:
                raise LeaseLost(renewal.lost[0].app_id)
            if self.unanswered_s > _PATIENCE_S:
                raise LedgerUnavailable("the ledger has not renewed the leases for a minute")
            await asyncio.sleep(renewal.pause_s)

    async def renew(self, users: int = 0, *, stores: bool = True) -> Renewal:
        """Renew all leases; report how many users this node works for, and whether it can store faxes.

        Without an answer in two seconds, trust in the leases just runs out.
        """
        self.report = replace(self.report, users=users, stores=stores)
        if self._asked is None or self._asked.answer.done():  # else it may still be answered
            sending = asyncio.create_task(self._ask(), name="renewal")
            self._asked = _Asked(self._now(), list(self.held.values()), sending)
        asked = self._asked
        await asyncio.wait({asked.answer}, timeout=_RENEW_WITHIN_S)
        answer = asked.answer.result() if asked.answer.done() else None
        if answer is None:
            return Renewal(is_answered=False)
        found, self.draining, history = answer
        self._answered_at = asked.sent_at
        self.report = replace(self.report, lag_s=self._now() - asked.sent_at)
        renewal = self._judge(asked.held, found, asked.sent_at)
        if self._history not in (None, history):
            renewal = replace(renewal, is_rolled_back=True)
        self._history = history
        await self._give_back_strays(found)
        return renewal

    async def _ask(self) -> tuple[dict[Lease, int], bool, str] | None:
        with suppress(LedgerUnavailable):
            found, draining = await self._ledger.aside(nodes.renew, self.report)
            return found, draining, await self._ledger.aside(self._ledger.history)
        return None

    def _judge(self, asked: list[HeldLease], found: dict[Lease, int], sent_at: float) -> Renewal:
        lost = []
        is_rolled_back = False
        for held in asked:
            count = found.get(held.lease)
            if self.held.get(held.lease.app_id) is not held:
                continue  # given back meanwhile
            if count is None:
                del self.held[held.lease.app_id]
                lost.append(held.lease)
                continue
            is_rolled_back |= count <= held.renewed
            held.renewed = count
            held.trusted_until = sent_at + _TRUSTED_FOR_S
        return Renewal(lost=tuple(lost), is_rolled_back=is_rolled_back)

    async def _give_back_strays(self, found: dict[Lease, int]) -> None:
        """Give back what this run took without getting the answer."""
        known = {held.lease for held in self.held.values()}
        for lease in found.keys() - known:
            with suppress(LedgerUnavailable):
                await self._ledger.aside(leases.release, lease)
