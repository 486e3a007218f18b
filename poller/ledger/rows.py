"""The ledger's results: frozen rows that know nothing of tables."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Row

from poller.documents import Staged, StoredFile, StoredFormat
from poller.ledger.tables import JobKind, SendState, State
from poller.stream import Direction, Stream, label
from poller.window import Interval


@dataclass(frozen=True, slots=True)
class StreamRow:
    """A stream: (app_id, user_id, direction) identify it, `account` and `user` are labels.

    `discovered` counts all its faxes; `stored`, `pending`, `quarantined` and `dismissed` count by
    state; `damaged` counts stored ones that are broken. `late_max_s` is the longest that a fax was
    late although its time was already listed.
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
    """How many faxes of a stream are in this state for one reason; None if they have not failed."""

    stream: int
    state: State
    why: str | None
    count: int


@dataclass(frozen=True)
class FaxRow:
    """A fax; `stream` is `StreamRow.id`, `failures` are in a row, `file` is relative to the storage.

    `refetch`: the file on the disk does not count as the fax. `damage`: why the file is not what
    was stored or, with `unreadable`, why nobody can tell. `fence` changes with each decision about
    what to do; None means nothing is to be done. `fax_key`: what all spellings of `fax_id` have in
    common, if it differs from `fax_id`.
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
    unreadable: bool = False

    @property
    def whose(self) -> Stream:
        """What identifies its stream in every database."""
        return Stream(self.app_id, self.user_id, self.direction)

    @property
    def is_damaged(self) -> bool:
        """Whether the disk certainly does not have what was stored."""
        return self.damage is not None and not self.unreadable

    @property
    def stored_file(self) -> StoredFile | None:
        """What was last stored; None before that."""
        return None if self.file is None else file_in(self)

    @property
    def names(self) -> tuple[str, str, str]:
        """Account, user and fax id, as in logs and metrics."""
        return self.account, self.user, self.fax_id


@dataclass(frozen=True)
class Errand:
    """Something to do at eFax with a stored fax.

    `failures` are in a row, refused since `first_failed_at`. `stored_before`: an operator asked,
    for what was stored before then. `is_left`: eFax refused it for so long that poller no longer
    tries.
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
    """What should be on the disk of a fax that is stored or being fetched again."""

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
    unreadable: bool

    @property
    def stored_file(self) -> StoredFile:
        return file_in(self)


@dataclass(frozen=True)
class NewFax:
    """A fax as listed, and its path in case it is new."""

    fax_id: str
    path: str
    listed: dict[str, Any]
    received_at: datetime | None


@dataclass(frozen=True)
class AccountRow:
    """An account; `paused_s` does not include the pause that began at `paused_since`."""

    app_id: str
    account: str
    suspended_until: datetime | None
    reason: str | None
    paused_s: float
    paused_since: datetime | None
    sign_in_level: float | None = None
    sign_in_at: datetime | None = None
    sealed_token: str | None = field(default=None, repr=False)
    token_at: datetime | None = None
    token_ends_at: datetime | None = None


@dataclass(frozen=True)
class Health:
    """When the ledger was last checked, what was wrong, and when its newest snapshot was made.

    `lost_at`: when it replaced a lost ledger, until it is rebuilt. `risk` says how the database may
    lose what it has acknowledged.
    """

    checked_at: datetime | None
    problem: str | None
    snapshot_at: datetime | None
    lost_at: datetime | None = None
    risk: str | None = None


@dataclass(frozen=True)
class FailingCount:
    """A stream's failing faxes: `late` counts pending ones that fail for longer than the alarm allows.

    `oldest_s` is for how many seconds the oldest one has failed, including quarantined ones.
    """

    late: int = 0
    oldest_s: float = 0.0


@dataclass(frozen=True)
class Untried:
    """How many faxes of a stream were never tried; the first has waited since `oldest`."""

    count: int = 0
    oldest: datetime | None = None


@dataclass(frozen=True)
class Attempt:
    """Something that happened to a fax; `outcome` is `stored`, `failed`, a problem or an operator's act."""

    at: datetime
    outcome: str
    error: str | None


@dataclass(frozen=True)
class Backfill:
    """An old window that an operator asked for; `rest` is still to be listed, None when finished.

    `not_listed` are the parts that eFax did not list, each with its reason; `last_error` is why it
    makes no progress.
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
    """What a backfill discovered; `pending` faxes are untried, `failed` ones have not succeeded yet."""

    discovered: int
    stored: int
    pending: int
    failed: int


@dataclass(frozen=True)
class SendRow:
    """A fax that we send; `stream` is the user's received faxes, `fax_id` eFax's id of the sent fax.

    `purpose` is operator, selftest or canary. From `arrived_fax_id` on, fields describe the fax
    that a self-test or canary became at our own number.
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
        """Account and user, as in logs and metrics."""
        return self.account, self.user

    @property
    def is_stored(self) -> bool:
        """Whether the page has arrived and is stored in a file."""
        return self.stored_at is not None

    @property
    def round_trip_s(self) -> float | None:
        """Seconds from the request to the file."""
        return None if self.stored_at is None else (self.stored_at - self.asked_at).total_seconds()


def file_in(row: Any) -> StoredFile:
    """Return the stored file that the columns of a row of `faxes` describe."""
    form: StoredFormat = row.format if row.format in ("tiff", "json") else "pdf"
    return StoredFile(row.file, form, row.bytes, row.sha256, row.pages, bool(row.damaged))


def fax_row(row: Row[*tuple[Any, ...]]) -> FaxRow:
    """Make a row from the columns of `faxes` and the user's labels."""
    fields: dict[str, Any] = dict(zip(row._fields, row, strict=True))
    for which in ("first_window", "last_window"):
        start, end = fields.pop(f"{which}_start"), fields.pop(f"{which}_end")
        fields[which] = None if start is None else Interval(start, end)
    return FaxRow(**fields)
