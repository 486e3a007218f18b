"""Build the frozen configuration from the merged tree: levels, and keys that must agree."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from poller.config import addresses, values
from poller.config.document import given_twice
from poller.config.keys import Settings, filled, is_unset, needed, read, tree
from poller.config.model import (
    Account,
    AccountHook,
    Canary,
    Config,
    Expect,
    HookTls,
    HttpConfig,
    StateConfig,
    User,
    WebhookConfig,
)
from poller.config.position import Node, Problems

T = TypeVar("T")
_USER = tree(User)
# Set for all, for an account or for a user: the nearest level wins, key by key.
_LEVELLED = {key: _USER[key] for key in ("poll", "image", "expect", "sent", "delete", "canary")}
_LEVELLED_FIELDS = (
    *("poll.", "image_format", "mark_downloaded", "expect", "sent.", "delete.", "canary"),
)
# Keys that these maps need from some level, each with an example.
_OF_SOME_LEVEL: dict[type, tuple[str, str]] = {
    Expect: ("within", "2d"),
    Canary: ("every", "24h"),
}
_ACCOUNT = tree(Account) | _LEVELLED
_TOP = _LEVELLED | tree(Config)


@dataclass(frozen=True)
class Outside:
    """Facts outside the text: a certificate's fault, a library, the real place of a path, the time."""

    certificate_problem: Callable[[Path], str | None]
    is_installed: Callable[[str], bool]
    real: Callable[[Path], Path]
    now: datetime


def merged(first: Node, second: Node, problems: Problems) -> Node:
    """Merge the maps of two files; report any other key that both give."""
    if not isinstance(first.value, dict) or not isinstance(second.value, dict):
        problems.add(second, given_twice(first))
        return first
    entries = dict(first.value)
    for key, node in second.value.items():
        entries[key] = merged(entries[key], node, problems) if key in entries else node
    return Node(first.source, first.line, first.key, entries)


class Builder:
    """Builds the configuration; use the result only if there are no `problems`."""

    def __init__(self, problems: Problems, outside: Outside) -> None:
        self._problems = problems
        self._outside = outside

    def config(self, root: Node, files: tuple[Path, ...]) -> Config:
        found = read(root, _TOP, self._problems)
        below = self._level(found, {})
        given = filled(Config, found) | {
            "accounts": self._accounts(root, below),
            "state": _state(found),
            "http": self._http(found),
            "webhook": self._webhook(found),
        }
        config = Config(files=files, **given)
        self._check_apart(root, found, config)
        self._check_bucket(found)
        if config.state.password is not None and not config.state_url.startswith(
            addresses.POSTGRESQL
        ):
            self._problems.add(
                found["state.password"].node, "needs state.url: postgresql://USER@HOST/DATABASE"
            )
        self._check_hooks(root, found)
        self._check_ports(found, config)
        return config

    def _webhook(self, found: Settings) -> WebhookConfig | None:
        if is_unset(found, "webhook"):
            return None
        tls = self._optional(HookTls, found, "webhook.tls")
        if tls is not None and (problem := self._outside.certificate_problem(tls.cert)):
            self._problems.add(found["webhook.tls.cert"].node, problem)
        at = found.get("webhook.listen")
        if at is None or at.wrong:
            return None
        host, port = at.value
        if is_unset(found, "webhook.tls") and not addresses.is_loopback(host):
            self._problems.add(
                at.node,
                "without tls it must be 127.0.0.1, behind a proxy that speaks https; or set "
                "webhook.tls",
            )
        return WebhookConfig(host, port, tls)

    def _check_hooks(self, root: Node, found: Settings) -> None:
        """Check that each path belongs to one account, and that there is a listener for it."""
        if self._problems.incomplete:
            return
        names = root.entry("accounts")
        accounts = names.value if names and isinstance(names.value, dict) else {}
        hooks = {
            name: hook
            for name, account in accounts.items()
            if (hook := account.entry("webhook")) and hook.value is not None
        }
        self._refuse_twins(hooks, "path", "give each account its own path")
        if is_unset(found, "webhook"):
            for hook in hooks.values():
                self._problems.add(
                    hook, 'needs the listener; write webhook: {listen: "127.0.0.1:9411"} at the top'
                )
        elif not hooks:
            self._problems.add(
                found["webhook"].node,
                "no account has a webhook; give one of them webhook: {path, secret}, or remove this",
            )

    def _check_ports(self, found: Settings, config: Config) -> None:
        hook, http = config.webhook, config.http
        if hook is not None and http.host is not None and 0 != hook.port == http.port:
            self._problems.add(
                found["webhook.listen"].node,
                "has the port of http.listen; give each listener its own port",
            )

    def _http(self, found: Settings) -> HttpConfig:
        given = filled(HttpConfig, found, "http.")
        if "host" in given:
            given["host"], given["port"] = given["host"] or (None, HttpConfig.port)
        http = HttpConfig(**given)
        reachable = http.host is not None and not addresses.is_loopback(http.host)
        if reachable and is_unset(found, "http.token"):
            self._problems.add(
                found["http.host"].node,
                "others can reach this address; set http.token, or listen on 127.0.0.1",
            )
        return http

    def _check_bucket(self, found: Settings) -> None:
        """Check that the keys of a bucket have one, and that it is the only storage."""
        url, pair = "storage.url", ("storage.access_key_id", "storage.secret_access_key")
        given = [key for key in (url, "storage.directory", *pair) if not is_unset(found, key)]
        if is_unset(found, url):
            for key in ("storage.endpoint", "storage.region", *pair):
                if not is_unset(found, key):
                    self._problems.add(
                        found[key].node, "is about a bucket; write url: s3://bucket beside it"
                    )
            return
        if "storage.directory" in given:
            self._problems.add(
                found[url].node,
                f"conflicts with 'directory' at {found['storage.directory'].node.where}; keep one of "
                "the two",
            )
        if len(lone := [key for key in pair if key in given]) == 1:
            other = next(key for key in pair if key not in given).partition(".")[2]
            self._problems.add(found[lone[0]].node, f"needs {other} beside it")
        if not self._outside.is_installed("boto3"):
            self._problems.add(
                found[url].node,
                "needs a package that is not installed: pip install 'poller[cluster]'",
            )

    def _check_apart(self, root: Node, found: Settings, config: Config) -> None:
        """Keep the ledger out of the storage directory, which other programs read."""
        if config.storage.url is not None:
            return
        faxes = self._outside.real(config.storage.directory)
        places: list[tuple[str, Path, tuple[str, ...]]] = [
            ("the state directory", config.state_directory, ("state.directory",))
        ]
        if config.state_url.startswith(addresses.SQLITE):
            ledger = Path(config.state_url.removeprefix(addresses.SQLITE)).parent
            places.insert(0, ("the ledger", ledger, ("state.url", "state.directory")))
        for what, directory, keys in places:
            real = self._outside.real(directory)
            if faxes == real or faxes in real.parents:
                written = [
                    found[key].node
                    for key in (*keys, "storage.directory")
                    if key in found and found[key].value
                ]
                self._problems.add(
                    written[0] if written else root,
                    f"{what} must not be inside storage.directory; give it another directory",
                )
                return

    # -- accounts and users ------------------------------------------------------------------------

    def _level(self, own: Settings, below: Settings) -> Settings:
        """Lay this level's settings over those below; return `below` itself if it sets none."""
        own = {key: given for key, given in own.items() if key.startswith(_LEVELLED_FIELDS)}
        if not own:
            return below
        every, cron = own.get("poll.every"), own.get("poll.cron")
        if every and cron:
            self._problems.add(
                cron.node, f"conflicts with 'every' at {every.node.where}; keep one of the two"
            )
        for start in (own.get("poll.start"), own.get("sent.start")):
            if start and isinstance(start.value, datetime) and start.value > self._outside.now:
                self._problems.add(
                    start.node,
                    "is in the future; write a time in the past, or a duration such as 7d",
                )
        gone = {"poll.every", "poll.cron"} if every or cron else set()
        for name in ("expect", "canary", "sent.expect"):
            if name in own and is_unset(own, name):
                gone |= {key for key in below if key.startswith(f"{name}.")}
        return {key: given for key, given in below.items() if key not in gone} | own

    def _of_user(self, found: Settings) -> dict[str, Any]:
        """Return a user's settings from all levels; report what is missing or contradictory."""
        given = filled(User, found)
        poll = given["poll"]
        if poll.cron is not None:
            given["poll"] = replace(poll, every=None)
        if poll.overlap >= poll.max_window:
            self._overlap_too_long(found)
        given["expect"] = self._optional(Expect, found, "expect")
        given["canary"] = self._optional(Canary, found, "canary")
        given["sent"] = replace(given["sent"], expect=self._optional(Expect, found, "sent.expect"))
        return given

    def _optional(self, model: type[T], found: Settings, name: str) -> T | None:
        """Return a map that may be null; None also if a key that it needs is wrong or missing."""
        if is_unset(found, name):
            return None
        key, example = _OF_SOME_LEVEL.get(model, ("", ""))
        if key and f"{name}.{key}" not in found:
            self._problems.missing(found[name].node, key, f"is missing; write {key}: {example}")
        given = filled(model, found, f"{name}.")
        return model(**given) if needed(model) <= given.keys() else None

    def _overlap_too_long(self, found: Settings) -> None:
        both = [found.get("poll.overlap"), found.get("poll.max_window")]
        if any(one.wrong for one in both if one):
            return
        overlap, longest = (
            f"at {one.node.where}" if one else f"by default {default}"
            for one, default in zip(both, ("15m", "24h"), strict=True)
        )
        nearest = max((one.node for one in both if one), key=lambda node: len(node.key))
        self._problems.add(
            nearest, f"overlap ({overlap}) must be shorter than max_window ({longest})"
        )

    def _accounts(self, root: Node, below: Settings) -> tuple[Account, ...]:
        entries = self._named(
            root, "accounts", "account", 'main: {app_id: "…", api_key: {…}, users: {…}}'
        )
        self._refuse_twins(entries, "app_id", "put the users of both into one account")
        accounts = []
        for name, node in entries.items():
            found = read(node, _ACCOUNT, self._problems)
            given = filled(Account, found) | {"name": name}
            ca_file = given.get("ca_file")
            if ca_file and (problem := self._outside.certificate_problem(ca_file)):
                self._problems.add(found["ca_file"].node, problem)
            levels = self._level(found, below)
            given["users"] = self._users(node, name, given.get("app_id", ""), levels)
            given["webhook"] = self._optional(AccountHook, found, "webhook")
            if {"app_id", "api_key"} <= given.keys():
                accounts.append(Account(**given))
        return tuple(accounts)

    def _users(
        self, account: Node, account_name: str, app_id: str, below: Settings
    ) -> tuple[User, ...]:
        entries = self._named(account, "users", "user", 'front-desk: {user_id: "…"}')
        self._refuse_twins(entries, "user_id", "a User ID belongs to one user: remove one of them")
        inherited: dict[str, Any] | None = None
        users = []
        for name, node in entries.items():
            found = read(node, _USER, self._problems)
            levels = self._level(found, below)
            if levels is below:  # shared by the thousands of users without settings
                given = inherited = inherited or self._of_user(below)
            else:
                given = self._of_user(levels)
            user_id, number = found.get("user_id"), found.get("number")
            if given["canary"] is not None and is_unset(found, "number"):
                self._problems.missing(
                    node, "number", 'is missing, and the canary needs it; write number: "1…"'
                )
            own = {
                "user_id": (user_id and user_id.value) or "",
                "number": number and number.value,
            }
            users.append(User(account_name, name, app_id, **given | own))
        return tuple(users)

    def _named(self, map_: Node, key: str, singular: str, example: str) -> dict[str, Node]:
        """Return the entries of a map of names; check the names, and that there is one at least."""
        node = map_.entry(key)
        if node is None or node.value in (None, {}):
            self._problems.missing(map_, key, f"has no {singular}; add one: {key}: {{{example}}}")
            return {}
        if not isinstance(node.value, dict):
            self._problems.add(node, f"must be a map of names, but is {values.kind_of(node.value)}")
            return {}
        for name, entry in node.value.items():
            if problem := values.name_problem(name):
                self._problems.add(entry, problem)
        return node.value

    def _refuse_twins(self, entries: dict[str, Node], key: str, why: str) -> None:
        """Refuse a second entry with the same identity: both would fetch the same faxes."""
        first: dict[str, Node] = {}
        for entry in entries.values():
            node = entry.entry(key)
            if node is None or not isinstance(node.value, str):
                continue
            if (same := first.setdefault(node.value, node)) is not node:
                self._problems.add(node, f"is the same as {same.key} at {same.where}; {why}")


def _state(found: Settings) -> StateConfig:
    """Build `state`: `directory` alone also holds the ledger; a file's `url` implies the directory."""
    given = filled(StateConfig, found, "state.")
    url = given.get("url") or ""
    if url.startswith(addresses.SQLITE) and "directory" not in given:
        given["directory"] = Path(url.removeprefix(addresses.SQLITE)).parent
    return StateConfig(**given)
