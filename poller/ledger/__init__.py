"""The ledger: what is known of every user and every fax, in a database that callers do not see."""

from poller.ledger.adoption import Kept
from poller.ledger.ledger import Ledger
from poller.ledger.making import Making, backup
from poller.ledger.rows import (
    AccountRow,
    Attempt,
    Backfill,
    Claim,
    FailingCount,
    FaxRow,
    Found,
    Health,
    NewFax,
    OnDisk,
    Progress,
    UserRow,
    Waiting,
)
from poller.ledger.tables import State

__all__ = [
    "AccountRow",
    "Attempt",
    "Backfill",
    "Claim",
    "FailingCount",
    "FaxRow",
    "Found",
    "Health",
    "Kept",
    "Ledger",
    "Making",
    "NewFax",
    "OnDisk",
    "Progress",
    "State",
    "UserRow",
    "Waiting",
    "backup",
]
