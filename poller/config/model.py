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
    """One row of the table: what a key is by default, what its value is, what operators read.

    `needed` is an example of what to write where it is missing, `shown` a default as it is written.
    A `kind` that is a dataclass is a map of its keys, or null.
    """
    return field(default=default, metadata={"kind": kind, "doc": doc, **more})


def names(node: Node) -> Node:
    """Accept a map of names; `build` reads its entries."""
    return node


@dataclass(frozen=True)
class Limits:
    requests_per_second: float = key(
        5.0,
        number(0.001, 10_000),
        "Most requests in a second, from 0.001 to 10000. Every request counts, sign-ins and "
        "retries included.",
    )
    burst: int = key(
        10, whole(1, 10_000), "Requests that may go at once after a quiet time, from 1 to 10000."
    )
    in_flight: int = key(
        8,
        whole(1, 1_000),
        "Requests open at the same time, from 1 to 1000. A quarter is kept for lists.",
    )


@dataclass(frozen=True)
class Sweep:
    every: timedelta = key(MISSING, duration("s"), "Time between two sweeps, at least 1s.")
    back: timedelta = key(
        MISSING, duration("m"), "How far before the last sweep it lists again, at least 1m."
    )


@dataclass(frozen=True)
class Poll:
    """Exactly one of `every` and `cron` is set; `start` is a look-back or an aware instant."""

    every: timedelta | None = key(
        30 * SECOND,
        duration("s"),
        "Time between two polls of a user, at least 1s. poller spreads users over it.",
    )
    cron: str | None = key(
        None,
        values.cron,
        'Instead of `every`: minute hour day month weekday (0 and 7 are Sunday), such as `"0 '
        '8,12,16 * * mon-fri"`.',
    )
    timezone: ZoneInfo = key(
        UTC_ZONE, values.zone, "The time zone of `cron`, daylight saving included."
    )
    start: timedelta | datetime = key(
        7 * DAY,
        values.start,
        "How far back the first poll of a user looks, at least 1s, or a time with offset, such as "
        "`2024-05-21T00:00:00Z`. Fixed when a user is first seen. An earlier one opens a gap that "
        "poller then lists; a later one changes nothing.",
    )
    overlap: timedelta = key(
        15 * MINUTE,
        duration("s"),
        "How far before the last listing a poll looks again, at least 1s and shorter than "
        "`max_window`. Raise it when the log says `late-arrivals`.",
    )
    max_window: timedelta = key(
        24 * HOUR, duration("m"), "Longest window that poller asks for at once, at least 1m."
    )
    sweep: Sweep = Sweep(every=HOUR, back=24 * HOUR)
    deep_sweep: Sweep = Sweep(every=24 * HOUR, back=7 * DAY)


@dataclass(frozen=True)
class Expect:
    """Warn if no fax arrives for `within`; with `during`, count only these office hours."""

    within: timedelta = key(
        MISSING,
        duration("s"),
        "Warn if nothing came for this long, at least 1s. Time of an outage counts once poller "
        "has caught up with it.",
    )
    during: During | None = key(
        None,
        nullable(values.during),
        'Only these hours count, such as `"mon-fri 08:00-18:00"`. null: all.',
    )
    timezone: ZoneInfo = key(UTC_ZONE, values.zone, "The time zone of `during`.")


@dataclass(frozen=True)
class Sent:
    """The archive of a user's sent faxes; `expect` warns if the user sends none."""

    archive: Archive = key(
        "none",
        choice(Archive),
        "What poller keeps of sent faxes: `none`, `metadata` (a sidecar alone) or `image` (the "
        "pages too).",
    )
    every: timedelta = key(
        15 * MINUTE, duration("s"), "Time between two lists of a user's sent faxes, at least 1s."
    )
    start: timedelta | datetime = key(
        7 * DAY,
        values.start,
        "How far back the first list of sent faxes looks, at least 1s; otherwise as `poll.start`.",
    )
    path: str = key(
        "{account}/{user}/sent/{completed:%Y/%m/%d}/{fax_id}",
        values.sent_path_template,
        "As `storage.path`, with `{completed:…}` in place of `{received:…}`.",
    )
    expect: Expect | None = key(
        None,
        Expect,
        "Warn if a user sends nothing for too long; its keys are those of `expect`. null: no "
        "warning.",
    )


@dataclass(frozen=True)
class Delete:
    """When to delete faxes at eFax, once they are proved to be stored here; None in `after`: never."""

    after: timedelta | None = key(
        None,
        nullable(duration("s")),
        "Delete a received fax at eFax this long after it was stored or received, whichever is "
        "later, at least 1s, once poller has read its copy again. `check` warns below 1h. null: "
        "never.",
    )
    max_per_day: int = key(
        500,
        whole(1, 100_000),
        "Most deletions of an account in any 24 hours, from 1 to 100000. Further faxes wait.",
    )
    taken: OfTaken = key(
        "keep",
        choice(OfTaken),
        "`keep`: a fax whose files were taken away stays at eFax. `delete`: that they were taken "
        "is proof enough, while their directory is still there.",
    )


@dataclass(frozen=True)
class Canary:
    """Test faxes to the user's own number, timed until they are stored."""

    every: timedelta = key(
        MISSING,
        duration("s"),
        "Time between two canaries, at least 1s. `check` warns below 1h, because eFax may charge for each.",
    )
    within: timedelta = key(
        30 * MINUTE,
        duration("s"),
        "The page is late if it is not stored after this time, at least 1s.",
    )


@dataclass(frozen=True)
class User:
    """`account` and `name` are labels; (app_id, user_id) is the identity."""

    account: str
    name: str
    app_id: str
    user_id: str = key(
        MISSING,
        values.identifier,
        "The User ID, in quotes. No two users of an account have the same.",
        needed='"…"',
    )
    poll: Poll = Poll()
    image_format: ImageFormat = key(
        "pdf",
        choice(ImageFormat),
        "`pdf` or `tiff`. The file is named after what eFax really sends.",
        at="image.format",
    )
    expect: Expect | None = key(
        None, Expect, "Warn about users who receive nothing for too long. null: no warning."
    )
    number: str | None = key(
        None,
        nullable(values.fax_number),
        "The user's own fax number, in quotes: 1 and ten digits; elsewhere `+` and digits. For "
        "`poller selftest`, `canary` and the web-hook. Never logged.",
    )
    mark_downloaded: bool = key(
        True,  # noqa: FBT003
        values.yes_or_no,
        "Fetching a fax marks it as downloaded at eFax. false: poller puts the mark back once the "
        "fax is stored, with one more request for each fax.",
        at="image.mark_downloaded",
    )
    sent: Sent = Sent()
    delete: Delete = Delete()
    canary: Canary | None = key(
        None,
        Canary,
        "Send a page to the user's own `number` on a schedule, and check that it is stored. "
        "null: none.",
    )

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
        MISSING,
        addresses.hook_path,
        "The path to which eFax posts this account's notices, such as `/efax/main`. No two "
        "accounts have the same.",
        needed="/efax/main",
    )
    secret: SecretRef = key(
        MISSING,
        addresses.secret,
        "The secret with which eFax signs the notices.",
        needed="{credential: efax-webhook}",
    )


@dataclass(frozen=True)
class Account:
    name: str
    app_id: str = key(
        MISSING,
        values.app_id,
        "The App ID, in quotes. No two accounts have the same.",
        needed='"12345"',
    )
    api_key: SecretRef = key(
        MISSING,
        addresses.secret,
        "The API key: where to find it (a secret).",
        needed="{credential: efax-api-key}",
    )
    users: tuple[User, ...] = key(
        MISSING,
        names,
        "One User ID (one fax number), under a name that you choose. Renaming it fetches nothing "
        "again.",
    )
    base_url: str = key(
        "https://api.securedocex.com",
        addresses.base_url,
        "Where the API is. https only, except to loopback.",
    )
    limits: Limits = Limits()
    proxy: str | None = key(
        None,
        nullable(addresses.proxy_url),
        "Such as `http://proxy.example:3128`. Never taken from the environment.",
    )
    ca_file: Path | None = key(
        None,
        nullable(addresses.path),
        "PEM file of a company's own certificate authority, in addition to the system's.",
        at="tls.ca_file",
    )
    webhook: AccountHook | None = key(
        None,
        AccountHook,
        "eFax's notices wake poller; needs `webhook` at the top level. null: no web-hook.",
    )

    @property
    def streams(self) -> list[tuple[User, Direction]]:
        """Return its streams to poll: each user's received faxes, then sent ones if archived."""
        return [(user, Direction.RECEIVED) for user in self.users] + [
            (user, Direction.SENT) for user in self.users if user.sent.archive != "none"
        ]


@dataclass(frozen=True)
class StorageConfig:
    """Faxes go to `directory`, or to the bucket at `url` if that is set."""

    directory: Path = key(
        Path("/var/lib/poller/faxes"), addresses.path, "Where the faxes go, unless `url` is set."
    )
    url: str | None = key(
        None,
        nullable(addresses.bucket_url),
        "Instead of `directory`: a bucket of an S3-compatible store, with a prefix if you like, such "
        "as `s3://faxes/poller`. See [faxes in a bucket](FILES.md#faxes-in-a-bucket).",
    )
    endpoint: str | None = key(
        None,
        nullable(addresses.endpoint),
        "Where the store of `url` is, such as `https://s3.example.com`; https only, except to "
        "loopback. null: AWS.",
    )
    region: str | None = key(
        None, nullable(addresses.region), "The bucket's region, such as `eu-central-1`."
    )
    access_key_id: SecretRef | None = key(
        None,
        nullable(addresses.secret),
        "The ID of an access key to the bucket (a secret). null: what AWS's own tools use, such as "
        "the machine's role.",
    )
    secret_access_key: SecretRef | None = key(
        None, nullable(addresses.secret), "The access key itself (a secret)."
    )
    path: str = key(
        "{account}/{user}/{received:%Y/%m/%d}/{fax_id}",
        values.path_template,
        "A fax's name without extension. `{fax_id}` is needed; `received` is in UTC. Fixed when a "
        "fax is discovered.",
    )
    min_free: int = key(
        1 << 30,
        size,
        "If less is free, poller fetches nothing. With `url`, this is about `state.directory`, where "
        "faxes arrive first.",
    )
    consumers: Consumers = key(
        "read",
        choice(Consumers),
        "`read`: files 0640, directories 0750. `move`: directories 2770, so that members of the "
        "group may take files away.",
    )

    @property
    def secrets(self) -> tuple[SecretRef, ...]:
        found = (self.access_key_id, self.secret_access_key)
        return tuple(one for one in found if one is not None)


@dataclass(frozen=True)
class StateConfig:
    """The ledger is at `url`, by default `poller.db` in `directory`, next to lock, key and evidence."""

    directory: Path = key(
        Path("/var/lib/poller/state"),
        addresses.path,
        "Ledger, its copies, lock, key of the log, evidence. On a local disk, not inside "
        "`storage.directory`.",
    )
    url: str | None = key(
        None,
        nullable(addresses.state_url),
        "null: the ledger is `poller.db` in `state.directory`. Or `sqlite:////absolute/path.db`, "
        "on a local disk too; without `state.directory`, everything else is then beside that "
        "file. Or a PostgreSQL database: `postgresql://USER@HOST/DATABASE`, in libpq's spelling, "
        "without a password.",
    )
    password: SecretRef | None = key(
        None,
        nullable(addresses.secret),
        "The password of a PostgreSQL database: where to find it (a secret). null: libpq looks in "
        "`~/.pgpass`, or the server asks for none.",
    )


@dataclass(frozen=True)
class RetryConfig:
    """A fax that fails for `alarm_after` is reported; after `give_up_after` it is quarantined."""

    attempts: int = key(
        5, whole(1, 100), "Tries of a request in one attempt, the first included, from 1 to 100."
    )
    max_delay: timedelta = key(
        60 * SECOND, duration(), "Longest wait between two tries, at least 1ms."
    )
    alarm_after: timedelta = key(
        HOUR,
        duration("s"),
        "A fax that fails for longer is a problem in `status`, a log event and an alert; at least "
        "1s.",
    )
    give_up_after: timedelta = key(
        7 * DAY,
        duration("s"),
        "A fax that fails for this long is quarantined; at least 1s. Time with a suspended "
        "account or unusable storage does not count.",
    )


@dataclass(frozen=True)
class Heartbeat:
    url: str | None = key(
        None,
        nullable(addresses.heartbeat_url),
        "poller asks this URL with GET while all is well and no fax has failed for a day: a dead "
        "man's switch. null: none.",
    )
    every: timedelta = key(5 * MINUTE, duration("s"), "Time between two requests, at least 1s.")
    proxy: str | None = key(
        None,
        nullable(addresses.proxy_url),
        "A proxy for this URL alone. `check` warns if accounts have a proxy and the heartbeat has "
        "none.",
    )


@dataclass(frozen=True)
class LogConfig:
    level: LogLevel = key(
        "info",
        choice(LogLevel),
        "`debug`, `info`, `warning` or `error`: poller logs this and what is worse.",
    )
    format: LogFormat = key(
        "auto",
        choice(LogFormat),
        "`json`, `console`, or `auto`: console on a terminal, otherwise json.",
    )
    key: SecretRef | None = key(
        None,
        nullable(addresses.secret),
        "A secret of at least 32 characters, the same on each of several nodes: the log then has the "
        "same code for a fax number on all of them. null: each machine makes its own in "
        "`state.directory`.",
    )


@dataclass(frozen=True)
class HttpConfig:
    """`host` is None if the status server is off."""

    host: str | None = key(
        "127.0.0.1",
        nullable(addresses.listen(9410, "null")),
        "Address and port of the status page and the metrics. null turns them off.",
        at="listen",
        shown="127.0.0.1:9410",
    )
    port: int = 9410
    token: SecretRef | None = key(
        None,
        nullable(addresses.secret),
        "A secret; needed if `listen` is not loopback. Clients send it as bearer token, or as "
        "password with any user name.",
    )


@dataclass(frozen=True)
class HookTls:
    cert: Path = key(
        MISSING,
        addresses.path,
        "The certificate with its chain, PEM. A new one needs a restart.",
        needed="/path/of/chain.pem",
    )
    key: SecretRef = key(
        MISSING,
        addresses.pem_secret,
        "Its private key: a secret, PEM, without a password.",
        needed="{credential: webhook-key}",
    )


@dataclass(frozen=True)
class WebhookKeys:
    """The keys under `webhook`."""

    listen: tuple[str, int] = key(
        MISSING,
        addresses.listen(9411, "webhook: null"),
        "Where notices arrive, such as `127.0.0.1:9411` behind a proxy. Not the port of "
        "`http.listen`.",
        needed='"127.0.0.1:9411"',
    )
    tls: HookTls | None = key(
        None, HookTls, "The listener's own certificate. null: plain HTTP, on loopback only."
    )


@dataclass(frozen=True)
class WebhookConfig:
    """The listener for all web-hooks; without `tls` only on loopback, behind a proxy."""

    host: str
    port: int
    tls: HookTls | None = None


@dataclass(frozen=True)
class Config:
    accounts: tuple[Account, ...] = key(MISSING, names, "One App ID, under a name that you choose.")
    node: str | None = key(
        None,
        nullable(values.node_name),
        "What this machine is called in `poller nodes`, the log and the metrics, where several nodes "
        "share a PostgreSQL database. null: its host name.",
    )
    storage: StorageConfig = StorageConfig()
    state: StateConfig = StateConfig()
    retry: RetryConfig = RetryConfig()
    evidence_max: int = key(
        200 << 20,
        size,
        "How much poller keeps of answers that made no sense, in `evidence` in `state.directory`.",
        at="evidence.max",
    )
    heartbeat: Heartbeat = Heartbeat()
    log: LogConfig = LogConfig()
    http: HttpConfig = HttpConfig()
    webhook: WebhookConfig | None = key(
        None, WebhookKeys, "The listener for eFax's notices, one for all accounts. null: none."
    )
    drain: timedelta = key(
        30 * SECOND,
        duration(),
        "How long downloads under way may take to finish when poller stops, at least 1ms. Keep it "
        "shorter than `TimeoutStopSec` of the unit (90 s).",
    )
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
            *([self.log.key] if self.log.key is not None else []),
            *([self.state.password] if self.state.password is not None else []),
            *(hook.secret for hook in hooks if hook is not None),
            *([tls.key] if tls is not None else []),
            *self.storage.secrets,
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
        """Return the streams of all accounts."""
        return [stream for account in self.accounts for stream in account.streams]

    @property
    def state_directory(self) -> Path:
        return self.state.directory

    @property
    def state_url(self) -> str:
        return self.state.url or f"{addresses.SQLITE}{self.state.directory}/poller.db"
