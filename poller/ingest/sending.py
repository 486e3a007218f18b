"""Send a fax once: from a waiting row to an accepted one, and on to its result.

The row says *sending* before the request goes out. Whatever happens then, even a kill, poller looks
for the fax at eFax and never sends it again.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import timedelta
from typing import Any

from poller import events, log, outbox
from poller.efax.outgoing import OutgoingDocument, OutgoingFax
from poller.efax.transmission import ERRORS, Transmission
from poller.errors import ApiError, LeaseLost, LedgerUnavailable, NoThread, PollerError, SendInDoubt
from poller.events import Event
from poller.ingest.account import AccountRunner
from poller.ingest.hang_timeout import cut_off_if_hung
from poller.ingest.runtime import Runtime
from poller.ingest.send_request import CANARY, SELFTEST, STALE, forget_documents, tidy_outbox
from poller.ingest.sent_look import SentLook
from poller.ingest.stream_state import StreamState
from poller.ledger import SendRow, SendState, sends
from poller.own_threads import in_own_thread
from poller.recognition import csid_of

IN_DOUBT_AFTER_S = 120.0
LOOK_EVERY_S = 5.0
_OFTEN_FOR = timedelta(minutes=5)
_PAUSE_SHARE = 10  # of the time that it has waited
_SELDOM_S = 600.0
_FOLLOWED_FOR = timedelta(days=1)
_DOUBTED_FOR = timedelta(days=1)  # eFax may list a transmission only when it is over
_DOUBTS_S = 600.0
_DOUBTS = -1  # the key of no row
_LOOK_AGAIN_S = 2.0
_AFTER_BUG_S = 30.0
_AT_ONCE = 2  # per account, as a fax may have 100 MB
_UNDER_WAY = (SendState.WAITING, SendState.SENDING, SendState.ACCEPTED)


class _NotOurs(PollerError):
    """The row is no longer ours to send."""


class _Gone(PollerError):
    """The user is no longer configured."""


class Sender:
    """Sends the faxes of one runtime. The service calls `run`; commands `send` and `follow` one fax."""

    def __init__(self, runtime: Runtime) -> None:
        services = runtime.services
        self._runtime = runtime
        self._ledger = services.ledger
        self._clock = services.clock
        self._emit = services.emit
        self._gate = services.gate
        self._state_directory = runtime.config.state_directory
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._posting: set[int] = set()
        self._left_until: dict[int, float] = {}  # rows that met a bug (monotonic)
        self._turns: dict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(_AT_ONCE))
        self._wake = asyncio.Event()
        self._is_left_over = True  # documents, or something in doubt
        self._stopping = False
        self._doubts_at = self._clock.monotonic()

    # -- all requests, in the service --------------------------------------------------------------

    def wake(self) -> None:
        """Note that there may be a new request."""
        self._wake.set()

    async def run(self) -> None:
        """Send what waits, look for what was lost, and follow what was accepted, until cancelled.

        If there is none of these, it looks at nothing until `wake`.
        """
        try:
            while True:
                self._wake.clear()
                is_open = True
                async with cut_off_if_hung("sending"):
                    is_open = await self._begin()
                if is_open or self._tasks or self._is_left_over:
                    await self._clock.sleep(_LOOK_AGAIN_S)
                else:
                    await self._wake.wait()
        finally:
            await self.drain(0)

    async def drain(self, timeout_s: float) -> None:
        """Start nothing more, let running requests finish for `timeout_s`, then cut them off."""
        self._stopping = True
        for send, task in self._tasks.items():
            if send not in self._posting:
                task.cancel()
        tasks = list(self._tasks.values())
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=timeout_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _begin(self) -> bool:
        """Start work on open requests that have none; return whether any is open."""
        if self._stopping:
            return True
        try:
            rows = await self._ledger.read(sends.unfinished)
        except LedgerUnavailable as error:
            self._gate.blame(error)
            return True
        now = self._clock.monotonic()
        self._left_until = {one: until for one, until in self._left_until.items() if until > now}
        for row in rows:
            is_new = row.id not in self._tasks and row.id not in self._left_until
            if row.state in _UNDER_WAY and is_new and self._has_user(row):
                self._start(row.id, self._bring_on(row))
        if now >= self._doubts_at and _DOUBTS not in self._tasks:
            self._doubts_at = now + _DOUBTS_S
            self._start(_DOUBTS, self._doubt())
        return bool(rows)

    def _start(self, key: int, work: Coroutine[Any, Any, None]) -> None:
        self._tasks[key] = task = asyncio.create_task(work, name=f"send {key}")
        task.add_done_callback(lambda _: self._tasks.pop(key))

    async def _doubt(self) -> None:
        """Look from time to time whether eFax lists what is in doubt, and remove leftover documents."""
        self._is_left_over = True
        is_kept = await tidy_outbox(self._ledger, self._state_directory, self._clock.now())
        with suppress(LedgerUnavailable):  # the gate reports it
            since = self._clock.now() - _DOUBTED_FOR
            rows = await self._ledger.read(sends.in_doubt_since, since)
            self._is_left_over = is_kept or bool(rows)
            for row in rows:
                with suppress(ApiError, _Gone):
                    account, state = self._whose(row)
                    look = SentLook(account.client, state.user, row)
                    if (fax_id := await look.find()) is not None:
                        await self._accepted(row, fax_id)

    async def _bring_on(self, row: SendRow) -> None:
        account = self._runtime.accounts[row.app_id]
        try:
            async with self._turns[row.app_id]:
                row = await self.send(row)
            await self.follow(row, waited_for=row.purpose == SELFTEST)
        except (_Gone, NoThread):
            pass  # it will be looked at again
        except LedgerUnavailable as error:
            self._gate.blame(error)
        except Exception as bug:  # noqa: BLE001 - a bug met by one fax must not stop the others
            self._left_until[row.id] = self._clock.monotonic() + _AFTER_BUG_S
            if self._runtime.accounts.get(row.app_id) is not account:
                return  # a reload has closed it meanwhile
            what = "An unexpected error ended the work on a fax to be sent."
            log.say(events.InternalError(what, bug, *row.names, row.fax_id))

    # -- one fax -----------------------------------------------------------------------------------

    async def send(self, row: SendRow) -> SendRow:
        """Send what waits, or look for what may have been sent; return the row afterwards.

        Raises LedgerUnavailable if the row could not be read, or marked before the request.
        """
        why = "poller was stopped before eFax answered"
        if row.state is SendState.WAITING:
            try:
                row = await self._post(row)
            except SendInDoubt as error:
                why = log.redact(str(error))
                row = await self._ledger.read(sends.one, row.id)
            finally:
                self._posting.discard(row.id)
        if row.state is SendState.SENDING:
            row = await self._look_for(row, why)
        return row

    async def follow(self, row: SendRow, *, waited_for: bool = True) -> SendRow:
        """Watch an accepted fax until it is final, for a day at most; return the row afterwards.

        The longer it waits the less often it asks, and only after received faxes unless
        `waited_for`.
        """
        look: tuple[AccountRunner, SentLook] | None = None
        while row.state is SendState.ACCEPTED and not self._stopping:
            look = self._look_at(row, look, waited_for=waited_for)
            found = await look[1].transmission()
            if found.is_final:
                return await self._final(row, found)
            if found.status is not None and found.status != row.status:
                row = await self._record(row, sends.under_way, found.status)
            waited = self._clock.now() - (row.accepted_at or row.asked_at)
            if waited > _FOLLOWED_FOR:
                why = f"eFax gave no final status for a day; the last was {found.status}"
                return await self._record(row, sends.left, why, self._clock.now())
            pause_s = waited.total_seconds() / _PAUSE_SHARE if waited > _OFTEN_FOR else 0.0
            await self._clock.sleep(min(max(pause_s, LOOK_EVERY_S), _SELDOM_S))
        return row

    async def _post(self, row: SendRow) -> SendRow:
        account, state = self._whose(row)
        now = self._clock.now()
        if now - row.asked_at > STALE:
            return await self._failed(row, "it waited for more than an hour")
        if row.late_at is not None and row.late_at <= now:
            return await self._failed(row, "it was late before poller could send it")
        try:
            outgoing = await self._outgoing(row)
        except (OSError, KeyError, ValueError) as error:
            return await self._failed(
                row, _why_unread(error, is_shared=self._runtime.keeper is not None)
            )
        began = None

        async def before() -> None:
            nonlocal began
            now = self._clock.now()
            ledger = account.services.ledger
            if self._stopping or not await ledger.write(sends.begin, row.id, began, now):
                raise _NotOurs("the fax must not be sent any more")
            began = now
            self._posting.add(row.id)

        try:
            taken = await account.client.send(state.user, outgoing, before=before)
        except _NotOurs:
            row = await self._ledger.read(sends.one, row.id)
            if row.state is SendState.FAILED:  # withdrawn
                await forget_documents(self._state_directory, row)
            return row
        except SendInDoubt:
            raise
        except ApiError as error:  # the client knows that eFax did not take it
            return await self._failed(row, str(error))
        return await self._accepted(row, taken[0].fax_id)

    async def _outgoing(self, row: SendRow) -> OutgoingFax:
        waiting = await in_own_thread(
            "outbox", lambda: outbox.documents(self._state_directory, row.transaction_id)
        )
        documents = tuple(
            OutgoingDocument("PDF" if one.format == "pdf" else "TIFF", one.content)
            for one in waiting
        )
        csid = None if row.code is None else csid_of(row.code)
        return OutgoingFax(row.transaction_id, row.destination, documents, csid)

    async def _look_for(self, row: SendRow, why: str) -> SendRow:
        """Look for a fax that may have been sent, every few seconds for two minutes."""
        until = self._clock.monotonic() + IN_DOUBT_AFTER_S
        look: tuple[AccountRunner, SentLook] | None = None
        while True:
            look = self._look_at(row, look, waited_for=row.purpose != CANARY)
            is_last = self._clock.monotonic() >= until
            try:
                fax_id = await look[1].find()
            except ApiError as error:
                why, fax_id = log.redact(str(error)), None
            if fax_id is not None:
                return await self._accepted(row, fax_id)
            if is_last:
                break
            await self._clock.sleep(LOOK_EVERY_S)
        row = await self._record(row, sends.in_doubt, why, self._clock.now())
        self._is_left_over = True
        await forget_documents(self._state_directory, row)
        self._emit(events.SendLost(*_about(row), reason=why))
        return row

    # -- how it ends -------------------------------------------------------------------------------

    async def _accepted(self, row: SendRow, fax_id: str) -> SendRow:
        row = await self._record(row, sends.accepted, fax_id, self._clock.now())
        await forget_documents(self._state_directory, row)
        self._emit(_sent(row, is_transmitted=False))
        return row

    async def _failed(self, row: SendRow, why: str) -> SendRow:
        why = log.redact(why)
        row = await self._record(row, sends.failed, why, self._clock.now())
        await forget_documents(self._state_directory, row)
        self._emit(events.SendFailed(*_about(row), row.fax_id, why))
        return row

    async def _final(self, row: SendRow, found: Transmission) -> SendRow:
        now = self._clock.now()
        if found.is_complete:
            row = await self._record(row, sends.transmitted, found.status, now)
            self._emit(_sent(row, is_transmitted=True))
            return row
        why = log.redact(f"eFax says {found.status}{_code(found)}")
        row = await self._record(row, sends.failed, why, now, found.status)
        self._emit(events.SendFailed(*_about(row), row.fax_id, why))
        return row

    async def _record(self, row: SendRow, command: Callable[..., SendRow], *args: Any) -> SendRow:
        """Record an outcome; since it is known, try until the ledger takes it.

        Raises _Gone if another node has the account: it looks for the fax, too.
        """
        while True:
            ledger = self._runtime.ledger_of(row.app_id)
            if ledger is None:
                raise _Gone("another node has the account")
            try:
                return await asyncio.shield(ledger.write(command, row.id, *args))
            except LeaseLost as error:
                raise _Gone("another node has the account") from error
            except LedgerUnavailable as error:
                self._gate.blame(error)
                await self._clock.sleep(_LOOK_AGAIN_S)

    # -- whose request it is -----------------------------------------------------------------------

    def _has_user(self, row: SendRow) -> bool:
        account = self._runtime.accounts.get(row.app_id)
        return account is not None and row.stream in account.states

    def _look_at(
        self, row: SendRow, before: tuple[AccountRunner, SentLook] | None, *, waited_for: bool
    ) -> tuple[AccountRunner, SentLook]:
        """Keep what the previous look has learnt, unless a reload has changed the account."""
        account, state = self._whose(row)
        if before is not None and before[0] is account:
            return before
        return account, SentLook(account.client, state.user, row, waited_for=waited_for)

    def _whose(self, row: SendRow) -> tuple[AccountRunner, StreamState]:
        """Return the account and user as they are now: a reload may have changed them."""
        if not self._has_user(row):
            raise _Gone("the user is no longer configured")
        account = self._runtime.accounts[row.app_id]
        return account, account.states[row.stream]


def _about(row: SendRow) -> tuple[str, str, str, str, str]:
    return (*row.names, row.destination, row.transaction_id, row.purpose)


def _sent(row: SendRow, *, is_transmitted: bool) -> Event:
    account, user, *about = _about(row)
    number, transaction_id, purpose = about
    return events.FaxSent(
        account, user, row.fax_id or "", number, transaction_id, purpose, is_transmitted
    )


def _code(found: Transmission) -> str:
    if found.error_code is None:
        return ""
    meaning = ERRORS.get(found.error_code.upper())
    return f" ({found.error_code}{f': {meaning}' if meaning else ''})"


def _why_unread(error: Exception, *, is_shared: bool) -> str:
    """Say why the documents of a fax cannot be read; with several nodes, another may have them."""
    if is_shared and isinstance(error, FileNotFoundError):
        return (
            "its account has moved to this node, and its documents are on the node that was asked: send "
            "it again"
        )
    return f"poller cannot read its documents: {type(error).__name__}"
