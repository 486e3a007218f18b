"""Whether the service can do its whole job now, and the report that only it can give."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from poller.backlog import CatchUp
from poller.cluster import Cluster, holder_name, problems, without_node
from poller.daemon.ledger_check import LedgerCheck
from poller.daemon.planner import Planner
from poller.ingest.account import AccountRunner
from poller.ingest.hang_timeout import NO_PROGRESS_S
from poller.ingest.runtime import Runtime
from poller.ingest.stream_state import StreamState
from poller.ledger import FailingCount
from poller.problems import NOT_IN_TIME
from poller.runtime_report import RuntimeReport
from poller.status import lost
from poller.topic import see

_ACCOUNT_FAILURES = 2  # failed polls in a row, for each of its users
_ACCOUNT_FAILS_AFTER = timedelta(minutes=2)
_FAX_FAILS_FOR = timedelta(days=1)


@dataclass
class Readiness:
    """`waiting` counts each user's pending and quarantined faxes, `failing` those failing too long.

    `catching_up` is the amount of work an account had when it started to catch up.
    """

    runtime: Runtime
    planner: Planner
    ledger_check: LedgerCheck
    waiting: dict[int, tuple[int, int]] = field(default_factory=dict)
    failing: dict[int, FailingCount] = field(default_factory=dict)
    catching_up: dict[str, CatchUp] = field(default_factory=dict)
    cluster: Cluster | None = None  # if there are several nodes, as last seen

    def alive(self) -> bool:
        """Return whether loop, ledger writer and scheduler made progress in the last two minutes."""
        return not self.stalled()

    def stalled(self) -> list[str]:
        """Return the parts without progress; a stalled loop shows as a missing answer."""
        ledger = self.runtime.services.ledger
        since = {
            "scheduler": self.planner.tick_at,
            # A restart of this process does not help a server that hangs.
            "ledger": None if ledger.is_shared else ledger.waiting_since,
        }
        now = self.runtime.services.clock.monotonic()
        return [name for name, at in since.items() if at is not None and now - at >= NO_PROGRESS_S]

    def troubles(self) -> list[str]:
        """Return sentences saying why the service cannot do its whole job now; empty if it can."""
        return list(self._troubles())

    def notes(self) -> list[str]:
        """Return sentences about other nodes, which do not make this one unready."""
        seen = self.cluster
        if seen is None:
            return []
        mine = self.runtime.accounts
        others = [one for one in self.runtime.config.accounts if one.app_id not in mine]
        holders = {one.name: holder_name(seen, one.app_id) for one in others}
        return [
            *(
                f"Waiting: node {node} works on account {name}."
                for name, node in holders.items()
                if node
            ),
            *problems(seen),
        ]

    def is_well(self) -> bool:
        """Return whether there is no trouble, every last poll succeeded and no fax has failed for a day."""
        longest = max((one.oldest_s for one in self.failing.values()), default=0.0)
        return (
            not self.troubles()
            and all(
                one.progress.last_success_at and not one.failed_polls for one in self.runtime.states
            )
            and longest <= _FAX_FAILS_FOR.total_seconds()
        )

    def status_line(self) -> str:
        """Return one line for `systemctl status`."""
        runtime = self.runtime
        now = runtime.services.clock.now()
        lags = [lag for state in runtime.states if (lag := lag_s(state, now)) is not None]
        suspended = [one.account.name for one in runtime.accounts.values() if one.is_suspended]
        parts = {
            f"{len(runtime.states)} users": True,
            f"{sum(pending for pending, _ in self.waiting.values())} pending": True,
            f"{sum(given_up for _, given_up in self.waiting.values())} quarantined": True,
            f"largest lag {round(max(lags, default=0.0))} s": bool(lags),
            f"suspended: {', '.join(suspended)}": bool(suspended),
            f"degraded: {runtime.services.gate.reason}": not runtime.services.gate.usable,
            "the last reload was rejected; the service uses the old configuration": bool(
                runtime.rejected
            ),
        }
        return ", ".join(part for part, is_so in parts.items() if is_so)

    def report(self) -> RuntimeReport:
        """Return what only this process knows, for commands that read the ledger."""
        clients = {one.account.name: one.client for one in self.runtime.accounts.values()}
        return RuntimeReport(
            directory=self.runtime.services.storage.where(),
            reason=self.runtime.services.gate.reason,
            rejected=self.runtime.rejected,
            rates={
                name: float(f"{client.pacing.speed.rate:.2g}")
                for name, client in clients.items()
                if client.pacing.speed.rate < client.pacing.speed.limit
            },
            at_war=tuple(name for name, client in clients.items() if client.is_at_war),
            slow={
                one.account.name: replace(slow, seconds=round(slow.seconds))
                for one in self.runtime.accounts.values()
                if (slow := one.slowness.slow)
            },
            catching_up=dict(self.catching_up),
        )

    def _troubles(self) -> Iterator[str]:
        if self.runtime.services.gate.reason is not None:
            yield see(
                f"Nothing is fetched: {self.runtime.services.gate.reason}", "storage-unusable"
            )
        if self.ledger_check.trouble is not None:
            yield self.ledger_check.trouble
        if self.runtime.ledger_lost_at is not None:
            yield lost(self.runtime.ledger_lost_at)
        for account in self.runtime.accounts.values():
            yield from _of_account(account, self.runtime.services.clock.now())
        if self.cluster is not None:
            yield from without_node(self.cluster)
        yield from self._of_users(self.runtime.states)
        if not self.alive():
            yield see(
                "The scheduler or the ledger has made no progress for two minutes.",
                "service-restarts",
            )

    def _of_users(self, states: Sequence[StreamState]) -> Iterator[str]:
        keeper = self.runtime.keeper
        configured = {
            (user.app_id, user.user_id)
            for user in self.runtime.config.users
            if keeper is None or user.app_id in self.runtime.accounts
        }
        at_work = {(state.user.app_id, state.user.user_id) for state in states}
        if at_work != configured:
            yield see(
                f"The service polls {len(at_work)} users, but {len(configured)} are configured: a reload "
                "is under way or has failed.",
                "service-not-ready",
            )
        overdue = [one.key for one in states if not one.is_refused and self.planner.is_overdue(one)]
        if overdue:
            yield see(
                f"{len(overdue)} of {len(states)} {NOT_IN_TIME}, for example {overdue[0]}.",
                "user-overdue",
            )
        blind = [state.key for state in states if state.fails_to_sweep]
        if blind:
            yield see(
                f"The sweeps of {len(blind)} users fail, for example {blind[0]}: look for sweep-failed "
                "in the log.",
                "sweeps-fail",
            )


def lag_s(state: StreamState, now: datetime) -> float | None:
    settled = state.progress.settled_until
    return None if settled is None else max(0.0, (now - settled).total_seconds())


def _of_account(account: AccountRunner, now: datetime) -> Iterator[str]:
    name = account.account.name
    if account.is_suspended:
        reason = account.client.suspension.reason
        yield see(f"Account {name} is suspended: {reason}", "account-suspended")
    elif _fails_altogether([one for one in account.states.values() if not one.is_refused], now):
        yield see(
            f"The last polls of every user in account {name} failed: look for poll-failed in the log.",
            "poll-fails",
        )


def _fails_altogether(asked: Sequence[StreamState], now: datetime) -> bool:
    """Return whether all users fail, not just one, and for longer than one bad minute."""
    successes = [
        state.progress.last_success_at for state in asked if state.progress.last_success_at
    ]
    return (
        bool(asked)
        and (not successes or now > max(successes) + _ACCOUNT_FAILS_AFTER)
        and all(state.failed_polls >= _ACCOUNT_FAILURES for state in asked)
    )
