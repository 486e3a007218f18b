"""Bugs that the explorer must find, each put into the run under test by the name of its function.

They show that the checker can fail: one is planted, a call is broken, and something must be said.
`without_rename` is no bug: it is a file system on which names are given by links.
"""

import errno
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection

from poller.documents import StoredFile
from poller.ledger import faxes
from poller.store import handover, recovery, syscalls
from poller.store.place import Names, Place
from poller.store.sidecars import Identity


def without_rename() -> None:
    syscalls.rename = lambda *_: errno.EINVAL


def row_before_link() -> None:
    """The row says *stored* before the files have their names."""
    publish, finish = handover.publish, handover.Handover.finish
    late: dict[str, Callable[[], bool]] = {}

    def later(place: Place, stored: StoredFile, identity: Identity) -> bool:
        late[place.path] = lambda: publish(place, stored, identity)
        return True

    def finish_late(self: handover.Handover) -> None:
        late.pop(self.place.path)()
        finish(self)

    handover.publish = later
    handover.Handover.finish = finish_late  # type: ignore[method-assign]


def visible_while_written() -> None:
    """The image has its final name from its first byte on."""
    Names.dot_image = property(lambda self: self.base + ".pdf")  # type: ignore[assignment, method-assign]


def page_forgotten() -> None:
    """The rows of a page are not kept, and what it covered is."""
    record = faxes.record_page

    def forget(connection: Connection, stream: int, page: Any) -> faxes.RecordedPage:
        first = page.faxes[0].fax_id if page.faxes else None
        kept = replace(page, faxes=[fax for fax in page.faxes if fax.fax_id != first])
        return record(connection, stream, kept)

    faxes.record_page = forget


def never_resumed() -> None:
    """What a killed run had made visible is downloaded again."""

    def resume(at: Place, identity: Identity) -> StoredFile | None:
        handover.unlink_dot_files(at)
        return None

    recovery.resume = resume
