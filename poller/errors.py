"""One class per reaction, with the data that the reaction needs.

PollerError
├── UsageError            wrong words on the command line          exit 2
├── NotInstalled          a package of an extra is missing         exit 2
├── CannotStart           ledger, directory or port unusable       exit 73
│   └── LedgerDamaged     `poller rebuild` makes a new one
├── LockHeld              another poller holds this state          exit 75
├── ConfigError           every problem of the configuration       exit 78
├── StorageUnusable       fetching pauses until the storage is back
│   ├── StorageFull       no space or quota is left: so for every fax, whatever a look says
│   ├── StorageHung       a step there does not end: its fax fails, its thread is left alone
│   └── NotChecked        nothing could check this document just now: its fax is postponed
├── StorageConflict       a foreign file has the fax's name: this fax fails, others go on
│   └── MovedAway         its directory went away meanwhile: its ticket is void, it is stored again
├── FaxTooLarge           the file system takes no file so large: this fax fails, others go on
├── LedgerUnavailable     locked, read-only or full: nothing is done that it could not record  73
├── NoThread              the system allows no further thread: tried again later
├── Unforeseen            a bug in a poll: it failed, and the next one comes as planned
└── ApiError              a call to eFax that gave no usable answer
    ├── AccountSuspended  not sent: the account is suspended
    ├── SignInRefused     App ID or API key refused: suspends the account
    ├── SignInDelayed     not sent: the sign-in budget is spent until a given time
    ├── TokenRefused      401 with a fresh token as well
    ├── RateLimited       429: the account slows down
    ├── UserRefused       403 or 404 on a list: this user is asked less often
    ├── WindowRefused     400 on a list: the slice is halved
    ├── NotYet            404 or 410 on an image that is listed: asked again later
    ├── Rejected          any other 4xx: not repeated inside an attempt
    ├── SendInDoubt       a fax was perhaps taken: looked for, never sent again
    ├── BadAnswer         a 2xx that is not what it should be: repeated, kept as evidence
    └── Unreachable       no connection, timeout, 5xx: repeated, counts towards suspension
        └── DeadlinePassed  a minute without an answer: a slice is halved
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

# Said of a fax's directory: only an operator can mend it, so `status` does not wait to say it.
ALONE: Final = "in the storage cannot be used, while the storage itself can"


class PollerError(Exception):
    """Base of every error that poller raises on purpose; `str()` is one sentence for an operator."""

    exit_code = 1


class UsageError(PollerError):
    exit_code = 2


class NotInstalled(PollerError):
    exit_code = 2


class CannotStart(PollerError):
    exit_code = 73


class NotKept(CannotStart):
    """What is to be sent cannot be kept in the state directory."""


class LedgerDamaged(CannotStart):
    """The file is no ledger that this program can read, and `poller rebuild` helps."""


class LockHeld(PollerError):
    exit_code = 75


@dataclass(frozen=True, order=True)
class Problem:
    """One thing wrong in the configuration; `line` counts from 1, `key` is dotted; all may be unknown."""

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
    """The storage cannot take a fax now; `str()` says why, `fault` what the system said of one step."""

    def __init__(self, message: str, *, fault: str | None = None) -> None:
        super().__init__(message)
        self.fault = fault


class StorageFull(StorageUnusable):
    """Space or a quota has run out, also where the free space that is reported says otherwise."""


class StorageHung(StorageUnusable):
    """A step in the storage has not ended: its thread is left alone, and whoever waited goes on."""


class NotChecked(StorageUnusable):
    """No process could check the document now; it says nothing about the document or the storage."""


class StorageConflict(PollerError):
    """A file that is not this fax already has its name; it is never overwritten."""


class MovedAway(StorageConflict):
    """The fax's directory was renamed meanwhile: nothing of it is published, and its ticket is void."""


class FaxTooLarge(PollerError):
    """The file system or a limit refuses a file of this size (EFBIG)."""


class LedgerUnavailable(PollerError):
    """The ledger did not take a transaction; nothing was recorded."""

    exit_code = 73


class NoThread(PollerError):
    """The system allows this process no further thread."""


class Unforeseen(PollerError):
    """A poll ended by an error that is a bug; `str()` names its type only, its text may be private."""

    def __init__(self, bug: Exception) -> None:
        super().__init__(
            f"An error that nobody expected ({type(bug).__name__}): see internal-error in the log."
        )


@dataclass(frozen=True)
class Evidence:
    """What the server sent: status, headers without secrets, the first part of the body."""

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class ApiError(PollerError):
    """`retry_after_s` as the server asked, clamped; None where it did not."""

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
    """Not sent; `until` (UTC) is when the next probe may go."""

    def __init__(self, message: str, *, until: datetime) -> None:
        super().__init__(message)
        self.until = until


class SignInRefused(ApiError):
    pass


class SignInDelayed(ApiError):
    """Not sent; the sign-in budget allows the next one after `wait_s` seconds."""

    def __init__(self, message: str, *, wait_s: float) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class TokenRefused(ApiError):
    pass


class RateLimited(ApiError):
    pass


# It is the account's fault, whatever user or fax was asked for.
OF_THE_ACCOUNT: Final = (AccountSuspended, SignInDelayed, SignInRefused, TokenRefused, RateLimited)


class UserRefused(ApiError):
    pass


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
    was_sent = True  # perhaps; False where no connection was made


class DeadlinePassed(Unreachable):
    pass
