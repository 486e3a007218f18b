"""Run one account: its client, its users, its workers, and the events about them."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from poller import events, log
from poller.client import Client, Observer, Ports
from poller.config.model import Account, RetryConfig
from poller.efax.requests import Call
from poller.efax.responses import listed_pages
from poller.errors import ApiError, LedgerUnavailable, PollerError, Unforeseen, UserRefused
from poller.ingest.archive import Archiver
from poller.ingest.deleting import DELETED_WITHIN_S
from poller.ingest.empties import EmptyLists
from poller.ingest.errand_runner import ErrandRunner
from poller.ingest.fetch import Fetcher, Outcome, Services
from poller.ingest.poll import Poller
from poller.ingest.poll_events import failed, succeeded
from poller.ingest.poll_run import PollOutcome
from poller.ingest.reading import ListReader
from poller.ingest.sent_lists import EmptySentLists, SentReader
from poller.ingest.stream_state import StreamState
from poller.ingest.workers import FetchWorkers, images_at_once
from poller.ledger import FaxRow, Ledger, accounts
from poller.progress import RefusalLifted
from poller.sealing import SealedToken
from poller.slowness import Slowness
from poller.stream import Direction
from poller.suspension import EndsBy
from poller.topic import see

_FRESH = timedelta(minutes=10)
_POLLED: ContextVar[StreamState | None] = ContextVar("polled", default=None)


class ClientObserver(Observer):
    """Counts requests, emits changes, and passes suspensions on."""

    def __init__(self, owner: "AccountRunner") -> None:
        self._owner = owner
        self._metrics = owner.services.metrics
        self._emit = owner.services.emit
        self._name = owner.account.name
        self._suspended = False
        self._noted_until: datetime | None = None
        self._said_reasons: set[str] = set()  # of this suspension

    def request(self, call: Call, status: int | None, seconds: float) -> None:
        self._metrics.request(self._name, call.value, status, seconds)
        now = self._owner.services.clock.monotonic()
        self._owner.slowness.answered(call, status, seconds, now)
        state = _POLLED.get()
        if state is not None:
            state.progress_at = now
        if call is Call.TOKEN:  # all users wait for a sign-in, whoever makes it
            self._owner.progress_at = now

    def waited(self, seconds: float) -> None:
        self._metrics.add("rate_limit_wait_seconds", self._name, count=max(0.0, seconds))

    def pausing(self, seconds: float) -> None:
        """Note a chosen pause, so that it does not count as standing still."""
        self._owner.on_wait("it repeats a failed call then", seconds)
        state = _POLLED.get()
        if state is not None:
            state.progress_at = self._owner.services.clock.monotonic() + seconds

    def sign_in_waits(self, seconds: float) -> None:
        self._owner.on_wait("it may sign in again then", seconds)

    def rate_limited(self, pause_s: float, rate: float) -> None:
        self._owner.on_wait("eFax said 429, too many requests", pause_s)
        self._owner.tally["rate_limited"] += 1
        if rate < self._owner.account.limits.requests_per_second / 2:
            return  # it was already slow: an event said so, and each summary counts it
        self._emit(events.AccountSlowed(self._name, round(pause_s, 1), round(rate, 2)))

    def signed_in(self, reason: str, token: str) -> None:
        log.register_secret(token, slot=f"token:{self._name}")
        self._emit(events.TokenRefreshed(self._name, reason))

    def took_up(self, token: str) -> None:
        log.register_secret(token, slot=f"token:{self._name}")

    def token_war(self, count: int) -> None:
        self._emit(events.TokenWar(self._name, count))

    def token_war_over(self, count: int) -> None:
        self._emit(events.TokenWarOver(self._name, count))

    def suspended(self, until: datetime, reason: str) -> None:
        if not self._suspended:
            self._suspended = True
            self._emit_suspended(reason, is_news=True)
        self._noted_until, self._said_reasons = until, {reason}
        self._owner.on_suspended(until, reason)

    def _emit_suspended(self, reason: str, *, is_news: bool) -> None:
        told = see(reason, "account-suspended")
        self._emit(events.SuspensionBegan(self._name, told, is_news=is_news))

    def probed(self) -> None:
        """Note that a failed probe has postponed the next one; the client reports only the first."""
        until, reason = self._owner.client.suspension.until, self._owner.client.suspension.reason
        if until is None or until == self._noted_until:
            return
        self._noted_until = until
        # An outage whose reason alternates is not reported with each probe.
        if reason not in self._said_reasons:
            self._said_reasons.add(reason)
            self._emit_suspended(reason, is_news=False)
        self._owner.note_suspended(until, reason)

    def resumed(self, failures: int, reason: str) -> None:
        self._suspended = False
        self._emit(events.SuspensionEnded(self._name, reason, failures))
        self._owner.on_resumed()


@dataclass(frozen=True)
class Lane:
    """The work on one direction of an account's faxes: its streams, and what lists and fetches them."""

    states: dict[int, StreamState]
    poller: Poller
    workers: FetchWorkers


@dataclass
class AccountRunner:  # more than 20 methods: what an account reports, counts, keeps and opens
    """Polls and fetches for one account. Open it, poll its states, run its workers, close it."""

    account: Account
    services: Services
    retry: RetryConfig
    path_template: str
    secret: str = field(repr=False)
    on_suspension_change: Callable[["AccountRunner"], None] = lambda _: None
    on_fetched: Callable[[FaxRow, Outcome], None] = lambda _fax, _outcome: None
    on_discovered: Callable[[StreamState, Sequence[FaxRow]], None] = lambda _state, _faxes: None
    on_wait: Callable[[str, float], None] = lambda _why, _seconds: None
    states: dict[int, StreamState] = field(default_factory=dict)  # of received faxes
    tally: Counter[str] = field(default_factory=Counter)
    progress_at: float = 0.0
    slowness: Slowness = field(default_factory=Slowness)
    settling: asyncio.Task[PollerError | None] | None = None
    _refused: set[int] = field(default_factory=set)  # states, since eFax last accepted a user
    _notes: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        services = self.services
        self.progress_at = services.clock.monotonic()
        self.started = services.clock.now()  # or resumed
        self._observer = ClientObserver(self)
        self.client = Client(
            self.account,
            Ports(
                services.clock,
                services.random,
                SignIns(services.ledger),
                self._observer,
                services.timeouts,
                services.may_ask,
            ),
            api_key=lambda: self.secret,
            retry=self.retry,
        )
        self._empties = EmptyLists(
            self.client, services.ledger, services.clock, self.states, emit=services.emit
        )
        self.reader = reader = ListReader(
            self.client,
            services.ledger,
            services.clock,
            self._empties,
            path_template=lambda _: self.path_template,
            on_discovered=self._on_discovered,
        )
        self._empties.record = reader.record
        poller = Poller(self.client, reader, self._empties, services)
        self.workers = self._make_workers(Fetcher, services, self.states)
        self.lanes = {
            Direction.RECEIVED: Lane(self.states, poller, self.workers),
            Direction.SENT: self._sent_lane(),
        }
        memory, may_ask = self._empties.memory, self.workers.may_ask
        self.errands = ErrandRunner(services, self.client, memory, self.states, may_ask=may_ask)

    def _sent_lane(self) -> "Lane":
        """Archive sent faxes in the same way, after received ones."""
        services = replace(self.services, emit=events.of_sent(self.services.emit))
        empties = EmptySentLists(self.client, services.ledger, self._empties.memory)
        reader = SentReader(
            self.client,
            services.ledger,
            services.clock,
            empties,
            path_template=lambda user: user.sent.path,
            on_discovered=self._on_discovered,
        )
        states: dict[int, StreamState] = {}
        poller = Poller(self.client, reader, empties, services)
        return Lane(states, poller, self._make_workers(Archiver, services, states))

    def _make_workers(
        self, fetcher: type[Fetcher], services: Services, users: dict[int, StreamState]
    ) -> FetchWorkers:
        return FetchWorkers(
            self.account,
            services,
            fetcher(services, self.client, paused_s=self.paused_s),
            users=users,
            may_ask=lambda: not self.is_suspended,
            on_outcome=self._on_fetched,
        )

    @property
    def streams(self) -> list[StreamState]:
        return [state for lane in self.lanes.values() for state in lane.states.values()]

    def wake(self) -> None:
        """Note that something may be due now, or may be requested again."""
        for lane in self.lanes.values():
            lane.workers.wake()
        self.errands.wake()

    async def drain(self, timeout_s: float) -> None:
        """Let running downloads and deletions finish for `timeout_s`, then cut them off."""
        workers = (lane.workers.drain(timeout_s) for lane in self.lanes.values())
        await asyncio.gather(*workers, self.errands.drain(timeout_s))

    @property
    def is_suspended(self) -> bool:
        return self.client.suspension.until is not None

    async def poll(self, state: StreamState, *, until: float | None = None) -> PollOutcome:
        """Poll one stream; emit events about the outcome and count it."""
        async with _listing(state):
            outcome = await self.lanes[state.direction].poller.poll(state, until=until)
        if state.direction is Direction.RECEIVED:
            self._blame_account(state, outcome)
        self._observer.probed()
        self._report(state, outcome)
        return outcome

    def _blame_account(self, state: StreamState, outcome: PollOutcome) -> None:
        """Blame the account, not each user, if all are refused and none was accepted in between."""
        if outcome.error is None and outcome.skipped is None:
            self._refused.clear()
        if not isinstance(outcome.error, UserRefused) or self.is_suspended:
            return
        self._refused.add(state.id)
        if len(self.states) > 1 and self._refused >= self.states.keys():
            self.client.breaker.distrust(all_refused(outcome.error), EndsBy.LIST)

    async def broke_off(self, state: StreamState, bug: Exception) -> PollOutcome:
        """Treat a poll that a bug has ended as a failed one."""
        if not state.bug_alarm:
            state.bug_alarm = True
            state.telling(self.services.emit)(
                events.InternalError(
                    "An unexpected error ended a poll. poller repeats the poll on schedule, and reports "
                    "this again only after a poll has succeeded.",
                    bug,
                    *state.user.names,
                )
            )
        outcome = PollOutcome(error=Unforeseen(bug))
        await self.lanes[state.direction].poller.record(state, outcome)
        self._report(state, outcome)
        return outcome

    async def backfill(self, state: StreamState) -> PollOutcome:
        """List the old windows that an operator asked for, and nothing else."""
        async with _listing(state):
            outcome = await self.lanes[state.direction].poller.backfill(state)
        self._observer.probed()
        return outcome

    async def settle(self) -> PollerError | None:
        """Have the coverage of empty lists proved now; return why that was impossible, if so."""
        try:
            await self._empties.settle()
        except (ApiError, LedgerUnavailable) as error:
            return error
        return None

    def settle_in_time(self) -> bool:
        """Start the proof if it has waited long enough: the next poll may be hours away.

        Returns True if a proof starts now; the end of the account's work cuts it off.
        """
        is_under_way = self.settling is not None and not self.settling.done()
        if is_under_way or self.is_suspended or not self._empties.is_proof_due:
            return False
        self.settling = asyncio.create_task(self.settle(), name=f"settle {self.account.name}")
        return True

    async def open(self) -> None:
        """Open the session; raises CannotStart if the account's ca_file is unusable."""
        await self.client.__aenter__()

    def take(self, account: Account, secret: str) -> None:
        """Continue with changed limits or a changed secret; the next call signs in with it."""
        is_other = secret != self.secret
        self.account = account
        self.secret = secret
        log.register_secret(secret)
        if is_other:
            self.client.key_changed()
        self.client.set_limits(account.limits)
        for lane in self.lanes.values():
            lane.workers.at_once = images_at_once(account.limits.in_flight)

    async def close(self) -> None:
        if self.settling is not None:
            self.settling.cancel()
            await asyncio.gather(self.settling, return_exceptions=True)
        await asyncio.gather(*self._notes, return_exceptions=True)
        await self.client.__aexit__(None, None, None)

    # -- suspensions, which stop the give-up clock -------------------------------------------------

    async def paused_s(self) -> float:
        """Return for how many seconds the give-up clock of this account has stood still."""
        return await self.services.ledger.write(
            accounts.pause_clock,
            self.account.app_id,
            self.account.name,
            self.services.clock.now(),
            paused=self.is_suspended or not self.services.gate.usable,
        )

    def on_suspended(self, until: datetime, reason: str) -> None:
        self._empties.disbelieve()
        self.note_suspended(until, reason)
        self.note_pause()
        self.on_suspension_change(self)

    def note_suspended(self, until: datetime, reason: str) -> None:
        names = self.account.app_id, self.account.name
        self._note(
            self.services.ledger.write(accounts.set_suspended, *names, until, log.redact(reason))
        )

    def on_resumed(self) -> None:
        self.started = self.services.clock.now()
        self._note(
            self.services.ledger.write(
                accounts.set_suspended, self.account.app_id, self.account.name, None, None
            )
        )
        self.note_pause()
        for state in self.streams:
            state.sweep_now = True
            if state.is_refused:  # the account may have been the cause
                state.refusal = None
                self._note(state.record_soon(RefusalLifted()))
        self._refused.clear()
        self.wake()
        self.on_suspension_change(self)

    def note_pause(self) -> None:
        """Start or end the pause of the give-up clock, as suspension and gate require now."""

        async def note() -> None:
            await self.paused_s()

        self._note(note())

    def _note(self, writing: Coroutine[Any, Any, None]) -> None:
        async def write() -> None:
            try:
                await writing
            except LedgerUnavailable as error:
                self.services.gate.blame(error)

        task = asyncio.create_task(write(), name=f"note {self.account.name}")
        self._notes.add(task)
        task.add_done_callback(self._notes.discard)

    # -- counters and events --------------------------------------------------------------------

    def _on_discovered(self, state: StreamState, faxes: Sequence[FaxRow]) -> None:
        is_received = state.direction is Direction.RECEIVED
        if is_received:
            self._empties.memory.discovered(faxes)
        emit = state.telling(self.services.emit)
        now, last = self.services.clock.now(), state.progress.last_success_at
        steady = last is not None and now - last < _FRESH
        # nobody has looked inside a gap, so a fax found there says nothing about eFax
        gaps = state.progress.gaps
        self.tally["discovered"] += len(faxes)
        state.discovered += len(faxes)
        for fax in faxes:
            delay_s = None
            if fax.received_at is not None:
                in_gap = any(gap.start <= fax.received_at < gap.end for gap in gaps)
                if steady and not in_gap and fax.found_by != "backfill":
                    delay_s = (now - fax.received_at).total_seconds()
            pages = listed_pages(fax.listed)
            emit(events.FaxDiscovered(*fax.names, fax.received_at, pages, delay_s))
        self.lanes[state.direction].workers.wake(state.id)
        self.on_discovered(state, faxes)

    def _on_fetched(self, fax: FaxRow, outcome: Outcome) -> None:
        self.tally[outcome.name.lower()] += 1
        state = self.states.get(fax.stream)
        if outcome is Outcome.STORED and state is not None and not state.user.mark_downloaded:
            self.errands.wake()
        self.on_fetched(fax, outcome)

    def _report(self, state: StreamState, outcome: PollOutcome) -> None:
        if outcome.skipped is not None:
            self.services.metrics.poll(*state.user.names, "skipped", state.direction)
            return
        self.tally["polls" if outcome.error is None else "failed_polls"] += 1
        self.services.metrics.set_user(
            *state.names,
            watermark=state.progress.watermark,
            settled=state.progress.settled_until,
            last_success=state.progress.last_success_at,
            gap_s=sum((gap.length.total_seconds() for gap in state.progress.gaps), 0.0),
        )
        error = outcome.error
        for happened in (
            succeeded(state, len(outcome.discovered))
            if error is None
            else failed(state, error, is_suspended=self.is_suspended)
        ):
            state.telling(self.services.emit)(happened)


def all_refused(error: object) -> str:
    """Return the possible causes when eFax accepts the sign-in and refuses everything else."""
    return see(
        f"eFax refuses every user although it accepts App ID and key ({str(error).rstrip('.')}): "
        "a proxy may drop or change the headers user-id or Authorization, or these User IDs may "
        "not belong to the App ID",
        "account-refused",
    )


@contextmanager
def _progress_of(state: StreamState) -> Iterator[None]:
    """Count requests in this block as progress of the user's poll."""
    _POLLED.set(state)
    try:
        yield
    finally:
        _POLLED.set(None)


@asynccontextmanager
async def _listing(state: StreamState) -> AsyncIterator[None]:
    """Count requests in this block as progress of the user's poll; delete nothing meanwhile."""
    async with state.deletions.while_held(DELETED_WITHIN_S):
        with _progress_of(state):
            yield


class SignIns:
    """The client's SignInStore, kept in the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def load(self, app_id: str) -> tuple[float, datetime] | None:
        return await self._ledger.read(accounts.sign_in, app_id)

    async def save(self, app_id: str, level: float, at: datetime) -> None:
        await self._ledger.write(accounts.save_sign_in, app_id, level, at)

    async def token(self, app_id: str) -> SealedToken | None:
        return await self._ledger.read(accounts.token, app_id)

    async def save_token(self, app_id: str, kept: SealedToken) -> None:
        await self._ledger.write(accounts.save_token, app_id, kept)
