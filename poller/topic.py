"""The topics of the manual that sentences name, so that an operator knows where to read more."""

import re
from typing import Final, Literal

Topic = Literal[
    "config",
    "install",
    "service-does-not-start",
    "service-restarts",
    "service-not-ready",
    "configuration-rejected",
    "disk-full",
    "disk-not-mounted",
    "disk-hangs",
    "ledger-damaged",
    "ledger-lost",
    "ledger-unusable",
    "account-suspended",
    "account-refused",
    "empty-lists",
    "user-refused",
    "user-overdue",
    "poll-fails",
    "sweeps-fail",
    "gap",
    "backfill-stuck",
    "efax-slow",
    "rate-limited",
    "schedule-stretched",
    "token-war",
    "clock-wrong",
    "fax-fails",
    "fax-quarantined",
    "fax-damaged",
    "fax-unreadable",
    "faxes-wait",
    "faxes-late",
    "removed-users",
    "nothing-arrives",
    "canary-late",
    "sent-faxes-late",
    "delete-refused",
    "webhook-silent",
    "webhook-refused",
    "storage-unusable",
    "catching-up",
    "account-without-node",
    "nodes-differ",
    "standby-behind",
]
_SEEN: Final = re.compile(r"See `poller help [a-z-]+`\.?$")


def see(words: str, topic: Topic) -> str:
    """Add the topic that helps to a sentence; keep the topic of a sentence that names one."""
    if _SEEN.search(words):
        return f"{words.rstrip('.')}."
    end = "" if words.endswith((".", "?", "!")) else "."
    return f"{words}{end} See `poller help {topic}`."
