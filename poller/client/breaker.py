"""The account's circuit breaker: it counts failures and blocks calls while it is open."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from poller.client.pacer import Pacer
from poller.client.ports import Ports
from poller.config.model import Account
from poller.errors import AccountSuspended, ApiError, BadAnswer, SignInDelayed
from poller.pacing import Kind
from poller.suspension import EndsBy, Suspension


class Breaker:
    """Passes the outcome of calls to the account's suspension, and its changes to the observer."""

    def __init__(self, account: Account, pacer: Pacer, ports: Ports) -> None:
        self.suspension = Suspension(len(account.users))
        self._account = account.name
        self._pacer = pacer
        self._ports = ports

    @property
    def is_open(self) -> bool:
        return self.suspension.until is not None

    def require_closed(self) -> None:
        """Raise AccountSuspended while the account is suspended."""
        if self.is_open:
            raise self._refusal()

    @contextmanager
    def probing(self, user: str) -> Iterator[None]:
        """Allow the one call that tests whether a suspended account works again.

        Raises AccountSuspended if no probe is due.
        """
        if not self.suspension.may_probe(self._ports.clock.now()):
            raise self._refusal()
        try:
            yield
        except (BadAnswer, SignInDelayed) as error:  # the other errors are already counted
            self.failed(user, error)
            raise

    def failed(self, user: str | None, error: ApiError) -> None:
        """Count a failure; `user` is None if it concerns no particular user."""
        now, u = self._ports.clock.now(), self._ports.random()
        if self.suspension.failed(user, now, u, str(error)):
            self._say_suspended()

    def sign_in_refused(self, error: ApiError) -> None:
        """Suspend the account: every call would fail."""
        now, u = self._ports.clock.now(), self._ports.random()
        if self.suspension.sign_in_refused(now, u, str(error)):
            self._say_suspended()

    def keep_suspended(self, until: datetime, reason: str) -> None:
        """Begin suspended, as another node left the account."""
        self.suspension.keep(until, reason)
        self._say_suspended()

    def distrust(self, reason: str, ends_by: EndsBy) -> AccountSuspended:
        """Suspend the account because of its answers, or extend this; return the error to raise."""
        now, u = self._ports.clock.now(), self._ports.random()
        if self.suspension.distrusted(now, u, reason, ends_by):
            self._say_suspended()
        return self._refusal()

    def trust(self) -> None:
        """Note that the account works; this ends any suspension."""
        failures, reason = self.suspension.failures, self.suspension.reason
        if self.suspension.succeeded():
            self._ports.observer.resumed(failures, reason)

    def answered(self, *, probe: bool, is_list: bool = False) -> None:
        """Count an answer; only the answer to a probe ends a suspension."""
        ends_by = self.suspension.ends_by
        if not self.is_open or (probe and ends_by is EndsBy.ANSWER):
            self.trust()
        elif probe and ends_by is EndsBy.LIST:
            if is_list:
                self.trust()
            else:
                self.distrust(self.suspension.reason, ends_by)

    def _say_suspended(self) -> None:
        self._ports.observer.suspended(self._refusal().until, self.suspension.reason)
        # Waiting calls would notice only at their turn, and would delay the probe until then.
        self._pacer.dismiss(frozenset(Kind) - {Kind.OTHER}, self._refusal)

    def _refusal(self) -> AccountSuspended:
        until = self.suspension.until
        assert until is not None
        return AccountSuspended(
            f"Account {self._account} is suspended until {until:%H:%M:%S} UTC:"
            f" {self.suspension.reason}",
            until=until,
        )
