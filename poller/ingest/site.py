"""An installation at work: ledger, storage and accounts, opened and closed together."""

import asyncio
import random as random_module
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from poller import config, log
from poller.clock import Clock, SystemClock
from poller.config.model import Account, Config
from poller.errors import StorageConflict, StorageUnusable
from poller.evidence import EvidenceStore
from poller.ingest.account import AccountAtWork
from poller.ingest.fetch import Workshop
from poller.ingest.gate import Gate
from poller.ingest.user import UserState, load_users
from poller.ledger import Ledger
from poller.metrics import Metrics
from poller.storage import Storage


@dataclass
class Site:
    """Everything that one process works with; `accounts` by App ID."""

    config: Config
    shop: Workshop
    environ: Mapping[str, str]
    accounts: dict[str, AccountAtWork] = field(default_factory=dict)

    @property
    def states(self) -> list[UserState]:
        return [state for account in self.accounts.values() for state in account.states.values()]

    async def add_account(self, account: Account) -> AccountAtWork:
        """Open an account; raises ConfigError when its secret, CannotStart when its CA file cannot be had."""
        secret = config.read_secret(account.api_key, self.environ)
        log.register_secret(secret)
        at_work = AccountAtWork(
            account,
            self.shop,
            self.config.retry,
            self.config.storage.path,
            secret=secret,
        )
        await at_work.open()
        # What a process that was ended meanwhile had left there holds no longer.
        await self.shop.ledger.set_suspended(account.app_id, account.name, None, None)
        self.accounts[account.app_id] = at_work
        return at_work

    async def close_account(self, app_id: str) -> None:
        """End an account's work as the end of the service would."""
        account = self.accounts.pop(app_id)
        await account.workers.drain(self.config.drain.total_seconds())
        await account.close()

    async def sync_users(self) -> None:
        """Bring the ledger's users and the states in line with the configuration."""
        users = [user for account in self.config.accounts for user in account.users]
        rows = await self.shop.ledger.sync_users(
            [(user.app_id, user.user_id, user.account, user.name) for user in users],
            self.shop.clock.now(),
        )
        new = []
        for user, row in zip(users, rows, strict=True):
            state = self.accounts[user.app_id].states.get(row.id)
            if state is None:
                new.append((user, row))
            else:
                state.user = user
        for state in await load_users(self.shop.ledger, new):
            self.accounts[state.user.app_id].states[state.id] = state
        configured = {row.id for row in rows}
        for account in self.accounts.values():
            self._forget(account, configured)

    def _forget(self, account: AccountAtWork, keep: set[int]) -> None:
        for gone in set(account.states) - keep:
            user = account.states.pop(gone).user
            self.shop.metrics.forget(user.account, user.name)
        account.client.suspension.user_count = len(account.states)

    async def drain(self, timeout_s: float) -> None:
        """Let the downloads under way end for `timeout_s`, then cut them off."""
        await asyncio.gather(
            *(account.workers.drain(timeout_s) for account in self.accounts.values())
        )


@asynccontextmanager
async def open_site(
    settings: Config,
    environ: Mapping[str, str],
    *,
    metrics: Metrics,
    clock: Clock | None = None,
    random: Callable[[], float] = random_module.random,
) -> AsyncIterator[Site]:
    """Open ledger, storage and accounts; raises CannotStart (73) or ConfigError (78).

    The state lock must be held. Unusable storage is no error: the gate stays shut until it is back.
    """
    clock = clock or SystemClock()
    ledger = await Ledger.open(settings.state_url, monotonic=clock.monotonic)
    try:
        shop = await _workshop(settings, ledger, metrics, clock, random)
        site = Site(settings, shop, environ)
        try:
            for account in settings.accounts:
                await site.add_account(account)
            await site.sync_users()
            yield site
        finally:
            for account_at_work in site.accounts.values():
                await account_at_work.close()
            shop.storage.close()
    finally:
        await ledger.close()


async def _workshop(
    settings: Config,
    ledger: Ledger,
    metrics: Metrics,
    clock: Clock,
    random: Callable[[], float],
) -> Workshop:
    storage = Storage(settings.storage)
    known = await ledger.storage_id()
    storage_id = await storage.prepare(known)
    if known is None:
        await ledger.set_storage_id(storage_id)
    gate = Gate(storage, ledger, metrics, clock, storage_id=storage_id)
    shop = Workshop(
        ledger=ledger,
        storage=storage,
        evidence=EvidenceStore(settings.state_directory, settings.evidence_max),
        metrics=metrics,
        gate=gate,
        clock=clock,
        random=random,
        give_up_after=settings.retry.give_up_after,
    )
    if await gate.check():
        try:
            await tidy(shop)
        except (StorageUnusable, StorageConflict) as error:  # it went away just now
            gate.close(str(error))
    return shop


async def tidy(shop: Workshop) -> None:
    """Remove the dot-files that a killed poller left, but for hand-overs that can be carried on."""
    await shop.storage.tidy(
        await shop.ledger.recent_paths(), keep=set(await shop.ledger.pending_paths())
    )
