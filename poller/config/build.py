"""The merged tree to the frozen configuration: the keys, their defaults, what must agree."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Literal

from poller.config import addresses, values
from poller.config.document import Node
from poller.config.model import (
    Account,
    Config,
    Expect,
    Heartbeat,
    HttpConfig,
    ImageFormat,
    Limits,
    LogConfig,
    Poll,
    RetryConfig,
    StorageConfig,
    Sweep,
    User,
)
from poller.config.report import Report, where
from poller.config.section import Section, also_at, overlaid
from poller.config.values import WrongValueError, choice, duration, integer, nullable, number, size

CONSUMERS: tuple[Literal["read", "move"], ...] = ("read", "move")
FORMATS: tuple[ImageFormat, ...] = ("pdf", "tiff")
LOG_FORMATS: tuple[Literal["auto", "json", "console"], ...] = ("auto", "json", "console")
LOG_LEVELS: tuple[Literal["debug", "info", "warning", "error"], ...] = (
    "debug",
    "info",
    "warning",
    "error",
)
STORAGE_DIRECTORY = Path("/var/lib/poller/faxes")
STATE_URL = Config.state_url
LEVELLED = ("poll", "image", "expect")


@dataclass(frozen=True)
class Outside:
    """What no text says: why a CA file is unusable, where a path really is, what time it is."""

    ca_problem: Callable[[Path], str | None]
    real: Callable[[Path], Path]
    now: datetime


def build(root: Node, report: Report, *, outside: Outside, files: tuple[Path, ...] = ()) -> Config:
    """Give the configuration; it is usable only when `report` has no problems."""
    with Section(root, report) as top:
        config = Config(
            accounts=_accounts(top, outside),
            storage=_storage(top),
            state_url=_state(top),
            retry=_retry(top),
            evidence_max=_evidence(top),
            heartbeat=_heartbeat(top),
            log=_log(top),
            http=_http(top),
            drain=top.get("drain", duration(), Config.drain),
            files=files,
        )
        _check_apart(top, config, outside)
        return config


def _state(top: Section) -> str:
    with top.sub("state") as section:
        return section.get("url", addresses.state_url, STATE_URL)


def _storage(top: Section) -> StorageConfig:
    with top.sub("storage") as section:
        return StorageConfig(
            directory=section.get("directory", addresses.path, STORAGE_DIRECTORY),
            path=section.get("path", values.path_template, StorageConfig.path),
            min_free=section.get("min_free", size, StorageConfig.min_free),
            consumers=section.get("consumers", choice(CONSUMERS), StorageConfig.consumers),
        )


def _check_apart(top: Section, config: Config, outside: Outside) -> None:
    """The storage is other programs' to read; the ledger must not lie where they look."""
    state, faxes = outside.real(config.state_directory), outside.real(config.storage.directory)
    if faxes == state or faxes in state.parents:
        top.wrong(
            top.place("state.url", "storage.directory"),
            "the ledger must not lie in storage.directory; give it a directory of its own",
        )


def _retry(top: Section) -> RetryConfig:
    with top.sub("retry") as section:
        return RetryConfig(
            attempts=section.get("attempts", integer(1, 100), RetryConfig.attempts),
            max_delay=section.get("max_delay", duration(), RetryConfig.max_delay),
            alarm_after=section.get("alarm_after", duration("1s"), RetryConfig.alarm_after),
            give_up_after=section.get("give_up_after", duration("1s"), RetryConfig.give_up_after),
        )


def _evidence(top: Section) -> int:
    with top.sub("evidence") as section:
        return section.get("max", size, Config.evidence_max)


def _heartbeat(top: Section) -> Heartbeat:
    with top.sub("heartbeat") as section:
        return Heartbeat(
            url=section.get("url", nullable(addresses.heartbeat_url), None),
            every=section.get("every", duration("1s"), Heartbeat.every),
            proxy=section.get("proxy", nullable(addresses.proxy_url), None),
        )


def _log(top: Section) -> LogConfig:
    with top.sub("log") as section:
        return LogConfig(
            level=section.get("level", choice(LOG_LEVELS), LogConfig.level),
            format=section.get("format", choice(LOG_FORMATS), LogConfig.format),
        )


def _http(top: Section) -> HttpConfig:
    with top.sub("http") as section:
        default: tuple[str, int] | None = ("127.0.0.1", HttpConfig.port)
        listen = section.get("listen", nullable(addresses.listen), default)
        token = section.get("token", nullable(addresses.secret), None)
        if listen is None:
            return HttpConfig(host=None, token=token)
        host, port = listen
        if section.sound and token is None and not addresses.is_loopback(host):
            section.wrong(
                section.place("listen"),
                "others can reach this address; set http.token, or listen on 127.0.0.1",
            )
        return HttpConfig(host, port, token)


# --- accounts and users ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Levelled:
    """What can be set for all, per account and per user."""

    poll: Poll
    image_format: ImageFormat
    expect: Expect | None


_Layers = dict[str, Node | None]


def _layers(section: Section, below: _Layers) -> _Layers:
    """Lay this level's settings over those below; give `below` itself when it sets none."""
    own = {key: section.find(key) for key in LEVELLED}
    if not any(own.values()):
        return below
    lower = dict(below)
    if own["poll"] is not None:
        _refuse_two_schedules(section, own["poll"])
        lower["poll"] = _without_replaced(lower["poll"], own["poll"])
    return {key: overlaid(lower[key], own[key]) for key in LEVELLED}


def _refuse_two_schedules(section: Section, poll: Node) -> None:
    if isinstance(poll.value, dict) and {"every", "cron"} <= poll.value.keys():
        every = where(poll.value["every"])
        section.wrong(poll.value["cron"], f"stands beside 'every' at {every}; keep one of the two")


def _without_replaced(lower: Node | None, upper: Node) -> Node | None:
    """`every` and `cron` replace each other across levels."""
    if lower is None or not isinstance(lower.value, dict) or not isinstance(upper.value, dict):
        return lower
    gone = {"every", "cron"} if {"every", "cron"} & upper.value.keys() else set()
    entries = {key: node for key, node in lower.value.items() if key not in gone}
    return Node(lower.source, lower.line, lower.key, entries)


def _levelled(layers: _Layers, report: Report, outside: Outside, *, final: bool) -> _Levelled:
    """Read the three; only `final` ones, which a user has, must be complete and agree."""
    poll, image, expect = (layers[key] for key in LEVELLED)
    return _Levelled(
        poll=Poll() if poll is None else _poll(poll, report, outside, final=final),
        image_format="pdf" if image is None else _image(image, report),
        expect=None if expect is None else _expect(expect, report, final=final),
    )


def _poll(node: Node, report: Report, outside: Outside, *, final: bool) -> Poll:
    with Section(node, report) as section:
        every = section.get("every", duration("1s"), Poll.every)
        cron = section.get("cron", values.cron, None)
        poll = Poll(
            every=None if cron else every,
            cron=cron,
            timezone=section.get("timezone", values.zone, Poll.timezone),
            start=section.get("start", values.start(outside.now), Poll.start),
            overlap=section.get("overlap", duration("1s"), Poll.overlap),
            max_window=section.get("max_window", duration("1m"), Poll.max_window),
            sweep=_sweep(section, "sweep", Poll.sweep),
            deep_sweep=_sweep(section, "deep_sweep", Poll.deep_sweep),
        )
        if final and section.sound and poll.overlap >= poll.max_window:
            nearest = max(section.place("overlap"), section.place("max_window"), key=_depth)
            section.wrong(
                nearest,
                f"overlap ({section.written('overlap', '15m')}) must be shorter than "
                f"max_window ({section.written('max_window', '24h')})",
            )
        return poll


def _depth(node: Node) -> int:
    return len(node.key)


def _sweep(poll: Section, key: str, default: Sweep) -> Sweep:
    with poll.sub(key) as section:
        return Sweep(
            every=section.get("every", duration("1s"), default.every),
            back=section.get("back", duration("1m"), default.back),
        )


def _image(node: Node, report: Report) -> ImageFormat:
    with Section(node, report) as section:
        return section.get("format", choice(FORMATS), "pdf")


def _expect(node: Node, report: Report, *, final: bool) -> Expect | None:
    if node.value is None:
        return None
    with Section(node, report) as section:
        during = section.get("during", nullable(values.during), None)
        zone = section.get("timezone", values.zone, Expect.timezone)
        if final:
            within = section.require("within", duration("1s"), "2d")
        else:
            within = section.get("within", duration("1s"), None)
        return None if within is None else Expect(within, during, zone)


def _named(section: Section, key: str, singular: str, example: str) -> dict[str, Node]:
    """Give the entries of a map of names, at least one, with the names checked."""
    node = section.find(key)
    if node is None or node.value in (None, {}):
        section.missing(key, f"has no {singular}; add one: {key}: {{{example}}}")
        return {}
    if not isinstance(node.value, dict):
        section.wrong(node, f"must be a map of names, and is {values.kind(node.value)}")
        return {}
    for name, entry in node.value.items():
        problem = values.name_problem(name)
        if problem is not None:
            section.wrong(entry, problem)
    return node.value


def _accounts(top: Section, outside: Outside) -> tuple[Account, ...]:
    layers = _layers(top, dict.fromkeys(LEVELLED))
    _levelled(layers, top.report, outside, final=False)
    entries = _named(top, "accounts", "account", 'main: {app_id: "…", api_key: {…}, users: {…}}')
    _refuse_twins(entries, "app_id", "put the users of both into one account", top)
    read = (_account(name, node, layers, top.report, outside) for name, node in entries.items())
    return tuple(account for account in read if account)


def _account(
    name: str, node: Node, below: _Layers, report: Report, outside: Outside
) -> Account | None:
    with Section(node, report) as section:
        app_id = section.require("app_id", values.app_id, '"12345"')
        api_key = section.require("api_key", addresses.secret, "{credential: efax-api-key}")
        account = partial(
            Account,
            name=name,
            base_url=section.get("base_url", addresses.base_url, Account.base_url),
            limits=_limits(section),
            proxy=section.get("proxy", nullable(addresses.proxy_url), None),
            ca_file=_ca_file(section, outside),
        )
        layers = _layers(section, below)
        _levelled(layers, report, outside, final=False)
        users = _users(section, name, app_id or "", layers, outside)
        if app_id is None or api_key is None:
            return None
        return account(app_id=app_id, api_key=api_key, users=users)


def _limits(account: Section) -> Limits:
    with account.sub("limits") as section:
        rate = number(0.001, 10_000)
        return Limits(
            requests_per_second=section.get(
                "requests_per_second", rate, Limits.requests_per_second
            ),
            burst=section.get("burst", integer(1, 10_000), Limits.burst),
            in_flight=section.get("in_flight", integer(1, 1_000), Limits.in_flight),
        )


def _ca_file(account: Section, outside: Outside) -> Path | None:
    def parser(node: Node) -> Path:
        file = addresses.path(node)
        problem = outside.ca_problem(file)
        if problem is not None:
            raise WrongValueError(problem)
        return file

    with account.sub("tls") as section:
        return section.get("ca_file", nullable(parser), None)


def _users(
    account: Section, name: str, app_id: str, below: _Layers, outside: Outside
) -> tuple[User, ...]:
    entries = _named(account, "users", "user", 'front-desk: {user_id: "…"}')
    _refuse_twins(entries, "user_id", "a User ID is one user: remove one of them", account)
    inherited: _Levelled | None = None
    users: list[User] = []
    for user, node in entries.items():
        with Section(node, account.report) as section:
            user_id = section.require("user_id", values.user_id, '"…"')
            layers = _layers(section, below)
            if (
                layers is below
            ):  # read once for the thousands of users that set nothing of their own
                inherited = own = inherited or _levelled(below, account.report, outside, final=True)
            else:
                own = _levelled(layers, account.report, outside, final=True)
            users.append(
                User(name, user, app_id, user_id or "", own.poll, own.image_format, own.expect)
            )
    return tuple(users)


def _refuse_twins(entries: dict[str, Node], key: str, why: str, section: Section) -> None:
    """Refuse a second entry with the same identity: both would fetch the same faxes."""
    first: dict[str, Node] = {}
    for entry in entries.values():
        node = entry.value.get(key) if isinstance(entry.value, dict) else None
        if node is None or not isinstance(node.value, str):
            continue
        if node.value in first:
            section.wrong(node, f"is also {also_at(first[node.value])}; {why}")
        first.setdefault(node.value, node)
