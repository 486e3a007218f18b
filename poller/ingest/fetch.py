"""Fetch one fax: from a pending row to a stored one, or to a failed attempt that says why."""

import asyncio
import enum
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from poller import events, retry
from poller.client import Client, Timeouts
from poller.clock import Clock
from poller.config.model import User
from poller.documents import Document
from poller.efax.responses import listed_pages
from poller.errors import (
    ALONE,
    AccountSuspended,
    ApiError,
    BadAnswer,
    Evidence,
    LedgerUnavailable,
    NotChecked,
    NotYet,
    PollerError,
    RateLimited,
    Rejected,
    SignInDelayed,
    SignInRefused,
    StorageFull,
    StorageHung,
    StorageUnusable,
    TokenRefused,
    Unreachable,
)
from poller.events import Emit
from poller.evidence import EvidenceStore
from poller.ingest.gate import Gate
from poller.ledger import FaxRow, Ledger, State, jobs
from poller.metrics import Metrics
from poller.store import Draft, Identity, Origin, Storage, StoredFile, sidecar

_AGAIN_S = 2.0  # between two downloads of a document that came broken
_POSTPONED = timedelta(seconds=30)
_NO_FAULT_OF_IT = (
    AccountSuspended,
    SignInDelayed,
    SignInRefused,
    TokenRefused,
    RateLimited,
    NotChecked,
)


class Outcome(enum.Enum):
    """What became of one attempt.

    *Postponed* says nothing about the fax itself. *Withdrawn*: before its image was asked for, an
    operator dismissed it, made it due or removed its user.
    """

    STORED = enum.auto()
    NOT_YET = enum.auto()
    FAILED = enum.auto()
    QUARANTINED = enum.auto()
    POSTPONED = enum.auto()
    WITHDRAWN = enum.auto()


@dataclass(frozen=True)
class Workshop:
    """What fetching needs, the same for all accounts."""

    ledger: Ledger
    storage: Storage
    evidence: EvidenceStore
    metrics: Metrics
    emit: Emit
    gate: Gate
    clock: Clock
    random: Callable[[], float]
    give_up_after: timedelta
    timeouts: Timeouts = field(default_factory=Timeouts)


class Broken(PollerError):
    """It came whole over the wire but is not whole, or could not be checked; `problem` names how."""

    def __init__(self, problem: str) -> None:
        super().__init__(
            problem if _is_unchecked(problem) else f"the document is not whole: {problem}"
        )
        self.problem = problem


class _Withdrawn(PollerError):
    """The fax is no longer what it was when its row was read."""


class Fetcher:
    """Fetches the faxes of one account. `paused_s` says how long its give-up clock has stood still."""

    def __init__(
        self, shop: Workshop, client: Client, *, paused_s: Callable[[], Awaitable[float]]
    ) -> None:
        self._shop = shop
        self._client = client
        self._paused_s = paused_s
        self._drafts: dict[int, Draft] = {}
        self._carried_on: set[int] = set()  # without a download

    def is_arriving(self, fax: int) -> bool:
        """Whether the image of this fax has begun to come in; before that, nothing is lost by ending it."""
        draft = self._drafts.get(fax)
        return fax in self._carried_on or (draft is not None and draft.begun)

    async def fetch(self, fax: FaxRow, user: User) -> Outcome:
        """Bring `fax` to the disk or record why not; raises nothing but cancellation."""
        try:
            return await self._attempt(fax, user)
        except LedgerUnavailable as error:
            self._shop.gate.close(str(error))
            return Outcome.POSTPONED

    async def _attempt(self, fax: FaxRow, user: User) -> Outcome:
        try:
            return await self._fetch(fax, user)
        except LedgerUnavailable:
            raise
        except StorageFull as error:
            self._shop.gate.close(str(error))
            return await self._postpone(fax, error)
        except _NO_FAULT_OF_IT as error:
            return await self._postpone(fax, error)
        except StorageUnusable as error:
            if isinstance(error, StorageHung):
                self._shop.emit(events.Stalled("storage", *fax.names))
            return await self._storage_failed(fax, error)
        except _Withdrawn:
            return Outcome.WITHDRAWN
        except Exception as error:  # noqa: BLE001 - a bug met by one fax must not stop the others
            return await self._failed(fax, error)

    async def _fetch(self, fax: FaxRow, user: User) -> Outcome:
        shop = self._shop
        async with self._recorded_if_cancelled(fax):
            carried_on = await self._resume(fax)
        if carried_on is not None:
            await self._settle(fax, carried_on)
            return Outcome.STORED
        draft_of = shop.storage.draft(fax.path, replacing=fax.refetch)
        async with draft_of as draft, self._under_way(fax, draft):
            stored, problem = await self._download_with_evidence(fax, user, draft)
            await self._record(fax, stored, problem)
            await draft.finish()
        if problem is not None:
            is_unchecked = _is_unchecked(problem)
            shop.emit(events.FaxDamaged(*fax.names, stored.file, problem, is_unchecked))
        return Outcome.STORED

    async def _resume(self, fax: FaxRow) -> StoredFile | None:
        if not fax.refetch:
            return await self._shop.storage.resume(fax.path, _identity(fax))
        held = fax.stored_file
        stored_at = fax.stored_at or self._shop.clock.now()
        content = None if held is None else sidecar(held, _origin(fax), stored_at=stored_at)
        return await self._shop.storage.resume_again(
            fax.path, _identity(fax), held=held, content=content
        )

    async def _settle(self, fax: FaxRow, carried_on: StoredFile) -> None:
        self._carried_on.add(fax.id)
        try:
            await self._record(fax, carried_on)
            await self._shop.storage.finish(fax.path)
        finally:
            self._carried_on.discard(fax.id)

    @asynccontextmanager
    async def _under_way(self, fax: FaxRow, draft: Draft) -> AsyncIterator[None]:
        self._drafts[fax.id] = draft
        try:
            yield
        finally:
            del self._drafts[fax.id]

    async def _download_with_evidence(
        self, fax: FaxRow, user: User, draft: Draft
    ) -> tuple[StoredFile, str | None]:
        try:
            return await self._download(fax, user, draft)
        except (BadAnswer, Broken, Unreachable, Rejected) as error:
            await self._keep_evidence(fax, error, draft)
            raise

    async def _download(
        self, fax: FaxRow, user: User, draft: Draft
    ) -> tuple[StoredFile, str | None]:
        """Download and make visible; also says how the document is broken when it was so twice."""
        first = await self._download_once(fax, user, draft)
        if isinstance(first, StoredFile):
            return first, None
        if first != fax.last_problem:
            await self._keep_evidence(fax, Broken(first), draft)
            await self._shop.clock.sleep(_AGAIN_S)
            second = await self._download_once(fax, user, draft)
            if isinstance(second, StoredFile):
                return second, None
            if second != first:
                raise Broken(second)
        async with self._recorded_if_cancelled(fax):
            return await draft.deliver(self._sidecar_of(fax), damaged=True), first

    async def _download_once(self, fax: FaxRow, user: User, draft: Draft) -> StoredFile | str:
        """Download and, if it is whole, make visible; else say how the document is broken."""
        await self._client.fetch_image(
            user, fax.fax_id, draft, before=lambda: self._require_claimed(fax)
        )
        async with self._recorded_if_cancelled(fax):
            stored = await draft.deliver_if(
                lambda document: _problem(document, fax) is None, self._sidecar_of(fax)
            )
        if stored is not None:
            return stored
        problem = _problem(await draft.check(), fax)
        assert problem is not None  # or it would have been delivered
        return problem

    async def _require_claimed(self, fax: FaxRow) -> None:
        """The row was read before the fax waited for its turn."""
        if not await self._shop.ledger.read(jobs.is_open, fax.id, fax.fence):
            raise _Withdrawn("the fax is not to be fetched by what was read of it")

    def _sidecar_of(self, fax: FaxRow) -> Callable[[StoredFile], dict[str, Any]]:
        return lambda file: sidecar(file, _origin(fax), stored_at=self._shop.clock.now())

    @asynccontextmanager
    async def _recorded_if_cancelled(self, fax: FaxRow) -> AsyncIterator[None]:
        """A stop between the links and the row would let the next start deliver what was taken."""
        try:
            yield
        except asyncio.CancelledError:
            stored = self._shop.storage.delivered(fax.path)
            if stored is not None:
                with suppress(LedgerUnavailable, StorageUnusable):
                    await self._record(fax, stored)
                    await self._shop.storage.finish(fax.path)
            raise

    async def _record(self, fax: FaxRow, file: StoredFile, problem: str | None = None) -> None:
        """The write of an outcome outlives a cancellation."""
        now = self._shop.clock.now()
        await asyncio.shield(
            self._shop.ledger.write_together(jobs.stored, jobs.Stored(fax.id, now, file, problem))
        )
        self._shop.gate.passed()
        is_again = fax.refetch
        waited = None if is_again or fax.received_at is None else now - fax.received_at
        self._shop.emit(
            events.FaxStored(
                *fax.names,
                file=file.file,
                bytes=file.bytes,
                pages=file.pages,
                is_again=is_again,
                waited_s=None if waited is None else waited.total_seconds(),
            )
        )

    # -- what did not work --------------------------------------------------------------------

    async def _storage_failed(self, fax: FaxRow, error: StorageUnusable) -> Outcome:
        gate = self._shop.gate
        if not await gate.look_again():
            return Outcome.POSTPONED  # the gate is shut; it stays due
        if gate.half_open:  # nobody knows whose fault it is; another fax shall try next
            gate.close(str(error))
            return await self._postpone(fax, error)
        return await self._failed(fax, _in_its_directory(fax, error))

    async def _postpone(self, fax: FaxRow, error: PollerError) -> Outcome:
        """The account's fault, or this machine's, says nothing about the fax: it is due again soon."""
        await self._shop.ledger.write(jobs.postpone, fax.id, self._shop.clock.now() + _POSTPONED)
        self._shop.emit(events.FaxPostponed(*fax.names, error))
        return Outcome.POSTPONED

    async def _failed(self, fax: FaxRow, error: Exception) -> Outcome:
        shop = self._shop
        now = shop.clock.now()
        paused_s = await self._paused_s()
        quarantine = fax.state is State.QUARANTINED or (
            fax.first_failed_at is not None
            and retry.gives_up(
                now,
                fax.first_failed_at,
                timedelta(seconds=paused_s - fax.paused_s_at_first_failure),
                shop.give_up_after,
            )
        )
        pause = retry.next_attempt(fax.failures + 1, quarantined=quarantine, u=shop.random())
        recorded = await asyncio.shield(
            shop.ledger.write(
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
        if recorded.state is State.QUARANTINED and fax.state is not State.QUARANTINED:
            shop.emit(events.FaxQuarantined(*fax.names, error, fax.failures + 1))
            return Outcome.QUARANTINED
        is_news = fax.failures == 0 or fax.last_error != str(error)
        pause_s = round(pause.total_seconds())
        shop.emit(events.FaxRetry(*fax.names, error, fax.failures + 1, pause_s, is_news))
        return Outcome.NOT_YET if isinstance(error, NotYet) else Outcome.FAILED

    async def _keep_evidence(self, fax: FaxRow, error: PollerError, draft: Draft) -> None:
        await self._shop.evidence.keep(
            fax.app_id,
            fax.user_id,
            fax.fax_id,
            at=self._shop.clock.now(),
            error=str(error),
            evidence=error.evidence if isinstance(error, ApiError) else Evidence(),
            image=draft.path,
        )


def _is_unchecked(problem: str) -> bool:
    return problem.startswith("unchecked-")


def _problem(document: Document, fax: FaxRow) -> str | None:
    """Say how the document is not whole, or not what the list says of it."""
    listed = listed_pages(fax.listed)
    if document.problem is None and listed is not None and document.pages != listed:
        return f"pages-differ: it has {document.pages} pages, the list says {listed}"
    return document.problem


def _in_its_directory(fax: FaxRow, error: StorageUnusable) -> StorageUnusable:
    """Name the fax's directory: the storage as a whole can be used."""
    cause, directory = error.__cause__, fax.path.rpartition("/")[0]
    if not isinstance(cause, OSError) or not directory:
        return error
    what_to_do = "; check its owner and mode" if isinstance(cause, PermissionError) else ""
    return StorageUnusable(f"the directory {directory} {ALONE}: {cause.strerror}{what_to_do}")


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
    )
