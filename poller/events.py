"""Events as values: decisions emit them, and the log and the metrics use them.

One class per `event.action` of the log, which is the class's name: `PollFailed` is `poll-failed`.
Its fields are those of the log line, but for what begins with `is_` and the ones `unsaid`: only the
sentence, the level or a metric needs them. A test compares the table of events in
config/MONITORING.md with these classes.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, ClassVar, Final, Literal, TypeVar, dataclass_transform

from poller.stream import Direction

Level = Literal["debug", "info", "warning", "error"]
_T = TypeVar("_T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
class Event:
    """Each subclass is a frozen dataclass.

    `severity` and `sentence` are one value, or a pair: for a true and a false value of the field that
    `by` names. An event without a level is only counted, not logged. A sentence may name fields in
    braces.
    """

    action: ClassVar[str]
    severity: ClassVar[Level | tuple[Level, Level | None]] = "info"
    sentence: ClassVar[str | tuple[str, str]]
    by: ClassVar[str]
    unsaid: ClassVar[tuple[str, ...]] = ()
    fields: ClassVar[tuple[str, ...]]  # the fields in the log line

    def __init_subclass__(cls) -> None:
        made: Any = dataclass(frozen=True)(cls)
        if "action" not in vars(cls):
            cls.action = re.sub(r"\B(?=[A-Z])", "-", cls.__name__).lower()
        said = (name for name in made.__match_args__ if not name.startswith("is_"))
        cls.fields = tuple(name for name in said if name not in cls.unsaid)

    @property
    def level(self) -> Level | None:
        return self._one_of(self.severity)

    @property
    def message(self) -> str:
        return self._one_of(self.sentence).format_map(vars(self))

    def _one_of(self, choice: _T | tuple[_T, _T]) -> _T:
        if isinstance(choice, tuple):
            return choice[0] if getattr(self, self.by) else choice[1]
        return choice


Emit = Callable[[Event], None]


def of_sent(emit: Emit) -> Emit:
    """Return an `Emit` for work on sent faxes: it marks each event as such."""

    def tagged(happened: Event) -> None:
        if isinstance(happened, OfUser):
            sent: Any = happened
            happened = replace(sent, direction=Direction.SENT)
        emit(happened)

    return tagged


class OfAccount(Event):
    account: str


class OfUser(OfAccount):
    """`direction`: which of the user's streams the event concerns; `of_sent` sets it."""

    user: str
    direction: Direction = field(default=Direction.RECEIVED, kw_only=True)


class OfFax(OfUser):
    fax_id: str


# -- the service ------------------------------------------------------------------------------------


class ServiceStarted(Event):
    sentence = "poller is starting."
    users: int


class StartRefused(Event):
    severity = "error"
    sentence = "poller cannot start: {why}"
    unsaid = ("why",)
    why: str
    error: BaseException


class ServiceReady(Event):
    sentence = "poller is ready."
    accounts: int
    users: int
    storage: str


class ServiceStopping(Event):
    sentence = "poller is stopping; it first finishes the downloads under way."


class ServiceStopped(Event):
    sentence = "poller stopped."


class ServiceReloaded(Event):
    """`leaves_faxes`: a removed user has waiting faxes. At most ten users of each kind are named."""

    by = "leaves_faxes"
    severity = ("warning", "info")
    sentence = "{changes}."
    unsaid = ("changes", "leaves_faxes")
    changes: str
    leaves_faxes: bool
    users: int
    added: Sequence[str]
    added_count: int
    removed: Sequence[str]
    removed_count: int
    renamed: Sequence[str]
    renamed_count: int


class ConfigRejected(Event):
    severity = "error"
    sentence = "The new configuration was rejected and the old one stays in use: {problem}"
    unsaid = ("problem",)
    problem: str


class InternalError(Event):
    """A bug: an unexpected error."""

    severity = "error"
    sentence = "{what}"
    unsaid = ("what",)
    what: str
    error: BaseException | None
    account: str | None = None
    user: str | None = None
    fax_id: str | None = None


_RESTART: Final = (
    "has made no progress for two minutes. poller stops feeding the watchdog, so that "
    "systemd restarts it."
)
_STALLED: Final[Mapping[str, str]] = {
    "poll": "A poll made no progress for two minutes, so poller ended it.",
    "storage": "Checking or storing a fax took more than two minutes. poller leaves that thread "
    "alone and tries the fax again.",
    "reload": "poller could not read the configuration within two minutes; the old one stays in use.",
    "ledger copy": "The copy and check of the ledger made no progress for two minutes; poller tries "
    "again every hour. Polling continues.",
    "scheduler": f"The scheduler {_RESTART}",
    "ledger": f"The ledger {_RESTART}",
}


class Stalled(Event):
    """`what` names the stalled part and selects the sentence, unless `told` does."""

    severity = "error"
    sentence = (
        "A part of the work made no progress for two minutes; poller ended it and starts it again."
    )
    unsaid = ("told",)
    what: str
    account: str | None = None
    user: str | None = None
    fax_id: str | None = None
    reason: str | None = None
    threads: Sequence[str] | None = None
    told: str | None = None

    @property
    def message(self) -> str:
        return self.told or _STALLED.get(self.what, super().message)


class ClockStepped(Event):
    severity = "warning"
    sentence = "This machine's clock was set {how}; poller schedules all polls again."
    unsaid = ("how",)
    step_s: float
    how: str


class LogLinesLost(Event):
    severity = "warning"
    sentence = "Some log lines could not be written and are lost; logging works again."
    count: int


class LibraryMessage(Event):
    """A message of a library through the standard library's logging; the log makes the line."""

    severity = ("error", "warning")
    sentence = ""


class HeartbeatFailed(Event):
    severity = "warning"
    sentence = "The heartbeat URL did not accept the ping."
    reason: str
    status: int | None


class HeartbeatRecovered(Event):
    sentence = "The heartbeat URL accepts pings again."
    failures: int


# -- accounts ---------------------------------------------------------------------------------------


class TokenRefreshed(OfAccount):
    severity = "debug"
    sentence = "Signed in."
    reason: str


class TokenWar(OfAccount):
    severity = "warning"
    sentence = (
        "Another program signs in with this App ID and ends poller's tokens: give each program its "
        "own App ID. Faxes still arrive, but more slowly."
    )
    count: int


class TokenWarOver(OfAccount):
    sentence = (
        "No other program has ended poller's token for a day; poller signs in normally again."
    )
    count: int


class AccountSlowed(OfAccount):
    action = "rate-limited"
    severity = "warning"
    sentence = (
        "eFax answered 429 (too many requests): the account pauses, then continues more slowly."
    )
    pause_s: float
    requests_per_second: float


class EfaxSlow(OfAccount):
    """The middle one of the last answers to `call` took `seconds`, for two minutes now."""

    severity = "warning"
    sentence = "eFax, or a proxy before it, answers slowly, so faxes come later: see `poller help efax-slow`."
    call: str
    seconds: int


class EfaxSlowOver(OfAccount):
    sentence = "eFax answers in time again."


class AccountSummary(OfAccount):
    sentence = "Summary of the last five minutes."
    users: int
    polls: int
    failed_polls: int
    discovered: int
    stored: int
    failed_fetches: int
    rate_limited: int
    pending: int
    quarantined: int
    lag_s: int
    suspended: bool


class SuspensionBegan(OfAccount):
    action = "account-suspended"
    by = "is_news"
    severity = "error"
    sentence = (
        "The account is suspended; poller probes it at growing intervals: {reason}",
        "The account is still suspended, now for another reason: {reason}",
    )
    reason: str
    is_news: bool


class SuspensionEnded(OfAccount):
    action = "account-resumed"
    sentence = (
        "The account works again, and polling and fetching continue. The reason was: {reason}"
    )
    unsaid = ("reason",)
    reason: str
    failures: int


class ScheduleStretched(OfAccount):
    severity = "warning"
    sentence = "The schedule needs more lists than the limit allows, so poller polls less often."
    factor: float
    requests_per_second: float


class WitnessesDeleted(OfAccount):
    """eFax has no known fax left that could confirm an empty list. `is_sure`: eFax itself says so."""

    by = "is_sure"
    severity = ("info", "error")
    sentence = (
        "eFax confirms that it no longer has the newest faxes: until the next fax arrives, poller "
        "believes empty lists without a check.",
        "For {minutes} minutes eFax has listed no fax that it listed before: poller assumes that they "
        "were deleted there, and believes empty lists again. If nobody deleted them, ask eFax's "
        "support.",
    )
    unsaid = ("minutes",)
    is_sure: bool
    minutes: int


class WebhookReceived(OfAccount):
    """A correctly signed notice; only the first, and the first after a refusal, is logged (`is_news`).

    `names_nobody`: the notice names none of our users, so poller polls all users of the account.
    """

    by = "is_news"
    severity = ("info", "debug")
    sentence = (
        "The web-hook works: eFax sent a correctly signed notice. poller polls the users that a "
        "notice names at once.",
        "eFax sent a notice to the web-hook.",
    )
    unsaid = ("names_nobody",)
    users: int
    names_nobody: bool
    is_news: bool


class WebhookRefused(OfAccount):
    """Each one is counted; at most one an hour is logged (`is_news`)."""

    by = "is_news"
    severity = ("warning", None)
    sentence = (
        "poller refused a request to the web-hook: it is not signed with this account's secret. "
        "Compare webhook.secret with the secret in eFax's portal, unless a stranger sent it."
    )
    is_news: bool


class NotificationsOff(OfAccount):
    """eFax has no list of notices for this account; polls and sweeps do not need it."""

    sentence = (
        "eFax does not answer GET /notifications, its list of web-hook notices; poller asks again "
        "in a day. Polls and sweeps continue."
    )
    error: BaseException


# -- users ------------------------------------------------------------------------------------------


class PollCompleted(OfUser):
    by = "discovered"
    severity = ("info", "debug")
    sentence = "Polled a user."
    discovered: int
    watermark: datetime | None


class PollFailed(OfUser):
    """Every failure is counted; only the first is logged (`is_news`)."""

    by = "is_news"
    severity = ("warning", None)
    sentence = "A poll failed; poller polls on schedule and logs this again only once it succeeds."
    error: BaseException
    is_news: bool


class PollRecovered(OfUser):
    sentence = "Polling this user works again."
    failures: int


class RefusalBegan(OfUser):
    action = "user-refused"
    severity = "warning"
    sentence = (
        "eFax refuses this user{before}; check its user_id and that it belongs to this App ID{also}. "
        "poller asks again at growing intervals of up to an hour."
    )
    unsaid = ("before", "also")
    error: BaseException | None
    before: str
    also: str


class RefusalEnded(OfUser):
    action = "user-accepted"
    sentence = "eFax accepts this user again."
    refusals: int


class GapOpened(OfUser):
    severity = "warning"
    sentence = "A stretch of time could not be listed; poller tries again at growing intervals."
    gaps: int
    gap_from: datetime
    gap_to: datetime


class GapClosed(OfUser):
    sentence = "No gap is left: every stretch of time is listed, or dismissed."


class SweepFailed(OfUser):
    severity = "warning"
    sentence = (
        "A sweep, which finds faxes that polls may have missed, failed; poller tries again every "
        "five minutes."
    )
    sweep: str
    error: BaseException


class SweepRecovered(OfUser):
    sentence = "The sweeps work again."
    sweep: str
    failures: int


class BackfillCompleted(OfUser):
    """A backfill is complete, except for the `not_listed` parts of its window."""

    by = "not_listed"
    severity = ("warning", "info")
    sentence = (
        "A backfill is complete, except for parts that eFax did not list.",
        "A backfill is complete.",
    )
    window_from: datetime
    window_to: datetime
    not_listed: int


class LateArrivals(OfUser):
    """Every late fax is counted; at most one event an hour is logged (`is_news`)."""

    by = "is_news"
    severity = ("warning", None)
    sentence = "Faxes appeared in the lists late, after more than half of poll.overlap; raise poll.overlap."
    count: int
    latest_s: int
    is_news: bool


class Silence(OfUser):
    severity = "warning"
    sentence = (
        "No fax has arrived for longer than expected: is the number still assigned to this user?"
    )
    last_received_at: datetime | None


class FetchFailed(OfUser):
    """A user's faxes fail for longer than `retry.alarm_after`, or an operator must repair something."""

    severity = "error"
    sentence = (
        "Faxes of this user have failed for longer than retry.alarm_after, or their directory "
        "cannot be used; poller keeps trying. `poller status` names the faxes and the reasons."
    )
    faxes: int
    oldest_s: int


class FetchRecovered(OfUser):
    sentence = (
        "No pending fax of this user has failed for longer than retry.alarm_after, and none waits "
        "for its directory."
    )


# -- faxes ------------------------------------------------------------------------------------------


class FaxDiscovered(OfFax):
    """`delay_s`: since its reception; None if that says nothing about eFax."""

    severity = "debug"
    sentence = "Found a new fax in a list."
    unsaid = ("delay_s",)
    received_at: datetime | None
    pages: int | None
    delay_s: float | None


class FaxStored(OfFax):
    """`waited_s`: from its reception to its file; None if it was fetched again or has no time."""

    by = "is_again"
    sentence = ("Stored a fax again.", "Stored a fax.")
    unsaid = ("waited_s",)
    file: str
    bytes: int
    pages: int | None
    is_again: bool
    waited_s: float | None


class FaxRetry(OfFax):
    """The first failure and each one of another kind is logged; a repetition is not."""

    by = "is_news"
    severity = ("warning", "debug")
    sentence = "An attempt to fetch a fax failed; poller will try again."
    error: BaseException
    failures: int
    next_attempt_s: int
    is_news: bool


class FaxPostponed(OfFax):
    action = "fax-retry"
    severity = "debug"
    sentence = (
        "poller postponed a fax: the account is not available, the disk is full, or no process could "
        "check the document."
    )
    error: BaseException


class FaxQuarantined(OfFax):
    severity = "error"
    sentence = (
        "A fax could not be fetched for longer than retry.give_up_after; poller now tries once a day. "
        "See `poller status`, remove the cause, then `poller retry`."
    )
    error: BaseException
    failures: int


class FaxDamaged(OfFax):
    """Its transfer was complete, but it was damaged in the same way twice, or twice not checkable."""

    by = "is_unchecked"
    severity = "error"
    sentence = (
        "A fax could not be checked twice, for the same reason; poller stored it as received, marked "
        "as damaged.",
        "eFax sent a fax damaged twice in the same way; poller stored it as received, marked as damaged.",
    )
    file: str
    problem: str
    is_unchecked: bool


class FilesDamaged(OfFax):
    action = "fax-damaged"
    severity = "error"
    sentence = (
        "The files of a stored fax are missing or have changed; `poller verify --repair` fetches the "
        "fax again."
    )
    file: str | None
    problem: str | None


class FilesUnreadable(OfFax):
    severity = "error"
    sentence = (
        "The files of a stored fax cannot be read, so nobody knows whether they are whole: let the "
        "service read them, then run `poller verify`."
    )
    file: str | None
    problem: str | None


class FaxDeleted(OfFax):
    """`proof`: `file`, which poller read again, or `taken`, by a consumer."""

    sentence = "Deleted a stored fax at eFax."
    proof: str


class DeleteRefused(OfFax):
    """Logged for the first refusal, for each new reason, and at the end after seven days (`is_left`)."""

    by = "is_left"
    severity = ("error", "warning")
    sentence = (
        "eFax has refused for seven days to delete a stored fax; poller leaves it there.",
        "eFax refuses to delete a stored fax; poller asks again at growing intervals.",
    )
    error: BaseException
    failures: int
    is_left: bool


class MarkLeft(OfFax):
    severity = "warning"
    sentence = (
        "eFax has refused for seven days to mark a stored fax as not downloaded; poller leaves the "
        "mark as it is."
    )
    error: BaseException


# -- faxes that poller sends --------------------------------------------------------------------------


class FaxSent(OfFax):
    """Logged when eFax accepts a fax, and when eFax has transmitted it."""

    by = "is_transmitted"
    sentence = ("eFax has transmitted a sent fax.", "eFax has accepted a fax to send.")
    number: str
    transaction_id: str
    purpose: str
    is_transmitted: bool


class SendFailed(OfUser):
    """eFax did not accept a fax, or could not transmit it; then it has a `fax_id`."""

    by = "fax_id"
    severity = "error"
    sentence = (
        "eFax could not transmit a fax; poller does not send it again.",
        "poller could not send a fax, and does not try again.",
    )
    number: str
    transaction_id: str
    purpose: str
    fax_id: str | None
    reason: str


class SendLost(OfUser):
    action = "send-in-doubt"
    severity = "error"
    sentence = (
        "eFax's answer to a sent fax is lost, and its list of sent faxes does not show the fax. poller "
        "does not send it again. Look in eFax's portal before you do."
    )
    number: str
    transaction_id: str
    purpose: str
    reason: str


class CanaryArrived(OfUser):
    by = "is_late"
    severity = ("warning", "info")
    sentence = (
        "The late canary, a fax to the user's own number, has arrived and is stored.",
        "The canary, a fax to the user's own number, has arrived and is stored.",
    )
    fax_id: str
    round_trip_s: int
    is_late: bool


class CanaryLate(OfUser):
    severity = "error"
    sentence = "The canary, a fax to the user's own number, is late: {reason}"
    transaction_id: str
    reason: str


# -- storage and ledger -----------------------------------------------------------------------------


class StorageLost(Event):
    action = "storage-unusable"
    severity = "error"
    sentence = "poller fetches no image until you repair this: {reason}"
    reason: str


# -- several nodes ------------------------------------------------------------------------------------


class LeaseTaken(OfAccount):
    """`is_takeover`: the node that held the account before did not give it back."""

    by = "is_takeover"
    severity = ("warning", "info")
    sentence = (
        "This node has taken over the account from one that no longer answers.",
        "This node works on the account from now on.",
    )
    term: int
    is_takeover: bool


class LeaseWasLost(OfAccount):
    action = "lease-lost"
    severity = "warning"
    sentence = (
        "This node has lost the account: it did not renew its lease in time, or the database failed "
        "over. No fax is lost: the node that takes the account finishes what was under way."
    )


class LeaseReleased(OfAccount):
    sentence = "This node has given the account back, and another one may take it."


class AccountNotTaken(OfAccount):
    severity = "error"
    sentence = "This node could not start to work on the account, and leaves it to others for half a minute."
    error: BaseException


class Fenced(OfAccount):
    severity = "warning"
    sentence = (
        "The ledger refused writes of this node, because another node has taken over the account."
    )
    writes: int


class LedgerRolledBack(Event):
    severity = "error"
    sentence = (
        "The database has failed over, and may have lost writes that it had confirmed. This node records "
        "again what it stored in the last ten minutes, and starts over with its accounts."
    )
    said_again: int


class ConfigDiffers(OfAccount):
    severity = "warning"
    sentence = "Node {other} has another configuration of this account than this node."
    other: str


class StorageUsable(Event):
    sentence = "The storage is usable again, and fetching continues."


class DiskLow(Event):
    severity = "warning"
    sentence = "Free space in the storage directory is below twice storage.min_free."
    free_bytes: int
    min_free_bytes: int


class DiskOk(Event):
    sentence = "There is enough free space in the storage directory again."
    free_bytes: int
    min_free_bytes: int


class SnapshotMade(Event):
    sentence = "Made the daily snapshot of the ledger."
    failures: int


class SnapshotFailed(Event):
    severity = "warning"
    sentence = (
        "poller could not copy and check the ledger; it tries again every hour. Polling continues."
    )
    error: BaseException


class LedgerFoundDamaged(Event):
    action = "ledger-damaged"
    severity = "error"
    sentence = (
        "The ledger is damaged. The service does what it still can. Stop it and run "
        "`poller rebuild`, which does not touch the snapshots."
    )
    problem: str


class LedgerLost(Event):
    """There was no ledger and no snapshot, but the storage has been in use."""

    severity = "error"
    sentence = (
        "The ledger is new, but the storage directory contains faxes of an earlier one. Stop the "
        "service and run `poller rebuild`, or poller fetches faxes again that consumers took away."
    )
    directory: str


class LedgerRestored(Event):
    severity = "warning"
    sentence = (
        "The ledger was missing, so poller restored its newest snapshot. It fetches faxes again that "
        "were stored and taken away after that snapshot."
    )
    snapshot_at: datetime
