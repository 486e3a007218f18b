"""Find the stored faxes whose files a consumer has taken away, as the disk shows it now."""

import shlex
from collections.abc import Sequence
from contextlib import closing

from poller.config.model import Config
from poller.errors import StorageConflict, StorageUnusable
from poller.ledger import FaxRow, Ledger, State, meta
from poller.status import instant
from poller.store import Condition, Identity, storage_of


async def taken(settings: Config, ledger: Ledger, rows: Sequence[FaxRow]) -> list[FaxRow] | None:
    """Return those of `rows` that are stored and whose files are all gone.

    Return None if the storage cannot be read: on a disk that is not mounted, no file was taken.
    """
    storage_id = await ledger.read(meta.value, meta.STORAGE_ID)
    looked_at = [
        (row, file)
        for row in rows
        if row.state is State.STORED and (file := row.stored_file) is not None
    ]
    if storage_id is None or not looked_at:
        return []
    identities = [(file, Identity(row.app_id, row.user_id, row.fax_id)) for row, file in looked_at]
    try:
        with closing(storage_of(settings)) as storage:
            await storage.prepare(storage_id)
            findings = await storage.look(identities, thorough=False)
    except (StorageUnusable, StorageConflict):
        return None
    return [
        row
        for (row, _), finding in zip(looked_at, findings, strict=True)
        if finding.condition is Condition.TAKEN
    ]


def how_to_have_it_again(name: str) -> str:
    """Return the command that fetches a taken fax again; `name` is ACCOUNT/USER/FAX_ID."""
    return f"`poller verify --repair --taken {shlex.quote(name)}` fetches it again"


def no_more(row: FaxRow) -> str:
    """Return why poller cannot fetch a fax again that was deleted at eFax."""
    return f"it was deleted at eFax at {instant(row.deleted_at)}, so eFax no longer has it"
