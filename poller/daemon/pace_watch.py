"""Watch which accounts catch up, and which ones eFax answers slowly."""

from collections.abc import Mapping
from dataclasses import replace

from poller import events
from poller.backlog import CatchUp, Left, lists_left
from poller.catching_up import received
from poller.ingest.account import AccountRunner
from poller.ingest.runtime import Runtime
from poller.ledger import Untried, jobs, streams


class PaceWatch:
    """Looks at each account of a runtime; `catching_up` is by account name."""

    def __init__(self, runtime: Runtime, catching_up: dict[str, CatchUp]) -> None:
        self._runtime = runtime
        self._catching_up = catching_up

    def look_for_slowness(self) -> None:
        """Report when eFax starts to answer slowly, and when that is over."""
        services = self._runtime.services
        for account in self._runtime.accounts.values():
            name, before = account.account.name, account.slowness.slow
            slow = account.slowness.look(services.clock.monotonic())
            if slow is not None and before is None:
                services.emit(events.EfaxSlow(name, slow.call, round(slow.seconds)))
            elif slow is None and before is not None:
                services.emit(events.EfaxSlowOver(name))
            else:
                services.metrics.set("efax_slow", slow is not None, name)  # export 0 as well

    async def look_for_backlogs(self) -> None:
        """Note which accounts catch up, as `Left` defines it. Raises LedgerUnavailable."""
        untried = await self._runtime.services.ledger.read(jobs.untried)
        accounts = self._runtime.accounts.values()
        left = {
            one.account.name: self._left(one, untried) for one in accounts if not one.is_suspended
        }
        begins = []
        for account in accounts:
            name, limit = account.account.name, account.account.limits.requests_per_second
            begun = self._catching_up.get(name)
            if name not in left or not left[name].is_catching_up(limit, begun=begun is not None):
                self._catching_up.pop(name, None)
            elif begun is None:
                begins.append(account)
            elif left[name].lists > begun.lists:  # a user with gaps that were unknown before
                self._catching_up[name] = replace(begun, lists=left[name].lists)
        if begins:
            await self._begin(begins, left)
        for gone in self._catching_up.keys() - {one.account.name for one in accounts}:
            del self._catching_up[gone]

    async def _begin(self, begins: list[AccountRunner], left: Mapping[str, Left]) -> None:
        rows = received(await self._runtime.services.ledger.read(streams.all_streams))
        for account in begins:
            name, app_id = account.account.name, account.account.app_id
            self._catching_up[name] = CatchUp(
                self._runtime.services.clock.now(),
                account.started,
                left[name].lists,
                sum(row.stored for row in rows if row.app_id == app_id),
            )

    def _left(self, account: AccountRunner, untried: Mapping[int, Untried]) -> Left:
        now, states = self._runtime.services.clock.now(), account.states.values()
        return Left(
            sum(lists_left(one.progress, one.user.poll, account.started, now) for one in states),
            sum(untried[one.id].count for one in states if one.id in untried),
        )
