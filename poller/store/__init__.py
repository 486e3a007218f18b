"""Where faxes are kept: each becomes a file with its sidecar, complete or not at all."""

from poller.documents import StoredFile
from poller.store.draft import Draft
from poller.store.inspection import Condition, Finding
from poller.store.runs import Runs
from poller.store.sidecars import Identity, Origin, sidecar
from poller.store.storage import Storage, storage_of, store_of
from poller.store.store import Store
from poller.store.survey import FoundSidecar, Unreadable

__all__ = [
    "Condition",
    "Draft",
    "Finding",
    "FoundSidecar",
    "Identity",
    "Origin",
    "Runs",
    "Storage",
    "Store",
    "StoredFile",
    "Unreadable",
    "sidecar",
    "storage_of",
    "store_of",
]
