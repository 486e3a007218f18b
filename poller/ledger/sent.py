"""Sent faxes: their records in lists change until they are final."""

from sqlalchemy import Connection

from poller.efax.transmission import final_status
from poller.ledger import faxes, jobs
from poller.ledger.faxes import FAX, ListedPage, RecordedPage
from poller.ledger.fold import chunks
from poller.ledger.rows import fax_row
from poller.ledger.tables import faxes as table
from poller.ledger.tables import has_key
from poller.naming import fax_key


def record_page(connection: Connection, stream: int, page: ListedPage) -> RecordedPage:
    """Record a page of a list of sent faxes; a fax that has become final is due now."""
    recorded = faxes.record_page(connection, stream, page)
    final = {fax_key(one.fax_id): one for one in page.faxes if final_status(one.listed).is_final}
    new = {row.id for row in recorded.discovered}
    for chunk in chunks(list(final)):
        wanted = FAX.where(table.c.stream == stream, has_key(chunk), table.c.file.is_(None))
        for row in map(fax_row, connection.execute(wanted)):
            if row.id in new or row.fence is None or final_status(row.listed).is_final:
                continue
            now_listed = final[fax_key(row.fax_id)]
            faxes.learnt(connection, row.id, now_listed.listed, now_listed.received_at)
            jobs.postpone(connection, row.id, row.fence, page.now)
    return recorded
