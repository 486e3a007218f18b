"""Cron expressions with Debian's meaning, daylight saving included."""

from collections.abc import Iterator
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

_CRON_LENGTH = 200
_CRON_TRIAL = datetime(2024, 1, 1, tzinfo=UTC)


def cron_problem(text: str) -> str | None:
    """Return what is wrong with a cron expression in one sentence; None if it is good."""
    try:
        next_cron(text, ZoneInfo("UTC"), _CRON_TRIAL)
    except ValueError as error:
        return str(error)
    return None


def next_cron(text: str, zone: ZoneInfo, now: datetime) -> datetime:
    """Return the next time of a five-field cron expression strictly after `now`, in UTC.

    Debian's meaning: 0 and 7 are Sunday. If a day field begins with `*`, both day fields must
    match, otherwise either. A fixed time that daylight saving skips comes right after the gap, and
    one that it repeats comes once; `*` in minute or hour follows real time. ValueError says what is
    wrong.
    """
    instant = next(cron_times(text, zone, now), None)
    if instant is None:
        raise ValueError("cron: this day never comes")
    return instant


def cron_times(text: str, zone: ZoneInfo, now: datetime) -> Iterator[datetime]:
    """Yield all times of a cron expression after `now`, in order; like `next_cron`."""
    if len(text) > _CRON_LENGTH or len(text.split()) != 5:
        raise ValueError("a cron expression has five fields: minute hour day month weekday")
    last = now
    try:
        for moment in CronSim(text, now.astimezone(zone)):
            instant = moment.astimezone(UTC)
            # In the second pass of a repeated hour, CronSim offers fixed times of the first pass.
            if instant > last:
                last = instant
                yield instant
    except CronSimError as error:
        raise ValueError(f"cron: {str(error)[:1].lower()}{str(error)[1:]}") from None
