"""The ledger: what is known of every user and every fax, in a database that callers do not see."""

from poller.ledger.ledger import Ledger
from poller.ledger.replacement import Replacement, backup
from poller.ledger.rows import (
    AccountRow,
    Attempt,
    Backfill,
    FailingCount,
    FaxRow,
    Found,
    Health,
    NewFax,
    OnDisk,
    StreamRow,
    Waiting,
)
from poller.ledger.sidecar_import import Kept
from poller.ledger.tables import State

__all__ = [
    "AccountRow",
    "Attempt",
    "Backfill",
    "FailingCount",
    "FaxRow",
    "Found",
    "Health",
    "Kept",
    "Ledger",
    "NewFax",
    "OnDisk",
    "Replacement",
    "State",
    "StreamRow",
    "Waiting",
    "backup",
]
