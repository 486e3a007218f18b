"""The times that operators write on the command line."""

from datetime import UTC, datetime

from poller.window import EARLIEST

_LATEST = datetime(2200, 1, 1, tzinfo=UTC)


def instant(word: str) -> datetime:
    """Read an ISO 8601 time with offset; ValueError says what is wrong with it."""
    try:
        at = datetime.fromisoformat(word)
    except ValueError:
        raise ValueError(f"{word!r} is no ISO 8601 time") from None
    if at.tzinfo is None:
        raise ValueError(f"{word!r} lacks its offset: Z, or +01:00")
    if not EARLIEST <= at < _LATEST:
        raise ValueError(f"{word!r} is before 1970 or after 2199")
    return at.astimezone(UTC)
