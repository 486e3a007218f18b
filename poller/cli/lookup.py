"""Find what operators name: faxes, users and stretches of time."""

from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from poller.cli import bootstrap
from poller.cli.commands import instant
from poller.config.model import Config, User
from poller.errors import PollerError, UsageError
from poller.ledger import FaxRow, Ledger, OnDisk, StreamRow, faxes, streams
from poller.stream import Direction
from poller.window import Interval

_SHOWN_TO = timedelta(milliseconds=1)  # times are shown cut to this; the gap includes the rest
_NAMED = 3
_SENT = "sent/"  # before the id of a sent fax


class NotDone(PollerError):
    """The operator named something unknown, or something that needs no action; exit 1."""


def counted(count: int, one: str, more: str) -> str:
    """Return the count with its noun: `1 fax`, `2 faxes`."""
    return f"{count:,} {one if count == 1 else more}"


def listed(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def name_of(row: Mapping[str, Any]) -> str:
    """Return the name of an account, a user or a fax that `--json` shows."""
    if row.get("direction") == Direction.SENT and "fax_id" in row:
        row = {**row, "fax_id": _SENT + row["fax_id"]}
    return "/".join(row[part] for part in ("account", "user", "fax_id") if part in row)


def fax_name(fax: FaxRow | OnDisk) -> str:
    return name_of(vars(fax))


async def find_one(ledger: Ledger, name: str) -> FaxRow:
    """Find the fax `FAX_ID`, `ACCOUNT/USER/FAX_ID` or, if it was sent, `ACCOUNT/USER/sent/FAX_ID`.

    A fax id may contain slashes.
    """
    found = await ledger.read(faxes.find, name)
    account, _, rest = name.partition("/")
    user, _, fax_id = rest.partition("/")
    if fax_id:
        named = await ledger.read(faxes.find, fax_id, account, user)
        found += [row for row in named if row.direction is Direction.RECEIVED] or named
    if fax_id.startswith(_SENT):
        named = await ledger.read(faxes.find, fax_id.removeprefix(_SENT), account, user)
        found += [row for row in named if row.direction is Direction.SENT]
    if not found:
        raise NotDone(
            f"the ledger knows no fax {name}; find its id as `fax_id` in the log or a sidecar"
        )
    if len(found) > 1:
        names = ", ".join(sorted(map(fax_name, found)))
        raise UsageError(f"{name} is ambiguous; name one of {names}")
    return found[0]


async def find_user(ledger: Ledger, key: str) -> StreamRow:
    """Find the stream `ACCOUNT/USER` or `ACCOUNT/USER/sent`; prefer a configured one to a removed one."""
    rows = [row for row in await ledger.read(streams.all_streams) if row.key == key]
    if not rows:
        raise NotDone(f"the ledger knows no user {key}; `poller status` lists all users")
    return min(rows, key=lambda row: row.removed)


def configured_user(settings: Config, key: str) -> User:
    """Find the user ACCOUNT/USER in the configuration; raises UsageError."""
    for user in settings.users:
        if "/".join(user.names) == key:
            return user
    raise UsageError(f"{key}: the configuration has no such ACCOUNT/USER")


async def received_stream(ledger: Ledger, user: User) -> int:
    """Find the row of a configured user's received stream. Raises NotDone if a reload is due."""
    identity = user.app_id, user.user_id, Direction.RECEIVED
    for row in await ledger.read(streams.all_streams, include_removed=False):
        if (row.app_id, row.user_id, row.direction) == identity:
            return row.id
    raise NotDone(
        f"the running service does not know {'/'.join(user.names)} yet: `systemctl reload poller` "
        "first"
    )


async def change_gap(
    settings: Config, gap: Sequence[str], command: Callable[..., int], nothing: str
) -> int:
    """Run a ledger command on the time that `--gap` names. Raises NotDone if it changes nothing."""
    key, *words = gap
    bounds = stretch(words)
    async with bootstrap.ledger_beside(settings, readonly=False) as ledger:
        row = await find_user(ledger, key)
        count = await ledger.write(command, row.id, bounds)
    if not count:
        raise NotDone(
            f"{nothing} from {words[0]} to {words[1]}; `poller status --json` shows the gaps"
        )
    return count


def stretch(words: Sequence[str]) -> Interval:
    """Read FROM and TO, each an ISO time with offset. Raises UsageError."""
    try:
        start, end = (instant(word) for word in words)
    except ArgumentTypeError as error:
        raise UsageError(f"--gap: {error}") from None
    if start >= end:
        raise UsageError(f"--gap: {words[0]} is not before {words[1]}")
    return Interval(start, end + _SHOWN_TO)
