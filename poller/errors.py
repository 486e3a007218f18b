"""One class per reaction, with the data that the reaction needs.

PollerError
├── UsageError            wrong words on the command line          exit 2
├── NotInstalled          a package of an extra is missing         exit 2
├── CannotStart           ledger, directory or port unusable       exit 73
│   └── LedgerDamaged     `poller rebuild` makes a new ledger
├── LockHeld              another poller holds this state          exit 75
├── ConfigError           all problems of the configuration        exit 78
├── StorageUnusable       fetching pauses until the storage is back
│   ├── StorageFull       space or quota has run out: affects every fax, whatever a look finds
│   ├── NotMounted        no marker, or another storage's: perhaps its disk is not mounted
│   ├── StorageHung       a step does not end: its fax fails, its thread is left behind
│   └── NotChecked        nothing could check this document now: its fax is postponed
├── StorageConflict       a foreign file has the fax's name: only this fax fails
│   └── MovedAway         its directory went away meanwhile: its ticket is void, store it again
├── FaxTooLarge           the file system cannot hold so large a file: only this fax fails
├── LedgerUnavailable     locked, read-only or full: do nothing that it could not record  73
│   ├── LedgerBroken      a part of it is damaged
│   └── LeaseLost         only for one account: this run may not work on it any longer
├── NoThread              the system allows no more threads: try again later
├── Unforeseen            a bug in a poll: the poll failed, the next one comes as planned
└── ApiError              a call to eFax that gave no usable answer
    ├── AccountSuspended  not sent: the account is suspended
    ├── SignInRefused     App ID or API key refused: suspends the account
    ├── SignInDelayed     not sent: the sign-in budget is spent until a given time
    ├── TokenRefused      401 with a fresh token as well
    ├── RateLimited       429: the account slows down
    ├── UserRefused       403 or 404 on a list: ask for this user less often
    ├── WindowRefused     400 on a list: halve the slice
    ├── NotYet            404 or 410 on an image that is listed: ask again later
    ├── Rejected          any other 4xx: do not repeat inside an attempt
    ├── SendInDoubt       eFax may have taken a fax: look for it, never send it again
    ├── BadAnswer         a 2xx with the wrong content: repeat, keep as evidence
    └── Unreachable       no connection, timeout, 5xx: repeat, counts towards suspension
        └── DeadlinePassed  a minute without an answer: halve the slice
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar, Final

from poller.topic import Topic, see

# About a fax's directory. Only an operator can fix it, so `status` reports it at once.
ALONE: Final = "in the storage cannot be used, while the storage itself can"


class PollerError(Exception):
    """Base of every error that poller raises on purpose; `str()` is one sentence for an operator.

    `topic` is what the manual says about it.
    """

    exit_code = 1
    topic: ClassVar[Topic | None] = None

    @property
    def told(self) -> str:
        """The sentence, and where an operator reads what to do."""
        return str(self) if self.topic is None else see(str(self), self.topic)


class UsageError(PollerError):
    exit_code = 2


class NotInstalled(PollerError):
    exit_code = 2


class CannotStart(PollerError):
    exit_code = 73


class NotKept(CannotStart):
    """The state directory cannot keep what is to be sent."""


class LedgerDamaged(CannotStart):
    """The file is not a ledger that this program can read; `poller rebuild` helps."""

    topic = "ledger-damaged"


class LockHeld(PollerError):
    exit_code = 75


@dataclass(frozen=True, order=True)
class Problem:
    """One problem of the configuration; `line` counts from 1, `key` is dotted; all may be unknown."""

    file: str
    line: int
    key: str
    message: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return ": ".join(part for part in (where, self.key, self.message) if part)


class ConfigError(PollerError):
    exit_code = 78

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = sorted(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class StorageUnusable(PollerError):
    """The storage cannot take a fax now; `str()` says why, `fault` is what the system said."""

    topic: ClassVar[Topic | None] = "storage-unusable"

    def __init__(self, message: str, *, fault: str | None = None) -> None:
        super().__init__(message)
        self.fault = fault


class StorageFull(StorageUnusable):
    """Space or a quota has run out, even if the reported free space says otherwise."""

    topic = "disk-full"


class NotMounted(StorageUnusable):
    """The storage directory is not the one that the ledger knows."""

    topic = "disk-not-mounted"


class StorageHung(StorageUnusable):
    """A step in the storage did not end: its thread is left behind, and its caller continues."""

    topic = "disk-hangs"


class NotChecked(StorageUnusable):
    """No process could check the document now; this says nothing about the document or the storage."""


class StorageConflict(PollerError):
    """Another file already has this fax's name; poller never overwrites it."""


class MovedAway(StorageConflict):
    """The fax's directory was renamed meanwhile: nothing was published, and the ticket is void."""


class FaxTooLarge(PollerError):
    """The file system or a limit refuses a file of this size (EFBIG)."""


class LedgerUnavailable(PollerError):
    """The ledger did not take a transaction; nothing was recorded."""

    exit_code = 73
    topic: ClassVar[Topic | None] = "ledger-unusable"


class LedgerBroken(LedgerUnavailable):
    """A statement met a damaged part of the file; `poller rebuild` helps."""

    topic = "ledger-damaged"


class LeaseLost(LedgerUnavailable):
    """This run no longer holds the account: another node may do so by now."""

    topic = None

    def __init__(self, app_id: str) -> None:
        super().__init__("another node has taken over the account")
        self.app_id = app_id


class NoThread(PollerError):
    """The system allows this process no more threads."""


class Unforeseen(PollerError):
    """A bug ended a poll; `str()` names only the error's type, as its text may be private."""

    def __init__(self, bug: Exception) -> None:
        super().__init__(
            f"An unexpected error ({type(bug).__name__}): see internal-error in the log."
        )


@dataclass(frozen=True)
class Evidence:
    """What the server sent: status, headers without secrets, the first part of the body."""

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class ApiError(PollerError):
    """`retry_after_s` is what the server asked for, within limits; None if it did not."""

    def __init__(
        self, message: str, *, evidence: Evidence | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.evidence = evidence or Evidence()
        self.retry_after_s = retry_after_s

    @property
    def status(self) -> int | None:
        return self.evidence.status


class AccountSuspended(ApiError):
    """Not sent; the next probe may go at `until` (UTC)."""

    topic = "account-suspended"

    def __init__(self, message: str, *, until: datetime) -> None:
        super().__init__(message)
        self.until = until


class SignInRefused(ApiError):
    topic = "account-suspended"


class SignInDelayed(ApiError):
    """Not sent; the sign-in budget allows the next one after `wait_s` seconds."""

    def __init__(self, message: str, *, wait_s: float) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class TokenRefused(ApiError):
    pass


class RateLimited(ApiError):
    topic = "rate-limited"


# The account is the cause, whatever user or fax the call was for.
OF_THE_ACCOUNT: Final = (AccountSuspended, SignInDelayed, SignInRefused, TokenRefused, RateLimited)


class UserRefused(ApiError):
    topic = "user-refused"


class WindowRefused(ApiError):
    pass


class NotYet(ApiError):
    pass


class Rejected(ApiError):
    pass


class BadAnswer(ApiError):
    pass


class SendInDoubt(ApiError):
    pass


class Unreachable(ApiError):
    was_sent = True  # perhaps; False if there was no connection


class DeadlinePassed(Unreachable):
    pass
