"""Record again what a database has lost in a failover although it had confirmed it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from poller.documents import Staged
from poller.ledger import jobs, leases, streams
from poller.ledger.faxes import FAX, ListedPage, record_page
from poller.ledger.fold import chunks
from poller.ledger.jobs import Stored
from poller.ledger.rows import FaxRow, NewFax, fax_row
from poller.ledger.tables import has_key
from poller.naming import fax_key
from poller.stream import Stream

_Rows = dict[tuple[Stream, str], FaxRow]


@dataclass(frozen=True)
class Fact:
    """What was recorded of a fax; `fax` is its row before that."""

    fax: FaxRow
    outcome: Staged | Stored


def record_again(connection: Connection, facts: Sequence[Fact]) -> int:
    """Record those facts that the database lacks; return how many. Their rows may be gone, too.

    It shuts out the holders: they, or another node with facts, may write about the same faxes.
    """
    leases.shut_out_holders(connection)
    rows = _rows(connection, facts)
    if gone := [fact.fax for fact in facts if _row_of(fact, rows) is None]:
        _insert(connection, gone)
        rows = _rows(connection, facts)
    lost = {row.id: one for one in facts if (row := _row_of(one, rows)) and _is_lost(one, row)}
    in_order = [(fax, lost[fax].outcome) for fax in sorted(lost)]
    stored = [replace(one, fax=fax) for fax, one in in_order if isinstance(one, Stored)]
    staged = [(fax, one) for fax, one in in_order if isinstance(one, Staged)]
    if staged:
        jobs.staged(connection, staged)
    jobs.stored(connection, stored)
    return len(lost)


def _is_lost(fact: Fact, row: FaxRow) -> bool:
    """Whether the row is from before the fact; what was decided or done after it must stay."""
    is_from_before = row.attempts <= fact.fax.attempts
    if isinstance(fact.outcome, Stored):
        return is_from_before or row.stored_at is None
    is_open = row.fence == fact.fax.fence and row.staged is None and row.stored_at is None
    return is_open and is_from_before


def _rows(connection: Connection, facts: Sequence[Fact]) -> _Rows:
    """Return rows by stream and fax id, and by the key of all spellings: the one seen first."""
    ids = {one for fact in facts for one in (fact.fax.fax_id, fax_key(fact.fax.fax_id))}
    found = [
        fax_row(row)
        for chunk in chunks(sorted(ids))
        for row in connection.execute(FAX.where(has_key(chunk)))
    ]
    rows: _Rows = {}
    for row in sorted(found, key=lambda row: row.id):
        rows[row.whose, row.fax_id] = row
        rows.setdefault((row.whose, fax_key(row.fax_id)), row)
    return rows


def _row_of(fact: Fact, rows: _Rows) -> FaxRow | None:
    fax = fact.fax
    return rows.get((fax.whose, fax.fax_id)) or rows.get((fax.whose, fax_key(fax.fax_id)))


def _insert(connection: Connection, gone: Sequence[FaxRow]) -> None:
    """Make the rows again as the lists made them; not of a user whose row is gone, too."""
    known = streams.all_streams(connection)
    owners = {Stream(one.app_id, one.user_id, one.direction): one.id for one in known}
    for fax in gone:
        if (owner := owners.get(fax.whose)) is not None:
            new = NewFax(fax.fax_id, fax.path, fax.listed, fax.received_at)
            page = ListedPage([new], fax.first_window, fax.found_by, fax.first_seen_at)
            record_page(connection, owner, page)
