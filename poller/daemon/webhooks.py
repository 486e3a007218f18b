"""Act on eFax's notices: poll the users they name, and record how well each web-hook works."""

import asyncio
from collections import defaultdict, deque
from collections.abc import Collection, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from poller import events, hooks, schedule
from poller.config.model import Account
from poller.daemon.planner import POLLS_PER_S
from poller.daemon.third_net import ThirdNet
from poller.daemon.wakeups import PollSoon, Wakeups
from poller.errors import LedgerUnavailable
from poller.hook_record import HookRecord
from poller.ingest.account import AccountRunner
from poller.ingest.hang_timeout import cut_off_if_hung
from poller.ingest.runtime import Runtime
from poller.ingest.stream_state import StreamState
from poller.ledger import FaxRow, accounts, faxes, forwarded
from poller.ledger.forwarded import ForwardedNotice
from poller.stream import Direction

_TICK_S = 5.0
_FORWARD_S = 1.0
_KEEP_S = 30.0  # between two writes of a record
_NOTICE_BEFORE = timedelta(minutes=5)  # a notice may be this much before its fax, by eFax's clock
_NOTICE_AFTER_S = 120.0  # a notice may come this long after we discover its fax
_MOST_LOOK_UPS = 1_000
_MOST_NOTICED = 1_000  # per user
_SAY_REFUSED_S = 3600.0


@dataclass
class _Hook:
    """One account's web-hook: its record as last saved, and the evidence whether it works."""

    runner: AccountRunner
    net: ThirdNet
    work: asyncio.Task[None] | None = None
    record: HookRecord = field(default_factory=HookRecord)
    kept: HookRecord | None = None  # None: not read yet
    keep_at: float = 0.0
    say_refused_at: float = 0.0
    is_heard: bool = False  # in this process, since the last reported refusal
    of_sent: bool | None = None  # poll all users, and sent faxes too if True; None: do not
    not_all_before: float = 0.0
    account: Account | None = None  # the account that `names` belongs to
    names: hooks.KnownNames = field(default_factory=lambda: hooks.KnownNames({}, {}))
    by_user: dict[str, list[StreamState]] = field(default_factory=dict)
    # When a notice named which User ID; "": it named none.
    noticed: dict[str, deque[datetime]] = field(
        default_factory=lambda: defaultdict(lambda: deque(maxlen=_MOST_NOTICED))
    )
    unproved: deque[tuple[float, str, datetime]] = field(default_factory=deque)

    @property
    def name(self) -> str:
        return self.runner.account.name

    def read(self, body: bytes) -> hooks.Named:
        if self.account is not self.runner.account:  # a reload has replaced it
            self.account = self.runner.account
            self.names = hooks.names_of(self.account.users)
        return hooks.read(body, self.names)

    def streams(self, user_id: str, *, of_sent: bool) -> list[StreamState]:
        """Return a user's streams; their number shows whether a reload added or removed some."""
        every = self.runner.streams
        if user_id not in self.by_user or sum(map(len, self.by_user.values())) != len(every):
            by_user = defaultdict(list)
            for stream in every:
                by_user[stream.user.user_id].append(stream)
            self.by_user = dict(by_user)
        return [one for one in self.by_user.get(user_id, ()) if of_sent or _is_received(one)]

    def was_announced(self, user_id: str, since: datetime) -> bool:
        """Return whether a notice since then may have announced this user's fax; each announces one."""
        for times in (self.noticed[user_id], self.noticed[""]):
            if (at := next((one for one in times if one >= since), None)) is not None:
                times.remove(at)
                return True
        return False


class Webhooks:  # more than 20 methods: notices, records, and what other nodes pass on
    """Takes the notices of all accounts between their `start` and `end`."""

    def __init__(self, runtime: Runtime, poll_soon: PollSoon) -> None:
        self._runtime = runtime
        self._ledger = runtime.services.ledger
        self._clock = runtime.services.clock
        self._emit = runtime.services.emit
        self._since = self._clock.now()
        self._poll_soon = poll_soon
        self._wakeups = Wakeups(self._poll, self._clock)
        self._hooks: dict[str, _Hook] = {}  # by App ID
        self._look_ups: deque[tuple[str, hooks.Named]] = deque()
        self._anything = asyncio.Event()
        self._to_forward: deque[ForwardedNotice] = deque()

    def loops(self) -> dict[str, Coroutine[Any, Any, None]]:
        """Return the background work by name; each runs until it is cancelled."""
        return {
            "wake-ups": self._wakeups.run(),
            "notices": self._look_up(),
            "web-hooks": self._keep_records(),
        } | ({"forwarded notices": self._forward()} if self._runtime.keeper else {})

    def start(self, runner: AccountRunner) -> None:
        """Start with an account, with or without a web-hook."""
        app_id = runner.account.app_id
        net = ThirdNet(runner, self._runtime.services)
        hook = self._hooks[app_id] = _Hook(runner, net)
        runner.on_discovered = lambda state, found: self._discovered(hook, state, found)
        self._follow(hook)

    async def end(self, runner: AccountRunner) -> None:
        """Stop with an account that is about to be closed."""
        hook = self._hooks.pop(runner.account.app_id, None)
        if hook is not None and hook.work is not None:
            hook.work.cancel()
            await asyncio.gather(hook.work, return_exceptions=True)

    async def stop(self) -> None:
        for hook in list(self._hooks.values()):
            await self._keep(hook, at_once=True)
            await self.end(hook.runner)

    # -- called by the listener -------------------------------------------------------------------

    async def find(self, path: str) -> tuple[str, str] | None:
        """Return App ID and secret of the account with this path."""
        for account in self._runtime.config.accounts:
            if account.webhook is not None and account.webhook.path == path:
                secret = self._runtime.hook_secrets.get(account.app_id)
                hook = self._hooks.get(account.app_id)
                if secret is None or (hook is None and self._runtime.keeper is None):
                    return None  # a reload is under way
                if hook is not None:
                    await self._know(hook)
                return account.app_id, secret
        return None

    def refused(self, app_id: str) -> None:
        """Record a request with a wrong signature."""
        hook = self._hooks.get(app_id)
        if hook is None:  # a reload has just taken it away
            return
        hook.record = hook.record.after_refused()
        now = self._clock.monotonic()
        if is_news := now >= hook.say_refused_at:
            hook.say_refused_at = now + _SAY_REFUSED_S
            hook.is_heard = False
        self._emit(events.WebhookRefused(hook.name, is_news))

    def taken(self, app_id: str, body: bytes) -> None:
        """Take a correctly signed notice; if it names no user, it may name a fax that we know."""
        hook = self._hooks.get(app_id)
        if hook is None:
            self._leave_to_holder(app_id, body)
            return
        hook.record = hook.record.after_notice(self._clock.now())
        named = hook.read(body)
        if named.user_ids or not named.words or len(self._look_ups) >= _MOST_LOOK_UPS:
            self._notice(hook, named.user_ids, of_sent=named.of_sent)
        else:
            self._look_ups.append((app_id, named))
            self._anything.set()

    def records(self) -> Mapping[str, HookRecord]:
        """Return the record of each account's web-hook, by App ID."""
        return {app_id: hook.record for app_id, hook in self._hooks.items() if _has_hook(hook)}

    # -- several nodes ----------------------------------------------------------------------------

    def _leave_to_holder(self, app_id: str, body: bytes) -> None:
        """Keep a notice for the node that works on its account; too many of them become one."""
        for account in self._runtime.config.accounts:
            if account.app_id == app_id and len(self._to_forward) < _MOST_LOOK_UPS:
                named = hooks.read(body, hooks.names_of(account.users))
                notice = ForwardedNotice(app_id, tuple(named.user_ids), named.of_sent)
                self._to_forward.append(notice)

    async def _forward(self) -> None:
        """Pass on notices of accounts that other nodes hold, and act on those that they pass on."""
        while True:
            async with cut_off_if_hung("forwarded notices"):
                with suppress(LedgerUnavailable):  # the gate reports it
                    await self.forward()
            await self._clock.sleep(_FORWARD_S)

    async def forward(self) -> None:
        """Pass on and act once; raises LedgerUnavailable."""
        while self._to_forward:
            await self._ledger.write(forwarded.announce, self._to_forward[0])
            self._to_forward.popleft()
        mine = list(self._hooks)
        for app_id in await self._ledger.read(forwarded.waiting, mine) if mine else ():
            if (hook := self._hooks.get(app_id)) is not None:
                await self._take_forwarded(hook, app_id)

    async def _take_forwarded(self, hook: _Hook, app_id: str) -> None:
        for notice in await hook.runner.services.ledger.write(forwarded.take, app_id):
            hook.record = hook.record.after_notice(self._clock.now())
            self._notice(hook, notice.user_ids, of_sent=notice.of_sent)

    # -- notices ----------------------------------------------------------------------------------

    async def _look_up(self) -> None:
        """Find the users by the fax ids in notices."""
        while True:
            self._anything.clear()
            while self._look_ups:
                async with cut_off_if_hung("notices"):
                    await self._look_up_next()
            await self._anything.wait()

    async def _look_up_next(self) -> None:
        app_id, named = self._look_ups.popleft()
        streams: set[int] = set()
        with suppress(LedgerUnavailable):
            streams = await self._ledger.read(faxes.streams_of, app_id, named.words)
        hook = self._hooks.get(app_id)
        if hook is not None:
            found = [one for one in hook.runner.streams if one.id in streams]
            of_sent = named.of_sent or not all(map(_is_received, found))
            self._notice(hook, {one.user.user_id for one in found}, of_sent=of_sent)

    def _notice(self, hook: _Hook, user_ids: Collection[str], *, of_sent: bool) -> None:
        """Poll these users soon, or all users of the account."""
        found = {one: hook.streams(one, of_sent=of_sent) for one in user_ids}
        named = {user_id: streams for user_id, streams in found.items() if streams}
        for streams in named.values():
            _hurry(hook, streams[0])  # also if a poll already waits for its turn
            self._wakeups.wake(streams)
        if not named:
            hook.of_sent = of_sent or bool(hook.of_sent)
            self._wake_all(hook)
        for user_id in named or [""]:
            hook.noticed[user_id].append(self._clock.now())
        anybody = islice(hook.runner.states.values(), 1)
        hook.net.ask_soon([streams[0] for streams in named.values()] or list(anybody))
        is_news, hook.is_heard = not hook.is_heard, True
        users = len(named or hook.runner.account.users)
        self._emit(
            events.WebhookReceived(hook.name, users, names_nobody=not named, is_news=is_news)
        )

    def _wake_all(self, hook: _Hook) -> None:
        """Poll all users of an account if a notice needs it, but only once in a flood of notices."""
        now = self._clock.monotonic()
        if hook.of_sent is None or now < hook.not_all_before:
            return
        streams = hook.runner.streams if hook.of_sent else list(hook.runner.states.values())
        hook.of_sent, hook.not_all_before = None, now + _TICK_S
        self._wakeups.wake(streams, _spread(hook.runner))

    def _poll(self, stream: StreamState, delay: timedelta) -> None:
        hook = self._hooks.get(stream.user.app_id)
        if hook is not None and not delay:
            _hurry(hook, stream)
        self._poll_soon(stream, delay)

    # -- does a web-hook work? --------------------------------------------------------------------

    def _discovered(self, hook: _Hook, state: StreamState, found: Sequence[FaxRow]) -> None:
        """Note new faxes that arrived since the start; a notice should announce each."""
        if not _has_hook(hook) or not _is_received(state):
            return
        judge_at = self._clock.monotonic() + _NOTICE_AFTER_S
        for fax in found:
            if fax.received_at is not None and fax.received_at >= self._since:
                hook.unproved.append((judge_at, state.user.user_id, fax.received_at))

    def _judge(self, hook: _Hook) -> None:
        """Note which faxes arrived without a notice, and which only the third net found."""
        if hook.net.found:
            hook.record = hook.record.after_found(hook.net.found)
            hook.net.found = 0
        while hook.unproved and hook.unproved[0][0] <= self._clock.monotonic():
            _, user_id, received_at = hook.unproved.popleft()
            if not hook.was_announced(user_id, received_at - _NOTICE_BEFORE):
                hook.record = hook.record.after_missing(self._clock.now())

    async def _keep_records(self) -> None:
        while True:
            for hook in list(self._hooks.values()):
                self._wake_all(hook)
                async with cut_off_if_hung("web-hooks", hook.name):
                    self._follow(hook)
                    await self._know(hook)
                    self._judge(hook)
                    await self._keep(hook)
            await self._clock.sleep(_TICK_S)

    def _follow(self, hook: _Hook) -> None:
        """Start or stop the third net after a reload added or removed a web-hook."""
        if _has_hook(hook) and hook.work is None:
            name = hook.name
            self._runtime.services.metrics.show_webhook(name)
            hook.work = asyncio.create_task(hook.net.run(), name=f"notifications {name}")
        elif not _has_hook(hook) and hook.work is not None:
            hook.work.cancel()
            hook.work = None

    async def _know(self, hook: _Hook) -> None:
        """Load the record that an earlier process saved."""
        if hook.kept is not None or not _has_hook(hook):
            return
        kept = HookRecord()
        with suppress(LedgerUnavailable):
            app_id = hook.runner.account.app_id
            kept = HookRecord.read(await self._ledger.read(accounts.hook, app_id))
        if hook.kept is None:  # no other task was faster
            hook.kept = hook.record = kept

    async def _keep(self, hook: _Hook, *, at_once: bool = False) -> None:
        now = self._clock.monotonic()
        is_early = now < hook.keep_at and not at_once
        if hook.kept is None or hook.record == hook.kept or is_early:
            return
        record = hook.record
        with suppress(LedgerUnavailable):  # save it next time
            app_id = hook.runner.account.app_id
            await hook.runner.services.ledger.write(accounts.keep_hook, app_id, record.text())
            hook.kept, hook.keep_at = record, now + _KEEP_S


def _has_hook(hook: _Hook) -> bool:
    return hook.runner.account.webhook is not None


def _hurry(hook: _Hook, stream: StreamState) -> None:
    """Let this stream's lists go first: at the limit, its turn may be minutes away."""
    if _is_received(stream):
        hook.runner.client.pacing.slots.hurry(stream.user.name)


def _is_received(stream: StreamState) -> bool:
    return stream.direction is Direction.RECEIVED


def _spread(runner: AccountRunner) -> timedelta:
    """Return the time that the limit needs to list all users of an account."""
    per_s = min(runner.account.limits.requests_per_second * schedule.LISTS_SHARE, POLLS_PER_S)
    return timedelta(seconds=len(runner.states) / per_s)
