"""The configuration as frozen values, and the one table of its keys: each field that `key` makes.

A key bears the field's name, in the map that its class is; `at` says where it stands otherwise.
All is resolved and valid (contract in `config/REFERENCE.md`).
"""

from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo

from poller.config import addresses, values
from poller.config.addresses import SecretRef as SecretRef
from poller.config.position import Node
from poller.config.values import During as During
from poller.config.values import choice, duration, nullable, number, size, whole
from poller.stream import Direction

UTC_ZONE = ZoneInfo("UTC")
ImageFormat = Literal["pdf", "tiff"]
Consumers = Literal["read", "move"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "json", "console"]
Archive = Literal["none", "metadata", "image"]
OfTaken = Literal["keep", "delete"]

SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def key(default: Any, kind: Callable[..., Any], doc: str, **more: str) -> Any:
    """One row of the table: what a key is by default, what its value is, a line for operators.

    `needed` is an example of what to write where it is missing. A `kind` that is a dataclass is a
    map of its keys, or null.
    """
    return field(default=default, metadata={"kind": kind, "doc": doc, **more})


def names(node: Node) -> Node:
    """A map of names, whose entries `build` reads."""
    return node


@dataclass(frozen=True)
class Limits:
    requests_per_second: float = key(5.0, number(0.001, 10_000), "every request counts")
    burst: int = key(10, whole(1, 10_000), "requests that may go at once after a quiet time")
    in_flight: int = key(8, whole(1, 1_000), "requests open at the same time")


@dataclass(frozen=True)
class Sweep:
    every: timedelta = key(MISSING, duration("s"), "time between two of them")
    back: timedelta = key(MISSING, duration("m"), "how far before the last one it lists again")


@dataclass(frozen=True)
class Poll:
    """Exactly one of `every` and `cron` is set; `start` is a look-back or an aware instant."""

    every: timedelta | None = key(30 * SECOND, duration("s"), "time between two polls")
    cron: str | None = key(None, values.cron, "instead of every: minute hour day month weekday")
    timezone: ZoneInfo = key(UTC_ZONE, values.zone, "in which cron is meant")
    start: timedelta | datetime = key(7 * DAY, values.start, "how far the first poll goes back")
    overlap: timedelta = key(15 * MINUTE, duration("s"), "how far before the last one it begins")
    max_window: timedelta = key(24 * HOUR, duration("m"), "longest window asked for")
    sweep: Sweep = Sweep(every=HOUR, back=24 * HOUR)
    deep_sweep: Sweep = Sweep(every=24 * HOUR, back=7 * DAY)


@dataclass(frozen=True)
class Expect:
    """Warn when nothing was received for `within`, counted only `during` office hours when given."""

    within: timedelta = key(MISSING, duration("s"), "warn about silence for so long")
    during: During | None = key(None, nullable(values.during), "the office hours that count")
    timezone: ZoneInfo = key(UTC_ZONE, values.zone, "in which during is meant")


@dataclass(frozen=True)
class Sent:
    """The archive of what a user sent; `expect` is about sent faxes as a user's own is about received."""

    archive: Archive = key(
        "none", choice(Archive), "what is kept: none, metadata, or image as well"
    )
    every: timedelta = key(15 * MINUTE, duration("s"), "time between two lists of sent faxes")
    start: timedelta | datetime = key(7 * DAY, values.start, "how far the first list goes back")
    path: str = key(
        "{account}/{user}/sent/{completed:%Y/%m/%d}/{fax_id}",
        values.sent_path_template,
        "a sent fax's name without extension, fixed when it is discovered",
    )
    expect: Expect | None = key(None, Expect, "warn when nothing was sent")


@dataclass(frozen=True)
class Delete:
    """What is deleted at eFax once it is proved to be stored here; nothing where `after` is None."""

    after: timedelta | None = key(
        None, nullable(duration("s")), "so long after a fax was stored; null: never"
    )
    max_per_day: int = key(
        500, whole(1, 100_000), "what the account may have deleted in any 24 hours"
    )
    taken: OfTaken = key("keep", choice(OfTaken), "delete: files taken away are proof enough")


@dataclass(frozen=True)
class Canary:
    """A fax to the user's own number on a schedule, timed to its file."""

    every: timedelta = key(MISSING, duration("s"), "time between two of them")
    within: timedelta = key(30 * MINUTE, duration("s"), "late after so long")


@dataclass(frozen=True)
class User:
    """`account` and `name` are labels; (app_id, user_id) is the identity."""

    account: str
    name: str
    app_id: str
    user_id: str = key(MISSING, values.identifier, "in quotes; one fax number", needed='"…"')
    poll: Poll = Poll()
    image_format: ImageFormat = key("pdf", choice(ImageFormat), "to ask for", at="image.format")
    expect: Expect | None = key(None, Expect, "warn about silence")
    number: str | None = key(
        None, nullable(values.fax_number), "in quotes; for self-test, canary and web-hook"
    )
    mark_downloaded: bool = key(
        True,  # noqa: FBT003
        values.yes_or_no,
        "false: eFax's mark is put back",
        at="image.mark_downloaded",
    )
    sent: Sent = Sent()
    delete: Delete = Delete()
    canary: Canary | None = key(None, Canary, "a fax to the own number, timed to its file")

    @property
    def names(self) -> tuple[str, str]:
        return self.account, self.name

    def of(self, direction: Direction) -> "User":
        """Return the user as one of its streams goes by it: sent faxes have a schedule of their own."""
        if direction is Direction.RECEIVED:
            return self
        poll = replace(self.poll, every=self.sent.every, cron=None, start=self.sent.start)
        return replace(self, poll=poll, expect=self.sent.expect)


@dataclass(frozen=True)
class AccountHook:
    """Where eFax's notices for an account arrive, and the secret that they are signed with."""

    path: str = key(MISSING, addresses.hook_path, "such as /efax/main", needed="/efax/main")
    secret: SecretRef = key(
        MISSING, addresses.secret, "where it is to be had", needed="{credential: efax-webhook}"
    )


@dataclass(frozen=True)
class Account:
    name: str
    app_id: str = key(MISSING, values.app_id, "in quotes", needed='"12345"')
    api_key: SecretRef = key(
        MISSING, addresses.secret, "where it is to be had", needed="{credential: efax-api-key}"
    )
    users: tuple[User, ...] = key(MISSING, names, "one User ID each, by a name of yours")
    base_url: str = key(
        "https://api.securedocex.com", addresses.base_url, "https only, except to loopback"
    )
    limits: Limits = Limits()
    proxy: str | None = key(None, nullable(addresses.proxy_url), "an HTTP proxy, for eFax alone")
    ca_file: Path | None = key(
        None, nullable(addresses.path), "a company's own authority", at="tls.ca_file"
    )
    webhook: AccountHook | None = key(None, AccountHook, "a wake-up; needs webhook.listen")


@dataclass(frozen=True)
class StorageConfig:
    directory: Path = key(Path("/var/lib/poller/faxes"), addresses.path, "where the faxes go")
    path: str = key(
        "{account}/{user}/{received:%Y/%m/%d}/{fax_id}",
        values.path_template,
        "a fax's name without extension, fixed when it is discovered",
    )
    min_free: int = key(1 << 30, size, "below it nothing is fetched")
    consumers: Consumers = key("read", choice(Consumers), "move: they may take files away")


@dataclass(frozen=True)
class StateConfig:
    """The ledger is at `url`, or else `poller.db` in `directory`, where lock, key and evidence are."""

    directory: Path = key(Path("/var/lib/poller/state"), addresses.path, "on a local disk")
    url: str | None = key(None, nullable(addresses.state_url), "null: poller.db in directory")


@dataclass(frozen=True)
class RetryConfig:
    """A fax that fails for `alarm_after` is said, for `give_up_after` quarantined."""

    attempts: int = key(5, whole(1, 100), "tries in one attempt of a fax, the first included")
    max_delay: timedelta = key(60 * SECOND, duration(), "longest wait between two")
    alarm_after: timedelta = key(HOUR, duration("s"), "failing for longer is a problem")
    give_up_after: timedelta = key(7 * DAY, duration("s"), "then a fax is quarantined")


@dataclass(frozen=True)
class Heartbeat:
    url: str | None = key(None, nullable(addresses.heartbeat_url), "asked with GET if all is well")
    every: timedelta = key(5 * MINUTE, duration("s"), "time between two of them")
    proxy: str | None = key(None, nullable(addresses.proxy_url), "an HTTP proxy, for this alone")


@dataclass(frozen=True)
class LogConfig:
    level: LogLevel = key("info", choice(LogLevel), "the least that is logged")
    format: LogFormat = key("auto", choice(LogFormat), "auto: console on a terminal, else json")


@dataclass(frozen=True)
class HttpConfig:
    """`host` is None when the status server is off."""

    host: str | None = key(
        "127.0.0.1", nullable(addresses.listen(9410, "null")), "null: off", at="listen"
    )
    port: int = 9410
    token: SecretRef | None = key(None, nullable(addresses.secret), "needed off loopback")


@dataclass(frozen=True)
class HookTls:
    cert: Path = key(
        MISSING, addresses.path, "the certificate with its chain, PEM", needed="/path/of/chain.pem"
    )
    key: SecretRef = key(
        MISSING,
        addresses.pem_secret,
        "where its key is to be had, PEM",
        needed="{credential: webhook-key}",
    )


@dataclass(frozen=True)
class WebhookKeys:
    """What is written under `webhook`."""

    listen: tuple[str, int] = key(
        MISSING,
        addresses.listen(9411, "webhook: null"),
        "host:port, not that of http.listen",
        needed='"127.0.0.1:9411"',
    )
    tls: HookTls | None = key(None, HookTls, "null: plain HTTP, on loopback only")


@dataclass(frozen=True)
class WebhookConfig:
    """The one listener for all web-hooks; without `tls` on loopback only, behind a proxy."""

    host: str
    port: int
    tls: HookTls | None = None


@dataclass(frozen=True)
class Config:
    accounts: tuple[Account, ...] = key(MISSING, names, "one App ID each, by a name of yours")
    storage: StorageConfig = StorageConfig()
    state: StateConfig = StateConfig()
    retry: RetryConfig = RetryConfig()
    evidence_max: int = key(200 << 20, size, "how much of odd answers is kept", at="evidence.max")
    heartbeat: Heartbeat = Heartbeat()
    log: LogConfig = LogConfig()
    http: HttpConfig = HttpConfig()
    webhook: WebhookConfig | None = key(None, WebhookKeys, "the listener for eFax's notices")
    drain: timedelta = key(30 * SECOND, duration(), "on stop, for downloads to end")
    files: tuple[Path, ...] = field(default=(), compare=False)

    @property
    def users(self) -> tuple[User, ...]:
        return tuple(user for account in self.accounts for user in account.users)

    @property
    def secrets(self) -> tuple[SecretRef, ...]:
        """Where all the secrets are."""
        hooks = (account.webhook for account in self.accounts)
        tls = self.webhook.tls if self.webhook is not None else None
        return (
            *(account.api_key for account in self.accounts),
            *([self.http.token] if self.http.token is not None else []),
            *(hook.secret for hook in hooks if hook is not None),
            *([tls.key] if tls is not None else []),
        )

    @property
    def certificates(self) -> tuple[Path, ...]:
        """The files of certificates, which are no secrets."""
        authorities = (account.ca_file for account in self.accounts)
        tls = self.webhook.tls if self.webhook is not None else None
        return (
            *(file for file in authorities if file is not None),
            *([tls.cert] if tls is not None else []),
        )

    @property
    def streams(self) -> list[tuple[User, Direction]]:
        """All that is polled: what each user receives, then what is archived of what it sends."""
        return [(user, Direction.RECEIVED) for user in self.users] + [
            (user, Direction.SENT) for user in self.users if user.sent.archive != "none"
        ]

    @property
    def state_directory(self) -> Path:
        return self.state.directory

    @property
    def state_url(self) -> str:
        return self.state.url or f"{addresses.SQLITE}{self.state.directory}/poller.db"
