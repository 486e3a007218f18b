"""The durable order: a fax becomes a file with its sidecar, whole or not at all."""

from poller.storage.draft import Draft
from poller.storage.inspection import Condition, Finding
from poller.storage.sidecars import Identity, Origin, StoredFile, sidecar
from poller.storage.storage import Storage
from poller.storage.survey import Found, Unreadable

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
