"""Build the object of `poller status --json` and `/status.json` (see config/COMMANDS.md)."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, time, timedelta
from itertools import product
from typing import Any

from poller import VERSION, cluster, plan, schedule
from poller.backlog import CatchUp
from poller.catching_up import Beginnings, Speeds, lists_by_stream
from poller.cluster import Cluster
from poller.config.model import Account, RetryConfig
from poller.evidence import EvidenceStore
from poller.hook_record import HookRecord
from poller.ledger import (
    AccountRow,
    Backfill,
    FailingCount,
    FaxRow,
    Health,
    Ledger,
    StreamRow,
    backfills,
    errands,
    failing,
    faxes,
    fold,
    jobs,
    sends,
    streams,
)
from poller.ledger.accounts import all_accounts, hook
from poller.ledger.tables import JobKind
from poller.page_progress import what_is_missing
from poller.progress import Progress
from poller.slowness import Slow
from poller.stream import Direction
from poller.topic import see
from poller.window import Interval

_FAXES_SHOWN = 20
_HOUR = timedelta(hours=1)
_HOURS = 24
_AS_IT_IS = (
    *("account", "user", "user_id", "direction", "last_error", "removed"),
    *("found_by_sweep", "found_by_deep_sweep"),
    *("discovered", "stored", "pending", "quarantined", "dismissed", "damaged"),
)
_TIMES = ("last_poll_at", "last_success_at", "last_received_at", "last_stored_at")


@dataclass(frozen=True)
class Pace:
    """Requests per second of an account: configured, allowed after a 429, used in the last minute.

    Only the running service knows the last two, whether there is a token war, and whether eFax is
    `slow`.
    """

    limit: float | None = None
    rate: float | None = None
    used: float | None = None
    token_war: bool | None = None
    slow: Slow | None = None


@dataclass
class StoredLately:
    """How many faxes were stored in each of the last 24 hours, for each user.

    Past hours do not change, so a frequent reader queries two hours instead of a day.
    """

    _over: dict[datetime, dict[int, int]] = field(default_factory=dict)

    async def read(
        self, ledger: Ledger, now: datetime
    ) -> tuple[list[StreamRow], dict[datetime, dict[int, int]]]:
        """Return the users, and the hours by their start, oldest first, ending with the present one.

        Both come from one transaction, so that today's number is never above the total.
        """
        hours = [_this_hour(now) - _HOUR * ago for ago in reversed(range(_HOURS))]
        over = [hour for hour in hours[:-2] if hour in self._over]
        since = next(hour for hour in hours if hour not in over)
        found: dict[datetime, dict[int, int]] = defaultdict(dict)
        rows, counts = await ledger.read(streams.streams_with_stored_per_hour, since)
        for user, hour, count in counts:
            found[since + _HOUR * hour][user] = count
        read = {hour: self._over[hour] if hour in over else found[hour] for hour in hours}
        self._over = {hour: read[hour] for hour in hours[:-2]}
        return rows, read


@dataclass(frozen=True)
class Surroundings:
    """Facts that are not in the ledger; `rejected` is why the last reload was rejected.

    The configured `accounts` show which users are overdue or silent. `hooks` holds the running
    service's records of its web-hooks, by App ID; `catching_up` holds its note of an account's start of
    catching up, by name. With several nodes, `node` is the one that says this.
    """

    storage: dict[str, Any]
    running: bool = True
    evidence: EvidenceStore | None = None
    paces: Mapping[str, Pace] = field(default_factory=dict)
    rejected: str | None = None
    alarm_after: timedelta = RetryConfig.alarm_after
    accounts: Sequence[Account] = ()
    hooks: Mapping[str, HookRecord] | None = None
    catching_up: Mapping[str, CatchUp] = field(default_factory=dict)
    node: str | None = None
    cluster: Cluster | None = None

    def beginnings(self, accounts: Sequence[AccountRow]) -> Beginnings:
        """Leave out a suspended account: the service's note may be a few seconds old."""
        suspended = {row.account for row in accounts if row.suspended_until is not None}
        begun = {name: note for name, note in self.catching_up.items() if name not in suspended}
        return Beginnings(begun, self.accounts)

    def allowed_per_s(self, account: AccountRow) -> float | None:
        """Return the requests per second allowed for faxes now; None if there are none, or unknown."""
        if account.suspended_until is not None or not self.storage.get("usable", True):
            return None
        return self.paces.get(account.account, Pace()).rate


async def status(
    ledger: Ledger, now: datetime, around: Surroundings, lately: StoredLately | None = None
) -> dict[str, Any]:
    """Read the whole status from the ledger, in short transactions. Raises LedgerUnavailable."""
    given_up = await ledger.read(jobs.quarantined, _FAXES_SHOWN)
    alarming = await ledger.read(failing.oldest, now, around.alarm_after, _FAXES_SHOWN)
    hooks = await kept_hooks(ledger, around.accounts) if around.hooks is None else around.hooks
    accounts = await ledger.read(all_accounts, include_removed=False)
    beginnings = around.beginnings(accounts)
    seen = await _streams(ledger, now, beginnings, lately or StoredLately())
    allowed = {row.account: around.allowed_per_s(row) for row in accounts}
    speeds = Speeds(ledger, now, beginnings, seen.rows, seen.held, seen.lists)
    figures = await speeds.read(allowed, running=around.running)
    return {
        "at": instant(now),
        "running": around.running,
        "version": VERSION,
        "node": around.node,
        "nodes": _nodes(around.cluster),
        "storage": around.storage,
        "config_rejected": around.rejected,
        "ledger": _ledger(await ledger.health()),
        "accounts": [
            _account(row, now, around.paces.get(row.account, Pace()))
            | figures[row.account]
            | _hook(hooks.get(row.app_id), now)
            | {"node": cluster.holder_name(around.cluster, row.app_id) or None}
            for row in accounts
        ],
        "users": await _users(ledger, now, around, seen),
        "quarantined_faxes": [
            await _not_fetched(fax, fax.quarantined_at, around.evidence) for fax in given_up
        ],
        "failing_faxes": [
            await _not_fetched(fax, fax.first_failed_at, around.evidence) for fax in alarming
        ],
        "damaged_faxes": await _not_well(ledger, unreadable=False),
        "unreadable_faxes": await _not_well(ledger, unreadable=True),
        **(await _canaries(ledger) if _has_canary(around.accounts) else {}),
    }


def _nodes(seen: Cluster | None) -> dict[str, Any] | None:
    if seen is None:
        return None
    return {"summary": cluster.summary(seen), "problems": cluster.problems(seen)}


async def _not_well(ledger: Ledger, *, unreadable: bool) -> list[dict[str, Any]]:
    return [
        {**_names(fax), "path": fax.file, "why": fax.damage}
        for fax in await ledger.read(faxes.with_damage, _FAXES_SHOWN, unreadable=unreadable)
    ]


def _has_canary(accounts: Sequence[Account]) -> bool:
    return any(user.canary for account in accounts for user in account.users)


async def _canaries(ledger: Ledger) -> dict[str, Any]:
    """Return the late canaries; an empty dict if none is late."""
    told = [
        {
            "account": row.account,
            "user": row.user,
            "asked_at": instant(row.asked_at),
            "why": what_is_missing(row),
        }
        for row in await ledger.read(sends.late_canaries)
    ]
    return {"late_canaries": told} if told else {}


@dataclass(frozen=True)
class _Streams:
    """All streams, their stored faxes per hour, their progress, and their remaining lists."""

    rows: list[StreamRow]
    stored: dict[datetime, dict[int, int]]
    held: Mapping[int, Progress]
    lists: Mapping[int, int]


async def _streams(
    ledger: Ledger, now: datetime, beginnings: Beginnings, lately: StoredLately
) -> _Streams:
    rows, stored = await lately.read(ledger, now)
    held = await ledger.read(fold.all_progress)
    lists = lists_by_stream(beginnings, rows, held, now)
    return _Streams(rows, stored, held, lists)


async def _users(
    ledger: Ledger, now: datetime, around: Surroundings, seen: _Streams
) -> list[dict[str, Any]]:
    """Return every user with the figures of its received faxes; `sent` has those of sent faxes, if any."""
    rows, held = seen.rows, seen.held
    asked = await ledger.read(backfills.all_waiting)
    harmed = await ledger.read(faxes.damage_counts)
    undeleted = await ledger.read(errands.left, JobKind.DELETE)
    failing_counts = await ledger.read(failing.counts, now, around.alarm_after)
    overdue = _overdue(around.accounts, rows, now)
    silent = _silent(around.accounts, rows, held)
    none = FailingCount()
    shown = {
        (row.app_id, row.user_id, row.direction): _user(row, now)
        | _time(held[row.id], now)
        | _backfills(asked.get(row.id, ()))
        | _stored_lately(seen.stored, row.id, now)
        | {
            "overdue": row.id in overdue,
            "lists_left": seen.lists.get(row.id, 0),
            "silent_since": instant(silent.get(row.id)),
            "damaged_files": harmed.get(row.id, (0, 0))[0],
            "unreadable_files": harmed.get(row.id, (0, 0))[1],
            "not_deleted": undeleted.get(row.id, 0),
            "failing": failing_counts.get(row.id, none).late,
            "oldest_failing_s": failing_counts.get(row.id, none).oldest_s,
        }
        for row in rows
    }
    return [
        user | {"sent": shown.get((app_id, user_id, Direction.SENT))}
        for (app_id, user_id, direction), user in shown.items()
        if direction is Direction.RECEIVED
    ]


def by_stream(shown: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the users of a status, with their sent faxes as separate rows."""
    rows = []
    for user in shown.get("users", []):
        rows.append(user)
        if sent := user.get("sent"):
            rows.append(sent | {"user": f"{user['user']}/{Direction.SENT}"})
    return rows


def instant(at: datetime | None) -> str | None:
    """Return a time in ISO 8601, UTC, with `Z`."""
    if at is None:
        return None
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def damaged(problem: str) -> str:
    """Return the sentence for a damaged ledger, with what to do."""
    return see(
        f"The ledger is damaged ({problem}): stop the service and run `poller rebuild`, which keeps "
        "what the service could still record",
        "ledger-damaged",
    )


def lost(at: datetime) -> str:
    """Return the sentence for a lost ledger, with what to do."""
    return see(
        f"The ledger was lost. The new one, made at {at:%Y-%m-%d %H:%M} UTC, does not know all faxes "
        "in the storage directory: stop the service and run `poller rebuild`, or poller fetches faxes "
        "again that consumers took away",
        "ledger-lost",
    )


def _ledger(health: Health) -> dict[str, Any]:
    """Return the state of the ledger; `ok` is null until the first complete check."""
    return {
        "checked_at": instant(health.checked_at),
        "ok": None if health.checked_at is None else health.problem is None,
        "problem": health.problem,
        "snapshot_at": instant(health.snapshot_at),
        "lost_at": instant(health.lost_at),
        "risk": health.risk,
    }


def _names(fax: FaxRow) -> dict[str, Any]:
    whose = {"account": fax.account, "user": fax.user}
    return {**whose, "direction": fax.direction, "fax_id": fax.fax_id}


async def _not_fetched(
    fax: FaxRow, since: datetime | None, store: EvidenceStore | None
) -> dict[str, Any]:
    """Return a fax in trouble; `evidence` is the folder with eFax's answers, if any are kept."""
    kept = [] if store is None else await store.find(fax.app_id, fax.user_id, fax.fax_id)
    return {
        **_names(fax),
        "since": instant(since),
        "error": fax.last_error,
        "evidence": str(kept[-1].parent) if kept else None,
    }


def span(interval: Interval) -> list[str | None]:
    """Return start and end as text."""
    return [instant(interval.start), instant(interval.end)]


def _backfills(asked: Sequence[Backfill]) -> dict[str, Any]:
    """Return the waiting backfills, and why they make no progress."""
    errors = [one.last_error for one in asked if one.last_error]
    return {
        "backfills": [span(one.window) for one in asked],
        "backfill_error": errors[0] if errors else None,
    }


def _account(row: AccountRow, now: datetime, pace: Pace) -> dict[str, Any]:
    standing_s = (now - row.paused_since).total_seconds() if row.paused_since else 0.0
    return {
        "account": row.account,
        "suspended_until": instant(row.suspended_until),
        "reason": row.reason if row.suspended_until is not None else None,
        "paused_s": row.paused_s + standing_s,
        **asdict(pace),
    }


async def kept_hooks(ledger: Ledger, configured: Sequence[Account]) -> dict[str, HookRecord]:
    """Read the saved records of the accounts' web-hooks, by App ID. Raises LedgerUnavailable."""
    return {
        one.app_id: HookRecord.read(await ledger.read(hook, one.app_id))
        for one in configured
        if one.webhook is not None
    }


def _hook(record: HookRecord | None, now: datetime) -> dict[str, Any]:
    """Return the figures of an account's web-hook; an empty dict if it has none."""
    if record is None:
        return {}
    told = {
        "last_at": instant(record.last_at),
        "accepted": record.accepted,
        "refused": record.refused,
        "found_by_notifications": record.found,
        "silent_since": instant(record.silent_since) if record.is_silent(now) else None,
    }
    return {"webhook": told}


def _this_hour(now: datetime) -> datetime:
    """Return the start of this hour in local time, as some time zones are not whole hours off UTC."""
    return now.astimezone().replace(minute=0, second=0, microsecond=0).astimezone(UTC)


def _stored_lately(
    stored: Mapping[datetime, Mapping[int, int]], user: int, now: datetime
) -> dict[str, Any]:
    midnight = datetime.combine(now.astimezone().date(), time()).astimezone()
    by_hour = {hour: counts.get(user, 0) for hour, counts in stored.items()}
    return {
        "stored_today": sum(count for hour, count in by_hour.items() if hour >= midnight),
        "stored_by_hour": list(by_hour.values()),
    }


def _overdue(accounts: Sequence[Account], rows: Sequence[StreamRow], now: datetime) -> set[int]:
    """Return the ids of the streams that were not polled in time, for any reason."""
    last = {row.id: row.last_success_at or row.our_first_seen for row in rows if not row.removed}
    late = {
        (row.app_id, row.user_id, row.direction): row.id
        for row in rows
        if row.id in last and now > last[row.id] + schedule.LATE_AT_LEAST
    }
    overdue = set()
    for account in accounts if late else ():
        polls = [user.poll for user in account.users]
        factor = plan.demand(polls, account.limits.requests_per_second, now).factor
        for user, direction in product(account.users, Direction):
            if (at := late.get((user.app_id, user.user_id, direction))) is None:
                continue
            identity = schedule.identity(user.app_id, user.user_id, direction)
            stretch = factor if direction is Direction.RECEIVED else 1.0
            if schedule.is_overdue(user.of(direction).poll, identity, last[at], now, stretch):
                overdue.add(at)
    return overdue


def _silent(
    accounts: Sequence[Account], rows: Sequence[StreamRow], held: Mapping[int, Progress]
) -> dict[int, datetime | None]:
    """Return by stream since when it has been silent for too long; None if it has not."""
    expected = {
        (user.app_id, user.user_id, direction): user.expect
        if direction is Direction.RECEIVED
        else user.sent.expect
        for account in accounts
        for user, direction in product(account.users, Direction)
    }
    return {
        row.id: held[row.id].silent_since(expected.get((row.app_id, row.user_id, row.direction)))
        for row in rows
        if not row.removed
    }


def _user(row: StreamRow, now: datetime) -> dict[str, Any]:
    return {
        **{name: getattr(row, name) for name in _AS_IT_IS},
        **{name: instant(getattr(row, name)) for name in _TIMES},
        "refused": row.refused_until is not None and row.refused_until > now,
    }


def _time(progress: Progress, now: datetime) -> dict[str, Any]:
    """Return the listed time and the gaps of a stream."""
    settled = progress.settled_until
    return {
        "watermark": instant(progress.watermark),
        "lag_s": None if settled is None else max(0.0, (now - settled).total_seconds()),
        "gaps": [span(one) for one in progress.gaps],
        "failed_gaps": [span(one) for one in progress.failed_gaps],
        "dismissed_gaps": [
            {
                "from": instant(one.interval.start),
                "to": instant(one.interval.end),
                "reason": one.dismiss_reason,
            }
            for one in progress.failed_slices
            if one.dismissed
        ],
    }
