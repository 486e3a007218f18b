"""The ledger: what is known of every user and every fax, in a database that callers do not see."""

from poller.ledger.ledger import Ledger, backup
from poller.ledger.rows import AccountRow, Attempt, FaxRow, Health, NewFax, OnDisk, UserRow
from poller.ledger.tables import State

__all__ = [
    "AccountRow",
    "Attempt",
    "FaxRow",
    "Health",
    "Ledger",
    "NewFax",
    "OnDisk",
    "State",
    "UserRow",
    "backup",
]
