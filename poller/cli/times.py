"""The times that operators write on the command line."""

from datetime import UTC, datetime

from poller import clock
from poller.window import EARLIEST

_LATEST = datetime(2200, 1, 1, tzinfo=UTC)


def instant(word: str) -> datetime:
    """Read an ISO 8601 time with offset; ValueError says what is wrong with it."""
    try:
        at = clock.instant(word)
    except ValueError as error:
        raise ValueError(f"{word!r} {error}") from None
    if not EARLIEST <= at < _LATEST:
        raise ValueError(f"{word!r} is before 1970 or after 2199")
    return at
