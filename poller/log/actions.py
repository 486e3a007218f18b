"""What can be said: every `event.action` with the level it has unless the caller says otherwise."""

from typing import Final, Literal, get_args

Level = Literal["debug", "info", "warning", "error"]

RANKS: Final[dict[Level, int]] = {"debug": 10, "info": 20, "warning": 30, "error": 40}

Action = Literal[
    "service-started",
    "service-ready",
    "service-reloaded",
    "service-stopping",
    "service-stopped",
    "config-rejected",
    "poll-completed",
    "poll-failed",
    "poll-recovered",
    "fax-discovered",
    "fax-stored",
    "fax-retry",
    "fax-quarantined",
    "fax-damaged",
    "token-refreshed",
    "token-war",
    "rate-limited",
    "account-summary",
    "account-suspended",
    "account-resumed",
    "user-refused",
    "user-accepted",
    "gap-opened",
    "gap-closed",
    "late-arrivals",
    "storage-unusable",
    "storage-usable",
    "disk-low",
    "disk-ok",
    "clock-stepped",
    "stalled",
    "silence",
    # beyond the contract's list:
    "start-refused",
    "sweep-failed",
    "sweep-recovered",
    "snapshot-made",
    "snapshot-failed",
    "ledger-damaged",
    "ledger-lost",  # there was none, nor a snapshot, beside a storage that has been in use
    "ledger-restored",  # the file was gone; the newest snapshot took its place
    "schedule-stretched",  # the schedule asks for more than the limit allows
    "canaries-deleted",  # no fax is left at eFax by which an empty list could be proved
    "backfill-completed",  # an old window that an operator asked for is listed
    "fetch-failed",  # a user's faxes fail for longer than retry.alarm_after, or must be mended
    "fetch-recovered",
    "heartbeat-failed",
    "heartbeat-recovered",
    "token-war-over",  # nobody has ended our token for a day
    "log-lines-lost",  # nobody read stdout for a while
    "internal-error",  # a bug: an exception that nobody expected
    "library-message",  # a warning of a library, from the standard library's logging
]

ACTIONS: Final[frozenset[str]] = frozenset(get_args(Action))

_OTHER_THAN_INFO: Final[dict[str, Level]] = {
    "start-refused": "error",
    "config-rejected": "error",
    "poll-failed": "warning",
    "fax-discovered": "debug",
    "fax-retry": "warning",
    "fax-quarantined": "error",
    "fax-damaged": "error",
    "token-refreshed": "debug",
    "token-war": "warning",
    "rate-limited": "warning",
    "account-suspended": "error",
    "user-refused": "warning",
    "gap-opened": "warning",
    "late-arrivals": "warning",
    "sweep-failed": "warning",
    "snapshot-failed": "warning",
    "ledger-damaged": "error",
    "ledger-lost": "error",
    "ledger-restored": "warning",
    "storage-unusable": "error",
    "disk-low": "warning",
    "clock-stepped": "warning",
    "stalled": "error",
    "silence": "warning",
    "schedule-stretched": "warning",
    "fetch-failed": "error",
    "heartbeat-failed": "warning",
    "log-lines-lost": "warning",
    "internal-error": "error",
    "library-message": "warning",
}


def default_level(action: str) -> Level:
    """Return the level of an action; TypeError for one that does not exist."""
    if action not in ACTIONS:
        raise TypeError(f"{action!r} is no event action of poller")
    return _OTHER_THAN_INFO.get(action, "info")
