"""Apply a changed configuration without disturbing work under way.

`prepare` does all that may fail and changes nothing; `carry_out` then does what cannot be undone.
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
from poller.ingest.runtime import Rows, Runtime
from poller.ledger import StreamRow, streams
from poller.own_threads import in_own_thread

# Only a restart changes these: the operators' key path, and the field in `Config`.
_ONLY_AT_START: Mapping[str, Callable[[Config], object]] = {
    "node": attrgetter("node"),
    "storage": attrgetter("storage"),
    "state": attrgetter("state_directory", "state_url", "state.password"),
    "retry": attrgetter("retry"),
    "evidence.max": attrgetter("evidence_max"),
    "heartbeat": attrgetter("heartbeat"),
    "log.format": attrgetter("log.format"),
    "log.key": attrgetter("log.key"),
    "http.listen": attrgetter("http.host", "http.port"),
    "http.token": attrgetter("http.token"),
    "webhook": attrgetter("webhook"),
}


@dataclass(frozen=True)
class Plan:
    """What happens to each account, and the new `settings`.

    An account that stays keeps its connection, with new limits, users or secret; `gone` holds App
    IDs. `settings` keeps the old value of everything that needs a restart (`restart_for`).
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
    """A plan with all it needs: secrets by App ID, opened accounts, users in the ledger.

    `left_behind` are removed users whose waiting faxes poller no longer fetches.
    """

    plan: Plan
    secrets: Mapping[str, str] = field(repr=False)
    hook_secrets: Mapping[str, str] = field(repr=False)  # for web-hooks, also by App ID
    opened: Sequence[AccountRunner]
    rows: Rows
    left_behind: Sequence[StreamRow]
    http_token: str | None = field(default=None, repr=False)  # None: unchanged


def plan(old: Config, new: Config) -> Plan:
    """Return the plan that leads from one configuration to the other."""
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
    """Return the new configuration with the old values of what only a restart can change."""
    return replace(
        new,
        node=old.node,
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
    """Do all that may fail; call `carry_out` directly afterwards.

    Changes nothing if it raises: ConfigError for an unreadable secret, CannotStart for an unusable
    CA file, LedgerUnavailable if the users could not be recorded.
    """
    planned = plan(runtime.config, settings)
    # A hung share must not delay polls or downloads.
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
        for account in _opened_now(runtime, planned):
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
    """Give the runtime the new configuration.

    After an error the runtime has only half of it, and the process must restart.
    """
    planned = prepared.plan
    # Close the old account first: two with one App ID would end each other's tokens.
    old = _swap(runtime, prepared)
    await asyncio.gather(*(close(account) for account in old))
    for account in planned.stay:
        if account.app_id in runtime.accounts:  # another node may hold it
            runtime.accounts[account.app_id].take(account, prepared.secrets[account.app_id])
    await runtime.end_suspensions(but={account.app_id for account in planned.stay})
    await runtime.take_streams(prepared.rows)
    for one in old:
        runtime.services.metrics.forget_account(one.account.name)
    for one in prepared.opened:
        start(one)


def _opened_now(runtime: Runtime, planned: Plan) -> list[Account]:
    """Return the accounts to open now. With several nodes, each takes new ones when it is its turn."""
    if runtime.keeper is None:
        return [*planned.replaced, *planned.new]
    mine = runtime.accounts.keys() & runtime.keeper.held.keys()
    return [account for account in planned.replaced if account.app_id in mine]


def _swap(runtime: Runtime, prepared: Prepared) -> list[AccountRunner]:
    """Replace the old accounts by the new ones and return the old; no poll may run now."""
    planned = prepared.plan
    runtime.config = planned.settings
    runtime.hook_secrets = prepared.hook_secrets
    log.set_level(planned.settings.log.level)
    if prepared.http_token is not None:
        runtime.on_http_token(prepared.http_token)
    replaced = [account.app_id for account in planned.replaced]
    ended = [app_id for app_id in (*replaced, *planned.gone) if app_id in runtime.accounts]
    old = [runtime.accounts.pop(app_id) for app_id in ended]
    if runtime.keeper is not None:
        runtime.keeper.configured(planned.settings)
    runtime.accounts |= {one.account.app_id: one for one in prepared.opened}
    return old


def _secrets(accounts: Sequence[Account], environ: Mapping[str, str]) -> dict[str, str]:
    return {one.app_id: config.read_secret(one.api_key, environ) for one in accounts}


def _read_again(token: SecretRef | None, environ: Mapping[str, str]) -> str | None:
    """Return the present token, or None for a credential, which systemd copies only at the start."""
    if token is None or token.kind == "credential":
        return None
    return config.read_secret(token, environ)


def _same_connection(old: Account, new: Account) -> bool:
    """Return whether at most limits, users or the secret have changed."""
    return (old.name, old.base_url, old.proxy, old.ca_file) == (
        new.name,
        new.base_url,
        new.proxy,
        new.ca_file,
    )
