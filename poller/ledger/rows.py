"""What the ledger hands out: frozen rows that know nothing of tables."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row

from poller.documents import Staged, StoredFile, StoredFormat
from poller.ledger.tables import JobKind, SendState, State
from poller.stream import Direction, label
from poller.window import Interval


@dataclass(frozen=True, slots=True)
class StreamRow:
    """(app_id, user_id, direction) is the identity, `account` and `user` are labels; counters are of faxes.

    `discovered` counts all, `stored`, `pending`, `quarantined` and `dismissed` by state, `damaged`
    those stored and broken. `late_max_s` is the longest that a fax was late although its time had
    already been listed.
    """

    id: int
    app_id: str
    user_id: str
    direction: Direction
    account: str
    user: str
    our_first_seen: datetime
    pinned_start: datetime | None
    configured_start: str | None
    removed: bool
    last_poll_at: datetime | None
    last_success_at: datetime | None
    last_error: str | None
    failed_polls: int
    refused_until: datetime | None
    refusals: int
    sweep_end: datetime | None
    deep_sweep_end: datetime | None
    discovered: int
    stored: int
    pending: int
    quarantined: int
    dismissed: int
    damaged: int
    last_received_at: datetime | None
    last_stored_at: datetime | None
    late_max_s: float
    found_by_sweep: int
    found_by_deep_sweep: int

    @property
    def key(self) -> str:
        """The label that operators know."""
        return label(self.account, self.user, self.direction)


@dataclass(frozen=True)
class Waiting:
    """So many faxes of a stream are in this state for one reason; None: none of them has failed."""

    stream: int
    state: State
    why: str | None
    count: int


@dataclass(frozen=True)
class FaxRow:
    """A fax; `stream` is `StreamRow.id`, `failures` are in a row, `file` is relative to the storage.

    `refetch`: what is on the disk is not to be taken for the fax. `damage`: why it is not what was
    stored. `fence` changes with each decision about what is to be done; None: nothing is.
    `fax_key`: what the spellings of `fax_id` have in common, where that is something else.
    """

    id: int
    stream: int
    app_id: str
    user_id: str
    direction: Direction
    account: str
    user: str
    fax_id: str
    state: State
    path: str
    listed: dict[str, Any]
    received_at: datetime | None
    first_seen_at: datetime
    attempts: int
    failures: int
    first_failed_at: datetime | None
    paused_s_at_first_failure: float
    next_attempt_at: datetime | None
    last_error: str | None
    last_problem: str | None
    stored_at: datetime | None
    file: str | None
    format: str | None
    bytes: int | None
    sha256: str | None
    pages: int | None
    damaged: bool
    found_by: str
    first_window: Interval | None
    last_window: Interval | None
    last_listed_at: datetime
    quarantined_at: datetime | None
    dismissed_at: datetime | None
    dismiss_reason: str | None
    refetch: bool
    damage: str | None
    fax_key: str | None
    fence: int | None
    staged: Staged | None
    deleted_at: datetime | None
    canary: bool = False

    @property
    def stored_file(self) -> StoredFile | None:
        """What was last stored; None before that."""
        return None if self.file is None else file_in(self)

    @property
    def names(self) -> tuple[str, str, str]:
        """Account, user and fax id, as logs and metrics show them."""
        return self.account, self.user, self.fax_id


@dataclass(frozen=True)
class Errand:
    """What is to be done at eFax with a stored fax.

    `failures` in a row, refused since `first_failed_at`. `stored_before`: asked for by hand, for what
    was stored before then. `is_left`: it was refused for so long that it is not tried any more.
    """

    fax: FaxRow
    kind: JobKind
    due: datetime | None
    fence: int
    failures: int
    first_failed_at: datetime | None
    last_error: str | None
    stored_before: datetime | None

    @property
    def is_left(self) -> bool:
        return self.due is None


@dataclass(frozen=True)
class OnDisk:
    """What should be on the disk of a fax that is stored, or that is to be fetched again."""

    id: int
    app_id: str
    user_id: str
    direction: Direction
    account: str
    user: str
    removed: bool
    fax_id: str
    state: State
    path: str
    file: str
    format: str
    bytes: int
    sha256: str
    pages: int | None
    damaged: bool
    refetch: bool
    damage: str | None

    @property
    def stored_file(self) -> StoredFile:
        return file_in(self)


@dataclass(frozen=True)
class NewFax:
    """A fax as it was listed, and the path that it gets if it is not known yet."""

    fax_id: str
    path: str
    listed: dict[str, Any]
    received_at: datetime | None


@dataclass(frozen=True)
class AccountRow:
    """`paused_s` leaves out the pause that is running since `paused_since`."""

    app_id: str
    account: str
    suspended_until: datetime | None
    reason: str | None
    paused_s: float
    paused_since: datetime | None
    sign_in_level: float | None
    sign_in_at: datetime | None


@dataclass(frozen=True)
class Health:
    """When the ledger was last checked through, what was wrong, when its newest snapshot was made.

    `lost_at`: when it took the place of one that was lost, until it is rebuilt.
    """

    checked_at: datetime | None
    problem: str | None
    snapshot_at: datetime | None
    lost_at: datetime | None = None


@dataclass(frozen=True)
class FailingCount:
    """A stream's faxes that fail: `late` pending ones for longer than the alarm allows, and the oldest.

    `oldest_s` is for how many seconds the oldest one has failed, quarantined ones included.
    """

    late: int = 0
    oldest_s: float = 0.0


@dataclass(frozen=True)
class Attempt:
    """What happened to a fax: `outcome` is `stored`, `failed`, a problem, or an operator's act."""

    at: datetime
    outcome: str
    error: str | None


@dataclass(frozen=True)
class Backfill:
    """An old window that an operator asked for; `rest` is still to be listed, None when through.

    `not_listed` are the parts that eFax did not list, each with the reason; `last_error` is why it
    does not come on.
    """

    id: int
    stream: int
    window: Interval
    rest: Interval | None
    asked_at: datetime
    done_at: datetime | None
    last_error: str | None
    not_listed: tuple[tuple[Interval, str], ...]

    @property
    def withdrawn(self) -> bool:
        return self.done_at is not None and self.rest is not None


@dataclass(frozen=True)
class BackfillFound:
    """What a backfill discovered; `pending` was not tried yet, `failed` was, in vain until now."""

    discovered: int
    stored: int
    pending: int
    failed: int


@dataclass(frozen=True)
class SendRow:
    """A fax that we send; `stream` is that of what its user receives, `fax_id` eFax's for what went out.

    `purpose` is operator, selftest or canary. What is said from `arrived_fax_id` on is of the fax
    that a self-test or canary has become at our own number.
    """

    id: int
    stream: int
    transaction_id: str
    purpose: str
    destination: str
    code: str | None
    state: SendState
    fax_id: str | None
    status: str | None
    error: str | None
    asked_at: datetime
    sent_at: datetime | None
    accepted_at: datetime | None
    transmitted_at: datetime | None
    late_at: datetime | None
    late_said: bool
    finished_at: datetime | None
    app_id: str
    user_id: str
    account: str
    user: str
    arrived_fax_id: str | None
    arrived_at: datetime | None
    stored_at: datetime | None
    file: str | None
    pages: int | None
    damaged: bool | None

    @property
    def names(self) -> tuple[str, str]:
        """Account and user, as logs and metrics show them."""
        return self.account, self.user

    @property
    def is_stored(self) -> bool:
        """Whether the page has arrived and is a file."""
        return self.stored_at is not None

    @property
    def round_trip_s(self) -> float | None:
        """From asking for it to its file."""
        return None if self.stored_at is None else (self.stored_at - self.asked_at).total_seconds()


def file_in(row: Any) -> StoredFile:
    """Give the stored file that the columns of a row of `faxes` tell of."""
    form: StoredFormat = row.format if row.format in ("tiff", "json") else "pdf"
    return StoredFile(row.file, form, row.bytes, row.sha256, row.pages, bool(row.damaged))


def fax_row(row: Row[*tuple[Any, ...]]) -> FaxRow:
    """Make a row of the columns of `faxes` and the user's labels."""
    fields: dict[str, Any] = dict(zip(row._fields, row, strict=True))
    for which in ("first_window", "last_window"):
        start, end = fields.pop(f"{which}_start"), fields.pop(f"{which}_end")
        fields[which] = None if start is None else Interval(start, end)
    return FaxRow(**fields)
