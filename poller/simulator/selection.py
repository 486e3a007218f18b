"""Select the faxes of a list call, their order and the page."""

import random
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import groupby
from typing import TypeVar

from .query import Filter, MalformedError, Paging, Window
from .state import Fax, Mailbox
from .switches import Switches

F = TypeVar("F", bound=Fax)


def check_window(switches: Switches, window: Window, now: datetime) -> None:
    """Refuse a window that is too long, too old or ends in the future, if the switches say so."""
    if switches.future_window == "refused" and window.end is not None and window.end > now:
        raise MalformedError("max_completed_timestamp", "the maximum is in the future")
    if window.start is None:
        return
    for longest_s, end, problem in (
        (switches.longest_window_s, window.end or now, "the window is too long"),
        (switches.oldest_window_s, now, "the window starts too long ago"),
    ):
        if longest_s is not None and (end - window.start).total_seconds() > longest_s:
            raise MalformedError("min_completed_timestamp", problem)


def matching(
    switches: Switches, mailbox: Mailbox, window: Window, passes: Filter, now: datetime
) -> list[Fax]:
    """Return the visible faxes in the bounds that pass the filters, newest first."""
    start, excluded = _bounds(switches, window, now)
    return [
        fax
        for fax in reversed(mailbox.between(start, window.end))
        if fax.completed not in excluded and fax.visible_at <= now and passes(fax)
    ]


def lies_in(switches: Switches, window: Window, instant: datetime, now: datetime) -> bool:
    """Return whether a time is inside the bounds."""
    start, excluded = _bounds(switches, window, now)
    is_before = start is not None and instant < start
    is_after = window.end is not None and instant > window.end
    return not is_before and not is_after and instant not in excluded


def _bounds(
    switches: Switches, window: Window, now: datetime
) -> tuple[datetime | None, set[datetime | None]]:
    """Return the start of a window, and the bounds that are not part of it."""
    start = window.start
    if start is None and switches.default_window_s is not None:
        start = now - timedelta(seconds=switches.default_window_s)
    return start, {
        start if switches.lower_bound == "exclusive" else None,
        window.end if switches.upper_bound == "exclusive" else None,
    }


def ordered(switches: Switches, newest_first: list[F], rng: random.Random) -> list[F]:
    if switches.order == "oldest":
        return newest_first[::-1]
    if switches.order == "newest":
        return newest_first
    shuffled: list[F] = []
    for _, same_second in groupby(newest_first, lambda fax: fax.completed.replace(microsecond=0)):
        group = list(same_second)
        rng.shuffle(group)
        shuffled += group
    return shuffled


def page_of(switches: Switches, faxes: Sequence[F], paging: Paging) -> tuple[Sequence[F], int]:
    """Return one page of a list, and the offset at which it really starts."""
    if switches.paging_headers == "ignored":
        paging = Paging()
    limit = min(paging.limit or switches.default_page, switches.page_cap)
    return faxes[paging.offset : paging.offset + limit], paging.offset
