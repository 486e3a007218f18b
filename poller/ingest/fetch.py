"""Fetch one fax: from a pending row to a stored one, or to a failed attempt with its reason."""

import asyncio
import enum
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

from poller import events, retry
from poller.client import Client, Timeouts
from poller.clock import Clock
from poller.config.model import User
from poller.documents import Document, Staged, StoredFile
from poller.efax.responses import listed_as_new, listed_pages
from poller.errors import (
    ALONE,
    OF_THE_ACCOUNT,
    ApiError,
    BadAnswer,
    Evidence,
    LeaseLost,
    LedgerUnavailable,
    MovedAway,
    NotChecked,
    NotYet,
    PollerError,
    Rejected,
    StorageConflict,
    StorageFull,
    StorageHung,
    StorageUnusable,
    Unreachable,
)
from poller.events import Emit
from poller.evidence import EvidenceStore
from poller.ingest.completing import Completer
from poller.ingest.facts import Facts
from poller.ingest.gate import Gate
from poller.ledger import FaxRow, Ledger, State, faxes, jobs
from poller.metrics import Metrics, TicketOutcome
from poller.own_threads import looked_at
from poller.store import Draft, Identity, Origin, Storage, sidecar
from poller.stream import Direction

T = TypeVar("T")
_AGAIN_S = 2.0  # between two downloads of a broken document
_POSTPONED = timedelta(seconds=30)
_NO_FAULT_OF_IT = (*OF_THE_ACCOUNT, NotChecked)


class Outcome(enum.Enum):
    """The outcome of one attempt.

    *Postponed* says nothing about the fax itself. *Withdrawn*: since the row was read, an operator
    has dismissed the fax, made it due or removed its user.
    """

    STORED = enum.auto()
    NOT_YET = enum.auto()
    FAILED = enum.auto()
    QUARANTINED = enum.auto()
    POSTPONED = enum.auto()
    WITHDRAWN = enum.auto()


@dataclass(frozen=True)
class Services:
    """What fetching needs, shared by all accounts."""

    ledger: Ledger
    storage: Storage
    evidence: EvidenceStore
    metrics: Metrics
    emit: Emit
    gate: Gate
    clock: Clock
    random: Callable[[], float]
    give_up_after: timedelta
    facts: Facts
    timeouts: Timeouts = field(default_factory=Timeouts)
    may_ask: Callable[[], bool] = lambda: True  # for the client's Ports


class Broken(PollerError):
    """The document arrived completely but is not whole, or could not be checked; see `problem`."""

    def __init__(self, problem: str) -> None:
        super().__init__(
            problem if _is_unchecked(problem) else f"the document is not whole: {problem}"
        )
        self.problem = problem


class NotFinal(PollerError):
    """eFax has not finished the fax; look again after `pause`."""

    def __init__(self, pause: timedelta) -> None:
        super().__init__("eFax is still sending this fax")
        self.pause = pause


class _Withdrawn(PollerError):
    """The fax has changed since its row was read."""


class Fetcher:  # a method for each step of an attempt and for each way it ends
    """Fetches the faxes of one account. `paused_s` returns how long its give-up clock stood still."""

    def __init__(
        self, services: Services, client: Client, *, paused_s: Callable[[], Awaitable[float]]
    ) -> None:
        self._services = services
        self._client = client
        self._paused_s = paused_s
        self._completer = Completer(client, services.ledger, services.clock)
        self._drafts: dict[int, Draft] = {}
        self._writing: set[int] = set()  # faxes whose hand-over the ledger is recording
        self._to_mark: set[int] = set()  # faxes whose mark to restore at eFax once they are stored

    def is_arriving(self, fax: int) -> bool:
        """Whether this fax's image has begun to arrive; before that, an end loses nothing."""
        draft = self._drafts.get(fax)
        return draft is not None and draft.begun

    async def fetch(self, fax: FaxRow, user: User) -> Outcome:
        """Store `fax` on the disk or record why not; raises only cancellation."""
        if not user.mark_downloaded and not fax.refetch and listed_as_new(fax.listed):
            self._to_mark.add(fax.id)
        try:
            return await self._attempt(fax, user)
        except LedgerUnavailable as error:
            self._services.gate.blame(error)
            return Outcome.POSTPONED
        finally:
            self._to_mark.discard(fax.id)

    async def _attempt(self, fax: FaxRow, user: User) -> Outcome:
        try:
            return await self._fetch(fax, user)
        except LedgerUnavailable:
            raise
        except (StorageFull, *_NO_FAULT_OF_IT) as error:
            if isinstance(error, StorageFull):
                self._services.gate.close(error.told)
            return await self._postpone(fax, error)
        except StorageUnusable as error:
            if isinstance(error, StorageHung):
                self._services.emit(events.Stalled("storage", *fax.names))
            return await self._storage_failed(fax, error)
        except _Withdrawn:
            return Outcome.WITHDRAWN
        except NotFinal as error:
            await self._postpone(fax, error, error.pause)
            return Outcome.NOT_YET
        except Exception as error:  # noqa: BLE001 - a bug met by one fax must not stop the others
            return await self._failed(fax, error)

    async def _fetch(self, fax: FaxRow, user: User) -> Outcome:
        if (known := self._services.facts.stored(fax)) is not None:
            await self._services.ledger.write_together(jobs.stored, replace(known, fax=fax.id))
            return Outcome.STORED
        draft_of = self._services.storage.draft(fax.path, _identity(fax), replacing=fax.refetch)
        if fax.refetch:  # what is there will be put aside
            await self._services.ledger.confirm()
        async with draft_of as draft:
            with self._under_way(fax, draft):
                if not await self._to_its_end(fax, self._carry_on(fax, draft)):
                    fax = await self._completer.completed(fax, user)
                    await self._download_with_evidence(fax, user, draft)
                self._completer.forget(fax)
        return Outcome.STORED

    async def _carry_on(self, fax: FaxRow, draft: Draft) -> bool:
        """Finish what an earlier attempt left; return False if the fax must be fetched."""
        found = await self._left_before(fax, draft)
        if isinstance(found, Staged):
            await self._require_claimed(fax)
            await self._publish(fax, draft, found)
        elif found is not None:
            await self._record(fax, found, fax.staged.problem if fax.staged else None)
        return found is not None

    async def _left_before(self, fax: FaxRow, draft: Draft) -> StoredFile | Staged | None:
        make = self._sidecar_of(fax)
        if fax.staged is not None:
            found = await draft.settle(fax.staged, make)
            self._services.metrics.add("tickets_revoked", _became(found))
            if found is not None:
                return found
            await self._forget_ticket(fax)
        return await draft.resume(
            lambda document: _problem(document, fax) is None,
            self._sidecar_of(fax, stored_at=fax.stored_at if fax.refetch else None),
            held=fax.stored_file,
        )

    @contextmanager
    def _under_way(self, fax: FaxRow, draft: Draft) -> Iterator[None]:
        self._drafts[fax.id] = draft
        try:
            yield
        finally:
            del self._drafts[fax.id]

    async def _download_with_evidence(self, fax: FaxRow, user: User, draft: Draft) -> None:
        try:
            await self._download(fax, user, draft)
        except (BadAnswer, Broken, Unreachable, Rejected) as error:
            await self._keep_evidence(fax, error, draft)
            raise

    async def _download(self, fax: FaxRow, user: User, draft: Draft) -> None:
        """Download and store the fax; store it as damaged if it is broken in the same way twice."""
        first = await self._download_once(fax, user, draft)
        if first is None:
            return
        if first != fax.last_problem:
            await self._keep_evidence(fax, Broken(first), draft)
            await self._services.clock.sleep(_AGAIN_S)
            second = await self._download_once(fax, user, draft)
            if second is None:
                return
            if second != first:
                raise Broken(second)
        staging = draft.stage(self._sidecar_of(fax), first)
        await self._to_its_end(fax, self._hand_over(fax, draft, staging))

    async def _download_once(self, fax: FaxRow, user: User, draft: Draft) -> str | None:
        """Download the fax and store it if it is whole; otherwise return how it is broken."""
        await self._client.fetch_image(
            user,
            fax.fax_id,
            draft,
            before=lambda: self._require_claimed(fax),
            direction=fax.direction,
        )
        staging = draft.stage_if(
            lambda document: _problem(document, fax) is None, self._sidecar_of(fax)
        )
        if await self._to_its_end(fax, self._hand_over(fax, draft, staging)):
            return None
        problem = _problem(await draft.check(), fax)
        assert problem is not None  # otherwise it would be stored
        return problem

    async def _to_its_end(self, fax: FaxRow, work: Coroutine[Any, Any, T]) -> T:
        """Let running work in the store and its row finish, once, before a stop; not for the ledger alone.

        If the stop cuts it off after the ticket is in the row, the ticket settles it.
        """
        task = asyncio.create_task(work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(looked_at)
            if fax.id not in self._writing:
                try:
                    await asyncio.wait([task])
                finally:
                    task.cancel()
            raise

    @contextmanager
    def _written(self, fax: FaxRow) -> Iterator[None]:
        self._writing.add(fax.id)
        try:
            yield
        finally:
            self._writing.discard(fax.id)

    async def _hand_over(
        self, fax: FaxRow, draft: Draft, staging: Coroutine[Any, Any, Staged | None]
    ) -> bool:
        if fax.refetch:
            await self._confirm(staging)
        staged = await staging
        if staged is not None:
            await self._publish(fax, draft, staged)
        return staged is not None

    async def _confirm(self, staging: Coroutine[Any, Any, Any]) -> None:
        """Make sure that the account is ours before anything is put aside."""
        try:
            await self._services.ledger.confirm()
        except BaseException:
            staging.close()
            raise

    async def _publish(self, fax: FaxRow, draft: Draft, staged: Staged) -> None:
        """Record the ticket before anybody can take the fax away, then publish."""
        has_placed = draft.has_placed
        try:
            with self._written(fax):
                await self._services.ledger.write_together(jobs.staged, (fax.id, staged))
        except LeaseLost:
            if has_placed:
                await self._discard_if_late(fax, staged.file)
            raise
        self._services.facts.add(fax, staged)
        try:
            if not await draft.publish(staged):
                raise StorageConflict("the fax's sidecar vanished before it got its name")
        except MovedAway:
            await self._forget_ticket(fax)
            await draft.take_back(staged)
            raise
        await self._record(fax, staged.file, staged.problem)

    async def _discard_if_late(self, fax: FaxRow, file: StoredFile) -> None:
        """Remove the image that this run placed, if the fax had been delivered and taken before.

        A stored fax has no sidecar only if a consumer has taken it, after the image. So this image
        came later. In all other cases, the node that has the account may have adopted it.
        """
        row = await self._services.ledger.read(faxes.one, fax.id)
        if row.state is not State.STORED or row.staged is not None:
            return
        with suppress(StorageUnusable, StorageConflict):  # `verify` names what is left
            (seen,) = await self._services.storage.look([(file, _identity(fax))], thorough=True)
            if seen.is_placed:
                await self._services.storage.ask(lambda store: store.discard(file))

    async def _forget_ticket(self, fax: FaxRow) -> None:
        self._services.facts.forget(fax)
        await self._services.ledger.write_together(jobs.staged, (fax.id, None))

    async def _require_claimed(self, fax: FaxRow) -> None:
        """Check the job again: its row was read before the fax waited for its turn."""
        if not await self._services.ledger.read(jobs.is_open, fax.id, fax.fence):
            raise _Withdrawn("the fax's job has changed since it was read")

    def _sidecar_of(
        self, fax: FaxRow, stored_at: datetime | None = None
    ) -> Callable[[StoredFile | None], dict[str, Any]]:
        return lambda file: sidecar(
            file, _origin(fax), stored_at=stored_at or self._services.clock.now()
        )

    async def _record(self, fax: FaxRow, file: StoredFile, problem: str | None) -> None:
        now = self._services.clock.now()
        with self._written(fax):
            outcome = jobs.Stored(fax.id, now, file, problem, fax.id in self._to_mark)
            await self._services.ledger.write_together(jobs.stored, outcome)
        self._services.facts.add(fax, outcome)
        self._services.gate.passed()
        is_again = fax.refetch
        waited = None if is_again or fax.received_at is None else now - fax.received_at
        self._services.emit(
            events.FaxStored(
                *fax.names,
                file=file.file,
                bytes=file.bytes,
                pages=file.pages,
                is_again=is_again,
                waited_s=None if waited is None else waited.total_seconds(),
            )
        )
        if problem is not None:
            is_unchecked = _is_unchecked(problem)
            self._services.emit(events.FaxDamaged(*fax.names, file.file, problem, is_unchecked))

    # -- failures -----------------------------------------------------------------------------

    async def _storage_failed(self, fax: FaxRow, error: StorageUnusable) -> Outcome:
        gate = self._services.gate
        if not await gate.look_again():
            return Outcome.POSTPONED  # the gate is shut; the fax stays due
        if gate.half_open:  # the cause is unknown; let another fax try next
            gate.close(error.told)
            return await self._postpone(fax, error)
        return await self._failed(fax, _in_its_directory(fax, error))

    async def _postpone(
        self, fax: FaxRow, error: PollerError, pause: timedelta = _POSTPONED
    ) -> Outcome:
        """Make the fax due again soon: a fault of the account or this machine says nothing about it."""
        await self._services.ledger.write(
            jobs.postpone, fax.id, fax.fence, self._services.clock.now() + pause
        )
        self._services.emit(events.FaxPostponed(*fax.names, error))
        return Outcome.POSTPONED

    async def _failed(self, fax: FaxRow, error: Exception) -> Outcome:
        services = self._services
        now = services.clock.now()
        paused_s = await self._paused_s()
        quarantine = fax.state is State.QUARANTINED or self._gives_up(fax, now, paused_s)
        pause = retry.next_attempt(fax.failures + 1, quarantined=quarantine, u=services.random())
        recorded = await asyncio.shield(
            services.ledger.write(
                jobs.attempt_failed,
                fax.id,
                now,
                jobs.Failure(
                    fence=fax.fence,
                    error=str(error),
                    problem=error.problem if isinstance(error, Broken) else None,
                    next_attempt_at=now + pause,
                    paused_s=paused_s,
                    quarantine=quarantine,
                ),
            )
        )
        if recorded.fence != fax.fence:
            return Outcome.WITHDRAWN
        if recorded.state is State.QUARANTINED and fax.state is not State.QUARANTINED:
            services.emit(events.FaxQuarantined(*fax.names, error, fax.failures + 1))
            return Outcome.QUARANTINED
        is_news = fax.failures == 0 or fax.last_error != str(error)
        pause_s = round(pause.total_seconds())
        services.emit(events.FaxRetry(*fax.names, error, fax.failures + 1, pause_s, is_news))
        return Outcome.NOT_YET if isinstance(error, NotYet) else Outcome.FAILED

    def _gives_up(self, fax: FaxRow, now: datetime, paused_s: float) -> bool:
        return fax.first_failed_at is not None and retry.gives_up(
            now,
            fax.first_failed_at,
            timedelta(seconds=paused_s - fax.paused_s_at_first_failure),
            self._services.give_up_after,
        )

    async def _keep_evidence(self, fax: FaxRow, error: PollerError, draft: Draft) -> None:
        await self._services.evidence.keep(
            _identity(fax),
            at=self._services.clock.now(),
            error=str(error),
            evidence=error.evidence if isinstance(error, ApiError) else Evidence(),
            image=draft.reader,
        )


def _is_unchecked(problem: str) -> bool:
    return problem.startswith("unchecked-")


def _became(found: StoredFile | Staged | None) -> TicketOutcome:
    """Return what a revoked ticket had come to."""
    if found is None:
        return "void"
    return "placed" if isinstance(found, Staged) else "published"


def _problem(document: Document, fax: FaxRow) -> str | None:
    """Return how the document is not whole, or differs from its record.

    For a sent fax, the list may count only the pages that arrived.
    """
    listed = listed_pages(fax.listed) if fax.direction is Direction.RECEIVED else None
    if document.problem is None and listed is not None and document.pages != listed:
        return f"pages-differ: it has {document.pages} pages, the list says {listed}"
    return document.problem


def _in_its_directory(fax: FaxRow, error: StorageUnusable) -> StorageUnusable:
    """Name the fax's directory, as the storage as a whole is usable."""
    directory = fax.path.rpartition("/")[0]
    if error.fault is None or not directory:
        return error
    return StorageUnusable(f"the directory {directory} {ALONE}: {error.fault}")


def _identity(fax: FaxRow) -> Identity:
    return Identity(fax.app_id, fax.user_id, fax.fax_id)


def _origin(fax: FaxRow) -> Origin:
    return Origin(
        identity=_identity(fax),
        account=fax.account,
        user=fax.user,
        received_at=fax.received_at,
        first_seen_at=fax.first_seen_at,
        listed_pages=listed_pages(fax.listed),
        metadata=fax.listed,
        direction=fax.direction,
        canary=fax.canary,
    )
