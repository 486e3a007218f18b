"""An installation at work: ledger, storage and accounts, opened and closed together."""

import asyncio
import random as random_module
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from poller import cluster, config, events, log
from poller.client import Timeouts
from poller.clock import Clock, SystemClock
from poller.config.model import Account, Config
from poller.errors import LeaseLost, StorageConflict, StorageUnusable
from poller.evidence import EvidenceStore
from poller.ingest.account import AccountRunner
from poller.ingest.facts import Facts
from poller.ingest.fetch import Services
from poller.ingest.gate import Gate
from poller.ingest.lease_keeper import LeaseKeeper, report_of
from poller.ingest.stream_state import StreamState, load_streams
from poller.ledger import (
    Ledger,
    StreamRow,
    accounts,
    backend_of,
    clock_repair,
    fold,
    jobs,
    leases,
    meta,
    streams,
    takeover,
)
from poller.ledger.leases import Taken
from poller.ledger.takeover import Takeover
from poller.lock import StorageLock
from poller.metrics import Metrics
from poller.own_threads import in_own_thread
from poller.reporting import subscriber
from poller.store import Runs, Storage, storage_of

Rows = Mapping[str, Sequence[StreamRow]]  # by App ID, in the order of the account's streams
# As a share of `give_up_after`: a downtime this long could quarantine faxes that failed only once.
# Shorter ones count, or `poller once`, run a few times a day, would never give up.
_LONG_DOWN = 0.25
_FOUNDED_S = 0.2  # between two looks whether another node has founded the storage


@dataclass
class Runtime:  # more than 20 methods: accounts come, change and go
    """Everything that one process works with; `accounts` by App ID.

    `hook_secrets`, also by App ID, sign eFax's notices; a reload replaces them. `ledger_lost_at` is
    when this ledger replaced a lost one, until it is rebuilt. Where several nodes share the ledger,
    `accounts` are those that this node works on, with the leases of `keeper`.
    """

    config: Config
    services: Services
    environ: Mapping[str, str] = field(repr=False)
    accounts: dict[str, AccountRunner] = field(default_factory=dict)
    hook_secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    on_http_token: Callable[[str], None] = lambda _: None  # called when a reload has read it again
    ledger_lost_at: datetime | None = None
    rejected: str | None = None  # why the last reload rejected its configuration
    keeper: LeaseKeeper | None = None
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)  # held to change `accounts`

    @property
    def states(self) -> list[StreamState]:
        """The streams of received faxes."""
        return [state for account in self.accounts.values() for state in account.states.values()]

    @property
    def streams(self) -> list[StreamState]:
        """All streams."""
        return [state for account in self.accounts.values() for state in account.streams]

    async def add_account(self, account: Account) -> AccountRunner:
        """Open an account and start its work; raises like `open_account`, and ConfigError for its secret."""
        at_work = await self.open_account(account, await self._secret_of(account))
        self.accounts[account.app_id] = at_work
        return at_work

    async def take_account(self, account: Account, taken: Taken) -> AccountRunner:
        """Open an account whose lease was just taken, and begin its work; raises like `add_account`.

        Also raises LedgerUnavailable.
        """
        at_work = await self.open_account(account, await self._secret_of(account))
        if taken.quiet is not None:
            at_work.client.pacing.follow(taken.quiet.total_seconds())
        try:
            now = self.services.clock.now()
            idle_since = None if taken.idle is None else now - taken.idle
            begun = Takeover(account, now, idle_since, self._long_down, taken.was_working)
            rows = await at_work.services.ledger.write(takeover.begin, begun)
            await self._take_streams(at_work, account, rows)
            known = await at_work.services.ledger.read(accounts.one_account, account.app_id)
            if known is not None and known.suspended_until is not None:
                at_work.client.breaker.keep_suspended(known.suspended_until, known.reason or "")
            await self._tidy(account)
        except BaseException:
            await at_work.close()
            raise
        self.accounts[account.app_id] = at_work
        self._count_only_these()
        return at_work

    def ledger_of(self, app_id: str) -> Ledger | None:
        """Return the ledger for writes about an account; None if another node may have it."""
        if self.keeper is None:
            return self.services.ledger
        held = self.keeper.held.get(app_id)
        return None if held is None else self.services.ledger.under(held.lease)

    async def _secret_of(self, account: Account) -> str:
        return await in_own_thread(
            "secrets", lambda: config.read_secret(account.api_key, self.environ)
        )

    def _services_of(self, account: Account) -> Services:
        """Return the services for work on an account, which its lease limits if it needs one."""
        if self.keeper is None:
            return self.services
        if (held := self.keeper.held.get(account.app_id)) is None:
            raise LeaseLost(account.app_id)
        lease = held.lease
        emit = self.services.emit

        def emit_unless_lost(happened: events.Event) -> None:
            if not isinstance(getattr(happened, "error", None), LeaseLost):
                emit(happened)

        return replace(
            self.services,
            ledger=self.services.ledger.under(lease),
            emit=emit_unless_lost,
            may_ask=partial(self.keeper.may_ask, lease),
        )

    async def read_hook_secrets(self, settings: Config) -> Mapping[str, str]:
        """Read the secrets that sign these accounts' notices; raises ConfigError."""
        found = await in_own_thread(
            "secrets", lambda: config.hook_secrets(settings.accounts, self.environ)
        )
        for secret in found.values():
            log.register_secret(secret)
        return found

    async def open_account(self, account: Account, secret: str) -> AccountRunner:
        """Open an account that is not at work yet; raises CannotStart if its CA file is unusable."""
        log.register_secret(secret)
        at_work = AccountRunner(
            account,
            self._services_of(account),
            self.config.retry,
            self.config.storage.path,
            secret=secret,
        )
        await at_work.open()
        return at_work

    async def close_account(self, account: AccountRunner) -> None:
        """End an account's work as the end of the service would; its polls must have ended.

        Another node may have the account by now: then cut off what is under way.
        """
        if self.accounts.get(account.account.app_id) is account:
            del self.accounts[account.account.app_id]
        self._count_only_these()
        drain_s = self.config.drain.total_seconds()
        try:
            await account.drain(drain_s if account.services.may_ask() else 0)
        except asyncio.CancelledError:  # the service is ending and no longer waits
            await account.drain(0)
            raise
        finally:
            await account.close()

    async def end_suspensions(self, but: Collection[str] = ()) -> None:
        """Note that no other account is suspended: they start afresh or are gone."""
        for row in await self.services.ledger.read(accounts.all_accounts):
            if row.suspended_until is None or row.app_id in but:
                continue
            ledger = self.ledger_of(row.app_id)
            if ledger is not None:
                await ledger.write(accounts.set_suspended, row.app_id, row.account, None, None)

    async def begin(self, idle_since: datetime | None) -> Rows:
        """Record that the work on all accounts begins, in one transaction; return their rows."""
        now = self.services.clock.now()
        rows = await self._write_for_all(
            self.config.accounts,
            lambda one: (takeover.begin, Takeover(one, now, idle_since, self._long_down)),
        )
        for account in self.config.accounts:
            await self._tidy(account)
        return rows

    @property
    def _long_down(self) -> timedelta:
        return self.config.retry.give_up_after * _LONG_DOWN

    async def _tidy(self, account: Account) -> None:
        """Remove what a killed poller left hidden beside waiting faxes.

        Elsewhere it goes when the first fax arrives there.
        """
        gate, ledger = self.services.gate, self.services.ledger
        if not await gate.check():
            return
        try:
            paths = await ledger.read(jobs.pending_paths, account.app_id)
            await self.services.storage.tidy(paths)
        except (StorageUnusable, StorageConflict) as error:  # the storage has just gone away
            gate.close(error.told)

    async def record_streams(self, settings: Config) -> Rows:
        """Make the streams of `settings` the configured ones; return their rows by App ID.

        Where several nodes share the ledger, only of accounts that this node holds.
        """
        now = self.services.clock.now()
        return await self._write_for_all(
            settings.accounts, lambda one: (streams.sync_account, one, now)
        )

    async def _write_for_all(
        self, wanted: Sequence[Account], command: Callable[[Account], tuple[Any, ...]]
    ) -> Rows:
        """Ask for all writes at once, so that they share a transaction."""
        ledgers = {one.app_id: self.ledger_of(one.app_id) for one in wanted}
        writes = {
            one.app_id: ledger.write(*command(one))
            for one in wanted
            if (ledger := ledgers[one.app_id]) is not None
        }
        others: list[Coroutine[Any, Any, Any]] = []
        if self.keeper is None:
            others.append(self.services.ledger.write(streams.remove_others, list(ledgers)))
        rows = await asyncio.gather(*writes.values(), *others)
        return dict(zip(writes, rows, strict=False))

    async def take_streams(self, rows: Rows) -> None:
        """Make the states match the configured streams, which have these rows."""
        self._count_only_these()
        for account in self.config.accounts:
            if account.app_id in rows:
                at_work = self.accounts[account.app_id]
                await self._take_streams(at_work, account, rows[account.app_id])

    def _count_only_these(self) -> None:
        """Export metrics of the streams that this node works on, and forget others."""
        self.services.metrics.keep(
            frozenset(
                (*user.names, direction)
                for account in self.config.accounts
                if account.app_id in self.accounts
                for user, direction in account.streams
            )
        )

    async def _take_streams(
        self, at_work: AccountRunner, account: Account, rows: Sequence[StreamRow]
    ) -> None:
        new = []
        for (user, direction), row in zip(account.streams, rows, strict=True):
            state = at_work.lanes[direction].states.get(row.id)
            if state is None:
                new.append((user, row.id, direction))
            else:
                state.user = user.of(direction)
        for state in await load_streams(at_work.services.ledger, new):
            at_work.lanes[state.direction].states[state.id] = state
        configured = {row.id for row in rows}
        for lane in at_work.lanes.values():
            for gone in set(lane.states) - configured:
                del lane.states[gone]
        at_work.client.suspension.user_count = len(at_work.states)

    async def forget_far_future(self) -> None:
        """Make due what a clock that was ahead has postponed; raises LedgerUnavailable."""
        now = self.services.clock.now()
        for app_id, account in list(self.accounts.items()):
            await account.services.ledger.write(clock_repair.forget_far_future, app_id, now)
        await self.read_edits()

    async def read_edits(self) -> None:
        """Read what operators edit: failed slices, and requested backfills.

        A running poll uses it from then on.
        """
        began = {state.id: state.changes for state in self.streams}
        held = await self.services.ledger.write(fold.some, list(began))
        known = [state for state in self.streams if state.id in began]  # a reload may add streams
        for state in known:
            state.take(held[state.id], began[state.id])
        for state in known:
            await state.refresh()

    async def drain(self, timeout_s: float) -> None:
        """Let running downloads and deletions finish for `timeout_s`, then cut them off."""
        await asyncio.gather(*(account.drain(timeout_s) for account in self.accounts.values()))


@asynccontextmanager
async def open_runtime(  # tests replace four of them
    settings: Config,
    environ: Mapping[str, str],
    *,
    metrics: Metrics,
    clock: Clock | None = None,
    random: Callable[[], float] = random_module.random,
    timeouts: Timeouts | None = None,
    storage_lock: StorageLock | None = None,
    serves: bool = True,
) -> AsyncIterator[Runtime]:
    """Open ledger, storage and accounts; raises CannotStart (73), LockHeld (75), ConfigError (78).

    The caller holds the state's lock. This takes `storage_lock` when it knows which storage it is;
    the caller releases it. An unusable storage is not an error: the gate stays shut until it is
    back. `serves`: it is the service, and where several nodes share the ledger, it counts as one.
    """
    clock = clock or SystemClock()
    backend = backend_of(settings, environ)
    ledger = await Ledger.open(backend, monotonic=clock.monotonic, on_commit=metrics.committed)
    if ledger.is_shared:
        ledger.node = cluster.own_name(settings)
    runs = Runs(shared=ledger.is_shared)
    storage = storage_of(settings, environ, runs)
    try:
        if ledger.restored_from is not None:
            log.say(events.LedgerRestored(ledger.restored_from))
        idle_since = await ledger.read(meta.last_sign_of_life)
        services = await _services_of(
            settings, ledger, storage, metrics, clock, random, storage_lock
        )
        services = replace(services, timeouts=timeouts or services.timeouts)
        runtime = Runtime(settings, services, environ)
        runtime.ledger_lost_at = await ledger.read(meta.lost_at)
        try:
            runtime.hook_secrets = await runtime.read_hook_secrets(settings)
            if ledger.is_shared:
                report = report_of(settings, runs.own, serves=serves)
                runtime.keeper = LeaseKeeper(ledger, report)
                await runtime.keeper.begin([one.app_id for one in settings.accounts])
            else:
                await _take_all(runtime, idle_since)
            yield runtime
        finally:
            for account_at_work in runtime.accounts.values():
                await account_at_work.close()
            if runtime.keeper is not None:
                await runtime.keeper.end()
    finally:
        storage.close()
        await ledger.close()


async def _services_of(  # all that the runtime has so far
    settings: Config,
    ledger: Ledger,
    storage: Storage,
    metrics: Metrics,
    clock: Clock,
    random: Callable[[], float],
    storage_lock: StorageLock | None,
) -> Services:
    emit = subscriber(metrics)
    known = await _known_storage(ledger, storage.runs)
    is_lost = known is None and await _is_of_another_ledger(storage)
    storage_id = await storage.prepare(known)
    if storage_lock is not None and not ledger.is_shared:  # several nodes may share it
        storage_lock.take(storage_id)
    if known is None:
        await ledger.write(meta.begin, storage_id, clock.now() if is_lost else None)
    if is_lost:
        emit(events.LedgerLost(storage.where()))
    gate = Gate(storage, ledger, clock, storage_id=storage_id, emit=emit)
    return Services(
        ledger=ledger,
        storage=storage,
        evidence=EvidenceStore(
            settings.state_directory, settings.evidence_max, clean=log.for_evidence
        ),
        metrics=metrics,
        emit=emit,
        gate=gate,
        clock=clock,
        random=random,
        give_up_after=settings.retry.give_up_after,
        facts=Facts(clock.monotonic, is_on=ledger.is_shared),
    )


async def _known_storage(ledger: Ledger, runs: Runs) -> str | None:
    """Return the storage's id; None if this run is to pair it with the ledger, and no other node is."""
    while (known := await ledger.read(meta.value, meta.STORAGE_ID)) is None and ledger.is_shared:
        await ledger.aside(leases.add, [leases.FOUNDING])
        if await ledger.aside(leases.take, leases.FOUNDING, runs.own) is not None:
            return await ledger.read(meta.value, meta.STORAGE_ID)
        await asyncio.sleep(_FOUNDED_S)
    return known


async def _take_all(runtime: Runtime, idle_since: datetime | None) -> None:
    """Begin the work on all accounts; the state's lock keeps other runs out."""
    for account in runtime.config.accounts:
        await runtime.add_account(account)
    rows = await runtime.begin(idle_since)
    # What an interrupted process left there no longer holds.
    await runtime.end_suspensions()
    ledger = runtime.services.ledger
    await ledger.write(meta.set_started, runtime.services.clock.now())
    await runtime.take_streams(rows)


async def _is_of_another_ledger(storage: Storage) -> bool:
    try:
        marker, has_faxes = await storage.ask(lambda store: store.marked())
    except (StorageUnusable, StorageConflict):  # the next step that uses it reports this
        return False
    return marker is not None and has_faxes
