"""The configuration as frozen values; everything is resolved and valid (contract in the README)."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo

UTC_ZONE = ZoneInfo("UTC")
ImageFormat = Literal["pdf", "tiff"]


@dataclass(frozen=True)
class SecretRef:
    """Where a secret is to be had; it is read only when a command needs it.

    `source`, `line` and `key` say where the reference is written, for messages.
    """

    kind: Literal["credential", "file", "env"]
    name: str
    source: str = field(default="", compare=False)
    line: int = field(default=0, compare=False)
    key: str = field(default="", compare=False)


@dataclass(frozen=True)
class Limits:
    requests_per_second: float = 5.0
    burst: int = 10
    in_flight: int = 8


@dataclass(frozen=True)
class Sweep:
    every: timedelta
    back: timedelta


@dataclass(frozen=True)
class Poll:
    """Exactly one of `every` and `cron` is set; `start` is a look-back or an aware instant."""

    every: timedelta | None = timedelta(seconds=30)
    cron: str | None = None
    timezone: ZoneInfo = UTC_ZONE
    start: timedelta | datetime = timedelta(days=7)
    overlap: timedelta = timedelta(minutes=15)
    max_window: timedelta = timedelta(hours=24)
    sweep: Sweep = Sweep(every=timedelta(hours=1), back=timedelta(hours=24))
    deep_sweep: Sweep = Sweep(every=timedelta(hours=24), back=timedelta(days=7))


@dataclass(frozen=True)
class During:
    """Weekly office hours: weekdays (Monday is 0) and minutes of the day, end exclusive."""

    weekdays: frozenset[int]
    start_minute: int
    end_minute: int


@dataclass(frozen=True)
class Expect:
    """Warn when nothing was received for `within`, counted only `during` office hours when given."""

    within: timedelta
    during: During | None = None
    timezone: ZoneInfo = UTC_ZONE


@dataclass(frozen=True)
class User:
    """`account` and `name` are labels; (app_id, user_id) is the identity."""

    account: str
    name: str
    app_id: str
    user_id: str
    poll: Poll = Poll()
    image_format: ImageFormat = "pdf"
    expect: Expect | None = None


@dataclass(frozen=True)
class Account:
    name: str
    app_id: str
    api_key: SecretRef
    users: tuple[User, ...]
    base_url: str = "https://api.securedocex.com"
    limits: Limits = Limits()
    proxy: str | None = None
    ca_file: Path | None = None


@dataclass(frozen=True)
class StorageConfig:
    directory: Path
    path: str = "{account}/{user}/{received:%Y/%m/%d}/{fax_id}"
    min_free: int = 1 << 30
    consumers: Literal["read", "move"] = "read"


@dataclass(frozen=True)
class RetryConfig:
    """`attempts` inside one attempt of a fax include the first; `max_delay` between them.

    A fax that fails for longer than `alarm_after` is said, for longer than `give_up_after`
    quarantined.
    """

    attempts: int = 5
    max_delay: timedelta = timedelta(seconds=60)
    alarm_after: timedelta = timedelta(hours=1)
    give_up_after: timedelta = timedelta(days=7)


@dataclass(frozen=True)
class Heartbeat:
    url: str | None = None
    every: timedelta = timedelta(minutes=5)
    proxy: str | None = None


@dataclass(frozen=True)
class LogConfig:
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"


@dataclass(frozen=True)
class HttpConfig:
    """`host` is None when the status server is off."""

    host: str | None = "127.0.0.1"
    port: int = 9410
    token: SecretRef | None = None


@dataclass(frozen=True)
class Config:
    accounts: tuple[Account, ...]
    storage: StorageConfig
    state_url: str = "sqlite:////var/lib/poller/state/poller.db"
    retry: RetryConfig = RetryConfig()
    evidence_max: int = 200 << 20
    heartbeat: Heartbeat = Heartbeat()
    log: LogConfig = LogConfig()
    http: HttpConfig = HttpConfig()
    drain: timedelta = timedelta(seconds=30)
    files: tuple[Path, ...] = field(default=(), compare=False)

    @property
    def users(self) -> tuple[User, ...]:
        return tuple(user for account in self.accounts for user in account.users)

    @property
    def state_directory(self) -> Path:
        """The directory of the ledger; lock, redaction key and evidence live beside it."""
        return Path(self.state_url.removeprefix("sqlite:///")).parent
