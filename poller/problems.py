"""Turn the object of `poller status --json` into sentences that say what is wrong."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from poller.config.values import size_text
from poller.status import by_stream
from poller.stream import Direction
from poller.topic import see

NOT_IN_TIME: Final = "users were not polled in time"
_NAMED: Final = 3
_SLOWED: Final = 0.75  # of the limit; after a single 429 the rate is soon above it
_NOT_LISTED: Final = see("Some time could not be listed for {who}, so faxes may be missing.", "gap")
_NO_PROGRESS: Final = see(
    "A backfill for {who} makes no progress; poller tries it again.", "backfill-stuck"
)
_SILENT: Final = see(
    "{who} received nothing for longer than expected. Send a test fax, and check that {words} still theirs.",
    "nothing-arrives",
)
_SENT_REFUSED: Final = see(
    "eFax lists received faxes but refuses {who}: ask eFax to allow it, or turn off `sent.archive`.",
    "user-refused",
)
_SENT_LATE: Final = see(
    "The sent faxes of {who} were not listed in time, because received faxes come first.",
    "sent-faxes-late",
)
_SENT_NOTHING: Final = see("{who} sent nothing for longer than expected.", "nothing-arrives")
_SLOW_CALLS: Final = {"list": "a list", "image": "an image"}
_Row = dict[str, Any]


def problems(status: dict[str, Any], reasons: Sequence[str]) -> list[str]:
    """Return the sentences, worst first: why the service is not ready, then accounts, users, faxes.

    Users with the same trouble share a sentence, so that an outage of thousands is still one.
    """
    every, accounts = by_stream(status), status.get("accounts", [])
    users = [row for row in every if not row.get("removed")]
    suspended = _with("suspended_until", accounts)
    silenced = {row["account"] for row in suspended}
    asked = [row for row in users if row["account"] not in silenced]
    told_below = tuple(f"Account {account} is suspended" for account in silenced)
    reasons = [one for one in reasons if not one.startswith(told_below)]
    if _overdue(status) and not _late(status):
        reasons = [one for one in reasons if NOT_IN_TIME not in one]
    return [
        *dict.fromkeys(map(_sentence, reasons)),
        *(status.get("nodes") or {}).get("problems", []),
        *_rejected(status.get("config_rejected")),
        *_disk_low(status.get("storage", {})),
        *map(_suspended, suspended),
        *map(_at_war, _with("token_war", accounts)),
        *[_slowed(row) for row in accounts if _is_slowed(row)],
        *map(_slow, _with("slow", accounts)),
        *[_unheard(row) for row in accounts if (row.get("webhook") or {}).get("silent_since")],
        *_refused(_with("refused", asked), Counter(row["account"] for row in _received(users))),
        *_failed([row for row in _with("last_error", asked) if not row.get("refused")]),
        *_failing(_with("failing", users), status.get("failing_faxes", [])),
        *_quarantined(_with("quarantined", users)),
        *_left_behind([row for row in every if row.get("removed")]),
        *_damaged(_with("damaged_files", every)),
        *_unreadable(_with("unreadable_files", every)),
        *map(_late_canary, status.get("late_canaries", [])[:_NAMED]),
        *_not_deleted(_with("not_deleted", users)),
        *_about(_with("failed_gaps", users), _NOT_LISTED),
        *_about(_with("backfill_error", asked), _NO_PROGRESS),
        *_silent(_with("silent_since", asked)),
        *_about([row for row in _sent(_with("overdue", asked)) if not row["refused"]], _SENT_LATE),
    ]


def not_in_time(status: dict[str, Any]) -> str | None:
    """Return a sentence if the service polls late, as a hung service cannot report it itself.

    Other sentences cover refused users, suspended accounts, and sent faxes, which wait for received
    ones.
    """
    late = _late(status)
    if not late:
        return None
    users = NOT_IN_TIME.replace("users were", "user was") if len(late) == 1 else NOT_IN_TIME
    return see(
        f"{len(late)} {users} ({_names(late)}): if the service hangs, restart it "
        "(`systemctl restart poller`)",
        "user-overdue",
    )


def _overdue(status: dict[str, Any]) -> list[_Row]:
    suspended = {row["account"] for row in _with("suspended_until", status.get("accounts", []))}
    return [
        row
        for row in _with("overdue", status.get("users", []))
        if not row["refused"] and row["account"] not in suspended
    ]


def _late(status: dict[str, Any]) -> list[_Row]:
    """Return the late users; a user whose turn has not come while its account catches up is not late."""
    moving = {
        row["account"]
        for row in _with("catching_up", status.get("accounts", []))
        if row["catching_up"]["seconds"] is not None
    }
    return [
        row for row in _overdue(status) if not (row.get("lists_left") and row["account"] in moving)
    ]


def _rejected(problem: str | None) -> list[str]:
    if not problem:
        return []
    told = (
        "The last reload was rejected, and the service still uses the old configuration. "
        f"Fix this and reload: {problem}"
    )
    return [see(told, "configuration-rejected")]


def _disk_low(storage: _Row) -> list[str]:
    """Return a sentence when the event `disk-low` applies; a full disk has its own sentence."""
    free, floor = storage.get("free_bytes"), storage.get("min_free_bytes")
    if not storage.get("usable") or free is None or floor is None or free >= 2 * floor:
        return []
    told = (
        f"Only {size_text(free)} are free for faxes, and poller stops fetching below "
        f"{size_text(floor)} (storage.min_free): make room."
    )
    return [see(told, "disk-full")]


def _suspended(row: _Row) -> str:
    reason = str(row.get("reason") or "eFax cannot be reached").rstrip(".")
    until = datetime.fromisoformat(str(row["suspended_until"])).strftime("%H:%M:%S UTC")
    return see(
        f"Account {row['account']} is suspended, and poller asks again at {until}: {reason}",
        "account-suspended",
    )


def _at_war(row: _Row) -> str:
    return see(
        f"Another program signs in with the App ID of account {row['account']}, so faxes come later.",
        "token-war",
    )


def _is_slowed(row: _Row) -> bool:
    rate, limit = row.get("rate"), row.get("limit")
    return rate is not None and limit is not None and rate < _SLOWED * limit


def _slowed(row: _Row) -> str:
    return see(
        f"eFax limits account {row['account']}: {row['rate']:.2g} of {row['limit']:g} requests per "
        "second are allowed now.",
        "rate-limited",
    )


def _slow(row: _Row) -> str:
    slow = row["slow"]
    return see(
        f"eFax, or a proxy before it, answers account {row['account']} slowly: "
        f"{_SLOW_CALLS.get(slow['call'], slow['call'])} takes about {slow['seconds']:.0f} s, so "
        "faxes come later.",
        "efax-slow",
    )


def _unheard(row: _Row) -> str:
    return see(
        f"For a day faxes have arrived in account {row['account']} without a notice to its web-hook; "
        "polls still find them.",
        "webhook-silent",
    )


def _refused(rows: list[_Row], users: Counter[str]) -> list[str]:
    """Return a sentence for refused users; for an account's only user, the account may be at fault."""
    said, words = "eFax refuses {who}: check the {words}", ("User ID", "User IDs")
    refused = _received(rows)
    others = [row for row in refused if users[row["account"]] > 1]
    alone = [row for row in refused if users[row["account"]] == 1]
    proxy = ", and whether a proxy drops or changes headers."
    told = {_names([row]) for row in refused}
    sent = [
        row for row in _sent(rows) if _names([row]).removesuffix(f"/{Direction.SENT}") not in told
    ]
    return [
        *_about(others, see(said, "user-refused"), words),
        *_about(alone, see(said + proxy, "user-refused"), words),
        *_about(sent, _SENT_REFUSED),
    ]


def _failed(rows: list[_Row]) -> list[str]:
    of_reason: dict[str, list[_Row]] = {}
    for row in rows:
        of_reason.setdefault(str(row["last_error"]), []).append(row)
    return [
        see(f"The last poll of {_names(some)} failed: {reason}", "poll-fails")
        for reason, some in of_reason.items()
    ]


def _quarantined(rows: list[_Row]) -> list[str]:
    faxes = _faxes(rows, "quarantined", "fax is", "faxes are")
    told = faxes + " quarantined ({who}): remove the cause, then run `poller retry`."
    return _about(rows, see(told, "fax-quarantined"))


def _damaged(rows: list[_Row]) -> list[str]:
    faxes = _faxes(rows, "damaged_files", "fax is", "faxes are")
    told = faxes + " damaged on the disk ({who}): run `poller verify --repair`."
    return _about(rows, see(told, "fax-damaged"))


def _unreadable(rows: list[_Row]) -> list[str]:
    faxes = _faxes(rows, "unreadable_files", "stored fax", "stored faxes")
    said = f"The files of {faxes} cannot be read ({{who}}), so nobody knows whether they are whole."
    return _about(rows, see(said, "fax-unreadable"))


def _late_canary(row: _Row) -> str:
    at = datetime.fromisoformat(row["asked_at"]).strftime("%Y-%m-%d %H:%M UTC")
    return see(
        f"The canary of {row['account']}/{row['user']}, requested at {at}, is late: {row['why']}",
        "canary-late",
    )


def _not_deleted(rows: list[_Row]) -> list[str]:
    faxes = _faxes(rows, "not_deleted", "fax", "faxes")
    told = (
        f"eFax has refused to delete {faxes} for seven days ({{who}}), and poller no longer asks."
    )
    return _about(rows, see(told, "delete-refused"))


def _failing(rows: list[_Row], oldest: list[_Row]) -> list[str]:
    """Return a sentence for faxes that fail for longer than `retry.alarm_after`.

    It includes faxes whose directory an operator must repair. The oldest fax gives the reason.
    """
    if not rows or not oldest:
        return []
    first = oldest[0]
    since = f"{first['since'][:16].replace('T', ' ')} UTC"
    told = (
        f"{_faxes(rows, 'failing', 'fax', 'faxes')} cannot be fetched, and the service keeps trying "
        f"({_names(rows)}). The oldest has failed since {since}: "
        f"{str(first['error']).rstrip('.')}. `poller explain {first['fax_id']}` shows its attempts."
    )
    return [see(told, "fax-fails")]


def _silent(rows: list[_Row]) -> list[str]:
    words = ("the number is", "the numbers are")
    return [*_about(_received(rows), _SILENT, words), *_about(_sent(rows), _SENT_NOTHING)]


def _left_behind(removed: list[_Row]) -> list[str]:
    """Return a sentence for waiting faxes of removed users: they are not lost, but nothing fetches them."""
    rows = [row for row in removed if row.get("pending") or row.get("quarantined")]
    if not rows:
        return []
    pending, quarantined = (sum(row[what] for row in rows) for what in ("pending", "quarantined"))
    told = (
        f"Faxes of removed users are not fetched any more ({_names(rows)}; quarantined: {quarantined},"
        f" pending: {pending}): put the users back and reload, or `poller dismiss` the faxes."
    )
    return [see(told, "removed-users")]


def _received(rows: Sequence[_Row]) -> list[_Row]:
    return [row for row in rows if row.get("direction") != Direction.SENT]


def _sent(rows: Sequence[_Row]) -> list[_Row]:
    return [row for row in rows if row.get("direction") == Direction.SENT]


def _with(key: str, rows: Sequence[_Row]) -> list[_Row]:
    return [row for row in rows if row.get(key)]


def _about(rows: list[_Row], said: str, words: tuple[str, str] = ("", "")) -> list[str]:
    """Return one sentence for all these users; `words` are its singular and plural."""
    return [said.format(who=_names(rows), words=words[len(rows) > 1])] if rows else []


def _faxes(rows: list[_Row], key: str, one: str, many: str) -> str:
    total = sum(row[key] for row in rows)
    return f"1 {one}" if total == 1 else f"{total} {many}"


def _names(rows: list[_Row]) -> str:
    names = [f"{row['account']}/{row['user']}" for row in rows]
    if len(names) > _NAMED:
        names[_NAMED:] = [f"{len(names) - _NAMED} more"]
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def _sentence(reason: str) -> str:
    text = reason.strip().rstrip(".")
    return text[:1].upper() + text[1:] + ("" if text.endswith(("?", "!")) else ".")
