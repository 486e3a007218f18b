"""What happens, as values: decisions emit them, the log and the metrics make something of them.

One class per `event.action` of the log, which is the class's name: `PollFailed` is `poll-failed`.
Its fields are those of the log line, but for what begins with `is_` and the ones `unsaid`: only the
sentence, the level or a metric needs them. The README's table of events is held against these classes.
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

    `severity` and `sentence` are one value, or two: if the field that `by` names is true or not.
    Without a level nothing is said, and it is only counted. A sentence may name fields in braces.
    """

    action: ClassVar[str]
    severity: ClassVar[Level | tuple[Level, Level | None]] = "info"
    sentence: ClassVar[str | tuple[str, str]]
    by: ClassVar[str]
    unsaid: ClassVar[tuple[str, ...]] = ()
    fields: ClassVar[tuple[str, ...]]  # of the log line

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
    """Return what the work on sent faxes emits to: each of its events says so."""

    def tagged(happened: Event) -> None:
        if isinstance(happened, OfUser):
            sent: Any = happened
            happened = replace(sent, direction=Direction.SENT)
        emit(happened)

    return tagged


class OfAccount(Event):
    account: str


class OfUser(OfAccount):
    """`direction`: which of the user's streams it is about; `of_sent` sets it."""

    user: str
    direction: Direction = field(default=Direction.RECEIVED, kw_only=True)


class OfFax(OfUser):
    fax_id: str


# -- the service ------------------------------------------------------------------------------------


class ServiceStarted(Event):
    sentence = "poller starts."
    users: int


class StartRefused(Event):
    severity = "error"
    sentence = "poller does not start: {error}. See `poller help service-does-not-start`."
    error: BaseException


class ServiceReady(Event):
    sentence = "poller is ready."
    accounts: int
    users: int
    storage: str


class ServiceStopping(Event):
    sentence = "poller finishes what is under way and stops."


class ServiceStopped(Event):
    sentence = "poller stopped."


class ServiceReloaded(Event):
    """`leaves_faxes`: a removed user has some that wait. At most ten users of each kind are named."""

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
    sentence = "The configuration was not taken, the old one stays: {problem}"
    unsaid = ("problem",)
    problem: str


class InternalError(Event):
    """A bug: an error that nobody expected."""

    severity = "error"
    sentence = "{what}"
    unsaid = ("what",)
    what: str
    error: BaseException | None
    account: str | None = None
    user: str | None = None
    fax_id: str | None = None


_RESTART: Final = (
    "has made no progress for two minutes. The watchdog is withheld, so that systemd "
    "restarts poller."
)
_STALLED: Final[Mapping[str, str]] = {
    "poll": "A poll made no progress for two minutes and was ended.",
    "storage": "Checking or storing a fax has not ended within two minutes. It is left to itself, "
    "and the fax is tried again.",
    "reload": "The configuration could not be read within two minutes; the old one stays.",
    "ledger copy": "The copy and check of the ledger made no progress for two minutes; it is tried "
    "again every hour. The work goes on.",
    "scheduler": f"The scheduler {_RESTART}",
    "ledger": f"The ledger {_RESTART}",
}


class Stalled(Event):
    """`what` names what stands still, and says how it is told unless `told` does."""

    severity = "error"
    sentence = (
        "A part of the work made no progress for two minutes and was cut off; it is done again."
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
    sentence = "This machine's clock was set {how}; all polls are planned again."
    unsaid = ("how",)
    step_s: float
    how: str


class LogLinesLost(Event):
    severity = "warning"
    sentence = "Lines of the log could not be written for a while and are lost; here it goes on."
    count: int


class LibraryMessage(Event):
    """What a library says through the standard library's logging; the log itself makes the line."""

    severity = ("error", "warning")
    sentence = ""


class HeartbeatFailed(Event):
    severity = "warning"
    sentence = "The heartbeat URL did not take the ping."
    reason: str
    status: int | None


class HeartbeatRecovered(Event):
    sentence = "The heartbeat URL takes pings again."
    failures: int


# -- accounts ---------------------------------------------------------------------------------------


class TokenRefreshed(OfAccount):
    severity = "debug"
    sentence = "Signed in."
    reason: str


class TokenWar(OfAccount):
    severity = "warning"
    sentence = (
        "Another program signs in with this App ID and ends our tokens: give each its own App ID. "
        "Faxes still arrive, more slowly."
    )
    count: int


class TokenWarOver(OfAccount):
    sentence = "No other program has ended our token for a day; sign-ins are few again."
    count: int


class AccountSlowed(OfAccount):
    action = "rate-limited"
    severity = "warning"
    sentence = "eFax said 429: the account pauses and goes on more slowly."
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
    sentence = "What the last five minutes brought."
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
        "The account is suspended and probed at growing intervals: {reason}",
        "The account is still suspended, for another reason: {reason}",
    )
    reason: str
    is_news: bool


class SuspensionEnded(OfAccount):
    action = "account-resumed"
    sentence = "The account works again; polling and fetching go on. It was suspended: {reason}"
    unsaid = ("reason",)
    reason: str
    failures: int


class ScheduleStretched(OfAccount):
    severity = "warning"
    sentence = "The schedule asks for more lists than the limit allows; polls become less frequent."
    factor: float
    requests_per_second: float


class WitnessesDeleted(OfAccount):
    """No fax is left at eFax by which an empty list could be proved. `is_sure`: eFax says so itself."""

    by = "is_sure"
    severity = ("info", "error")
    sentence = (
        "The newest faxes are not there any more at eFax, which says so itself: until the next one "
        "comes, an empty list is believed without a proof.",
        "For {minutes} minutes eFax has listed nothing that it listed before: these faxes are taken "
        "for deleted there, and empty lists are believed again. If nobody has deleted them, ask "
        "eFax's support.",
    )
    unsaid = ("minutes",)
    is_sure: bool
    minutes: int


class WebhookReceived(OfAccount):
    """A well-signed notice; said is the first one, and the first one after `webhook-refused` (`is_news`).

    `names_nobody`: no user of ours was found in it, and all of the account are polled.
    """

    by = "is_news"
    severity = ("info", "debug")
    sentence = (
        "The web-hook works: a notice is signed as it should be. The users whom one names are "
        "polled at once.",
        "A notice of the web-hook came.",
    )
    unsaid = ("names_nobody",)
    users: int
    names_nobody: bool
    is_news: bool


class WebhookRefused(OfAccount):
    """Each one is counted; said is it once an hour at most (`is_news`)."""

    by = "is_news"
    severity = ("warning", None)
    sentence = (
        "A request to the web-hook was refused: it is not signed with this account's secret. "
        "Compare webhook.secret with what was entered at eFax; or it was somebody else's."
    )
    is_news: bool


class NotificationsOff(OfAccount):
    """eFax has no list of notices for us; polls and sweeps do not need it."""

    sentence = (
        "eFax does not answer GET /notifications, which would show what it told the web-hook; it "
        "is asked again in a day. Polls and sweeps go on."
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
    """Every failure is counted; said is only that they begin (`is_news`)."""

    by = "is_news"
    severity = ("warning", None)
    sentence = "A poll failed; it is repeated on schedule, and said again only when it succeeds."
    error: BaseException
    is_news: bool


class PollRecovered(OfUser):
    sentence = "This user is polled again."
    failures: int


class RefusalBegan(OfUser):
    action = "user-refused"
    severity = "warning"
    sentence = (
        "eFax refuses this user{before}; check its user_id and that it belongs to this App ID{also}. "
        "It is asked again at growing intervals up to an hour."
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
    sentence = "A stretch of time could not be listed; it is tried again at growing intervals."
    gaps: int
    gap_from: datetime
    gap_to: datetime


class GapClosed(OfUser):
    sentence = "Every stretch of time is listed again, or was dismissed."


class SweepFailed(OfUser):
    severity = "warning"
    sentence = (
        "A sweep, which finds what the polls may have missed, could not be completed; it is tried "
        "again every five minutes."
    )
    sweep: str
    error: BaseException


class SweepRecovered(OfUser):
    sentence = "The sweep is complete again."
    sweep: str
    failures: int


class BackfillCompleted(OfUser):
    """An old window that an operator asked for is listed; `not_listed` parts of it are not."""

    by = "not_listed"
    severity = ("warning", "info")
    sentence = (
        "An old window that was asked for is listed, but for parts that eFax did not list.",
        "An old window that was asked for is listed.",
    )
    window_from: datetime
    window_to: datetime
    not_listed: int


class LateArrivals(OfUser):
    """Every late fax is counted; said is it once an hour at most (`is_news`)."""

    by = "is_news"
    severity = ("warning", None)
    sentence = "Faxes became visible later than half the overlap allows for; raise poll.overlap."
    count: int
    latest_s: int
    is_news: bool


class Silence(OfUser):
    severity = "warning"
    sentence = (
        "Nothing was received for longer than expected: is the number still assigned to this user?"
    )
    last_received_at: datetime | None


class FetchFailed(OfUser):
    """A user's faxes fail for longer than `retry.alarm_after`, or an operator must mend something."""

    severity = "error"
    sentence = (
        "Faxes of this user have failed for longer than retry.alarm_after, or their directory "
        "cannot be used; they are tried again. `poller status` names them and why."
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
    """`delay_s`: since it was received; None where that says nothing of eFax."""

    severity = "debug"
    sentence = "A new fax is listed."
    unsaid = ("delay_s",)
    received_at: datetime | None
    pages: int | None
    delay_s: float | None


class FaxStored(OfFax):
    """`waited_s`: from its reception to its file; None where it was fetched again or has no time."""

    by = "is_again"
    sentence = ("Stored a fax again.", "Stored a fax.")
    unsaid = ("waited_s",)
    file: str
    bytes: int
    pages: int | None
    is_again: bool
    waited_s: float | None


class FaxRetry(OfFax):
    """The first failure and each change of its kind is news, its repetition is not."""

    by = "is_news"
    severity = ("warning", "debug")
    sentence = "An attempt to fetch a fax failed; it is tried again."
    error: BaseException
    failures: int
    next_attempt_s: int
    is_news: bool


class FaxPostponed(OfFax):
    action = "fax-retry"
    severity = "debug"
    sentence = (
        "A fax was postponed: its account could not be asked, the disk is full, or no process could "
        "check its document."
    )
    error: BaseException


class FaxQuarantined(OfFax):
    severity = "error"
    sentence = (
        "A fax could not be had for longer than retry.give_up_after; it is tried once a day. "
        "See `poller status`, mend the cause, then `poller retry`."
    )
    error: BaseException
    failures: int


class FaxDamaged(OfFax):
    """It came whole over the wire, and the same way broken twice, or unchecked twice."""

    by = "is_unchecked"
    severity = "error"
    sentence = (
        "A fax could not be checked for the same reason twice; it is stored as it came, marked "
        "damaged.",
        "A fax came broken the same way twice; it is stored as it came, marked damaged.",
    )
    file: str
    problem: str
    is_unchecked: bool


class FilesDamaged(OfFax):
    action = "fax-damaged"
    severity = "error"
    sentence = (
        "The files of a stored fax are not what was stored; `poller verify --repair` fetches it "
        "again."
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
    """`proof`: its `file`, read again, or that a consumer has `taken` it."""

    sentence = "A fax that is stored here was deleted at eFax."
    proof: str


class DeleteRefused(OfFax):
    """Said when it begins or has another reason, and when it is left after seven days (`is_left`)."""

    by = "is_left"
    severity = ("error", "warning")
    sentence = (
        "eFax has refused for seven days to delete a fax that is stored here; it is left there.",
        "eFax refuses to delete a fax that is stored here; it is asked again at growing intervals.",
    )
    error: BaseException
    failures: int
    is_left: bool


class MarkLeft(OfFax):
    severity = "warning"
    sentence = (
        "eFax has refused for seven days to mark a stored fax as not downloaded; the mark stays as "
        "it is."
    )
    error: BaseException


# -- faxes that we send ------------------------------------------------------------------------------


class FaxSent(OfFax):
    """It is said when eFax accepts it, and when it has come to its number."""

    by = "is_transmitted"
    sentence = ("A fax that was sent has come to its number.", "eFax has accepted a fax.")
    number: str
    transaction_id: str
    purpose: str
    is_transmitted: bool


class SendFailed(OfUser):
    """eFax did not take a fax, or could not bring it to its number. `fax_id` where it had taken it."""

    by = "fax_id"
    severity = "error"
    sentence = (
        "A fax did not come to its number; it is not sent again by itself.",
        "A fax was not sent, and is not sent by itself later.",
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
        "eFax's answer to a fax that was sent is lost, and the list of sent faxes does not show it. "
        "It is not sent again: look in eFax's portal before you do."
    )
    number: str
    transaction_id: str
    purpose: str
    reason: str


class CanaryArrived(OfUser):
    by = "is_late"
    severity = ("warning", "info")
    sentence = (
        "The canary, a fax to the user's own number, is stored after it was said to be late.",
        "The canary, a fax to the user's own number, is stored.",
    )
    fax_id: str
    round_trip_s: int
    is_late: bool


class CanaryLate(OfUser):
    severity = "error"
    sentence = "The canary, a fax to the user's own number, is no file in time: {reason}"
    transaction_id: str
    reason: str


# -- storage and ledger -----------------------------------------------------------------------------


class StorageLost(Event):
    action = "storage-unusable"
    severity = "error"
    sentence = "No image is fetched until this is mended: {reason}"
    reason: str


class StorageUsable(Event):
    sentence = "The storage is usable again; fetching goes on."


class DiskLow(Event):
    severity = "warning"
    sentence = "Free space in the storage directory is less than twice storage.min_free."
    free_bytes: int
    min_free_bytes: int


class DiskOk(Event):
    sentence = "There is enough free space in the storage directory again."
    free_bytes: int
    min_free_bytes: int


class SnapshotMade(Event):
    sentence = "The day's snapshot of the ledger was made."
    failures: int


class SnapshotFailed(Event):
    severity = "warning"
    sentence = "The ledger could not be copied and checked; it is tried again every hour. The work goes on."
    error: BaseException


class LedgerFoundDamaged(Event):
    action = "ledger-damaged"
    severity = "error"
    sentence = (
        "The ledger is damaged. The service works on as far as it can. Stop it and run "
        "`poller rebuild`; the snapshots stay as they are."
    )
    problem: str


class LedgerLost(Event):
    """There was none, nor a snapshot, beside a storage that has been in use."""

    severity = "error"
    sentence = (
        "The ledger is new, and the storage directory holds faxes of an earlier one. Stop the "
        "service and run `poller rebuild`, else faxes that were taken away are fetched again."
    )
    directory: str


class LedgerRestored(Event):
    severity = "warning"
    sentence = (
        "The ledger was gone; its newest snapshot took its place. Faxes that were stored after that "
        "and have been taken away since are fetched again."
    )
    snapshot_at: datetime
