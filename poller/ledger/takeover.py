"""What the holder of an account does first, in one transaction, before it asks eFax anything."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection

from poller.config.model import Account
from poller.ledger import accounts, clock_repair, streams
from poller.ledger.rows import StreamRow


@dataclass(frozen=True)
class Takeover:
    """An account that a poller is about to work on.

    `idle_since` is when a poller last worked on it. If that is `longer_than` this ago, the time does
    not count towards giving up. `was_working`: its last holder did not end in order, so a suspension
    still holds.
    """

    account: Account
    now: datetime
    idle_since: datetime | None
    longer_than: timedelta
    was_working: bool = False


def begin(connection: Connection, taken: Takeover) -> list[StreamRow]:
    """Repair and record what belongs to the account; return the rows of `account.streams`."""
    account = taken.account
    clock_repair.forget_far_future(connection, account.app_id, taken.now)
    accounts.note_downtime(
        connection, account.app_id, taken.now, taken.idle_since, taken.longer_than
    )
    if not taken.was_working:
        accounts.set_suspended(connection, account.app_id, account.name, None, None)
    return streams.sync_account(connection, account, taken.now)
