"""Take a changed configuration without disturbing what is under way."""

from collections.abc import Callable
from dataclasses import replace

from poller import config, log
from poller.client import tls_context
from poller.config.model import Account, Config
from poller.ingest.account import AccountAtWork
from poller.ingest.site import Site

_ONLY_AT_START = ("storage", "state_url", "retry", "evidence_max", "heartbeat", "http")


async def apply(
    site: Site, settings: Config, start_account: Callable[[AccountAtWork], None]
) -> list[str]:
    """Make `settings` the site's; returns the names of what only a restart can change.

    Raises with nothing changed: ConfigError when a secret, CannotStart when a CA file of the new
    configuration cannot be had, LedgerUnavailable when its users could not be recorded.
    """
    for account in settings.accounts:
        config.read_secret(account.api_key, site.environ)
        tls_context(account)
    await site.shop.ledger.check_writable()
    kept = {name: getattr(site.config, name) for name in _ONLY_AT_START}
    restart_for = [name for name in _ONLY_AT_START if getattr(settings, name) != kept[name]]
    site.config = replace(settings, **kept)
    log.set_level(settings.log.level)
    wanted = {account.app_id for account in settings.accounts}
    for app_id in set(site.accounts) - wanted:
        await site.close_account(app_id)
    for account in settings.accounts:
        await _take(site, account, start_account)
    await site.sync_users()
    return restart_for


async def _take(
    site: Site, account: Account, start_account: Callable[[AccountAtWork], None]
) -> None:
    running = site.accounts.get(account.app_id)
    if running is not None and _same_connection(running.account, account):
        running.take(account, config.read_secret(account.api_key, site.environ))
        return
    if running is not None:
        await site.close_account(account.app_id)
    start_account(await site.add_account(account))


def _same_connection(old: Account, new: Account) -> bool:
    """Whether only limits, users or the secret can have changed."""
    return (old.name, old.base_url, old.proxy, old.ca_file) == (
        new.name,
        new.base_url,
        new.proxy,
        new.ca_file,
    )
