"""Whether a user has received nothing for longer than expected."""

from datetime import datetime

from poller import schedule
from poller.config.model import Expect
from poller.window import Coverage


def silent_since(expect: Expect | None, last: datetime, coverage: Coverage) -> datetime | None:
    """Return since when nothing was received if that is longer than `expect.within`, else None.

    `last` is when the last fax was received, or when the user was first seen. Counted is only what
    is listed without a break up to the newest instant: what is not listed yet may hold a fax.
    """
    if expect is None or not coverage.intervals:
        return None
    listed = coverage.intervals[-1]
    since = max(last, listed.start)
    silence = schedule.silent_for(since, listed.end, expect.during, expect.timezone)
    return since if silence > expect.within else None
