"""Bugs that the explorer must find; each is planted in the run by the name of its function.

They show that the checker can fail: plant one, break a call, and the checker must report something.
`without_rename` is not a bug: it is a file system on which links give names.
"""

import errno
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection

from poller.documents import Staged
from poller.ingest.fetch import Fetcher
from poller.ingest.reading import ListReader
from poller.ledger import faxes, jobs
from poller.ledger.rows import FaxRow
from poller.store import Draft, Identity, Store, folder, recovery, syscalls
from poller.store.folder import Names
from poller.store.recovery import Fate
from poller.store.sidecars import path_of


def without_rename() -> None:
    syscalls.rename = lambda *_: errno.EINVAL


def row_before_link() -> None:
    """Record the row as *stored* before the sidecar has its name."""

    async def publish(self: Fetcher, fax: FaxRow, draft: Draft, staged: Staged) -> None:
        await self._services.ledger.write_together(jobs.staged, (fax.id, staged))
        await self._record(fax, staged.file, staged.problem)
        await draft.publish(staged)

    Fetcher._publish = publish  # type: ignore[method-assign]


def published_before_the_ticket() -> None:
    """Give the sidecar its name before the row has the ticket."""

    async def publish(self: Fetcher, fax: FaxRow, draft: Draft, staged: Staged) -> None:
        await draft.publish(staged)
        await self._services.ledger.write_together(jobs.staged, (fax.id, staged))
        await self._record(fax, staged.file, staged.problem)

    Fetcher._publish = publish  # type: ignore[method-assign]


def ticket_believed() -> None:
    """Take a missing ticket for a published one, without a look at the image."""

    def settle(store: Store, staged: Staged, identity: Identity) -> Fate:
        store.revoke(path_of(staged.file), staged.ticket)
        return Fate.PUBLISHED

    recovery.settle = settle


def visible_while_written() -> None:
    """Give the image its final name from the first byte on."""
    Names.dot_image = property(lambda self: self.base + ".pdf")  # type: ignore[assignment, method-assign]


def page_forgotten() -> None:
    """Do not keep the rows of a page, but its coverage."""
    record = ListReader._record_page

    def forget(connection: Connection, stream: int, page: Any) -> faxes.RecordedPage:
        first = page.faxes[0].fax_id if page.faxes else None
        kept = replace(page, faxes=[fax for fax in page.faxes if fax.fax_id != first])
        return record(connection, stream, kept)

    ListReader._record_page = staticmethod(forget)


def never_resumed() -> None:
    """Download again what a killed run had made visible."""
    recovery.settle = lambda *_: Fate.VOID
    recovery.adopted = lambda *_: None
    recovery.placed = lambda *_: None


def hidden_ones_swept() -> None:
    """Remove a sidecar without an image like other dot-files, although its ticket is in the row."""

    def is_any(name: str) -> bool:
        return name.startswith(".") and name.endswith((".image.part", ".json.part"))

    folder.is_dot_file = is_any
