"""Count and time the service's work, for Prometheus.

Numbers of the service and its accounts are ordinary metrics of prometheus_client. Numbers of users
are plain records, which become samples only on request, as there can be tens of thousands of
them. Call everything on the event loop; only `render` works in a thread.
"""

import contextlib
import functools
import platform
from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple, get_args

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

from poller import events
from poller.events import Event
from poller.own_threads import OwnThreads
from poller.stream import Direction

PollOutcome = Literal["ok", "failed", "skipped"]
# `late` and `damaged` count in addition to `discovered` and `stored`, not instead of them.
FaxOutcome = Literal["discovered", "late", "stored", "damaged", "quarantined"]
HookOutcome = Literal["accepted", "refused", "unknown"]
SendOutcome = Literal["accepted", "transmitted", "failed", "in_doubt"]
TicketOutcome = Literal["published", "placed", "void"]

CONTENT_TYPE: Final = prometheus_client.CONTENT_TYPE_LATEST
MOST_USERS: Final = 2_000

_REQUEST_BUCKETS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_COMMIT_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_MINUTES_TO_DAYS: Final = (5, 15, 30, 60, 120, 300, 600, 1800, 3600, 6 * 3600, 86400, 7 * 86400)
_OF_USER: Final = ("account", "user")
_OF_STREAM: Final = (*_OF_USER, "direction")
# Metrics without this label cover received faxes; sent faxes have separate metrics.
_PREFIXES: Final = {Direction.RECEIVED: "poller_", Direction.SENT: "poller_sent_"}

# The present state of the service, or of its accounts if there is a label.
_GAUGES: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "account_suspended": ("1 while poller sends only probes for the account.", ("account",)),
    "token_war": ("1 while another program signs in with the account's App ID.", ("account",)),
    "efax_slow": ("1 while eFax, or a proxy before it, answers slowly.", ("account",)),
    "schedule_stretch_ratio": (
        "Factor by which the limits stretch the scheduled interval between polls.",
        ("account",),
    ),
    "config_rejected": (
        "1 after a rejected reload, while the service uses the old configuration.",
        (),
    ),
    "lease_held": (
        "1 while this one of several nodes works on the account.",
        ("account",),
    ),
    "lease_term": ("How often the account has changed hands.", ("account",)),
    "storage_free_bytes": ("Free space for faxes.", ()),
    "storage_usable": ("1 while faxes can be stored.", ()),
    "storage_min_free_bytes": ("Free space below which poller fetches nothing.", ()),
    "ready": ("1 while /readyz answers 200.", ()),
}

# Counts of the service and its accounts since the start.
_COUNTERS: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "requests": (
        "Requests sent, by answer; error: no answer.",
        ("account", "call", "status"),
    ),
    "rate_limit_wait_seconds": ("Time that requests waited for their turn.", ("account",)),
    "sign_ins": ("Sign-ins, by reason.", ("account", "reason")),
    "webhooks": (
        "Requests to the web-hook; unknown: correctly signed, but without a user of ours.",
        ("account", "outcome"),
    ),
    "lease_lost": ("Accounts that another node took over from this one.", ("account",)),
    "fenced_writes": (
        "Writes that the ledger refused, as another node works on the account.",
        ("account",),
    ),
    "tickets_revoked": (
        "Faxes that an interrupted attempt was about to show, by what became of them.",
        ("outcome",),
    ),
    "ledger_rollbacks": ("How often the database had lost what it had confirmed.", ()),
}


class _UserGauge(NamedTuple):
    """`unset`: the value until it is set; None: no series. `joined`: combines several users' values."""

    metric: str
    help: str
    unset: float | None = 0.0
    joined: Callable[[Iterable[float]], float] = sum
    labels: tuple[str, ...] = _OF_USER


_USER_GAUGES: Final[Mapping[str, _UserGauge]] = {
    "pending": _UserGauge("fax_pending", "Faxes to be fetched.", labels=_OF_STREAM),
    "quarantined": _UserGauge("fax_quarantined", "Faxes given up, except for one try a day."),
    "damaged": _UserGauge("fax_damaged", "Stored faxes whose files are missing or have changed."),
    "unreadable": _UserGauge("fax_unreadable", "Stored faxes whose files cannot be read."),
    "failing_s": _UserGauge(
        "oldest_failing_seconds",
        "How long the user's longest failing fax has failed.",
        joined=max,
    ),
    "overdue": _UserGauge("user_overdue", "1 while no poll of the user has succeeded in time."),
    "silent": _UserGauge("user_silent", "1 while no fax has arrived for longer than expected."),
    "watermark": _UserGauge(
        "watermark_timestamp_seconds",
        "Every fax received before this time is listed.",
        unset=None,
        joined=min,
        labels=_OF_STREAM,
    ),
    "settled": _UserGauge(
        "settled_timestamp_seconds",
        "Every fax received before this time is listed, or an operator dismissed the time.",
        unset=None,
        joined=min,
    ),
    "last_success": _UserGauge(
        "last_success_timestamp_seconds", "When a poll last succeeded.", unset=None, joined=min
    ),
    "gap_s": _UserGauge("coverage_gap_seconds", "Unlisted time before the newest listing."),
    "canary_at": _UserGauge(
        "canary_last_success_timestamp_seconds",
        "When a canary was last stored.",
        unset=None,
        joined=min,
    ),
    "canary_s": _UserGauge(
        "canary_round_trip_seconds",
        "Time from requesting the last canary to its file.",
        unset=None,
        joined=max,
    ),
    "canary_late": _UserGauge("canary_late", "1 while the newest canary is late.", unset=None),
}


@dataclass(slots=True)
class _User:
    polls: Tally[str] = field(default_factory=Tally)
    faxes: Tally[str] = field(default_factory=Tally)
    deleted: int = 0
    sent: Tally[str] = field(default_factory=Tally)
    gauges: dict[str, float] = field(default_factory=dict)


_Users = dict[tuple[str, str, Direction], _User]


class Metrics:
    """Every metric of the contract. `count` takes events, the other methods measurements."""

    def __init__(self, version: str) -> None:
        # The creation time of each counter would double the number of series.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = registry = CollectorRegistry()
        self._users: _Users = {}
        self._configured: frozenset[tuple[str, str, Direction]] | None = None
        self._threads = OwnThreads("metrics")
        ProcessCollector(namespace="poller", registry=registry)
        build = Info("poller_build", "The running version.", registry=registry)
        build.info({"version": version, "python": platform.python_version()})
        self._gauges = {
            name: Gauge(f"poller_{name}", about, labels, registry=registry)
            for name, (about, labels) in _GAUGES.items()
        }
        self._counters = {name: self._counter(name) for name in _COUNTERS}
        for outcome in get_args(TicketOutcome):  # from 0, so that the first increase shows
            self.add("tickets_revoked", outcome, count=0)
        durations = self._histogram(
            "request_duration_seconds",
            "Time from sending a request to the end of its answer.",
            _REQUEST_BUCKETS,
            "call",
        )
        self._durations = functools.cache(durations.labels)
        self.committed = self._histogram(
            "ledger_commit_seconds", "Time that a transaction of the ledger took.", _COMMIT_BUCKETS
        ).observe
        self._visibility = self._histogram(
            "visibility_delay_seconds",
            "Time from a fax's completion at eFax to its first listing.",
            _MINUTES_TO_DAYS,
        )
        self._latency = self._histogram(
            "ingest_latency_seconds",
            "Time from a fax's reception at eFax to its file.",
            _MINUTES_TO_DAYS,
        )

    def _counter(self, name: str) -> Callable[..., Counter]:
        """Return a cached lookup: `labels()` locks and checks each time, for the same result."""
        about, labels = _COUNTERS[name]
        made = Counter(f"poller_{name}_total", about, labels, registry=self._registry)
        return functools.cache(made.labels) if labels else lambda: made

    def _histogram(
        self, name: str, about: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(f"poller_{name}", about, labels, buckets=buckets, registry=self._registry)

    def count(self, happened: Event) -> None:
        """Count an event, if it affects a metric."""
        if (effect := _EFFECTS.get(type(happened))) is not None:
            effect(self, happened)

    def poll(
        self,
        account: str,
        user: str,
        outcome: PollOutcome,
        direction: Direction = Direction.RECEIVED,
    ) -> None:
        self._user(account, user, direction).polls[outcome] += 1

    def fax(self, of: events.OfUser, outcome: FaxOutcome, count: int = 1) -> None:
        self._user(of.account, of.user, of.direction).faxes[outcome] += count

    def set_user(
        self,
        account: str,
        user: str,
        direction: Direction = Direction.RECEIVED,
        **values: float | datetime | None,
    ) -> None:
        """Set a stream's present values, by the names of `_USER_GAUGES`; None leaves a value unchanged."""
        gauges = self._user(account, user, direction).gauges
        for name, value in values.items():
            assert name in _USER_GAUGES, name
            if value is not None:
                gauges[name] = value.timestamp() if isinstance(value, datetime) else value

    def set(self, gauge: str, value: float, *account: str) -> None:
        """Set a present value of the service or an account, by the names of `_GAUGES`."""
        of = self._gauges[gauge]
        (of.labels(*account) if account else of).set(value)

    def add(self, counter: str, *labels: str, count: float = 1) -> None:
        """Add to a counter, by the names of `_COUNTERS`."""
        self._counters[counter](*labels).inc(count)

    def keep(self, streams: frozenset[tuple[str, str, Direction]]) -> None:
        """Drop all streams except these, and ignore later values of others."""
        self._configured = streams
        self._users = {who: user for who, user in self._users.items() if who in streams}

    def forget_account(self, account: str) -> None:
        """Drop the present values of an account that is no longer configured; keep its counters."""
        for name, (_, labels) in _GAUGES.items():
            if labels:
                with contextlib.suppress(KeyError):
                    self._gauges[name].remove(account)

    def request(self, account: str, call: str, status: int | None, seconds: float) -> None:
        """Count one request; `status` is None if there was no answer."""
        self.add("requests", account, call, str(status or "error"))
        self._durations(call).observe(seconds)

    def show_webhook(self, account: str) -> None:
        """Start its series at 0, so that the first increase shows."""
        for outcome in get_args(HookOutcome):
            self.add("webhooks", account, outcome, count=0)

    def discovered(self, fax: events.FaxDiscovered) -> None:
        self.fax(fax, "discovered")
        if fax.delay_s is not None and fax.direction is Direction.RECEIVED:
            self._visibility.observe(max(0.0, fax.delay_s))

    def stored(self, fax: events.FaxStored) -> None:
        self.fax(fax, "stored")
        if fax.waited_s is not None and fax.direction is Direction.RECEIVED:
            self._latency.observe(max(0.0, fax.waited_s))

    def deleted(self, fax: events.FaxDeleted) -> None:
        self._user(fax.account, fax.user, fax.direction).deleted += 1

    async def render(self, *, full: bool = False) -> bytes:
        """Return the text for Prometheus, made in a thread.

        Above 2,000 users, unless `full`, add users up per account, with an empty user label.
        """
        # Copied on the event loop, where nothing changes in the meantime.
        users = {
            who: _User(
                polls=user.polls.copy(),
                faxes=user.faxes.copy(),
                deleted=user.deleted,
                sent=user.sent.copy(),
                gauges=user.gauges.copy(),
            )
            for who, user in self._users.items()
        }
        return await self._threads.run(lambda: self._rendered(users, full=full))

    def _rendered(self, users: _Users, *, full: bool) -> bytes:
        count = sum(direction is Direction.RECEIVED for _, _, direction in users)
        shown = users if full or count <= MOST_USERS else _by_account(users)
        of_users = CollectorRegistry(auto_describe=False)
        of_users.register(_UserCollector(shown, count))
        return generate_latest(of_users) + generate_latest(self._registry)

    def _user(self, account: str, user: str, direction: Direction) -> _User:
        """Return a stream's record; a throw-away one if a reload has removed the user in the meantime."""
        who = (account, user, direction)
        found = self._users.get(who)
        if found is None:
            found = _User()
            if self._configured is None or who in self._configured:
                self._users[who] = found
        return found


def _lease_taken(metrics: Metrics, lease: events.LeaseTaken) -> None:
    metrics.set("lease_held", 1, lease.account)
    metrics.set("lease_term", lease.term, lease.account)


def _lease_ended(metrics: Metrics, lease: events.LeaseWasLost | events.LeaseReleased) -> None:
    """Another node knows the present values of the account now."""
    metrics.forget_account(lease.account)
    metrics.set("lease_held", 0, lease.account)
    if isinstance(lease, events.LeaseWasLost):
        metrics.add("lease_lost", lease.account)


def _count_sent(metrics: Metrics, of: events.OfUser, outcome: SendOutcome) -> None:
    metrics._user(of.account, of.user, of.direction).sent[outcome] += 1


_EFFECTS: Final[Mapping[type[Event], Callable[[Metrics, Any], None]]] = {
    events.PollCompleted: lambda metrics, one: metrics.poll(
        one.account, one.user, "ok", one.direction
    ),
    events.PollFailed: lambda metrics, one: metrics.poll(
        one.account, one.user, "failed", one.direction
    ),
    events.LateArrivals: lambda metrics, one: metrics.fax(one, "late", one.count),
    events.FaxDiscovered: Metrics.discovered,
    events.FaxStored: Metrics.stored,
    events.FaxDeleted: Metrics.deleted,
    events.FaxDamaged: lambda metrics, one: metrics.fax(one, "damaged"),
    events.FaxQuarantined: lambda metrics, one: metrics.fax(one, "quarantined"),
    events.FaxSent: lambda metrics, one: _count_sent(
        metrics, one, "transmitted" if one.is_transmitted else "accepted"
    ),
    events.SendFailed: lambda metrics, one: _count_sent(metrics, one, "failed"),
    events.SendLost: lambda metrics, one: _count_sent(metrics, one, "in_doubt"),
    events.TokenRefreshed: lambda metrics, one: metrics.add("sign_ins", one.account, one.reason),
    events.TokenWar: lambda metrics, one: metrics.set("token_war", 1, one.account),
    events.TokenWarOver: lambda metrics, one: metrics.set("token_war", 0, one.account),
    events.EfaxSlow: lambda metrics, one: metrics.set("efax_slow", 1, one.account),
    events.EfaxSlowOver: lambda metrics, one: metrics.set("efax_slow", 0, one.account),
    events.SuspensionBegan: lambda metrics, one: metrics.set("account_suspended", 1, one.account),
    events.SuspensionEnded: lambda metrics, one: metrics.set("account_suspended", 0, one.account),
    events.WebhookReceived: lambda metrics, one: metrics.add(
        "webhooks", one.account, "unknown" if one.names_nobody else "accepted"
    ),
    events.WebhookRefused: lambda metrics, one: metrics.add("webhooks", one.account, "refused"),
    events.LeaseTaken: _lease_taken,
    events.LeaseReleased: _lease_ended,
    events.LeaseWasLost: _lease_ended,
    events.Fenced: lambda metrics, one: metrics.add("fenced_writes", one.account, count=one.writes),
    events.LedgerRolledBack: lambda metrics, _: metrics.add("ledger_rollbacks"),
    events.StorageLost: lambda metrics, _: metrics.set("storage_usable", 0),
    events.StorageUsable: lambda metrics, _: metrics.set("storage_usable", 1),
}


class _UserCollector(Collector):
    """The users' records as metrics of prometheus_client, without an object per sample."""

    def __init__(self, users: _Users, count: int) -> None:
        self._users = users
        self._count = count

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("poller_users", "Polled users.", value=self._count)
        gone = CounterMetricFamily("poller_deleted", "Faxes deleted at eFax.", labels=_OF_USER)
        for direction, prefix in _PREFIXES.items():
            mine = {who[:2]: user for who, user in self._users.items() if who[2] is direction}
            if mine or direction is Direction.RECEIVED:
                yield _polls(prefix, mine)
                yield from _gauges(prefix, mine, _OF_USER)
        for (account, name, direction), user in self._users.items():
            if direction is Direction.RECEIVED:
                gone.add_metric((account, name), user.deleted)
        yield gone
        yield _sent(self._users)
        faxes = CounterMetricFamily("poller_faxes", "Faxes.", labels=[*_OF_STREAM, "outcome"])
        for who, user in self._users.items():
            for outcome in get_args(FaxOutcome):
                faxes.add_metric((*who, outcome), user.faxes[outcome])
        yield faxes
        yield from _gauges("poller_", self._users, _OF_STREAM)


def _polls(prefix: str, users: Mapping[Any, _User]) -> Metric:
    """Return the counter of polls; outcomes start at 0, so that the first increase shows."""
    polls = CounterMetricFamily(f"{prefix}polls", "Polls.", labels=[*_OF_USER, "outcome"])
    for who, user in users.items():
        for outcome in get_args(PollOutcome):
            polls.add_metric((*who, outcome), user.polls[outcome])
    return polls


def _gauges(prefix: str, users: Mapping[Any, _User], labels: tuple[str, ...]) -> Iterator[Metric]:
    for name, gauge in _USER_GAUGES.items():
        if gauge.labels != labels:
            continue
        family = GaugeMetricFamily(f"{prefix}{gauge.metric}", gauge.help, labels=labels)
        for who, user in users.items():
            value = user.gauges.get(name, gauge.unset)
            if value is not None:  # an unknown time gets no series, instead of 1970
                family.add_metric(who, value)
        yield family


def _sent(users: _Users) -> Metric:
    """Return the counter of sent faxes, only for users who send or have a canary: most do not."""
    sent = CounterMetricFamily("poller_sent", "Faxes sent.", labels=[*_OF_USER, "outcome"])
    for (account, name, _), user in users.items():
        if user.sent or "canary_late" in user.gauges:
            for outcome in get_args(SendOutcome):
                sent.add_metric((account, name, outcome), user.sent[outcome])
    return sent


def _by_account(users: _Users) -> _Users:
    """Combine the users of each account: sums, the oldest time, the longest duration."""
    of_account: dict[tuple[str, Direction], list[_User]] = defaultdict(list)
    for (account, _, direction), user in users.items():
        of_account[account, direction].append(user)
    return {
        (account, "", direction): _User(
            polls=sum((user.polls for user in some), Tally()),
            faxes=sum((user.faxes for user in some), Tally()),
            deleted=sum(user.deleted for user in some),
            sent=sum((user.sent for user in some), Tally()),
            gauges={
                name: gauge.joined(values)
                for name, gauge in _USER_GAUGES.items()
                if (values := [user.gauges[name] for user in some if name in user.gauges])
            },
        )
        for (account, direction), some in of_account.items()
    }
