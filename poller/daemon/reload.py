"""Take a changed configuration without disturbing what is under way.

First everything that may fail, with nothing changed (`prepare`); then what cannot be taken back
(`carry_out`).
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter

from poller import config, log
from poller.client import tls_context
from poller.config.model import Account, Config, SecretRef
from poller.daemon.changes import Changes, changes, left_behind
from poller.ingest.account import AccountRunner
from poller.ingest.runtime import Runtime
from poller.ledger import StreamRow, streams
from poller.own_threads import in_own_thread

# What only a start can change: by the key path that operators write, where it is in `Config`.
_ONLY_AT_START: Mapping[str, Callable[[Config], object]] = {
    "storage": attrgetter("storage"),
    "state": attrgetter("state_directory", "state_url"),
    "retry": attrgetter("retry"),
    "evidence.max": attrgetter("evidence_max"),
    "heartbeat": attrgetter("heartbeat"),
    "log.format": attrgetter("log.format"),
    "http.listen": attrgetter("http.host", "http.port"),
    "http.token": attrgetter("http.token"),
    "webhook": attrgetter("webhook"),
}


@dataclass(frozen=True)
class Plan:
    """What becomes of each account, and what is new in `settings`.

    One that stays goes on with its connection, with changed limits, users or secret; `gone` are App
    IDs. What only a restart can change (`restart_for`) is in `settings` as it was.
    """

    settings: Config
    restart_for: tuple[str, ...]
    stay: tuple[Account, ...]
    replaced: tuple[Account, ...]
    new: tuple[Account, ...]
    gone: tuple[str, ...]
    changes: Changes


@dataclass(frozen=True)
class Prepared:
    """A plan with all that it takes: secrets by App ID, accounts opened, users in the ledger.

    `left_behind` are removed users of whom faxes wait, which nobody fetches any more.
    """

    plan: Plan
    secrets: Mapping[str, str] = field(repr=False)
    hook_secrets: Mapping[str, str] = field(repr=False)  # of the web-hooks, by App ID too
    opened: Sequence[AccountRunner]
    rows: Sequence[StreamRow]
    left_behind: Sequence[StreamRow]
    http_token: str | None = field(default=None, repr=False)  # None: as it was


def plan(old: Config, new: Config) -> Plan:
    """Work out what leads from one configuration to the other."""
    before = {account.app_id: account for account in old.accounts}
    common = [account for account in new.accounts if account.app_id in before]
    stay = tuple(one for one in common if _same_connection(before[one.app_id], one))
    return Plan(
        settings=_as_it_was(old, new),
        restart_for=tuple(key for key, of in _ONLY_AT_START.items() if of(new) != of(old)),
        stay=stay,
        replaced=tuple(account for account in common if account not in stay),
        new=tuple(account for account in new.accounts if account.app_id not in before),
        gone=tuple(before.keys() - {account.app_id for account in new.accounts}),
        changes=changes(old, new),
    )


def _as_it_was(old: Config, new: Config) -> Config:
    """Put what only a start can change back into the new configuration."""
    return replace(
        new,
        storage=old.storage,
        state=old.state,
        retry=old.retry,
        evidence_max=old.evidence_max,
        heartbeat=old.heartbeat,
        log=replace(new.log, format=old.log.format),
        http=old.http,
        webhook=old.webhook,
    )


async def prepare(runtime: Runtime, settings: Config) -> Prepared:
    """Do all that may fail; `carry_out` must follow at once.

    Raises with nothing changed: ConfigError when a secret, CannotStart when a CA file of the new
    configuration cannot be had, LedgerUnavailable when its users could not be recorded.
    """
    planned = plan(runtime.config, settings)
    # A share that hangs holds up neither polls nor downloads.
    secrets = await in_own_thread("secrets", lambda: _secrets(settings.accounts, runtime.environ))
    hook_secrets = await runtime.read_hook_secrets(settings)
    http_token = await in_own_thread(
        "secrets", lambda: _read_again(planned.settings.http.token, runtime.environ)
    )
    await in_own_thread("authorities", lambda: [tls_context(a) for a in settings.accounts])
    await runtime.services.ledger.check_writable()
    left = left_behind(
        runtime.config,
        settings,
        await runtime.services.ledger.read(streams.all_streams, include_removed=False),
    )
    opened: list[AccountRunner] = []
    try:
        for account in (*planned.replaced, *planned.new):
            one = await runtime.open_account(account, secrets[account.app_id])
            opened.append(one)
        rows = await runtime.record_streams(planned.settings)
    except BaseException:
        for one in opened:
            await one.close()
        raise
    return Prepared(planned, secrets, hook_secrets, opened, rows, left, http_token)


async def carry_out(
    runtime: Runtime,
    prepared: Prepared,
    *,
    close: Callable[[AccountRunner], Awaitable[None]],
    start: Callable[[AccountRunner], None],
) -> None:
    """Make the new configuration the runtime's.

    What this raises leaves the runtime with half of it: the process has to start anew.
    """
    planned = prepared.plan
    # Two accounts with one App ID would end each other's tokens: the old one is closed first.
    old = _swap(runtime, prepared)
    await asyncio.gather(*(close(account) for account in old))
    for account in planned.stay:
        runtime.accounts[account.app_id].take(account, prepared.secrets[account.app_id])
    await runtime.end_suspensions(but={account.app_id for account in planned.stay})
    await runtime.take_streams(prepared.rows)
    for one in old:
        runtime.services.metrics.forget_account(one.account.name)
    for one in prepared.opened:
        start(one)


def _swap(runtime: Runtime, prepared: Prepared) -> list[AccountRunner]:
    """Put the new accounts in the place of the old ones, which are returned: none is polled now."""
    planned = prepared.plan
    runtime.config = planned.settings
    runtime.hook_secrets = prepared.hook_secrets
    log.set_level(planned.settings.log.level)
    if prepared.http_token is not None:
        runtime.on_http_token(prepared.http_token)
    replaced = [account.app_id for account in planned.replaced]
    old = [runtime.accounts.pop(app_id) for app_id in (*replaced, *planned.gone)]
    runtime.accounts |= {one.account.app_id: one for one in prepared.opened}
    return old


def _secrets(accounts: Sequence[Account], environ: Mapping[str, str]) -> dict[str, str]:
    return {one.app_id: config.read_secret(one.api_key, environ) for one in accounts}


def _read_again(token: SecretRef | None, environ: Mapping[str, str]) -> str | None:
    """Give the token as it is now; a credential is systemd's copy of the start."""
    if token is None or token.kind == "credential":
        return None
    return config.read_secret(token, environ)


def _same_connection(old: Account, new: Account) -> bool:
    """Whether only limits, users or the secret can have changed."""
    return (old.name, old.base_url, old.proxy, old.ca_file) == (
        new.name,
        new.base_url,
        new.proxy,
        new.ca_file,
    )
