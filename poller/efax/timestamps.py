"""The API's timestamps: write one spelling, read every spelling that occurs."""

import re
from datetime import UTC, datetime, timedelta, timezone

_TIMESTAMP = re.compile(
    r"(\d{4})-(\d{2})-(\d{2})[Tt ](\d{2}):(\d{2}):(\d{2})(?:[.,](\d{1,9}))?"
    r" ?(?:([Zz])|([+-])(\d{2}):?(\d{2})?)?",
    re.ASCII,
)


def format_timestamp(instant: datetime) -> str:
    """Write an aware instant as `2024-05-21T04:27:56.000+0000`: in UTC, cut to milliseconds.

    The API refuses a colon in the offset.
    """
    # isoformat, because strftime writes the year 33 as 33
    utc = instant.astimezone(UTC).replace(tzinfo=None)
    return utc.isoformat(timespec="milliseconds") + "+0000"


def parse_timestamp(text: str) -> datetime | None:
    """Read a timestamp as an aware UTC instant, cut to microseconds; return None if it is not one.

    Accepts `Z`, `+0000`, `+00:00`, `+00` and no offset (which means UTC), with 0 to 9 fractional
    digits.
    """
    match = _TIMESTAMP.fullmatch(text.strip())
    if match is None:
        return None
    year, month, day, hour, minute, second = (int(match[group]) for group in range(1, 7))
    microsecond = int((match[7] or "")[:6].ljust(6, "0"))
    try:
        zone = _zone(match[9], match[10], match[11])
        local = datetime(year, month, day, hour, minute, second, microsecond, tzinfo=zone)
        return local.astimezone(UTC)
    except (ValueError, OverflowError):  # 30 February, 99 o'clock, the year 1 in an eastern zone
        return None


def _zone(sign: str | None, hours: str | None, minutes: str | None) -> timezone:
    offset = timedelta(hours=int(hours or 0), minutes=int(minutes or 0))
    return timezone(-offset if sign == "-" else offset)
