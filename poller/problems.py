"""Say in sentences what is wrong, from the status as `poller status --json` shows it."""

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final

from poller.config.values import size_text

_NAMED: Final = 3
_SLOWED: Final = 0.75  # of the limit; what is left of one 429 is soon above it
_Row = dict[str, Any]


def problems(status: dict[str, Any], reasons: Sequence[str]) -> list[str]:
    """Return the sentences, worst first: why the service is not ready, then accounts, users, faxes.

    Users with the same trouble share a sentence, so that an outage of thousands is still one.
    """
    users = [row for row in status.get("users", []) if not row.get("removed")]
    accounts = status.get("accounts", [])
    suspended = {row["account"] for row in accounts if row.get("suspended_until")}
    asked = [row for row in users if row["account"] not in suspended]
    told_below = tuple(f"Account {account} is suspended" for account in suspended)
    found = list(
        dict.fromkeys(
            _sentence(reason)
            for reason in reasons
            if not (told_below and reason.startswith(told_below))
        )
    )
    if status.get("config_rejected"):
        found.append(_rejected(str(status["config_rejected"])))
    found += _disk_low(status.get("storage", {}))
    found += [_suspended(row) for row in accounts if row.get("suspended_until")]
    found += [_at_war(row) for row in accounts if row.get("token_war")]
    found += [_slowed(row) for row in accounts if _is_slowed(row)]
    found += _refused([row for row in asked if row.get("refused")], users)
    failed = [row for row in asked if row.get("last_error") and not row.get("refused")]
    for reason in dict.fromkeys(str(row["last_error"]) for row in failed):
        found += _about(
            [row for row in failed if str(row["last_error"]) == reason],
            partial(_failed_for, reason),
        )
    found += _failing([row for row in users if row.get("failing")], status.get("failing_faxes", []))
    found += _quarantined([row for row in users if row.get("quarantined")])
    found += _left_behind([row for row in status.get("users", []) if row.get("removed")])
    found += _damaged([row for row in status.get("users", []) if row.get("damaged_files")])
    found += _about(
        [row for row in users if row.get("failed_gaps")],
        lambda who, _: f"Some time could not be listed, so faxes may be missing, for {who}.",
    )
    found += _about(
        [row for row in asked if row.get("backfill_error")],
        lambda who, _: f"A backfill makes no progress, and is tried again, for {who}.",
    )
    found += _about([row for row in asked if row.get("silent_since")], _silent)
    return found


def not_in_time(status: dict[str, Any]) -> str | None:
    """Say from outside that the service polls late, as one that hangs does not say itself.

    Users who are refused, or whose account is suspended, are told of elsewhere.
    """
    suspended = {row["account"] for row in status["accounts"] if row["suspended_until"]}
    late = [
        row
        for row in status["users"]
        if row["overdue"] and not row["refused"] and row["account"] not in suspended
    ]
    if not late:
        return None
    users = "1 user was" if len(late) == 1 else f"{len(late)} users were"
    return (
        f"{users} not polled in time ({_names(late)}): if the service hangs, restart it "
        "(`systemctl restart poller`)"
    )


def _refused(rows: list[_Row], users: list[_Row]) -> list[str]:
    """An account's only user may be refused for what is the account's fault."""
    counts = Counter(row["account"] for row in users)
    alone = [row for row in rows if counts[row["account"]] == 1]
    others = [row for row in rows if counts[row["account"]] > 1]
    return [
        *_about(
            others, lambda who, one: f"eFax refuses {who}: check the User ID{'' if one else 's'}."
        ),
        *_about(
            alone,
            lambda who, one: (
                f"eFax refuses {who}: check the User ID{'' if one else 's'}, and "
                "whether a proxy drops or changes headers."
            ),
        ),
    ]


def _failed_for(reason: str, who: str, _one: bool) -> str:  # noqa: FBT001 - as `_about` calls it
    return _sentence(f"The last poll of {who} failed: {reason}")


def _silent(who: str, one: bool) -> str:  # noqa: FBT001 - as `_about` calls it
    numbers = "is the number still theirs" if one else "are the numbers still theirs"
    return f"Nothing was received for longer than expected by {who}: {numbers}? Send a test fax."


def _rejected(problem: str) -> str:
    return _sentence(
        "The last reload was rejected, and the configuration before it is still at work; mend this "
        f"and reload: {problem}"
    )


def _disk_low(storage: _Row) -> list[str]:
    """As the event `disk-low`; a disk that is too full already is why nothing is fetched."""
    free, floor = storage.get("free_bytes"), storage.get("min_free_bytes")
    if not storage.get("usable") or free is None or floor is None or free >= 2 * floor:
        return []
    return [
        f"Only {size_text(free)} are free for faxes, and below {size_text(floor)} (storage.min_free) nothing "
        "is fetched: make room."
    ]


def _suspended(row: _Row) -> str:
    reason = str(row.get("reason") or "eFax cannot be reached").rstrip(".")
    until = datetime.fromisoformat(str(row["suspended_until"])).strftime("%H:%M:%S UTC")
    return (
        f"Account {row['account']} is suspended: {reason}. It is asked again at {until}: see "
        '"An account is suspended" in the README.'
    )


def _at_war(row: _Row) -> str:
    return (
        f"Another program signs in with the App ID of account {row['account']}, so faxes come later:"
        ' see "Another program has the same App ID" in the README.'
    )


def _is_slowed(row: _Row) -> bool:
    rate, limit = row.get("rate"), row.get("limit")
    return rate is not None and limit is not None and rate < _SLOWED * limit


def _slowed(row: _Row) -> str:
    return (
        f"eFax limits account {row['account']}: {row['rate']:.2g} of {row['limit']:g} requests per "
        'second are allowed now; see "eFax limits an account" in the README.'
    )


def _quarantined(rows: list[_Row]) -> list[str]:
    total = sum(row["quarantined"] for row in rows)
    if not total:
        return []
    faxes = "1 fax is" if total == 1 else f"{total} faxes are"
    return [f"{faxes} quarantined ({_names(rows)}): see `poller retry` and `poller dismiss`."]


def _failing(rows: list[_Row], oldest: list[_Row]) -> list[str]:
    """Faxes that fail for longer than `retry.alarm_after`, or till an operator mends their directory.

    The oldest one says why.
    """
    total = sum(row["failing"] for row in rows)
    if not total or not oldest:
        return []
    first = oldest[0]
    faxes = "1 fax" if total == 1 else f"{total} faxes"
    since = f"{first['since'][:16].replace('T', ' ')} UTC"
    return [
        f"{faxes} cannot be fetched, and the service keeps trying ({_names(rows)}). The oldest has "
        f"failed since {since}: {str(first['error']).rstrip('.')}. "
        f"See `poller explain {first['fax_id']}`."
    ]


def _left_behind(removed: list[_Row]) -> list[str]:
    """Faxes of users who are not configured any more: nothing fetches them, and they are not lost."""
    rows = [row for row in removed if row.get("pending") or row.get("quarantined")]
    if not rows:
        return []
    pending, quarantined = (sum(row[what] for row in rows) for what in ("pending", "quarantined"))
    return [
        f"Faxes of removed users are not fetched any more ({_names(rows)}; quarantined: {quarantined},"
        f" pending: {pending}): put the users back and reload, or see `poller dismiss`."
    ]


def _damaged(rows: list[_Row]) -> list[str]:
    total = sum(row["damaged_files"] for row in rows)
    if not total:
        return []
    faxes = "1 fax is" if total == 1 else f"{total} faxes are"
    return [f"{faxes} damaged on the disk ({_names(rows)}): see `poller verify --repair`."]


def _about(rows: list[_Row], say: Callable[[str, bool], str]) -> list[str]:
    return [say(_names(rows), len(rows) == 1)] if rows else []


def _names(rows: list[_Row]) -> str:
    names = [f"{row['account']}/{row['user']}" for row in rows]
    if len(names) > _NAMED:
        names[_NAMED:] = [f"{len(names) - _NAMED} more"]
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def _sentence(reason: str) -> str:
    text = reason.strip().rstrip(".")
    return text[:1].upper() + text[1:] + ("" if text.endswith(("?", "!")) else ".")
