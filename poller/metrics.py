"""Count and time what the service does, for Prometheus.

Two kinds of numbers: those of the service and its accounts are ordinary metrics of
prometheus_client; those of users are plain records that become samples only when somebody asks,
because there can be tens of thousands of them. Everything is called on the event loop; only
`render` works elsewhere.
"""

import contextlib
import functools
import platform
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, Literal, get_args

import prometheus_client
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from poller.own_threads import OwnThreads

PollOutcome = Literal["ok", "failed", "skipped"]
# `late` and `damaged` are said beside `discovered` and `stored`, not instead of them.
FaxOutcome = Literal["discovered", "late", "stored", "damaged", "quarantined"]

CONTENT_TYPE: Final = prometheus_client.CONTENT_TYPE_LATEST
MOST_USERS: Final = 2_000

_POLL_OUTCOMES: Final[tuple[PollOutcome, ...]] = ("ok", "failed", "skipped")
_FAX_OUTCOMES: Final[tuple[FaxOutcome, ...]] = get_args(FaxOutcome)
_REQUEST_BUCKETS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_MINUTES_TO_DAYS: Final = (5, 15, 30, 60, 120, 300, 600, 1800, 3600, 6 * 3600, 86400, 7 * 86400)


@dataclass(slots=True)
class _User:
    polls: Tally[PollOutcome] = field(default_factory=Tally)
    faxes: Tally[FaxOutcome] = field(default_factory=Tally)
    pending: int = 0
    quarantined: int = 0
    damaged: int = 0
    failing_s: float = 0.0
    overdue: int = 0
    silent: int = 0
    gap_s: float = 0.0
    watermark: float | None = None
    settled: float | None = None
    last_success: float | None = None

    def copied(self) -> "_User":
        return replace(self, polls=self.polls.copy(), faxes=self.faxes.copy())

    def joined(self, other: "_User") -> "_User":
        """Return both as one: counts added up, of the times the older one."""
        return _User(
            polls=self.polls + other.polls,
            faxes=self.faxes + other.faxes,
            pending=self.pending + other.pending,
            quarantined=self.quarantined + other.quarantined,
            damaged=self.damaged + other.damaged,
            failing_s=max(self.failing_s, other.failing_s),
            overdue=self.overdue + other.overdue,
            silent=self.silent + other.silent,
            gap_s=self.gap_s + other.gap_s,
            watermark=_oldest(self.watermark, other.watermark),
            settled=_oldest(self.settled, other.settled),
            last_success=_oldest(self.last_success, other.last_success),
        )


_Users = dict[tuple[str, str], _User]


class Metrics:
    """Every metric of the contract, each with a method that says what happened."""

    def __init__(self, version: str) -> None:
        # A series with the time at which each counter was made would double what is scraped.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._users: _Users = {}
        self._define()
        self._threads = OwnThreads("metrics")
        ProcessCollector(namespace="poller", registry=self._registry)
        build = Info("poller_build", "What is running.", registry=self._registry)
        build.info({"version": version, "python": platform.python_version()})

    def poll(self, account: str, user: str, outcome: PollOutcome) -> None:
        self._user(account, user).polls[outcome] += 1

    def fax(self, account: str, user: str, outcome: FaxOutcome, count: int = 1) -> None:
        self._user(account, user).faxes[outcome] += count

    def set_pending(self, account: str, user: str, count: int) -> None:
        self._user(account, user).pending = count

    def set_quarantined(self, account: str, user: str, count: int) -> None:
        self._user(account, user).quarantined = count

    def set_damaged(self, account: str, user: str, count: int) -> None:
        self._user(account, user).damaged = count

    def set_failing(self, account: str, user: str, seconds: float) -> None:
        """Set for how long the user's oldest fax that cannot be fetched has failed; 0 for none."""
        self._user(account, user).failing_s = seconds

    def set_overdue(self, account: str, user: str, *, is_overdue: bool) -> None:
        """Set whether the user was not polled successfully although it was time, for any reason."""
        self._user(account, user).overdue = int(is_overdue)

    def set_silent(self, account: str, user: str, *, is_silent: bool) -> None:
        """Set whether nothing was received for longer than `expect` says."""
        self._user(account, user).silent = int(is_silent)

    def set_watermark(self, account: str, user: str, watermark: datetime) -> None:
        self._user(account, user).watermark = watermark.timestamp()

    def set_settled(self, account: str, user: str, at: datetime) -> None:
        """Set the watermark as it would be without the gaps that an operator has dismissed."""
        self._user(account, user).settled = at.timestamp()

    def set_last_success(self, account: str, user: str, at: datetime) -> None:
        self._user(account, user).last_success = at.timestamp()

    def set_gap(self, account: str, user: str, seconds: float) -> None:
        """Set how much time between the pinned start and the newest listing is not covered."""
        self._user(account, user).gap_s = seconds

    def forget(self, account: str, user: str) -> None:
        """Drop a user that is no longer configured; an unknown one is fine."""
        self._users.pop((account, user), None)

    def request(self, account: str, call: str, status: int | None, seconds: float) -> None:
        """Count one request; `status` is None when no answer came."""
        self._requests(account, call, str(status or "error")).inc()
        self._durations(call).observe(seconds)

    def waited(self, account: str, seconds: float) -> None:
        """Count time that requests waited for their turn."""
        self._waits(account).inc(max(0.0, seconds))

    def suspended(self, account: str, is_suspended: bool) -> None:  # noqa: FBT001 - the one thing it says
        self._suspended.labels(account).set(is_suspended)

    def token_war(self, account: str, *, is_on: bool) -> None:
        self._token_war.labels(account).set(is_on)

    def config_rejected(self, *, is_rejected: bool) -> None:
        self._config_rejected.set(is_rejected)

    def stretched(self, account: str, factor: float) -> None:
        """Set by how much polls are less frequent than the schedule asks for; 1 is not at all."""
        self._stretch.labels(account).set(factor)

    def sign_in(self, account: str, reason: str) -> None:
        self._sign_ins(account, reason).inc()

    def forget_account(self, account: str) -> None:
        """Drop the state of an account that is no longer configured; its counters stay."""
        for gauge in (self._suspended, self._token_war, self._stretch):
            with contextlib.suppress(KeyError):
                gauge.remove(account)

    def storage(self, free_bytes: int | None, *, usable: bool) -> None:
        """Set free bytes, None when nobody can tell, and whether faxes can be stored."""
        self._free.set(float("nan") if free_bytes is None else free_bytes)
        self._usable.set(usable)

    def min_free(self, bytes_: int) -> None:
        """Set the free space below which nothing is fetched."""
        self._min_free.set(bytes_)

    def ready(self, is_ready: bool) -> None:  # noqa: FBT001 - the one thing it says
        """Set what `/readyz` says."""
        self._ready.set(is_ready)

    def visibility_delay(self, seconds: float) -> None:
        """Record how long after its completion a fax was first listed."""
        self._visibility.observe(max(0.0, seconds))

    def ingest_latency(self, seconds: float) -> None:
        """Record how long after its reception a fax was stored."""
        self._latency.observe(max(0.0, seconds))

    async def render(self, *, full: bool = False) -> bytes:
        """Return the text for Prometheus, made in a thread.

        Above 2,000 users, unless `full`, users are added up per account, with an empty user label.
        """
        # Copied here, where nothing changes meanwhile.
        users = {identity: user.copied() for identity, user in self._users.items()}
        return await self._threads.run(lambda: self._rendered(users, full=full))

    def _rendered(self, users: _Users, *, full: bool) -> bytes:
        shown = users if full or len(users) <= MOST_USERS else _by_account(users)
        of_users = CollectorRegistry(auto_describe=False)
        of_users.register(_UserCollector(shown, len(users)))
        return generate_latest(of_users) + generate_latest(self._registry)

    def _user(self, account: str, user: str) -> _User:
        identity = (account, user)
        found = self._users.get(identity)
        if found is None:
            found = self._users[identity] = _User()
        return found

    def _define(self) -> None:
        registry = self._registry
        requests = Counter(
            "poller_requests_total",
            "Requests sent, by answer; error where none came.",
            ["account", "call", "status"],
            registry=registry,
        )
        durations = Histogram(
            "poller_request_duration_seconds",
            "From sending a request to the end of its answer.",
            ["call"],
            buckets=_REQUEST_BUCKETS,
            registry=registry,
        )
        waits = Counter(
            "poller_rate_limit_wait_seconds_total",
            "Time that requests waited for their turn.",
            ["account"],
            registry=registry,
        )
        self._suspended = Gauge(
            "poller_account_suspended",
            "1 while only probes are sent for the account.",
            ["account"],
            registry=registry,
        )
        self._token_war = Gauge(
            "poller_token_war",
            "1 while another program signs in with the account's App ID.",
            ["account"],
            registry=registry,
        )
        self._config_rejected = Gauge(
            "poller_config_rejected",
            "1 while the configuration before the last reload is at work, which was rejected.",
            registry=registry,
        )
        self._stretch = Gauge(
            "poller_schedule_stretch_ratio",
            "How many times longer the pause between polls is than the schedule asks for.",
            ["account"],
            registry=registry,
        )
        sign_ins = Counter(
            "poller_sign_ins_total", "Sign-ins, by why.", ["account", "reason"], registry=registry
        )
        self._free = Gauge("poller_storage_free_bytes", "Free space for faxes.", registry=registry)
        self._usable = Gauge(
            "poller_storage_usable", "1 while faxes can be stored.", registry=registry
        )
        self._min_free = Gauge(
            "poller_storage_min_free_bytes",
            "Free space below which nothing is fetched.",
            registry=registry,
        )
        self._ready = Gauge("poller_ready", "1 while /readyz says 200.", registry=registry)
        self._visibility = Histogram(
            "poller_visibility_delay_seconds",
            "From a fax's completion at eFax to its first listing.",
            buckets=_MINUTES_TO_DAYS,
            registry=registry,
        )
        self._latency = Histogram(
            "poller_ingest_latency_seconds",
            "From a fax's reception at eFax to its file.",
            buckets=_MINUTES_TO_DAYS,
            registry=registry,
        )
        # `labels()` locks and checks each time; what it returns is always the same.
        self._requests = functools.cache(requests.labels)
        self._durations = functools.cache(durations.labels)
        self._waits = functools.cache(waits.labels)
        self._sign_ins = functools.cache(sign_ins.labels)


class _UserCollector(Collector):
    """The records of users as metrics of prometheus_client, without an object per sample before."""

    def __init__(self, users: _Users, count: int) -> None:
        self._users = users
        self._count = count

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("poller_users", "Users that are polled.", value=self._count)
        yield self._counted("poller_polls", "Polls.", _POLL_OUTCOMES, lambda user: user.polls)
        yield self._counted("poller_faxes", "Faxes.", _FAX_OUTCOMES, lambda user: user.faxes)
        yield self._gauge("poller_fax_pending", "Faxes to be fetched.", lambda user: user.pending)
        yield self._gauge(
            "poller_fax_quarantined",
            "Faxes given up, but for one try a day.",
            lambda user: user.quarantined,
        )
        yield self._gauge(
            "poller_fax_damaged",
            "Stored faxes whose files are not what was stored.",
            lambda user: user.damaged,
        )
        yield self._gauge(
            "poller_oldest_failing_seconds",
            "For how long the user's oldest fax that cannot be fetched has failed.",
            lambda user: user.failing_s,
        )
        yield self._gauge(
            "poller_user_overdue",
            "1 while the user was not polled successfully in time.",
            lambda user: user.overdue,
        )
        yield self._gauge(
            "poller_user_silent",
            "1 while nothing was received for longer than expected.",
            lambda user: user.silent,
        )
        yield self._gauge(
            "poller_watermark_timestamp_seconds",
            "Everything received before is listed.",
            lambda user: user.watermark,
        )
        yield self._gauge(
            "poller_settled_timestamp_seconds",
            "Everything received before is listed, or was dismissed by an operator.",
            lambda user: user.settled,
        )
        yield self._gauge(
            "poller_last_success_timestamp_seconds",
            "When a poll last succeeded.",
            lambda user: user.last_success,
        )
        yield self._gauge(
            "poller_coverage_gap_seconds",
            "Time before the newest listing that is not listed.",
            lambda user: user.gap_s,
        )

    def _counted(
        self,
        name: str,
        help_: str,
        outcomes: Iterable[str],
        of: Callable[[_User], Mapping[Any, int]],
    ) -> Metric:
        family = CounterMetricFamily(name, help_, labels=["account", "user", "outcome"])
        for identity, user in self._users.items():
            counts = of(user)
            for outcome in outcomes:  # those that never happened too: an increase from 0 shows
                family.add_metric((*identity, outcome), counts.get(outcome, 0))
        return family

    def _gauge(self, name: str, help_: str, of: Callable[[_User], float | None]) -> Metric:
        family = GaugeMetricFamily(name, help_, labels=["account", "user"])
        for identity, user in self._users.items():
            value = of(user)
            if value is not None:  # a time that is not known yet is no series, not 1970
                family.add_metric(identity, value)
        return family


def _by_account(users: _Users) -> _Users:
    joined: _Users = {}
    for (account, _), user in users.items():
        identity = (account, "")
        joined[identity] = joined[identity].joined(user) if identity in joined else user
    return joined


def _oldest(one: float | None, other: float | None) -> float | None:
    known = [time for time in (one, other) if time is not None]
    return min(known, default=None)
