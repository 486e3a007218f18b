"""The configuration as frozen values, and the only table of its keys: the fields made by `key`.

A key has the field's name, in the map that its class describes, unless `at` gives another place.
All values are resolved and valid (contract in `config/REFERENCE.md`).
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
    """Make one row of the table: a key's default, the kind of its value, and a line for operators.

    `needed` is an example for the message if the key is missing. If `kind` is a dataclass, the value
    is a map of its keys, or null.
    """
    return field(default=default, metadata={"kind": kind, "doc": doc, **more})


def names(node: Node) -> Node:
    """Accept a map of names; `build` reads its entries."""
    return node


@dataclass(frozen=True)
class Limits:
    requests_per_second: float = key(
        5.0, number(0.001, 10_000), "most requests per second, of any kind"
    )
    burst: int = key(10, whole(1, 10_000), "requests allowed at once after a quiet time")
    in_flight: int = key(8, whole(1, 1_000), "most requests open at the same time")


@dataclass(frozen=True)
class Sweep:
    every: timedelta = key(MISSING, duration("s"), "time between two sweeps")
    back: timedelta = key(MISSING, duration("m"), "how far before the last sweep to list again")


@dataclass(frozen=True)
class Poll:
    """Exactly one of `every` and `cron` is set; `start` is a look-back or an aware instant."""

    every: timedelta | None = key(30 * SECOND, duration("s"), "time between two polls")
    cron: str | None = key(None, values.cron, "instead of every: minute hour day month weekday")
    timezone: ZoneInfo = key(UTC_ZONE, values.zone, "time zone of cron")
    start: timedelta | datetime = key(7 * DAY, values.start, "how far the first poll goes back")
    overlap: timedelta = key(
        15 * MINUTE, duration("s"), "how far before the last window the next starts"
    )
    max_window: timedelta = key(24 * HOUR, duration("m"), "longest window to ask for")
    sweep: Sweep = Sweep(every=HOUR, back=24 * HOUR)
    deep_sweep: Sweep = Sweep(every=24 * HOUR, back=7 * DAY)


@dataclass(frozen=True)
class Expect:
    """Warn if no fax arrives for `within`; with `during`, count only these office hours."""

    within: timedelta = key(MISSING, duration("s"), "warn after this long without a fax")
    during: During | None = key(None, nullable(values.during), "the office hours that count")
    timezone: ZoneInfo = key(UTC_ZONE, values.zone, "time zone of during")


@dataclass(frozen=True)
class Sent:
    """The archive of a user's sent faxes; `expect` warns if the user sends none."""

    archive: Archive = key("none", choice(Archive), "what to keep: none, metadata, or image (both)")
    every: timedelta = key(15 * MINUTE, duration("s"), "time between two lists of sent faxes")
    start: timedelta | datetime = key(7 * DAY, values.start, "how far the first list goes back")
    path: str = key(
        "{account}/{user}/sent/{completed:%Y/%m/%d}/{fax_id}",
        values.sent_path_template,
        "a sent fax's name without extension, fixed when it is discovered",
    )
    expect: Expect | None = key(None, Expect, "warn if the user sends no fax")


@dataclass(frozen=True)
class Delete:
    """When to delete faxes at eFax, once they are proved to be stored here; None in `after`: never."""

    after: timedelta | None = key(
        None, nullable(duration("s")), "how long after storing a fax; null: never"
    )
    max_per_day: int = key(500, whole(1, 100_000), "most deletions per account in any 24 hours")
    taken: OfTaken = key("keep", choice(OfTaken), "delete: also faxes whose files were taken away")


@dataclass(frozen=True)
class Canary:
    """Test faxes to the user's own number, timed until they are stored."""

    every: timedelta = key(MISSING, duration("s"), "time between two canaries")
    within: timedelta = key(30 * MINUTE, duration("s"), "a canary is late after this time")


@dataclass(frozen=True)
class User:
    """`account` and `name` are labels; (app_id, user_id) is the identity."""

    account: str
    name: str
    app_id: str
    user_id: str = key(
        MISSING, values.identifier, "eFax's User ID, in quotes: one fax number", needed='"…"'
    )
    poll: Poll = Poll()
    image_format: ImageFormat = key(
        "pdf", choice(ImageFormat), "format to ask for", at="image.format"
    )
    expect: Expect | None = key(None, Expect, "warn if no fax arrives")
    number: str | None = key(
        None, nullable(values.fax_number), "fax number, in quotes; for self-test, canary, web-hook"
    )
    mark_downloaded: bool = key(
        True,  # noqa: FBT003
        values.yes_or_no,
        "false: poller puts eFax's mark back after storing",
        at="image.mark_downloaded",
    )
    sent: Sent = Sent()
    delete: Delete = Delete()
    canary: Canary | None = key(None, Canary, "test faxes to the user's own number")

    @property
    def names(self) -> tuple[str, str]:
        return self.account, self.name

    def of(self, direction: Direction) -> "User":
        """Return the user with the settings of one stream: sent faxes have their own schedule."""
        if direction is Direction.RECEIVED:
            return self
        poll = replace(self.poll, every=self.sent.every, cron=None, start=self.sent.start)
        return replace(self, poll=poll, expect=self.sent.expect)


@dataclass(frozen=True)
class AccountHook:
    """Where eFax's notices for an account arrive, and the secret that signs them."""

    path: str = key(
        MISSING, addresses.hook_path, "path of the URL, such as /efax/main", needed="/efax/main"
    )
    secret: SecretRef = key(
        MISSING, addresses.secret, "where to read the secret", needed="{credential: efax-webhook}"
    )


@dataclass(frozen=True)
class Account:
    name: str
    app_id: str = key(MISSING, values.app_id, "eFax's App ID, in quotes", needed='"12345"')
    api_key: SecretRef = key(
        MISSING, addresses.secret, "where to read the API Key", needed="{credential: efax-api-key}"
    )
    users: tuple[User, ...] = key(MISSING, names, "users by a name you choose, one User ID each")
    base_url: str = key(
        "https://api.securedocex.com",
        addresses.base_url,
        "eFax's API; https only, except to loopback",
    )
    limits: Limits = Limits()
    proxy: str | None = key(None, nullable(addresses.proxy_url), "HTTP proxy for eFax")
    ca_file: Path | None = key(
        None, nullable(addresses.path), "a company's CA, added to the system's", at="tls.ca_file"
    )
    webhook: AccountHook | None = key(None, AccountHook, "notices from eFax; needs webhook.listen")


@dataclass(frozen=True)
class StorageConfig:
    directory: Path = key(
        Path("/var/lib/poller/faxes"), addresses.path, "where poller stores the faxes"
    )
    path: str = key(
        "{account}/{user}/{received:%Y/%m/%d}/{fax_id}",
        values.path_template,
        "a fax's name without extension, fixed when it is discovered",
    )
    min_free: int = key(1 << 30, size, "with less free space poller stops fetching")
    consumers: Consumers = key("read", choice(Consumers), "move: consumers may take files away")


@dataclass(frozen=True)
class StateConfig:
    """The ledger is at `url`, by default `poller.db` in `directory`, next to lock, key and evidence."""

    directory: Path = key(Path("/var/lib/poller/state"), addresses.path, "on a local disk")
    url: str | None = key(None, nullable(addresses.state_url), "null: poller.db in directory")


@dataclass(frozen=True)
class RetryConfig:
    """A fax that fails for `alarm_after` is reported; after `give_up_after` it is quarantined."""

    attempts: int = key(5, whole(1, 100), "tries in one attempt, including the first")
    max_delay: timedelta = key(60 * SECOND, duration(), "longest wait between two tries")
    alarm_after: timedelta = key(HOUR, duration("s"), "report a fax that fails for longer")
    give_up_after: timedelta = key(7 * DAY, duration("s"), "quarantine a fax that fails for longer")


@dataclass(frozen=True)
class Heartbeat:
    url: str | None = key(None, nullable(addresses.heartbeat_url), "GET this URL while all is well")
    every: timedelta = key(5 * MINUTE, duration("s"), "time between two heartbeats")
    proxy: str | None = key(None, nullable(addresses.proxy_url), "HTTP proxy for the heartbeat")


@dataclass(frozen=True)
class LogConfig:
    level: LogLevel = key("info", choice(LogLevel), "lowest level to log")
    format: LogFormat = key("auto", choice(LogFormat), "auto: console on a terminal, else json")


@dataclass(frozen=True)
class HttpConfig:
    """`host` is None if the status server is off."""

    host: str | None = key(
        "127.0.0.1", nullable(addresses.listen(9410, "null")), "host:port; null: off", at="listen"
    )
    port: int = 9410
    token: SecretRef | None = key(
        None, nullable(addresses.secret), "required if listen is not loopback"
    )


@dataclass(frozen=True)
class HookTls:
    cert: Path = key(
        MISSING, addresses.path, "certificate with its chain, PEM", needed="/path/of/chain.pem"
    )
    key: SecretRef = key(
        MISSING,
        addresses.pem_secret,
        "where to read its private key, PEM",
        needed="{credential: webhook-key}",
    )


@dataclass(frozen=True)
class WebhookKeys:
    """The keys under `webhook`."""

    listen: tuple[str, int] = key(
        MISSING,
        addresses.listen(9411, "webhook: null"),
        "host:port, different from http.listen",
        needed='"127.0.0.1:9411"',
    )
    tls: HookTls | None = key(None, HookTls, "null: plain HTTP, on loopback only")


@dataclass(frozen=True)
class WebhookConfig:
    """The listener for all web-hooks; without `tls` only on loopback, behind a proxy."""

    host: str
    port: int
    tls: HookTls | None = None


@dataclass(frozen=True)
class Config:
    accounts: tuple[Account, ...] = key(
        MISSING, names, "accounts by a name you choose, one App ID each"
    )
    storage: StorageConfig = StorageConfig()
    state: StateConfig = StateConfig()
    retry: RetryConfig = RetryConfig()
    evidence_max: int = key(200 << 20, size, "space for kept odd answers", at="evidence.max")
    heartbeat: Heartbeat = Heartbeat()
    log: LogConfig = LogConfig()
    http: HttpConfig = HttpConfig()
    webhook: WebhookConfig | None = key(None, WebhookKeys, "listener for eFax's notices")
    drain: timedelta = key(30 * SECOND, duration(), "time for downloads to finish on stop")
    files: tuple[Path, ...] = field(default=(), compare=False)

    @property
    def users(self) -> tuple[User, ...]:
        return tuple(user for account in self.accounts for user in account.users)

    @property
    def secrets(self) -> tuple[SecretRef, ...]:
        """Return the references to all secrets."""
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
        """Return the paths of all certificates, which are not secret."""
        authorities = (account.ca_file for account in self.accounts)
        tls = self.webhook.tls if self.webhook is not None else None
        return (
            *(file for file in authorities if file is not None),
            *([tls.cert] if tls is not None else []),
        )

    @property
    def streams(self) -> list[tuple[User, Direction]]:
        """Return all streams to poll: each user's received faxes, and its sent ones if archived."""
        return [(user, Direction.RECEIVED) for user in self.users] + [
            (user, Direction.SENT) for user in self.users if user.sent.archive != "none"
        ]

    @property
    def state_directory(self) -> Path:
        return self.state.directory

    @property
    def state_url(self) -> str:
        return self.state.url or f"{addresses.SQLITE}{self.state.directory}/poller.db"
