"""The durable order: a fax becomes a file with its sidecar, whole or not at all."""

from poller.documents import StoredFile
from poller.store.draft import Draft
from poller.store.inspection import Condition, Finding
from poller.store.sidecars import Identity, Origin, sidecar
from poller.store.storage import Storage
from poller.store.survey import Found, Unreadable

__all__ = [
    "Condition",
    "Draft",
    "Finding",
    "Found",
    "Identity",
    "Origin",
    "Storage",
    "StoredFile",
    "Unreadable",
    "sidecar",
]
