"""How operators name faxes, users and stretches of time."""

from collections.abc import Sequence
from datetime import timedelta

from poller.cli.times import instant
from poller.errors import PollerError, UsageError
from poller.ledger import FaxRow, Ledger, StreamRow, faxes, streams
from poller.window import Interval

_SHOWN_TO = timedelta(milliseconds=1)  # times are shown cut off there: the rest belongs to the gap


class UnknownFax(PollerError):
    """No such fax in the ledger; exit 1."""


class UnknownGap(PollerError):
    """No such user, or nothing that is not listed there; exit 1."""


def counted(count: int, one: str, more: str) -> str:
    """Say how many: `1 fax`, `2 faxes`."""
    return f"{count:,} {one if count == 1 else more}"


async def find_one(ledger: Ledger, name: str) -> FaxRow:
    """Find the fax `FAX_ID` or `ACCOUNT/USER/FAX_ID`; a fax id may hold slashes itself."""
    found = await ledger.read(faxes.find, name)
    account, _, rest = name.partition("/")
    user, _, fax_id = rest.partition("/")
    if fax_id:
        found += await ledger.read(faxes.find, fax_id, account, user)
    if not found:
        raise UnknownFax(
            f"the ledger knows no fax {name}; the log and the sidecars have the ids as `fax_id`"
        )
    if len(found) > 1:
        names = ", ".join(sorted(f"{row.account}/{row.user}/{row.fax_id}" for row in found))
        raise UsageError(f"{name} is ambiguous; name one of {names}")
    return found[0]


async def find_user(ledger: Ledger, key: str) -> StreamRow:
    """Find the user `ACCOUNT/USER`, a configured one before a removed one of that name."""
    rows = [
        row for row in await ledger.read(streams.all_streams) if f"{row.account}/{row.user}" == key
    ]
    if not rows:
        raise UnknownGap(f"the ledger knows no user {key}; `poller status` shows its users")
    return min(rows, key=lambda row: row.removed)


def stretch(words: Sequence[str]) -> Interval:
    """Read FROM and TO, each an ISO time with offset; raises UsageError."""
    try:
        start, end = (instant(word) for word in words)
    except ValueError as error:
        raise UsageError(f"--gap: {error}") from None
    if start >= end:
        raise UsageError(f"--gap: {words[0]} is not before {words[1]}")
    return Interval(start, end + _SHOWN_TO)
