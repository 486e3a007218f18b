"""The ledger: what is known of every user and every fax, in a database hidden from callers."""

from poller.ledger.backend import Hung, Stopped
from poller.ledger.ledger import Ledger, backend_at, backend_of, require_usable
from poller.ledger.rows import (
    AccountRow,
    Attempt,
    Backfill,
    BackfillFound,
    Errand,
    FailingCount,
    FaxRow,
    Health,
    NewFax,
    OnDisk,
    SendRow,
    StreamRow,
    Untried,
    Waiting,
)
from poller.ledger.tables import SendState, State

__all__ = [
    "AccountRow",
    "Attempt",
    "Backfill",
    "BackfillFound",
    "Errand",
    "FailingCount",
    "FaxRow",
    "Health",
    "Hung",
    "Ledger",
    "NewFax",
    "OnDisk",
    "SendRow",
    "SendState",
    "State",
    "Stopped",
    "StreamRow",
    "Untried",
    "Waiting",
    "backend_at",
    "backend_of",
    "require_usable",
]
