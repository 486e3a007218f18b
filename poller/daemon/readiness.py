"""Can the service do its whole job now? What it answers those who ask, and what only it knows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from poller.backlog import CatchUp
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

_ACCOUNT_FAILURES = 2  # polls in a row, of each of its users
_ACCOUNT_FAILS_AFTER = timedelta(minutes=2)
_FAX_FAILS_FOR = timedelta(days=1)


@dataclass
class Readiness:
    """`waiting` are each user's pending and quarantined faxes, `failing` those that fail too long.

    `catching_up` is what an account had left when it began to catch up.
    """

    runtime: Runtime
    planner: Planner
    ledger_check: LedgerCheck
    waiting: dict[int, tuple[int, int]] = field(default_factory=dict)
    failing: dict[int, FailingCount] = field(default_factory=dict)
    catching_up: dict[str, CatchUp] = field(default_factory=dict)

    def alive(self) -> bool:
        """Whether loop, ledger writer and scheduler have all made progress within two minutes."""
        return not self.stalled()

    def stalled(self) -> list[str]:
        """Name what has made no progress; the loop itself is seen by whoever waits for an answer."""
        since = {
            "scheduler": self.planner.tick_at,
            "ledger": self.runtime.services.ledger.waiting_since,
        }
        now = self.runtime.services.clock.monotonic()
        return [name for name, at in since.items() if at is not None and now - at >= NO_PROGRESS_S]

    def troubles(self) -> list[str]:
        """Why the service cannot do its whole job now, in sentences; empty when it can."""
        return list(self._troubles())

    def is_well(self) -> bool:
        """No trouble, each user's last poll succeeded, and no fax has failed for a day."""
        longest = max((one.oldest_s for one in self.failing.values()), default=0.0)
        return (
            not self.troubles()
            and all(
                one.progress.last_success_at and not one.failed_polls for one in self.runtime.states
            )
            and longest <= _FAX_FAILS_FOR.total_seconds()
        )

    def status_line(self) -> str:
        """One line for `systemctl status`."""
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
            "the last reload was rejected: the configuration before it is at work": bool(
                runtime.rejected
            ),
        }
        return ", ".join(part for part, is_so in parts.items() if is_so)

    def report(self) -> RuntimeReport:
        """What only this process knows, for those who ask the ledger."""
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
        yield from self._of_users(self.runtime.states)
        if not self.alive():
            yield see(
                "The scheduler or the ledger has made no progress for two minutes.",
                "service-restarts",
            )

    def _of_users(self, states: Sequence[StreamState]) -> Iterator[str]:
        configured = {(user.app_id, user.user_id) for user in self.runtime.config.users}
        at_work = {(state.user.app_id, state.user.user_id) for state in states}
        if at_work != configured:
            yield see(
                f"{len(at_work)} users are at work and {len(configured)} are configured: a reload is "
                "under way or has failed.",
                "service-not-ready",
            )
        overdue = [one.key for one in states if not one.is_refused and self.planner.is_overdue(one)]
        if overdue:
            yield see(
                f"{len(overdue)} of {len(states)} {NOT_IN_TIME}, {overdue[0]} among them.",
                "user-overdue",
            )
        blind = [state.key for state in states if state.fails_to_sweep]
        if blind:
            yield see(
                f"The sweeps of {len(blind)} users fail, {blind[0]} among them: look for sweep-failed "
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
            f"Every user's last polls in account {name} have failed: look for poll-failed in the log.",
            "poll-fails",
        )


def _fails_altogether(asked: Sequence[StreamState], now: datetime) -> bool:
    """One user's trouble is that user's, and one bad minute is over soon."""
    successes = [
        state.progress.last_success_at for state in asked if state.progress.last_success_at
    ]
    return (
        bool(asked)
        and (not successes or now > max(successes) + _ACCOUNT_FAILS_AFTER)
        and all(state.failed_polls >= _ACCOUNT_FAILURES for state in asked)
    )
